"""What runs the folders that `export_onnx` writes: onnxruntime and numpy for arrays, a processor of hf-vlm for pictures.

    OnnxVisionModel(folder)(pixel_values)                     ViT, Swin: logits, features or maps by name
    OnnxTokenizer(folder).encode(pixel_values), .decode(...)  VAE, VQ-VAE, dVAE
    OnnxTextReader(folder).generate(pixel_values)             TrOCR
    OnnxCaptioner(folder).generate(pixel_values)              CNN + LSTM
    OnnxAssistant(folder).generate(input_ids, pixel_values)   LLaVA

`load_onnx(folder)` gives the class that fits. Arrays go in and come out. An exported folder has copies of this file and of
`decoding.py`, which run it where neither hf-vlm nor PyTorch is installed: `sys.path.insert(0, folder)`, then
`from runtime import load_onnx`. Pictures and texts become arrays through `processor`, and so in `read` and `classify`; that
needs hf-vlm, transformers and PyTorch.
"""

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]

from hf_vlm.sharing.onnx.decoding import Writing, best_path, choose_reading, decode_greedily, log_softmax

MANIFEST = "onnx_export.json"


class OnnxFolder:
    """The graphs of a folder, each an onnxruntime session.

    Args:
        folder: what `export_onnx` wrote.
        providers: onnxruntime's, such as `["CUDAExecutionProvider"]`; the CPU by default.
        session_options: onnxruntime's, such as how many threads it may use.

    Attributes:
        settings: what `onnx_export.json` says of the model beside its graphs.

    Raises:
        FileNotFoundError: if there is no `onnx_export.json`, or a graph's file is missing.
        ValueError: if the folder is of a model that another class runs.
    """

    kind = ""

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        session_options: Any = None,
    ) -> None:
        manifest = read_manifest(folder)
        if manifest["kind"] != self.kind:
            raise ValueError(
                f"`{type(self).__name__}` runs a `{self.kind}`, got a `{manifest['kind']}` in {folder}. Use `load_onnx`, which "
                "takes the class that fits."
            )
        self.folder = Path(folder)
        self.settings: dict[str, Any] = manifest["settings"]
        for name in manifest["graphs"]:
            if not (self.folder / f"{name}.onnx").is_file():
                raise FileNotFoundError(
                    f"A folder with every file that `{MANIFEST}` names is wanted, got {folder} without `{name}.onnx`. Export "
                    "again, or copy the whole folder."
                )
        self.sessions = {
            name: onnxruntime.InferenceSession(self.folder / f"{name}.onnx", session_options, providers=list(providers))
            for name in manifest["graphs"]
        }
        self._processor: Any = None

    @property
    def processor(self) -> Any:
        """The processor or image processor that was beside the model; needs hf-vlm, transformers and PyTorch."""
        if self._processor is None:
            from transformers import AutoImageProcessor, AutoProcessor

            importlib.import_module("hf_vlm")  # the Auto classes then know its processors
            is_joined = (self.folder / "processor_config.json").is_file()
            self._processor = (AutoProcessor if is_joined else AutoImageProcessor).from_pretrained(self.folder)
        return self._processor

    def run(self, name: str, **inputs: Any) -> dict[str, np.ndarray]:
        """The outputs of a graph by name, for inputs by name; those that it doesn't take are left out.

        Raises:
            ValueError: if an input is of another shape than the graph takes, or has fractions where it takes whole numbers.
        """
        session = self.sessions[name]
        feed = {}
        for value in session.get_inputs():
            if value.type == "tensor(int64)":
                feed[value.name] = _whole_numbers(value.name, inputs[value.name])
            else:
                dtype = np.bool_ if value.type == "tensor(bool)" else np.float32
                feed[value.name] = np.asarray(inputs[value.name], dtype=dtype)
            shape = feed[value.name].shape
            if len(shape) != len(value.shape) or any(
                isinstance(wanted, int) and wanted != got for wanted, got in zip(value.shape, shape, strict=True)
            ):
                raise ValueError(
                    f"`{name}.onnx` takes `{value.name}` of shape ({', '.join(map(str, value.shape))}), got {shape}. Give it "
                    "what the model's processor makes."
                )
        return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed), strict=True))

    def writing(self, prompt: np.ndarray, padding: np.ndarray | None, settings: dict[str, Any]) -> Writing:
        """The generation settings of a call, for prompt ids int64 (batch, tokens)."""
        return Writing(self.settings["generation"], prompt, padding, settings, self.settings.get("max_positions"))


