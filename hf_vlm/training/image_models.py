"""The model and image processor of a recipe of pictures, and what the processor does to a picture."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import (
    IMAGE_PROCESSOR_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.parts.checkpoint_files import naming_faults, read_config
from hf_vlm.parts.pictures import to_grayscale, to_rgb
from hf_vlm.parts.vision_features import configured_image_size
from hf_vlm.training.image_recipe import CLASSIFICATION, ImageRecipe
from hf_vlm.training.recipe import build_config, named_section, refuse_unknown
from hf_vlm.training.recipe_files import listed


def build_model(recipe: ImageRecipe, names: Sequence[str]) -> tuple[PreTrainedModel, Any]:
    """Model, in fp32 whatever its file holds, and image processor of a recipe.

    Args:
        names: of the classes by number; a pretrained classifier of others gets a new head, one of the same classes keeps its
            own, in its own order. Empty for masked modelling.

    Raises:
        ValueError: if the settings fit no model, or not the classes.
    """
    section = recipe.model
    auto_class = AutoModelForImageClassification if recipe.task == CLASSIFICATION else AutoModelForMaskedImageModeling
    _check_number_of_classes(section.config or {}, "model.config", names)
    _check_number_of_classes(section.settings, "model.settings", names)
    settings = {name: value for name, value in section.settings.items() if name != "num_labels"}
    with named_section("model.settings"):
        if section.pretrained:
            read_config(section.pretrained)  # tells of a missing folder by its name
            stored = AutoConfig.from_pretrained(section.pretrained)
            refuse_unknown_settings(settings, type(stored))
            _check_task(stored, auto_class, recipe.task)
            with naming_faults(section.pretrained):
                model = auto_class.from_pretrained(section.pretrained, dtype=torch.float32, **settings)
            processor = saved_processor(section.pretrained, model.config)
            if "image_size" in settings:
                processor = resized_processor(processor, model.config)
            if names and sorted(model_names(model.config)) != sorted(names):
                model = _with_new_head(model, auto_class, names, settings.get("num_linear_layers", 1))
        elif section.backbone:
            model_class = auto_class._model_mapping[VisionTransformerConfig]
            refuse_unknown_settings(settings, VisionTransformerConfig)
            model = model_class.from_pretrained_parts(backbone=section.backbone, **settings, **_labels(names))
            processor = _normalising_like(saved_processor(section.backbone, model.config), model.config)
        else:
            given = {name: value for name, value in (section.config or {}).items() if name != "num_labels"}
            refuse_unknown_settings(settings, type(build_config(given, "model.config")))
            config = build_config({**given, **settings}, "model.config")
            _check_task(config, auto_class, recipe.task)
            for name, value in _labels(names).items():
                setattr(config, name, value)
            model = auto_class.from_config(config)
            processor = new_processor(config)
    return model.float(), processor


def model_names(config: PreTrainedConfig) -> list[str]:
    """The names of a classifier's classes, by number."""
    id2label = config.id2label or {}
    return [id2label[number] for number in sorted(id2label)]


def refuse_unknown_settings(settings: dict[str, Any], config_class: type[PreTrainedConfig]) -> None:
    """Checks that a configuration has fields of these names.

    Raises:
        ValueError: if it lacks one; transformers would keep it silently.
    """
    known = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    for name in settings:
        refuse_unknown(name, known, "model.settings", ImageRecipe.section_keys())


@dataclasses.dataclass(frozen=True)
class PixelStatistics:
    """What an image processor does to a picture, so that batches of augmented ones can be normalised at once.

    Attributes:
        size: (height, width) in pixels of what comes out.
        scale, offset: of each channel: `pixel_values` are levels in [0, 255] * scale + offset.
    """

    size: tuple[int, int]
    scale: list[float]
    offset: list[float]

    @property
    def mean_level(self) -> list[int]:
        """The level of each channel that becomes 0, within [0, 255]."""
        return [min(max(round(-offset / scale), 0), 255) for scale, offset in zip(self.scale, self.offset, strict=True)]


def measure_processor(
    processor: Any, config: PreTrainedConfig
) -> tuple[PixelStatistics, Callable[[Image.Image], Image.Image]]:
    """What a processor does, asked by black and white pictures; and what makes any picture one of the model's channels.

    Raises:
        ValueError: if pictures of different shapes come out different, or not as the model wants them in size or channels.
    """
    channels = getattr(config, "num_channels", 3)
    if channels not in (1, 3):
        raise ValueError(f"A model of 1 or 3 channels is wanted, got `num_channels={channels}`. Use another one.")
    prepare = to_grayscale if channels == 1 else to_rgb
    outputs = []
    for size, level in (((64, 48), 0), ((48, 64), 255)):
        picture = Image.new("RGB", size, (level, level, level))
        try:
            outputs.append(processor(images=[prepare(picture)], return_tensors="pt")["pixel_values"][0])
        except ValueError as error:  # such as a mean of three channels for a gray picture
            raise ValueError(
                f"An image processor for {channels} channels is wanted, got `{type(processor).__name__}`, which failed "
                f"({error}). Set its `image_mean` and `image_std` to one number a channel."
            ) from error
    black, white = outputs
    if black.shape != white.shape:
        raise ValueError(
            f"An image processor that makes all pictures of one size is wanted, got {tuple(black.shape[1:])} and "
            f"{tuple(white.shape[1:])} pixels of `{type(processor).__name__}`. Give its `size` a height and a width, or let "
            "it crop."
        )
    if black.shape[0] != channels:
        raise ValueError(
            f"Pictures of {channels} channels are wanted by the model, got {black.shape[0]} from "
            f"`{type(processor).__name__}`. Set its `do_convert_grayscale`, or the model's `num_channels`."
        )
    height, width = black.shape[1:]
    if getattr(config, "image_size", None) and configured_image_size(config) != (height, width):
        wanted = " x ".join(map(str, configured_image_size(config)))
        raise ValueError(
            f"Pictures of {wanted} pixels are wanted by the model, got {height} x {width} from "
            f"`{type(processor).__name__}`. Set `model.settings.image_size`."
        )
    offset = black.flatten(1).double().mean(1)
    scale = (white.flatten(1).double().mean(1) - offset) / 255
    return PixelStatistics((int(height), int(width)), scale.tolist(), offset.tolist()), prepare


