"""Use our models by other people's tools, as these are, and print what came of it.

    python scripts/try_clients.py [--clients trl accelerate ...] [--json FILE]

Every model is tiny, random and made on the spot; nothing is downloaded. For each client that is installed:

| client | what is done | what must hold |
|---|---|---|
| accelerate | each architecture over CPU and disk, by `device_map`, `dispatch_model` and offloading | plain outputs |
| trl | `SFTTrainer` in full and with `lora_config`, `DPOTrainer`; rows with and without pictures | see below |
| lmms-eval | a task of its own, by `generate_until` and by `loglikelihood` | answers and score of our own evaluation |
| torch.compile | forward of a LLaVA, a ViT and a Swin | the plain model's logits |
| datasets | `map` with a LLaVA's and a captioner's processor, in two processes | what one process gives |
| safetensors | the file that `save_pretrained` wrote | its names, and the metadata that other readers ask for |
| transformers serve | a LLaVA's folder behind an endpoint | it answers a question about a picture |

In trl the first batch's loss is that of our own collator's masks, the last is lower, and the saved folder answers alike.
One line a trial; the exit status is 1 if any failed. All take two to four minutes on two cores.
"""

import argparse
import base64
import functools
import importlib.metadata
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from PIL import Image
from tiny_parts import END, PAD, START, VOCAB_SIZE, randomise, tiny_image_processor, tiny_tokenizer
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel
from transformers.utils import logging

from hf_vlm import (
    CnnLstmConfig,
    CnnLstmForConditionalGeneration,
    CnnLstmProcessor,
    DVAEConfig,
    DVAEModel,
    LlavaVisionLanguageForConditionalGeneration,
    LlavaVisionLanguageProcessor,
    SwinTransformerConfig,
    SwinTransformerForImageClassification,
    TrOCREncoderDecoderConfig,
    TrOCREncoderDecoderForConditionalGeneration,
    VAEConfig,
    VAEModel,
    VisionTransformerConfig,
    VisionTransformerForImageClassification,
    VisionTransformerForMaskedImageModeling,
    VQVAEConfig,
    VQVAEModel,
)

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}
NEW_TOKENS = 5
TRAINING_STEPS = 20
TOLERANCE = 1e-5
_VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}

Calls = dict[str, Callable[[Any], torch.Tensor]]


class Failed(Exception):
    """A client didn't do what it must."""


@dataclass
class Trial:
    """What came of one use of a client.

    Attributes:
        failure: what was wrong; empty if nothing was.
        note: what was found.
    """

    client: str
    version: str
    done: str
    failure: str = ""
    note: str = ""
    seconds: float = field(default=0.0)

    def line(self) -> str:
        told = f"FAILED: {self.failure}" if self.failure else "ok"
        return f"{self.client} {self.version} | {self.done} | {told}{f' ({self.note})' if self.note else ''}"


# Tiny models


def coloured(name: str) -> Image.Image:
    """A picture of one colour, 32 x 32 px."""
    return Image.new("RGB", (32, 32), COLOURS[name])


def tiny_llava() -> tuple[LlavaVisionLanguageForConditionalGeneration, LlavaVisionLanguageProcessor]:
    """A random ViT and a random Llama, joined, and their processor."""
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    vision = ViTModel(ViTConfig(**layers, num_hidden_layers=1, image_size=32, patch_size=16), add_pooling_layer=False)
    tokens = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    text = LlamaForCausalLM(
        LlamaConfig(**layers, **tokens, num_hidden_layers=2, num_key_value_heads=2, max_position_embeddings=256)
    )
    for part in (vision, text):
        randomise(part)
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(
        tiny_image_processor(32, 32), tiny_tokenizer(), vision_config=vision.config
    )
    model = LlavaVisionLanguageForConditionalGeneration.from_pretrained_parts(
        vision, text, processor=processor, max_new_tokens=NEW_TOKENS
    )
    return model, processor


def question(colour: str | None) -> list[dict[str, Any]]:
    """One turn of a user, with a picture or without."""
    words = {"type": "text", "text": "colours?" if colour else "hello"}
    return [{"role": "user", "content": [{"type": "image", "image": coloured(colour)}, words] if colour else [words]}]


