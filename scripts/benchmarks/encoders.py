"""Pictures encoded or trained on a second: our ViT and Swin beside transformers' and timm's, in turns in one run.

    python scripts/benchmarks/encoders.py [--models vit-s swin-t] [--batch 8] [--training] [--compile] [--json FILE]
    python scripts/benchmarks/encoders.py --device cuda --dtype bfloat16 --models clip-l-336 swin-b --batch 64 --compile

Ours hold transformers' random weights; of `clip-l-336`, whose peer is CLIP's vision model of ViT-L/14 at 336 pixels, random
ones of that shape. Forward is the encoder without a head. Training is forward, cross-entropy over 1,000 classes, backward
and AdamW on random labels; `--dtype bfloat16` trains under autocast. `--compile` measures all of them compiled as well, by
`torch.compile`'s defaults.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from generate import CLOCKS, environment, in_turns, report
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_vlm import (
    SwinTransformerForImageClassification,
    VisionTransformerConfig,
    VisionTransformerForImageClassification,
)
from hf_vlm.models.swin.configuration_swin import PRESETS as SWIN_PRESETS
from hf_vlm.models.vit.configuration_vit import PRESETS as VIT_PRESETS

TIMM_NAMES = {
    "vit-ti": "vit_tiny_patch16_224",
    "vit-s": "vit_small_patch16_224",
    "vit-b": "vit_base_patch16_224",
    "vit-l": "vit_large_patch16_224",
    "swin-t": "swin_tiny_patch4_window7_224",
    "swin-s": "swin_small_patch4_window7_224",
    "swin-b": "swin_base_patch4_window7_224",
    "swin-l": "swin_large_patch4_window7_224",
}
CLIP_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "image_size": 336}


def build_models(name: str) -> dict[str, nn.Module]:
    """Classifiers of 1,000 classes by whose they are; of `clip-l-336` bare encoders."""
    torch.manual_seed(0)
    if name == "clip-l-336":
        peer: PreTrainedModel = CLIPVisionModel(CLIPVisionConfig(**CLIP_L, intermediate_size=4096))
        config = VisionTransformerConfig(**CLIP_L, hidden_act="quick_gelu", num_labels=1000)
        return {"transformers": peer, "hf-vlm": VisionTransformerForImageClassification(config)}
    if name in VIT_PRESETS:
        settings = VIT_PRESETS[name]
        peer = ViTForImageClassification(
            ViTConfig(**settings, intermediate_size=4 * settings["hidden_size"], image_size=224, num_labels=1000)
        )
        own_class: Any = VisionTransformerForImageClassification
    else:
        settings = dict(SWIN_PRESETS[name])
        settings["num_heads"] = settings.pop("num_attention_heads")
        peer = SwinForImageClassification(SwinConfig(**settings, num_labels=1000))
        own_class = SwinTransformerForImageClassification
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        ours = own_class.from_pretrained(folder)
    return {"transformers": peer, "timm": timm.create_model(TIMM_NAMES[name], num_classes=1000), "hf-vlm": ours}


def encoder_of(whose: str, model: nn.Module) -> Callable[[torch.Tensor], Any]:
    """What a picture goes through before any head."""
    return model.forward_features if whose == "timm" else model.base_model  # type: ignore[return-value]


def training_step(
    whose: str, model: nn.Module, pixels: torch.Tensor, dtype: torch.dtype, compiled: bool
) -> Callable[[], None]:
    """A function that trains one step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=pixels.is_cuda)
    labels = torch.randint(1000, (len(pixels),), device=pixels.device)
    forward: Any = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype != torch.float32):
            outputs = forward(pixels)
            loss = F.cross_entropy(outputs if whose == "timm" else outputs.logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", dest="shape", choices=[*TIMM_NAMES, "clip-l-336"], default=["vit-s", "swin-t"]
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--training", action="store_true", help="train instead of encoding")
    parser.add_argument("--compile", action="store_true", help="also compiled; takes minutes on a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, default 7")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)

    figures = {"environment": environment(arguments), "cases": []}
    for name in arguments.shape:
        torch.compiler.reset()  # else sizes that differ from the last shape's are compiled as symbols, for minutes
        runs: dict[str, Callable[[], Any]] = {}
        for setting in ("default", "compiled")[: 1 + arguments.compile]:
            for whose, model in build_models(name).items():
                size = 336 if name == "clip-l-336" else 224
                pixels = torch.randn(arguments.batch, 3, size, size, device=arguments.device)
                model.to(arguments.device)
                if arguments.training:
                    if name == "clip-l-336":
                        parser.error("clip-l-336 has no head to train: leave it out of --training")
                    runs[f"{whose} {setting}"] = training_step(
                        whose, model.train(), pixels, dtype, setting == "compiled"
                    )
                    continue
                model.to(dtype).eval()
                encode: Any = encoder_of(whose, model)
                if setting == "compiled":
                    encode = torch.compile(encode)

                pixels = pixels.to(dtype)

                def run(encode: Any = encode, pixels: torch.Tensor = pixels) -> None:
                    with torch.no_grad():
                        encode(pixels)

                runs[f"{whose} {setting}"] = run
        what = "training" if arguments.training else "forward"
        results = in_turns(runs, arguments.rounds, arguments.clock)
        figures["cases"].append(
            report(f"{name}, {what}, batch {arguments.batch}", results, arguments.batch, "pictures/s")
        )
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
