"""Modules of this package as files of one flat folder: `models/vit/modeling_vit.py` as `models_vit_modeling_vit.py`.

Imports of our own code are rewritten, constants that are read from files are written out, all else stays as it is.
"""

import ast
import importlib
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from hf_vlm.parts.package_version import __version__

PACKAGE = Path(__file__).resolve().parents[1]
ENTRY_MODULE = "auto_classes"

# What the code may import: transformers and what it or torch require. Pictures are resized by transformers' own backends.
REQUIRED = {
    "PIL",
    "httpx2",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "packaging",
    "safetensors",
    "torch",
    "transformers",
    "yaml",
}


def flatten(modules: Iterable[str]) -> dict[str, str]:
    """File name in one flat folder -> text, of some modules and of all that they import of this package.

    Args:
        modules: dotted, without the package's name in front: `models.vit.modeling_vit`.

    Raises:
        AssertionError: if a module imports in a form that can't be followed; a test keeps ours to those that can.
    """
    waiting, texts = list(dict.fromkeys(modules)), {}
    while waiting:
        module = waiting.pop()
        if module in texts:
            continue
        texts[module], imported = _flat_text(module)
        waiting += imported
    files = {f"{flat_name(module)}.py": text for module, text in sorted(texts.items())}
    assert len(files) == len(texts), sorted(texts)
    return files


def flat_name(module: str) -> str:
    """The name in the flat folder of a module of this package."""
    return module.replace(".", "_")


def _flat_text(module: str) -> tuple[str, list[str]]:
    """A module's text with its imports of our own code rewritten, and the modules that these name."""
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = source.split("\n")
    starts = list(itertools.accumulate((len(line) + 1 for line in lines), initial=0))

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())  # ast counts bytes

    changes: list[tuple[int, int, str]] = []
    imported: list[str] = []
    for node, _ in _imports(tree):
        place = f"{path}:{node.lineno}"
        if isinstance(node, ast.Import) or not node.level:
            assert PACKAGE.name not in _packages(node), f"{place}: import our own code relatively"
            continue
        name = ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])])
        file = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
        assert file.is_file(), f"{place}: import from the defining module, `{name}` is none"
        found = _FROM.match(source, offset(node.lineno, node.col_offset))
        assert found is not None, f"{place}: an import in another form"
        changes.append((*found.span(1), f".{flat_name(name)}"))
        imported.append(name)
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and _reads_beside(statement):
            changes.append(_constant(module, statement, offset))
    for start, end, text in sorted(changes, reverse=True):
        source = source[:start] + text + source[end:]
    return header(f"{PACKAGE.name}/{module.replace('.', '/')}.py") + source, imported


_FROM = re.compile(r"from\s+(\.[\w.]*)\s+import\b")


def _imports(tree: ast.AST, in_try: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import of a module, and whether it stands in a `try`, where transformers lets a package be missing."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, in_try
        elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _imports(node, in_try or isinstance(node, ast.Try))


def _packages(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The first parts of the names that an absolute import names."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return {name.split(".")[0] for name in names}


def _reads_beside(statement: ast.stmt) -> bool:
    return any(isinstance(leaf, ast.Name) and leaf.id == "__file__" for leaf in ast.walk(statement))


def _constant(module: str, statement: ast.Assign | ast.AnnAssign, offset: Any) -> tuple[int, int, str]:
    """A constant that is read from files beside the module, which don't travel with it, written out."""
    place = f"{module}, line {statement.lineno}"
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    assert isinstance(target, ast.Name) and statement.value is not None, f"{place}: a constant has one name"
    value = getattr(importlib.import_module(f"{PACKAGE.name}.{module}"), target.id)
    text = repr(value)
    if isinstance(value, dict):
        text = "{\n" + "".join(f"    {name!r}: {entry!r},\n" for name, entry in value.items()) + "}"
    assert ast.literal_eval(text) == value, f"{place}: `{target.id}` can't be written out"
    end = statement.value
    assert end.end_lineno is not None and end.end_col_offset is not None
    return offset(end.lineno, end.col_offset), offset(end.end_lineno, end.end_col_offset), text


def header(source: str) -> str:
    """The first line of a generated file: the version, where it comes from, the licence."""
    return (
        f"# Generated by hf-vlm {__version__} (`hf-vlm export-code`), {source}. Copyright the hf-vlm authors, Apache-2.0: "
        "https://www.apache.org/licenses/LICENSE-2.0\n"
    )


def check_code(folder: Path) -> None:
    """Check that the code of a written folder is whole: what transformers will find, copy and import.

    Raises:
        AssertionError: if a file is no Python; imports a module or a name that is not there, this package, or a package that
            transformers doesn't require; or is not among those that come along with `auto_classes.py`.
    """
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in sorted(folder.glob("*.py"))}
    for name, tree in trees.items():
        for node, in_try in _imports(tree):
            place = f"{name}.py:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in trees, f"{place}: there is no `{node.module}`"
                missing = {alias.name for alias in node.names} - _defined(trees[node.module])
                assert not missing, f"{place}: `{node.module}` defines no {sorted(missing)}"
                continue
            foreign = _packages(node) - REQUIRED - set(sys.stdlib_module_names)
            assert PACKAGE.name not in foreign and (in_try or not foreign), f"{place}: imports {sorted(foreign)}"
    travelling = {Path(file).stem for file in get_relative_import_files(folder / f"{ENTRY_MODULE}.py")} | {ENTRY_MODULE}
    assert travelling == set(trees), sorted(travelling ^ set(trees))


def _defined(tree: ast.Module) -> set[str]:
    """Names that a module's top level defines: classes, functions, constants."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return found
