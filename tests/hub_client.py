"""What the tests of the Hub do in processes of their own, as `HF_ENDPOINT` is read on import:

    python -m tests.hub_client '[["pull", {"name": "me/vit", "file": "answers.pt"}], ...]'

does the steps one after the other and prints a JSON list: what each gave, or how it failed.
"""

import contextlib
import dataclasses
import io
import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    TrOCRConfig,
    TrOCRForCausalLM,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    pipeline,
)

import hf_vlm
from hf_vlm import cli
from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.data.word_tokenizer import build_word_tokenizer
from hf_vlm.parts.base_weights import BASE_FILE
from hf_vlm.parts.checkpoint_files import find_file, read_config, read_weights
from hf_vlm.parts.weight_report import hash_weights
from hf_vlm.sharing.push import push as push_to_hub
from hf_vlm.training.lora import LoraSection, add_lora, save_adapter
from tests.models.cnn_lstm.tiny_captioners import tiny_captioner
from tests.models.swin.tiny_swin import tiny_swin
from tests.models.trocr.tiny_models import tiny_reader
from tests.tiny_chat import tiny_chat_model
from tests.tiny_tokenizers import random_pictures, tiny_dvae, tiny_vqvae

ALPHABET = " abcdefghijklmnopqrstuvwxyz"


def _square(pixels: int) -> dict[str, Any]:
    return {"size": {"height": pixels, "width": pixels}}


