"""What `scripts/try.sh` prints and draws, and that it notices a model that reads otherwise once reloaded."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from hf_vlm import (
    TrOCREncoderDecoderForConditionalGeneration,
    TrOCREncoderDecoderProcessor,
    VisionTransformerImageProcessor,
)
from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from tests.models.trocr.tiny_models import CANVAS, VOCAB_SIZE, tiny_reader

SCRIPT = Path(__file__).parents[2] / "scripts" / "try_reading.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("try_reading", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reading(tmp_path, name, score, *words):
    Image.new("L", (200, 30), 200).save(tmp_path / name)
    words = [{"word": word, "confidence": confidence} for word, confidence in words]
    return {"file": str(tmp_path / name), "text": " ".join(w["word"] for w in words), "score": score, "words": words}


def test_surest_line_comes_first_and_unsure_words_are_marked(script, tmp_path, capsys):
    unsure = reading(tmp_path, "unsure.png", 0.25, ("a", 0.9), ("guess", 0.49))
    sure = reading(tmp_path, "sure.png", 0.998, ("two", 0.5), ("words", 1.0))
    script.show([unsure, sure], tmp_path / "sheet.png")
    first, second, *_, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["100%", "sure.png", "two", "words"]
    assert second.split() == ["25%", "unsure.png", "a", "[guess]"]
    assert last == f"Drawn in {tmp_path / 'sheet.png'}"


def test_sheet_shows_every_line_with_its_text(script, tmp_path):
    def sheet(*lines):
        script.draw(lines, tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as picture:
            return picture.convert("RGB")

    def differ(one, other):
        return ImageChops.difference(one, other).getbbox() is not None

    lines = [reading(tmp_path, f"{number}.png", 0.9, ("été $5_a$", 0.9)) for number in range(3)]
    whole = sheet(*lines)
    assert whole.size == (1600, 180)
    for number in range(3):
        words = [{"word": "été $5_b$", "confidence": 0.9}]
        assert differ(whole, sheet(*[line | {"words": words} if line is lines[number] else line for line in lines]))
        assert differ(whole, sheet(*[line | {"score": 0.1} if line is lines[number] else line for line in lines]))
    Image.new("L", (200, 30), 90).save(lines[2]["file"])
    assert differ(whole, sheet(*lines))


@pytest.fixture
def trained_folder(tmp_path):
    """A tiny random reader with the state that training leaves, and lines that say just what it reads."""
    height, width = CANVAS
    tokenizer = build_character_tokenizer(alphabet="abcdefghijklmnopqrstuvwxyz 012345678")
    assert len(tokenizer) == VOCAB_SIZE
    image_processor = VisionTransformerImageProcessor(
        size={"height": height, "width": width}, keep_aspect_ratio=True, pad_multiple=8, do_convert_grayscale=True
    )
    processor = TrOCREncoderDecoderProcessor(image_processor, tokenizer)
    torch.manual_seed(0)
    model = tiny_reader()
    pictures = [Image.new("L", (20 + 15 * number, 16), 60 * number) for number in range(3)]
    read = processor.batch_decode(model.generate(**processor(images=pictures)), skip_special_tokens=True)
    assert all(read)
    folder = tmp_path / "lines" / "validation"
    folder.mkdir(parents=True)
    rows = []
    for number, (text, picture) in enumerate(zip(read, pictures, strict=True)):
        picture.save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    model.save_pretrained(tmp_path / "reader")
    processor.save_pretrained(tmp_path / "reader")
    (tmp_path / "reader" / "trainer_state.json").write_text(json.dumps({"best_metric": 0.0}))
    return tmp_path


def test_reloaded_model_reads_as_in_training(script, trained_folder, capsys):
    assert script.reload(str(trained_folder / "reader"), str(trained_folder / "lines")) == 0
    before, after, pipeline = capsys.readouterr().out.splitlines()
    assert before.split()[-1] == after.split()[-1] == "0.00%"
    assert "3 of 3" in pipeline


def test_model_that_reads_otherwise_once_reloaded_is_found(script, trained_folder):
    model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(trained_folder / "reader")
    with torch.no_grad():
        model.decoder.lm_head.weight.copy_(model.decoder.lm_head.weight.roll(5, 0))
    model.save_pretrained(trained_folder / "reader")
    assert script.reload(str(trained_folder / "reader"), str(trained_folder / "lines")) == 1
