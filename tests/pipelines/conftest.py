"""A tiny random reader saved as a folder, and pictures for it."""

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import (
    TrOCRConfig,
    TrOCRForCausalLM,
    TrOCRProcessor,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_vlm import (
    TrOCREncoderDecoderConfig,
    TrOCREncoderDecoderForConditionalGeneration,
    TrOCREncoderDecoderProcessor,
    VisionTransformerImageProcessor,
)
from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer

LINES = ["a short line", "no", "a line that is much longer", "1914-1918", "deux étés", "it is late now"]


@pytest.fixture(autouse=True, scope="session")
def without_the_malformed_warning():
    """transformers 5.24 warns that `image-to-text` is gone in a way that logging can't format, which pytest raises."""
    logging.getLogger("transformers.pipelines").addFilter(lambda record: "has been removed" not in str(record.msg))


@pytest.fixture(scope="session")
def line_pictures() -> list[Image.Image]:
    """Six lines of different widths and heights."""
    pictures = []
    for index, text in enumerate(LINES):
        font = ImageFont.load_default(size=16 + index)
        picture = Image.new("L", (round(font.getlength(text)) + 8, 26 + index), 240)
        ImageDraw.Draw(picture).text((4, 2), text, fill=20, font=font)
        pictures.append(picture)
    return pictures


@pytest.fixture(scope="session")
def line_files(line_pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same as files."""
    folder = tmp_path_factory.mktemp("lines")
    for index, picture in enumerate(line_pictures):
        picture.save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(len(line_pictures))]


@pytest.fixture(scope="session")
def reader_folder(line_pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first random reader that reads different texts, some of several words, greedily and by beam search."""
    tokenizer = build_character_tokenizer(alphabet=" abé")
    image_processor = VisionTransformerImageProcessor(
        size={"height": 16, "width": 128}, keep_aspect_ratio=True, pad_multiple=8, do_convert_grayscale=True
    )
    processor = TrOCREncoderDecoderProcessor(image_processor, tokenizer, max_label_length=20)
    config = TrOCREncoderDecoderConfig(
        vision_config={
            "model_type": "hf_vlm_vit",
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_channels": 1,
            "image_size": (16, 128),
            "patch_size": (16, 8),
            "use_cls_token": False,
            "initializer_range": 0.3,
        },
        text_config={
            "model_type": "hf_vlm_trocr_text",
            "vocab_size": len(tokenizer),
            "hidden_size": 24,
            "num_attention_heads": 3,
            "cross_attention_size": 16,
            "max_position_embeddings": 20,
            "initializer_range": 0.3,
        },
    )
    inputs = processor(images=line_pictures)
    for seed in range(300):
        torch.manual_seed(seed)
        model = TrOCREncoderDecoderForConditionalGeneration(config).eval()
        greedy = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
        beam = processor.batch_decode(model.generate(**inputs, num_beams=3), skip_special_tokens=True)
        if greedy != beam and all(
            len(set(texts)) > 3 and sum(len(text.split()) > 1 for text in texts) > 1 for texts in (greedy, beam)
        ):
            break
    else:
        raise AssertionError("No random reader reads different texts of several words.")
    folder = tmp_path_factory.mktemp("reader")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def damaged_picture(line_files: list[str], tmp_path: Path) -> str:
    """A picture file that ends too early."""
    path = tmp_path / "damaged.png"
    path.write_bytes(Path(line_files[0]).read_bytes()[:120])
    return str(path)


@pytest.fixture(scope="session")
def stock_trocr(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, VisionEncoderDecoderModel, TrOCRProcessor]:
    """A tiny random model of transformers' own, in the layout of microsoft/trocr-*: its folder, itself, its processor."""
    tokenizer = build_character_tokenizer(alphabet=" abcdefghijklmnopqrstuvwxyz")
    vision = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        initializer_range=0.3,
    )
    text = TrOCRConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_position_embeddings=20,
        init_std=0.3,
        cross_attention_hidden_size=16,
        is_decoder=True,
        add_cross_attention=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=2,
    )
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(encoder=ViTModel(vision, add_pooling_layer=False), decoder=TrOCRForCausalLM(text))
    for name, token in {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}.items():
        setattr(model.config, name, token)
        setattr(model.generation_config, name, token)
    image_processor = ViTImageProcessor(size={"height": 32, "width": 32})
    folder = tmp_path_factory.mktemp("stock_trocr")
    model.eval().save_pretrained(folder)
    processor = TrOCRProcessor(image_processor, tokenizer)
    processor.save_pretrained(folder)
    return str(folder), model, processor


@pytest.fixture(scope="session")
def folder_without_processor(
    stock_trocr: tuple[str, VisionEncoderDecoderModel, TrOCRProcessor], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The same model in the layout of folders that name no processor, only a tokenizer and an image processor."""
    folder = tmp_path_factory.mktemp("stock_without_processor")
    _, model, processor = stock_trocr
    # New ones: what was saved in a processor remembers its class.
    tokenizer = build_character_tokenizer(alphabet=" abcdefghijklmnopqrstuvwxyz")
    image_processor = ViTImageProcessor(size=dict(processor.image_processor.size))
    for part in (model, tokenizer, image_processor):
        part.save_pretrained(folder)
    return str(folder)
