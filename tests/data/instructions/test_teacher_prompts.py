"""Prompts are read from folders laid out as LLaVA's, and tell a teacher what is known and no more."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

import hf_vlm.data.instructions.teacher_prompts as module
from hf_vlm.data.instructions.contexts import Context, Instance, Region
from hf_vlm.data.instructions.instruction_checks import InstructionLimits, read_reply
from hf_vlm.data.instructions.teacher_prompts import PromptError, TeacherPrompts
from hf_vlm.data.instructions.teachers import KINDS

OURS = Path(module.__file__).parent / "teacher_prompts"
DOG = Context(
    "7",
    "7.jpg",
    ("A dog on a boat.", "A wet dog."),
    (Instance("dog", (0.1, 0.2, 0.35, 0.5)), Instance("boat", (0.0, 0.4, 1.0, 1.0))),
)


@pytest.fixture
def folder(tmp_path):
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "system_message.txt").write_text(f"Be {kind}.\r\n", newline="")
        (tmp_path / kind / "000_caps.txt").write_text("A cat.\n")
        (tmp_path / kind / "000_conv.txt").write_text("Question:\nWhat is it?\n===\nAnswer:\nA cat.\n")
    return tmp_path


def test_messages_are_system_then_examples_then_what_is_known(folder):
    prompts = TeacherPrompts.load(folder)
    assert prompts.messages("complex_reasoning", DOG) == [
        {"role": "system", "content": "Be complex_reasoning."},
        {"role": "user", "content": "A cat."},
        {"role": "assistant", "content": "Question:\nWhat is it?\n===\nAnswer:\nA cat."},
        {
            "role": "user",
            "content": "A dog on a boat.\nA wet dog.\n\ndog: [0.100, 0.200, 0.350, 0.500]\nboat: [0.000, 0.400, 1.000, 1.000]",
        },
    ]


def test_conversation_is_told_no_boxes(folder):
    assert TeacherPrompts.load(folder).messages("conversation", DOG)[-1]["content"] == "A dog on a boat.\nA wet dog."


def test_phrases_of_regions_stand_in_for_captions():
    regions = (
        Region("a wet dog", (0, 0, 0.5, 0.5)),
        Region("a boat", (0, 0, 1, 1)),
        Region("a wet dog", (0, 0, 0.4, 0.4)),
    )
    context = Context("7", None, regions=regions)
    assert TeacherPrompts.load().messages("conversation", context)[-1]["content"] == "a wet dog\na boat"


@pytest.mark.parametrize(
    ("context", "kinds"),
    [
        (Context("7", None, source="a.jsonl:3"), KINDS),
        (Context("7", None, instances=DOG.instances, source="a.jsonl:3"), ("conversation",)),
    ],
)
def test_nothing_to_go_by_is_told_with_its_place(context, kinds):
    for kind in kinds:
        with pytest.raises(PromptError, match=f"a.jsonl:3: {kind} needs captions.*got none") as error:
            TeacherPrompts.load().messages(kind, context)
        assert error.value.kind == "nothing to ask about"


def test_boxes_alone_are_enough_for_a_description():
    context = Context("7", None, instances=DOG.instances[:1])
    assert (
        TeacherPrompts.load().messages("detail_description", context)[-1]["content"]
        == "dog: [0.100, 0.200, 0.350, 0.500]"
    )


def test_long_context_is_cut_to_first_captions_and_largest_boxes_in_their_order():
    boxes = tuple(Instance(f"thing{number}", (0, 0, 0.1 + 0.02 * ((7 * number) % 40), 1)) for number in range(40))
    context = Context("7", None, tuple(f"Caption {number}." for number in range(40)), boxes)
    prompts = TeacherPrompts.load(max_captions=2, max_boxes=3)
    told = prompts.messages("detail_description", context)[-1]["content"]
    widest = sorted(sorted(range(40), key=lambda number: (7 * number) % 40)[-3:])
    assert told.split("\n\n")[0] == "Caption 0.\nCaption 1."
    assert [line.split(":")[0] for line in told.split("\n\n")[1].split("\n")] == [f"thing{number}" for number in widest]
    assert len(context.instances) == 40, "the context itself stays"


def test_regions_count_among_the_largest_boxes():
    context = Context("7", None, ("A.",), DOG.instances, (Region("sea", (0, 0, 1, 0.9)),))
    told = TeacherPrompts.load(max_boxes=2).messages("complex_reasoning", context)[-1]["content"]
    assert told == "A.\n\nboat: [0.000, 0.400, 1.000, 1.000]\nsea: [0.000, 0.000, 1.000, 0.900]"


def test_question_is_a_function_of_seed_and_context():
    prompts = TeacherPrompts.load()
    drawn = [[prompts.question(seed, str(number)) for number in range(300)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    counts = Counter(drawn[0])
    assert set(counts) == set(prompts.questions) and len(prompts.questions) >= 12
    assert max(counts.values()) < 45  # 20 expected, 5 standard deviations of 4.3 above


def test_fewer_examples_can_be_asked_for():
    assert [len(TeacherPrompts.load().messages(kind, DOG)) for kind in KINDS] == [6, 8, 8]
    assert [len(TeacherPrompts.load(num_shots=1).messages(kind, DOG)) for kind in KINDS] == [4, 4, 4]
    assert [len(TeacherPrompts.load(num_shots=0).messages(kind, DOG)) for kind in KINDS] == [2, 2, 2]
    with pytest.raises(ValueError, match="`num_shots` must be at most 2.*got 3"):
        TeacherPrompts.load(num_shots=3)


def test_hash_follows_all_that_the_prompt_is_made_of(folder):
    hashes = [TeacherPrompts.load(folder).hash("conversation")]
    assert TeacherPrompts.load(folder).hash("conversation") == hashes[0]
    hashes.append(TeacherPrompts.load(folder).hash("complex_reasoning"))
    hashes.append(TeacherPrompts.load(folder, num_shots=0).hash("conversation"))
    hashes.append(TeacherPrompts.load(folder, max_captions=3).hash("conversation"))
    hashes.append(TeacherPrompts.load(folder, max_boxes=3).hash("conversation"))
    for name in ("system_message.txt", "000_caps.txt", "000_conv.txt"):
        (folder / "conversation" / name).write_text(f"Other {name}.")
        hashes.append(TeacherPrompts.load(folder).hash("conversation"))
    assert len(set(hashes)) == len(hashes)
    assert all(len(one) == 16 and set(one) <= set("0123456789abcdef") for one in hashes)


def test_examples_are_the_wanted_answers(folder):
    prompts = TeacherPrompts.load(folder, kinds=["conversation"])
    assert prompts.examples("conversation") == ("Question:\nWhat is it?\n===\nAnswer:\nA cat.",)
    assert prompts.examples("complex_reasoning") == ()


def test_own_questions_of_a_folder_are_used(folder):
    assert TeacherPrompts.load(folder).questions == TeacherPrompts.load().questions
    (folder / "detail_description" / "questions.txt").write_text("Describe it.\n\n Tell all. \n")
    assert TeacherPrompts.load(folder).questions == ("Describe it.", "Tell all.")


def test_kind_without_folder_is_refused_unless_not_asked_for(folder):
    shutil.rmtree(folder / "complex_reasoning")
    with pytest.raises(
        FileNotFoundError, match="must have a folder complex_reasoning.*conversation, detail_description"
    ):
        TeacherPrompts.load(folder)
    prompts = TeacherPrompts.load(folder, kinds=["conversation", "detail_description"])
    assert prompts.kinds == ("conversation", "detail_description")
    with pytest.raises(ValueError, match="one of those that were loaded, conversation, detail_description"):
        prompts.messages("complex_reasoning", DOG)


@pytest.mark.parametrize(
    ("name", "content", "error", "told"),
    [
        ("system_message.txt", None, FileNotFoundError, "system_message.txt is wanted"),
        ("system_message.txt", b" \n", ValueError, "system_message.txt must hold a text, got an empty file"),
        ("system_message.txt", b"Caf\xe9 au lait", ValueError, "must be UTF-8, got byte 0xe9 at place 3"),
        ("000_conv.txt", None, FileNotFoundError, "000_conv.txt is wanted, which 000_caps.txt beside it needs"),
        ("000_caps.txt", None, FileNotFoundError, "000_caps.txt is wanted, which 000_conv.txt beside it needs"),
        ("000_conv.txt", b"", ValueError, "000_conv.txt must hold a text"),
    ],
)
def test_faulty_file_is_named(folder, name, content, error, told):
    file = folder / "conversation" / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(error, match=told):
        TeacherPrompts.load(folder)


def test_missing_folder_and_unknown_kind_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="got .*nowhere, which is none"):
        TeacherPrompts.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`kinds` must be some of conversation.*got 'talk'"):
        TeacherPrompts.load(kinds=["talk"])
    with pytest.raises(ValueError, match="`max_boxes` must be 1 or more, got 0"):
        TeacherPrompts.load(max_boxes=0)


def test_mark_of_utf8_and_other_files_do_no_harm(folder):
    (folder / "conversation" / "system_message.txt").write_bytes(b"\xef\xbb\xbfBe kind.\n")
    (folder / "conversation" / "notes.txt").write_text("")
    (folder / "conversation" / "10_caps.txt").write_text("last")
    (folder / "conversation" / "10_conv.txt").write_text("last")
    (folder / "conversation" / "2_caps.txt").write_text("second")
    (folder / "conversation" / "2_conv.txt").write_text("second")
    contents = [message["content"] for message in TeacherPrompts.load(folder).messages("conversation", DOG)]
    assert contents[0] == "Be kind." and contents[3] == "second" and contents[5] == "last"


@pytest.mark.parametrize("kind", KINDS)
def test_own_examples_pass_the_checks_themselves(kind):
    """They are what a teacher imitates, so they must be as answers should be."""
    bare = TeacherPrompts.load(num_shots=0)
    shots = TeacherPrompts.load()._prompts[kind].shots
    for caps, answer in shots:
        captions, _, boxes = caps.partition("\n\n")
        instances = []
        for line in boxes.splitlines():
            category, _, sides = line.partition(": [")
            left, top, right, bottom = (float(side) for side in sides.rstrip("]").split(", "))
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            instances.append(Instance(category, (left, top, right, bottom)))
        context = Context("7", None, tuple(captions.splitlines()), tuple(instances))
        assert (context.box_lines() == boxes) and bool(boxes) == (kind != "conversation")
        exchanges = read_reply(kind, answer, context=context, prompts=bare, limits=InstructionLimits())
        assert len(exchanges) == (answer.count("Question:") or 1)


def test_own_prompts_are_short():
    """The smallest teacher reads 2,048 tokens; English has about four letters a token."""
    prompts = TeacherPrompts.load()
    for kind in KINDS:
        assert sum(len(message["content"]) for message in prompts.messages(kind, DOG)) < 5_500


def test_own_prompts_come_with_the_package():
    names = {path.relative_to(OURS).as_posix() for path in OURS.rglob("*.txt")}
    assert len(names) == 1 + 3 + 2 * (2 + 3 + 3)
