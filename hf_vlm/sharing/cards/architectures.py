"""What a card says of an architecture: what it is, how it is used and adapted, and what the Hub files it under."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """One of the architectures of hf-vlm.

    Attributes:
        name: in words.
        is_what: two sentences.
        paper: authors, title, link.
        tags: for the Hub.
        recipes: each task that it learns -> the shipped recipe that goes on with a model, and what has to be set besides.
    """

    name: str
    is_what: str
    paper: str
    tags: tuple[str, ...]
    recipes: dict[str, str]


_ANEW = "model.config=null model.pretrained=NAME"
_OF_PARTS = "model.vision=null model.text=null model.pretrained=NAME"

ARCHITECTURES: dict[str, Architecture] = {
    "hf_vlm_llava": Architecture(
        "LLaVA",
        "A projector brings the features of a vision encoder among the word embeddings of a causal language model, which reads "
        "pictures and words as one sequence and answers. In training the assistant's words alone carry loss.",
        "Liu et al. 2023, Visual Instruction Tuning, https://arxiv.org/abs/2304.08485",
        ("llava", "visual-instruction-tuning"),
        {
            "chat": "llava-chat model.pretrained=NAME",
            "caption": f"caption-llava {_OF_PARTS}",
            "vqa": "vqa-llava model.pretrained=NAME",
            "nlvr": "nlvr-llava model.pretrained=NAME",
            "translate": "translate-llava model.pretrained=NAME",
        },
    ),
    "hf_vlm_trocr": Architecture(
        "TrOCR",
        "A vision encoder turns a picture into tokens; a Transformer decoder, which looks at them by cross-attention, writes the "
        "text token by token. It needs no detector of characters and no lexicon.",
        "Li et al. 2023, TrOCR: Transformer-based Optical Character Recognition with Pre-trained Models, "
        "https://arxiv.org/abs/2109.10282",
        ("trocr", "image-to-text"),
        {
            "ocr": "trocr-finetune-lines model.pretrained=NAME",
            "caption": f"caption-trocr {_OF_PARTS}",
            "vqa": f"vqa-trocr {_OF_PARTS}",
        },
    ),
    "hf_vlm_cnn_lstm": Architecture(
        "CNN + LSTM",
        "A vision encoder sees the picture, and an LSTM writes its caption word by word. With attention it looks "
        "over the encoder's "
        "map at every word (Show, Attend and Tell), without it sees the map's mean once (Show and Tell).",
        "Vinyals et al. 2015, Show and Tell, https://arxiv.org/abs/1411.4555; Xu et al. 2015, Show, Attend and Tell, "
        "https://arxiv.org/abs/1502.03044",
        ("cnn-lstm", "image-captioning"),
        {"caption": f"caption-cnn-lstm {_OF_PARTS}"},
    ),
    "hf_vlm_vit": Architecture(
        "Vision Transformer",
        "A picture is cut into patches, and a Transformer encoder reads their embeddings as a sequence. Every "
        "patch attends to every "
        "other in every layer.",
        "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929",
        ("vit",),
        {
            "image-classification": f"vit-image-classification {_ANEW}",
            "masked-image-modeling": f"vit-masked-pretraining {_ANEW}",
        },
    ),
    "hf_vlm_swin": Architecture(
        "Swin Transformer",
        "A Transformer encoder whose attention stays within windows, which are shifted from layer to layer. "
        "Patches are merged on the "
        "way, so that later stages see larger parts of the picture, and cost grows with its area.",
        "Liu et al. 2021, Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, "
        "https://arxiv.org/abs/2103.14030",
        ("swin",),
        {"image-classification": f"swin-image-classification {_ANEW}"},
    ),
    "hf_vlm_vae": Architecture(
        "VAE",
        "A convolutional encoder gives a normal distribution over continuous latents at each place of a grid, "
        "and a decoder makes a "
        "picture of them. Both learn by the variational bound.",
        "Kingma and Welling 2014, Auto-Encoding Variational Bayes, https://arxiv.org/abs/1312.6114",
        ("vae", "image-tokenization"),
        {"image-tokenization": f"vae-tokenizer {_ANEW}"},
    ),
    "hf_vlm_vqvae": Architecture(
        "VQ-VAE",
        "A convolutional encoder gives a vector at each place of a grid, which is replaced by a code of a learnt "
        "set; a decoder makes "
        "a picture of the codes. So a picture becomes a grid of numbers, and back.",
        "van den Oord et al. 2017, Neural Discrete Representation Learning, https://arxiv.org/abs/1711.00937",
        ("vq-vae", "image-tokenization"),
        {"image-tokenization": f"vqvae-tokenizer {_ANEW}"},
    ),
    "hf_vlm_dvae": Architecture(
        "discrete VAE",
        "A convolutional encoder gives a distribution over codes at each place of a grid, drawn from by "
        "Gumbel-softmax in training; a "
        "decoder makes a picture of the codes. So a picture becomes a grid of numbers, and back.",
        "Jang et al. 2017, https://arxiv.org/abs/1611.01144; Ramesh et al. 2021, Zero-Shot Text-to-Image Generation, "
        "https://arxiv.org/abs/2102.12092",
        ("dvae", "image-tokenization"),
        {"image-tokenization": f"dvae-tokenizer {_ANEW}"},
    ),
}

_TAGS = {  # what the Hub files a task under
    "ocr": "image-to-text",
    "caption": "image-to-text",
    "vqa": "visual-question-answering",
    "nlvr": "visual-question-answering",
    "translate": "image-text-to-text",
    "chat": "image-text-to-text",
    "image-classification": "image-classification",
    "masked-image-modeling": "image-feature-extraction",
    "image-tokenization": "image-feature-extraction",
}
_TELLING = (  # settings that tell models of an architecture apart
    *(
        "attention",
        "image_size",
        "patch_size",
        "window_size",
        "hidden_size",
        "embed_dim",
        "num_hidden_layers",
        "depths",
    ),
    *("num_linear_layers", "num_codes", "code_dim", "latent_channels"),
)
_QUESTIONS = {"caption": "Provide a one-sentence caption for the provided image."}


def variant(model_type: str, config: Mapping[str, Any]) -> str:
    """What this model is among those of its architecture, as its config says; "" if it says nothing.

    Args:
        config: `config.json`.
    """
    kinds = {part: (config.get(f"{part}_config") or {}).get("model_type") for part in ("vision", "text")}
    told = {
        "vision encoder": kinds["vision"],
        "language model" if model_type == "hf_vlm_llava" else "decoder": kinds["text"],
        **{name.replace("_", " "): config.get(name) for name in _TELLING},
    }
    kept = {name: value for name, value in told.items() if value not in (None, [], "")}
    return "; ".join(f"{name} {_short(value)}" for name, value in kept.items())


def _short(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def hub_task(task: str) -> str:
    """The Hub's name of a task of ours."""
    return _TAGS.get(task, "image-text-to-text")


