"""What a folder's user gets of it through transformers alone, in a process that knows hf_vlm or in one that doesn't.

    python -S tests/sharing/bare_process.py FOLDERS RESULTS [USER]

runs it in one that doesn't, on each folder in FOLDERS named as a function below, and writes what they gave to RESULTS. With a
USER of the Hub the LLaVA among them goes there and comes back.
"""

import importlib.util
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMaskedImageModeling,
    AutoProcessor,
    Trainer,
    TrainingArguments,
    pipeline,
)

Given = dict[str, Any]


def load(auto_class: Any, folder: Path, **settings: Any) -> Any:
    loaded = auto_class.from_pretrained(str(folder), trust_remote_code=True, **settings)
    return loaded.eval() if isinstance(loaded, torch.nn.Module) else loaded


def pictures() -> list[Image.Image]:
    """Two of noise, mode RGB, 40 x 24 and 28 x 24 pixels."""
    noise = np.random.default_rng(3).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    return [Image.fromarray(noise), Image.fromarray(noise[:, ::-1][:, :28])]


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5))


def both_backends(folder: Path) -> Given:
    """What both image processors make of pictures, and their names."""
    found: Given = {}
    for backend in ("torchvision", "pil"):
        image_processor = load(AutoImageProcessor, folder, backend=backend)
        found[f"{backend} class"] = type(image_processor).__name__
        found[backend] = image_processor(pictures(), return_tensors="pt")["pixel_values"]
    return found


# One function a folder


@torch.no_grad()
def vit(folder: Path) -> Given:
    model = load(AutoModelForImageClassification, folder)
    batch = load(AutoProcessor, folder)(pictures(), return_tensors="pt")
    classify = pipeline("image-classification", model=str(folder), trust_remote_code=True)
    return {
        "logits": model(**batch).logits,
        "features": load(AutoModel, folder)(**batch).last_hidden_state,
        "pipeline": classify(pictures()[0]),
        **both_backends(folder),
    }


@torch.no_grad()
def vit_masked(folder: Path) -> Given:
    model = load(AutoModelForMaskedImageModeling, folder)
    mask = torch.arange(16).view(1, 16).repeat(2, 1) % 3 == 0
    outputs = model(pixels(2, 3, 32, 32), bool_masked_pos=mask)
    return {"loss": outputs.loss, "reconstruction": outputs.reconstruction}


@torch.no_grad()
def vit_on_swin(folder: Path) -> Given:
    return {"features": load(AutoModel, folder)(pixels(2, 3, 32, 32)).last_hidden_state}


@torch.no_grad()
def swin(folder: Path) -> Given:
    model = load(AutoModel, folder)
    extract = pipeline("image-feature-extraction", model=str(folder), trust_remote_code=True)
    return {
        "features": model(pixels(2, 3, 32, 32)).last_hidden_state,
        "pipeline": extract(pictures()[0], return_tensors=True),
        **both_backends(folder),
    }


@torch.no_grad()
def vae(folder: Path) -> Given:
    model = load(AutoModel, folder)
    return {"latents": model.encode(pixels(2, 3, 8, 8)), **both_backends(folder)}


@torch.no_grad()
def vqvae(folder: Path) -> Given:
    model = load(AutoModel, folder)
    code_ids = model.encode(pixels(2, 3, 8, 8))
    return {"codes": code_ids, "pictures": model.decode(code_ids), **both_backends(folder)}


dvae = vqvae


@torch.no_grad()
def trocr(folder: Path) -> Given:
    model, processor = load(AutoModelForImageTextToText, folder), load(AutoProcessor, folder)
    batch = processor(images=pictures(), text=["ab", "cab"])
    seen = {name: batch[name] for name in ("pixel_values", "pixel_mask") if name in batch}
    read = model.generate(**seen)
    return {
        "inputs": dict(batch),
        "loss": model(**batch).loss,
        "logits": model(**batch).logits,
        "read": read,
        "beams": model.generate(**seen, num_beams=2),
        "text": processor.batch_decode(read),
        "class": type(model).__name__,
    }


trocr_on_clip = trocr


@torch.no_grad()
def trocr_text(folder: Path) -> Given:
    model = load(AutoModelForCausalLM, folder)
    ids = torch.tensor([[1, 5, 6, 7], [1, 9, 8, 4]])
    pictures_seen = pixels(2, 6, model.config.cross_attention_size)
    return {"logits": model(input_ids=ids, encoder_hidden_states=pictures_seen).logits}


@torch.no_grad()
def cnn_lstm(folder: Path) -> Given:
    model, processor = load(AutoModelForImageTextToText, folder), load(AutoProcessor, folder)
    batch = processor(images=pictures(), text=["a dog", "a"])
    return {
        "inputs": dict(batch),
        "logits": model(**batch).logits,
        "written": model.generate(pixel_values=batch["pixel_values"], max_new_tokens=6),
    }


cnn_lstm_on_resnet = cnn_lstm