def ask(processor: Any, colours: Sequence[str | None]) -> dict[str, torch.Tensor]:
    """Questions as one batch, padded at the left."""
    return dict(
        processor.apply_chat_template(
            [question(colour) for colour in colours],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
    )


def with_random_weights(model: Any, std: float = 0.2) -> Any:
    """In evaluation mode; weights that start at 0 or 1 too have values that matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    model.tie_weights()
    return model.eval()


def tiny_models() -> Iterator[tuple[str, Any, Calls]]:
    """Each architecture, and some more of its variants that keep other tensors: name, model, what is called of it."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32, generator=generator)
    text_ids = torch.randint(3, 40, (2, 6), generator=generator)

    def generate(inputs: dict[str, torch.Tensor], **settings: Any) -> Callable[[Any], torch.Tensor]:
        def call(model: Any) -> torch.Tensor:
            return model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, **settings
            )

        return call

    def decoding(inputs: dict[str, torch.Tensor]) -> Calls:
        return {
            "generate": generate(inputs),
            "beams": generate(inputs, num_beams=3),
            "uncached": generate(inputs, use_cache=False),
        }

    def seeded(call: Callable[[Any], torch.Tensor]) -> Callable[[Any], torch.Tensor]:
        def seeded_call(model: Any) -> torch.Tensor:
            torch.manual_seed(0)
            return call(model)

        return seeded_call

    of_tokenizers: Calls = {
        "reconstruct": lambda model: model.reconstruct(pixels),
        "decode": lambda model: model.decode(model.encode(pixels)),
        "sample": seeded(lambda model: model.sample(2)),
        "loss": seeded(lambda model: model(pixels).loss),
    }
    tokenizer = {"image_size": 32, "hidden_channels": (8, 16), "num_residual_blocks": (1, 1)}
    logits: Calls = {"logits": lambda model: model(pixels).logits}

    words = {"vocab_size": 40, "embedding_size": 16, "hidden_size": 16, "dropout": 0.0}
    for attention in ("none", "additive"):
        config = CnnLstmConfig(vision_config={"model_type": "hf_vlm_vit", **_VIT}, attention=attention, **words)
        labelled: Calls = {"loss": lambda model: model(pixel_values=pixels, labels=text_ids).loss}
        captioner = with_random_weights(CnnLstmForConditionalGeneration(config))
        yield f"cnn_lstm, attention {attention}", captioner, {**labelled, **decoding({"pixel_values": pixels})}
    yield "vae", with_random_weights(VAEModel(VAEConfig(**tokenizer, latent_channels=6)), 0.05), of_tokenizers
    for name, settings in {
        "running means": {"num_codes": 24, "code_dim": 6},
        "trained codewords": {"num_codes": 24, "code_dim": 6, "codebook_update": "loss"},
        "levels": {"discretisation": "levels", "levels": (4, 3, 5)},
    }.items():
        model = with_random_weights(VQVAEModel(VQVAEConfig(**tokenizer, **settings)), 0.05)
        yield f"vqvae, {name}", model, of_tokenizers
    dvae = DVAEConfig(image_size=32, group_channels=8, num_codes=24, code_dim=6)
    yield "dvae", with_random_weights(DVAEModel(dvae), 0.05), of_tokenizers
    for name, settings in {
        "learned positions": {},
        "relative positions": {"position_embedding": "none", "relative_position_bias": "per_layer"},
    }.items():
        config = VisionTransformerConfig(**_VIT, num_labels=4, layer_scale_init_value=0.1, **settings)
        yield f"vit, {name}", with_random_weights(VisionTransformerForImageClassification(config)), logits
    yield (
        "vit, hidden pictures",
        with_random_weights(VisionTransformerForMaskedImageModeling(VisionTransformerConfig(**_VIT))),
        {"loss": seeded(lambda model: model(pixels).loss)},
    )
    swin = {"embed_dim": 8, "depths": (2, 2), "num_attention_heads": (2, 4), "window_size": 4, "image_size": 32}
    config = SwinTransformerConfig(**swin, num_labels=4, use_absolute_positions=True)
    yield "swin", with_random_weights(SwinTransformerForImageClassification(config)), logits
    for positions in ("learned", "sinusoidal"):
        decoder = {"model_type": "hf_vlm_trocr_text", "vocab_size": 40, "hidden_size": 24, "num_attention_heads": 3}
        decoder |= {"cross_attention_size": 24, "max_position_embeddings": 20, "position_embedding": positions}
        config = TrOCREncoderDecoderConfig(vision_config={"model_type": "hf_vlm_vit", **_VIT}, text_config=decoder)
        reader = with_random_weights(TrOCREncoderDecoderForConditionalGeneration(config))
        labelled = {"loss": lambda model: model(pixel_values=pixels, labels=text_ids).loss}
        static = {"static cache": generate({"pixel_values": pixels}, cache_implementation="static")}
        yield f"trocr, {positions} positions", reader, {**labelled, **decoding({"pixel_values": pixels}), **static}
    llava, processor = tiny_llava()
    batch = ask(processor, ("red", None, "blue"))
    alone = ask(processor, (None,))
    yield (
        "llava",
        llava.eval(),
        {
            "logits": lambda model: model(**batch).logits,
            "words alone": lambda model: model(**alone).logits,
            "static cache": generate(batch, cache_implementation="static"),
            **decoding(batch),
        },
    )


