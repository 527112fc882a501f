"""`ChatSession`: a model that names colours is asked about pictures, over several turns, interrupted, and saved."""

import _thread
import functools
import json
import os
import signal
import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from hf_vlm.data.conversations.conversations import read_conversations
from hf_vlm.pipelines.answer_stream import Generation
from hf_vlm.pipelines.chat import ChatPicture, ChatSession, open_chat_picture
from hf_vlm.pipelines.chat_lines import converse
from tests.tiny_chat import NUM_POSITIONS, chat_folder, colour_files, coloured, user  # noqa: F401 (fixtures)

# ruff: noqa: F811 (a fixture's name is an argument's name)


@pytest.fixture(scope="module")
def loaded(chat_folder):
    return AutoModelForImageTextToText.from_pretrained(chat_folder), AutoProcessor.from_pretrained(chat_folder)


@pytest.fixture
def session(loaded):
    return ChatSession(*loaded)


def answer(session, *args, **kwargs):
    return "".join(session.ask(*args, **kwargs))


def question(text, num_pictures=0):
    content = [*[{"type": "image"}] * num_pictures, {"type": "text", "text": text}] if num_pictures else text
    return {"role": "user", "content": content}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def slow(session, monkeypatch):
    """Calls of the language model, each of which waits until the test has let it: `slow.release()` lets one more through."""
    permits, forward = threading.Semaphore(0), session.model.forward
    counted = []

    @functools.wraps(forward)  # generation reads its signature
    def waiting(*args, **kwargs):
        assert permits.acquire(timeout=20)
        counted.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(session.model, "forward", waiting)
    permits.counted = counted
    return permits


# Answers


@pytest.mark.parametrize("names", [["red"], ["blue", "green"], ["green", "blue"]])
def test_answer_names_the_pictures_in_their_order_however_they_are_given(session, colour_files, names):
    given = {
        "files": [colour_files[name] for name in names],
        "PIL": [coloured(name) for name in names],
        "opened": [ChatPicture(coloured(name)) for name in names],
    }
    for pictures in given.values():
        session.reset()
        assert answer(session, "colours?", pictures) == " ".join(names)


def test_single_picture_needs_no_list(session, colour_files):
    assert answer(session, "colours?", colour_files["blue"]) == "blue"


def test_history_with_pictures_is_seen_in_later_turns(session):
    assert answer(session, "colours?", [coloured("green")]) == "green"
    assert answer(session, "colours?", [coloured("red")]) == "red"
    assert answer(session, "first?") == "green"
    assert session.messages == [
        question("colours?", 1),
        said("green"),
        question("colours?", 1),
        said("red"),
        question("first?"),
        said("green"),
    ]
    assert [image.getpixel((0, 0)) for image in session.images] == [
        coloured(name).getpixel((0, 0)) for name in ("green", "red")
    ]
    session.reset()
    assert session.messages == [] and session.images == []
    answer(session, "colours?", [coloured("blue")])
    assert answer(session, "first?") == "blue"  # green is forgotten


def test_picture_drawn_on_after_the_question_stays_in_the_history_as_it_was(session):
    picture = coloured("green")
    answer(session, "colours?", [picture])
    picture.paste(coloured("red"))
    assert answer(session, "first?") == "green"


def test_undo_takes_back_the_last_exchange_with_its_pictures(session):
    answer(session, "colours?", [coloured("green")])
    answer(session, "colours?", [coloured("red")])
    session.undo()
    assert session.messages == [question("colours?", 1), said("green")] and len(session.images) == 1
    session.undo()
    answer(session, "colours?", [coloured("red")])
    assert answer(session, "first?") == "red"
    session.undo()
    session.undo()
    with pytest.raises(ValueError, match="empty conversation"):
        session.undo()


