"""What goes along with weights whose licence asks for it: files of licence and notice, and what a merged model was made of."""

import json
import os
from pathlib import Path
from typing import Any

from .checkpoint_files import find_file
from .weight_report import card_metadata, stated_license

MERGED_FILE = "merged_from.json"
_LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")


def copy_licence(name_or_folder: str | os.PathLike, out: Path) -> None:
    """Take licence and notice of a model along with what is made of it; where others lie there already, they are added."""
    for name in _LICENCE_FILES:
        file, target = find_file(name_or_folder, name), out / name
        if file is None:
            continue
        text, before = file.read_bytes(), target.read_bytes() if target.is_file() else b""
        if text not in before:
            target.write_bytes(before + b"\n\n" + text if before else text)


def write_merge_record(out: Path, base: dict[str, str], adapter: dict[str, str]) -> None:
    """Write `merged_from.json`, which keeps the licences of base and adapter with a merged model.

    Args:
        out: folder of the merged model.
        base, adapter: `name`, as it may be published, and `license`, as of `known_licence`.
    """
    text = json.dumps({"base": base, "adapter": adapter}, indent=2, ensure_ascii=False)
    (out / MERGED_FILE).write_text(text + "\n", encoding="utf-8")


def read_merge_record(name_or_folder: str | os.PathLike) -> dict[str, dict[str, str]]:
    """`base` and `adapter` of a merged model, each with `name` and `license`; empty for other models."""
    try:
        file = find_file(name_or_folder, MERGED_FILE)
        content: Any = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        role: {key: str(entry.get(key) or "") for key in ("name", "license")}
        for role in ("base", "adapter")
        if isinstance(entry := content.get(role), dict)
    }


def known_licence(name_or_folder: str | os.PathLike) -> str:
    """The licence of a model by its card, or, of a merged one without, that of its base; empty if neither is known."""
    stated = stated_license(card_metadata(name_or_folder))
    return stated or read_merge_record(name_or_folder).get("base", {}).get("license", "")
