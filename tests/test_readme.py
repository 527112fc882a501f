"""What the documentation says, it does: Python blocks run, commands and files are there.

Blocks of one document run in its order and in one namespace, as a reader would paste them, in a folder that holds what
a checkout holds. A document is the README, a model card or the docstrings of one module.
"""

import ast
import re
import shlex
import textwrap
import urllib.parse
from pathlib import Path

import pytest

from hf_vlm.cli.commands import COMMANDS
from hf_vlm.cli.parser import parse

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"
CARDS = sorted(path.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.glob("model_cards/*/README.md"))


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
    blocks = [block for _, block in fenced_blocks(text, "sh", "bash", "shell", "console")]
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
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


def test_readme_has_python_blocks_and_nothing_to_fill_in():
    assert "README.md" in documents()
    assert "@@" not in README.read_text(encoding="utf-8")


def test_first_screen_shows_the_two_commands():
    first_screen = README.read_text(encoding="utf-8").split("\n## ")[0]
    assert len(first_screen.splitlines()) < 30
    assert shell_commands(first_screen) == ["sh scripts/try.sh", "sh scripts/test.sh"]
    assert (CHECKOUT / "scripts/try.sh").is_file()
    assert (CHECKOUT / "scripts/test.sh").is_file()


def test_readme_names_files_that_exist():
    text = README.read_text(encoding="utf-8")
    code_paths = re.findall(r"(?<![\w/.-])((?:hf_vlm|tests|scripts|model_cards)/[\w./-]*[\w/])", text)
    assert [path for path in set(code_paths) if not (CHECKOUT / path).exists()] == []


RECIPE_FILES = sorted(path.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.glob("hf_vlm/training/recipes/*.yaml"))


def own_commands(document: str) -> list[str]:
    """The `hf-vlm` command lines of a document, also those that `torchrun` or `accelerate launch` start."""
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    if document.endswith(".yaml"):
        header = "\n".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
        lines = re.findall(r"^command: +(hf-vlm .+)$", header, re.MULTILINE)
    else:
        lines = [shlex.split(line, comments=True) for line in shell_commands(text)]
        lines = [shlex.join(words[: words.index(">")] if ">" in words else words) for words in lines if words]
    found = []
    for line in lines:
        line = re.sub(r"^.*\s-m hf_vlm(\.cli)?\s", "hf-vlm ", line)
        if line.startswith("hf-vlm "):
            found.append(re.sub(r" '?\[(--[^\]]+)\]'?", r" \1", line))  # `[--int8]` is an option that may be left out
    return found


@pytest.mark.parametrize("document", ["README.md", *CARDS, *RECIPE_FILES])
def test_commands_are_ones_that_hf_vlm_takes(document: str, capsys: pytest.CaptureFixture[str]):
    for command in own_commands(document):
        try:
            parse(shlex.split(command)[1:])
        except SystemExit:
            pytest.fail(f"{document}: {command}\n{capsys.readouterr().err}")


def test_readme_shows_every_command():
    shown = {command.split()[1] for command in own_commands("README.md")}
    assert shown >= set(COMMANDS)


def headings(text: str) -> set[str]:
    """The anchors of the headings of Markdown, as GitHub makes them."""
    titles = re.findall(
        r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(document: Path) -> list[str]:
    """Links of a Markdown file to files or headings that are not there, and addresses that can't be ones."""
    text = document.read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text):
        address = urllib.parse.urlsplit(link)
        if address.scheme in ("http", "https", "mailto"):
            is_fine = (
                address.scheme == "mailto" or re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", address.netloc) is not None
            )
        else:
            target = document.parent / urllib.parse.unquote(address.path) if address.path else document
            is_fine = target.exists() and (
                not address.fragment or address.fragment in headings(target.read_text(encoding="utf-8"))
            )
        broken += [] if is_fine else [link]
    return broken


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", *CARDS])
def test_links_lead_somewhere(document: str):
    assert broken_links(CHECKOUT / document) == []


def test_broken_links_are_found(tmp_path: Path):
    document = tmp_path / "page.md"
    document.write_text(
        "# One title\n[a](#one-title) [b](#another) [c](missing.md) [d](https://x) [e](https://x.org/a) [f](page.md#one-title)\n"
    )
    assert broken_links(document) == ["#another", "missing.md", "https://x"]


def tree_entries(text: str) -> set[str]:
    """The paths of the annotated tree of the README, those of folders ending in `/`."""
    [tree] = [block for _, block in fenced_blocks(text, "text") if block.startswith("hf_vlm/")]
    entries, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0] if line.strip() else ""
        if line.startswith("  ") and not line.startswith("    ") and name:
            entries.add(folder + name)
        elif name and not line.startswith(" "):
            folder = name
            entries.add(name)
    return entries


def test_annotated_tree_is_the_checkouts():
    entries = tree_entries(README.read_text(encoding="utf-8"))
    assert {entry for entry in entries if not (CHECKOUT / entry).exists()} == set()
    folders = {f"hf_vlm/{path.parent.name}/" for path in (CHECKOUT / "hf_vlm").glob("*/__init__.py")}
    folders |= {f"hf_vlm/models/{path.parent.name}/" for path in (CHECKOUT / "hf_vlm/models").glob("*/__init__.py")}
    folders |= {f"hf_vlm/data/{path.parent.name}/" for path in (CHECKOUT / "hf_vlm/data").glob("*/__init__.py")}
    assert folders - {"hf_vlm/models/", "hf_vlm/data/"} <= entries


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
