"""Our vision transformer as transformers' own: ViT, DeiT, BEiT, ViT-MAE, I-JEPA or DINOv2, whichever is the same mathematics.

| ours | theirs |
|---|---|
| CLS token, learned positions, no layer scale | ViT |
| and a distillation token | DeiT |
| and layer scale, relative biases, mean pooling or no positions | BEiT |
| no CLS token | I-JEPA |
| register tokens, or feature maps behind the final norm | DINOv2, with registers |
| masked pre-training on codes | BEiT |
| masked pre-training on pixels | ViT-MAE |

What theirs computes and ours need not be spelled alike: fixed positions and the sum of rows' and columns' leave as a learned
table; a bias on the keys shifts all scores of a query alike, which softmax takes away, so that it may be left out or be zero.
"""

import copy
from typing import Any

import torch
from transformers import (
    BeitBackbone,
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    IJepaConfig,
    IJepaForImageClassification,
    IJepaModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from hf_vlm.blocks.patch_embed import as_pair
from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.models.vit.image_classification import VisionTransformerForImageClassification
from hf_vlm.models.vit.masked_image_modeling import VisionTransformerForMaskedImageModeling
from hf_vlm.models.vit.modeling_vit import VisionTransformerBackbone, VisionTransformerModel
from hf_vlm.models.vit.weights_vit import MODEL_TYPES, SETTINGS, weights_from_home
from hf_vlm.sharing.stock.pictures import stock_image_processor
from hf_vlm.sharing.stock.weights import Tensors, fill_stock, output_difference

# Family and task -> transformers' class.
CLASSES: dict[tuple[str, str], Any] = {
    ("vit", "features"): ViTModel,
    ("vit", "classes"): ViTForImageClassification,
    ("deit", "features"): DeiTModel,
    ("deit", "classes"): DeiTForImageClassification,
    ("deit", "classes of two heads"): DeiTForImageClassificationWithTeacher,
    ("beit", "features"): BeitModel,
    ("beit", "classes"): BeitForImageClassification,
    ("beit", "codes"): BeitForMaskedImageModeling,
    ("beit", "maps"): BeitBackbone,
    ("ijepa", "features"): IJepaModel,
    ("ijepa", "classes"): IJepaForImageClassification,
    ("vit_mae", "pixels"): ViTMAEForPreTraining,
    ("dinov2", "maps"): Dinov2Backbone,
    ("dinov2_with_registers", "features"): Dinov2WithRegistersModel,
    ("dinov2_with_registers", "classes"): Dinov2WithRegistersForImageClassification,
    ("dinov2_with_registers", "maps"): Dinov2WithRegistersBackbone,
}
CONFIGS: dict[str, Any] = {
    "vit": ViTConfig,
    "deit": DeiTConfig,
    "beit": BeitConfig,
    "ijepa": IJepaConfig,
    "vit_mae": ViTMAEConfig,
    "dinov2": Dinov2Config,
    "dinov2_with_registers": Dinov2WithRegistersConfig,
}

# DINOv2's names in its folders -> ViT's, by which the tables know them.
DINOV2_NAMES = {
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".layer_scale1.lambda1": ".lambda_1",
    ".layer_scale2.lambda1": ".lambda_2",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
REGISTERS = "embeddings.register_tokens"

_Requirements = list[tuple[bool, str, object]]


def to_stock(model: Any) -> tuple[PreTrainedModel, list[str]]:
    """Transformers' model of the same mathematics, weights in it, in the dtype of ours.

    Args:
        model: one of our four vision transformers: features, classes, masked pre-training, feature maps.

    Returns: that model in evaluation mode; notes, what came out in another form.

    Raises:
        ValueError: if there is none; it names the setting.
    """
    config, task = model.config, _task(model)
    family = _family(config, task)
    stock_class = CLASSES[family, task]
    stock = stock_class(_stock_config(config, family)).to(model.dtype).eval()
    own, notes = _own_weights(model, family, stock_class.__name__)
    new, left_out, more_notes = _differences(config, family, task, stock_class.__name__)
    reading_config = copy.deepcopy(config)  # reading changes it

    def read(weights: Tensors) -> Tensors:
        return type(model).place_weights(*_read_as_ours(reading_config, weights, family))

    fill_stock(stock, own, read, new=new, left_out=left_out)
    return stock, [*notes, *more_notes]


def to_stock_processor(processor: Any, model: Any) -> tuple[Any, list[str]]:
    """Transformers' image processor of the same pixels; see `stock_image_processor`."""
    return stock_image_processor(processor)


@torch.no_grad()
def largest_difference(model: Any, stock: Any) -> float:
    """The largest difference of what both make of two random pictures, as `output_difference` counts it.

    Args:
        model, stock: in fp32, in evaluation mode.
    """
    config = model.config
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, config.num_channels, *as_pair(config.image_size), generator=generator)
    task = _task(model)
    if task in ("codes", "pixels"):
        num_patches = model.vision_model.grid_size(*pixels.shape[-2:])
        order = torch.rand(2, num_patches[0] * num_patches[1], generator=generator)
        num_visible = max(1, int(order.shape[1] * (1 - config.mask_ratio)))
        hidden = order.argsort(dim=1).argsort(dim=1) >= num_visible
        ours = model(pixels, bool_masked_pos=hidden)
        if task == "codes":
            return output_difference(ours.logits, stock(pixels, bool_masked_pos=hidden).logits)
        # ViT-MAE hides the patches of the highest numbers.
        theirs = stock(pixels, noise=order)
        loss, reconstruction = model._compare_pixels(theirs.logits, pixels, theirs.mask.bool())
        assert torch.equal(theirs.mask.bool(), hidden)
        return max(output_difference(ours.loss, loss), output_difference(ours.reconstruction, reconstruction))
    ours, theirs = model(pixels), stock(pixels)
    if task == "features":
        pairs = [(ours.last_hidden_state, theirs.last_hidden_state)]
        if ours.pooler_output is not None:
            pairs.append((ours.pooler_output, theirs.pooler_output))
    elif task == "maps":
        pairs = list(zip(ours.feature_maps, theirs.feature_maps, strict=True))
    else:
        pairs = [(ours.logits, theirs.logits)]
    return max(output_difference(*pair) for pair in pairs)


def _task(model: Any) -> str:
    """What a model of ours is for, as `CLASSES` calls it."""
    if isinstance(model, VisionTransformerForImageClassification):
        return "classes of two heads" if model.config.use_distillation_head else "classes"
    if isinstance(model, VisionTransformerForMaskedImageModeling):
        return str(model.config.masked_image_target)
    if isinstance(model, VisionTransformerBackbone):
        return "maps"
    assert isinstance(model, VisionTransformerModel), type(model)
    return "features"


def _family(config: VisionTransformerConfig, task: str) -> str:
    """The family of transformers' vision transformers that computes what the config says.

    Raises:
        ValueError: if none does.
    """
    patches: _Requirements = [
        (not len(config.stem_channels), "stem_channels", "empty (no convolutions)"),
        (config.backbone_config is None, "backbone_config", "None (no CNN)"),
        (as_pair(config.patch_stride) == as_pair(config.patch_size), "patch_stride", "`patch_size` (no overlap)"),  # type: ignore[arg-type]
        (task in ("features", "maps", "codes", "pixels") or config.num_linear_layers == 1, "num_linear_layers", 1),
    ]
    _require(config, "the vision transformers of transformers", patches)

    is_beit = (
        config.relative_position_bias != "none"
        or config.position_embedding == "none"
        or config.layer_scale_init_value > 0
        or not config.final_norm
        or config.pooling == "mean"
        or (config.pooling == "cls_token" and task == "features")
        or (config.qkv_bias and not config.key_bias)
        or task == "codes"
    )
    if task == "pixels":
        family = "vit_mae"
    elif not config.use_cls_token:
        family = "ijepa"
    elif config.use_distillation_token:
        family = "deit"
    elif config.num_register_tokens:
        family = "dinov2_with_registers"
    elif task == "maps":
        family = "dinov2" if config.final_norm else "beit"
    else:
        family = "beit" if is_beit else "vit"
    if (family, task) not in CLASSES:
        raise ValueError(
            f"Transformers has a `{_known(family)}` for {' or '.join(task for name, task in CLASSES if name == family)}, got a "
            f"model for {task}. `hf-vlm export-code` carries the model as it is."
        )

    of_beit = family == "beit"
    takes_scale = of_beit or family.startswith("dinov2")
    height, width = as_pair(config.image_size)
    is_square = height == width and as_pair(config.patch_size)[0] == as_pair(config.patch_size)[1]
    requirements: _Requirements = [
        (of_beit or config.relative_position_bias == "none", "relative_position_bias", "none"),
        (of_beit or config.position_embedding != "none", "position_embedding", "a table"),
        (of_beit or config.final_norm is True, "final_norm", True),
        (task != "codes" or not config.final_norm, "final_norm", "False (its two norms are mixed up on loading)"),
        (takes_scale or not config.layer_scale_init_value, "layer_scale_init_value", 0),
        (
            not config.num_register_tokens or family == "dinov2_with_registers",
            "num_register_tokens",
            "0 without a CLS token or with a distillation token",
        ),
        (not config.use_distillation_token or family == "deit", "use_distillation_token", False),
        (config.use_cls_token or family == "ijepa", "use_cls_token", True),
        (is_square or family in ("vit", "deit", "ijepa"), "image_size", "a square of square patches"),
        (
            not family.startswith("dinov2") or config.intermediate_size % config.hidden_size == 0,  # type: ignore[operator]
            "intermediate_size",
            "a multiple of `hidden_size`",
        ),
    ]
    if task in ("features", "classes", "classes of two heads"):
        mean = of_beit and not config.final_norm
        poolings = {
            ("beit", "features"): ("mean", "none") if mean else ("cls_token", "none"),
            ("beit", "classes"): ("mean",) if mean else ("cls_token", "none"),
            ("vit", "features"): ("cls", "none"),
            ("deit", "features"): ("cls", "none"),
            ("ijepa", "features"): ("none",),
            ("ijepa", "classes"): ("none",),
        }.get((family, task), ("cls_token", "none"))
        named = " or ".join(f"`{name}`" for name in poolings)
        if of_beit:
            named += f" with `final_norm={config.final_norm}`"
        requirements.append((config.pooling in poolings, "pooling", named))
    _require(config, f"transformers' `{CLASSES[family, task].__name__}`, the nearest class", requirements)
    return family


def _known(family: str) -> str:
    return {"vit_mae": "ViT-MAE", "ijepa": "I-JEPA (no CLS token)", "deit": "DeiT"}.get(family, family)


def _require(config: VisionTransformerConfig, where: str, requirements: _Requirements) -> None:
    """Checks settings: (whether one is right, its name, what is wanted)."""
    for is_right, setting, wanted in requirements:
        if not is_right:
            got = getattr(config, setting)
            got = f"a `{got.model_type}`" if setting == "backbone_config" else repr(got)
            raise ValueError(
                f"`{setting}` must be {wanted} for {where}, got {got}. `hf-vlm export-code` carries the model as it is."
            )


def _stock_config(config: VisionTransformerConfig, family: str) -> Any:
    """Their config for ours, by the table that reads theirs."""
    known = CONFIGS[family]()
    settings = {theirs: getattr(config, ours) for theirs, ours in SETTINGS.items() if hasattr(known, theirs)}
    for name in ("image_size", "patch_size"):
        height, width = as_pair(settings[name])
        settings[name] = height if height == width else [height, width]
    if family == "beit":
        settings |= {
            "use_mask_token": config.use_mask_token,
            "use_absolute_position_embeddings": config.position_embedding != "none",
            "use_relative_position_bias": config.relative_position_bias == "per_layer",
            "use_shared_relative_position_bias": config.relative_position_bias == "shared",
            "use_mean_pooling": not config.final_norm,
            "vocab_size": config.num_codes,
        }
    elif family == "vit_mae":
        settings["decoder_intermediate_size"] = 4 * config.decoder_hidden_size  # type: ignore[operator]
    elif family.startswith("dinov2"):
        assert config.intermediate_size is not None
        settings |= {
            "mlp_ratio": config.intermediate_size // config.hidden_size,
            "layerscale_value": config.layer_scale_init_value or 1.0,
            "drop_path_rate": config.drop_path_rate,
        }
        settings |= (
            {"num_register_tokens": config.num_register_tokens} if "with" in family else {"use_mask_token": False}
        )
    if family in ("beit", "dinov2", "dinov2_with_registers"):
        settings["out_features"] = list(config.out_features)
    return CONFIGS[family](**settings)


def _own_weights(model: Any, family: str, stock_class: str) -> tuple[Tensors, list[str]]:
    """Our tensors by name, those in another form that theirs has in another form; notes."""
    config = model.config
    own, notes = dict(model.state_dict()), []
    prefix = f"{model.base_model_prefix}." if model.heads is not None else ""
    if config.position_embedding == "learned_2d":
        for name in ("prefix_positions", "row_positions", "column_positions"):
            own.pop(f"{prefix}embeddings.{name}", None)
        own[f"{prefix}embeddings.position_embedding"] = model.base_model.embeddings.positions()
        notes.append("positions of rows and of columns came out as their sums, one table")
    elif config.position_embedding == "sincos" and family != "vit_mae":
        notes.append("the fixed positions came out as a table that learns")
    elif config.position_embedding == "learned" and family == "vit_mae":
        notes.append("the positions came out as a table that doesn't learn")
    mode = config.position_resampling
    if config.position_embedding != "none" and mode != "bicubic":
        notes.append(f"for pictures of other sizes positions are resampled `bicubic`, where ours does `{mode}`")
    if family.startswith("dinov2"):
        if config.use_mask_token and "with" in family:
            own[f"{prefix}embeddings.mask_token"] = own[f"{prefix}embeddings.mask_token"][0]
        if "classifier.output_layer.weight" in own:  # theirs reads the CLS token, then the mean of the patches
            weight = own["classifier.output_layer.weight"]
            own["classifier.output_layer.weight"] = torch.cat((weight, torch.zeros_like(weight)), dim=1)
            notes.append(f"`{stock_class}` reads the mean of the patches too, by weights of zero")
    return own, notes


def _differences(
    config: VisionTransformerConfig, family: str, task: str, stock_class: str
) -> tuple[dict[str, float], tuple[str, ...], list[str]]:
    """What theirs has and ours lacks (end of the name -> filling), what ours has and theirs lacks (ends), and notes."""
    new: dict[str, float] = {}
    left_out: list[str] = []
    notes = []
    if task == "features" and config.pooling == "none":
        if family in ("vit", "deit", "ijepa"):
            new |= {"pooler.dense.weight": 0.0, "pooler.dense.bias": 0.0}
            notes.append(f"`pooler_output` of `{stock_class}` is zero, as our model pools nothing")
        elif family == "beit" and not config.final_norm:
            new |= {"pooler.layernorm.weight": 1.0, "pooler.layernorm.bias": 0.0}
            notes.append(
                "`pooler_output` of `BeitModel` is the normalised mean of the patches; our model pools nothing"
            )
        else:
            notes.append(f"`pooler_output` of `{stock_class}` is the CLS token; our model pools nothing")
    if task in ("maps", "codes", "pixels") and config.pooling in ("cls", "mean"):
        left_out += ["pooler.dense.weight", "pooler.dense.bias", "pooler.norm.weight", "pooler.norm.bias"]
        notes.append(f"the pooler is left out: `{stock_class}` has none")
    if family.startswith("dinov2") and not config.layer_scale_init_value:
        new[".lambda1"] = 1.0
        notes.append(f"`{stock_class}` scales each branch; the factors are 1")
    if family == "dinov2_with_registers" and not config.use_mask_token:
        new["embeddings.mask_token"] = 0.0
    if config.use_mask_token and family not in ("beit", "dinov2_with_registers"):
        left_out.append("embeddings.mask_token")
        notes.append(f"the mask token is left out: `{stock_class}` has none")
    if family == "beit":
        if not config.qkv_bias:
            new |= {".query.bias": 0.0, ".value.bias": 0.0}
            notes.append("queries and values came out with a bias, of zero")
        elif config.key_bias:
            left_out.append(".attention.k_proj.bias")
            notes.append("the bias of the keys, on which no output depends, is left out: BEiT has none")
    elif config.qkv_bias and not config.key_bias:
        new[".key.bias"] = 0.0
        notes.append("the keys came out with a bias, of zero")
    if config.drop_path_rate and family not in ("beit", "dinov2", "dinov2_with_registers"):
        notes.append(f"drop path, which acts in training alone, is left out: `{stock_class}` has none")
    return new, tuple(left_out), notes


def _read_as_ours(config: VisionTransformerConfig, weights: Tensors, family: str) -> tuple[Tensors, Tensors]:
    """`weights_from_home` for all families: those that it doesn't know are spelt as those that it does."""
    renamed: Tensors = {}
    for name, tensor in weights.items():
        if family not in MODEL_TYPES:
            name = name.removeprefix(f"{family}.")
        if family.startswith("dinov2"):
            for theirs, known in DINOV2_NAMES.items():
                name = name.replace(theirs, known)
        renamed[name] = tensor
    registers = renamed.pop(REGISTERS, None)
    base, of_heads = weights_from_home(config, renamed)
    return (base if registers is None else base | {REGISTERS: registers}), of_heads
