"""`hf-vlm chat`: one question, questions from a pipe, and a terminal."""

import io
import json

import pytest

from hf_vlm.cli import main
from tests.tiny_chat import chat_folder, colour_files, coloured  # noqa: F401 (fixtures)

# ruff: noqa: F811 (a fixture's name is an argument's name)


class Lines(io.StringIO):
    """Standard input of given lines; a terminal or a pipe."""

    def __init__(self, *lines, is_terminal=False):
        super().__init__("".join(f"{line}\n" for line in lines))
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def typed(monkeypatch):
    """Makes a terminal at which the given lines are typed; a KeyboardInterrupt among them is Ctrl-C, their end Ctrl-D."""

    def make(*lines):
        given = iter(lines)

        def read(prompt=""):
            line = next(given, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("sys.stdin", Lines(is_terminal=True))
        monkeypatch.setattr("builtins.input", read)

    return make


@pytest.mark.parametrize("names", [["red"], ["blue", "green"], ["green", "blue"]])
def test_one_question_about_pictures_is_answered(chat_folder, colour_files, capsys, names):
    pictures = [colour_files[name] for name in names]
    assert main(["chat", chat_folder, "--image", *pictures, "--question", "colours?"]) == 0
    assert capsys.readouterr().out == " ".join(names) + "\n"
    one_by_one = [argument for picture in pictures for argument in ("--image", picture)]
    assert main(["chat", *one_by_one, "--question", "colours?", chat_folder]) == 0
    assert capsys.readouterr().out == " ".join(names) + "\n"


def test_pictures_may_follow_the_question(chat_folder, colour_files, capsys):
    told = ["chat", chat_folder, "--image", colour_files["blue"], "--question", "colours?", colour_files["green"]]
    assert main(told) == 0
    assert capsys.readouterr().out == "blue green\n"


def test_question_without_pictures_is_answered(chat_folder, capsys):
    assert main(["chat", chat_folder, "--question", "hello"]) == 0
    assert capsys.readouterr().out == "hi\n"


def test_json_is_one_object_an_answer(chat_folder, colour_files, capsys, monkeypatch):
    told = ["chat", chat_folder, "--json", "--image", colour_files["blue"], colour_files["green"]]
    row = {"question": "colours?", "images": [colour_files["blue"], colour_files["green"]], "answer": "blue green"}
    assert main([*told, "--question", "colours?"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [row]
    monkeypatch.setattr("sys.stdin", Lines("colours?", "/reset", "hello"))
    assert main(told) == 0
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == [
        row,
        {"question": "hello", "images": [], "answer": "hi"},
    ]
    assert "A new conversation." in printed.err


def test_options_reach_system_text_and_generation(chat_folder, colour_files, tmp_path, capsys, monkeypatch):
    told = ["chat", chat_folder, "--image", colour_files["green"]]
    assert main([*told, "--question", "colours?", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out == "gre\n"
    assert main([*told, "--question", "colours?", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "green\n"
    assert main([*told, "--question", "colours?", "--temperature", "1000"]) == 0
    assert capsys.readouterr().out != "green\n"
    monkeypatch.setattr("sys.stdin", Lines("hello", f"/save {tmp_path / 'chat.jsonl'}"))
    assert main([*told, "--system", "Be short."]) == 0
    row = json.loads((tmp_path / "chat.jsonl").read_text(encoding="utf-8"))
    assert row["messages"][0] == {"role": "system", "content": "Be short."}
    assert row["messages"][1]["content"] == [{"type": "image"}, {"type": "text", "text": "hello"}]


def test_piped_lines_are_one_conversation(chat_folder, colour_files, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Lines("colours?", "", f"/image {colour_files['blue']}", "colours?", "first?"))
    assert main(["chat", chat_folder, "--image", colour_files["red"]]) == 0
    assert capsys.readouterr().out == "red\nblue\nred\n"


def test_bad_line_of_a_pipe_is_told_and_the_rest_is_answered(chat_folder, colour_files, tmp_path, capsys, monkeypatch):
    lines = Lines(f"/image {tmp_path / 'none.png'}", "colours?", "/und", "a" * 300)
    monkeypatch.setattr("sys.stdin", lines)
    assert main(["chat", chat_folder, "--image", colour_files["red"]]) == 1
    printed = capsys.readouterr()
    assert printed.out == "red\n"
    complaints = [line for line in printed.err.splitlines() if line.startswith("hf-vlm: ")]
    assert [part in complaint for part, complaint in zip(("none.png", "/und", "`undo`"), complaints, strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--question", "", "MODEL"], "A question is wanted, got ''"),
        (["--question", "a <image>", "MODEL"], "must not hold `<image>`"),
        (["no-such-folder", "--question", "a"], "no-such-folder"),
        (["no-such-folder", "--image", "no-such-picture.png"], "no-such-picture.png"),  # before the model is looked for
        (["--max-new-tokens", "300", "--question", "hello", "MODEL"], "lower `max_new_tokens`"),
    ],
)
def test_mistake_is_told_in_one_line_with_exit_code_1(chat_folder, capsys, arguments, told):
    assert main(["chat", *[chat_folder if argument == "MODEL" else argument for argument in arguments]]) == 1
    printed = capsys.readouterr()
    (complaint,) = [line for line in printed.err.splitlines() if line.startswith("hf-vlm: ")]
    assert told in complaint and "Traceback" not in printed.err and printed.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--question", "a"],
        ["MODEL", "--max-new-tokens", "0"],
        ["MODEL", "--temperature", "-1"],
        ["MODEL", "--temperature", "nan"],
        ["MODEL", "--image"],
    ],
)
def test_wrong_command_line_ends_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["chat", *arguments])
    assert ended.value.code == 2


def fail(calls, error):
    """A `ChatSession.ask` whose answer breaks after its first piece."""

    def ask(session, text, pictures=(), **settings):
        calls.append(text)
        yield "wo"
        raise error

    return ask


def test_error_of_the_model_is_told_and_a_traceback_shown_when_asked_for(chat_folder, capsys, monkeypatch):
    monkeypatch.setattr("hf_vlm.pipelines.chat.ChatSession.ask", fail([], RuntimeError("out of memory, say")))
    assert main(["chat", chat_folder, "--question", "hello"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "wo\n" and "hf-vlm: out of memory, say" in printed.err.splitlines()
    with pytest.raises(RuntimeError):
        main(["--traceback", "chat", chat_folder, "--question", "hello"])


def test_ctrl_c_ends_a_single_question(chat_folder, capsys, monkeypatch):
    monkeypatch.setattr("hf_vlm.pipelines.chat.ChatSession.ask", fail([], KeyboardInterrupt()))
    assert main(["chat", chat_folder, "--question", "hello"]) == 130
    assert "hf-vlm: stopped" in capsys.readouterr().err


def test_terminal_takes_commands_and_goes_on_after_mistakes(chat_folder, colour_files, typed, capsys):
    typed("/help", "/undo", f"/image {colour_files['green']}", "colours?", KeyboardInterrupt(), "first?")
    assert main(["chat", chat_folder]) == 0
    printed = capsys.readouterr()
    assert printed.out == "green\ngreen\n"
    for told in ("/save FILE", "hf-vlm: An exchange to take back", "1 picture for", "Ctrl-D ends the chat"):
        assert told in printed.err


def test_ctrl_c_at_a_terminal_ends_the_answer_and_not_the_chat(chat_folder, typed, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr("hf_vlm.pipelines.chat.ChatSession.ask", fail(calls, KeyboardInterrupt()))
    typed("hello", "again", "/quit", "never")
    assert main(["chat", chat_folder]) == 0
    assert capsys.readouterr().out == "wo\nwo\n" and calls == ["hello", "again"]