def task_among(tags: Iterable[str]) -> str:
    """The task of ours that a card's tags name; "" if none does."""
    return next((tag for tag in tags if tag in _TAGS), "")


def pipeline_tag(model_type: str, class_name: str, task: str) -> str:
    """What the Hub files a model under, which is also what it can be used as.

    Args:
        class_name: of the saved model.
        task: that it learnt; "" if that is not known.
    """
    if model_type == "hf_vlm_llava":
        return "image-text-to-text"
    if model_type in ("hf_vlm_trocr", "hf_vlm_cnn_lstm"):
        return _TAGS.get(task, "image-to-text")
    return "image-classification" if class_name.endswith("ForImageClassification") else "image-feature-extraction"


def usage(model_type: str, class_name: str, task: str, name: str) -> str:
    """Python that uses a whole model on a picture.

    Args:
        name: Hub name or folder.
    """
    if model_type == "hf_vlm_llava":
        return _program(
            ["from transformers import pipeline"],
            f'chat = pipeline("image-text-to-text", model={json.dumps(name)})',
            f'question = "{_QUESTIONS.get(task, "What do you see?")}"',
            'picture = {"type": "image", "image": "picture.png"}',
            'messages = [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]',
            'print(chat(text=messages, max_new_tokens=64, return_full_text=False)[0]["generated_text"])',
        )
    if _writes(model_type):
        if task == "vqa":
            return _program(
                ["from transformers import pipeline"],
                f'answerer = pipeline("picture-question-answering", model={json.dumps(name)})',
                'print(answerer("picture.png", question="What is this?"))',
            )
        of_model = "text-recognition" if model_type == "hf_vlm_trocr" else "image-captioning"
        of_task = {"ocr": "text-recognition", "caption": "image-captioning"}.get(task, of_model)
        return _program(
            ["from transformers import pipeline"],
            f'writer = pipeline("{of_task}", model={json.dumps(name)})',
            'print(writer("picture.png"))',
        )
    if class_name.endswith("ForImageClassification"):
        return _program(
            ["from transformers import pipeline"],
            f'classifier = pipeline("image-classification", model={json.dumps(name)})',
            'print(classifier("picture.png"))',
        )
    if model_type in ("hf_vlm_vqvae", "hf_vlm_dvae"):
        return _program(
            ["from transformers import pipeline"],
            f'tokenizer = pipeline("image-tokenization", model={json.dumps(name)})',
            'print(tokenizer("picture.png")["code_ids"])  # rows of numbers, one a place',
        )
    imports = ["import torch", "from PIL import Image", "from transformers import AutoImageProcessor, AutoModel"]
    steps = [
        f"model = AutoModel.from_pretrained({json.dumps(name)})",
        f"processor = AutoImageProcessor.from_pretrained({json.dumps(name)})",
        'inputs = processor(images=Image.open("picture.png").convert("RGB"), return_tensors="pt")',
        "with torch.no_grad():",
        "    outputs = model(**inputs)",
    ]
    if model_type == "hf_vlm_vae":
        return _program(imports, *steps, "print(outputs.reconstruction.shape)  # pixels in [0, 1]")
    return _program(imports, *steps, "print(outputs.last_hidden_state.shape)  # a vector a patch, or a place")


