"""A shipped recipe's own command runs, as `--dry-run`, on data of the shape that it asks for."""

import re
import shlex
from pathlib import Path

import datasets
import pytest
from PIL import ImageFont

from hf_vlm import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.cli import main
from hf_vlm.training.recipe import RECIPE_FOLDER, TrOCRRecipe
from hf_vlm.training.trocr import build_trainer
from tests.tiny_lines import TEXTS, recipe_of, write_lines


def command_of(recipe):
    """The words behind `hf-vlm` in the recipe's header."""
    header = (RECIPE_FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8")
    match = re.search(r"^# command: +hf-vlm (.+)$", header, re.MULTILINE)
    assert match, f"{recipe} has no `# command:` line"
    return shlex.split(match[1])


def write_parquet(folder, texts):
    """A data set in the Hub's form, every row of the kind that the recipes choose."""
    for split in ("train", "validation"):
        pictures = write_lines(folder.parent / f"{folder.name}-{split}", texts)
        rows = {
            "image": [str(pictures / f"line_{index}.png") for index in range(len(texts))],
            "text": texts,
            "kind": ["handwritten-fr"] * len(texts),
        }
        folder.mkdir(exist_ok=True)
        rows = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        rows.to_parquet(folder / f"{split}.parquet")


def test_mini_lines_command_runs(tmp_path, capsys):
    for name in ("ocr_printed", "ocr_typewritten", "ocr_handwritten"):
        write_parquet(tmp_path / name, TEXTS)
    (tmp_path / "sentences.txt").write_text("It was late.\nWe saw the ship go by.\n" * 20, encoding="utf-8")
    (tmp_path / "font.ttf").write_bytes(ImageFont.load_default(20).path.getvalue())
    command = [word.replace("DATA", str(tmp_path)) for word in command_of("trocr-mini-lines")]
    small = [
        f"training.output_dir={tmp_path / 'out'}",
        "training.per_device_train_batch_size=2",
        f"data.synthetic.fonts=[{tmp_path / 'font.ttf'}]",
    ]
    assert main([*command, "--dry-run", *small]) == 0
    told = capsys.readouterr().out
    assert "encoder.vision_model" in told
    parameters = int(re.search(r"^all +([\d,]+)", told, re.MULTILINE)[1].replace(",", ""))
    assert parameters < 7_500_000
    assert (tmp_path / "out" / "dry_run.png").is_file()


def test_finetune_lines_command_runs(recipe_sections, tmp_path, capsys, monkeypatch):
    """On a folder that holds what a checkout holds: a trained model and the example lines."""
    recipe_sections["model"]["alphabet"] = None
    recipe_sections["model"]["text_config"]["max_position_embeddings"] = 112
    trainer = build_trainer(recipe_of(recipe_sections))
    trainer.save_model(str(tmp_path / "model_cards" / "trocr-mini-lines"))
    checkout = Path(__file__).parents[2]
    (tmp_path / "scripts").symlink_to(checkout / "scripts")
    monkeypatch.chdir(tmp_path)
    assert main([*command_of("trocr-finetune-lines"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "validation set" in told


def test_pretrained_half_precision_folder_is_trained_in_full_precision(recipe_sections, lines_folder, tmp_path):
    trainer = build_trainer(recipe_of(recipe_sections))
    trainer.model.half().save_pretrained(tmp_path / "half")
    trainer.processing_class.save_pretrained(tmp_path / "half")
    stored = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path / "half")
    places = [f"model.pretrained={tmp_path / 'half'}", f"data.folder={lines_folder}"]
    recipe = TrOCRRecipe.load("trocr-finetune-lines", [*places, f"training.output_dir={tmp_path / 'tuned'}"])
    model = build_trainer(recipe).model
    assert {str(p.dtype) for p in stored.parameters()} == {"torch.float16"}
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}
    assert (model.lm_head if hasattr(model, "lm_head") else model.get_output_embeddings()).weight is (
        model.get_input_embeddings().weight
    )


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml")))
def test_every_shipped_recipe_has_a_test_of_its_command(recipe):
    assert f'command_of("{recipe}")' in Path(__file__).read_text(encoding="utf-8")
