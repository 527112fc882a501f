"""What `--dry-run` tells and draws."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vlm.training.dry_run import draw_batch, dry_run
from hf_vlm.training.recipe import TrOCRRecipe
from hf_vlm.training.trocr import build_trainer
from tests.tiny_lines import TEXTS, recipe_of


@pytest.fixture
def recipe(recipe_sections) -> TrOCRRecipe:
    return recipe_of(recipe_sections)


def test_report_shows_labels_parameters_and_memory(recipe):
    trainer = build_trainer(recipe)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    report = dry_run(recipe)
    shown = [line.split(maxsplit=2) for line in report.splitlines() if line.strip() and line.split()[0].isdigit()]
    labels = [(int(tokens), int(unknown), text) for tokens, unknown, text in shown if text in TEXTS]
    assert len(labels) == 4  # one batch
    assert all(tokens == len(text) + 1 and unknown == 0 for tokens, unknown, text in labels)
    assert f"{parameters:,}" in report
    assert f"{4 * parameters / 2**20:.1f} MiB" in report  # weights in fp32
    assert "3 steps of 8 lines" in report
    assert "validation set eval: 3 lines" in report


def test_batch_is_drawn_into_the_output_folder_and_nothing_is_trained(recipe, tmp_path):
    dry_run(recipe)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dry_run.png"]
    with Image.open(tmp_path / "out" / "dry_run.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_activations_grow_with_the_batch(recipe_sections):
    def activations(batch_size):
        report = dry_run(recipe_of(recipe_sections, f"training.per_device_train_batch_size={batch_size}"))
        return float(next(line for line in report.splitlines() if "activations of" in line).split()[-2])

    assert activations(8) > 1.5 * activations(4) > 0


def test_drawn_batch_shows_each_line_above_its_text():
    pixels = torch.zeros(2, 1, 16, 40)
    pixels[1, :, :, 20:] = 1
    sheet = np.asarray(draw_batch(pixels, ["one", "two"]))
    second = sheet[4 + 36 : 4 + 36 + 16, 4:44]
    assert (second[:, :20] == 0).all() and (second[:, 20:] == 255).all()
    below = sheet[4 + 16 : 4 + 36]
    assert (below[..., 1] < 100).any()  # the text's ink
