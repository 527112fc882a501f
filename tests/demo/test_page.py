"""The page as it is built and served, without a browser."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import torch

from hf_vlm import default_ocr_model
from hf_vlm.demo import page as page_module
from hf_vlm.demo.page import build_page, launch
from tests.demo.tiny_folders import model_folders  # noqa: F401 (a fixture)

# ruff: noqa: F811 (a fixture's name is an argument's name)

gradio = pytest.importorskip("gradio", reason="the extra `demo` is not installed")


def tabs(page):
    return [block.label for block in page.blocks.values() if isinstance(block, gradio.Tab)]


def test_tabs_are_what_the_models_do_and_a_choice_where_several_do_it(model_folders):
    page = build_page([model_folders["tokens"], model_folders["read"]])
    assert tabs(page) == ["Read", "Tokens", "Attention"]
    every = build_page([*model_folders.values(), model_folders["tokens"]])
    assert tabs(every) == ["Read", "Caption", "Ask", "Tokens", "Latents", "Classify", "Attention"]
    choices = [block for block in every.blocks.values() if isinstance(block, gradio.Dropdown)]
    assert [len(block.choices) for block in choices if block.visible] == [4]  # of attention: all but the tokenizers


def test_building_the_page_loads_no_model(model_folders, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hf_vlm.demo.loaded_models.load_model", refuse)
    build_page(model_folders.values())


def test_nothing_is_reported_and_no_event_can_be_called_from_elsewhere(model_folders):
    page = build_page(model_folders.values())
    assert page.analytics_enabled is False
    assert {function.api_visibility for function in page.fns.values()} == {"private"}


def test_missing_package_is_told_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(page_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"wants the package gradio, got none. Run `pip install 'hf-vlm\[demo\]'`"):
        build_page([default_ocr_model()])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("wanted <b>, got `x`."), "wanted &lt;b&gt;, got `x`."),
        (FileNotFoundError("no such file"), "no such file"),
        (ImportError("wants rapidocr"), "wants rapidocr"),
        (MemoryError(), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), "not enough memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "not enough memory"),
        (ValueError("not enough memory cells in the table"), "not enough memory cells"),
        (KeyError("x"), "This went wrong: KeyError: 'x'. The terminal tells more."),
    ],
)
def test_errors_are_told_in_words_that_are_no_markup(error, told):
    from hf_vlm.demo.tabs import page_error

    assert told in page_error(error).message


@pytest.mark.parametrize("before", [None, "/somewhere"])
def test_environment_is_as_it_was_when_the_page_has_ended(before, monkeypatch):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    if before is not None:
        monkeypatch.setenv("GRADIO_TEMP_DIR", before)
    seen = []

    def fail(folders):
        seen.append(os.environ["GRADIO_TEMP_DIR"])
        raise ValueError("no folder")

    monkeypatch.setattr(page_module, "build_page", fail)
    with pytest.raises(ValueError, match="no folder"):
        page_module.launch([])
    assert seen[0] != before and os.environ.get("GRADIO_TEMP_DIR") == before


def test_what_is_not_the_visitors_doing_is_logged_too(caplog):
    from hf_vlm.demo.tabs import told

    def fail():
        raise KeyError("a bug")

    with pytest.raises(gradio.Error):
        told(fail)()
    assert "a bug" in caplog.text and "Traceback" in caplog.text


def test_port_in_use_is_told_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="which is in use"):
            launch(["nowhere"], port=taken.getsockname()[1])


@pytest.mark.slow
def test_page_is_served_to_this_machine_until_ctrl_c_which_leaves_nothing(model_folders, tmp_path):
    # A test that runs in the background inherits a SIGINT that is ignored.
    taking_signals = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program = f"{taking_signals}from hf_vlm.demo.page import launch\nlaunch([{model_folders['tokens']!r}])"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("The page is at http://127.0.0.1:") and "Ctrl-C" in line
        url = line.split()[4]
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.status == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
        assert list(tmp_path.glob("hf-vlm-demo-*"))
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and rest == "Ended.\n"
    assert not list(tmp_path.glob("hf-vlm-demo-*"))
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)
