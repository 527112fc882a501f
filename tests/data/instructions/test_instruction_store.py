"""What a run has read and been answered is kept whole: nothing is doubled, lost, or shared with another run."""

import sqlite3
import subprocess
import sys

import pytest

from hf_vlm.data.instructions.contexts import Context, Instance
from hf_vlm.data.instructions.instruction_store import InstructionStore
from hf_vlm.data.instructions.teachers import KINDS, TeacherReply, TeacherRequest


def context(name, caption="A dog."):
    return Context(
        name, f"{name}.png", (caption,), (Instance("dog", (0.1, 0.2, 0.5, 0.75)),), source=f"file, row {name}"
    )


def reply(number, text="words", kind=None):
    request = TeacherRequest(number, kind or KINDS[number % len(KINDS)], context("a"), [], seed=0)
    return TeacherReply(request, text, "stop", 7, 3)


@pytest.fixture
def store(tmp_path):
    with InstructionStore(tmp_path / "run.sqlite") as store:
        yield store


def refuse(error):
    raise error


def test_contexts_come_back_in_order_with_their_replies(store):
    assert store.add_contexts(map(context, "cab"), refuse) == 3
    store.add_replies([(reply(4), "")])
    store.add_replies([(reply(2, "\ud83d half"), "looping"), (reply(3), "empty")])
    rows = list(store.contexts())
    assert [(number, one) for number, one, _ in rows] == [(0, context("c")), (1, context("a")), (2, context("b"))]
    assert [sorted(given) for _, _, given in rows] == [
        ["complex_reasoning"],
        ["conversation", "detail_description"],
        [],
    ]
    assert rows[0][2]["complex_reasoning"].text == "? half"
    assert store.verdicts() == {
        "complex_reasoning": {"looping": 1},
        "conversation": {"empty": 1},
        "detail_description": {"": 1},
    }
    assert store.num_tokens() == (21, 9)
    assert [number for number, _, _ in store.contexts(most=2)] == [0, 1]


def test_contexts_of_more_than_a_page_all_come(store):
    store.add_contexts((context(str(number)) for number in range(1203)), refuse)
    assert [int(one.id) for _, one, _ in store.contexts()] == list(range(1203))


def test_contexts_read_again_are_not_added_again_and_new_ones_follow(store):
    store.add_contexts(map(context, "ab"), refuse)
    assert store.add_contexts(map(context, "bca"), refuse) == 1
    assert [one.id for _, one, _ in store.contexts()] == ["a", "b", "c"]


def test_context_that_changed_is_refused_and_nothing_is_added(store):
    store.add_contexts(map(context, "ab"), refuse)
    with pytest.raises(ValueError, match="file, row b: wanted what the run began with as context 'b'"):
        store.add_contexts([context("c"), context("b", "A cat.")], refuse)
    assert store.num_contexts() == 2


def test_id_twice_in_one_reading_is_told_with_both_places_and_the_first_is_kept(store):
    errors = []
    store.add_contexts([context("a"), context("a", "A cat."), context("b")], errors.append)
    assert [error.kind for error in errors] == ["duplicate ids"]
    assert "got 'a', which is in file, row a too" in str(errors[0])
    assert [one.captions for _, one, _ in store.contexts()] == [("A dog.",), ("A dog.",)]


def test_error_while_reading_leaves_the_file_as_it_was(store):
    def broken():
        yield context("a")
        raise ValueError("row 2 is bad")

    with pytest.raises(ValueError, match="row 2 is bad"):
        store.add_contexts(broken(), refuse)
    assert store.num_contexts() == 0
    assert store.add_contexts([context("a")], refuse) == 1


def test_reply_to_the_same_request_is_refused_with_all_that_came_with_it(store):
    store.add_contexts([context("a")], refuse)
    store.add_replies([(reply(0, "first"), "")])
    with pytest.raises(ValueError, match="a reply is wanted once"):
        store.add_replies([(reply(1), ""), (reply(0, "second"), "")])
    ((_, _, given),) = store.contexts()
    assert {kind: one.text for kind, one in given.items()} == {"conversation": "first"}


def test_seen_keys_are_told(store):
    with store.seen_keys() as is_seen:
        assert [is_seen(key) for key in (b"a", b"b", b"a", b"a")] == [False, False, True, True]
    with store.seen_keys() as is_seen:
        assert not is_seen(b"a")


def test_settings_are_kept(tmp_path):
    with InstructionStore(tmp_path / "run.sqlite") as store:
        store.set("teacher", {"name": "rules"})
        store.set("seed", 0)
        store.set("seed", 1)
    with InstructionStore(tmp_path / "run.sqlite") as store:
        assert store.settings() == {"teacher": {"name": "rules"}, "seed": 1}


def test_second_run_on_a_file_is_refused(store):
    with pytest.raises(ValueError, match=r"run\.sqlite must be free, got one that another run has open"):
        InstructionStore(store.file)
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sqlite3 as s; s.connect({str(store.file)!r}, timeout=0).execute('SELECT 1 FROM replies')",
        ],
        capture_output=True,
        text=True,
    )
    assert "database is locked" in told.stderr


def test_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "run.sqlite").write_text("not a database, but long enough to be read as one" * 10)
    with pytest.raises(ValueError, match="must be a run's file, got something else"):
        InstructionStore(tmp_path / "run.sqlite")


def test_full_disk_is_told_and_what_was_stored_stays(tmp_path):
    with InstructionStore(tmp_path / "run.sqlite") as store:
        store.add_contexts([context("a")], refuse)
        store._database.execute(f"PRAGMA max_page_count = {store._query('PRAGMA page_count')[0][0] + 2}")
        with pytest.raises(
            OSError, match=r"run\.sqlite must be written, got: database or disk is full\. Make room there"
        ):
            store.add_contexts((context(str(number), "long " * 50) for number in range(1000)), refuse)
        assert [one.id for _, one, _ in store.contexts()] == ["a"]


def test_what_was_committed_outlives_a_kill(tmp_path):
    code = f"""
import os, signal
from tests.data.instructions.test_instruction_store import InstructionStore, context, refuse, reply
store = InstructionStore({str(tmp_path / "run.sqlite")!r})
store.add_contexts(map(context, "ab"), refuse)
store.add_replies([(reply(0), "")])
store._database.execute("BEGIN")
store._database.execute("DELETE FROM replies")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    with InstructionStore(tmp_path / "run.sqlite") as store:
        assert store.num_contexts() == 2
        assert store.verdicts() == {"conversation": {"": 1}}


def test_file_is_an_ordinary_database(tmp_path):
    with InstructionStore(tmp_path / "run.sqlite") as store:
        store.add_contexts(map(context, "ab"), refuse)
    assert sqlite3.connect(tmp_path / "run.sqlite").execute("SELECT id FROM contexts").fetchall() == [("a",), ("b",)]
