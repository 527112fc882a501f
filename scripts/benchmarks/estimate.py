"""`hf-vlm estimate` beside what a step really takes, and the tables of the README.

    python scripts/benchmarks/estimate.py [--device cuda] [--json FILE]     memory: estimate beside a real step, several models
    python scripts/benchmarks/estimate.py --speed FILE --device cuda        a GPU's speed, for `hf-vlm estimate --measured FILE`
    python scripts/benchmarks/estimate.py --shipped                         arithmetic of the run that the shipped speed is of
    python scripts/benchmarks/estimate.py --table                           LLaVA-1.5 on 8 and 16 GPUs: memory and hours

Memory: the same model, batch and precision once without content, as `estimate` runs it, and once for real; the most that lived at
once beside the weights. On a CPU torch's profiler reports every allocation of its own; on a GPU the allocator tells its peak.
`--speed` trains the 1.1B LLaVA of `llava.py` on padded batches, with gradient checkpointing, and was not run here: no GPU.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llava import SHAPES
from torch.profiler import ProfilerActivity, profile

from hf_vlm import LlavaVisionLanguageConfig
from hf_vlm.models.llava.modeling_llava import settle_sizes
from hf_vlm.training.estimates.estimate import GIBIBYTE, Estimate, estimate
from hf_vlm.training.estimates.step_costs import give_shapes, shapes_only, step_arithmetic, step_memory
from hf_vlm.training.estimates.unloaded_models import (
    Item,
    batch_of_shapes,
    longest_item,
    num_learnt,
    unloaded_config,
    unloaded_model,
)
from hf_vlm.training.recipe import Recipe
from hf_vlm.training.tasks import load_recipe

# name -> (recipe, overrides, items at once, tokens of a conversation)
_CHAT = ("model.pretrained=none", "data.max_tokens=null", "data.features_folder=null")
_SMALL = ("parts.train=[projector, language]", *_CHAT)
CASES: dict[str, tuple[str, tuple[str, ...], int, int | None]] = {
    "LLaVA, fp32": ("llava-chat", _SMALL, 4, 260),
    "LLaVA, bf16": ("llava-chat", (*_SMALL, "training.bf16=true"), 4, 260),
    "LLaVA, bf16, checkpointing": (
        "llava-chat",
        (*_SMALL, "training.bf16=true", "training.gradient_checkpointing=true"),
        4,
        260,
    ),
    "LLaVA, packed, bf16": (
        "llava-chat",
        ("data.max_tokens=1024", "data.features_folder=null", "training.bf16=true"),
        1,
        256,
    ),
    "LLaVA, projector alone, fp32": ("llava-chat", ("parts={train: [projector]}", *_CHAT), 4, 260),
    "LLaVA, LoRA, bf16": ("llava-chat-lora", (*_CHAT, "training.bf16=true"), 4, 260),
    "TrOCR (trocr-mini-lines), fp32": ("trocr-mini-lines", ("training.bf16=false",), 16, None),
    "TrOCR (trocr-mini-lines), bf16": ("trocr-mini-lines", ("training.bf16=true",), 16, None),
    "ViT (vit-image-classification), fp32": ("vit-image-classification", (), 32, None),
    "MAE (vit-masked-pretraining), fp32": ("vit-masked-pretraining", (), 32, None),
    "Swin (swin-image-classification), fp32": ("swin-image-classification", (), 32, None),
    "VAE (vae-tokenizer), fp32": ("vae-tokenizer", (), 32, None),
    "VQ-VAE (vqvae-tokenizer), fp32": ("vqvae-tokenizer", (), 32, None),
    "dVAE (dvae-tokenizer), fp32": ("dvae-tokenizer", (), 32, None),
}


def llava_of(shape: str) -> LlavaVisionLanguageConfig:
    """A shape of `llava.py`."""
    vision, text = SHAPES[shape]
    vision_config = {"model_type": "clip_vision_model", "projection_dim": 64, **vision}
    text_config = {"model_type": "llama", "max_position_embeddings": 4096, "pad_token_id": 0, **text}
    config = LlavaVisionLanguageConfig(vision_config=vision_config, text_config=text_config, image_token_id=5)
    settle_sizes(config)
    return config


def config_of(recipe: Recipe, shape: str = "small") -> Any:
    """The recipe's own, but of a LLaVA one of `llava.py`."""
    return llava_of(shape) if recipe.task == "chat" else unloaded_config(recipe)


