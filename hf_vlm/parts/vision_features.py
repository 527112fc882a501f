"""Any vision model of the Hub as a source of picture tokens: the only place that knows how vision models differ.

    pixel_values (batch, channels, height, width) -> features (batch, tokens, hidden_size), which of them are real, and
    the grid (rows, columns) that the patch tokens form, row by row, behind the prefix tokens (CLS, distillation, registers)

How a model lays its output out is asked of the model itself, once, on the meta device, where it costs no memory and no
arithmetic (`describe_vision_model`); nothing is decided by the spelling of a name.
"""

import inspect
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .checkpoint_files import naming_faults, read_config

_LARGEST_PREFIX = 16
_UNUSED_HEADS = ("pooler", "head")  # summaries of a whole picture: a text decoder reads tokens, not these


@dataclass(frozen=True)
class VisionDescription:
    """What a vision model makes of a picture of one size.

    Attributes:
        hidden_size: width of a token.
        grid: (rows, columns) of the patch tokens.
        num_prefix_tokens: tokens in front of the patches.
        image_size: (height, width) in pixels that this holds for.
    """

    hidden_size: int
    grid: tuple[int, int]
    num_prefix_tokens: int
    image_size: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """All tokens of a picture, prefix included."""
        return self.num_prefix_tokens + self.num_patches

    @property
    def num_patches(self) -> int:
        """Tokens of a picture without the prefix."""
        return self.grid[0] * self.grid[1]


@dataclass
class VisionFeatures:
    """Picture tokens.

    Attributes:
        features: float (batch, tokens, hidden_size).
        mask: bool (batch, tokens), True for real tokens, or None where all are.
    """

    features: torch.Tensor
    mask: torch.Tensor | None


def configured_image_size(config: PreTrainedConfig) -> tuple[int, int]:
    """(height, width) in pixels that a vision model was configured for; 224 where its config doesn't say."""
    size: Any = getattr(config, "image_size", None)
    if size is None:
        size = (getattr(config, "model_args", None) or {}).get("img_size")  # timm's, behind transformers' wrapper
    if size is None:
        pretrained = getattr(config, "pretrained_cfg", None) or {}
        size = (pretrained.get("input_size") or (3, 224, 224))[1:]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def describe_vision_model(
    config: PreTrainedConfig, image_size: tuple[int, int] | None = None, layer: int = -1
) -> VisionDescription:
    """Ask a vision model for its layout, without its weights.

    Args:
        config: of a vision model that `AutoModel` knows.
        image_size: (height, width) in pixels; by default the one in the config.
        layer: which of its outputs, as in `vision_features`.

    Raises:
        ValueError: if the model gives no tokens (a pooled vector only), or none that form a grid.
    """
    size = image_size or configured_image_size(config)
    return _described(config.to_json_string(use_diff=False), type(config), size, layer)  # type: ignore[arg-type]


def usual_feature_layer(config: PreTrainedConfig, image_size: tuple[int, int] | None = None) -> int:
    """LLaVA's choice of layer, the one before the last, where that is laid out as the last; the last output elsewhere."""
    last = describe_vision_model(config, image_size)
    try:
        before = describe_vision_model(config, image_size, -2)
    except ValueError:
        return -1
    return -2 if before == last else -1


