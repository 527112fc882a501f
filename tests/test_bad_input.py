"""Bad input at the `hf-vlm` command, as a user meets it: processed rightly, or one line that names culprit and fix."""

import io
import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from hf_vlm.cli import main
from hf_vlm.data.lines.character_tokenizer import LATIN_ALPHABET, build_character_tokenizer
from hf_vlm.training.trocr import build_trainer
from tests.models.trocr.tiny_models import randomise
from tests.tiny_lines import TEXTS, recipe_of, tiny_recipe, write_splits


def drawn(size=(120, 30)) -> Image.Image:
    picture = Image.new("L", size, 255)
    ImageDraw.Draw(picture).text((4, 2), "two dogs ran", fill=0, font=ImageFont.load_default(size=18))
    return picture


LINE = drawn()
LEVELS = np.asarray(LINE)


def encoded(picture: Image.Image, file_format: str, **settings) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **settings)
    return stream.getvalue()


def as_ink(levels: np.ndarray) -> Image.Image:
    """The line as a palette that is black throughout: what is paper must be told by the entries' opacity."""
    picture = Image.frombytes("P", LINE.size, levels.tobytes())
    picture.putpalette(bytes(3 * 256))
    return picture


def turned(orientation: int) -> bytes:
    """The line stored turned or mirrored, with the EXIF entry that says so."""
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(LINE.transpose(stored[orientation]), "PNG", exif=exif)


def animated(file_format: str) -> bytes:
    return encoded(LINE, file_format, save_all=True, append_images=[Image.new("L", LINE.size)], lossless=True)


def png(width: int, height: int, *, comment: bytes = b"", pixels: bytes = b"") -> bytes:
    """A PNG file whose header says what it likes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(comment)) if comment else b""
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


LINE_IN_OTHER_FORMS = {
    "16-bit PNG": encoded(Image.fromarray(LEVELS.astype(np.uint16) * 257), "PNG"),
    "32-bit TIFF": encoded(Image.fromarray(LEVELS.astype(np.int32) * 257), "TIFF"),
    "float TIFF": encoded(Image.fromarray((LEVELS / 255).astype(np.float32)), "TIFF"),
    "CMYK TIFF": encoded(
        Image.merge("CMYK", [Image.new("L", LINE.size)] * 3 + [Image.fromarray(255 - LEVELS)]), "TIFF"
    ),
    "palette": encoded(LINE.convert("P"), "PNG"),
    "palette with alpha": encoded(as_ink(LEVELS), "PNG", transparency=bytes(255 - level for level in range(256))),
    "alpha": encoded(Image.merge("LA", [Image.new("L", LINE.size), Image.fromarray(255 - LEVELS)]), "PNG"),
    "animated GIF": animated("GIF"),
    "animated PNG": animated("PNG"),
    "animated WebP": animated("WEBP"),
    **{f"EXIF orientation {orientation}": turned(orientation) for orientation in range(2, 9)},
    "EXIF orientation 99": encoded(
        LINE, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0"
    ),
}
ODD_SIZES = {"1x1": (1, 1), "20,000 px wide": (20_000, 30), "5,000 px high": (30, 5000), "1 px high": (5000, 1)}
NO_PICTURES = {
    "empty": (b"", "got an empty file"),
    "text": (b"not a picture", "begins b'not a picture'"),
    "half a PNG": (encoded(LINE, "PNG")[:400], "cut short or damaged"),
    "half a JPEG": (encoded(LINE, "JPEG")[:900], "cut short or damaged"),
    "half a TIFF": (encoded(LINE, "TIFF")[:2000], "cut short or damaged"),
    "half a GIF": (encoded(LINE, "GIF")[:900], "cut short or damaged"),
    "half a WebP": (encoded(LINE, "WEBP")[:400], "cut short or damaged"),
    "PNG without pixels": (png(100, 30), "cut short or damaged"),
    "bomb of 2.5e9 pixels": (png(50_000, 50_000), "wanted at most"),
    "bomb that Pillow only warns of": (png(12_000, 9_000), "wanted at most"),
    "bomb in a comment": (png(10, 10, comment=b"a" * 70_000_000, pixels=bytes(110)), "cut short or damaged"),
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A saved reader with random weights that matter, so that other pixels give another score."""
    folder = tmp_path_factory.mktemp("model")
    trainer = build_trainer(recipe_of(tiny_recipe(write_splits(folder / "lines"), folder / "out")))
    randomise(trainer.model, std=0.4)
    trainer.save_model()
    return folder / "out"