def test_prompt_is_what_training_reads_before_the_answer(session, monkeypatch):
    """The tokens of a conversation up to its last answer are those of `encode_conversation`, learnt part left out."""
    seen = []
    generate = session.model.generate
    monkeypatch.setattr(session.model, "generate", lambda **given: seen.append(given) or generate(**given))
    session.system = "Name colours."
    answer(session, "colours?", [coloured("green"), coloured("blue")])
    answer(session, "first?")
    encoded = session.processor.encode_conversation(session.messages)
    learnt = [label != -100 for label in encoded["labels"]]
    start = len(learnt) - learnt[::-1].index(True) - 1
    while learnt[start - 1]:
        start -= 1
    assert seen[1]["input_ids"].tolist() == [encoded["input_ids"][:start]]
    assert torch.equal(seen[1]["pixel_values"], session.processor.prepare_images(session.images))
    assert session.messages[0] == {"role": "system", "content": "Name colours."}


def test_pieces_come_while_the_model_still_speaks(session, slow):
    stream = session.ask("colours?", [coloured("green"), coloured("red")])
    slow.release(3)
    assert next(stream) and sum(slow.counted) <= 3
    assert session.num_exchanges == 0
    slow.release(100)
    rest = list(stream)
    assert len(rest) > 2 and session.messages[-1]["content"].endswith("".join(rest))


def test_settings_of_session_and_question_reach_generation(loaded):
    session = ChatSession(*loaded, max_new_tokens=2)
    assert answer(session, "colours?", [coloured("green")]) == "gr"
    session.undo()
    assert answer(session, "colours?", [coloured("green")], max_new_tokens=4) == "gree"
    session.undo()
    assert answer(session, "colours?", [coloured("green")], generation_config=GenerationConfig(max_length=3)) == "gr"
    session.undo()
    wide = {"do_sample": True, "temperature": 1e3, "max_new_tokens": 20}
    assert answer(session, "colours?", [coloured("green")], **wide) != "green"
    session.undo()


@pytest.mark.parametrize("where", ["question", "generation config"])
def test_string_that_stops_an_answer_is_no_part_of_it(session, monkeypatch, where):
    settings = {}
    if where == "question":
        settings = {"stop_strings": ["d bl", "no"]}
    else:
        monkeypatch.setattr(session.model.generation_config, "stop_strings", ["d bl"])
    pieces = list(session.ask("colours?", [coloured("red"), coloured("blue")], **settings))
    assert "".join(pieces) == "re" == session.messages[-1]["content"]
    session.undo()
    assert (
        answer(session, "colours?", [coloured("red"), coloured("green")], **settings) == "red green"
    )  # `d b` didn't come
    session.undo()
    assert answer(session, "colours?", [coloured("red")], **settings) == "red"  # held back, then said


def test_beams_give_the_answer_that_the_model_generates(loaded):
    session = ChatSession(*loaded, num_beams=3, num_beam_groups=1)
    model, processor = loaded
    messages = [user("first?", coloured("blue"))]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs, num_beams=3)[0, inputs["input_ids"].shape[1] :]
    wanted = processor.decode(tokens, skip_special_tokens=True).strip()
    assert wanted and list(session.ask("first?", [coloured("blue")])) == [wanted]
    assert session.messages[-1] == said(wanted)


def test_blanks_around_an_answer_are_left_out_of_stream_and_history(session, monkeypatch):
    class Words:
        def __init__(self, *args):
            pass

        def __iter__(self):
            yield from [" ", "\n two", "  ", "words #", "a ", "# #", "#", "#more", " \n", " "]

        def stop(self):
            pass

    monkeypatch.setattr("hf_vlm.pipelines.chat.Generation", Words)
    assert list(session.ask("hello")) == ["two", "  words #", "a", " # #", "#", "#more"]
    assert session.messages[-1] == said("two  words #a # ###more")
    assert list(session.ask("hello", stop_strings="###")) == ["two", "  words", " #a", " #"]
    assert session.messages[-1] == said("two  words #a #")


# Refusals


