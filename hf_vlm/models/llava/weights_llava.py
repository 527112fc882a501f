"""Names and config fields of other LLaVA folders -> ours: transformers' (`llava-hf`), and the original layout.

The tables are literal: left the name in the file, right ours. A tensor in no table is an error. Names inside a vision model,
and inside a language model of a `llava-hf` folder, are left as they are: transformers knows the layout of its own models.

                  vision encoder       projector                                language model
    llava-hf      vision_tower.        multi_modal_projector.linear_1.          language_model.model. / language_model.lm_head.
    or            model.vision_tower.  model.multi_modal_projector.linear_1.    model.language_model. / lm_head.
    original      left out             model.mm_projector.0.                    model. / lm_head.
    ours          vision_model.        projector.linears.0.                     language_model.model. / language_model.lm_head.

Three things are not mere names. Where layer -1 is asked for, transformers and the original mean the last layer before the
final norm, ours is the last output: it becomes a positive index. "Without the first token" is what both mean by `default` and
`patch`, whatever the vision encoder puts in front of its patches. And the original has no token for a picture, but a number
that is no token (-200): its vocabulary gets one row more.

Source: https://github.com/haotian-liu/LLaVA/tree/c121f0432da27facab705978f83c4ada465e46fd/llava/model
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlavaConfig, MistralConfig, PreTrainedConfig

from ...parts.vision_features import describe_vision_model
from .configuration_llava import LlavaVisionLanguageConfig

# Beginnings of names in a `llava-hf` file -> ours. The older layout, above, calls every language model's body `model`.
LLAVA_PREFIXES = {
    "vision_tower.": "vision_model.",
    "multi_modal_projector.linear_1.": "projector.linears.0.",
    "multi_modal_projector.linear_2.": "projector.linears.1.",
    "language_model.model.": "language_model.BODY.",
    "language_model.lm_head.": "language_model.OUTPUT_LAYER.",
    "model.vision_tower.": "vision_model.",
    "model.multi_modal_projector.linear_1.": "projector.linears.0.",
    "model.multi_modal_projector.linear_2.": "projector.linears.1.",
    "model.language_model.": "language_model.BODY.",
    "lm_head.": "language_model.OUTPUT_LAYER.",
}

# The original layout: names of LLaMA and Mistral, ours behind `language_model.`.
WORDS = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
LAYER_WEIGHTS = (
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
ATTENTION_BIASES = (
    "self_attn.q_proj.bias",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.bias",
    "self_attn.o_proj.bias",
)
MLP_BIASES = ("mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias")
PROJECTOR = "model.mm_projector."
VISION = "model.vision_tower.vision_tower."

# Ends of names that may be in a file and are not needed -> why.
DROPPED = {
    ".rotary_emb.inv_freq": "old files stored the frequencies of rotary positions, which follow from the config",
    ".embeddings.position_ids": "old files stored the numbers 0, 1, 2, ...",
}

# Fields of LLaMA's and Mistral's configs that an original config.json may hold, between fields of LLaVA's own.
TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "sliding_window",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

SELECTED_FEATURES = {"patch": "default", "cls_patch": "full"}

# Mean size of a final norm's weights that tells differences from weights: training starts them at 1, and they stay around it
# or grow; what a fine-tuning changes of them is a small part of that.
LARGEST_DELTA = 0.1


def config_from_llava(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give back fields of `LlavaVisionLanguageConfig` for the config.json of a `llava-hf` folder.

    Fields that the file leaves out have transformers' defaults. Token ids of the whole win over those of its language model.

    Raises:
        ValueError: if a section is missing, or the folder is of a kind that ours can't be: features of several layers side by
            side, a projector without biases.
    """
    for section in ("vision_config", "text_config"):
        if not isinstance(config.get(section), Mapping):
            raise ValueError(
                f"The config.json of a `llava` folder must have a section `{section}`, got {sorted(config)}. Copy or download "
                "the folder again."
            )
    theirs: Any = LlavaConfig.from_dict(dict(config))
    if not isinstance(theirs.vision_feature_layer, int):
        raise ValueError(
            "`vision_feature_layer` must be one layer, got the list "
            f"{list(theirs.vision_feature_layer)}: the projector of that folder reads several side by side, which ours does "
            "not. Load it with transformers' `LlavaForConditionalGeneration`."
        )
    if not theirs.multimodal_projector_bias:
        raise ValueError(
            "`multimodal_projector_bias` must be true, got false: our projector has biases. Load the folder with "
            "transformers' `LlavaForConditionalGeneration`."
        )
    text_config = theirs.text_config.to_dict() | {"tie_word_embeddings": theirs.tie_word_embeddings}
    fields = {
        "vision_config": theirs.vision_config.to_dict(),
        "text_config": text_config,
        "num_linear_layers": 2,
        "projector_hidden_act": theirs.projector_hidden_act,
        "image_token_id": theirs.image_token_index,
    }
    fields |= _shown_tokens(theirs.vision_config, theirs.vision_feature_layer, theirs.vision_feature_select_strategy)
    for name in TOKEN_IDS:
        own = getattr(theirs, name, None)
        fields[name] = own if own is not None else text_config.get(name)
    return fields


