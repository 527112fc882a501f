"""A run that makes visual instructions: what is asked, kept, written, and how it goes on after it was stopped."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from PIL import Image

from hf_vlm.data.conversations.conversation_audit import audit_conversations
from hf_vlm.data.conversations.conversations import read_conversations, text_of
from hf_vlm.data.instructions.category_words import categories_in
from hf_vlm.data.instructions.instruction_checks import InstructionLimits
from hf_vlm.data.instructions.instruction_store import InstructionStore
from hf_vlm.data.instructions.rule_teacher import RuleTeacher
from hf_vlm.data.instructions.teachers import KINDS, BudgetReached, TeacherReply
from hf_vlm.data.instructions.visual_instructions import make_instructions

CAPTIONS = [f"A {colour} kite flies over a quiet beach." for colour in ("red", "green", "blue", "white")]


class Parrot:
    """Says something about a picture that tells its id, in the form of its kind."""

    name, commit_every, reads_prompts = "parrot", 1, True

    def __init__(self, texts=None, errors=(), seconds=0.0):
        self.settings = {"version": 1}
        self.texts, self.errors, self.seconds = texts or {}, set(errors), seconds
        self.asked = []

    def replies(self, requests):
        for request in requests:
            time.sleep(self.seconds)
            self.asked.append((request.context.id, request.kind))
            if self.asked[-1] in self.errors:
                yield TeacherReply(request, error="HTTP 500")
            else:
                yield TeacherReply(request, self.texts.get(self.asked[-1], said(*self.asked[-1])), "stop", 100, 20)


def said(name, kind):
    number = int(name)
    colour = ("red", "green", "blue", "white")[number % 4]
    answer = f"A {colour} kite is flying over the beach, and number {number} is painted on its broad tail."
    if kind == "detail_description":
        return f"{answer} The sky above is clear. The sand below is empty and looks warm in the sun."
    question = "What is flying?" if kind == "conversation" else "Why could somebody come here with a kite?"
    return f"Question:\n{question}\n===\nAnswer:\n{answer}"


def write_contexts(folder, number=4, pictures=True, name="contexts.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(number):
        rows.append({"id": str(index), "image": f"{index}.png", "captions": [CAPTIONS[index % 4]]})
        rows[-1]["instances"] = [{"category": "kite", "bbox": [0.1, 0.1, 0.4, 0.4]}]
        if pictures:
            Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / f"{index}.png")
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def rows_of(out):
    rows = read_conversations(out, "train")
    return [(rows.name(index), [text_of(message) for message in rows.messages(index)]) for index in range(len(rows))]


@pytest.fixture
def contexts(tmp_path):
    return write_contexts(tmp_path / "contexts")


def make(contexts, out, teacher, **settings):
    return make_instructions(contexts, out, teacher, image_folder=contexts.parent, **settings)


def test_every_context_is_asked_about_in_every_kind_and_written_in_order(contexts, tmp_path):
    report = make(contexts, tmp_path / "out", teacher := Parrot())
    assert teacher.asked == [(str(index), kind) for index in range(4) for kind in KINDS]
    assert report.accepted == dict.fromkeys(KINDS, 4)
    rows = read_conversations(tmp_path / "out", "train")
    assert [rows.name(index) for index in range(12)] == [f"{index}-{kind}" for index in range(4) for kind in KINDS]
    assert [text_of(message) for message in rows.messages(0)] == [
        "What is flying?",
        "A red kite is flying over the beach, and number 0 is painted on its broad tail.",
    ]
    assert [rows.images(index)[0].getpixel((0, 0)) for index in range(0, 12, 3)] == [
        (index, 0, 0) for index in range(4)
    ]


def test_data_set_is_one_that_datasets_loads_and_the_audit_accepts(contexts, tmp_path):
    make(contexts, tmp_path / "out", Parrot(), seed=3)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["images"][0].size == (4, 4)
    assert (loaded[4]["teacher"], loaded[4]["kind"], loaded[4]["seed"]) == ("parrot", "detail_description", 3)
    assert len({row["prompt_hash"] for row in loaded}) == 3
    assert audit_conversations(tmp_path / "out").is_usable


def test_llava_json_holds_the_same(contexts, tmp_path):
    make(contexts, tmp_path / "out", Parrot())
    rows = json.loads((tmp_path / "out" / "llava.json").read_text())
    assert rows[0] == {
        "id": "0-conversation",
        "image": "0.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is flying?"},
            {"from": "gpt", "value": "A red kite is flying over the beach, and number 0 is painted on its broad tail."},
        ],
    }
    again = read_conversations(tmp_path / "out" / "llava.json", image_folder=contexts.parent)
    assert [[text_of(message) for message in again.messages(index)] for index in range(len(again))] == [
        words for _, words in rows_of(tmp_path / "out")
    ]


def test_rejected_replies_are_counted_by_reason_and_left_out(contexts, tmp_path):
    texts = {("0", "conversation"): "", ("1", "conversation"): "no blocks here, alas, whatever one may look for."}
    report = make(contexts, tmp_path / "out", Parrot(texts))
    assert sum(report.rejected["conversation"].values()) == 2
    assert "empty" in report.rejected["conversation"]
    assert report.accepted == {"conversation": 2, "detail_description": 4, "complex_reasoning": 4}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| conversation | 4 | 2 | 50.0 % |" in card
    assert "| complex_reasoning | 4 | 4 | 100.0 % | - |" in card


def test_failed_requests_are_told_and_asked_again(contexts, tmp_path):
    report = make(contexts, tmp_path / "out", Parrot(errors=[("1", "conversation"), ("3", "complex_reasoning")]))
    assert (report.num_accepted, report.num_failed) == (10, 2)
    assert "HTTP 500" in report.failures[0] and "line 2" in report.failures[0]
    report = make(contexts, tmp_path / "out", teacher := Parrot())
    assert teacher.asked == [("1", "conversation"), ("3", "complex_reasoning")]
    assert (report.num_accepted, report.num_failed) == (12, 0)


def test_teacher_that_breaks_down_loses_nothing(contexts, tmp_path):
    whole = tmp_path / "whole"
    make(contexts, whole, Parrot())

    class Fragile(Parrot):
        def replies(self, requests):
            for number, reply in enumerate(super().replies(requests)):
                if number == 2:
                    raise ConnectionError("gone")
                yield reply

    for _ in range(5):
        with pytest.raises(ConnectionError, match="gone"):
            make(contexts, tmp_path / "out", Fragile())
    make(contexts, tmp_path / "out", teacher := Parrot())
    assert teacher.asked == [("3", "detail_description"), ("3", "complex_reasoning")]
    assert rows_of(tmp_path / "out") == rows_of(whole)
    assert (tmp_path / "out" / "llava.json").read_bytes() == (whole / "llava.json").read_bytes()


def test_replies_of_an_unfinished_batch_are_not_kept(contexts, tmp_path):
    class Batches(Parrot):
        def replies(self, requests):
            for number, reply in enumerate(super().replies(requests)):
                if number == 5:
                    raise ConnectionError("gone")
                yield TeacherReply(reply.request, reply.text, is_last=number % 3 == 2)

    with pytest.raises(ConnectionError):
        make(contexts, tmp_path / "out", Batches())
    make(contexts, tmp_path / "out", teacher := Parrot())
    assert teacher.asked[0] == ("1", "conversation")
    assert len(teacher.asked) == 9


def test_kinds_and_contexts_can_be_added(contexts, tmp_path):
    make(contexts, tmp_path / "out", Parrot(), kinds=["conversation"], max_contexts=2)
    assert [name for name, _ in rows_of(tmp_path / "out")] == ["0-conversation", "1-conversation"]
    write_contexts(contexts.parent, number=6)
    make(contexts, tmp_path / "out", teacher := Parrot(), kinds=["conversation", "complex_reasoning"])
    assert ("0", "conversation") not in teacher.asked
    assert len(teacher.asked) == 10
    assert len(rows_of(tmp_path / "out")) == 12


def test_other_checks_need_no_new_answers(contexts, tmp_path):
    make(contexts, tmp_path / "out", Parrot())
    strict = InstructionLimits(language="de")
    report = make_instructions(
        contexts, tmp_path / "out", teacher := Parrot(), image_folder=contexts.parent, limits=strict
    )
    assert teacher.asked == []
    assert report.num_accepted == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 1}, "a run of the same seed, got 0 before, 1 now"),
        ({"name": "other"}, "a run of the same teacher, got `name` 'parrot' before, 'other' now"),
        ({"settings": {"version": 2}}, "`version` 1 before, 2 now"),
    ],
)
def test_run_of_something_else_in_the_folder_is_refused(contexts, tmp_path, change, told):
    make(contexts, tmp_path / "out", Parrot())
    teacher = Parrot()
    for name in change.keys() & {"name", "settings"}:
        setattr(teacher, name, change[name])
    with pytest.raises(ValueError, match=told):
        make(contexts, tmp_path / "out", teacher, seed=change.get("seed", 0))


def test_answer_that_another_picture_got_is_left_out_where_that_is_wanted(contexts, tmp_path):
    same = "Question:\nWhat is flying?\n===\nAnswer:\nA kite is flying over the quiet beach under a clear sky."
    texts = {(str(index), "conversation"): same for index in range(4)}
    report = make(contexts, tmp_path / "one", Parrot(texts), kinds=["conversation"])
    assert report.rejected == {"conversation": {"said of another picture": 3}}
    report = make(contexts, tmp_path / "all", Parrot(texts), kinds=["conversation"], across_pictures=False)
    assert report.accepted == {"conversation": 4}


def test_question_asked_before_of_a_picture_is_left_out(contexts, tmp_path):
    texts = {("0", "complex_reasoning"): said("0", "conversation")}
    report = make(contexts, tmp_path / "out", Parrot(texts))
    assert report.rejected == {"complex_reasoning": {"asked before": 1}}


def test_bad_contexts_are_left_out_and_told(tmp_path):
    file = write_contexts(tmp_path / "contexts", number=3)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows += [
        {**rows[0]},
        {"id": "x", "captions": ["No picture."]},
        {"id": "y", "image": "y.png", "captions": ["Missing."]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):  # the second time it is not read again, and told all the same
        report = make(file, tmp_path / "out", Parrot())
        assert {kind: number for kind, (number, _) in report.bad_contexts.items()} == {
            "duplicate ids": 1,
            "no picture": 1,
            "missing pictures": 1,
        }
        assert "line 4" in report.bad_contexts["duplicate ids"][1][0]
        assert report.num_accepted == 9


def test_without_an_image_folder_names_of_pictures_are_written(contexts, tmp_path):
    make_instructions(contexts, tmp_path / "out", Parrot())
    (file,) = (tmp_path / "out" / "data").glob("*.parquet")
    images = pyarrow.parquet.read_table(file)["images"].to_pylist()
    assert images[0] == [{"bytes": None, "path": "0.png"}]
    assert len(read_conversations(tmp_path / "out", "train", image_folder=contexts.parent)) == 12


@pytest.mark.parametrize("kinds", [["conversations"], []])
def test_unknown_kinds_are_refused(contexts, tmp_path, kinds):
    with pytest.raises(
        ValueError, match="`kinds` must be some of conversation, detail_description, complex_reasoning, got"
    ):
        make(contexts, tmp_path / "out", Parrot(), kinds=kinds)


def test_progress_is_told(contexts, tmp_path):
    told = []
    make(contexts, tmp_path / "out", Parrot(), progress=lambda done, total, report: told.append((done, total)))
    assert told[-1] == (12, 12)


@pytest.mark.parametrize("there", ["README.md", "llava.json", "data/train.parquet"])
def test_folder_of_something_else_is_refused_and_left_alone(contexts, tmp_path, there):
    file = tmp_path / "out" / there
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="must be new, or hold a run to go on with"):
        make(contexts, tmp_path / "out", teacher := Parrot())
    assert file.read_text() == "mine"
    assert teacher.asked == []


def test_file_in_the_place_of_the_folder_is_refused(contexts, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(FileExistsError, match="`out` must be a folder, got the file"):
        make(contexts, tmp_path / "out", Parrot())


@pytest.mark.parametrize("error", [BudgetReached("spent"), ConnectionError("gone")])
def test_teacher_that_ends_leaves_a_data_set_of_what_it_said(contexts, tmp_path, error):
    class Ending(Parrot):
        def replies(self, requests):
            for number, reply in enumerate(super().replies(requests)):
                if number == 4:
                    raise error
                yield reply

    with pytest.raises(type(error), match=str(error)):
        make(contexts, tmp_path / "out", Ending())
    assert [name for name, _ in rows_of(tmp_path / "out")] == [*(f"0-{kind}" for kind in KINDS), "1-conversation"]


def test_teacher_that_says_nothing_leaves_the_folder_free_for_another(contexts, tmp_path):
    class Dead(Parrot):
        def replies(self, requests):
            next(iter(requests))
            raise ConnectionError("nobody there")
            yield

    with pytest.raises(ConnectionError):
        make(contexts, tmp_path / "out", Dead(), seed=5)
    assert make(contexts, tmp_path / "out", Parrot()).num_accepted == 12


def test_kinds_of_earlier_runs_stay_in_the_data_set(contexts, tmp_path):
    make(contexts, tmp_path / "out", Parrot(), kinds=["conversation"])
    told = []
    report = make(
        contexts,
        tmp_path / "out",
        Parrot(),
        kinds=["detail_description"],
        progress=lambda done, total, report: told.append((done, total)),
    )
    assert report.accepted == {"conversation": 4, "detail_description": 4}
    assert told[-1] == (4, 4)


def test_contexts_that_are_gone_from_the_file_are_left_out(contexts, tmp_path):
    make(contexts, tmp_path / "out", Parrot())
    lines = contexts.read_text().splitlines(keepends=True)
    contexts.write_text("".join(lines[2:]))
    report = make(contexts, tmp_path / "out", teacher := Parrot())
    assert (report.num_contexts, report.num_accepted, teacher.asked) == (2, 6, [])
    assert rows_of(tmp_path / "out")[0][0] == "2-conversation"
    contexts.write_text("".join(lines))
    assert make(contexts, tmp_path / "out", teacher := Parrot()).num_accepted == 12
    assert teacher.asked == []


def test_pictures_found_under_another_name_go_on(tmp_path):
    file = write_contexts(tmp_path / "contexts", pictures=False)
    make_instructions(file, tmp_path / "out", Parrot())
    for index in range(4):
        Image.new("RGB", (4, 4)).save(file.parent / f"{index}.jpg")
    report = make(file, tmp_path / "out", teacher := Parrot())
    assert (report.num_accepted, teacher.asked) == (12, [])
    assert json.loads((tmp_path / "out" / "llava.json").read_text())[0]["image"] == "0.jpg"


def test_urls_are_no_pictures_of_a_folder(contexts, tmp_path):
    with contexts.open("a") as stream:
        stream.write(json.dumps({"id": "4", "image": "https://example.org/a.png", "captions": ["A kite."]}) + "\n")
    report = make(contexts, tmp_path / "out", Parrot(), allow_urls=True)
    assert {kind: number for kind, (number, _) in report.bad_contexts.items()} == {"unwanted names of pictures": 1}
    names_only = make_instructions(
        contexts, tmp_path / "names", Parrot(), allow_urls=True, kinds=["detail_description"]
    )
    assert names_only.accepted["detail_description"] == 5 - sum(
        names_only.rejected.get("detail_description", {}).values()
    )


def test_picture_that_is_gone_or_broken_is_left_out_with_its_reason(contexts, tmp_path):
    class Clumsy(Parrot):
        def replies(self, requests):
            yield from super().replies(requests)
            (contexts.parent / "0.png").unlink()
            (contexts.parent / "1.png").write_text("<html>")

    report = make(contexts, tmp_path / "out", Clumsy(), kinds=["conversation"])
    assert report.accepted == {"conversation": 2}
    assert report.rejected == {"conversation": {"missing pictures": 1, "unreadable pictures": 1}}


def test_account_of_a_teacher_is_added_up_over_runs(contexts, tmp_path):
    class Account:
        def __init__(self):
            self.told = {"requests": 0, "retries": {}, "cost": 0.0, "seconds": 1.5}

        def to_dict(self):
            return json.loads(json.dumps(self.told))

    class Paid(Parrot):
        before = None

        def count_before(self, *tokens):
            self.before = tokens

        def replies(self, requests):
            self.account.told["retries"]["429"] = 2
            for reply in super().replies(requests):
                self.account.told["requests"] += 1
                self.account.told["cost"] += 0.5
                yield reply

    for kinds in (["conversation"], ["detail_description"]):
        teacher = Paid()
        teacher.account = Account()
        report = make(contexts, tmp_path / "out", teacher, kinds=kinds)
    assert teacher.before == (400, 80)
    assert report.account == {"requests": 8, "retries": {"429": 4}, "cost": 4.0}


def test_rules_deny_only_what_the_contexts_name(contexts, tmp_path):
    """Kites alone were looked for: that there is no dog, nobody knows."""
    make(contexts, tmp_path / "out", RuleTeacher(), across_pictures=False)
    said = " ".join(answer for _, words in rows_of(tmp_path / "out") for answer in words[1::2])
    assert categories_in(said) == {"kite"}


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range_is_refused(contexts, tmp_path, seed):
    with pytest.raises(ValueError, match="`seed` must be in"):
        make(contexts, tmp_path / "out", Parrot(), seed=seed)


_RUN = """
import sys
from pathlib import Path
from tests.data.instructions.test_visual_instructions import Parrot, make
Path(sys.argv[3]).touch()
make(Path(sys.argv[1]), sys.argv[2], Parrot(seconds=0.02))
"""


@pytest.mark.slow
def test_run_that_is_killed_again_and_again_comes_to_the_same(tmp_path):
    """Twenty times at random moments after it began; then to its end."""
    contexts = write_contexts(tmp_path / "contexts", number=120)
    make(contexts, tmp_path / "whole", Parrot())
    out, begun, draw = tmp_path / "out", tmp_path / "begun", random.Random(0)
    command = [sys.executable, "-c", _RUN, str(contexts), str(out), str(begun)]
    stored, killed = [0], 0
    while killed < 20:
        begun.unlink(missing_ok=True)
        process = subprocess.Popen(command, cwd=Path(__file__).parents[3])
        while process.poll() is None and not begun.exists():  # imports take longer than the run
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.6))
        killed += process.poll() is None
        process.kill()
        process.wait()
        if (out / "run.sqlite").exists():
            with InstructionStore(out / "run.sqlite") as store:
                stored.append(store.num_replies())
    assert stored == sorted(stored)
    assert len(set(stored)) > 10  # most of them got somewhere
    assert 0 < stored[-1] < 360  # and none to the end
    assert subprocess.run(command, cwd=Path(__file__).parents[3]).returncode == 0
    assert rows_of(out) == rows_of(tmp_path / "whole")
    assert (out / "llava.json").read_bytes() == (tmp_path / "whole" / "llava.json").read_bytes()
    left = sorted(path.name for path in out.rglob("*") if path.is_file())
    assert left == ["README.md", "llava.json", "run.sqlite", "train-00000-of-00001.parquet"]
