"""Reading files one by one: everything that can be read is, in order, and what can't is told."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_vlm.parts.shipped_models import default_ocr_model
from hf_vlm.pipelines.picture_files import LineReader, read_files


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"abstain_below": 0.5}])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_files_are_read_as_by_the_pipeline(reader_folder, line_files, settings, batch_size):
    wanted = pipeline("text-recognition", model=reader_folder)(line_files, **settings)
    found = list(read_files(line_files, model=reader_folder, batch_size=batch_size, **settings))
    assert [result.file for result in found] == line_files
    assert [result.text for result in found] == [entry["generated_text"] for (entry,) in wanted]
    abstains = "abstain_below" in settings
    assert [result.abstained for result in found] == [abstains and entry["abstained"] for (entry,) in wanted]
    assert [result.score for result in found] == pytest.approx([entry["score"] for (entry,) in wanted], rel=1e-4)
    for result, (entry,) in zip(found, wanted, strict=True):
        assert [word["word"] for word in result.words] == [word["word"] for word in entry["words"]]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_bad_file_costs_nothing_but_its_own_text(reader_folder, line_files, damaged_picture, tmp_path, batch_size):
    empty_folder = tmp_path / "empty"
    empty_folder.mkdir()
    given = [damaged_picture, line_files[0], "no_such.png", line_files[1], str(empty_folder), line_files[2]]
    found = list(read_files(given, model=reader_folder, batch_size=batch_size))
    assert [result.file for result in found] == given
    alone = [next(read_files([file], model=reader_folder)).text for file in line_files[:3]]
    assert [result.text for result in found if result.error is None] == alone
    errors = {result.file: result.error for result in found if result.error is not None}
    assert set(errors) == {damaged_picture, "no_such.png", str(empty_folder)}
    assert all(file in error for file, error in errors.items())
    assert "error" not in found[0].to_dict()


def test_folder_is_read_by_name_and_only_its_pictures(reader_folder, line_files):
    folder = Path(line_files[0]).parent
    (folder / "notes.txt").write_text("not a picture, nor named like one")
    try:
        found = [result.file for result in read_files([folder], model=reader_folder)]
    finally:
        (folder / "notes.txt").unlink()
    assert found == line_files


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_precision_is_that_of_the_computation_and_costs_little(precision):
    lines = Path("scripts/example_lines/validation")
    pictures = [Image.open(lines / f"typewritten-{number}.jpg") for number in range(3)]
    exact, rounded = LineReader(), LineReader(precision=precision)
    inputs = exact.processor(images=pictures, text=["Dear Sir,"] * 3, return_tensors="pt")
    with torch.no_grad():
        wanted, found = (reader.model(**inputs).logits.float() for reader in (exact, rounded))
    error = float((found - wanted).norm() / wanted.norm())
    assert 0 < error < 0.25  # roundings in every layer; wrong scales or a forgotten bias give 1 and more
    assert [result.text for result in rounded(pictures)] != [""] * 3
    if precision == "int8":
        linear = [module for module in rounded.model.modules() if "Linear" in type(module).__name__]
        assert linear and not any(isinstance(module, torch.nn.Linear) for module in linear)
    else:
        assert rounded.model.dtype == torch.bfloat16
    assert exact.model.dtype == torch.float32


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"`precision` must be one of float32, bfloat16, int8, got 'fp8'"):
        LineReader(default_ocr_model(), precision="fp8")
