"""Imports point one way, and the files of a model can be flattened into one remote-code folder.

The first half is the checker, the second checks it on small packages that break one rule each, and runs it on ours.
"""

import ast
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1] / "hf_vlm"
# folder or file of hf_vlm -> the folders it may import from
ALLOWED = {
    "blocks": {"blocks"},
    "parts": {"blocks", "parts"},
    "models": {"blocks", "parts", "models"},
    "data": {"data"},
    "training": {"blocks", "parts", "models", "data", "training"},
    "pipelines": {"blocks", "parts", "models", "data", "pipelines"},
    "sharing": {"blocks", "parts", "models", "data", "training", "sharing"},
    "demo": {"blocks", "parts", "models", "data", "training", "pipelines", "sharing", "demo"},
    "cli": {"blocks", "parts", "models", "data", "training", "pipelines", "sharing", "demo", "cli"},
    "__main__.py": {"cli"},
    "__init__.py": {"blocks", "parts", "models", "data", "training", "pipelines"},
}
# What an exporter copies beside a model, rewriting each import to its flat name: it must be able to follow all of them.
EXPORTED = {"blocks", "parts", "models"}


def own_imports(path: PurePosixPath, tree: ast.Module) -> list[tuple[ast.stmt, str, str | None]]:
    """Each import of our own code in a file: the statement, the dotted module inside hf_vlm, the name taken from it.

    `from ...blocks.attention import SelfAttention` in models/vit gives `blocks.attention` and `SelfAttention`; `import
    hf_vlm.cli` gives `cli` and None.
    """
    found: list[tuple[ast.stmt, str, str | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, a.name.removeprefix("hf_vlm").lstrip("."), None) for a in node.names if is_own(a.name)]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 0 and not is_own(module):
                continue
            folder = path.parents[node.level - 1].parts if node.level else ()
            module = module if node.level else module.removeprefix("hf_vlm").lstrip(".")
            found += [(node, ".".join((*folder, *filter(None, [module]))), a.name) for a in node.names]
    return found


def is_own(module: str) -> bool:
    return module.split(".")[0] == "hf_vlm"


def top_statements(tree: ast.Module) -> list[ast.stmt]:
    """The statements of a module's top level, those that only a type checker reads included."""
    checked = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return [*tree.body, *(statement for node in checked for statement in node.body)]


