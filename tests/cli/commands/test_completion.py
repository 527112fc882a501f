"""`hf-vlm completion`: what the shells themselves make of the script."""

import os
import shutil
import subprocess

import pytest

from hf_vlm.cli import main


@pytest.fixture
def complete(tmp_path, capsys):
    """What bash offers for the last word of a command line, in a folder with some files."""
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    place = tmp_path / "place"
    (place / "my-pictures").mkdir(parents=True)
    (place / "my-recipe.yaml").write_text("")
    program = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_hf_vlm; printf "%s\\n" "${COMPREPLY[@]}"'

    def offered(*words: str) -> set[str]:
        command = ["bash", "-c", program, str(script), "hf-vlm", *words]
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
        )
        return set(done.stdout.split())

    return offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_options_choices_recipes_and_paths(complete):
    assert complete("export-") == {"export-transformers", "export-code", "export-onnx"}
    assert complete("read", "--batch") == {"--batch-size"}
    assert complete("read", "--precision", "") == {"float32", "bfloat16", "int8"}
    assert complete("train", "llava-chat") == {"llava-chat", "llava-chat-lora"}
    assert complete("train", "my-") == {"my-recipe.yaml", "my-pictures"}
    assert complete("read", "my-") == {"my-recipe.yaml", "my-pictures"}
    assert complete("read", "a.png", "--out", "my-") == {"my-pictures"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_script_is_one_of_its_shell(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "extend-alphabet" in script and "vit-masked-pretraining" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script, encoding="utf-8")
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