def must_agree(what: str, got: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Fails where two tensors differ by more than a tolerance, relative to the largest where that exceeds 1."""
    if got.shape != wanted.shape:
        raise Failed(f"{what}: shape {tuple(got.shape)}, not {tuple(wanted.shape)}")
    off = (got.float() - wanted.float()).abs().max().item()
    if not off <= tolerance * max(1.0, wanted.float().abs().max().item()):
        raise Failed(f"{what}: off by {off:.2g}")


# accelerate


def placements(model: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    """Ways to load a saved model with weights elsewhere than where they are used: name -> the loading.

    A CPU can't tell where a weight lies, but weights that lie on the CPU or on disk for another device have no values between
    calls here either.
    """
    import accelerate

    load = type(model).from_pretrained
    size = accelerate.utils.compute_module_sizes(model)[""]

    def inferred(share: float) -> dict[str, Any]:
        classes = sorted(model._no_split_modules)
        return accelerate.infer_auto_device_map(
            model, max_memory={"cpu": int(share * size)}, no_split_module_classes=classes
        )

    def dispatched(share: float) -> Any:
        hooked = {"main_device": "cpu", "offload_dir": folder / f"dispatched-{share}", "force_hooks": True}
        return accelerate.dispatch_model(load(folder), inferred(share), **hooked)

    ways = {
        "auto": lambda: load(folder, device_map="auto"),
        "all on disk": lambda: load(folder, device_map={"": "disk"}, offload_folder=folder / "disk"),
        "offloaded to the CPU": lambda: accelerate.cpu_offload(load(folder), execution_device="cpu"),
        "offloaded with buffers": lambda: accelerate.cpu_offload(
            load(folder), execution_device="cpu", offload_buffers=True
        ),
        "offloaded to disk": lambda: accelerate.disk_offload(
            load(folder), folder / "offloaded", execution_device="cpu"
        ),
        "half on disk": lambda: load(
            folder, device_map="auto", max_memory={"cpu": int(0.5 * size)}, offload_folder=folder / "half"
        ),
    }
    for share in (0.4, 0.6, 0.8):
        if set(inferred(share).values()) == {"cpu", "disk"}:
            ways["dispatched over both"] = functools.partial(dispatched, share)
            break
    return ways


@torch.no_grad()
def try_placements(name: str, model: Any, calls: Calls, only: Sequence[str] | None = None) -> str:
    """Every way of `placements`, or those of `only`; what was computed."""
    wanted = {call: function(model) for call, function in calls.items()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ways = placements(model, Path(folder))
        ways = {way: ways[way] for way in only or ways}
        for way, load in ways.items():
            placed = load()
            for call, function in calls.items():
                try:
                    must_agree(f"{name}, {way}, {call}", function(placed), wanted[call])
                except (RuntimeError, NotImplementedError) as error:
                    raise Failed(f"{name}, {way}, {call}: {type(error).__name__}: {error}") from error
    return f"{len(ways)} placements, {', '.join(calls)}"


def accelerate_trials() -> Iterator[tuple[str, Callable[[], str]]]:
    for name, model, calls in tiny_models():
        yield (
            f"{name}: device maps and offloading",
            lambda name=name, model=model, calls=calls: try_placements(name, model, calls),
        )


# trl


def colour_rows(number: int) -> list[dict[str, Any]]:
    """Rows as trl wants them, every sixth without a picture."""
    names = list(COLOURS)
    rows = []
    for index in range(number):
        name = names[index % 3]
        asked, said, pictures = ("hello", "hi", []) if index % 6 == 5 else ("colours?", name, [coloured(name)])
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        rows.append({"messages": messages, "images": pictures})
    return rows


def own_loss(model: Any, processor: Any, rows: list[dict[str, Any]]) -> float:
    """The loss of rows by our own encoding and collator, nats a token."""
    from hf_vlm.data.collators import ConversationCollator

    encoded = []
    for row in rows:
        asked, said = row["messages"]
        parts = [*({"type": "image"} for _ in row["images"]), {"type": "text", "text": asked["content"]}]
        item = processor.encode_conversation([{"role": "user", "content": parts}, said])
        item = {name: torch.tensor(value) for name, value in item.items()}
        if row["images"]:
            item["pixel_values"] = processor.prepare_images(row["images"])
        encoded.append({**item, "source": ""})
    batch = ConversationCollator(PAD, is_packed=False)(encoded)
    batch.pop("sources", None)
    with torch.no_grad():
        return model.eval()(**batch).loss.item()


def try_sft(with_adapter: bool) -> str:
    """SFT by trl's own collator; the losses of the first and last step."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature
    from datasets import List as ListFeature
    from peft import PeftModel
    from trl import SFTConfig, SFTTrainer

    from hf_vlm.training.lora import LoraSection, lora_config

    rows = colour_rows(24)
    message = {"role": Value("string"), "content": Value("string")}
    features = Features({"messages": [message], "images": ListFeature(ImageFeature())})
    dataset = Dataset.from_list(rows, features=features)
    with tempfile.TemporaryDirectory() as folder:
        base, saved = f"{folder}/base", f"{folder}/saved"
        for part in tiny_llava():
            part.save_pretrained(base)
        model, processor = AutoModelForImageTextToText.from_pretrained(base), AutoProcessor.from_pretrained(base)
        section = LoraSection(rank=4, alpha=16, dropout=0.0)
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=f"{folder}/run",
                assistant_only_loss=True,
                max_length=None,
                max_steps=TRAINING_STEPS,
                per_device_train_batch_size=6,
                learning_rate=5e-3,
                lr_scheduler_type="constant",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                bf16=False,
                disable_tqdm=True,
            ),
            train_dataset=dataset,
            processing_class=processor,
            peft_config=lora_config(model, section) if with_adapter else None,
        )
        first = [dataset[index] for index in range(6)]
        wanted = own_loss(model, processor, rows[:6])
        batch = trainer.data_collator([dict(row) for row in first])
        with torch.no_grad():
            got = trainer.compute_loss(trainer.model.train(), dict(batch)).item()
        if abs(got - wanted) > TOLERANCE * wanted:
            raise Failed(f"the first batch's loss is {got:.6f}, by our own collator {wanted:.6f}")
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        if not losses[-1] < 0.95 * losses[0]:
            raise Failed(f"the loss of {TRAINING_STEPS} steps must fall, got {losses[0]:.3f} to {losses[-1]:.3f}")
        trainer.save_model(saved)
        again: Any = AutoModelForImageTextToText.from_pretrained(base if with_adapter else saved)
        if with_adapter:
            again = PeftModel.from_pretrained(again, saved)
        batch.pop("labels")
        with torch.no_grad():
            must_agree("logits of the reloaded", again.eval()(**batch).logits, trainer.model.eval()(**batch).logits)
        if AutoProcessor.from_pretrained(saved).chat_template != processor.chat_template:
            raise Failed("the saved processor has another chat template")
    return f"first batch {got:.4f} as by our collator, {losses[0]:.2f} to {losses[-1]:.2f} in {TRAINING_STEPS} steps"


