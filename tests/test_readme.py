"""What the documentation says, it does: Python blocks run, commands and files are there.

Blocks of one document run in its order and in one namespace, as a reader would paste them, in a folder that holds what
a checkout holds. A document is the README, a model card or the docstrings of one module.
"""

import ast
import re
import shlex
import textwrap
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"


def fenced_blocks(text: str, *languages: str) -> list[tuple[int, str]]:
    """The fenced blocks of Markdown in the given languages: the number of the first line, and the source."""
    fence = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```\s*$", re.MULTILINE | re.DOTALL)
    return [
        (text.count("\n", 0, match.start(3)) + 1, textwrap.dedent(match[3]))
        for match in fence.finditer(text)
        if match[2] in languages
    ]


def docstrings(source: str) -> list[tuple[int, str]]:
    """The docstrings of a module, its classes and its functions, each with the number of the line it begins on."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        (node.body[0].lineno, ast.get_docstring(node) or "")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node)
    ]


def documents() -> dict[str, list[tuple[int, str]]]:
    """The Python blocks of every document that has some."""
    found = {"README.md": fenced_blocks(README.read_text(encoding="utf-8"), "python", "py")} if README.exists() else {}
    for path in sorted((CHECKOUT / "model_cards").glob("*/README.md")):
        found[path.relative_to(CHECKOUT).as_posix()] = fenced_blocks(path.read_text(encoding="utf-8"), "python", "py")
    for path in sorted((CHECKOUT / "hf_vlm").rglob("*.py")):
        found[path.relative_to(CHECKOUT).as_posix()] = [
            (start + line, source)
            for start, docstring in docstrings(path.read_text(encoding="utf-8"))
            for line, source in fenced_blocks(docstring, "python", "py")
        ]
    return {name: blocks for name, blocks in found.items() if blocks}


def shell_commands(text: str) -> list[str]:
    """The commands of the shell blocks of Markdown, without prompts and comments."""
    lines = [line for _, block in fenced_blocks(text, "sh", "bash", "shell", "console") for line in block.splitlines()]
    commands = [shlex.join(shlex.split(line.removeprefix("$ "), comments=True)) for line in lines]
    return [command for command in commands if command]


@pytest.fixture
def checkout_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which the checkout's folders are found and what a block writes is thrown away."""
    for name in ("model_cards", "scripts", "hf_vlm"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", documents())
def test_python_blocks_run(document: str, checkout_copy: Path):
    namespace: dict[str, object] = {"__name__": "__main__"}
    blocks = documents()[document]
    for line, source in blocks:
        code = compile("\n" * (line - 1) + source, document, "exec")  # a traceback names the document's own line
        exec(code, namespace)
    assert blocks


def test_readme_has_python_blocks():
    assert "README.md" in documents()


def test_first_screen_shows_the_two_commands():
    first_screen = README.read_text(encoding="utf-8").split("\n## ")[0]
    assert len(first_screen.splitlines()) < 30
    assert shell_commands(first_screen) == ["sh scripts/try.sh", "sh scripts/test.sh"]
    assert (CHECKOUT / "scripts/try.sh").is_file()
    assert (CHECKOUT / "scripts/test.sh").is_file()


def test_readme_names_files_that_exist():
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text)
    code_paths = re.findall(r"(?<![\w/.-])((?:hf_vlm|tests|scripts|model_cards)/[\w./-]*[\w/])", text)
    missing = [path for path in {*links, *code_paths} if not (CHECKOUT / path).exists()]
    assert missing == []


MARKDOWN = """\
# Title
```python
x = 1
```
1. text
   ```python
   y = 2
   ```
```sh
$ sh scripts/try.sh   # reads lines
sh scripts/test.sh
```
"""


def test_blocks_and_commands_are_found():
    assert fenced_blocks(MARKDOWN, "python") == [(3, "x = 1\n"), (7, "y = 2\n")]
    assert shell_commands(MARKDOWN) == ["sh scripts/try.sh", "sh scripts/test.sh"]
    assert docstrings('"""One."""\ndef f():\n    """Two."""\n') == [(1, "One."), (3, "Two.")]
