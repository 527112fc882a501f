"""Join every family of vision models with every family of language models, tiny and random, and try what a user would do.

    python scripts/try_pairs.py [--vision clip swin ...] [--language llama mamba ...] [--full] [--json FILE]

By default every vision model is joined with Llama and every language model with CLIP; `--full` adds the 12 x 12 block of the
best known. With `--vision` or `--language` each of the one is joined with each of the other. For each pair, from saved
folders on:

| step | what must hold |
|---|---|
| assemble | `from_pretrained_parts` makes a model and a processor of the two folders |
| text | without pictures the logits are the plain language model's, to 1e-5 |
| picture | another picture changes the logits behind it, and none before it |
| train | the loss falls, and gradients reach the projector and whatever they reach in the plain language model |
| batch | logits of a left-padded batch of one, no and two pictures are those of the rows alone, or it is refused by name |
| generate, beams | the same for greedy and for beam search, token for token |
| uncached | decoding without a cache gives the same tokens |
| static | so does a static cache, or it is refused by name |
| reload | the saved and reloaded model gives equal logits and keeps its generation settings |
| lora | a saved and reloaded adapter of the language model's linear layers gives the same logits, also merged |

One line a pair; the exit status is 1 if any failed. A pair takes about a second on one core.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from tiny_parts import (
    LANGUAGE_FAMILIES,
    PAD,
    VISION_FAMILIES,
    tiny_image_processor,
    tiny_language_model,
    tiny_tokenizer,
    tiny_vision_model,
)
from torch import nn
from transformers import AutoModelForCausalLM, logging
from transformers.pytorch_utils import Conv1D

from hf_vlm import LlavaVisionLanguageForConditionalGeneration, LlavaVisionLanguageProcessor
from hf_vlm.parts.vision_features import configured_image_size

BEST_KNOWN_VISION = (
    "clip", "siglip", "vit", "dinov2", "dinov2-registers", "dinov3", "swin", "convnext", "beit", "timm-resnet",
    "hf_vlm_vit", "hf_vlm_vqvae",
)  # fmt: skip
BEST_KNOWN_LANGUAGE = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "mamba", "gpt_oss", "lfm2",
)  # fmt: skip
PROMPTS = (  # one, no and two pictures; `None` is a picture
    ("Look: ", None, "what is it?"),
    ("Say hello.",),
    (None, "and ", None, "Which of the two?"),
)
TOLERANCE = 1e-5  # of logits that the same kernels computed, relative to the largest where that exceeds 1
BATCH_TOLERANCE = 1e-4  # of logits that differ in padding or in how they are added up
TRAINING_STEPS = 15
NEW_TOKENS = 6
STEPS = (
    "assemble", "text", "picture", "train", "batch", "generate", "beams", "uncached", "static", "reload", "lora",
)  # fmt: skip


class Failed(Exception):
    """A step didn't give what it must."""


@dataclass
class Result:
    """What was found of one pair.

    Attributes:
        step: the first that failed; empty if none did.
        message: what was wrong.
        notes: what is no failure, but worth telling.
    """

    vision: str
    language: str
    step: str = ""
    message: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return not self.step

    def line(self) -> str:
        told = f"FAILED at {self.step}: {self.message}" if self.step else "ok"
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        return f"{self.vision} + {self.language}: {told}{notes}"


class Folders:
    """Saved parts, each written when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def vision(self, family: str) -> str:
        """A folder of weights and of an image processor for the model's own size."""
        path = self.folder / "vision" / family
        if not path.is_dir():
            torch.manual_seed(1)
            model = tiny_vision_model(family)
            model.save_pretrained(path)
            tiny_image_processor(*configured_image_size(model.config)).save_pretrained(path)
        return str(path)

    def language(self, family: str) -> str:
        """A folder of weights and of a tokenizer."""
        path = self.folder / "language" / family
        if not path.is_dir():
            torch.manual_seed(2)
            tiny_language_model(family).save_pretrained(path)
            tiny_tokenizer().save_pretrained(path)
        return str(path)


