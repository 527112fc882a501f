"""What `assemble`, `push`, `estimate` and `demo` hand on, and that they tell what comes back."""

import importlib
import json
from unittest.mock import create_autospec

import pytest

from hf_vlm.cli import main


class Result:
    """What the function behind a command gives."""

    def __str__(self):
        return "as text"

    def to_dict(self):
        return {"as": "JSON"}


@pytest.fixture
def called(monkeypatch):
    """Puts a stand-in of the same signature in a function's place; gives the stand-in."""

    def replace(module: str, name: str):
        real = getattr(importlib.import_module(module), name)
        stand_in = create_autospec(real, return_value=Result())
        monkeypatch.setattr(f"{module}.{name}", stand_in)
        return stand_in

    return replace


def test_assemble_hands_on_parts_sizes_and_settings(called, tmp_path, capsys):
    assemble = called("hf_vlm.sharing.assemble", "assemble")
    told = ["assemble", "llava", "--vision", "v", "--text", "t", "--out", "o"]
    assert main(told) == 0
    assert capsys.readouterr().out == "as text\n"
    nothing = {"chat_template": None, "image_size": None, "settings": {}}
    assert assemble.call_args == (("llava", "v", "t", "o"), nothing)

    template = tmp_path / "own.jinja"
    template.write_text("{{ messages }}")
    more = ["--image-size", "32", "384", "--chat-template", str(template), "projector.num_layers=1", "dropout=1e-1"]
    assert main([*told, *more, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"as": "JSON"}
    given = assemble.call_args.kwargs
    assert given["image_size"] == (32, 384) and given["chat_template"] == "{{ messages }}"
    assert given["settings"] == {"projector": {"num_layers": 1}, "dropout": 0.1}

    assert main([*told, "--image-size", "336", "--chat-template", "vicuna_v1"]) == 0
    assert (assemble.call_args.kwargs["image_size"], assemble.call_args.kwargs["chat_template"]) == (336, "vicuna_v1")
    assert main([*told, "--image-size", "1", "2", "3"]) == 1
    assert "`--image-size` wants height and width in pixels, got 3 numbers" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "private"), [([], None), (["--private"], True), (["--public"], False)])
def test_push_hands_on_whether_the_repository_is_private(options, private, called, capsys):
    push = called("hf_vlm.sharing.push", "push")
    assert main(["push", "folder", "me/model", "--revision", "v2", "--message", "Better", *options]) == 0
    assert push.call_args == (("folder", "me/model"), {"private": private, "revision": "v2", "message": "Better"})
    assert capsys.readouterr().out == "as text\n"


def test_push_is_private_or_public(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["push", "folder", "me/model", "--private", "--public"])
    assert "not allowed with" in capsys.readouterr().err


def test_estimate_hands_on_the_recipe_with_its_overrides(called, capsys):
    estimate = called("hf_vlm.training.estimates.estimate", "estimate")
    told = ["estimate", "vit-image-classification", "training.max_steps=7", "--gpus", "8", "--json", "data.folder=D"]
    assert main(told) == 0
    assert json.loads(capsys.readouterr().out) == {"as": "JSON"}
    (recipe,), given = estimate.call_args
    assert recipe.training["max_steps"] == 7 and str(recipe.data.folder) == "D"
    others = {"measured": None, "rows": None, "tokens": None, "nodes": 1, "engine": None, "preset": None}
    assert given == {"gpus": 8, "gpu": "h100", **others}
    options = {
        "nodes": 2,
        "engine": "zero3",
        "gpu": "a100-80",
        "measured": "run",
        "rows": 5,
        "tokens": 6,
        "preset": "p",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["estimate", "vit-image-classification", "data.folder=D", *words]) == 0
    assert estimate.call_args.kwargs == {"gpus": 1, **options}


def test_estimate_knows_the_engines_that_are_estimated(capsys):
    from hf_vlm.training.estimates.engine_memory import ENGINES

    with pytest.raises(SystemExit):
        main(["estimate", "x", "--engine", "none"])
    told = capsys.readouterr().err
    assert told.rstrip().endswith(f"(choose from {', '.join(map(repr, ENGINES))})")


def test_demo_serves_all_folders(called):
    launch = called("hf_vlm.demo.page", "launch")
    assert main(["demo", "a", "--port", "7861", "b"]) == 0
    assert launch.call_args == ((["a", "b"],), {"host": "127.0.0.1", "port": 7861, "share": False})
    assert main(["demo", "a", "--host", "0.0.0.0", "--share"]) == 0
    assert launch.call_args == ((["a"],), {"host": "0.0.0.0", "port": None, "share": True})
