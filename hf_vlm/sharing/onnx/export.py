"""A model of ours as ONNX files, which run without PyTorch: written, run through onnxruntime, and compared.

folder of ours -> the graphs of its architecture (`onnx_vision`, `onnx_trocr`, `onnx_cnn_lstm`, `onnx_llava`)
  -> each written and checked on other sizes than were traced (`onnx_graphs`)
  -> for models that write: what the runtime writes against what `generate` writes, token for token
  -> OUT: *.onnx, config.json, generation_config.json, the processor's files, and `onnx_export.json`

`onnx_export.json` holds

    kind                 which class of `onnx_runtime` runs the folder
    model_type, model_class
    precision, opset, versions
    graphs               name -> {"file", "inputs", "outputs"}, of each tensor {"name", "dtype", "shape"}, open lengths by name
    settings             what the runtime must know beside the graphs: sizes, token ids, generation settings
    largest_difference   of any output, ours against the files through onnxruntime
    same_tokens          share of tokens that runtime and model write alike on random pictures; null for models that don't write
    notes                what differs from the model, in plain words
"""

import importlib.metadata
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from hf_vlm.parts.package_version import __version__
from hf_vlm.sharing.new_folder import check_is_new, new_folder
from hf_vlm.sharing.onnx.cnn_lstm import captioner_graphs
from hf_vlm.sharing.onnx.graphs import OPSET, OnnxGraph, prepare, quiet, require_onnx, write_graph
from hf_vlm.sharing.onnx.llava import llava_graphs
from hf_vlm.sharing.onnx.trocr import trocr_graphs
from hf_vlm.sharing.onnx.vision import tokenizer_graphs, vision_graphs
from hf_vlm.sharing.whole_models import copy_licence, load_processor, load_whole, own_model_type

OnnxPrecision = Literal["float32", "int8"]
TOLERANCE = 1e-3

KINDS = {
    "hf_vlm_vit": "vision_model",
    "hf_vlm_swin": "vision_model",
    "hf_vlm_vae": "tokenizer",
    "hf_vlm_vqvae": "tokenizer",
    "hf_vlm_dvae": "tokenizer",
    "hf_vlm_cnn_lstm": "captioner",
    "hf_vlm_trocr": "text_reader",
    "hf_vlm_llava": "assistant",
}
# Of one model type the first is taken where a folder doesn't say which it was.
_CHECKED_TOKENS = 24  # written in the comparison with `generate`


@dataclass
class OnnxExport:
    """What was written.

    Attributes:
        files: name -> bytes, of the `.onnx` files and what belongs to them.
        precision: of the weights of matrix products.
        largest_difference: of any output, the model's against onnxruntime's, absolute, or where values exceed 1, relative to the
            largest.
        same_tokens: share of tokens that the runtime writes as the model does; None for models that don't write.
        notes: what differs from the model, in plain words.
    """

    files: dict[str, int]
    precision: str
    largest_difference: float
    same_tokens: float | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in self.files.items())
        told = f"{self.precision}: outputs differ through onnxruntime by at most {self.largest_difference:.1e}"
        if self.same_tokens is not None:
            told += f", {100 * self.same_tokens:.1f} % of the tokens are the same"
        return "\n".join([sizes, told, *(f"- {note}" for note in self.notes)])