def picture(seed: int) -> Image.Image:
    """A picture of coarse random squares, 40 x 36 pixels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (9, 10, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(pixels).resize((40, 36), Image.Resampling.NEAREST)


class Pair:
    """One vision and one language model, joined, and the steps in the order of `STEPS`; each raises where it fails."""

    def __init__(self, folders: Folders, vision: str, language: str, work: Path) -> None:
        self.vision_folder = folders.vision(vision)
        self.language_folder = folders.language(language)
        self.work = work
        self.notes: list[str] = []
        self.rows: Sequence[int] = range(len(PROMPTS))  # that go into a batch together
        self.made: dict[tuple, Any] = {}
        self.model: Any = None
        self.processor: Any = None

    # Inputs

    def inputs(
        self, rows: Sequence[int] | None = None, first_picture: int = 0, padding_side: str = "left"
    ) -> dict[str, torch.Tensor]:
        """Some of `PROMPTS` as one padded batch."""
        rows = tuple(self.rows if rows is None else rows)
        asked = (rows, first_picture, padding_side)
        if asked not in self.made:
            texts, pictures = [], []
            for row in rows:
                texts.append("".join(self.processor.image_token if part is None else part for part in PROMPTS[row]))
                places = [index for index, part in enumerate(PROMPTS[row]) if part is None]
                pictures += [picture(first_picture + 10 * row + index) for index in places]
            self.made[asked] = self.processor(
                images=pictures or None, text=texts, padding=True, padding_side=padding_side, return_tensors="pt"
            )
        return dict(self.made[asked])

    def logits(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return model(**batch).logits

    def generate(self, rows: Sequence[int] | None = None, **settings: Any) -> list[list[int]]:
        """New tokens of each row, up to the end or to where padding begins."""
        batch = self.inputs(rows)
        written = self.model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False, **settings)
        ends = set(self.processor.end_token_ids)
        return [until_end(row, ends) for row in written[:, batch["input_ids"].shape[1] :].tolist()]

    # Steps

    def assemble(self) -> None:
        folders = {"vision": self.vision_folder, "text": self.language_folder}
        self.processor = LlavaVisionLanguageProcessor.from_pretrained_parts(**folders)
        self.model = LlavaVisionLanguageForConditionalGeneration.from_pretrained_parts(
            **folders, processor=self.processor
        )

    def text(self) -> None:
        plain = AutoModelForCausalLM.from_pretrained(self.language_folder).eval()
        batch = self.inputs([1])
        wanted = self.logits(plain, {"input_ids": batch["input_ids"]})
        got = self.logits(self.model, batch)
        compare("logits of a text without pictures", got[..., : wanted.shape[-1]], wanted, TOLERANCE)

    def picture(self) -> None:
        batch = self.inputs([0])
        first, second = self.logits(self.model, batch), self.logits(self.model, self.inputs([0], first_picture=5))
        places = batch["input_ids"][0].eq(self.model.config.image_token_id).nonzero()[:, 0]
        if (first - second)[0, places[-1] :].abs().max() < 1e-6:
            raise Failed("another picture changes no logit behind it")
        before = slice(0, int(places[0]))
        compare("logits before a changed picture", first[:, before], second[:, before], TOLERANCE)

    def train(self) -> None:
        self.model.train()
        batch = self.inputs(padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batch["labels"] = labels.masked_fill(labels == self.model.config.image_token_id, -100)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-3)
        losses = []
        for _ in range(TRAINING_STEPS):
            loss = self.model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            losses.append(loss.item())
            if len(losses) == 1:
                self.check_gradients(batch)
            optimizer.step()
        self.model.eval()
        if not losses[-1] < 0.8 * losses[0]:
            raise Failed(
                f"the loss of {TRAINING_STEPS} steps must fall by a fifth, got {losses[0]:.3f} to {losses[-1]:.3f}"
            )

    def check_gradients(self, batch: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.model.projector.named_parameters():
            if parameter.grad is None or not parameter.grad.abs().sum() > 0:
                raise Failed(f"no gradient reaches `projector.{name}`")
        if not any(parameter.grad is not None for parameter in self.model.vision_model.parameters()):
            raise Failed("no gradient reaches the vision model")
        without = {name for name, parameter in self.model.language_model.named_parameters() if parameter.grad is None}
        if without:  # some models have weights that no text reaches
            plain = AutoModelForCausalLM.from_pretrained(self.language_folder).train()
            plain(input_ids=self.inputs([1])["input_ids"]).logits.sum().backward()
            without -= {name for name, parameter in plain.named_parameters() if parameter.grad is None}
        if without:
            raise Failed(f"no gradient reaches {len(without)} tensors of the language model, `{min(without)}` first")

    def batch(self) -> None:
        try:
            logits = self.logits(self.model, self.inputs())
        except ValueError as error:
            if "padding" not in str(error).lower():
                raise
            self.notes.append("padding in front refused")
            self.rows = self.rows[-1:]
            return
        for row in self.rows:
            alone = self.logits(self.model, self.inputs([row]))[0]
            compare(f"logits of row {row} in a batch", logits[row, -len(alone) :], alone, BATCH_TOLERANCE)

    def generate_greedily(self) -> None:
        self.greedy = self.generate()
        same_tokens("batch and singles", self.greedy, [self.generate([row])[0] for row in self.rows])
        if any(self.model.config.image_token_id in row for row in self.greedy):
            raise Failed("the image token was written")
        if len({tuple(row) for row in self.greedy}) < len(self.rows):
            self.notes.append("wrote the same for two rows")

    def beams(self) -> None:
        together = self.generate(num_beams=3)
        same_tokens("batch and singles", together, [self.generate([row], num_beams=3)[0] for row in self.rows])

    def uncached(self) -> None:
        same_tokens("with and without a cache", self.greedy, self.generate(use_cache=False))

    def static(self) -> None:
        try:
            tokens = self.generate(cache_implementation="static")
        except ValueError as error:
            if "static" not in str(error):
                raise
            self.notes.append("static cache refused")
            return
        same_tokens("dynamic and static cache", self.greedy, tokens)

    def reload(self) -> None:
        folder = self.work / "whole"
        self.model.save_pretrained(folder)
        again = LlavaVisionLanguageForConditionalGeneration.from_pretrained(folder)
        batch = self.inputs()
        compare("logits of the reloaded model", self.logits(again, batch), self.logits(self.model, batch), 0.0)
        before, after = (model.generation_config.to_diff_dict() for model in (self.model, again))
        for settings in (before, after):
            settings.pop("transformers_version", None)
            settings.pop("_from_model_config", None)
        if before != after:
            raise Failed(f"generation settings must be kept, got {after}, not {before}")
        self.saved = folder

    def lora(self) -> None:
        batch = self.inputs()
        targets = self.called_linears(batch)
        settings = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        adapted = get_peft_model(self.load_saved(), settings).eval()
        wanted = self.logits(adapted, batch)
        if torch.equal(wanted, self.logits(self.model, batch)):
            raise Failed("the adapter changes no logit")
        adapted.train()(**batch, labels=batch["input_ids"]).loss.backward()
        without = [name for name, value in adapted.named_parameters() if value.requires_grad and value.grad is None]
        if without:
            raise Failed(f"no gradient reaches {len(without)} tensors of the adapter, `{without[0]}` first")
        adapted.eval().save_pretrained(self.work / "adapter")
        again = PeftModel.from_pretrained(self.load_saved(), self.work / "adapter").eval()
        compare("logits of the reloaded adapter", self.logits(again, batch), wanted, BATCH_TOLERANCE)
        compare("logits of the merged adapter", self.logits(again.merge_and_unload(), batch), wanted, BATCH_TOLERANCE)

    def called_linears(self, batch: dict[str, torch.Tensor]) -> list[str]:
        """Linear layers of the language model but for its head; not those whose weights it uses without calling them."""
        head = self.model.get_output_embeddings()
        called: set[str] = set()

        def note(name: str, output: Any) -> None:
            if isinstance(output, torch.Tensor):  # routers of experts give more, which peft can't add to
                called.add(name)

        hooks = [
            module.register_forward_hook(lambda *arguments, name=name: note(name, arguments[-1]))
            for name, module in self.model.named_modules()
            if name.startswith("language_model.") and isinstance(module, (nn.Linear, Conv1D)) and module is not head
        ]
        self.logits(self.model, batch)
        for hook in hooks:
            hook.remove()
        return sorted(called)

    def load_saved(self) -> Any:
        return LlavaVisionLanguageForConditionalGeneration.from_pretrained(self.saved)

    def step(self, name: str) -> Callable[[], None]:
        return getattr(self, "generate_greedily" if name == "generate" else name)


def until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Tokens up to the first end token, and without padding behind."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    while tokens and tokens[-1] == PAD:
        tokens = tokens[:-1]
    return tokens


def compare(what: str, got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """Fails where two tensors differ by more than a tolerance, relative to the largest value where that exceeds 1."""
    if got.shape != wanted.shape:
        raise Failed(f"{what}: shape {tuple(got.shape)}, not {tuple(wanted.shape)}")
    if not torch.isfinite(got).all():
        raise Failed(f"{what}: not finite")
    if not got.numel():
        return
    off = (got - wanted).abs().max().item()
    if off > tolerance * max(1.0, wanted.abs().max().item()):
        raise Failed(f"{what}: off by {off:.2g}, of at most {wanted.abs().max().item():.2g}")


def same_tokens(what: str, first: list[list[int]], second: list[list[int]]) -> None:
    """Fails where two lists of rows of tokens differ."""
    for row, (one, other) in enumerate(zip(first, second, strict=True)):
        if one != other:
            raise Failed(f"{what}: row {row} is {one} and {other}")


def try_pair(folders: Folders, vision: str, language: str, steps: Sequence[str] = STEPS) -> Result:
    """Take one pair through the steps, up to the first that fails."""
    result = Result(vision, language)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        step = "assemble"
        try:
            pair = Pair(folders, vision, language, Path(work))
            for step in steps:
                torch.manual_seed(0)
                pair.step(step)()
            result.notes = pair.notes
        except Exception as error:  # whatever a model of the Hub raises is what is to be told
            told = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            result.step, result.message = step, " ".join(told.split())[:300]
    result.seconds = round(time.perf_counter() - start, 2)
    return result


def chosen_pairs(vision: list[str] | None, language: list[str] | None, full: bool) -> list[tuple[str, str]]:
    """Pairs of families to try, without repetitions."""
    if vision or language:
        return [(one, other) for one in vision or ["clip"] for other in language or ["llama"]]
    pairs = [(name, "llama") for name in VISION_FAMILIES] + [("clip", name) for name in LANGUAGE_FAMILIES]
    if full:
        pairs += [(one, other) for one in BEST_KNOWN_VISION for other in BEST_KNOWN_LANGUAGE]
    return list(dict.fromkeys(pairs))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vision", nargs="+", choices=sorted(VISION_FAMILIES), metavar="FAMILY")
    parser.add_argument("--language", nargs="+", choices=sorted(LANGUAGE_FAMILIES), metavar="FAMILY")
    parser.add_argument("--full", action="store_true", help="also the 12 x 12 block of the best known")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folders = Folders(Path(folder))
        for vision, language in chosen_pairs(options.vision, options.language, options.full):
            results.append(try_pair(folders, vision, language))
            print(results[-1].line(), flush=True)
    num_good = sum(result.is_good for result in results)
    print(f"{num_good} of {len(results)} pairs ok, {sum(result.seconds for result in results):.0f} s")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")
    return 0 if num_good == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