def show_every_patch(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config itself, told to hide no patch: ViT-MAE leaves most of them out, as its pre-training wants."""
    model_class = MODEL_MAPPING[type(config)] if type(config) in MODEL_MAPPING else None
    forward = getattr(model_class, "forward", None)
    if forward is not None and "noise" in inspect.signature(forward).parameters:
        config.mask_ratio = 0.0
    return config


@lru_cache(maxsize=256)
def _described(
    config_json: str, config_class: type[PreTrainedConfig], size: tuple[int, int], layer: int
) -> VisionDescription:
    config = show_every_patch(config_class.from_dict(json.loads(config_json)))
    with torch.device("meta"):
        model = AutoModel.from_config(config).eval()
        pixels = torch.zeros(1, getattr(config, "num_channels", 3), *size)
    arguments = _extra_arguments(model, pixels, interpolate_pos_encoding=size != configured_image_size(config))
    # Not under the meta device, nor under that of a `from_pretrained` around us: BEiT keeps a table that it makes in
    # `forward` for the whole process, and would read every later picture through a table without content.
    with torch.device("cpu"):
        try:
            outputs = model(pixels, output_hidden_states=True, **arguments)
        except Exception as error:  # whatever a model that wants other inputs raises
            raise ValueError(
                f"A vision encoder must take `pixel_values` (batch, channels, height, width) alone, got "
                f"`{config.model_type}`, which failed on a picture of {size[0]}x{size[1]} pixels ({error}). Use another "
                "vision model or picture size."
            ) from error
    if layer != -1:
        tokens, map_grid = _earlier_output(model, outputs, layer)
        if map_grid is not None:
            return VisionDescription(tokens.shape[2], map_grid, 0, size)
    else:
        tokens = _tokens(model, outputs)
    grid = _grid(model, config, outputs, tokens.shape[1], size)
    num_prefix = tokens.shape[1] - grid[0] * grid[1]
    if not 0 <= num_prefix <= _LARGEST_PREFIX:
        raise ValueError(
            f"A vision model's tokens must form a grid behind at most {_LARGEST_PREFIX} prefix tokens, got "
            f"{tokens.shape[1]} tokens of `{config.model_type}` at {size[0]}x{size[1]} pixels. Use another vision model."
        )
    return VisionDescription(tokens.shape[2], grid, num_prefix, size)


def _accepted_arguments(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _extra_arguments(
    model: nn.Module, pixel_values: torch.Tensor, *, interpolate_pos_encoding: bool
) -> dict[str, bool | torch.Tensor]:
    """What a model's `forward` takes beside the pictures."""
    accepted = _accepted_arguments(model)
    arguments: dict[str, bool | torch.Tensor] = {}
    if "interpolate_pos_encoding" in accepted:
        arguments["interpolate_pos_encoding"] = interpolate_pos_encoding
    if "return_loss" in accepted:  # visual tokenizers are not to decode what nobody looks at
        arguments["return_loss"] = False
    if "noise" in accepted:  # ViT-MAE puts its patches in this order
        rows, columns = _patch_grid(model.config.patch_size, pixel_values.shape[-2:])  # type: ignore[union-attr, arg-type]
        order = torch.arange(rows * columns, device=pixel_values.device)
        arguments["noise"] = order.expand(len(pixel_values), -1)
    return arguments


def _patch_grid(patch_size: int | tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    return size[0] // patch_height, size[1] // patch_width


def _tokens(model: nn.Module, outputs: Any) -> torch.Tensor:
    """A model's output as float (batch, tokens, hidden_size), maps flattened row by row."""
    hidden = getattr(outputs, "last_hidden_state", None)
    if hidden is None and getattr(outputs, "feature_maps", None):
        hidden = outputs.feature_maps[-1]
    if hidden is None or hidden.dim() not in (3, 4):
        raise ValueError(
            f"A vision encoder must give tokens or a feature map, got no such output from `{type(model).__name__}`. "
            "Choose a model whose `last_hidden_state` keeps the picture's places."
        )
    if hidden.dim() == 3:
        num_detection_tokens = getattr(model.config, "num_detection_tokens", 0)  # YOLOS: questions about objects, last
        return hidden[:, : hidden.shape[1] - num_detection_tokens]
    if getattr(getattr(model, "timm_model", None), "output_fmt", None) == "NHWC":
        return hidden.flatten(1, 2)
    return hidden.flatten(2).transpose(1, 2)


def _earlier_output(model: nn.Module, outputs: Any, layer: int) -> tuple[torch.Tensor, tuple[int, int] | None]:
    """One of a model's hidden states, float (batch, tokens, hidden_size), and its grid where it is a map without a prefix.

    Tokens that come without a grid are laid out as the last output's, prefix included.
    """
    states = getattr(outputs, "hidden_states", None) or ()
    if not -len(states) <= layer < len(states):
        raise ValueError(
            f"A layer of `{type(model).__name__}` must be one of its {len(states)} hidden states, got {layer}. "
            "Count from -1, the last, backwards; -1 is right for every model."
        )
    reshaped = getattr(outputs, "reshaped_hidden_states", None)
    features = reshaped[layer] if reshaped and len(reshaped) == len(states) else states[layer]
    if features.dim() == 4:
        if features is not states[layer] and features.shape[1] != states[layer].shape[-1]:  # Hiera's are channels last
            features = features.movedim(-1, 1)
        return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])
    last = getattr(outputs, "last_hidden_state", None)
    if last is None or last.dim() != 3 or features.shape[1] != last.shape[1]:
        raise ValueError(
            f"An earlier layer is read where it is a map or has as many tokens as the last, got `{type(model).__name__}`, "
            f"whose hidden state {layer} is {tuple(features.shape)}. Use layer -1."
        )
    num_detection_tokens = getattr(model.config, "num_detection_tokens", 0)
    return features[:, : features.shape[1] - num_detection_tokens], None