@torch.no_grad()
def llava(folder: Path) -> Given:
    model, processor = load(AutoModelForImageTextToText, folder), load(AutoProcessor, folder)
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    text = processor.apply_chat_template(conversation[:1], add_generation_prompt=True)
    batch = processor(images=pictures()[:1], text=[text], return_tensors="pt")
    learnt = processor.encode_conversation(conversation, chat_template="vicuna_v1")
    shown = [{"role": "user", "content": [{"type": "image", "image": pictures()[0]}, {"type": "text", "text": "Hm?"}]}]
    answer = pipeline("image-text-to-text", model=str(folder), trust_remote_code=True)
    settings = {"max_new_tokens": 5, "do_sample": False}
    return {
        "text": text,
        "inputs": dict(batch),
        "learnt": {name: value for name, value in learnt.items() if name in ("input_ids", "labels")},
        "logits": model(**batch).logits,
        "answer": model.generate(**batch, **settings),
        "pipeline": answer(text=shown, generate_kwargs=settings, return_full_text=False)[0]["generated_text"],
    }


llava_on_swin = llava_on_vqvae = llava_on_clip = llava


# What only a process without hf_vlm is asked


def saved_again(auto_class: Any, folder: Path, out: Path) -> Given:
    """A loaded model saved, its processor too, and what is then in the folder."""
    load(auto_class, folder).save_pretrained(out)
    load(AutoProcessor, folder).save_pretrained(out)
    code = sorted(file.name for file in out.glob("*.py"))
    return {"code": code, "auto_map": json.loads((out / "config.json").read_text(encoding="utf-8"))["auto_map"]}


def trained(folder: Path, out: Path) -> Given:
    """One step of transformers' Trainer, and what it saved, loaded."""
    model = load(AutoModelForImageClassification, folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = [
        {"pixel_values": row, "labels": label} for row, label in zip(pixels(4, 3, 32, 32), (0, 1, 2, 1), strict=True)
    ]
    arguments = TrainingArguments(str(out), max_steps=1, report_to="none", save_strategy="no", use_cpu=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    loss = trainer.train().training_loss
    trainer.save_model()
    after, again = model.state_dict(), load(AutoModelForImageClassification, out).state_dict()
    return {
        "loss is a number": 0 < loss < 100,
        "all learnt": not [name for name in after if torch.equal(after[name], before[name])],
        "reloaded": all(torch.equal(value, after[name]) for name, value in again.items()),
    }


def part_alone(folder: Path, out: Path) -> Given:
    """The vision model of a LLaVA, saved by itself and loaded with the code that came along."""
    part = load(AutoModelForImageTextToText, folder).vision_model
    part.save_pretrained(out)
    again = load(AutoModel, out)
    same = all(torch.equal(value, again.state_dict()[name]) for name, value in part.state_dict().items())
    return {"same": same, "code": sorted(file.name for file in out.glob("*.py")), "class": type(again).__name__}


def one_copy_of_each_class(folder: Path) -> Given:
    """Whether config, model, parts and processor of a folder come from one place."""
    config, model = load(AutoConfig, folder), load(AutoModelForImageTextToText, folder)
    processor = load(AutoProcessor, folder)
    return {
        "config": type(model.config) is type(config) is type(model).config_class,
        "part": type(model.config.vision_config) is type(model.vision_model).config_class,
        "modules": len({type(found).__module__ for found in (config, model, model.vision_model, processor)}),
    }


def over_the_hub(folder: Path, user: str) -> Given:
    """A folder uploaded, loaded by name, and pushed again by what was loaded."""
    first, again = f"{user}/first", f"{user}/again"
    HfApi().create_repo(first)
    HfApi().upload_folder(repo_id=first, folder_path=folder)
    found = {"first": llava(Path(first))}
    load(AutoModelForImageTextToText, Path(first)).push_to_hub(again)
    load(AutoProcessor, Path(first)).push_to_hub(again)
    return {
        **found,
        "again": llava(Path(again)),
        "modules": type(load(AutoModel, Path(again))).__module__.split(".")[:3],
    }


def main(folders: Path, results: Path, user: str | None = None) -> None:
    assert importlib.util.find_spec("hf_vlm") is None
    found: Given = {}
    scratch = Path(tempfile.mkdtemp())

    def note(name: str, run: Callable[[], Given]) -> None:
        try:
            found[name] = run()
        except Exception:
            found[name] = traceback.format_exc()

    if user is not None:
        note("hub", lambda: over_the_hub(folders / "llava", user))
        torch.save(found, results)
        return
    there = sorted(folder for folder in folders.iterdir() if folder.name in globals())
    for folder in there:
        note(folder.name, lambda folder=folder: globals()[folder.name](folder))
    for name, auto_class in (
        ("llava", AutoModelForImageTextToText),
        ("trocr", AutoModelForImageTextToText),
        ("vit", AutoModelForImageClassification),
        ("vqvae", AutoModel),
    ):
        if (folders / name) in there:
            out = scratch / f"again {name}"
            note(f"saved again: {name}", lambda n=name, a=auto_class, o=out: saved_again(a, folders / n, o))
            note(f"loaded again: {name}", lambda n=name, o=out: globals()[n](o))
    if (folders / "vit") in there:
        note("trained", lambda: trained(folders / "vit", scratch / "trained"))
    if (folders / "llava") in there:
        note("part alone", lambda: part_alone(folders / "llava", scratch / "part"))
        note("one copy", lambda: one_copy_of_each_class(folders / "llava"))
    found["registered"] = [name for name in CONFIG_MAPPING if name.startswith("hf_vlm")]
    found["imported"] = [name for name in sys.modules if name.split(".")[0] == "hf_vlm"]
    torch.save(found, results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