def export_onnx(
    folder: str | os.PathLike, out: str | os.PathLike, *, precision: OnnxPrecision = "float32"
) -> OnnxExport:
    """Write one of our models as ONNX files, run them through onnxruntime, and check that they give the same.

    Args:
        folder: of a whole model of ours, or its Hub name.
        out: a new or empty folder.
        precision: "float32", or "int8": the weights of matrix products rounded per column, what they are multiplied with as it
            comes; convolutions and tables stay in float32. What that costs is measured by `scripts/benchmarks/onnx_export.py`.

    Raises:
        ImportError: if onnx, onnxruntime or onnxscript is missing.
        ValueError: if there is no such precision, `out` holds something, or `folder` is not a whole model of ours; if a part of
            it can't be written, naming what stopped it; or if in float32 an output differs by more than 1e-3, or a token.
            Nothing is then left.
    """
    if precision not in get_args(OnnxPrecision):
        raise ValueError(
            f"`precision` must be one of {', '.join(get_args(OnnxPrecision))}, got {precision!r}. Correct it."
        )
    require_onnx()
    check_is_new(out)
    model_type = own_model_type(folder, "For a model of transformers use `optimum-cli export onnx`.")
    if model_type not in KINDS:
        raise ValueError(
            f"A whole model is wanted, of model type {', '.join(KINDS)}, got `{model_type}` in {folder}. Export the model that "
            "it is a part of."
        )
    kind = KINDS[model_type]
    model: Any = prepare(load_whole(folder))
    processor = load_processor(folder)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        graphs, settings, notes = _graphs(kind, model, processor)

    with new_folder(out) as written:
        described = [write_graph(graph, written, precision=precision, tolerance=TOLERANCE) for graph in graphs]
        notes += [
            f"{graph.name}.onnx takes pictures of one size: its exporter could not keep {' and '.join(graph.fixed)} open"
            for graph in graphs
            if graph.fixed
        ]
        if precision == "int8" and not any(one.num_rounded for one in described):
            notes.append("no weights were rounded to int8: the model is made of convolutions, which stay in float32")
        if processor is None:
            notes.append("there was no processor beside the model: none was written")
        manifest: dict[str, Any] = {
            "kind": kind,
            "model_type": model.config.model_type,
            "model_class": type(model).__name__,
            "precision": precision,
            "opset": OPSET,
            "versions": {"hf_vlm": __version__}
            | {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")},
            "graphs": {
                one.name: {"file": f"{one.name}.onnx", "inputs": one.inputs, "outputs": one.outputs}
                for one in described
            },
            "settings": settings,
            "largest_difference": max(one.largest_difference for one in described),
            "same_tokens": None,
            "notes": notes,
        }
        _write_beside(folder, written, model, processor)
        _write_manifest(written, manifest)
        if "generation" in settings:
            manifest["same_tokens"] = _same_tokens(model, written, kind)
            _write_manifest(written, manifest)
            if precision == "float32" and manifest["same_tokens"] < 1:
                raise ValueError(
                    "The ONNX files must write what the model writes, got another token on random pictures "
                    f"({100 * manifest['same_tokens']:.1f} % the same). Report it with the folder's config.json."
                )
    files = {path.name: path.stat().st_size for path in sorted(Path(out).iterdir()) if ".onnx" in path.name}
    return OnnxExport(files, precision, manifest["largest_difference"], manifest["same_tokens"], notes)


def _graphs(kind: str, model: Any, processor: Any) -> tuple[list[OnnxGraph], dict[str, Any], list[str]]:
    with quiet():
        if kind == "vision_model":
            return *vision_graphs(model), []
        if kind == "tokenizer":
            return *tokenizer_graphs(model), []
        if kind == "captioner":
            return captioner_graphs(model)
        return llava_graphs(model) if kind == "assistant" else trocr_graphs(model, processor)


def _write_beside(folder: str | os.PathLike, written: Path, model: Any, processor: Any) -> None:
    """Config, generation config, processor and licence."""
    model.config.save_pretrained(written)
    if model.can_generate():
        model.generation_config.save_pretrained(written)
    if processor is not None:
        processor.save_pretrained(written)
    copy_licence(folder, written)


def _write_manifest(written: Path, manifest: dict[str, Any]) -> None:
    content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (written / "onnx_export.json").write_text(content, encoding="utf-8")


def _same_tokens(model: Any, written: Path, kind: str) -> float:
    """The share of tokens that the runtime writes as the model, on a batch of random pictures of other sizes than traced."""
    from hf_vlm.sharing.onnx.runtime import load_onnx

    runtime = load_onnx(written)
    generator = torch.Generator().manual_seed(1)
    height, width = runtime.settings["image_size"]
    channels = getattr(model.config.vision_config, "num_channels", 3)
    steps = runtime.settings.get("width_steps")
    if steps is not None:
        first, stride = steps
        width = first + (width - first) // stride * 3 // 4 * stride
    inputs = {"pixel_values": torch.rand(3, channels, height, width, generator=generator)}
    if steps is not None:
        inputs["pixel_mask"] = torch.ones(3, height, width, dtype=torch.long)
        inputs["pixel_mask"][1, :, (width + 2) // 3 :] = 0
        inputs["pixel_values"] = inputs["pixel_values"] * inputs["pixel_mask"][:, None]
    if kind == "assistant":
        inputs |= _random_prompts(model, generator)
    saved = runtime.settings["generation"]["max_new_tokens"]
    settings = {"max_new_tokens": min(saved, _CHECKED_TOKENS)}
    with torch.no_grad():
        wanted = model.generate(**inputs, **settings, do_sample=False).numpy()
    got = runtime.generate(**{name: value.numpy() for name, value in inputs.items()}, **settings)
    length = max(wanted.shape[1], got.shape[1])
    wanted, got = (np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=-1) for ids in (wanted, got))
    return float((wanted == got).mean())


def _random_prompts(model: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A picture and some words in each of three rows, the second padded on the left."""
    config, padding = model.config, 2
    vocabulary = model.get_input_embeddings().weight.shape[0]
    words = torch.randint(vocabulary, (3, 6), generator=generator)
    words[words == config.image_token_id] = (config.image_token_id + 1) % vocabulary
    image = torch.full((3, config.num_image_tokens), config.image_token_id)
    ids = torch.cat([words[:, :3], image, words[:, 3:]], dim=1)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}
