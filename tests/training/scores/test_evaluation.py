"""Measuring a saved model."""

import pytest
import torch

from hf_vlm.data.lines.image_text import read_lines
from hf_vlm.training.scores.evaluation import evaluate_folders, evaluate_lines
from hf_vlm.training.trocr import build_trainer, train
from tests.tiny_lines import recipe_of


@pytest.fixture
def trainer(recipe_sections):
    return build_trainer(recipe_of(recipe_sections))


def test_predictions_stand_in_the_order_of_the_rows(trainer, lines_folder, monkeypatch):
    rows = read_lines(lines_folder, split="train")
    tokenizer = trainer.processing_class.tokenizer
    widths = {}

    def read_width(pixel_values, pixel_mask, **kwargs):
        """Reads every line as the letter of its width's rank: batches are sorted by width, the answer must not be."""
        letters = [widths.setdefault(int(mask[0].sum()), len(widths)) for mask in pixel_mask]
        return torch.tensor([[1, tokenizer.convert_tokens_to_ids("abcdefgh"[letter]), 2] for letter in letters])

    monkeypatch.setattr(trainer.model, "generate", read_width)
    together = evaluate_lines(trainer.model, trainer.processing_class, rows, batch_size=3)
    by_row = []
    for index in range(len(rows)):
        inputs = trainer.processing_class(images=rows[index]["image"])
        by_row.append(tokenizer.decode(read_width(**inputs)[0], skip_special_tokens=True))
    assert together.predictions == by_row
    assert len(set(by_row)) > 3


def test_scores_are_those_of_the_trainers_own_evaluation(trainer, lines_folder):
    with torch.no_grad():
        trainer.model.decoder.model.embed_tokens.weight[2].zero_()  # no early end: something wrong is read
    metrics = trainer.evaluate()
    scores = evaluate_lines(trainer.model, trainer.processing_class, trainer.eval_dataset.rows)
    assert scores.cer == pytest.approx(metrics["eval_cer"])
    assert scores.wer == pytest.approx(metrics["eval_wer"])
    assert scores.num_lines == 3 and scores.lines_per_second > 0


def test_saved_folder_is_measured_on_each_data_set(recipe_sections, lines_folder, tmp_path):
    train(recipe_of(recipe_sections, "training.max_steps=1"))
    folders = [str(lines_folder), str(lines_folder)]
    results = dict(enumerate(evaluate_folders(str(tmp_path / "out"), folders, split="train", num_beams=2)))
    assert [name for name, _ in results.values()] == folders
    assert results[0][1].predictions == results[1][1].predictions
    assert len(results[0][1].predictions) == 8