def defined_names(source: str) -> set[str]:
    """Names that a module's top level defines itself: classes, functions and assigned constants, not imports."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name))
    return names


def violations(package: dict[str, str]) -> list[str]:
    """Every broken rule in a package, given as {path inside hf_vlm: source}."""
    broken = []
    flat: dict[str, str] = {}
    for name, source in package.items():
        path = PurePosixPath(name)
        layer = path.parts[0]
        tree = ast.parse(source)
        if layer in EXPORTED and path.name != "__init__.py":
            flat_name = "_".join(path.parts)
            if flat_name in flat:
                broken.append(f"{name}: flattens to {flat_name}, as {flat[flat_name]} does")
            flat[flat_name] = name

        for statement, module, imported in own_imports(path, tree):
            place = f"{name}:{statement.lineno}"
            file = module.replace(".", "/") + ".py"
            if imported is not None and file not in package:  # `from .folder import x`: x may be a module itself
                target = f"{module}.{imported}".lstrip(".").replace(".", "/")
            else:
                target = module.replace(".", "/")
            target_layer = target.split("/")[0] if "/" in target else f"{target}.py"
            if target_layer not in ALLOWED[layer]:
                broken.append(f"{place}: {layer} may not import {target}")
            if layer == target_layer == "models" and path.parts[1:2] != tuple(target.split("/")[1:2]):
                broken.append(f"{place}: no architecture imports another, here {target}")
            if layer not in EXPORTED:
                continue
            if getattr(statement, "level", 0) == 0:
                broken.append(f"{place}: import our own code relatively, not {module}")
            if statement not in top_statements(tree):
                broken.append(f"{place}: import our own code at the top of the module")
            if file not in package:
                broken.append(f"{place}: import from the defining module, {module or 'hf_vlm'} is a folder")
            elif imported not in defined_names(package[file]):
                broken.append(f"{place}: {module} does not define {imported} itself")
    return broken


VIT, SWIN = "models/vit/modeling_vit.py", "models/swin/modeling_swin.py"
PACKAGE = {
    "__init__.py": "from .models.vit.modeling_vit import Model",
    "blocks/__init__.py": "from .attention import Attention",
    "blocks/attention.py": "class Attention: ...\nHEADS, WIDTH = 2, 4",
    "blocks/conv.py": "",
    "parts/features.py": "from ..blocks.attention import Attention\ndef features(): ...",
    "models/vit/__init__.py": "",
    "models/vit/config_vit.py": "class Config: ...",
    VIT: "import torch\nfrom .config_vit import Config\nfrom ...blocks.attention import HEADS\n"
    "from ...parts.features import features\nif TYPE_CHECKING:\n    from .config_vit import Config\nclass Model: ...",
    SWIN: "",
    "data/lines.py": "",
    "training/train.py": "def f():\n    from ..models.vit import modeling_vit\n    from hf_vlm.data import lines",
    "pipelines/read.py": "from ..models.vit.modeling_vit import Model",
    "cli/__init__.py": "def main():\n    from ..training.train import f",
    "__main__.py": "from hf_vlm.cli import main",
}


def test_rules_hold_in_a_package_that_keeps_them():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("blocks/conv.py", "from ..parts.features import features", "blocks may not import parts/features"),
        ("blocks/conv.py", "from ..models.vit.modeling_vit import Model", "blocks may not import models/vit"),
        ("parts/features.py", "from ..data.lines import Line\ndef features(): ...", "parts may not import data/lines"),
        ("data/lines.py", "from ..blocks.conv import Conv", "data may not import blocks/conv"),
        ("data/lines.py", "import hf_vlm.training.train", "data may not import training/train"),
        ("data/lines.py", "import hf_vlm", "data may not import"),
        ("data/lines.py", "from hf_vlm import VisionTransformerModel", "data may not import VisionTransformerModel"),
        ("training/train.py", "from ..pipelines.read import Reader", "training may not import pipelines/read"),
        ("training/train.py", "def f():\n    from ..cli import main", "training may not import cli"),
        ("__main__.py", "from hf_vlm.training import train", "__main__.py may not import training/train"),
        (VIT, "from ...training import train\nclass Model: ...", "models may not import training/train"),
        (SWIN, "from ..vit.config_vit import Config", "no architecture imports another"),
        (SWIN, "from hf_vlm.blocks.attention import Attention", "relatively"),
        (SWIN, "import hf_vlm.blocks.attention", "relatively"),
        (SWIN, "def f():\n    from ...blocks.attention import Attention", "top of the module"),
        (SWIN, "if OLD:\n    from ...blocks.attention import HEADS", "top of the module"),
        (SWIN, "try:\n    from ...blocks.attention import HEADS\nfinally: ...", "top of the module"),
        (SWIN, "from ...blocks import Attention", "blocks is a folder"),
        (SWIN, "from ...blocks import attention", "blocks is a folder"),
        (SWIN, "from . import modeling_swin", "models.swin is a folder"),
        (SWIN, "from ...parts.features import Attention", "does not define Attention itself"),
        (SWIN, "from ...blocks.attention import *", "does not define * itself"),
        ("models/vit/config/vit.py", "", "flattens to models_vit_config_vit.py, as models/vit/config_vit.py does"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_found(path: str, source: str, complaint: str):
    found = violations({**PACKAGE, path: source})
    assert any(line.startswith(path) and complaint in line for line in found), found


def test_imports_of_hf_vlm_point_one_way_and_can_be_exported():
    package = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}
    assert len(package) > 20  # the files were found
    assert violations(package) == []