def try_dpo() -> str:
    """Preferences between the right colour and a wrong one; how often the right one is preferred."""
    from datasets import Dataset
    from datasets import Image as ImageFeature
    from datasets import List as ListFeature
    from trl import DPOConfig, DPOTrainer

    from hf_vlm.training.lora import LoraSection, lora_config

    names = list(COLOURS)
    rows = []
    for index in range(24):
        said = {key: [{"role": "assistant", "content": names[(index + step) % 3]}] for key, step in
                (("chosen", 0), ("rejected", 1))}  # fmt: skip
        asked = [{"role": "user", "content": "colours?"}]
        rows.append({"prompt": asked, **said, "images": [coloured(names[index % 3])]})
    dataset = Dataset.from_list(rows).cast_column("images", ListFeature(ImageFeature()))
    with tempfile.TemporaryDirectory() as folder:
        for part in tiny_llava():
            part.save_pretrained(f"{folder}/base")
        model = AutoModelForImageTextToText.from_pretrained(f"{folder}/base")
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=f"{folder}/run",
                max_length=None,
                max_steps=15,
                per_device_train_batch_size=6,
                learning_rate=3e-3,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                bf16=False,
                disable_tqdm=True,
            ),
            train_dataset=dataset,
            processing_class=AutoProcessor.from_pretrained(f"{folder}/base"),
            peft_config=lora_config(model, LoraSection(rank=4, alpha=16, dropout=0.0)),
        )
        trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    if not entries[-1]["loss"] < entries[0]["loss"]:
        raise Failed(f"the loss must fall, got {entries[0]['loss']:.3f} to {entries[-1]['loss']:.3f}")
    return f"{entries[0]['loss']:.3f} to {entries[-1]['loss']:.3f}"


