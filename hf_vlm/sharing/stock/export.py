"""Models that leave: one of our folders as a folder of transformers' own classes, which needs nothing of this package.

folder of ours -> our model -> `to_stock` of its architecture: the stock class of the same mathematics, weights in it
  -> written beside `out`, loaded by transformers' Auto classes, compared with ours -> renamed to `out`

Each architecture's module has

    to_stock(model) -> (stock model, notes)
    to_stock_processor(processor, model) -> (stock processor, image processor or tokenizer, or None; notes)
    largest_difference(model, stock) -> float      the largest difference of their outputs on random pictures, in fp32

Notes say in plain words what was left behind, or came out in another form.
"""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    AutoProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_vlm.parts.licences import copy_licence
from hf_vlm.sharing.new_folder import check_is_new, new_folder
from hf_vlm.sharing.stock import swin, vit
from hf_vlm.sharing.whole_models import load_processor, load_whole, own_model_type, picture_size_notes

_PACKAGE = "hf_vlm.sharing.stock"
# Model type -> its module. The assembled ones call `stock_part`, below, and are hence imported on use.
_MODULES = {
    "hf_vlm_vit": "vit",
    "hf_vlm_swin": "swin",
    "hf_vlm_trocr": "trocr",
    "hf_vlm_llava": "llava",
}
_PROCESSOR_MODULES = {**_MODULES, "hf_vlm_llava": "llava_processor"}

# Model type -> what transformers has instead.
NO_COUNTERPART = {
    "hf_vlm_cnn_lstm": "its captioners cross-attend, none has an LSTM",
    "hf_vlm_vae": "it has no variational autoencoder of pictures with a Gaussian latent vector",
    "hf_vlm_vqvae": (
        "its picture tokenizers with a codebook, of Chameleon, Emu3, Janus and GLM-Image, are of other layers, with group norms "
        "and attention"
    ),
    "hf_vlm_dvae": "`FlavaImageCodebook` is the encoder of DALL-E's tokenizer alone, without a decoder",
}

# `AutoBackbone` is not among them: it asks the Hub even for a folder's name.
_AUTO_CLASSES: tuple[Any, ...] = (
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    AutoModel,
)

# Outputs that differ by more than this in fp32 are another model's.
TOLERANCE = 1e-4


@dataclass
class StockExport:
    """What was written.

    Attributes:
        model_class: transformers' class, by which the folder loads.
        processor_class: that of its processor or image processor; None where none was written.
        notes: what was left behind or came out in another form, in plain words.
        largest_difference: of the outputs, ours against the written folder's, in fp32.
    """

    model_class: str
    processor_class: str | None
    notes: list[str] = field(default_factory=list)
    largest_difference: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.model_class} with {self.processor_class or 'no processor'}; outputs differ from ours by at most "
            f"{self.largest_difference:.1e}"
        ]
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)])


def export_transformers(folder: str | os.PathLike, out: str | os.PathLike) -> StockExport:
    """Write one of our models as a folder of transformers' own classes, and check that it gives the same.

    The weights keep the dtype that they are stored in, unless they had to be multiplied. The check loads the written folder
    with transformers' Auto classes and compares it with ours on random pictures in fp32: logits, features or pixels, and for
    models that write, what they write.

    Args:
        folder: of a model of ours, or its Hub name.
        out: a new or empty folder.

    Raises:
        ValueError: if `out` holds something; if `folder` is not a whole model of ours; if transformers has no class of the
            same mathematics, which names the setting; or if the outputs differ by more than 1e-4. Nothing is then left.
    """
    check_is_new(out)
    model_type = _convertible_type(folder)
    module: Any = importlib.import_module(f"{_PACKAGE}.{_MODULES[model_type]}")
    model = load_whole(folder)
    stock, notes = module.to_stock(model)
    processor = load_processor(folder)
    if processor is None:
        stock_processor, processor_notes = None, ["there was no processor beside the model: none was written"]
    else:
        of_processor: Any = importlib.import_module(f"{_PACKAGE}.{_PROCESSOR_MODULES[model_type]}")
        stock_processor, processor_notes = of_processor.to_stock_processor(processor, model)
        processor_notes = [*processor_notes, *picture_size_notes(processor, model)]

    with new_folder(out) as written:
        stock.save_pretrained(written)
        copy_licence(folder, written)
        if stock_processor is not None:
            stock_processor.save_pretrained(written)
            _check_processor(written, stock_processor)
        stock_class = type(stock)
        del stock  # three copies of a large model would be one too many
        reloaded = load_stock(written, stock_class)
        difference = float(module.largest_difference(model.float(), reloaded))
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The exported `{stock_class.__name__}` must give what {folder} gives to within {TOLERANCE:g}, got a "
                f"difference of {difference:.2g}. Report it, with the folder's config.json; `hf-vlm export-code` carries the "
                "model as it is."
            )
    return StockExport(
        model_class=stock_class.__name__,
        processor_class=None if stock_processor is None else type(stock_processor).__name__,
        notes=list(dict.fromkeys([*notes, *processor_notes])),
        largest_difference=difference,
    )