def weights_from_llava(
    weights: Mapping[str, torch.Tensor], config: LlavaVisionLanguageConfig
) -> dict[str, torch.Tensor]:
    """Give back the weights of a `llava-hf` folder under our names, whichever of its two layouts it has.

    Args:
        weights: names as in the file -> tensor.
        config: made of what `config_from_llava` gave; the names are the same for all.

    Returns: `vision_model.*` and `language_model.*`, with the two models' own names as in the file, and `projector.*`.

    Raises:
        ValueError: if a tensor belongs to none of the parts.
    """
    with torch.device("meta"):
        language_model: Any = AutoModelForCausalLM.from_config(config.text_config)
    output_layer = language_model.get_output_embeddings()
    own_names = {
        "BODY": language_model.base_model_prefix,
        "OUTPUT_LAYER": next(name for name, module in language_model.named_modules() if module is output_layer),
    }
    ours = {}
    for name, tensor in weights.items():
        if name.endswith(tuple(DROPPED)):
            continue
        prefix = next((prefix for prefix in LLAVA_PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            raise ValueError(
                "A `llava` file must hold `vision_tower.`, `multi_modal_projector.` and `language_model.` tensors, got "
                f"`{name}`. Give a folder written by transformers' LlavaForConditionalGeneration."
            )
        own_prefix = LLAVA_PREFIXES[prefix]
        for word, own_name in own_names.items():
            own_prefix = own_prefix.replace(word, own_name)
        ours[own_prefix + name.removeprefix(prefix)] = tensor
    return ours


def is_original_layout(config: Mapping[str, Any]) -> bool:
    """Whether a config.json was written by LLaVA's own code: it names its vision encoder instead of describing it."""
    return str(config.get("model_type", "")).startswith("llava") and "mm_vision_tower" in config


def config_from_original(config: Mapping[str, Any], vision_config: PreTrainedConfig) -> dict[str, Any]:
    """Give back fields of `LlavaVisionLanguageConfig` for a config.json in the original layout.

    The vocabulary has one row more than the file's, for the image token. `image_aspect_ratio` and `mm_use_im_start_end` say how
    pictures and prompts are prepared: they are the processor's and the template's.

    Args:
        config: the file's content.
        vision_config: of the vision encoder that `mm_vision_tower` names.

    Raises:
        ValueError: if it is of a kind that ours can't be (another projector or language model, pictures in tiles), or the
            vision encoder is another.
    """
    text_class = _original_text_config_class(config)
    projector = config.get("mm_projector_type") or "linear"
    depth = re.fullmatch(r"mlp([1-9]\d*)x_gelu", projector)
    if projector != "linear" and depth is None:
        raise ValueError(
            f"`mm_projector_type` must be `linear` or `mlpNx_gelu`, such as LLaVA-1.5's `mlp2x_gelu`, got `{projector}`. Use "
            "the code that the folder was made with."
        )
    for name, usual in (("mm_patch_merge_type", "flat"), ("mm_resampler_type", None), ("s2", False)):
        if config.get(name) and config[name] != usual:
            raise ValueError(
                f"LLaVA and LLaVA-1.5 show the language model a picture's patches as they are, got `{name}` "
                f"{config[name]!r}, of a later model. Use a v1.5 folder, or the code that the folder was made with."
            )
    selected = config.get("mm_vision_select_feature") or "patch"
    if selected not in SELECTED_FEATURES:
        raise ValueError(
            f"`mm_vision_select_feature` must be one of {', '.join(f'`{name}`' for name in SELECTED_FEATURES)}, got "
            f"`{selected}`. Correct it in config.json, or copy that again."
        )
    shown = _shown_tokens(vision_config, config.get("mm_vision_select_layer", -1), SELECTED_FEATURES[selected])
    if config.get("mm_hidden_size", shown["vision_hidden_size"]) != shown["vision_hidden_size"]:
        raise ValueError(
            f"The vision encoder must be {config['mm_hidden_size']} wide (`mm_hidden_size`), got one of "
            f"{shown['vision_hidden_size']}. Pass the one that the folder names, `vision={config['mm_vision_tower']!r}`."
        )
    given = {name: config[name] for name in TEXT_FIELDS if name in config}
    for name in TOKEN_IDS:
        if isinstance(given.get(name), int) and given[name] < 0:
            given[name] = None  # LLaMA's first configs wrote -1 for it
    text_config: dict[str, Any] = text_class.from_dict(given).to_dict()
    num_rows = text_config["vocab_size"]
    return {
        "vision_config": vision_config.to_dict(),
        "text_config": text_config | {"vocab_size": num_rows + 1},
        "num_linear_layers": int(depth.group(1)) if depth else 1,
        "projector_hidden_act": "gelu",
        "image_token_id": num_rows,
        **shown,
        **{name: text_config.get(name) for name in TOKEN_IDS},
    }


def weights_from_original(
    weights: Mapping[str, torch.Tensor],
    config: LlavaVisionLanguageConfig,
    vision_weights: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Give back the weights of a folder in the original layout under our names, a row for the image token added.

    The new row is the mean of the others, in the embedding and in the output layer. Where the folder holds the vision encoder
    too, as it does where that was trained along, its own is taken.

    Args:
        weights: names as in the file -> tensor.
        config: made of what `config_from_original` gave.
        vision_weights: of the vision encoder, by its own names (its `state_dict()`).

    Raises:
        ValueError: if a tensor is in no table, one that the config asks for is missing, or the vocabulary has another size
            than in the config.
    """
    text: Any = config.text_config
    names = {WORDS: f"language_model.{WORDS}", FINAL_NORM: f"language_model.{FINAL_NORM}"}
    if not text.tie_word_embeddings or OUTPUT in weights:
        names[OUTPUT] = f"language_model.{OUTPUT}"
    in_layer: tuple[str, ...] = LAYER_WEIGHTS
    in_layer += ATTENTION_BIASES if getattr(text, "attention_bias", False) else ()
    in_layer += MLP_BIASES if getattr(text, "mlp_bias", False) else ()
    for layer in range(text.num_hidden_layers):
        for name in in_layer:
            names[f"model.layers.{layer}.{name}"] = f"language_model.model.layers.{layer}.{name}"
    is_sequence = (
        f"{PROJECTOR}weight" not in weights
    )  # `mlpNx_gelu`: N linear layers, an activation after each but the last
    for layer in range(config.num_linear_layers):
        theirs = f"{PROJECTOR}{2 * layer}." if is_sequence else PROJECTOR
        for kind in ("weight", "bias"):
            names[f"{theirs}{kind}"] = f"projector.linears.{layer}.{kind}"

    given = {name: tensor for name, tensor in weights.items() if not name.endswith(tuple(DROPPED))}
    own_vision = {name: _vision_name(name, vision_weights) for name in given if name.startswith(VISION)}
    names |= {theirs: f"vision_model.{name}" for theirs, name in own_vision.items() if name in vision_weights}

    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(
            f"Every tensor of a LLaVA in the original layout must be in its table, got `{unknown[0]}` (and "
            f"{len(unknown) - 1} more). Check that config.json and `vision` belong to these weights."
        )
    missing = sorted(set(names) - set(given))
    if own_vision:
        missing += sorted(f"{VISION}{name}" for name in set(vision_weights) - set(own_vision.values()))
    if missing:
        raise ValueError(
            f"A LLaVA in the original layout must have {len(names)} tensors by its config, got none named `{missing[0]}` "
            f"(and {len(missing) - 1} more). Copy or download it again; check that config.json and `vision` belong to it."
        )
    ours = {f"vision_model.{name}": tensor for name, tensor in vision_weights.items()}
    ours |= {names[name]: tensor for name, tensor in given.items()}

    for name in (WORDS, OUTPUT):
        if name not in given:
            continue
        rows = given[name]
        if rows.shape[0] != config.image_token_id:
            raise ValueError(
                f"`{name}` must have {config.image_token_id} rows (`vocab_size`), got {rows.shape[0]}. Check that config.json "
                "belongs to these weights."
            )
        mean = rows.float().mean(dim=0, keepdim=True).to(rows.dtype)
        ours[f"language_model.{name}"] = torch.cat([rows, mean])
    return ours


def check_not_delta(weights: Mapping[str, torch.Tensor]) -> None:
    """Checks that a folder in the original layout holds a language model, not differences to LLaMA.

    The first LLaVAs were released as differences ("delta"), as LLaMA's licence asked. The weights of a final norm tell: they
    are around one or above in a model, and near zero in a difference of two.

    Raises:
        ValueError: if the final norm's weights are near zero.
    """
    if FINAL_NORM not in weights:
        return  # `weights_from_original` says so
    size = float(weights[FINAL_NORM].float().abs().mean())
    if size < LARGEST_DELTA:
        raise ValueError(
            f"The weights of a language model are wanted, got differences to LLaMA's (`{FINAL_NORM}` has a mean size of "
            f"{size:.4f}, in a model around 1): a `delta` folder. Add LLaMA's weights with the original's `python -m "
            "llava.model.apply_delta`, or take a v1.5 folder, which is whole."
        )


def _shown_tokens(vision_config: PreTrainedConfig, layer: int, strategy: str) -> dict[str, Any]:
    """The config fields for what of a vision encoder is shown, as transformers' LLaVA and the original mean it."""
    if layer == -1:
        layer = getattr(vision_config, "num_hidden_layers", -1)
        if layer == -1:
            raise ValueError(
                f"A vision encoder must say how many layers it has, got none of `{vision_config.model_type}` for "
                "`vision_feature_layer` -1. Load the folder with the code that it was made with."
            )
    seen = describe_vision_model(vision_config, None, layer)
    num_cut = 1 if strategy == "default" else 0
    return {
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
        "vision_hidden_size": seen.hidden_size,
        "num_prefix_tokens": num_cut or seen.num_prefix_tokens,
        "num_image_tokens": seen.num_tokens - num_cut,
        "image_size": list(seen.image_size),
    }


def _original_text_config_class(config: Mapping[str, Any]) -> type[PreTrainedConfig]:
    """LLaMA's config class or Mistral's, by the fields of an original config.json."""
    model_type = config["model_type"]
    if model_type not in ("llava", "llava_llama", "llava_mistral"):
        raise ValueError(
            "The original layout is read with a language model of LLaMA's or Mistral's kind (`model_type` `llava`, "
            f"`llava_llama` or `llava_mistral`), got `{model_type}`. Use the code that the folder was made with."
        )
    is_mistral = model_type == "llava_mistral" or "sliding_window" in config
    return MistralConfig if is_mistral else LlamaConfig


def _vision_name(name: str, vision_weights: Mapping[str, torch.Tensor]) -> str:
    """A tensor of the folder's own vision encoder by that encoder's name; CLIP's files say `vision_model.` in front."""
    own = name.removeprefix(VISION)
    short = own.removeprefix("vision_model.")
    return short if short in vision_weights else own
