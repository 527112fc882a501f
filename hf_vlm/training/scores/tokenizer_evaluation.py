"""How well a visual tokenizer keeps pictures, and how much of its latents it uses.

Of the pictures: mean squared error and PSNR of reconstructions (values in [0, 1]), their sharpness, nats and bits. Of the
latents: codes in use and their perplexity, or the active channels of a VAE.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_vlm.blocks.codebook import code_counts, codebook_perplexity
from hf_vlm.data.labelled_images import ProcessedBatch, read_images
from hf_vlm.parts.adapter_loading import base_of_adapter, load_with_adapter, processor_folder
from hf_vlm.parts.checkpoint_files import read_config
from hf_vlm.parts.weight_report import hash_weights
from hf_vlm.training.image_models import check_unit_range, measure_processor
from hf_vlm.training.scores.measurements import describe_measurement

TERMS = ("loss", "reconstruction_nats", "kl_nats", "codebook_loss", "commitment_loss", "bits_per_dim")
_ACTIVE_VARIANCE = 0.01  # of a channel's posterior mean over pictures and places, as Burda et al. 2016 count units
_SUMS = ("pictures", "places", "mse", "psnr", "edges", "edges_of_originals", *TERMS)


class TokenizerScores:
    """Gathers outputs over batches; sums, so that processes can be added up.

    Args:
        model: whose outputs they are.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.num_codes: int | None = getattr(model.config, "num_codes", None)
        device = model.device
        # All of them from the start, as a process may see no picture; NaN stands for a term that the model hasn't.
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in _SUMS}
        self.counts = self.moments = None
        if self.num_codes:
            self.counts = torch.zeros(self.num_codes, dtype=torch.float64, device=device)
        else:
            self.moments = torch.zeros(3, model.config.latent_channels, dtype=torch.float64, device=device)

    def update(self, outputs: Any, pixel_values: torch.Tensor) -> None:
        """Takes in a batch.

        Args:
            outputs: of the model for it.
            pixel_values: float (batch, channels, height, width).
        """
        batch = len(pixel_values)
        pixels, shown = pixel_values.float(), outputs.reconstruction.float().clamp(0, 1)
        errors = (shown - pixels).square().flatten(1).mean(1).double()  # (batch,)
        self._add("pictures", torch.tensor(batch))
        self._add("places", torch.tensor(outputs.last_hidden_state[:, 0].numel()))
        self._add("mse", errors.sum())
        self._add("psnr", (-10 * errors.clamp(min=1e-10).log10()).sum())
        self._add("edges", _edge_energy(shown))
        self._add("edges_of_originals", _edge_energy(pixels))
        for name in TERMS:
            term = outputs.get(name)
            self._add(name, torch.tensor(torch.nan) if term is None else term.double() * batch)
        if self.counts is not None:
            assert self.num_codes is not None
            self.counts += code_counts(outputs.code_ids, self.num_codes)
        else:
            means = outputs.last_hidden_state.double().movedim(1, -1).flatten(0, 2)  # (batch * places, channels)
            assert self.moments is not None
            self.moments += torch.stack((torch.ones_like(means).sum(0), means.sum(0), means.square().sum(0)))

    def _add(self, name: str, value: torch.Tensor) -> None:
        self.sums[name] += value.to(self.model.device, torch.float64)

    def tensors(self) -> list[torch.Tensor]:
        """All sums, to be added up over processes in place."""
        return [*self.sums.values(), *(tensor for tensor in (self.counts, self.moments) if tensor is not None)]

    def result(self) -> dict[str, float]:
        """The scores.

        `psnr` is the mean of the pictures' own, in dB; `sharpness` the energy of edges (a Laplace filter) beside that of
        the originals, 1 for equally sharp; `used_codes` counts codes that occurred, `perplexity` is that of all codes;
        `active_channels` of a VAE counts those whose mean differs from place to place.
        """
        number = self.sums["pictures"].item()
        means = {name: self.sums[name].item() / number for name in (*TERMS, "mse", "psnr")}
        means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        scores = {**means, "sharpness": (self.sums["edges"] / self.sums["edges_of_originals"]).item()}
        if self.counts is not None:
            scores["used_codes"] = (self.counts > 0).sum().item()
            scores["perplexity"] = codebook_perplexity(self.counts).item()
        elif self.moments is not None:
            count, total, squares = self.moments
            variances = squares / count - (total / count).square()
            scores["active_channels"] = (variances > _ACTIVE_VARIANCE).sum().item()
        return scores


