"""The model of a recipe by its settings alone, and a batch of its shapes: no weights are read, no data.

A part may be a folder, one that holds nothing but its `config.json` too, or a Hub name; a whole may be a published preset of one
of our architectures. What only data would tell, as the number of words of a captioner from scratch, is the config's default.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_vlm.data.lines.character_tokenizer import LATIN_ALPHABET, build_character_tokenizer
from hf_vlm.models.cnn_lstm.configuration_cnn_lstm import CnnLstmConfig
from hf_vlm.models.dvae.configuration_dvae import DVAEConfig
from hf_vlm.models.llava.configuration_llava import LlavaVisionLanguageConfig
from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration, settle_sizes
from hf_vlm.models.swin.configuration_swin import SwinTransformerConfig
from hf_vlm.models.trocr.assembly import cross_attending_config
from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderConfig, TrOCREncoderDecoderTextConfig
from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.parts.base_weights import base_of
from hf_vlm.parts.checkpoint_files import read_config
from hf_vlm.parts.decoder_weights import SOURCE_PREFIXES, map_text_config
from hf_vlm.parts.model_class import model_class
from hf_vlm.parts.picture_text_processor import load_tokenizer
from hf_vlm.parts.shipped_models import default_ocr_model
from hf_vlm.parts.vision_features import configured_image_size, describe_vision_model, read_vision_config
from hf_vlm.training.freezing import freeze
from hf_vlm.training.image_recipe import CLASSIFICATION, ImageRecipe
from hf_vlm.training.llava import LOSS_CHUNK_SIZE
from hf_vlm.training.llava_recipe import LlavaRecipe
from hf_vlm.training.lora import lora_config
from hf_vlm.training.picture_text_recipe import PictureTextRecipe
from hf_vlm.training.recipe import Recipe, TrOCRRecipe, build_config, refuse_unknown
from hf_vlm.training.tokenizer_recipe import TokenizerRecipe

USUAL_LABEL_LENGTH = 32  # tokens, where nothing says how long a text is

# Config classes whose `preset` knows published sizes, and the recipes that train them.
_PRESETS: tuple[tuple[type[Recipe], tuple[Any, ...]], ...] = (
    (LlavaRecipe, (LlavaVisionLanguageConfig,)),
    (ImageRecipe, (VisionTransformerConfig, SwinTransformerConfig)),
    (TokenizerRecipe, (DVAEConfig,)),
)


@dataclass(frozen=True)
class Item:
    """How large one item of a batch is.

    Attributes:
        tokens: of its text and pictures, padding aside; of its label in an encoder-decoder; 0 where there is no text.
        pictures: how many; a share where several items make one row.
    """

    tokens: int
    pictures: float = 1.0


def unloaded_config(recipe: Recipe, preset: str | None = None) -> PreTrainedConfig:
    """The configuration of a recipe's model.

    Args:
        preset: name of a published size, in the place of what the recipe's `model` names.

    Raises:
        ValueError: if there is no such preset, or the recipe's parts can't be joined.
        OSError: if a part is not there.
    """
    if preset is not None:
        return _preset(recipe, preset)
    if getattr(recipe.model, "pretrained", None):
        return _stored(recipe)
    if isinstance(recipe, LlavaRecipe):
        config: PreTrainedConfig = _llava(recipe)
    elif isinstance(recipe, TrOCRRecipe):
        config = _trocr(recipe)
    elif isinstance(recipe, PictureTextRecipe):
        config = _trocr(recipe) if recipe.architecture == "trocr" else _cnn_lstm(recipe)
    elif recipe.model.config:
        config = build_config({**recipe.model.config, **recipe.model.settings}, "model.config")
    else:
        config = VisionTransformerConfig(backbone_config=_read(recipe.model.backbone))
        for name, value in recipe.model.settings.items():
            setattr(config, name, value)
    return config


def unloaded_model(recipe: Recipe, config: PreTrainedConfig) -> Any:
    """A recipe's model on the meta device, in training mode; what trains and what is computed again is as the recipe says.

    Raises:
        ValueError: if the recipe asks for four-bit weights, whose memory and speed are not known here.
    """
    with torch.device("meta"):
        model: Any = _class_of(recipe, config)(config)
        return _as_trained(recipe, model)


def _as_trained(recipe: Recipe, model: Any) -> Any:
    """What trains of a model, with adapters, where the recipe has them; layers are computed again where it says so."""
    lora = recipe.parts.lora if isinstance(recipe, LlavaRecipe) else getattr(recipe, "lora", None)
    if lora is not None and lora.quantization != "none":
        raise ValueError(
            f"An estimate wants weights that are not quantised, got `quantization: {lora.quantization}`. Set it to `none`."
        )
    if isinstance(recipe, LlavaRecipe | PictureTextRecipe):
        freeze(model, recipe.parts.train)
    if isinstance(recipe, LlavaRecipe):
        model.loss_chunk_size = LOSS_CHUNK_SIZE
        model._head = model.get_output_embeddings().forward  # which is found by a trial on numbers else
    if lora is not None:
        settled = lora.settled(model)
        adapted: Any = get_peft_model(model, lora_config(model, settled))
        for role in settled.roles or ():
            part = model.get_submodule(model.part_paths[role])
            if isinstance(part, PreTrainedModel) and part.supports_gradient_checkpointing:
                part.enable_input_require_grads()
        model = adapted
    if recipe.training.get("activation_checkpointing") or recipe.training.get("gradient_checkpointing"):
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    return model.train()


def batch_of_shapes(recipe: Recipe, model: Any, batch_size: int, item: Item) -> dict[str, torch.Tensor]:
    """What `forward` is given for so many items of one size; padded conversations, or one row of packed ones.

    To be called inside `shapes_only`.
    """
    config = base_of(model).config
    if isinstance(recipe, LlavaRecipe):
        return _conversations(recipe, config, batch_size, item)
    vision = getattr(config, "vision_config", None) or config
    height, width = configured_image_size(vision)
    inputs = {"pixel_values": torch.zeros(batch_size, getattr(vision, "num_channels", 3), height, width)}
    if isinstance(recipe, TrOCRRecipe | PictureTextRecipe):
        inputs["labels"] = torch.zeros(batch_size, max(item.tokens, 1), dtype=torch.int64)
    elif isinstance(recipe, ImageRecipe) and recipe.task == CLASSIFICATION:
        inputs["labels"] = torch.zeros(batch_size, dtype=torch.int64)
    elif getattr(config, "masked_image_target", None) == "codes":
        rows, columns = base_of(model).vision_model.grid_size(height, width)
        inputs["code_ids"] = torch.zeros(batch_size, rows, columns, dtype=torch.int64)
    return inputs


def most_tokens(recipe: Recipe, config: PreTrainedConfig) -> int | None:
    """The tokens of the largest item that a recipe lets through; 0 where there is no text, None where nothing limits it."""
    if isinstance(recipe, LlavaRecipe):
        return recipe.data.max_length
    if isinstance(recipe, TrOCRRecipe | PictureTextRecipe):
        positions = getattr(getattr(config, "text_config", None), "max_position_embeddings", None)
        return recipe.model.max_label_length or positions
    return 0


def longest_item(recipe: Recipe, config: PreTrainedConfig) -> Item:
    """The largest item that a recipe lets through, or is likely to see where it would let through far more."""
    most = most_tokens(recipe, config)
    if isinstance(recipe, LlavaRecipe) or getattr(recipe.model, "max_label_length", None):
        return Item(most or 0)
    return Item(min(USUAL_LABEL_LENGTH if most is None else most, USUAL_LABEL_LENGTH))


def _conversations(
    recipe: LlavaRecipe, config: LlavaVisionLanguageConfig, batch_size: int, item: Item
) -> dict[str, torch.Tensor]:
    packed = recipe.data.max_tokens is not None
    rows, length = (1, batch_size * (recipe.data.max_tokens or 0)) if packed else (batch_size, item.tokens)
    number = max(1, int(length * item.pictures / item.tokens)) if packed else max(1, round(batch_size * item.pictures))
    ids = torch.zeros(rows, length, dtype=torch.int64)
    inputs = {"input_ids": ids, "labels": torch.zeros_like(ids)}
    inputs["position_ids" if packed else "attention_mask"] = torch.ones_like(ids)
    if recipe.data.features_folder is not None:
        shape = (number, config.num_image_tokens or 0, config.vision_hidden_size or 0)
        return inputs | {"image_features": torch.zeros(shape)}
    height, width = config.image_size or configured_image_size(config.vision_config)
    channels = getattr(config.vision_config, "num_channels", 3)
    return inputs | {"pixel_values": torch.zeros(number, channels, height, width)}


def num_learnt(recipe: Recipe, config: Any, batch_size: int, item: Item) -> int | None:
    """How many labels of a batch carry a loss at the most: those of all words; None where that changes nothing."""
    if not isinstance(recipe, LlavaRecipe):
        return None
    words = max(1, item.tokens - round(item.pictures * config.num_image_tokens))
    number = batch_size if recipe.data.max_tokens is None else batch_size * recipe.data.max_tokens / item.tokens
    return max(1, int(number * words))


def _check_settings(recipe: Recipe, config: PreTrainedConfig) -> None:
    """Raises ValueError if `model.settings` has a field that a configuration doesn't know, and would keep all the same."""
    known = {field.name for field in dataclasses.fields(type(config))} | {"image_size"}
    if getattr(recipe.model, "vision", None):  # where parts are joined, it goes into the generation settings
        known |= {"max_new_tokens"}
    for name in recipe.model.settings:
        refuse_unknown(name, known, "model.settings", recipe.section_keys())