def _shaken(model: Any, std: float) -> Any:
    """With weights that matter, biases too."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return model


def _cnn_lstm() -> tuple[Any, Any]:
    tokenizer = build_word_tokenizer(["a dog runs", "a cat sits"], min_count=1)
    pictures = hf_vlm.VisionTransformerImageProcessor(**_square(32))
    return tiny_captioner(vocab_size=len(tokenizer)), hf_vlm.CnnLstmProcessor(pictures, tokenizer)


def _vae() -> tuple[Any, Any]:
    config = hf_vlm.VAEConfig(
        image_size=8, hidden_channels=(8, 8), num_residual_blocks=(0, 0), latent_channels=4, likelihood_scale=0.1
    )
    return _shaken(hf_vlm.VAEModel(config), 0.03), hf_vlm.VAEImageProcessor(**_square(8))


def _vit() -> tuple[Any, Any]:
    config = hf_vlm.VisionTransformerConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, num_labels=5
    )
    model = _shaken(hf_vlm.VisionTransformerForImageClassification(config), 0.2)
    return model, hf_vlm.VisionTransformerImageProcessor(**_square(32))


def _swin() -> tuple[Any, Any]:
    model = tiny_swin(hf_vlm.SwinTransformerForImageClassification, num_labels=5)
    return model, hf_vlm.SwinTransformerImageProcessor(**_square(32))


def _trocr() -> tuple[Any, Any]:
    tokenizer = build_character_tokenizer(alphabet=ALPHABET)
    pictures = hf_vlm.VisionTransformerImageProcessor(
        size={"height": 16, "width": 48}, keep_aspect_ratio=True, pad_multiple=8, do_convert_grayscale=True
    )
    model = tiny_reader(text={"vocab_size": len(tokenizer)})
    return model, hf_vlm.TrOCREncoderDecoderProcessor(pictures, tokenizer)


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "cnn_lstm": _cnn_lstm,
    "vae": _vae,
    "vqvae": lambda: (tiny_vqvae(), hf_vlm.VQVAEImageProcessor(**_square(8))),
    "dvae": lambda: (tiny_dvae(), hf_vlm.DVAEImageProcessor(**_square(8))),
    "vit": _vit,
    "swin": _swin,
    "trocr": _trocr,
    "llava": tiny_chat_model,  # assembled: it has a report of its weights
}
WITH_TEXT = ("cnn_lstm", "trocr", "llava")
CLASSIFIERS = ("vit", "swin")


def tiny(kind: str, seed: int = 0) -> tuple[PreTrainedModel, Any]:
    """A model of an architecture and its processor, the same in every process."""
    torch.manual_seed(seed)
    model, processor = MODELS[kind]()
    if seed:  # some builders set a seed of their own
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), processor


@torch.no_grad()
def answers(kind: str, model: Any, processor: Any) -> dict[str, torch.Tensor]:
    """What a model says to a picture, from the picture's file to the last tensor."""
    picture: Image.Image = random_pictures(1, (40, 30))[0]
    if kind in WITH_TEXT:
        text = f"{processor.image_token} ab?" if kind == "llava" else None
        inputs = processor(images=picture, text=text, return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        if kind == "llava":
            logits = model(**inputs).logits
        else:
            labels = torch.tensor([[5, 4, 6, 5]])
            logits = model(**inputs, labels=labels).logits
        return {"pixel_values": inputs["pixel_values"], "logits": logits, "written": written}
    inputs = processor(picture, return_tensors="pt")
    if kind in CLASSIFIERS:
        return {**inputs, "logits": model(**inputs).logits}
    return {**inputs, "codes": model.encode(**inputs), "picture": model.reconstruct(**inputs)}


def load(kind: str, name: str, **where: Any) -> tuple[Any, Any]:
    """A model and its processor by auto classes."""
    auto_class = AutoModelForImageClassification if kind in CLASSIFIERS else AutoModel
    processors = AutoProcessor if kind in WITH_TEXT else AutoImageProcessor
    return auto_class.from_pretrained(name, **where).eval(), processors.from_pretrained(name, **where)


def told(kind: str, model: Any, processor: Any, file: str) -> dict[str, Any]:
    """What a test compares: outputs in a file, the rest as it is."""
    tensors = answers(kind, model, processor)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    report = getattr(model, "weight_report", None)
    return {
        "model": type(model).__name__,
        "processor": type(processor).__name__,
        "weights": hash_weights(model.state_dict()),
        "report": None if report is None else dataclasses.asdict(report),
    }


# Steps


def push(
    kind: str, name: str, file: str, seed: int = 0, with_processor: bool = True, **settings: Any
) -> dict[str, Any]:
    """Push a tiny model and its processor."""
    model, processor = tiny(kind, seed)
    result = told(kind, model, processor, file)
    commit = str(model.push_to_hub(name, **settings)).rpartition("/")[2]
    if with_processor:
        settings.pop("max_shard_size", None)
        commit = str(processor.push_to_hub(name, **settings)).rpartition("/")[2]
    return result | {"commit": commit}


def pull(kind: str, name: str, file: str, **where: Any) -> dict[str, Any]:
    """Load a model and its processor."""
    model, processor = load(kind, name, **where)
    return told(kind, model, processor, file)


def push_folder(folder: str, name: str, **settings: Any) -> dict[str, Any]:
    """`hf-vlm push`: what came of it, what it says, and what it warned of."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("hf_vlm.sharing.push").addHandler(handler)
    try:
        pushed = push_to_hub(folder, name, **settings)
    finally:
        logging.getLogger("hf_vlm.sharing.push").removeHandler(handler)
    return {**pushed.to_dict(), "said": str(pushed), "warnings": heard}


def save_and_push(kind: str, name: str, folder: str, file: str, seed: int = 0, **settings: Any) -> dict[str, Any]:
    """Save a tiny model in a folder and push what was written; what lies in the folder then."""
    model, processor = tiny(kind, seed)
    result = told(kind, model, processor, file)
    model.save_pretrained(folder, push_to_hub=True, repo_id=name, **settings)
    files = sorted(path.name for path in Path(folder).iterdir())
    commit = HfApi().model_info(name).sha
    processor.push_to_hub(name)
    return result | {"files": files, "commit": commit}


def tag(name: str, tag: str) -> None:
    HfApi().create_tag(name, tag=tag)


def push_adapter(base: str, name: str, folder: str, file: str) -> dict[str, Any]:
    """An adapter of a base that has a Hub name, pushed as the folder that `save_adapter` writes."""
    model, processor = load("llava", base)
    adapted = add_lora(model, LoraSection(rank=2, alpha=6, dropout=0.0))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    adapted.eval()
    save_adapter(adapted, folder)
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path=folder)
    save_file({name: tensor.contiguous() for name, tensor in answers("llava", adapted, processor).items()}, file)
    return {"base": json.loads((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"]}


def pull_adapter(name: str, base: str, file: str) -> dict[str, Any]:
    """Load an adapter by its own name alone; its processor lies beside the base."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = AutoModelForImageTextToText.from_pretrained(name).eval()
    tensors = answers("llava", model, AutoProcessor.from_pretrained(base))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    hashes = json.loads(Path(find_file(name, BASE_FILE) or "").read_text())["sha256"]
    return {"hashes": hashes, "warnings": [str(one.message) for one in caught if "hf_vlm" in one.filename]}


def push_card(name: str, text: str) -> None:
    """Put a text into a repository's card, as its author writes it."""
    card = ModelCard.load(name)
    card.text += text
    card.data.license = "apache-2.0"
    card.push_to_hub(name)


def push_again(name: str, to: str, folder: str) -> dict[str, Any]:
    """Load, save, load what was saved, and push that: the report of an assembled model goes all the way."""
    model = AutoModelForImageTextToText.from_pretrained(name)
    model.save_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model.push_to_hub(to)
    AutoProcessor.from_pretrained(name).push_to_hub(to)
    return {"report": dataclasses.asdict(model.weight_report)}


def card(name: str) -> dict[str, Any]:
    loaded = ModelCard.load(name)
    return {"text": loaded.text, "license": loaded.data.license}


def push_foreign(vit: str, trocr: str, file: str) -> None:
    """Models of transformers' own classes, and what they say."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    classifier = ViTForImageClassification(ViTConfig(**small, image_size=32, patch_size=8, num_labels=5)).eval()
    encoder = ViTModel(ViTConfig(**small, image_size=16, patch_size=8), add_pooling_layer=False)
    decoder = TrOCRForCausalLM(
        TrOCRConfig(
            vocab_size=30,
            d_model=16,
            decoder_layers=2,
            decoder_attention_heads=2,
            decoder_ffn_dim=24,
            max_position_embeddings=18,
            pad_token_id=1,
        )
    )
    reader = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    reader.config.decoder_start_token_id, reader.config.pad_token_id = 2, 1
    with torch.no_grad():
        for parameter in (*classifier.parameters(), *reader.parameters()):
            parameter.normal_(std=0.2)
    classifier.push_to_hub(vit)
    reader.push_to_hub(trocr, max_shard_size="10KB")
    save_file(_foreign_answers(classifier, reader), file)


def pull_foreign(vit: str, trocr: str, file: str) -> dict[str, Any]:
    """The same repositories by our classes."""
    classifier = hf_vlm.VisionTransformerForImageClassification.from_pretrained(vit).eval()
    reader = hf_vlm.TrOCREncoderDecoderForConditionalGeneration.from_pretrained(trocr).eval()
    save_file(_foreign_answers(classifier, reader), file)
    return {"models": [type(classifier).__name__, type(reader).__name__]}


@torch.no_grad()
def _foreign_answers(classifier: Any, reader: Any) -> dict[str, torch.Tensor]:
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    read = reader(pixel_values=pictures[..., :16, :16], labels=torch.tensor([[4, 5, 2], [6, 7, 2]]))
    return {"classes": classifier(pixel_values=pictures).logits, "texts": read.logits}


def pipe(task: str, name: str) -> Any:
    """What a pipeline made by a Hub name says to a picture."""
    picture: Any = random_pictures(1, (40, 30))[0]
    if task == "image-text-to-text":
        given = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "ab?"}]}]
        said = pipeline(task, model=name)(text=given, max_new_tokens=4, return_full_text=False)
        return [{"generated_text": said[0]["generated_text"]}]  # beside it is the picture
    if task == "image-tokenization":
        return pipeline(task, model=name)(picture)["code_ids"].tolist()
    return pipeline(task, model=name)(picture)


def refused(name: str, by: str, **where: Any) -> None:
    """Ask for what can't be had."""
    model_class = hf_vlm.VisionTransformerForImageClassification
    {
        "class": model_class.from_pretrained,
        "auto class": AutoModelForImageClassification.from_pretrained,
        "config": read_config,
        "weights": read_weights,
    }[by](name, **where)


def command(*arguments: str) -> dict[str, Any]:
    """`hf-vlm ...`: what it printed and returned."""
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        status = cli.main(list(arguments))
    return {"status": status, "out": printed.getvalue(), "err": said.getvalue()}


STEPS: dict[str, Callable[..., Any]] = {
    step.__name__: step
    for step in (
        push,
        push_folder,
        save_and_push,
        pull,
        tag,
        push_adapter,
        pull_adapter,
        push_card,
        push_again,
        card,
        push_foreign,
        pull_foreign,
        pipe,
        refused,
    )
}


def main() -> None:
    """Does the steps of the command line."""
    waits = time.sleep
    time.sleep = lambda seconds: waits(min(float(seconds), 0.02))  # huggingface_hub tries again for half a minute
    results = []
    for name, arguments in json.loads(sys.argv[1]):
        try:
            results.append(command(*arguments) if name == "command" else STEPS[name](**arguments))
        except Exception as error:  # what it is, is for the test to judge
            traceback.print_exc()
            kinds = [kind.__name__ for kind in type(error).__mro__]
            results.append({"error": type(error).__name__, "kinds": kinds, "message": str(error)})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