def trl_trials() -> Iterator[tuple[str, Callable[[], str]]]:
    yield "llava: SFTTrainer in full", lambda: try_sft(with_adapter=False)
    yield "llava: SFTTrainer with peft_config", lambda: try_sft(with_adapter=True)
    yield "llava: DPOTrainer with peft_config", try_dpo


# lmms-eval

_TASK = """\
task: {name}
dataset_path: {folder}
test_split: validation
output_type: {output_type}
doc_to_visual: !function colour_functions.visual
doc_to_text: question
{target}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
_FUNCTIONS = """\
def visual(doc):
    return [doc["image"].convert("RGB")]

def choices(doc):
    return ["red", "blue", "green"]

def target(doc):
    return choices(doc).index(doc["answer"])
"""


def write_colour_tasks(folder: Path) -> None:
    """Pictures with questions in `folder/rows`, and tasks of lmms-eval over them in `folder/tasks`."""
    rows, tasks = folder / "rows" / "validation", folder / "tasks"
    rows.mkdir(parents=True)
    tasks.mkdir()
    lines = []
    names = list(COLOURS)
    for index in range(9):
        coloured(names[index % 3]).save(rows / f"{index}.png")
        wanted = names[(index + (index % 4 == 0)) % 3]  # three are wrong: a score of 1 would tell little
        lines.append(json.dumps({"file_name": f"{index}.png", "question": "colours?", "answer": wanted}) + "\n")
    (rows / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    (tasks / "colour_functions.py").write_text(_FUNCTIONS, encoding="utf-8")
    said = "doc_to_target: answer\ngeneration_kwargs:\n  max_new_tokens: 8"
    chosen = "doc_to_target: !function colour_functions.target\ndoc_to_choice: !function colour_functions.choices"
    for name, output_type, target, metric in (
        ("say_colours", "generate_until", said, "exact_match"),
        ("choose_colours", "multiple_choice", chosen, "acc"),
    ):
        task = {"name": name, "folder": folder / "rows", "output_type": output_type, "target": target, "metric": metric}
        (tasks / f"{name}.yaml").write_text(_TASK.format(**task), encoding="utf-8")


def teach(model: Any, processor: Any, num_steps: int = 60) -> None:
    """Until it names some colours, so that scores are neither 0 nor 1 by chance alone."""
    rows = [row for row in colour_rows(18) if row["images"]]
    encoded = [
        processor.encode_conversation(
            [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "colours?"}]},
                row["messages"][1],
            ]
        )
        for row in rows
    ]
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row[name]) for row in encoded], batch_first=True, padding_value=value
        )
        for name, value in (("input_ids", PAD), ("labels", -100))
    }
    batch["attention_mask"] = (batch["input_ids"] != PAD).long()
    batch["pixel_values"] = processor.prepare_images([row["images"][0] for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    model.train()
    for _ in range(num_steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def try_lmms_eval(is_simple: bool) -> str:
    """Its score and answers on a task of ours; compared with `hf-vlm evaluate`'s."""
    from lmms_eval import evaluator
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    from hf_vlm.data.tasks.task_rows import read_task
    from hf_vlm.sharing.lmms_eval import manifest
    from hf_vlm.training.scores.task_evaluation import evaluate_rows

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)  # as the entry point does where it is installed
    with tempfile.TemporaryDirectory() as folder:
        model, processor = tiny_llava()
        teach(model, processor)
        for part in (model, processor):
            part.save_pretrained(f"{folder}/model")
        write_colour_tasks(Path(folder))
        tasks = ["say_colours", "choose_colours"] if is_simple else ["say_colours"]
        results = evaluator.simple_evaluate(
            model="hf_vlm",
            model_args=f"pretrained={folder}/model",
            tasks=tasks,
            batch_size=4,
            device="cpu",
            force_simple=is_simple,
            task_manager=TaskManager("ERROR", include_path=f"{folder}/tasks", model_name="hf_vlm"),
            log_samples=True,
        )
        rows = read_task(f"{folder}/rows", "validation", task="vqa")
        own = evaluate_rows(model, processor, rows, task="vqa", batch_size=4, max_new_tokens=8)
    samples = sorted(results["samples"]["say_colours"], key=lambda sample: sample["doc_id"])
    said = [response[0] if isinstance(response, list) else response for response in
            (sample["filtered_resps"] for sample in samples)]  # fmt: skip
    if said != own.answers:
        raise Failed(f"answers must be those of our own evaluation, {own.answers}, got {said}")
    score = results["results"]["say_colours"]["exact_match,none"]
    if abs(score - own.scores["exact_match"]) > 1e-9:
        raise Failed(f"the score must be that of our own evaluation, {own.scores['exact_match']}, got {score}")
    note = f"exact match {score:.3f}, as `hf-vlm evaluate`"
    if is_simple:
        note += f"; choices {results['results']['choose_colours']['acc,none']:.3f}"
    return note


