"""Rows are worked on by any number of processes with one result; one that is killed is told, and nothing is left behind."""

import functools
import os
import signal
import tempfile
from pathlib import Path

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError

from hf_vlm.data.worker_processes import check_num_proc, work_on

FEATURES = datasets.Features({"place": datasets.Value("int64"), "text": datasets.Value("string")})


class Words:
    """Rows of one word each."""

    def __init__(self, words):
        self.words = words

    def __len__(self):
        return len(self.words)

    def select(self, indices):
        return Chosen(self, list(indices))


class Chosen:
    """Some of them, with all of them behind it."""

    def __init__(self, of, indices):
        self.of, self.indices = of, indices

    def alone(self):
        return Words([self.of.words[index] for index in self.indices])


def shout(rows, first, sign="!"):
    for index, word in enumerate(rows.words):
        if word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "fill":
            raise OSError(28, "No space left on device")
        if word == "bug":
            raise KeyError("a mistake of ours")
        yield {"place": first + index, "text": word.upper() + sign}
        if word == "twice":
            yield {"place": first + index, "text": "AGAIN"}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """The cache of `datasets`, and the folder of temporary files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with tempfile.TemporaryDirectory() as temporary:  # not below `tmp_path`: a socket's path must be short
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        yield tmp_path / "cache", Path(temporary)


@pytest.mark.parametrize("num_proc", [1, 2, 3, 9])
def test_rows_come_out_in_order_for_any_number_of_processes(places, num_proc):
    words = ["a", "b", "twice", "c", "d"]
    expected = [(0, "A?"), (1, "B?"), (2, "TWICE?"), (2, "AGAIN"), (3, "C?"), (4, "D?")]
    made = work_on(Words(words), functools.partial(shout, sign="?"), FEATURES, num_proc=num_proc)
    assert [(row["place"], row["text"]) for row in made] == expected
    assert not places[0].exists() and not any(places[1].iterdir())


def test_work_is_spread_over_processes_of_its_own(places):
    made = list(work_on(Words(list("abcd")), name_process, FEATURES, num_proc=2))
    processes = [row["place"] for row in made]
    assert processes[0] == processes[1] != processes[2] == processes[3] and os.getpid() not in processes
    assert [row["text"] for row in made] == ["0 ab", "0 ab", "2 cd", "2 cd"]  # each has its own rows, and no other


def name_process(rows, first):
    for _ in rows.words:
        yield {"place": os.getpid(), "text": f"{first} {''.join(rows.words)}"}


def test_process_that_is_killed_is_told(places):
    with pytest.raises(ChildProcessError, match="2 processes were .* got one that was killed.* Lower `data.num_proc`"):
        list(work_on(Words(["a", "b", "c", "kill"]), shout, FEATURES, num_proc=2, option="data.num_proc"))
    assert not any(places[1].iterdir())


def test_full_disk_is_told(places):
    with pytest.raises(OSError, match="2 processes want room .* got a full disk"):
        list(work_on(Words(["a", "b", "c", "fill"]), shout, FEATURES, num_proc=2))
    assert not any(places[1].iterdir())


def test_mistake_in_the_work_is_not_taken_for_a_full_disk(places):
    with pytest.raises(DatasetGenerationError) as told:
        list(work_on(Words(["a", "b", "c", "bug"]), shout, FEATURES, num_proc=2))
    assert "a mistake of ours" in str(told.value.__cause__)


def test_what_has_a_fingerprint_is_kept_and_found_again(places):
    first = list(work_on(Words(["a", "b"]), shout, FEATURES, num_proc=2, fingerprint="abc"))
    assert places[0].exists() and not any(places[1].iterdir())
    # Other rows under the same name: what comes was not made anew, whatever the number of processes.
    again = list(work_on(Words(["x", "y", "z"]), shout, FEATURES, num_proc=3, fingerprint="abc"))
    assert again == first
    other = list(work_on(Words(["x", "y"]), shout, FEATURES, num_proc=2, fingerprint="abd"))
    assert [row["text"] for row in other] == ["X!", "Y!"]


def test_run_that_was_killed_leaves_nothing_to_be_found(places):
    with pytest.raises(ChildProcessError):
        list(work_on(Words(["a", "kill"]), shout, FEATURES, num_proc=2, fingerprint="abc"))
    made = list(work_on(Words(["a", "b"]), shout, FEATURES, num_proc=2, fingerprint="abc"))
    assert [row["text"] for row in made] == ["A!", "B!"]


@pytest.mark.parametrize("num_proc", [0, -1])
def test_number_of_processes_below_one_is_refused(num_proc):
    with pytest.raises(ValueError, match=rf"`data.num_proc` must be 1 or more, got {num_proc}"):
        check_num_proc(num_proc, "data.num_proc")
    with pytest.raises(ValueError, match="`num_proc` must be 1 or more"):
        list(work_on(Words(["a"]), shout, FEATURES, num_proc=num_proc))


def test_settings_of_bars_and_tokenizers_are_as_they_were(places, monkeypatch, capfd):
    for before in ("true", None):
        if before is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        list(work_on(Words(["a", "b"]), shout, FEATURES, num_proc=2))
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr().err == ""  # no terminal: no bar