def computed(recipe: Recipe, config: Any, batch_size: int, item: Item) -> tuple[int, int]:
    """Bytes beside the weights by a step without content; its multiplications and additions."""
    model = unloaded_model(recipe, config)
    settings: dict[str, Any] = {"num_learnt": num_learnt(recipe, config, batch_size, item)}
    settings["precision"] = torch.bfloat16 if recipe.training.get("bf16") else None
    with shapes_only():
        give_shapes(model, torch.float32)
        batch = batch_of_shapes(recipe, model, batch_size, item)
        memory = step_memory(model, batch, **settings)
        return memory.peak_with_gradients, step_arithmetic(model, batch, **settings).all


def real_step(recipe: Recipe, config: Any, batch_size: int, item: Item, device: str) -> tuple[Any, Callable[[], None]]:
    """A model with content, and a function that runs one step of it."""
    torch.manual_seed(0)
    shapes = unloaded_model(recipe, config)
    model = shapes.to_empty(device=device)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_(0, 0.02)
        else:
            tensor.data.copy_(torch.arange(tensor.numel()).view(tensor.shape) if tensor.numel() > 1 else 1)
    batch = {name: value.to(device) for name, value in batch_of_shapes(recipe, model, batch_size, item).items()}
    if "input_ids" in batch:
        _write_conversations(batch, config, item, recipe.data.max_tokens is not None)
    elif "labels" in batch and batch["labels"].dim() == 2:
        batch["labels"].fill_(3)
    half = bool(recipe.training.get("bf16"))

    def step() -> None:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=half):
            loss = model(**batch)["loss"]
        loss.backward()

    return model, step


def _write_conversations(batch: dict[str, torch.Tensor], config: Any, item: Item, packed: bool) -> None:
    """Pictures first in each conversation, then words, which are learnt."""
    ids, labels = batch["input_ids"].fill_(7), batch["labels"].fill_(7)
    number = len(batch["pixel_values"])
    if packed:
        starts = [(0, index * item.tokens) for index in range(number)]
        batch["position_ids"][:] = torch.arange(ids.shape[1], device=ids.device) % item.tokens
    else:
        starts = [(row, 0) for row in range(number)]
        batch["attention_mask"][0, -1] = 0  # a mask without a hole is left out
    for row, start in starts:
        ids[row, start : start + config.num_image_tokens] = config.image_token_id
        labels[row, start : start + config.num_image_tokens] = -100


