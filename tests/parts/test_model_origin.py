import os
import pickle
from pathlib import Path

import pytest
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import AutoModelForImageTextToText, GPT2Config, GPT2LMHeadModel

from hf_vlm.parts.model_origin import cached_repository, is_way, note_origin, origin_of, published_name
from hf_vlm.parts.weight_report import PartSource, part_source, source_name
from hf_vlm.training.lora import LoraSection, add_lora, save_adapter
from tests.models.cnn_lstm.tiny_captioners import tiny_captioner

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "project" / "runs" / "base").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("org/base", "org/base"),
        ("gpt2", "gpt2"),
        ("runs/base", "./runs/base"),
        ("./runs/base/", "./runs/base"),
        ("runs/../runs", "./runs"),
        ("../beside", "../beside"),
        (".", "../project"),
        ("..", "../../{tmp}"),
        ("./not/there", "./not/there"),
        ("../not-there", "../not-there"),
        ("{folder}/project/runs/base", "./runs/base"),
        ("{folder}/beside", "../beside"),
        ("{folder}/project/not/there", "./not/there"),
    ],
)
def test_published_name_of_a_folder_is_a_way_that_is_no_hub_name(folder, place, expected):
    came = published_name(place.format(folder=folder))
    assert came == expected.format(tmp=folder.name)
    assert published_name(came) == came
    if expected.startswith("."):
        assert os.path.abspath(came) == os.path.abspath(place.format(folder=folder))
        with pytest.raises(HFValidationError):
            validate_repo_id(came)
    assert is_way(came) == expected.startswith(".")


def test_published_name_of_a_folder_in_the_hubs_cache_is_its_repository(folder):
    snapshot = folder / "cache" / "models--org--my-base" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    assert published_name(snapshot) == source_name(snapshot) == "org/my-base"
    assert cached_repository(snapshot / "config.json") == ("org/my-base", COMMIT)
    assert cached_repository(folder) is None
    os.chdir(snapshot.parent)
    assert published_name(COMMIT) == published_name(f"./{COMMIT}") == "org/my-base"


def test_published_name_is_no_absolute_path_when_there_is_no_way(folder, monkeypatch):
    def on_another_drive(*args):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    with monkeypatch.context() as patch:
        patch.setattr(os.path, "relpath", on_another_drive)
        assert published_name(folder / "beside") == "./beside"
    gone = folder / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert published_name(folder / "beside") == "./beside"


def test_loaded_model_remembers_its_folder_and_saves_nothing_of_it(folder):
    tiny_captioner().save_pretrained("runs/base")
    model_class = type(tiny_captioner())
    model = model_class.from_pretrained("runs/base")
    assert model.name_or_path == model.config.name_or_path == "./runs/base"
    os.chdir(folder)
    assert origin_of(model).place == str(folder / "project" / "runs" / "base")
    model.save_pretrained("saved")
    for path in Path("saved").iterdir():
        assert str(folder).encode() not in path.read_bytes(), path.name
    assert origin_of(pickle.loads(pickle.dumps(model))).place == origin_of(model).place
    model.name_or_path = "org/base"  # by hand
    assert origin_of(model).place == "org/base"
    note_origin(model, "saved", published="org/saved")
    assert origin_of(model).place == str(folder / "saved") and model.name_or_path == "org/saved"


def test_model_without_a_record_goes_by_its_name():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=5))
    assert origin_of(model).place == ""
    model.name_or_path = "org/model"
    assert origin_of(model).place == "org/model" and origin_of(model).hub_arguments == {}


def test_adapter_is_added_after_the_working_directory_changed(folder):
    """Its base was loaded by a relative way, which from there names nothing, or a repository of the Hub."""
    tiny_captioner().save_pretrained("runs/base")
    model = type(tiny_captioner()).from_pretrained("runs/base")
    os.chdir(folder)
    adapted = add_lora(model, LoraSection(rank=2))
    assert model.name_or_path == "./project/runs/base"
    save_adapter(adapted, "adapter")
    assert "base_model" not in Path("adapter/README.md").read_text()
    AutoModelForImageTextToText.from_pretrained("adapter")
    os.chdir(folder / "beside")
    save_adapter(adapted, "again")  # the way is none from here, and no Hub name either
    assert "base_model" not in Path("again/README.md").read_text()


def test_part_taken_from_a_loaded_model_is_told_after_the_working_directory_changed(folder):
    tiny_captioner().save_pretrained("runs/base")
    Path("runs/base/README.md").write_text("---\nlicense: mit\n---\n")
    model = type(tiny_captioner()).from_pretrained("runs/base")
    os.chdir(folder / "beside")
    assert part_source(model) == PartSource("base", "mit", "")