class OnnxVisionModel(OnnxFolder):
    """A vision transformer or Swin."""

    kind = "vision_model"

    def __call__(self, pixel_values: Any) -> dict[str, np.ndarray]:
        """`logits`, `last_hidden_state` and `pooler_output`, or `feature_map_0`, ...; as the model gives them.

        Args:
            pixel_values: float (batch, channels, height, width), of the configured size.
        """
        return self.run("model", pixel_values=pixel_values)

    def classify(self, pictures: Any) -> list[dict[str, Any]]:
        """The likeliest class of each of a list of PIL pictures: `{"label", "score"}`, the score in [0, 1].

        Raises:
            ValueError: if the model has no classifier.
        """
        if "labels" not in self.settings:
            raise ValueError("A classifier is wanted, got a model without one. Call it on `pixel_values` for features.")
        logits = self(self.processor(images=pictures, return_tensors="np")["pixel_values"])["logits"]
        labels = logits.argmax(axis=-1)
        scores = np.exp(log_softmax(logits).max(axis=-1))
        return [
            {"label": self.settings["labels"][label], "score": float(score)}
            for label, score in zip(labels, scores, strict=True)
        ]


class OnnxTokenizer(OnnxFolder):
    """A visual tokenizer."""

    kind = "tokenizer"

    def encode(self, pixel_values: Any) -> np.ndarray:
        """Codes, int64 (batch, rows, columns); of a VAE latents, float32 (batch, latent_channels, rows, columns).

        Args:
            pixel_values: float (batch, channels, height, width), in [0, 1].

        Raises:
            ValueError: if the sides are no multiples of a cell.
        """
        cell = self.settings["cell_size"]
        height, width = np.shape(pixel_values)[-2:]
        if height % cell or width % cell:
            raise ValueError(
                f"Pictures must have sides in multiples of {cell} pixels, got {height} x {width}. Resize them."
            )
        return self.run("encode", pixel_values=pixel_values)[self.settings["codes"]]

    def decode(self, codes: Any) -> np.ndarray:
        """Pictures, float32 (batch, channels, height, width), of what `encode` gave.

        Raises:
            ValueError: if a code is none of the model's, or no whole number.
        """
        codes, num_codes = np.asarray(codes), self.settings.get("num_codes")
        if num_codes is not None and codes.size and not 0 <= codes.min() <= codes.max() < num_codes:
            raise ValueError(
                f"Codes must be from 0 to {num_codes - 1}, got {codes.min()} to {codes.max()}. Take them from `encode`."
            )
        return self.run("decode", **{self.settings["codes"]: codes})["pictures"]


class _CachedWriter:
    """A decoder with keys and values of the tokens so far, and inputs that stay the same."""

    def __init__(self, model: OnnxFolder, graph: str, batch: int, fixed: dict[str, np.ndarray]) -> None:
        self.model, self.graph, self.fixed = model, graph, fixed
        shapes = {value.name: value.shape for value in model.sessions[graph].get_inputs()}
        self.past = {
            name: np.zeros((batch, shape[1], 0, shape[3]), np.float32)
            for name, shape in shapes.items()
            if name.startswith("past_")
        }

    def run(self, **inputs: np.ndarray) -> np.ndarray:
        """Logits for more tokens, whose keys and values are kept."""
        outputs = self.model.run(self.graph, **inputs, **self.fixed, **self.past)
        self.past = {name: outputs[name.replace("past_", "present_", 1)] for name in self.past}
        return outputs["logits"]

    def step(self, token_ids: np.ndarray) -> np.ndarray:
        return self.run(token_ids=token_ids)[:, -1]

    def keep(self, rows: np.ndarray) -> None:
        self.fixed = {name: value[rows] for name, value in self.fixed.items()}
        self.past = {name: value[rows] for name, value in self.past.items()}