def _grid(
    model: nn.Module, config: PreTrainedConfig, outputs: Any, num_tokens: int, size: tuple[int, int]
) -> tuple[int, int]:
    """(rows, columns) by the first rule that applies: the model's own word, a map's shape, the patch size, the aspect."""
    own_rule = getattr(model, "grid_size", None)
    if callable(own_rule):
        rows, columns = own_rule(*size)
        return rows, columns
    last = getattr(outputs, "last_hidden_state", None)
    if last is None:
        last = outputs.feature_maps[-1]
    if last.dim() == 4:
        nhwc = getattr(getattr(model, "timm_model", None), "output_fmt", None) == "NHWC"
        return (last.shape[1], last.shape[2]) if nhwc else (last.shape[2], last.shape[3])
    reshaped = getattr(outputs, "reshaped_hidden_states", None)
    if reshaped:
        channels_last = reshaped[-1].shape[1] != last.shape[2]
        shape = reshaped[-1].shape
        return (shape[1], shape[2]) if channels_last else (shape[2], shape[3])
    hidden_states = getattr(outputs, "hidden_states", None)
    if hidden_states and hidden_states[-1] is not None and hidden_states[-1].dim() == 4:
        return hidden_states[-1].shape[2], hidden_states[-1].shape[3]
    patch = getattr(config, "patch_size", None)
    if patch is not None and not hasattr(config, "hidden_sizes"):
        return _patch_grid(patch, size)
    rows = max(1, round(math.sqrt(num_tokens * size[0] / size[1])))
    return rows, num_tokens // rows


def vision_features(
    model: nn.Module,
    pixel_values: torch.Tensor,
    pixel_mask: torch.Tensor | None = None,
    *,
    interpolate_pos_encoding: bool = False,
    layer: int = -1,
    **kwargs: object,
) -> VisionFeatures:
    """Picture tokens of any vision model, prefix tokens included (TrOCR's decoder reads them all).

    Args:
        pixel_values: float (batch, channels, height, width).
        pixel_mask: int64 or bool (batch, height, width), 0 for padding; the picture is the top-left part. A model that
            takes the mask itself (ours) is handed it and sees no padding; any other sees the padding, and its padded
            tokens are marked, so that a decoder leaves them out.
        interpolate_pos_encoding: resample position embeddings to pictures of another size than the configured one, which
            most models refuse otherwise.
        layer: -1 for the model's last output, as its own heads read it; any other number is an index into its
            `hidden_states`: -2 for the layer before the last (LLaVA's choice for CLIP), `num_hidden_layers` for the last one
            before the final norm; of a convolutional model its feature maps.
    """
    if layer != -1:
        if pixel_mask is not None:
            raise ValueError(
                f"An earlier layer is read of whole pictures, got layer {layer} with a `pixel_mask`. Leave it out."
            )
        kwargs.update(_extra_arguments(model, pixel_values, interpolate_pos_encoding=interpolate_pos_encoding))
        outputs = model(pixel_values, output_hidden_states=True, **kwargs)
        return VisionFeatures(_earlier_output(model, outputs, layer)[0], None)
    takes_mask = "pixel_mask" in _accepted_arguments(model)
    if takes_mask:
        kwargs["pixel_mask"] = pixel_mask
    kwargs.update(_extra_arguments(model, pixel_values, interpolate_pos_encoding=interpolate_pos_encoding))
    tokens = _tokens(model, model(pixel_values, **kwargs))
    if pixel_mask is None:
        return VisionFeatures(tokens, None)
    if takes_mask:
        return VisionFeatures(tokens, model.patch_mask(pixel_mask))  # type: ignore[operator]
    config: PreTrainedConfig = model.config
    layout = describe_vision_model(config, (pixel_values.shape[-2], pixel_values.shape[-1]))
    patches = F.adaptive_max_pool2d(pixel_mask[:, None].float(), layout.grid).flatten(1) > 0  # (batch, rows * columns)
    prefix = patches.new_ones(len(patches), layout.num_prefix_tokens)
    return VisionFeatures(tokens, torch.cat([prefix, patches], dim=1))


