import json
import os
import warnings
from pathlib import Path

import pytest
import torch

from hf_vlm.parts.base_weights import (
    BASE_FILE,
    check_base,
    exactly_hashed,
    hash_parts,
    name_of,
    role_paths,
    write_base_weights,
)
from tests.models.cnn_lstm.tiny_captioners import tiny_captioner

MODEL = type(tiny_captioner())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with the model `base` in float32 and its hashes in `adapter`."""
    monkeypatch.chdir(tmp_path)
    tiny_captioner().save_pretrained("base")
    (tmp_path / "adapter").mkdir()
    write_hashes(MODEL.from_pretrained("base"))
    return tmp_path


def write_hashes(model: MODEL) -> None:
    write_base_weights("adapter", "./base", hash_parts(model, list(role_paths(model))), exact=exactly_hashed(model))


@pytest.fixture
def silent():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*SHA-256")
        yield


def other_than(model: MODEL) -> MODEL:
    with torch.no_grad():
        for value in model.parameters():
            value += 0.5
    return model


def test_float16_rounds_to_other_hashes_of_the_same_base():
    loaded = MODEL.from_pretrained("base", dtype=torch.float16)
    assert hash_parts(loaded, ["decoder"]) != hash_parts(MODEL.from_pretrained("base"), ["decoder"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trained_in", [torch.float32, torch.bfloat16, torch.float16])
def test_own_base_is_not_warned_of_in_any_dtype(dtype, trained_in, silent):
    write_hashes(MODEL.from_pretrained("base", dtype=trained_in))
    assert check_base(MODEL.from_pretrained("base", dtype=dtype), "adapter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_base_in_float16_is_warned_of_where_the_file_is_in_it(dtype):
    MODEL.from_pretrained("base", dtype=torch.float16).save_pretrained("half")
    half = MODEL.from_pretrained("half", dtype=dtype)
    write_hashes(half)
    assert "exact" not in json.loads(Path("adapter", BASE_FILE).read_text())
    assert check_base(MODEL.from_pretrained("half", dtype=torch.float16), "adapter")
    other = other_than(MODEL.from_pretrained("half", dtype=torch.float16))
    with pytest.warns(UserWarning, match=r"wants \./base, on which it was trained, got \./half, .* by their SHA-256"):
        assert not check_base(other, "adapter")


def test_other_base_is_warned_of_from_another_working_directory(folder):
    other = other_than(MODEL.from_pretrained("base"))
    (folder / "elsewhere").mkdir()
    os.chdir(folder / "elsewhere")
    assert name_of(other) == "../base"
    with pytest.warns(UserWarning, match=r"got \.\./base, which holds others"):
        assert not check_base(other, "../adapter")


def test_quantized_base_is_hashed_from_where_it_was_loaded(folder, monkeypatch):
    base = MODEL.from_pretrained("base", revision="v1")
    wanted = hash_parts(base, ["decoder"])
    other_than(base).is_quantized = True
    os.chdir("/")
    asked = []
    load = MODEL.from_pretrained
    monkeypatch.setattr(
        MODEL,
        "from_pretrained",
        classmethod(lambda cls, place, **settings: asked.append((place, settings)) or load(place, **settings)),
    )
    assert hash_parts(base, ["decoder"]) == wanted
    assert asked == [(str(folder / "base"), {"dtype": torch.bfloat16, "revision": "v1"})]


@pytest.mark.parametrize("text", ["", '{"base": "./base", "sha', "{}", "[]", '{"sha256": ["x"]}'])
def test_damaged_hashes_stop_no_model(text):
    Path("adapter", BASE_FILE).write_text(text)
    with pytest.warns(UserWarning, match=f"{BASE_FILE}` must hold the hashes .* damaged"):
        assert check_base(MODEL.from_pretrained("base"), "adapter")


def test_hashes_are_written_whole_or_not_at_all(monkeypatch):
    before = Path("adapter", BASE_FILE).read_bytes()

    def full(self, text, **settings):
        with open(self, "w") as file:
            file.write(text[:10])
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            write_base_weights("adapter", "./base", {})
    assert Path("adapter", BASE_FILE).read_bytes() == before and os.listdir("adapter") == [BASE_FILE]