def check_unit_range(processor: Any, statistics: PixelStatistics) -> None:
    """Checks that a processor gives pixels in [0, 1], as visual tokenizers take and give them.

    Raises:
        ValueError: if black doesn't become 0 or white 1.
    """
    ends = [(offset, 255 * scale + offset) for scale, offset in zip(statistics.scale, statistics.offset, strict=True)]
    if any(abs(black) > 1e-3 or abs(white - 1) > 1e-3 for black, white in ends):
        raise ValueError(
            f"Pixels in [0, 1] are wanted of a tokenizer's image processor, got [{ends[0][0]:.3g}, {ends[0][1]:.3g}] from "
            f"`{type(processor).__name__}`. Set `do_rescale` to true and `do_normalize` to false."
        )


def _labels(names: Sequence[str]) -> dict[str, Any]:
    if not names:
        return {}
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def _check_number_of_classes(settings: dict[str, Any], section: str, names: Sequence[str]) -> None:
    if names and (number := settings.get("num_labels", len(names))) != len(names):
        raise ValueError(
            f"`{section}.num_labels` must be the {len(names)} classes of the training pictures ({listed(names[:5])}, ...), "
            f"got {number}. Leave it out."
        )


def _check_task(config: PreTrainedConfig, auto_class: Any, task: str) -> None:
    if type(config) not in auto_class._model_mapping:
        raise ValueError(
            f"A model for {task} is wanted, got `{config.model_type}`, of which `{auto_class.__name__}` has none. Name "
            "another model."
        )


def _with_new_head(
    model: PreTrainedModel, auto_class: Any, names: Sequence[str], num_linear_layers: int
) -> PreTrainedModel:
    """The model with a new head for these classes, all else as it was."""
    if hasattr(model, "reset_head"):  # ours: a zero one
        model.reset_head(id2label=dict(enumerate(names)), num_linear_layers=num_linear_layers)
        return model
    of_timm: Any = getattr(model, "timm_model", None)
    config = model.config if of_timm is not None else copy.deepcopy(model.config)
    for name, value in _labels(names).items():
        setattr(config, name, value)
    config.problem_type = None
    if of_timm is not None:  # which has its head within what transformers takes for the encoder
        of_timm.reset_classifier(len(names))
        model.num_labels = len(names)
        return model
    fresh = auto_class.from_config(config)
    getattr(fresh, fresh.base_model_prefix).load_state_dict(getattr(model, model.base_model_prefix).state_dict())
    return fresh


def saved_processor(name: str, config: PreTrainedConfig) -> Any:
    """The image processor beside a saved model; a new one where there is none."""
    try:
        return AutoImageProcessor.from_pretrained(name)
    except OSError:  # none beside the model
        return new_processor(config)


def new_processor(config: PreTrainedConfig) -> Any:
    """The image processor of a configuration's model type, for pictures of its size and channels.

    Raises:
        ValueError: if the model type has none.
    """
    if type(config) not in IMAGE_PROCESSOR_MAPPING:
        raise ValueError(
            f"A model type with an image processor is wanted, got `{config.model_type}`, which has none. Save one beside "
            "the model."
        )
    classes = IMAGE_PROCESSOR_MAPPING[type(config)]
    processor_class = (
        classes.get("torchvision") or next(iter(classes.values())) if isinstance(classes, dict) else classes
    )
    processor = resized_processor(processor_class(), config)
    if getattr(config, "num_channels", 3) == 1:
        processor.do_convert_grayscale, processor.do_convert_rgb = True, False
        for statistic in ("image_mean", "image_std"):
            setattr(processor, statistic, [0.5])
    return processor


def _normalising_like(processor: Any, config: PreTrainedConfig) -> Any:
    """A new processor for a model on a backbone, which sees pixels as that backbone's own processor makes them."""
    black, white = (
        processor(images=[Image.new("RGB", (64, 64), (level, level, level))], return_tensors="pt")["pixel_values"][0]
        for level in (0, 255)
    )
    middle = (slice(None), black.shape[1] // 2, black.shape[2] // 2)  # a crop may pad the borders
    black, white = black[middle].double(), white[middle].double()
    deviation = 1 / (white - black)
    new = new_processor(config)
    new.image_mean, new.image_std = (-black * deviation).tolist(), deviation.tolist()
    return new


def resized_processor(processor: Any, config: PreTrainedConfig) -> Any:
    """The processor, made to give pictures of the size that the model is configured for."""
    height, width = configured_image_size(config)
    processor.size = {"height": height, "width": width}
    processor.do_center_crop = False
    return processor