@pytest.fixture
def recipe(tmp_path):
    """A recipe that trains, as nested dicts."""
    return tiny_recipe(write_splits(tmp_path / "lines"), tmp_path / "out")


def read_scores(model_folder, files, capsys) -> list[float]:
    assert main(["read", "--model", str(model_folder), "--json", *map(str, files)]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"file"')]
    assert [row["file"] for row in told] == [str(file) for file in files]
    return [row["score"] for row in told]


def the_one_complaint(arguments, capsys) -> str:
    """What the command says on stderr, after checking that it is one error and no traceback."""
    assert main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    complaints = [line for line in error.splitlines() if "hf-vlm: " in line]
    assert len(complaints) == 1
    return complaints[0].partition("hf-vlm: ")[2]


def complaint_of_training(sections, capsys, *arguments) -> str:
    file = Path(sections["training"]["output_dir"]).parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return the_one_complaint(["train", file, *arguments], capsys)


# Pictures


@pytest.mark.parametrize("form", LINE_IN_OTHER_FORMS)
def test_line_in_another_form_is_read_as_the_line_itself(form, model_folder, tmp_path, capsys):
    LINE.save(tmp_path / "line.png")
    LINE.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.png")
    (tmp_path / "form").write_bytes(LINE_IN_OTHER_FORMS[form])
    files = [tmp_path / name for name in ("line.png", "turned.png", "form")]
    line, turned_line, in_form = read_scores(model_folder, files, capsys)
    assert in_form == pytest.approx(line, abs=1e-6)
    assert abs(turned_line - line) > 1e-4  # a score that tells pixels apart


@pytest.mark.parametrize("size", ODD_SIZES)
def test_picture_of_an_odd_size_is_read(size, model_folder, tmp_path, capsys):
    drawn(ODD_SIZES[size]).save(tmp_path / "odd.png")
    (score,) = read_scores(model_folder, [tmp_path / "odd.png"], capsys)
    assert 0 <= score <= 1


def test_each_bad_picture_among_many_is_told_and_the_others_are_read(model_folder, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    good, bad = [], {tmp_path / "folder": "without one", tmp_path / "gone.png": "no such file"}
    for number, (content, told) in enumerate(NO_PICTURES.values()):
        bad[tmp_path / f"bad_{number}.png"] = told
        (tmp_path / f"bad_{number}.png").write_bytes(content)
        good.append(tmp_path / f"good_{number}.png")
        drawn((100 + number, 30)).save(good[-1])
    alone = read_scores(model_folder, good, capsys)
    # bad and good in turn: every batch of 4 holds some of both
    mixed = [file for pair in zip(bad, [*good, good[0], good[0]], strict=True) for file in pair]
    assert main(["read", "--model", str(model_folder), "--json", "--batch-size", "4", *map(str, mixed)]) == 1
    told = capsys.readouterr()
    scores = [json.loads(line)["score"] for line in told.out.splitlines() if line.startswith('{"file"')]
    assert scores == pytest.approx([*alone, alone[0], alone[0]], abs=1e-6)
    complaints = [line for line in told.err.splitlines() if line.startswith("hf-vlm: ")]
    assert len(complaints) == len(bad)
    for complaint, (file, why) in zip(complaints, bad.items(), strict=True):
        assert str(file) in complaint and why in complaint
    assert "Traceback" not in told.err


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_pipeline_names_the_bad_picture(kind, model_folder, tmp_path):
    content, told = NO_PICTURES[kind]
    LINE.save(tmp_path / "line.png")
    (tmp_path / "bad.png").write_bytes(content)
    reader = pipeline("text-recognition", model=str(model_folder), batch_size=2)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "bad.png"))) as raised:
        reader([str(tmp_path / "line.png"), str(tmp_path / "bad.png")])
    assert told in str(raised.value)