def _preset(recipe: Recipe, name: str) -> PreTrainedConfig:
    classes = next((of for kind, of in _PRESETS if isinstance(recipe, kind)), ())
    settings = dict(recipe.model.settings)
    faults = []
    for config_class in classes:
        try:
            config = config_class.preset(name)
        except ValueError as error:
            faults.append(str(error))
            continue
        _check_settings(recipe, config)
        for setting, value in settings.items():
            setattr(config, setting, value)
        if isinstance(config, LlavaVisionLanguageConfig):
            settle_sizes(config)
        return config
    raise ValueError(
        " ".join(faults)
        or f"Published sizes are known of LLaVA, ViT, Swin and DALL-E's tokenizer, got {name!r} for a "
        f"recipe of `{recipe.task}`. Leave `preset` out."
    )


def _stored(recipe: Recipe) -> PreTrainedConfig:
    name = recipe.model.pretrained
    name = str(default_ocr_model()) if name == "default" else name
    stored = read_config(name)
    config: Any = None
    if isinstance(recipe, LlavaRecipe):
        config = LlavaVisionLanguageForConditionalGeneration.foreign_config(stored)
    config = AutoConfig.from_pretrained(name) if config is None else config
    _check_settings(recipe, config)
    for setting, value in recipe.model.settings.items():
        setattr(config, setting, value)
    if isinstance(config, LlavaVisionLanguageConfig):
        settle_sizes(config)
    return config


