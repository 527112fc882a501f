"""Tiny LLaVAs of transformers, and the same weights as folders in LLaVA's original layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    SiglipVisionConfig,
)

VOCAB_SIZE = 40
IMAGE_TOKEN, PAD, BOS, EOS = 39, 0, 1, 2

_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
_PICTURE = {"image_size": 16, "patch_size": 8}
_TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


def vision_config(name: str) -> Any:
    """4 patches a picture; CLIP's behind a class token, SigLIP's alone."""
    if name == "clip":
        return CLIPVisionConfig(**_VISION, **_PICTURE, projection_dim=8)
    return SiglipVisionConfig(**_VISION, **_PICTURE)


def text_config(name: str, **settings: Any) -> Any:
    if name == "llama":
        return LlamaConfig(**_TEXT, **settings)
    return MistralConfig(**_TEXT, **{"sliding_window": None, **settings})


def stock_model(vision: str = "clip", text: str = "llama", **settings: Any) -> LlavaForConditionalGeneration:
    """transformers' LLaVA, every tensor of it with values that matter."""
    in_text = {name: settings.pop(name) for name in ("tie_word_embeddings", "sliding_window") if name in settings}
    settings.setdefault("vision_feature_select_strategy", "default" if vision == "clip" else "full")
    config = LlavaConfig(
        vision_config=vision_config(vision),
        text_config=text_config(text, **in_text),
        image_token_index=IMAGE_TOKEN,
        pad_token_id=PAD,
        **settings,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    model.tie_weights()
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = EOS
    return model


def original_weights(stock: LlavaForConditionalGeneration, projector: str = "mlp2x_gelu") -> dict[str, torch.Tensor]:
    """The tensors as LLaVA's code saves them: no vision encoder, no row for the image token, the vocabulary's last."""
    saved = {}
    for name, tensor in stock.state_dict().items():
        if name.startswith("model.language_model."):
            saved["model." + name.removeprefix("model.language_model.")] = tensor
    saved["lm_head.weight"] = stock.lm_head.weight.detach()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        saved[name] = saved[name][:IMAGE_TOKEN]
    layers = stock.model.multi_modal_projector
    for kind in ("weight", "bias"):
        if projector == "linear":
            saved[f"model.mm_projector.{kind}"] = getattr(layers.linear_1, kind).detach()
        else:
            saved[f"model.mm_projector.0.{kind}"] = getattr(layers.linear_1, kind).detach()
            saved[f"model.mm_projector.2.{kind}"] = getattr(layers.linear_2, kind).detach()
    return {name: tensor.clone().contiguous() for name, tensor in saved.items()}


def original_config(text: str = "llama", **settings: Any) -> dict[str, Any]:
    """A config.json with the fields of liuhaotian/llava-v1.5-7b, tiny."""
    config = {
        "_name_or_path": "llava-v1.5-tiny",
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "freeze_mm_mlp_adapter": False,
        "freeze_mm_vision_resampler": False,
        "hidden_act": "silu",
        "hidden_size": 24,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "intermediate_size": 32,
        "max_length": 4096,
        "max_position_embeddings": 64,
        "mm_hidden_size": 16,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-tiny",
        "model_type": "llava",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": PAD,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "tune_mm_mlp_adapter": False,
        "tune_mm_vision_resampler": False,
        "unfreeze_mm_vision_tower": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": IMAGE_TOKEN,
    }
    if text == "mistral":
        config |= {"architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral", "sliding_window": None}
    return config | settings


def write_original(folder: Path, weights: dict[str, torch.Tensor], config: dict[str, Any], kind: str = "bin") -> Path:
    """A folder as LLaVA's authors release it: two shards and their index, `bin` pickles or `safetensors`."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    stem, ending = ("pytorch_model", "bin") if kind == "bin" else ("model", "safetensors")
    names = sorted(weights)
    shards = {f"{stem}-0000{1 + part}-of-00002.{ending}": names[part::2] for part in range(2)}
    for file_name, held in shards.items():
        tensors = {name: weights[name] for name in held}
        if kind == "bin":
            torch.save(tensors, folder / file_name)
        else:
            save_file(tensors, folder / file_name, metadata={"format": "pt"})
    weight_map = {name: file_name for file_name, held in shards.items() for name in held}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    return folder


def vision_model(stock: LlavaForConditionalGeneration) -> CLIPVisionModel:
    """The vision encoder of a stock LLaVA by itself."""
    return stock.model.vision_tower
