"""Every checkout carries what git tracks: it stays small, and every picture in it may be passed on."""

import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
MEGABYTE = 10**6


def tracked_files() -> list[Path]:
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout: there are no tracked files to weigh")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True, text=True).stdout
    return [CHECKOUT / name for name in listed.split("\0") if name and (CHECKOUT / name).is_file()]


def test_tracked_files_are_below_28_megabytes():
    assert sum(path.stat().st_size for path in tracked_files()) < 28 * MEGABYTE


def test_shipped_ocr_weights_are_one_file_below_16_megabytes():
    folder = CHECKOUT / "model_cards" / "trocr-mini-lines"
    weights = sorted(folder.glob("*.safetensors"))
    assert [path.name for path in weights] == ["model.safetensors"]
    assert weights[0].stat().st_size < 16 * MEGABYTE


@pytest.mark.parametrize("name", ["vqvae-mini-32px", "dvae-mini-32px"])
def test_shipped_tokenizer_is_one_file_of_at_most_2_megabytes(name: str):
    weights = sorted((CHECKOUT / "model_cards" / name).glob("*.safetensors"))
    assert [path.name for path in weights] == ["model.safetensors"]
    assert weights[0].stat().st_size <= 2 * MEGABYTE


def test_shipped_llava_is_projector_and_adapter_of_at_most_6_megabytes():
    folder = CHECKOUT / "model_cards" / "llava-smollm2-135m-emoji"
    weights = sorted(folder.glob("*.safetensors"))
    assert [path.name for path in weights] == ["adapter_model.safetensors"]
    assert weights[0].stat().st_size <= 6 * MEGABYTE
    assert not [
        *folder.glob("*token*"),
        *folder.glob("vocab*"),
        *folder.glob("merges*"),
    ]  # its base's command writes them


def test_no_tracked_file_is_a_pickle():
    assert [
        path for path in tracked_files() if path.suffix in {".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt"}
    ] == []


def test_pictures_lie_where_the_notice_says():
    pictures = [path for path in tracked_files() if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp", ".gif"}]
    noticed = (CHECKOUT / "scripts" / "example_lines", CHECKOUT / "tests", CHECKOUT / "model_cards")
    assert [path for path in pictures if not any(path.is_relative_to(folder) for folder in noticed)] == []
