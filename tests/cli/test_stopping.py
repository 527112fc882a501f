"""SIGTERM: what it raises, whom it leaves alone, and the exit codes of stopped commands."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hf_vlm.cli import main
from hf_vlm.cli.stopping import Terminated, sigterm_raises


def test_sigterm_raises_what_passes_by_except_exception_and_a_second_one_is_ignored():
    before = signal.getsignal(signal.SIGTERM)
    cleared = False
    with pytest.raises(Terminated) as stopped, sigterm_raises():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Exception:
            pytest.fail("a handler of errors took it for one")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleared = True
    assert cleared and stopped.value.exit_code == 143 and isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_of_a_forked_worker_ends_it_as_if_nothing_was_set():
    with sigterm_raises():
        child = os.fork()
        if child == 0:
            try:
                time.sleep(20)
            finally:
                os._exit(7)  # an exception came through
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM


def test_signals_are_left_alone_in_other_threads():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def work():
        with sigterm_raises():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_stopped_command_tells_what_stays_and_its_exit_code_names_the_signal(number, code, monkeypatch, capsys):
    def stop(*_):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr("hf_vlm.training.lora.merge_adapter", stop)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # tests in the background inherit that it is ignored
    try:
        assert main(["merge", "a", "--out", "b"]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "hf-vlm: stopped. Nothing was written: run it again from the start.\n"


def test_message_and_exit_code_of_a_stopped_run_are_its_own(monkeypatch, capsys):
    class Stopped(KeyboardInterrupt):
        exit_code = 138

    def stop(*_):
        raise Stopped("The last checkpoint is there.")

    monkeypatch.setattr("hf_vlm.training.tasks.load_recipe", stop)
    assert main(["train", "x"]) == 138
    assert capsys.readouterr().err == "hf-vlm: stopped. The last checkpoint is there.\n"


def test_launcher_may_end_its_processes_at_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    found = []
    monkeypatch.setattr("hf_vlm.training.lora.merge_adapter", lambda *_: found.append(signal.getsignal(signal.SIGTERM)))
    before = signal.getsignal(signal.SIGTERM)
    assert main(["merge", "a", "--out", "b"]) == 0
    assert found == [before]


@pytest.mark.slow
def test_reader_that_has_enough_ends_a_command_without_a_word():
    command = f"{sys.executable} -m hf_vlm completion bash | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert done.stderr == "" and done.returncode == 1
