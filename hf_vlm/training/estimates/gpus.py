"""GPUs by name: how much memory, arithmetic and bandwidth each has.

Source: NVIDIA's data sheets of A100 (SXM), H100 (SXM), H200, B200 (HGX), L40S, L4 and GeForce RTX 4090: bf16 in tensor cores,
without sparsity, summed in fp32; NVLink or PCIe in one direction, half of what the sheets add up. Memory is what is left of the
sheets' for programs, rounded down. Between machines: DGX A100's eight links of 200 Gb/s, DGX H100's and B200's of 400 Gb/s, one a
GPU; 100 Gb/s a machine of eight for the others.
"""

from dataclasses import dataclass

from hf_vlm.training.recipe_files import listed

_GIBIBYTE = 2**30


@dataclass(frozen=True)
class GPU:
    """One kind.

    Attributes:
        name: as users give it.
        device: what torch's name for it holds.
        memory: bytes that a program may use.
        flops_per_second: multiplications and additions of bf16 at the most.
        link: bytes a second to the others of its machine, in one direction.
        network: bytes a second to other machines, its share of them.
    """

    name: str
    device: str
    memory: int
    flops_per_second: float
    link: float
    network: float


def _gpu(name: str, device: str, gibibytes: float, teraflops: float, link: float, network: float) -> GPU:
    return GPU(name, device, int(gibibytes * _GIBIBYTE), teraflops * 1e12, link * 1e9, network * 1e9)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-40", "A100-SXM4-40GB", 39.3, 312, 300, 25),
        _gpu("a100-80", "A100-SXM4-80GB", 79.1, 312, 300, 25),
        _gpu("h100", "H100 80GB", 79.1, 989, 450, 50),
        _gpu("h200", "H200", 139.7, 989, 450, 50),
        _gpu("b200", "B200", 178.3, 2250, 900, 50),
        _gpu("l40s", "L40S", 44.3, 362, 32, 1.5),
        _gpu("l4", "L4", 22.0, 121, 32, 1.5),
        _gpu("rtx-4090", "RTX 4090", 23.5, 165, 32, 1.5),
    )
}


def gpu_named(name: str) -> GPU:
    """The GPU of a name.

    Raises:
        ValueError: if there is none in the table.
    """
    if name.lower() not in GPUS:
        raise ValueError(f"`gpu` must be one of {listed(GPUS)}, got `{name}`. Take the nearest.")
    return GPUS[name.lower()]


def gpu_of_device(device: str) -> GPU | None:
    """The GPU that torch names so, such as "NVIDIA H100 80GB HBM3"; None for one that is not in the table."""
    found = [gpu for gpu in GPUS.values() if gpu.device in device]
    return max(found, key=lambda gpu: len(gpu.device), default=None)  # an L40S is no L4