class OnnxTextReader(OnnxFolder):
    """A reader of text in pictures."""

    kind = "text_reader"

    def generate(
        self, pixel_values: Any, pixel_mask: Any = None, prompt_ids: Any = None, **settings: Any
    ) -> np.ndarray:
        """Token ids, int64 (batch, start + tokens), padded behind the end: those of the model's `generate`.

        Args:
            pixel_values: float (batch, channels, height, width), as the processor makes them.
            pixel_mask: int64 (batch, height, width), 0 for padding, where the processor makes one; None for no padding.
            prompt_ids: int64 (batch, tokens), what to go on from; the start token by default.
            settings: in place of the saved ones: `max_new_tokens`, `num_beams`, ...

        Raises:
            ValueError: if pictures are of a width that the model can't read.
        """
        encoded = self._encode(np.asarray(pixel_values), pixel_mask)
        spelling, mask = encoded.pop("spelling", None), encoded.get("picture_mask")
        batch = len(pixel_values)
        start = np.full((batch, 1), self.settings["start_token_id"], dtype=np.int64)
        prompt = start if prompt_ids is None else _whole_numbers("prompt_ids", prompt_ids)
        writing = self.writing(prompt, None, settings)
        is_plain = writing.settings["num_beams"] == 1 and writing.rules.is_empty and prompt_ids is None
        if spelling is not None and is_plain and writing.rules.end_ids:
            return self._read_jointly(encoded, spelling, mask, writing)
        return writing.write(_CachedWriter(self, "decoder", batch, encoded))

    def read(self, pictures: Any, **settings: Any) -> list[str]:
        """The texts of a list of PIL pictures, or of one; settings as for `generate`."""
        prepared = self.processor(images=list(pictures) if isinstance(pictures, Sequence) else [pictures])
        inputs = {name: prepared[name].numpy() for name in ("pixel_values", "pixel_mask") if name in prepared}
        token_ids = self.generate(**inputs, **settings)
        return [text.strip() for text in self.processor.batch_decode(token_ids, skip_special_tokens=True)]

    def _encode(self, pixel_values: np.ndarray, pixel_mask: Any) -> dict[str, np.ndarray]:
        size, steps = self.settings["image_size"], self.settings["width_steps"]
        height, width = pixel_values.shape[-2:]
        if steps is None:
            fits, wanted = width == size[1], ""
        else:
            fits = steps[0] <= width <= size[1] and (width - steps[0]) % steps[1] == 0
            wanted = f", or narrower by multiples of {steps[1]}"
        if height != size[0] or not fits:
            raise ValueError(
                f"Pictures must be {size[0]} x {size[1]} pixels{wanted}, got {height} x {width}. Use `processor`."
            )
        if pixel_mask is None:
            pixel_mask = np.ones((len(pixel_values), height, width), dtype=np.int64)
        return self.run("encoder", pixel_values=pixel_values, pixel_mask=pixel_mask)

    def _read_jointly(
        self, encoded: dict[str, np.ndarray], spelling: np.ndarray, mask: np.ndarray | None, writing: Writing
    ) -> np.ndarray:
        """For each picture the decoder's reading, or where both together find that likelier, the CTC head's.

        The head's draft is read by the decoder in one pass; where it would have written just that, it is the reading.
        """
        batch, end, start = len(spelling), writing.rules.end_ids, self.settings["start_token_id"]
        blank, weight = self.settings["blank_token_id"], self.settings["ctc_decoding_weight"]
        places = [len(row) for row in spelling] if mask is None else mask.sum(axis=1).tolist()
        spelling_of = [row[:count] for row, count in zip(spelling, places, strict=True)]
        without_end = spelling.copy()
        without_end[:, :, end] = -np.inf
        longest = writing.max_length - 2  # start and end token count
        drafts = [best_path(row[:count], blank) for row, count in zip(without_end, places, strict=True)]
        fits = [len(draft) <= longest for draft in drafts]
        texts = [draft[:longest] for draft in drafts]

        read = np.full((batch, 1 + max(map(len, texts))), blank, dtype=np.int64)
        wanted = read.copy()
        for row, text in enumerate(texts):
            read[row, : 1 + len(text)] = [start, *text]
            wanted[row, : 1 + len(text)] = [*text, end[0]]
        logits = _CachedWriter(self, "decoder", batch, encoded).run(token_ids=read)
        is_text = np.arange(read.shape[1]) <= np.array([[len(text)] for text in texts])
        told = np.take_along_axis(log_softmax(logits), wanted[:, :, None], axis=2)[:, :, 0]
        totals = np.where(is_text, told, 0).sum(axis=1)
        agrees = ((logits.argmax(axis=-1) == wanted) | ~is_text).all(axis=1)
        rest = np.flatnonzero(~(agrees & np.array(fits)))
        results = [[*text, end[0]] for text in texts]
        if len(rest):
            writer = _CachedWriter(self, "decoder", len(rest), {name: value[rest] for name, value in encoded.items()})
            sequences, log_probs = decode_greedily(writer, writing.prompt[rest], writing.rules, writing.pad_id)
            for row, ids, row_log_probs in zip(rest.tolist(), sequences[:, 1:].tolist(), log_probs, strict=True):
                end_at = next((at for at, token in enumerate(ids) if token in end), len(ids))
                ids = ids[: end_at + 1]  # the end token last, unless there was no room for it
                reading = [token for token in ids if token not in end], float(row_log_probs[: len(ids)].sum())
                draft = texts[row], float(totals[row])
                if not (fits[row] and choose_reading(draft, reading, spelling_of[row], weight, blank)):
                    results[row] = ids
        sequences = np.full((batch, 1 + max(map(len, results))), writing.pad_id, dtype=np.int64)
        for place, result in enumerate(results):
            sequences[place, : 1 + len(result)] = [start, *result]
        return sequences


