"""The processor that goes with an exported LLaVA: transformers' `LlavaProcessor`, if it makes the same tokens and pixels.

What differs between the two is not concluded from names and settings but tried: on pictures of several kinds, and on
conversations.
"""

import copy
import tempfile
import warnings
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from tokenizers import processors
from transformers import LlavaImageProcessor, LlavaProcessor, PreTrainedTokenizerBase
from transformers.image_processing_backends import PilBackend
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor
from hf_vlm.parts.vision_features import describe_vision_model
from hf_vlm.sharing.stock.llava import FAULTS, INSTEAD, stock_strategy

_PIXEL_TOLERANCE = 1e-5


def to_stock_processor(processor: Any, model: Any) -> tuple[LlavaProcessor, list[str]]:
    """Transformers' processor of LLaVA that makes of pictures and conversations what ours makes.

    Args:
        processor: a `LlavaVisionLanguageProcessor`.
        model: the model that it belongs to.

    Returns: the processor, as it is after having been saved and loaded, and notes: what it doesn't do that ours does.

    Raises:
        ValueError: if no image processor of transformers makes the same pixels, to 1e-5, or the tokens of a conversation come
            out otherwise.
    """
    config = model.config
    strategy = stock_strategy(config)
    image_processor = _image_processor(processor)
    tokenizer, notes = _tokenizer(processor)
    patch_size, num_additional = _placeholder_count(processor, config, strategy)
    stock = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy=strategy,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=num_additional,
    )
    backend = {"backend": "pil"} if isinstance(image_processor, PilBackend) else {}
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # a tokenizer is made anew of its files: what counts is what comes back
        stock.save_pretrained(folder)
        loaded: Any = LlavaProcessor.from_pretrained(folder, **backend)
    loaded.tokenizer.name_or_path = processor.tokenizer.name_or_path
    _compare_conversations(processor, loaded)
    return loaded, notes + _picture_notes(processor, image_processor)