# Saved models


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.model.layers.0.cross_attention.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_setting(section, name, value):
    def change(folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config[section][name] = value
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return change


def with_another_start_of_the_vocabulary(folder):
    """The same characters with other ids, special tokens last."""
    tokens = {
        token: index for index, token in enumerate([*" abcdefghijklmnopqrstuvwxyz", "<unk>", "</s>", "<s>", "<pad>"])
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(tokens, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(folder)


class Executed:
    """Unpickled, it calls `print`."""

    def __reduce__(self):
        return print, ("a pickle was executed",)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Executed()}, folder / "pytorch_model.bin")


DAMAGES = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ["`config.json` wanted in"]),
    "config cut off": (lambda folder: cut(folder / "config.json"), ["config.json` must be JSON"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["Weights wanted in"]),
    "weights cut off": (
        lambda folder: cut(folder / "model.safetensors"),
        ["model.safetensors` must be a whole", "again"],
    ),
    "git's pointer for weights": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        ["model.safetensors` must be a whole", "git lfs pull"],
    ),
    "a tensor lacks": (without_a_tensor, ["got none for 1 tensors, the first `decoder.model.layers.0.cross_attention"]),
    "weights of another vocabulary": (with_setting("text_config", "vocab_size", 50), ["must have the shapes"]),
    "unknown choice": (
        with_setting("vision_config", "position_embedding", "fourier"),
        ["`config.json` of", "'position_embedding' expected one of ('learned', 'learned_2d', 'sin"],
    ),
    "weights in a pickle": (pickled, ["pytorch_model.bin` must hold tensors only", "never executed"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["must hold a processor"]),
    "tokenizer cut off": (lambda folder: cut(folder / "tokenizer.json"), ["must hold a processor"]),
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), ["must hold a processor"]),
    "tokenizer of more tokens": (
        lambda folder: build_character_tokenizer(alphabet=LATIN_ALPHABET).save_pretrained(folder),
        [f"got {4 + len(set(LATIN_ALPHABET))} tokens for 31 rows", "Take the tokenizer that belongs to the model"],
    ),
    "tokenizer of other ids": (with_another_start_of_the_vocabulary, ["must agree on `eos_token_id`, got 2 and 28"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model_folder_is_refused_by_name(damage, model_folder, tmp_path, capfd):
    change, told = DAMAGES[damage]
    folder = shutil.copytree(model_folder, tmp_path / "model")
    change(folder)
    LINE.save(tmp_path / "line.png")
    complaint = the_one_complaint(["read", tmp_path / "line.png", "--model", folder], capfd)
    for part in told:
        assert part in complaint
    assert not capfd.readouterr().out


def test_checkpoint_lacking_a_shard_names_it(model_folder, tmp_path, capsys):
    folder = shutil.copytree(model_folder, tmp_path / "model", ignore=shutil.ignore_patterns("model.safetensors"))
    AutoModel.from_pretrained(model_folder).save_pretrained(folder, max_shard_size="60KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    LINE.save(tmp_path / "line.png")
    assert main(["read", str(tmp_path / "line.png"), "--model", str(folder)]) == 0
    capsys.readouterr()
    shards[1].unlink()
    complaint = the_one_complaint(["read", tmp_path / "line.png", "--model", folder], capsys)
    assert f"`{shards[1].name}` missing" in complaint and str(folder) in complaint


# Training


def text_of_line_3(text):
    def change(sections):
        rows = [{"file_name": f"line_{index}.png", "text": line} for index, line in enumerate(TEXTS)]
        rows[3]["text"] = text
        file = Path(sections["data"]["folder"]) / "train" / "metadata.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    return change


def set_to(path, value):
    def change(sections):
        *parents, last = path.split(".")
        for name in parents:
            sections = sections.setdefault(name, {})
        sections[last] = value

    return change


def without_pictures(sections):
    for file in (Path(sections["data"]["folder"]) / "train").iterdir():
        file.unlink()


def parquet_of_numbers(sections):
    shutil.rmtree(Path(sections["data"]["folder"]) / "train")
    rows = datasets.Dataset.from_dict({"image": [1, 2], "text": ["a", "b"]})
    rows.to_parquet(Path(sections["data"]["folder"]) / "train.parquet")


REFUSED_BEFORE_TRAINING = {
    "label of unknown characters": (text_of_line_3("\u6f22\u5b57"), ["metadata.jsonl, line 4", "\u6f22\u5b57"]),
    "empty label": (text_of_line_3(" "), ["metadata.jsonl, line 4", "`text`"]),
    "label longer than the decoder": (text_of_line_3("a" * 40), ["metadata.jsonl, line 4", "at most 24 tokens"]),
    "folder without pictures": (without_pictures, ["lines must hold", "train/metadata.jsonl"]),
    "column of numbers": (parquet_of_numbers, ["train.parquet, row 0", "wanted a picture, got int"]),
    "unknown setting": (set_to("model.image_processor.sise", 3), ["Did you mean `model.image_processor.size`?"]),
    "unknown choice": (
        set_to("model.vision_config.position_embedding", "rope"),
        ["`model.vision_config`: ", "learned"],
    ),
    "no beams": (set_to("generation.num_beams", 0), ["`generation.num_beams` must be a number of at least 1, got 0"]),
    "labels longer than the decoder": (set_to("model.max_label_length", 99), ["at most the decoder's 24 positions"]),
    "tokenizer that is not there": (
        set_to("model.tokenizer", "no/where"),
        ["no/where must hold a tokenizer's files", "Check the name"],
    ),
    "picture as text file": (
        set_to("data.synthetic", {"texts": "train/line_0.png"}),
        ["line_0.png must be UTF-8 text, got byte 0"],
    ),
}


@pytest.mark.parametrize("mistake", REFUSED_BEFORE_TRAINING)
def test_mistake_is_told_before_training(mistake, recipe, capsys):
    change, told = REFUSED_BEFORE_TRAINING[mistake]
    change(recipe)
    complaint = complaint_of_training(recipe, capsys, "--dry-run")
    for part in told:
        assert part in complaint


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damaged_training_picture_is_named_with_its_row(num_workers, recipe, capsys):
    cut(Path(recipe["data"]["folder"]) / "train" / "line_3.png")
    recipe["training"]["dataloader_num_workers"] = num_workers
    complaint = complaint_of_training(recipe, capsys)
    assert "metadata.jsonl, line 4" in complaint and "line_3.png: wanted a whole picture" in complaint


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def parts_recipe(recipe, folder, text_model):
    """A recipe that joins a ViT and a text model, both saved in several shards."""
    vision = ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=8))
    vision.save_pretrained(folder / "vision", max_shard_size="10KB")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vision")
    text_model.save_pretrained(folder / "text", max_shard_size="10KB")
    build_character_tokenizer(alphabet=" abcdefghijklmnopqrstuvwxyz").save_pretrained(folder / "text")
    recipe["model"] = {"vision": str(folder / "vision"), "text": str(folder / "text")}
    return recipe


def bert(vocab_size=31):
    return BertModel(BertConfig(**SMALL, vocab_size=vocab_size, max_position_embeddings=24))


def test_text_model_that_cannot_cross_attend_is_sent_to_the_projector_model(recipe, tmp_path, capsys):
    llama = LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=31))
    complaint = complaint_of_training(parts_recipe(recipe, tmp_path, llama), capsys, "--dry-run")
    assert "got `llama`, which cannot" in complaint and "use the projector model" in complaint


def test_text_model_with_fewer_tokens_than_its_tokenizer_is_refused(recipe, tmp_path, capsys):
    complaint = complaint_of_training(parts_recipe(recipe, tmp_path, bert(vocab_size=20)), capsys, "--dry-run")
    assert "at most the text model's 20 tokens, got 31" in complaint


@pytest.mark.parametrize("part", ["vision", "text"])
def test_part_that_lacks_a_shard_is_named(part, recipe, tmp_path, capsys):
    sections = parts_recipe(recipe, tmp_path, bert())
    shard = sorted((tmp_path / part).glob("model-*.safetensors"))[1]
    shard.unlink()
    complaint = complaint_of_training(sections, capsys, "--dry-run")
    assert f"`{shard.name}` missing" in complaint and str(tmp_path / part) in complaint