class _RecurrentWriter:
    """A recurrent decoder: its state takes in the tokens one by one."""

    def __init__(self, model: OnnxFolder, state: dict[str, np.ndarray]) -> None:
        self.model, self.state = model, state

    def step(self, token_ids: np.ndarray) -> np.ndarray:
        for place in range(token_ids.shape[1]):
            outputs = self.model.run("decoder", token_ids=token_ids[:, place : place + 1], **self.state)
            self.state |= {"hidden": outputs["next_hidden"], "cell": outputs["next_cell"]}
        return outputs["logits"]

    def keep(self, rows: np.ndarray) -> None:
        layered = ("hidden", "cell")  # (layers, batch, hidden_size)
        self.state = {name: value[:, rows] if name in layered else value[rows] for name, value in self.state.items()}


class OnnxCaptioner(OnnxFolder):
    """A captioner with a recurrent decoder."""

    kind = "captioner"

    def generate(self, pixel_values: Any, **settings: Any) -> np.ndarray:
        """Token ids, int64 (batch, start + tokens), padded behind the end: those of the model's `generate`.

        Args:
            pixel_values: float (batch, channels, height, width), of the configured size.
            settings: in place of the saved ones: `max_new_tokens`, `num_beams`, ...
        """
        start = np.full((len(pixel_values), 1), self.settings["start_token_id"], dtype=np.int64)
        return self.writing(start, None, settings).write(
            _RecurrentWriter(self, self.run("encoder", pixel_values=pixel_values))
        )