def select_tokens(features: torch.Tensor, num_prefix_tokens: int, strategy: str) -> torch.Tensor:
    """The tokens that a language model is shown: "default" the patches alone, "full" the prefix too.

    Args:
        features: float (batch, tokens, hidden_size), the prefix first.
    """
    return features[:, num_prefix_tokens:] if strategy == "default" else features


def num_selected_tokens(description: VisionDescription, strategy: str) -> int:
    """How many tokens `select_tokens` leaves of a picture: what a processor puts in, and a model fills."""
    return description.num_patches if strategy == "default" else description.num_tokens


def load_vision_model(vision: str | PreTrainedModel, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """A pretrained vision model, taken out of its whole where the Hub only has the whole.

    Args:
        vision: Hub name, folder, or a loaded model (a whole one, such as CLIP, gives its vision tower).
        kwargs: as for `AutoModel.from_pretrained`.

    Returns: the model, in fp32 unless `dtype` says otherwise, and its loading report: `copied` and `new` tensor names.

    Raises:
        ValueError: if any tensor that a decoder would read is not in the checkpoint: random weights are never passed on.
    """
    if isinstance(vision, PreTrainedModel):
        tower = _tower(vision)
        kept = {id(tensor) for tensor in tower.state_dict(keep_vars=True).values()}
        dropped = [name for name, tensor in vision.state_dict(keep_vars=True).items() if id(tensor) not in kept]
        return tower, {"copied": sorted(tower.state_dict()), "new": [], "dropped": sorted(dropped)}
    kwargs.setdefault("dtype", torch.float32)
    read_config(vision)  # says what is wrong where there is none
    with naming_faults(vision):
        return _load_vision_model(vision, **kwargs)


def read_vision_config(vision: str | os.PathLike | PreTrainedModel) -> PreTrainedConfig:
    """The config of what `load_vision_model` would load, without its weights."""
    if isinstance(vision, PreTrainedModel):
        return _tower(vision).config
    read_config(vision)  # says what is wrong where there is none
    config = AutoConfig.from_pretrained(vision)
    tower_config = getattr(config, "vision_config", None)
    return tower_config if isinstance(tower_config, PreTrainedConfig) else config


def _load_vision_model(vision: str, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    config = AutoConfig.from_pretrained(vision)
    tower_config = getattr(config, "vision_config", None)
    if isinstance(tower_config, PreTrainedConfig) and type(tower_config) in MODEL_MAPPING:
        try:
            model, info = AutoModel.from_pretrained(vision, config=tower_config, output_loading_info=True, **kwargs)
            if not needed_weights(info["missing_keys"]):
                return _checked(vision, model, info)
        except ValueError:
            pass  # our own models read folders of their own only: this one is taken out of the whole
    if type(config) not in MODEL_MAPPING:
        raise ValueError(
            f"`vision` must be a model that `AutoModel` loads, got `{config.model_type}` in {vision}. Give the folder of "
            "the vision encoder alone, or the loaded encoder itself."
        )
    whole, info = AutoModel.from_pretrained(vision, output_loading_info=True, **kwargs)
    return _checked(vision, _tower(whole), info)


def _tower(model: PreTrainedModel) -> PreTrainedModel:
    """The vision model inside a model of pictures and text, below a head, or the model itself."""
    if getattr(model.config, "vision_config", None) is not None:
        return model.get_encoder(modality="image")
    candidates = (model, model.base_model, getattr(model, "vision_model", model))
    wanted = MODEL_MAPPING.get(type(model.config), ())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    return next((candidate for candidate in candidates if isinstance(candidate, wanted)), model)


def needed_weights(missing: Iterable[str]) -> list[str]:
    """Those of a vision model's missing tensors that a decoder would read: all but the unused heads'."""
    return sorted(name for name in missing if not any(part in _UNUSED_HEADS for part in name.split(".")))


def _checked(
    vision: str, model: PreTrainedModel, info: dict[str, set[str]]
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    needed = needed_weights(info["missing_keys"])
    if needed:
        raise ValueError(
            f"Every weight of the vision encoder must come from {vision}, got none for {len(needed)} tensors, the first "
            f"`{needed[0]}`. Check that the folder holds a vision model's weights and that its config fits them."
        )
    names = set(model.state_dict())
    new = sorted(name for name in names if name in info["missing_keys"])
    return model, {"copied": sorted(names - set(new)), "new": new, "dropped": sorted(info["unexpected_keys"])}