def lmms_eval_trials() -> Iterator[tuple[str, Callable[[], str]]]:
    yield "llava: a local task, by conversations", lambda: try_lmms_eval(is_simple=False)
    yield "llava: local tasks, by text and pictures, and choices by loss", lambda: try_lmms_eval(is_simple=True)


# Others


@torch.no_grad()
def try_compile(name: str) -> str:
    for found, model, calls in tiny_models():
        if found.startswith(name):
            call = next(iter(calls.values()))
            wanted = call(model)
            must_agree(f"{found}, compiled", call(torch.compile(model)), wanted, 1e-4)
            return found
    raise AssertionError(name)


def compile_trials() -> Iterator[tuple[str, Callable[[], str]]]:
    for name in ("vit", "swin", "llava"):
        yield f"{name}: forward", lambda name=name: try_compile(name)


def _prepare(row: dict[str, Any], processor: Any, kind: str) -> dict[str, Any]:
    if kind == "llava":
        made = processor(images=[row["image"]], text=["<image>\ncolours?"], return_tensors="np")
    else:
        made = processor(images=[row["image"]], text=["red"], return_tensors="np")
    return {name: value[0] for name, value in made.items()}


def try_map(kind: str) -> str:
    from datasets import Dataset, disable_progress_bars
    from datasets import Image as ImageFeature
    from transformers import ViTImageProcessor

    disable_progress_bars()
    processor: Any = tiny_llava()[1]
    if kind == "cnn_lstm":
        images = ViTImageProcessor(size={"height": 32, "width": 32})
        processor = CnnLstmProcessor.from_pretrained_parts(images, tiny_tokenizer())
    rows = [{"image": coloured(name)} for name in list(COLOURS) * 2]
    dataset = Dataset.from_list(rows).cast_column("image", ImageFeature())
    arguments = {"fn_kwargs": {"processor": processor, "kind": kind}, "load_from_cache_file": False}
    alone, split = (dataset.map(_prepare, num_proc=number, **arguments) for number in (None, 2))
    if alone.remove_columns("image").to_dict() != split.remove_columns("image").to_dict():
        raise Failed("two processes prepare other rows than one")
    return ", ".join(name for name in split.column_names if name != "image")


def datasets_trials() -> Iterator[tuple[str, Callable[[], str]]]:
    for kind in ("llava", "cnn_lstm"):
        yield f"{kind}: its processor in map(num_proc=2)", lambda kind=kind: try_map(kind)


def try_safetensors() -> str:
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as folder:
        model = tiny_llava()[0]
        model.save_pretrained(folder)
        with safe_open(f"{folder}/model.safetensors", framework="np") as file:
            metadata, names = file.metadata(), set(file.keys())
    tied = set(model.all_tied_weights_keys)
    if names != set(model.state_dict()) - tied:
        raise Failed(f"names must be those in memory, got {sorted(names ^ set(model.state_dict()))[:3]} in one alone")
    if metadata.get("format") != "pt":
        raise Failed(f"`format` must be `pt`, got {metadata}")
    return f"{len(names)} tensors, metadata {metadata}"


