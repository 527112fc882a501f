"""A model of ours as ONNX files: written, run through onnxruntime, and compared.

folder of ours -> the graphs of its architecture (`vision`, `trocr`, `cnn_lstm`, `llava`)
  -> each written and checked on other sizes than were traced (`graphs`)
  -> for models that write: what the runtime writes against what `generate` writes, token for token
  -> OUT: *.onnx, runtime.py, decoding.py, config.json, generation_config.json, the processor's files, `onnx_export.json`

OUT's `runtime.py` runs it on arrays with numpy and onnxruntime alone, without PyTorch, transformers or hf-vlm. What makes
arrays of pictures and texts is still the processor, which needs all three.

`onnx_export.json` holds

    kind                 which class of `runtime` runs the folder
    model_type, model_class
    precision, opset, versions
    graphs               name -> {"file", "inputs", "outputs"}, of each tensor {"name", "dtype", "shape"}, open lengths by name
    settings             what the runtime must know beside the graphs: sizes, token ids, generation settings
    largest_difference   of any output, ours against the files through onnxruntime
    same_tokens          share of tokens that runtime and model write alike on random pictures, greedily and without an end before
                         the last; null for models that don't write
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

from hf_vlm.parts.licences import copy_licence
from hf_vlm.parts.package_version import __version__
from hf_vlm.sharing.new_folder import check_is_new, new_folder
from hf_vlm.sharing.onnx.cnn_lstm import captioner_graphs
from hf_vlm.sharing.onnx.graphs import OPSET, OnnxGraph, prepare, quiet, require_onnx, write_graph
from hf_vlm.sharing.onnx.llava import llava_graphs
from hf_vlm.sharing.onnx.trocr import trocr_graphs
from hf_vlm.sharing.onnx.vision import tokenizer_graphs, vision_graphs
from hf_vlm.sharing.whole_models import load_processor, load_whole, own_model_type, picture_size_notes

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
_CHECKED_TOKENS = 24  # written a row in the comparison with `generate`
_NEAR_TIE = 1e-3  # of two logits, which rounding may rank either way
_RUNTIME_FILES = ("runtime.py", "decoding.py")


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
            it can't be written, naming what stopped it; or if in float32 an output differs by more than 1e-3, or a token whose
            logit in the model is not within 1e-3 of the other's. Nothing is then left.
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
    notes += picture_size_notes(processor, model)

    with new_folder(out) as written:
        described = [write_graph(graph, written, precision=precision, tolerance=TOLERANCE) for graph in graphs]
        if precision == "int8" and not any(one.num_rounded for one in described):
            notes.append("no weights were rounded to int8: the model is made of convolutions, which stay in float32")
        if processor is None:
            notes.append("there was no processor beside the model: none was written")
        notes.append(
            "runtime.py runs arrays with numpy and onnxruntime alone; the processor, which makes them of pictures and texts, "
            "needs hf-vlm, transformers and PyTorch"
        )
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
            manifest["same_tokens"], margin = _same_tokens(model, written, kind)
            _write_manifest(written, manifest)
            if precision == "float32" and not margin < _NEAR_TIE:
                raise ValueError(
                    "The ONNX files must write what the model writes, got another token on random pictures "
                    f"({100 * manifest['same_tokens']:.1f} % the same), with a logit {margin:.3g} lower in the model. Report it "
                    "with the folder's config.json."
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
    """Runtime, config, generation config, processor and licence."""
    for name in _RUNTIME_FILES:
        code = Path(__file__).with_name(name).read_text(encoding="utf-8")
        code = code.replace("from hf_vlm.sharing.onnx.decoding import", "from decoding import")
        head = f"# Copied from hf-vlm {__version__}, licence Apache-2.0 (http://www.apache.org/licenses/LICENSE-2.0).\n"
        (written / name).write_text(head + code, encoding="utf-8")
    _set_float32(model.config)
    model.config.save_pretrained(written)
    if model.can_generate():
        model.generation_config.save_pretrained(written)
    if processor is not None:
        processor.save_pretrained(written)
    copy_licence(folder, written)


def _set_float32(config: Any) -> None:
    """Let a config and its parts say what `prepare` made of the weights."""
    config.dtype = torch.float32
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            _set_float32(part)


def _write_manifest(written: Path, manifest: dict[str, Any]) -> None:
    content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (written / "onnx_export.json").write_text(content, encoding="utf-8")


def _same_tokens(model: Any, written: Path, kind: str) -> tuple[float, float]:
    """The share of tokens that the runtime writes as the model, and by how much the model preferred its own; see `compare`.

    Both search greedily and may not end before the last token: on noise a reader would end at once, and nothing be compared.
    """
    from hf_vlm.sharing.onnx.runtime import load_onnx

    runtime = load_onnx(written)
    inputs = _random_inputs(model, runtime.settings, kind)
    length = min(runtime.settings["generation"]["max_new_tokens"], _CHECKED_TOKENS)
    length = min(length, runtime.settings.get("max_positions") or length)
    settings = {"max_new_tokens": length, "min_new_tokens": length, "num_beams": 1}
    with quiet(), torch.no_grad():
        outputs = model.generate(
            **inputs, **settings, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
    got = runtime.generate(**{name: value.numpy() for name, value in inputs.items()}, **settings)
    scores = torch.stack(outputs.scores, dim=1).float().numpy()
    return compare(outputs.sequences[:, -scores.shape[1] :].numpy(), got[:, -scores.shape[1] :], scores)


def compare(wanted: np.ndarray, got: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The share of places with the same token, and the largest margin where rows first part: score of wanted less that of got.

    What follows the first other token of a row follows from it, and has no margin of its own.

    Args:
        wanted, got: int64 (batch, tokens), without prompts.
        scores: float32 (batch, tokens, vocab_size), those by which `wanted` was chosen.

    Returns: in [0, 1]; at least 0, and 0 where all are the same.
    """
    is_other = wanted != got
    rows = np.flatnonzero(is_other.any(axis=1))
    places = is_other.argmax(axis=1)[rows]
    margins = scores[rows, places, wanted[rows, places]] - scores[rows, places, got[rows, places]]
    return float(1 - is_other.mean()), float(margins.max(initial=0))


def _random_inputs(model: Any, settings: dict[str, Any], kind: str) -> dict[str, torch.Tensor]:
    """A batch of random pictures of other sizes than were traced, with what goes with them."""
    generator = torch.Generator().manual_seed(1)
    height, width = settings["image_size"]
    channels = getattr(model.config.vision_config, "num_channels", 3)
    steps = settings.get("width_steps")
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
    return inputs


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