@pytest.mark.parametrize(
    ("text", "pictures", "error", "told"),
    [
        ("", [], ValueError, "A question is wanted, got ''"),
        (" \n", ["red"], ValueError, "A question is wanted"),
        ("what is <image>?", [], ValueError, "must not hold `<image>`"),
        ("colours?", ["red", "none.png"], FileNotFoundError, "none.png"),
        ("colours?", ["damaged.png"], ValueError, "damaged.png: wanted a"),
        ("colours?", [3], TypeError, "must be a path, URL, bytes or PIL picture"),
    ],
)
def test_wrong_question_is_refused_at_once_and_the_history_stays(
    session, colour_files, tmp_path, text, pictures, error, told
):
    (tmp_path / "damaged.png").write_bytes(open(colour_files["red"], "rb").read()[:60])
    files = {"red": colour_files["red"], "none.png": tmp_path / "none.png", "damaged.png": tmp_path / "damaged.png"}
    answer(session, "colours?", [coloured("green")])
    before = session.messages
    with pytest.raises(error, match="(?s)" + told.replace("?", r"\?")):
        session.ask(text, [files.get(picture, picture) for picture in pictures])
    assert session.messages == before and len(session.images) == 1
    assert answer(session, "first?") == "green"


def test_picture_that_breaks_when_it_is_read_is_named(session, colour_files, tmp_path):
    file = tmp_path / "cut.png"
    file.write_bytes(open(colour_files["red"], "rb").read()[:-30])
    with pytest.raises(ValueError, match=r"cut\.png: wanted a whole picture"):
        session.ask("colours?", Image.open(file))


def test_unknown_setting_is_refused_with_the_near_one(loaded, session, chat_folder):
    for refuse in (
        lambda: ChatSession(*loaded, temprature=1.0),
        lambda: session.ask("hello", temprature=1.0),
        lambda: ChatSession.from_pretrained(chat_folder, temprature=1.0),
    ):
        with pytest.raises(TypeError, match="Did you mean `temperature`"):
            refuse()
    for own in ("streamer", "num_return_sequences"):
        with pytest.raises(TypeError, match=own):
            session.ask("hello", **{own: 2})


def test_conversation_too_long_for_the_positions_is_refused_with_what_to_drop(session):
    with pytest.raises(ValueError, match=f"{NUM_POSITIONS} positions.*fewer words.*max_new_tokens"):
        session.ask("a" * NUM_POSITIONS)
    answer(session, "colours?", [coloured("red")])
    with pytest.raises(ValueError, match="`undo`.*`reset`.*`max_new_tokens`"):
        session.ask("a" * (NUM_POSITIONS - 60))
    assert session.num_exchanges == 1

    def num_tokens(text):
        messages = [*session.messages, question(text)]
        return (
            len(session.processor.encode_conversation([*messages, said("a")])["input_ids"]) - 3
        )  # `a`, its end, a line's

    room = NUM_POSITIONS - num_tokens("hello")
    session.ask("hello", max_new_tokens=room)
    with pytest.raises(ValueError, match=f"got {num_tokens('hello')} tokens.*of up to {room + 1}"):
        session.ask("hello", max_new_tokens=room + 1)


def test_template_that_refuses_the_conversation_is_told(loaded):
    model, processor = loaded
    strict = type(processor)(
        processor.image_processor,
        processor.tokenizer,
        chat_template="{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x",
        num_image_tokens=processor.num_image_tokens,
        end_token=processor.end_token,
    )
    with pytest.raises(ValueError, match="no system.*Leave the system text out"):
        ChatSession(model, strict, system="Be short.").ask("hello")
    assert ChatSession(model, strict).ask("hello")


def test_processor_that_can_not_chat_or_does_not_fit_is_refused(loaded):
    model, processor = loaded
    with pytest.raises(ValueError, match="with a tokenizer and a chat template is wanted, got `CLIPImageProcessor"):
        ChatSession(model, processor.image_processor)
    other = type(processor)(
        processor.image_processor, processor.tokenizer, chat_template=processor.chat_template, num_image_tokens=9
    )
    with pytest.raises(ValueError, match="agree on the tokens of a picture, got 9 and 4"):
        ChatSession(model, other)


# Faults and interruptions