def safetensors_trials() -> Iterator[tuple[str, Callable[[], str]]]:
    yield "llava: the saved file", try_safetensors


_SERVER = """
import hf_vlm
from transformers.models.auto import modeling_auto
# It asks this table of names for the class; for what isn't there it looks into `transformers` itself.
modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["hf_vlm_llava"] = "LlavaVisionLanguageForConditionalGeneration"
modeling_auto.AutoModelForMultimodalLM.register(
    hf_vlm.LlavaVisionLanguageConfig, hf_vlm.LlavaVisionLanguageForConditionalGeneration, exist_ok=True
)
from transformers.cli.transformers import main
main()
"""


def try_serve() -> str:
    """`transformers serve`, which has to be told of our classes: started from Python, after `import hf_vlm`."""
    with tempfile.TemporaryDirectory() as folder:
        for part in tiny_llava():
            part.save_pretrained(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = Path(folder, "server.log")
        with log.open("w") as output:
            server = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _SERVER,
                    "serve",
                    "--port",
                    str(port),
                    "--device",
                    "cpu",
                    folder,
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            return _ask_server(server, port, folder, log)
        finally:
            server.terminate()
            server.wait(timeout=30)


def _ask_server(server: subprocess.Popen, port: int, model: str, log: Path) -> str:
    stored = io.BytesIO()
    coloured("red").save(stored, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(stored.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "colours?"}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": NEW_TOKENS,
        "stream": False,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(90):
        if server.poll() is not None:
            raise Failed(f"the server ended: {log.read_text().strip().splitlines()[-1][:200]}")
        try:
            with opener.open(request, timeout=60) as answer:
                said = json.loads(answer.read())["choices"][0]["message"]["content"]
                return f"said {said!r}"
        except urllib.error.HTTPError as error:
            raise Failed(f"{error.code}: {error.read().decode()[:200]}; {log.read_text()[-300:]}") from error
        except OSError:
            time.sleep(1)
    raise Failed("the server did not answer in 90 s")


def serve_trials() -> Iterator[tuple[str, Callable[[], str]]]:
    yield "llava: a question about a picture by /v1/chat/completions", try_serve


@dataclass(frozen=True)
class Client:
    """A tool, the packages that it wants, and what is done with it."""

    packages: tuple[str, ...]
    trials: Callable[[], Iterator[tuple[str, Callable[[], str]]]]


CLIENTS = {
    "accelerate": Client(("accelerate",), accelerate_trials),
    "trl": Client(("trl",), trl_trials),
    "lmms-eval": Client(("lmms_eval",), lmms_eval_trials),
    "torch.compile": Client(("torch",), compile_trials),
    "datasets": Client(("datasets",), datasets_trials),
    "safetensors": Client(("safetensors",), safetensors_trials),
    "transformers serve": Client(("transformers", "fastapi", "uvicorn"), serve_trials),
}


def version_of(client: Client) -> str | None:
    """The version of a client's first package; None if one is missing."""
    try:
        return [importlib.metadata.version(package) for package in client.packages][0]
    except importlib.metadata.PackageNotFoundError:
        return None


def run_trials(name: str, client: Client, version: str) -> Iterator[Trial]:
    for done, function in client.trials():
        trial = Trial(name, version, done)
        start = time.perf_counter()
        try:
            trial.note = function()
        except Exception as error:  # whatever a client raises is what is to be told
            told = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            trial.failure = " ".join(told.split())[:400]
            if os.environ.get("TRACE"):
                traceback.print_exc()
        trial.seconds = round(time.perf_counter() - start, 1)
        yield trial


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", nargs="+", choices=list(CLIENTS), metavar="CLIENT", default=list(CLIENTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    trials = []
    for name in options.clients:
        version = version_of(CLIENTS[name])
        if version is None:
            print(f"{name} | not installed: {', '.join(CLIENTS[name].packages)}", flush=True)
            continue
        for trial in run_trials(name, CLIENTS[name], version):
            trials.append(trial)
            print(trial.line(), flush=True)
    num_good = sum(not trial.failure for trial in trials)
    print(f"{num_good} of {len(trials)} ok, {sum(trial.seconds for trial in trials):.0f} s")
    if options.json:
        options.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=1) + "\n", encoding="utf-8")
    return 0 if num_good == len(trials) else 1


if __name__ == "__main__":
    sys.exit(main())