class _AssistantWriter(_CachedWriter):
    """A language model whose first tokens come as embeddings, pictures among them."""

    def __init__(self, model: OnnxFolder, embeds: np.ndarray, mask: np.ndarray) -> None:
        super().__init__(model, "language_model", len(embeds), {})
        self.embeds: np.ndarray | None = embeds
        self.mask = mask

    def step(self, token_ids: np.ndarray) -> np.ndarray:
        embeds, self.embeds = self.embeds, None
        if embeds is None:
            embeds = self.model.run("embedding", input_ids=token_ids)["inputs_embeds"]
            self.mask = np.concatenate((self.mask, np.ones_like(token_ids)), axis=1)
        positions = np.maximum(self.mask.cumsum(axis=1) - 1, 0)[:, -embeds.shape[1] :]
        return self.run(inputs_embeds=embeds, attention_mask=self.mask, position_ids=positions)

    def keep(self, rows: np.ndarray) -> None:
        super().keep(rows)
        self.mask = self.mask[rows]
        self.embeds = None if self.embeds is None else self.embeds[rows]


class OnnxAssistant(OnnxFolder):
    """A language model that sees."""

    kind = "assistant"

    def generate(
        self, input_ids: Any, pixel_values: Any = None, attention_mask: Any = None, **settings: Any
    ) -> np.ndarray:
        """Token ids, int64 (batch, prompt tokens + tokens), padded behind the end: those of the model's `generate`.

        Args:
            input_ids: int64 (batch, tokens), padded on the left, a picture's place held by its image tokens.
            pixel_values: float (pictures, channels, height, width), in the order of their places; None for none.
            attention_mask: int64 (batch, tokens), 0 for padding; None for no padding.
            settings: in place of the saved ones: `max_new_tokens`, `num_beams`, ...

        Raises:
            ValueError: if pictures and image tokens disagree in number.
        """
        ids = _whole_numbers("input_ids", input_ids)
        mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, dtype=np.int64)
        embeds = self.run("embedding", input_ids=ids)["inputs_embeds"] * mask[:, :, None].astype(np.float32)
        is_image = ids == self.settings["image_token_id"]
        words = np.zeros((0, embeds.shape[2]), dtype=np.float32)
        if pixel_values is not None:
            words = self.run("vision", pixel_values=pixel_values)["image_features"].reshape(-1, embeds.shape[2])
        if is_image.sum() != len(words):
            raise ValueError(
                f"`input_ids` must hold {self.settings['num_image_tokens']} image tokens a picture, got {is_image.sum()} for "
                f"{0 if pixel_values is None else len(pixel_values)} pictures. Let `processor` expand `<image>`."
            )
        embeds[is_image] = words
        writing = self.writing(ids, mask.argmax(axis=1), settings)
        return writing.write(_AssistantWriter(self, embeds, mask))


def _whole_numbers(name: str, values: Any) -> np.ndarray:
    """Values as int64.

    Raises:
        ValueError: if one has a fraction.
    """
    given = np.asarray(values)
    whole = given.astype(np.int64)
    if given.dtype.kind == "f" and not np.array_equal(whole, given):
        raise ValueError(f"`{name}` must be whole numbers, got {given[whole != given].flat[0]}. Round them beforehand.")
    return whole


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """What `onnx_export.json` says.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"A folder that `hf-vlm export-onnx` wrote is wanted, with `{MANIFEST}`, got {folder} without it. Export first."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def load_onnx(folder: str | os.PathLike, **settings: Any) -> Any:
    """The runtime of a folder that `export_onnx` wrote; settings as for `OnnxFolder`."""
    classes = (OnnxVisionModel, OnnxTokenizer, OnnxTextReader, OnnxCaptioner, OnnxAssistant)
    return next(one for one in classes if one.kind == read_manifest(folder)["kind"])(folder, **settings)