def _placeholder_count(processor: Any, config: Any, strategy: str) -> tuple[int, int]:
    """`patch_size` and `num_additional_image_tokens`, of which `LlavaProcessor` counts a picture's tokens.

    It counts (height // patch_size) * (width // patch_size) + additional, and one less where the first token is cut off.
    """
    height, width = config.image_size
    rows, columns = describe_vision_model(config.vision_config, (height, width), config.vision_feature_layer).grid
    patch_size = height // rows
    if (patch_size, patch_size) != (height // rows, width // columns):
        patch_size = min(
            height // rows, width // columns
        )  # patches that are not square: the difference is made up below
    counted = (height // patch_size) * (width // patch_size) - (strategy == "default")
    return patch_size, processor.num_image_tokens - counted


def _image_processor(processor: LlavaVisionLanguageProcessor) -> Any:
    """An image processor of transformers that makes the same pixels as ours, which squares pictures up itself.

    Raises:
        ValueError: if there is none.
    """
    own = processor.image_processor
    pads = processor.image_aspect_ratio == "pad"
    candidates = []
    if not pads and type(own).__module__.startswith("transformers."):
        as_it_is = copy.deepcopy(own)
        as_it_is.do_convert_rgb = True
        candidates.append(as_it_is)
    mean = _per_channel(getattr(own, "image_mean", None), 0.0)
    height, width = processor.image_size or (None, None)
    settings = {
        name: copy.deepcopy(getattr(own, name))
        for name in ("size", "resample", "do_resize", "do_rescale", "rescale_factor")
        if getattr(own, name, None) is not None
    }
    stock_class: Any = LlavaImageProcessorPil if isinstance(own, PilBackend) else LlavaImageProcessor
    candidates.append(
        stock_class(
            **settings,
            do_pad=pads,
            do_center_crop=bool(getattr(own, "do_center_crop", False)),
            crop_size={"height": height, "width": width},  # also the size of what comes out, for whoever asks
            do_normalize=bool(getattr(own, "do_normalize", False)),
            image_mean=mean,
            image_std=_per_channel(getattr(own, "image_std", None), 1.0),
            do_convert_rgb=True,
        )
    )
    largest = float("inf")
    for candidate in candidates:
        largest = min(largest, _largest_pixel_difference(processor, candidate, _probe_pictures()))
        if largest <= _PIXEL_TOLERANCE:
            if getattr(candidate, "crop_size", None) is None:
                candidate.crop_size = {"height": height, "width": width}
            return candidate
    raise ValueError(
        f"The image processor must be one that `LlavaImageProcessor` can stand for, got `{type(own).__name__}`, whose pixels it "
        f"misses by {largest:.2g}. {INSTEAD}"
    )


def _per_channel(value: Any, otherwise: float) -> list[float]:
    values = [otherwise] if value is None else [value] if isinstance(value, int | float) else list(value)
    return [float(number) for number in (values * 3 if len(values) == 1 else values)]


def _largest_pixel_difference(processor: Any, image_processor: Any, pictures: list[Image.Image]) -> float:
    wanted = processor.prepare_images(pictures)
    try:
        got = image_processor(pictures, return_tensors="pt")["pixel_values"]
    except FAULTS:
        return float("inf")
    return float((got - wanted).abs().max()) if got.shape == wanted.shape else float("inf")


def _probe_pictures() -> list[Image.Image]:
    """Noise and slopes: wide, tall, square, odd, small, grey."""
    generator = np.random.default_rng(0)
    pictures = []
    for width, height in ((61, 40), (40, 61), (64, 64), (37, 12), (7, 9), (640, 427)):
        noise = generator.integers(0, 256, (height, width, 3))
        slope = np.linspace(0, 255, width)[None, :, None]
        pictures.append(Image.fromarray(((noise + slope) / 2).astype(np.uint8)))
    return [*pictures, pictures[0].convert("L")]


def _picture_notes(processor: Any, image_processor: Any) -> list[str]:
    """Which unusual pictures come out otherwise, tried."""
    clear = _probe_pictures()[0].convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    turned = _probe_pictures()[0]
    turned.getexif()[0x0112] = 6  # turned by a quarter
    wide = Image.fromarray((np.arange(61 * 40, dtype=np.uint16) * 26).reshape(40, 61))
    unusual = {
        "transparent": clear,
        "lying on the side with an EXIF tag that says so": turned,
        "of 16 bits": wide,
    }
    kinds = [
        name
        for name, picture in unusual.items()
        if _largest_pixel_difference(processor, image_processor, [picture]) > 0.05
    ]
    if not kinds:
        return []
    return [
        f"pictures {' or '.join(kinds)} come out otherwise than by our processor, where they are passed as Pillow's: convert "
        "them to upright 8 bit RGB before"
    ]


def _tokenizer(processor: Any) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer, padding at the left, and silent where the template writes the special tokens.

    `LlavaProcessor.apply_chat_template` lets a tokenizer add its special tokens unless the text begins with the start token.

    Raises:
        ValueError: if it is of a class of our own, or can't be kept from adding them.
    """
    tokenizer = copy.deepcopy(processor.tokenizer)
    if not type(tokenizer).__module__.startswith("transformers."):
        raise ValueError(f"The tokenizer must be one of transformers, got `{type(tokenizer).__name__}`. {INSTEAD}")
    tokenizer.padding_side = "left"
    tokenizer.init_kwargs["padding_side"] = "left"  # which is what a saved tokenizer remembers
    if not _adds_tokens(tokenizer):
        return tokenizer, []
    (text, *_) = [text for _, text in _rendered(processor)] or [""]
    if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        return tokenizer, []
    for name in ("add_bos_token", "add_eos_token"):
        if getattr(tokenizer, name, False):
            setattr(tokenizer, name, False)
            tokenizer.init_kwargs[name] = False
    if _adds_tokens(tokenizer) and hasattr(tokenizer, "backend_tokenizer"):
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    return tokenizer, [
        "the tokenizer came out adding no special tokens of its own: the chat template writes them, and transformers would add "
        "them to it; write them yourself into texts that the template did not make"
    ]


def _adds_tokens(tokenizer: Any) -> bool:
    return tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]


def _conversations() -> list[list[dict[str, Any]]]:
    """Prompts with 0, 1 and 3 pictures, over one turn and two, with words of the system."""
    pictures = _probe_pictures()

    def asked(text: str, *shown: Image.Image) -> dict[str, Any]:
        return {
            "role": "user",
            "content": [*({"type": "image", "image": picture} for picture in shown), {"type": "text", "text": text}],
        }

    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    return [
        [asked("What is it?")],
        [asked("What is it?", pictures[0])],
        [asked("Which differ?", *pictures[:2]), answer, asked("And this?", pictures[2])],
        [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, asked("What is it?", pictures[1])],
    ]


def _rendered(processor: Any) -> list[tuple[list[dict[str, Any]], str]]:
    """Conversations that the chat template accepts, and their texts."""
    rendered = []
    for conversation in _conversations() if processor.chat_template else ():
        try:
            text = processor.apply_chat_template(copy.copy(conversation), add_generation_prompt=True)
        except (ValueError, jinja2.TemplateError):  # some templates know no system
            continue
        rendered.append((conversation, text))
    return rendered


def _compare_conversations(processor: Any, stock: LlavaProcessor) -> None:
    """Checks that both make the same tokens and pixels of conversations.

    Raises:
        ValueError: if they don't.
    """
    for conversation, text in _rendered(processor):
        made = []
        for maker in (processor, stock):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made.append(
                    maker.apply_chat_template(
                        copy.deepcopy(conversation),
                        add_generation_prompt=True,
                        tokenize=True,
                        return_dict=True,
                        return_tensors="pt",
                    )
                )
        ours, theirs = made
        if ours["input_ids"].tolist() != theirs["input_ids"].tolist():
            raise ValueError(
                f"`LlavaProcessor` must make the same tokens of a conversation as ours, got {theirs['input_ids'].tolist()} for "
                f"{ours['input_ids'].tolist()}, of {text!r}. {INSTEAD}"
            )