def test_error_of_the_generating_thread_is_raised_where_the_answer_is_taken(session, monkeypatch):
    answer(session, "colours?", [coloured("green")])
    forward, calls = session.model.forward, []

    @functools.wraps(forward)
    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory, say")
        return forward(*args, **kwargs)

    monkeypatch.setattr(session.model, "forward", failing)
    pieces = []
    with pytest.raises(RuntimeError, match="out of memory, say"):
        for piece in session.ask("colours?", [coloured("red")]):
            pieces.append(piece)
    assert pieces and session.num_exchanges == 1
    assert answer(session, "first?") == "green"


@pytest.fixture
def interrupt(slow, monkeypatch):
    """Takes a piece of a stream that does not come, and meets Ctrl-C while it waits; then lets the model go on, if it will."""
    stop = Generation.stop

    def stop_and_let_go(generation):
        threading.Timer(0.3, slow.release, [100]).start()
        stop(generation)

    def take(stream):
        timer = threading.Timer(0.7, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            try:
                next(stream)
            finally:
                timer.join()

    monkeypatch.setattr(Generation, "stop", stop_and_let_go)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    yield take
    signal.signal(signal.SIGINT, before)


def test_interrupted_answer_stops_the_model_and_is_kept_as_far_as_it_came(session, slow, interrupt):
    stream = session.ask("colours?", [coloured("green"), coloured("red")])
    slow.release(3)
    pieces = [next(stream), next(stream), next(stream)]
    interrupt(stream)
    assert sum(slow.counted) <= 4  # the model stopped after the step that it was in
    assert session.messages == [question("colours?", 2), said("".join(pieces))]
    assert answer(session, "colours?", [coloured("red")])  # and goes on


def test_answer_interrupted_before_its_first_word_leaves_no_trace(session, slow, interrupt):
    interrupt(session.ask("colours?", [coloured("green")]))
    assert session.messages == [] and session.images == [] and sum(slow.counted) <= 1
    assert answer(session, "colours?", [coloured("red")]) == "red"


@pytest.mark.parametrize("then", ["ask", "undo", "reset", "save", "close"])
def test_answer_left_half_way_is_ended_by_what_comes_next(session, slow, tmp_path, then):
    stream = session.ask("colours?", [coloured("green")])
    slow.release(2)
    first = next(stream)
    slow.release(100)
    if then == "ask":
        assert answer(session, "colours?", [coloured("red")]) == "red"
        assert session.messages[1] == said(first) and session.num_exchanges == 2
    elif then == "save":
        session.save(tmp_path / "chat.json")
        assert read_conversations(tmp_path / "chat.json").messages(0)[1] == said(first)
    elif then == "close":
        stream.close()
        assert session.messages[1] == said(first)
    else:
        getattr(session, then)()
        assert session.messages == []
    assert list(stream) == []


def test_question_never_taken_an_answer_of_is_not_kept(session):
    session.ask("colours?", [coloured("green")])
    assert answer(session, "colours?", [coloured("red")]) == "red"
    assert session.num_exchanges == 1


def test_answer_without_a_word_is_not_kept(session):
    end = session.processor.end_token_ids[0]
    assert answer(session, "hello", forced_eos_token_id=end, max_new_tokens=1) == ""
    assert session.messages == []


# Files


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_saved_conversation_is_training_data_and_goes_on_when_loaded(loaded, colour_files, tmp_path, suffix):
    session = ChatSession(*loaded, system="Name colours.")
    coloured("blue").save(tmp_path / "near.png")
    answer(session, "hello")
    answer(session, "colours?", [colour_files["green"], coloured("red")])
    answer(session, "colours?", [tmp_path / "near.png"])
    file = tmp_path / f"chat.{suffix}"
    session.save(file)

    stored = json.loads(file.read_text(encoding="utf-8"))
    row = stored[0] if suffix == "json" else stored
    assert row["images"] == ["chat-pictures/1.png", "chat-pictures/2.png", "near.png"]
    assert row["messages"] == session.messages
    (conversation,) = read_conversations(file)
    assert conversation["messages"] == session.messages
    wanted = [image.tobytes() for image in session.images]
    assert [image.tobytes() for image in conversation["images"]] == wanted

    again = ChatSession(*loaded)
    answer(again, "colours?", [coloured("blue")])
    again.load(file)
    assert again.messages == session.messages and again.system == "Name colours."
    assert [image.tobytes() for image in again.images] == wanted
    assert answer(again, "first?") == answer(session, "first?")
    again.save(file)  # its own file
    assert len(read_conversations(file).messages(0)) == 9


def test_saving_never_overwrites_another_file(session, tmp_path):
    with pytest.raises(ValueError, match="got an empty one"):
        session.save(tmp_path / "chat.json")
    answer(session, "hello")
    (tmp_path / "mine.json").write_text("precious")
    with pytest.raises(FileExistsError, match=r"mine\.json, which is there"):
        session.save(tmp_path / "mine.json")
    assert (tmp_path / "mine.json").read_text() == "precious"
    with pytest.raises(ValueError, match=r"\.json or \.jsonl"):
        session.save(tmp_path / "chat.txt")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "must hold conversations"),
        ([{"messages": [question("a"), said("b")]}] * 2, "must hold one conversation, got 2"),
        ([{"messages": [question("a", 1), said("b")], "images": ["gone.png"]}], r"gone\.png"),
        ([{"messages": [question("a", 1), said("b")], "images": ["bad.png"]}], r"bad\.png.*wanted a picture"),
        ([{"messages": [question("a")]}], "last word"),
    ],
)
def test_file_that_can_not_be_gone_on_with_leaves_the_conversation(session, tmp_path, rows, told):
    answer(session, "hello")
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    with pytest.raises((ValueError, OSError), match=f"(?s){told}"):
        session.load(tmp_path / "chat.json")
    assert session.messages == [question("hello"), said("hi")]