def _llava(recipe: LlavaRecipe) -> LlavaVisionLanguageConfig:
    section = recipe.model
    text = _read(section.text)
    text.vocab_size = _rows_with_image_token(section.text or "", text.vocab_size)
    settings = {name: value for name, value in section.settings.items() if name != "max_new_tokens"}
    size = settings.pop("image_size", None)
    config = LlavaVisionLanguageConfig(
        vision_config=read_vision_config(section.vision or ""),
        text_config=text,
        image_size=[size, size] if isinstance(size, int) else size,
        **settings,
    )
    settle_sizes(config)
    return config


def _rows_with_image_token(name: str, rows: int) -> int:
    """Rows of a table of words with one for pictures, which a tokenizer may have room for; without a tokenizer one more."""
    try:
        tokenizer = load_tokenizer(name)
    except (OSError, ValueError):
        return rows + 1
    return max(rows, len(tokenizer) + ("<image>" not in tokenizer.get_vocab()))


def _trocr(recipe: TrOCRRecipe | PictureTextRecipe) -> TrOCREncoderDecoderConfig:
    section = recipe.model
    settings = dict(section.settings)
    if isinstance(recipe, TrOCRRecipe) and recipe.model.text_config:
        tokens = {"vocab_size": _num_words(recipe)}
        return TrOCREncoderDecoderConfig(
            vision_config=build_config(recipe.model.vision_config or {}, "model.vision_config"),
            text_config=build_config({**tokens, **recipe.model.text_config}, "model.text_config"),
            **settings,
        )
    vision = read_vision_config(section.vision or "")
    size, layers = settings.pop("image_size", None), settings.pop("num_decoder_layers", None)
    kept = settings.pop("keep_text_model", None)
    if size is not None:
        vision.image_size = size
    source = _read(section.text)
    cross_attends = getattr(source, "is_decoder", False) and getattr(source, "add_cross_attention", False)
    copied = source.model_type in SOURCE_PREFIXES and not cross_attends if kept is None else not kept
    width = describe_vision_model(vision).hidden_size
    text: PreTrainedConfig
    if copied:
        text = TrOCREncoderDecoderTextConfig(**map_text_config(source, num_layers=layers), cross_attention_size=width)
    else:
        text = cross_attending_config(source)
    for name in ("max_new_tokens", "num_beams"):
        settings.pop(name, None)
    return TrOCREncoderDecoderConfig(vision_config=vision, text_config=text, vision_hidden_size=width, **settings)


def _read(name: str | None) -> Any:
    assert name is not None  # the sections see to it
    read_config(name)  # says what is wrong where there is none
    return AutoConfig.from_pretrained(name)


def _num_words(recipe: TrOCRRecipe) -> int:
    tokenizer = recipe.model.tokenizer or ""
    if tokenizer == "characters":
        return len(build_character_tokenizer(alphabet=recipe.model.alphabet or LATIN_ALPHABET))
    return len(load_tokenizer(tokenizer))


def _cnn_lstm(recipe: PictureTextRecipe) -> CnnLstmConfig:
    section = recipe.model
    settings = {name: value for name, value in section.settings.items() if name not in ("max_new_tokens", "num_beams")}
    if section.text != "words":
        settings.setdefault("vocab_size", len(load_tokenizer(section.text or "")))
    return CnnLstmConfig(vision_config=read_vision_config(section.vision or ""), **settings)


def _class_of(recipe: Recipe, config: PreTrainedConfig) -> Callable[[PreTrainedConfig], nn.Module]:
    if isinstance(recipe, TokenizerRecipe):
        return AutoModel.from_config
    if isinstance(recipe, ImageRecipe):
        auto = AutoModelForImageClassification if recipe.task == CLASSIFICATION else AutoModelForMaskedImageModeling
        return auto.from_config
    return model_class(config)
