"""Several processes under one launcher: the first speaks for all, and no other's error is lost."""

import logging
import os
import subprocess
import sys
import textwrap

import pytest
import transformers

from hf_vlm.cli import main, processes


@pytest.fixture
def second_of_two(monkeypatch):
    """This process is process 1 of 2; gives the list of its waits in seconds."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    levels = logging.getLogger("hf_vlm").level, transformers.utils.logging.get_verbosity()
    yield waits
    logging.getLogger("hf_vlm").setLevel(levels[0])
    transformers.utils.logging.set_verbosity(levels[1])


def test_other_process_prints_nothing_and_tells_its_error_only_after_the_first_had_time_to(second_of_two, capsys):
    assert main(["completion", "bash"]) == 0
    assert second_of_two == []
    assert main(["train", "no-such-recipe"]) == 1
    assert second_of_two == [processes.SECONDS_FOR_THE_FIRST]
    printed = capsys.readouterr()
    assert printed.out == ""
    (told,) = printed.err.splitlines()
    assert told.startswith(
        "hf-vlm, process 1 of 2 (the first is 0): A recipe's YAML file is wanted, got `no-such-recipe`."
    )


@pytest.mark.parametrize("kind", [FloatingPointError, MemoryError])
def test_error_of_a_batch_of_the_other_process_is_told_at_once(kind, second_of_two, capsys, monkeypatch):
    def fail(*_):
        raise kind("A loss that is a number is wanted, got nan.")

    monkeypatch.setattr("hf_vlm.training.tasks.load_recipe", fail)
    assert main(["train", "x"]) == 1
    assert second_of_two == []
    assert capsys.readouterr().err == (
        "hf-vlm, process 1 of 2 (the first is 0): A loss that is a number is wanted, got nan.\n"
    )


def test_other_process_says_nothing_of_a_wrong_command_line_or_a_stop(second_of_two, capsys, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        main(["trian"])
    assert ended.value.code == 2

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_vlm.training.tasks.load_recipe", stop)
    assert main(["train", "x"]) == 130
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_warnings_of_the_other_process_are_not_told_and_its_errors_are(second_of_two):
    with processes.silence():
        assert not logging.getLogger("hf_vlm.training.runs").isEnabledFor(logging.WARNING)
        assert logging.getLogger("hf_vlm.training.runs").isEnabledFor(logging.ERROR)


def test_rank_without_other_processes_is_the_first(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")  # left in the environment by somebody
    assert processes.process_number() == (0, 1)
    assert main(["train", "no-such-recipe"]) == 1
    assert capsys.readouterr().err.startswith("hf-vlm: A recipe's YAML file is wanted")


@pytest.mark.slow
def test_error_of_all_processes_is_one_line_under_torchrun():
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "hf_vlm.cli",
    ]
    done = subprocess.run([*command, "train", "no-such-recipe"], capture_output=True, text=True)
    assert done.returncode == 1
    (told,) = [line for line in done.stderr.splitlines() if "hf-vlm" in line]
    assert told.startswith("hf-vlm: A recipe's YAML file is wanted, got `no-such-recipe`.")


ALONE = """
    import os, time
    from hf_vlm.cli import main
    from hf_vlm.training import tasks

    def load(path, overrides):
        if os.environ["RANK"] == "0":
            time.sleep(60)
        raise ValueError("A whole file is wanted, got half of one. Copy it again.")

    tasks.load_recipe = load
    raise SystemExit(main(["train", "x"]))
"""


@pytest.mark.slow
def test_error_of_one_process_alone_is_told_under_torchrun(tmp_path):
    script = tmp_path / "alone.py"
    script.write_text(textwrap.dedent(ALONE))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert done.returncode == 1
    assert "hf-vlm, process 1 of 2 (the first is 0): A whole file is wanted, got half of one." in done.stderr