def real_peak(step: Callable[[], None], device: str) -> int:
    """The most bytes that lived at once during a step, beyond those before it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def compare(device: str) -> list[dict[str, Any]]:
    """Estimate and reality of every case; also printed."""
    rows = []
    print(f"{'case':<40}{'estimate':>14}{'real':>14}{'ratio':>8}{'GFLOP':>10}")
    for name, (recipe_name, overrides, batch_size, tokens) in CASES.items():
        recipe = load_recipe(recipe_name, overrides)
        config = config_of(recipe)
        item = Item(tokens) if tokens else longest_item(recipe, config)
        bytes_computed, flops = computed(recipe, config, batch_size, item)
        model, step = real_step(recipe, config, batch_size, item, device)
        bytes_real = real_peak(step, device)
        del model, step
        ratio = bytes_computed / bytes_real
        rows.append({"case": name, "computed": bytes_computed, "real": bytes_real, "ratio": ratio, "flops": flops})
        shown = f"{bytes_computed / 2**20:>10.1f} MiB{bytes_real / 2**20:>10.1f} MiB"
        print(f"{name:<40}{shown}{ratio:>8.3f}{flops / 1e9:>10.1f}", flush=True)
    return rows


def shipped(rows: int = 16, mean: int = 772, padding: float = 0.36, rate: float = 27_000) -> float:
    """Multiplications and additions a second of the run whose speed is shipped."""
    recipe = load_recipe("llava-chat", ("data.max_tokens=null", "data.features_folder=null"))
    config = llava_of("llama-1.1b")
    model = unloaded_model(recipe, config)
    model.loss_chunk_size = None  # transformers makes all logits
    with shapes_only():
        give_shapes(model)
        batch = batch_of_shapes(recipe, model, rows, Item(round(mean / (1 - padding))))
        flops = step_arithmetic(model, batch, precision=torch.bfloat16).all
    print(
        f"{flops / rows / mean / 1e9:.2f} GFLOP a token that is no padding, {flops / rows / mean * rate / 1e12:.0f} TFLOP/s"
    )
    return flops / rows / mean * rate


def measure_speed(device: str, rows: int = 8, tokens: int = 772, rounds: int = 7) -> dict[str, Any]:
    """A GPU's multiplications and additions a second, by the median of some steps with AdamW."""
    recipe = load_recipe("llava-chat", (*_CHAT, "training.bf16=true", "training.gradient_checkpointing=true"))
    config = llava_of("llama-1.1b")
    flops = computed(recipe, config, rows, Item(tokens))[1]
    model, step = real_step(recipe, config, rows, Item(tokens), device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device.startswith("cuda"))
    seconds = []
    for _ in range(rounds + 2):
        begun = time.perf_counter()
        step()
        optimizer.step()
        optimizer.zero_grad()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    median = sorted(seconds[2:])[rounds // 2]
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    return {"device": name, "flops_per_second": flops / median, "seconds": median, "rows": rows, "tokens": tokens}


# Rows of the paper's sets; tokens on the mean: 576 of a picture and, taken for granted, 30 of a caption, 196 of a conversation.
PHASES = {"llava-1.5-projector": (558_128, 606), "llava-1.5-chat": (665_298, 772)}
MACHINES = {"8 H100": (8, 1, "h100"), "8 A100 of 80 GB": (8, 1, "a100-80"), "2 x 8 H100": (8, 2, "h100")}


def table() -> None:
    """Markdown: memory and hours of LLaVA-1.5."""
    print("| model, phase | on | DDP | ZeRO-2 | FSDP2 | ZeRO-3 | hours, by |")
    print("|---|---|---|---|---|---|---|")
    for size in ("7b", "13b"):
        for phase, (rows, tokens) in PHASES.items():
            recipe = load_recipe(phase)
            for machine, (gpus, nodes, gpu) in MACHINES.items():
                found = estimate(
                    recipe, gpus=gpus, nodes=nodes, gpu=gpu, rows=rows, tokens=tokens, preset=f"llava-1.5-{size}"
                )
                print(f"| {size.upper()}, {phase.removeprefix('llava-1.5-')} | {machine} | {_row(found)}", flush=True)


def _row(found: Estimate) -> str:
    cells = [f"{memory.total / GIBIBYTE:.0f}" + ("" if found.fits(memory) else " (no)") for memory in found.engines]
    hours = found.hours()
    time_told = "-" if hours is None else f"{hours[0]:.1f} to {hours[1]:.1f}, {found.chosen}"
    return " | ".join([*cells, time_told]) + " |"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the comparison there")
    parser.add_argument("--speed", type=Path, help="measure the device's speed and write it there")
    parser.add_argument("--shipped", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, about the name of a setting
    if arguments.shipped:
        shipped()
    elif arguments.table:
        table()
    elif arguments.speed is not None:
        found = measure_speed(arguments.device)
        arguments.speed.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"{found['flops_per_second'] / 1e12:.2f} TFLOP/s on {found['device']}")
    else:
        rows = compare(arguments.device)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