def test_interleaved_parts_of_a_loaded_question_keep_their_order(session, tmp_path):
    coloured("red").save(tmp_path / "red.png")
    coloured("blue").save(tmp_path / "blue.png")
    parts = [{"type": "text", "text": "this "}, {"type": "image"}, {"type": "text", "text": " or "}, {"type": "image"}]
    row = {"messages": [{"role": "user", "content": parts}, said("a")], "images": ["red.png", "blue.png"]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row))
    session.load(tmp_path / "chat.jsonl")
    assert session.messages[0]["content"] == parts
    assert session.images[1].getpixel((0, 0)) == coloured("blue").getpixel((0, 0))


# Loading models


def test_adapter_folder_loads_with_its_base_and_a_processor_of_either(loaded, chat_folder, tmp_path):
    model = get_peft_model(
        AutoModelForImageTextToText.from_pretrained(chat_folder),
        LoraConfig(target_modules=r"language_model.*(q_proj|down_proj)", init_lora_weights=False),
    )
    model.save_pretrained(tmp_path)
    assert ChatSession.from_pretrained(tmp_path).processor.chat_template == loaded[1].chat_template  # the base's
    loaded[1].save_pretrained(tmp_path)
    stored = tmp_path / "chat_template.jinja"
    stored.write_text("{# its own #}" + stored.read_text())
    session = ChatSession.from_pretrained(tmp_path)
    assert session.processor.chat_template.startswith("{# its own #}")
    inputs = session.processor.apply_chat_template(
        [user("colours?", coloured("red"))], tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        wanted, got, base = (one(**inputs).logits for one in (model.eval(), session.model, loaded[0]))
    torch.testing.assert_close(got, wanted)
    assert not torch.allclose(got, base, atol=0.1)
    assert isinstance(answer(session, "colours?", [coloured("red")]), str)

    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "/no/such"}))
    with pytest.raises(FileNotFoundError, match=r"base model `/no/such` of the adapter"):
        ChatSession.from_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json` must be JSON"):
        ChatSession.from_pretrained(tmp_path)


def test_model_without_a_processor_is_refused(loaded, tmp_path):
    loaded[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must hold a processor beside the model"):
        ChatSession.from_pretrained(tmp_path)


def test_model_of_another_kind_is_refused_in_a_sentence(reader_folder, chat_folder, tmp_path):
    with pytest.raises(ValueError, match="chat template is wanted, got `TrOCREncoderDecoderProcessor`"):
        ChatSession.from_pretrained(reader_folder)
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        ChatSession.from_pretrained(tmp_path / "no-such-folder")
    AutoModelForImageTextToText.from_pretrained(chat_folder).language_model.save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="must be a model of pictures and text.*got `llama`"):
        ChatSession.from_pretrained(tmp_path / "llama")
    original = tmp_path / "original"
    original.mkdir()
    (original / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "openai/clip"}))
    with pytest.raises(ValueError, match="original layout.*vision='openai/clip'"):
        ChatSession.from_pretrained(original)


def test_weights_are_float32_on_a_cpu_unless_asked(loaded, chat_folder, tmp_path):
    AutoModelForImageTextToText.from_pretrained(chat_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    loaded[1].save_pretrained(tmp_path)
    assert ChatSession.from_pretrained(tmp_path, device="cpu").model.dtype == torch.float32
    half = ChatSession.from_pretrained(tmp_path, device="cpu", dtype="auto")
    assert half.model.dtype == torch.bfloat16
    assert answer(half, "colours?", [coloured("red")])


# Lines


def told(session, lines, pictures=()):
    """Of each line: the answer, or `notice: ...`, or `error: ...`."""
    results = []
    for reply in converse(session, lines, pictures):
        text = "".join(reply.pieces)
        results.append(f"error: {reply.error}" if reply.error else f"notice: {reply.notice}" if reply.notice else text)
    return results


def test_lines_are_questions_and_commands(session, colour_files, tmp_path):
    spaced = tmp_path / "a name.png"
    coloured("green").save(spaced)
    results = told(
        session,
        [
            "colours?\n",
            "",
            f'/image "{spaced}"',
            "colours?",
            "/undo",
            f"/image {colour_files['red']} {colour_files['red']}",
            "/reset",
            f"/image {colour_files['red']}",
            "colours?",
            " first? ",
            f"/save {tmp_path / 'chat.json'}",
            "/reset",
            "hello",
            "/quit",
            "hello",
        ],
        [open_chat_picture(colour_files["blue"]), open_chat_picture(colour_files["red"])],
    )
    assert results == [
        "blue red",
        "notice: 1 picture for the next question.",
        "green",
        "notice: Taken back. 1 exchange left.",
        "notice: 2 pictures for the next question.",
        "notice: A new conversation.",
        "notice: 1 picture for the next question.",
        "red",
        "red",
        f"notice: Saved in {tmp_path / 'chat.json'}.",
        "notice: A new conversation.",
        "hi",
    ]
    assert len(read_conversations(tmp_path / "chat.json").messages(0)) == 4


def test_bad_line_is_told_and_the_next_is_answered(session, colour_files, tmp_path):
    results = told(
        session,
        [
            f"/image {colour_files['red']} {tmp_path / 'none.png'}",
            "/imag a.png",
            "/image",
            '/image "a.png',
            "/undo",
            "/save",
            f"/image {colour_files['blue']}",
            "a" * NUM_POSITIONS,
            "colours?",
        ],
    )
    assert "none.png" in results[0]
    assert all(result.startswith("error: ") for result in [*results[:6], results[7]])
    assert results[6] == "notice: 1 picture for the next question."  # red came with a bad one
    assert results[8] == "blue"  # which waited through the question that was too long


def test_names_of_pictures_may_begin_with_the_home_folder(session, colour_files, monkeypatch):
    monkeypatch.setenv("HOME", os.path.dirname(colour_files["red"]))
    monkeypatch.setenv("USERPROFILE", os.path.dirname(colour_files["red"]))
    assert told(session, ["/image ~/red.png", "colours?"])[-1] == "red"
