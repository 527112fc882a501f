"""The papers behind the code: each equation that a docstring names has its line, and a citation says the same everywhere."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_vlm"
MODELS = sorted({path.parent.name for path in PACKAGE.glob("models/*/modeling_*.py")})
# `    Xu eq. 1 to 7    the LSTM    lstm_decoder.py `Decoder.forward`, `other``: the paper, its equations, and where they are
_ENTRY = re.compile(
    r"^ {4}(?P<paper>[A-Z]\w*|van den Oord) eq\. (?P<first>\d+)(?: to (?P<last>\d+))? {2,}(?P<rest>.+)$", re.M
)
_PLACE = re.compile(r"(?P<file>[\w/]+\.py)? ?`(?P<name>[\w.]+)`")
_COMMENT = re.compile(r"#.*?((?:[A-Z]\w*|van den Oord) eq\. \d+(?: to \d+)?)")
_CITATION = re.compile(
    r"([A-Z][\w-]+|van den Oord)(?: et al\.| and [A-Z]\w+) (\d{4})\w?(?![^,;()]*\d{4})(?: \([^)]*\))?,[^;]{0,60}?\s(https?://\S+)"
)


def listed_equations(path: Path) -> list[tuple[str, range, str, str]]:
    """Of a module's docstring: paper, equations, file and name of each place that computes them."""
    found = []
    for entry in _ENTRY.finditer(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""):
        numbers = range(int(entry["first"]), int(entry["last"] or entry["first"]) + 1)
        file = ""
        for place in _PLACE.finditer(entry["rest"]):
            file = place["file"] or file
            found.append((entry["paper"], numbers, file, place["name"]))
    return found


def source_of(file: Path, name: str) -> str:
    """The source of a module's function, or of a class's (`Class.function`), comments included."""
    text = file.read_text(encoding="utf-8")
    body: list[ast.stmt] = ast.parse(text).body
    for part in name.split("."):
        [node] = [node for node in body if getattr(node, "name", None) == part]
        body = getattr(node, "body", [])
    return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])


def commented_equations(source: str, paper: str) -> set[int]:
    """The numbers of a paper's equations that comments name."""
    numbers: set[int] = set()
    for first, last in re.findall(rf"#.*?{paper} eq\. (\d+)(?: to (\d+))?", source):
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def modules_with_equations() -> list[str]:
    return [str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py")) if listed_equations(path)]


@pytest.mark.parametrize("module", modules_with_equations())
def test_each_listed_equation_has_its_line(module):
    path = PACKAGE / module
    for paper, numbers, file, name in listed_equations(path):
        beside, inside = path.parent / file, PACKAGE / file
        place = path if not file else beside if beside.is_file() else inside
        named = commented_equations(source_of(place, name), paper)
        assert named & set(numbers), f"{module}: no comment in {place.name} `{name}` names {paper} eq. {numbers}"


def test_every_commented_equation_is_listed_by_a_model():
    listed = {
        (paper, number)
        for module in modules_with_equations()
        for paper, numbers, _, _ in listed_equations(PACKAGE / module)
        for number in numbers
    }
    for path in PACKAGE.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            for comment in _COMMENT.findall(line):
                paper, number = re.match(r"(.+) eq\. (\d+)", comment).groups()
                assert (paper, int(number)) in listed, f"{path.name}: {comment}"


@pytest.mark.parametrize("model", MODELS)
def test_each_model_names_its_equations_or_says_that_there_are_none(model):
    files = sorted((PACKAGE / "models" / model).glob("*.py"))
    assert any(map(listed_equations, files)) or any("no numbered equations" in file.read_text() for file in files)


def test_a_citation_says_the_same_everywhere():
    """One address, one first author and year; one arXiv paper, one number."""
    said: dict[str, set[tuple[str, str]]] = defaultdict(set)
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.yaml"), PACKAGE.parent / "README.md"]
    for path in files:
        text = " ".join(line.lstrip("# ").strip() for line in path.read_text(encoding="utf-8").splitlines())
        for author, year, address in _CITATION.findall(text):
            said[address.rstrip('.,;:)`"')].add((author, year))
    assert len(said) > 30
    assert {address: authors for address, authors in said.items() if len(authors) > 1} == {}
    years = {address: year for address, [(_, year)] in said.items() if "arxiv.org" in address}
    for address, year in years.items():
        number = re.search(r"arxiv\.org/abs/(\d{2})(\d{2})\.\d{4,5}$", address)
        assert number, f"{address} is no arXiv number"
        posted = 2000 + int(number[1])
        assert posted <= int(year) <= posted + 3, f"{address} was posted in {posted}, cited as of {year}"