def adapter_usage(model_type: str, class_name: str, task: str, name: str, base: str, has_processor: bool) -> str:
    """Python that puts an adapter on its base and uses both on a picture.

    Args:
        class_name: of the base.
        name, base: Hub names or folders.
        has_processor: whether the processor is beside the adapter.
    """
    auto_class, auto_processor = _auto_classes(model_type, class_name)
    imports = [
        "import torch",
        "from peft import PeftModel",
        "from PIL import Image",
        f"from transformers import {', '.join(sorted((auto_class, auto_processor)))}",
    ]
    loading = [
        f"base = {auto_class}.from_pretrained({json.dumps(base)})",
        f"model = PeftModel.from_pretrained(base, {json.dumps(name)}).eval()",
        f"processor = {auto_processor}.from_pretrained({json.dumps(name if has_processor else base)})",
    ]
    return _program(imports, *loading, *_steps_of_a_picture(model_type, task))


def code_usage(model_type: str, class_name: str, task: str, name: str) -> str:
    """Python that uses a model on a picture by the code in its own folder, where hf-vlm need not be installed.

    Args:
        class_name: of the model.
        name: Hub name or folder.
    """
    auto_class, auto_processor = _auto_classes(model_type, class_name)
    names = ", ".join(sorted((auto_class, auto_processor)))
    imports = ["import torch", "from PIL import Image", f"from transformers import {names}"]
    loading = [
        f"model = {auto_class}.from_pretrained({json.dumps(name)}, trust_remote_code=True).eval()",
        f"processor = {auto_processor}.from_pretrained({json.dumps(name)}, trust_remote_code=True)",
    ]
    return "\n".join([*imports, "", *loading, *_steps_of_a_picture(model_type, task)])


def _writes(model_type: str) -> bool:
    return model_type in ("hf_vlm_llava", "hf_vlm_trocr", "hf_vlm_cnn_lstm")


def _auto_classes(model_type: str, class_name: str) -> tuple[str, str]:
    """Names of the Auto classes that make a model and its processor."""
    if _writes(model_type):
        return "AutoModelForImageTextToText", "AutoProcessor"
    kinds = ("ImageClassification", "MaskedImageModeling")
    kind = next((kind for kind in kinds if class_name.endswith(kind)), "")
    return (f"AutoModelFor{kind}" if kind else "AutoModel"), "AutoImageProcessor"


def _steps_of_a_picture(model_type: str, task: str) -> list[str]:
    """Lines of Python that use a `model` and a `processor` on a picture."""
    steps = ['picture = Image.open("picture.png").convert("RGB")']
    if model_type == "hf_vlm_llava":
        question = _QUESTIONS.get(task, "What do you see?")
        return [
            *steps,
            f'content = [{{"type": "image", "image": picture}}, {{"type": "text", "text": "{question}"}}]',
            'messages = [{"role": "user", "content": content}]',
            'settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}',
            "inputs = processor.apply_chat_template(messages, **settings)",
            "with torch.no_grad():",
            '    answer = model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]',
            "print(processor.decode(answer, skip_special_tokens=True))",
        ]
    if _writes(model_type):
        asked = ', prompt=["What is this?"]' if task == "vqa" else ""
        return [
            *steps,
            f'inputs = processor(images=[picture]{asked}, return_tensors="pt")',
            "with torch.no_grad():",
            "    print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0])",
        ]
    return [
        *steps,
        'inputs = processor(images=picture, return_tensors="pt")',
        "with torch.no_grad():",
        "    outputs = model(**inputs)",
        'print({name: value.shape for name, value in outputs.items() if hasattr(value, "shape")})',
    ]


def _program(imports: list[str], *steps: str) -> str:
    return "\n".join([*imports, "", "import hf_vlm  # makes its models known to transformers", "", *steps])