def stock_part(model: PreTrainedModel) -> tuple[PreTrainedModel, list[str]]:
    """Transformers' own model for a part of a whole: for one of our vision models its counterpart, any other as it is.

    Raises:
        ValueError: if the part is ours and transformers has no class of its mathematics; it names the setting.
    """
    modules: Mapping[str, Any] = {"hf_vlm_vit": vit, "hf_vlm_swin": swin}
    model_type = model.config.model_type
    if model_type in modules:
        stock, notes = modules[model_type].to_stock(model)
        return stock, [f"vision encoder: {note}" for note in notes]
    if type(model).__module__.startswith("hf_vlm."):
        raise ValueError(
            f"A part that leaves must be of transformers or a vision model of ours, got `{type(model).__name__}`. Use "
            "`hf-vlm export-code`."
        )
    return model, []


def load_stock(folder: str | os.PathLike, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """What was written, loaded as its users will: by the Auto class that knows it, in fp32.

    Args:
        model_class: what is to come out.

    Raises:
        ValueError: if a weight is missing or left over, or another class comes out.
    """
    config_class: Any = model_class.config_class
    loader: Any = model_class
    for auto_class in _AUTO_CLASSES:
        known = auto_class._model_mapping.get(config_class, ())
        if model_class in (known if isinstance(known, tuple) else (known,)):
            loader = auto_class
            break
    model, info = loader.from_pretrained(os.fspath(folder), dtype=torch.float32, output_loading_info=True)
    faults = sorted([*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]])
    if type(model) is not model_class or faults:
        raise ValueError(
            f"The written folder must load as a whole `{model_class.__name__}`, got `{type(model).__name__}` with "
            f"{len(faults)} tensors missing or left over{f', the first `{faults[0]}`' if faults else ''}. Report it; "
            "`hf-vlm export-code` carries the model as it is."
        )
    return model.eval()


def _convertible_type(folder: str | os.PathLike) -> str:
    """The model type of a folder of ours that may have a counterpart."""
    model_type = own_model_type(folder, "A model of transformers needs no export.")
    if model_type in NO_COUNTERPART or model_type not in _MODULES:
        raise ValueError(
            f"A model that has a class in transformers of the same mathematics is wanted, got `{model_type}` in {folder}: "
            f"transformers has none; {NO_COUNTERPART.get(model_type, 'it is a part of others')}. Use `hf-vlm export-code`, which "
            "carries the code along, or `hf-vlm export-onnx`."
        )
    return model_type


def _check_processor(folder: Path, processor: Any) -> None:
    """Checks that a written processor, image processor or tokenizer loads as what it was."""
    loader: Any = AutoImageProcessor if isinstance(processor, BaseImageProcessor) else AutoProcessor
    loader = AutoTokenizer if isinstance(processor, PreTrainedTokenizerBase) else loader
    loaded = loader.from_pretrained(folder)
    if type(loaded) is not type(processor):
        raise ValueError(
            f"The written processor must load as a `{type(processor).__name__}`, got `{type(loaded).__name__}`. Report it; "
            "`hf-vlm export-code` carries the model as it is."
        )