@torch.no_grad()
def evaluate_batches(
    model: PreTrainedModel, batches: Iterable[tuple[Mapping[str, torch.Tensor], int]]
) -> TokenizerScores:
    """What a tokenizer does, in evaluation mode, to batches with `pixel_values`.

    Args:
        batches: each with how many of its pictures count, all or 0.
    """
    was_training = model.training
    model.eval()
    scores = TokenizerScores(model)
    try:
        for batch, number in batches:
            pixel_values = batch["pixel_values"].to(model.device)
            outputs = model(pixel_values=pixel_values)
            if number:
                scores.update(outputs, pixel_values)
    finally:
        model.train(was_training)
    return scores


def is_tokenizer(model: str) -> bool:
    """Whether a saved model is a visual tokenizer: one with a method `reconstruct`.

    Args:
        model: folder or Hub name.

    Raises:
        OSError: if there is no such model.
    """
    model_type = read_config(base_of_adapter(model) or model).get("model_type")
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in AutoModel._model_mapping:
        return False
    model_class = AutoModel._model_mapping[CONFIG_MAPPING[model_type]]
    return hasattr(model_class, "reconstruct")


class TokenizerResult(dict[str, float]):
    """Scores by name, see `TokenizerScores.result`; as text, one line.

    Args:
        scores: by name.
        num_pictures: that were measured.
        measurement: what the scores depend on, see `describe_measurement`; empty where that is not told.
    """

    def __init__(
        self, scores: Mapping[str, float], num_pictures: int, measurement: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(scores)
        self.num_pictures, self.measurement = num_pictures, dict(measurement or {})

    def to_dict(self) -> dict[str, Any]:
        """The scores by name, the number of pictures, and what they depend on."""
        return {**self.measurement, **self, "num_pictures": self.num_pictures}

    def __str__(self) -> str:
        scores = ", ".join(f"{name} {value:.4g}" for name, value in self.items())
        return f"{scores} on {self.num_pictures} pictures"


def load_tokenizer(name_or_folder: str) -> tuple[Any, Any]:
    """A saved tokenizer or adapter of one, in fp32, and its image processor."""
    model = load_with_adapter(AutoModel, name_or_folder, dtype=torch.float32)
    return model, AutoImageProcessor.from_pretrained(processor_folder(name_or_folder))


def evaluate_tokenizer_folders(
    model: str, folders: Sequence[str], *, split: str | None = None, batch_size: int = 16
) -> Iterator[tuple[str, TokenizerResult]]:
    """Each folder's name and the scores of a saved tokenizer on its pictures.

    Args:
        model: folder or Hub name.
        folders: folders that `hf_vlm.data.labelled_images.read_images` reads; labels are not looked at.
        split: which split of them; None if they have one only.
        batch_size: pictures at a time.

    Raises:
        ValueError: if a folder holds no pictures.
    """
    tokenizer, processor = load_tokenizer(model)
    tokenizer = tokenizer.to("cuda" if torch.cuda.is_available() else "cpu")
    weights = hash_weights(tokenizer.state_dict())
    settings = {"split": split, "batch_size": batch_size}
    statistics, prepare = measure_processor(processor, tokenizer.config)
    check_unit_range(processor, statistics)
    collate = ProcessedBatch(processor, prepare)
    for folder in folders:
        rows = read_images(folder, split, with_labels=False)
        parts = [range(first, min(first + batch_size, len(rows))) for first in range(0, len(rows), batch_size)]
        batches = ((collate([rows[index] for index in part]), len(part)) for part in parts)
        scores = evaluate_batches(tokenizer, batches).result()
        measurement = describe_measurement(tokenizer, model, folder, settings, weights)
        yield folder, TokenizerResult(scores, len(rows), measurement)


def _edge_energy(pictures: torch.Tensor) -> torch.Tensor:
    """Sum of squares of a Laplace filter's answers to the brightness of pictures, float (batch, channels, height, width)."""
    brightness = pictures.mean(dim=1, keepdim=True)
    laplace = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=pictures.device)
    if min(brightness.shape[-2:]) < len(laplace):
        return brightness.new_tensor(math.nan)
    return F.conv2d(brightness, laplace[None, None]).square().sum()
