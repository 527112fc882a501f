"""Say, part by part, where a model's weights came from: copied, folded, new, tied, dropped, with a hash a part.

Printed when a model is put together, and saved beside it as `weight_report.json`, so that a folder tells what it is
made of.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import metadata_load
from torch import nn
from transformers import PreTrainedModel

from .checkpoint_files import find_file
from .model_origin import Origin, cached_repository, is_way, origin_of

REPORT_FILE = "weight_report.json"


@dataclass(frozen=True)
class PartSource:
    """Where a part's weights came from.

    Attributes:
        name: what may be published: a Hub name, or of a folder on this machine its last part; empty for a new part.
        license: as the card beside the source says, a licence id of the Hub; `other` with name and link in brackets; empty
            where no card says.
        revision: the commit of a Hub repository, 40 hex digits; empty where it is none.
    """

    name: str = ""
    license: str = ""
    revision: str = ""


@dataclass
class PartReport:
    """What one part (`vision`, `decoder`, ...) is made of. Names of the part's own tensors are relative to the part.

    Attributes:
        name: the part's role in the whole model.
        source: the Hub name or folder that it came from; empty for a part that is new.
        license, revision: of the source when the part was taken from it, as in `PartSource`.
        copied: our name -> number of values, read from the source.
        new: our name -> number of values, initialised at random.
        tied: our name -> the name whose values it shares.
        folded: source name -> where its values went.
        dropped: source name -> why it was not needed.
        sha256: of the part's tensors, by `hash_weights`.
    """

    name: str
    source: str = ""
    copied: dict[str, int] = field(default_factory=dict)
    new: dict[str, int] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    sha256: str = ""
    license: str = ""
    revision: str = ""


@dataclass
class WeightReport:
    """The parts of one model, in the order that data meets them."""

    parts: list[PartReport] = field(default_factory=list)

    def __getitem__(self, name: str) -> PartReport:
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(f"A part's name wanted ({', '.join(part.name for part in self.parts)}), got {name!r}.")

    def table(self) -> str:
        """Give back the report as text: one line a part, below it each reason for a tensor that was not copied."""
        rows = [("part", "source", "copied", "new", "tied", "folded", "dropped", "sha256")]
        for part in self.parts:
            rows.append(
                (
                    part.name,
                    part.source or "-",
                    _count(part.copied),
                    _count(part.new),
                    str(len(part.tied)),
                    str(len(part.folded)),
                    str(len(part.dropped)),
                    part.sha256[:12],
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        for part in self.parts:
            lines += [f"{part.name}: {ours} shares the values of {other}" for ours, other in part.tied.items()]
            lines += [f"{part.name}: folded {theirs}: {where}" for theirs, where in part.folded.items()]
            for reason in dict.fromkeys(part.dropped.values()):
                names = [theirs for theirs, why in part.dropped.items() if why == reason]
                lines.append(f"{part.name}: dropped {_names(names)}: {reason}")
            if part.new and part.copied:
                lines.append(f"{part.name}: new {_names(list(part.new))}")
        return "\n".join(lines)

    def rehash(self, parts: Mapping[str, nn.Module | Mapping[str, torch.Tensor]]) -> None:
        """Renew the hashes, as after training; `parts` gives each part's module, or its tensors, by its name."""
        for name, given in parts.items():
            self[name].sha256 = self._hash(name, given)

    def changed(self, parts: Mapping[str, nn.Module | Mapping[str, torch.Tensor]]) -> list[str]:
        """The names of the parts whose weights are not those that were hashed.

        Args:
            parts: each part's module, or its tensors, by its name; one that is missing counts as changed.
        """
        return [
            part.name
            for part in self.parts
            if part.name not in parts or self._hash(part.name, parts[part.name]) != part.sha256
        ]

    def _hash(self, name: str, given: nn.Module | Mapping[str, torch.Tensor]) -> str:
        tied = self[name].tied
        state = _state(given) if isinstance(given, nn.Module) else given
        return hash_weights({key: value for key, value in state.items() if key not in tied})

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `weight_report.json` into a folder that exists, and give back its path."""
        path = Path(folder) / REPORT_FILE
        write_whole(path, json.dumps(asdict(self), indent=2) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "WeightReport":
        """Read `weight_report.json` of a folder.

        Raises:
            FileNotFoundError: if the folder has none.
            ValueError: if the file is damaged.
        """
        path = Path(folder) / REPORT_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"`{REPORT_FILE}` wanted in `{folder}`, got none. "
                "It is written for models made by `from_pretrained_parts`; others have no report."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(parts=[_part_of(part) for part in content["parts"]])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"`{path}` must hold a report of a model's parts, got a file that is damaged ({type(error).__name__}: {error}). "
                "Copy or download it again, or delete it: the model works without."
            ) from error


def read_report(file: str | os.PathLike) -> WeightReport | None:
    """A model's report for those who go on without it: None, and a warning that names the file, if it is damaged.

    Args:
        file: path of a `weight_report.json`.
    """
    try:
        return WeightReport.load(Path(file).parent)
    except ValueError as error:
        warnings.warn(f"Without a report of the model's parts: {error}", stacklevel=2)
        return None


def write_whole(path: Path, text: str) -> None:
    """Write a file so that there is the old one or the new one at any time, never a part of either."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _part_of(content: dict[str, Any]) -> PartReport:
    """Reports of other versions have fewer fields, or more."""
    given = {field.name: content[field.name] for field in fields(PartReport) if field.name in content}
    part = PartReport(**given)
    empty = PartReport("")
    for name, value in given.items():
        if not isinstance(value, type(getattr(empty, name))):
            raise TypeError(f"`{name}` of the part {part.name!r} is a `{type(value).__name__}`")
    return part


def describe_part(
    name: str,
    module: nn.Module,
    *,
    source: str | PartSource = "",
    new: Iterable[str] = (),
    tied: Mapping[str, str] | None = None,
    folded: Mapping[str, str] | None = None,
    dropped: Mapping[str, str] | None = None,
) -> PartReport:
    """Give back the report of one part as it stands: what is neither new nor tied was copied.

    Args:
        name: the part's role, such as `vision`.
        module: the part; its tensors must hold values (not be on the meta device).
        source: where its weights came from; with an empty one all is new.
        new: names of the part's tensors that no source had, as the loader's `missing_keys`.
        tied: name -> the name whose values it shares. None asks the module what it ties.
        folded, dropped: what became of the source's other tensors, as in `MappedDecoder`.

    Raises:
        ValueError: if `new` or `tied` names a tensor that the part doesn't have.
    """
    state = _state(module)
    if tied is None:
        tied = {
            target: other
            for target, other in getattr(module, "all_tied_weights_keys", {}).items()
            if target in state and state[target].data_ptr() == state[other].data_ptr()
        }
    own = {key: value for key, value in state.items() if key not in tied}
    origin = source if isinstance(source, PartSource) else PartSource(source)
    new = set(own) if not origin.name else set(new) - set(tied)
    unknown = sorted((new | set(tied)) - set(state))
    if unknown:
        raise ValueError(
            f"`new` and `tied` must name tensors of the part `{name}`, got `{unknown[0]}`. "
            "Give names relative to the part, without its own name in front."
        )
    return PartReport(
        name=name,
        source=origin.name,
        license=origin.license,
        revision=origin.revision,
        copied={key: value.numel() for key, value in own.items() if key not in new},
        new={key: value.numel() for key, value in own.items() if key in new},
        tied=dict(tied),
        folded=dict(folded or {}),
        dropped=dict(dropped or {}),
        sha256=hash_weights(own),
    )


def source_name(part: str | os.PathLike | PreTrainedModel) -> str:
    """What a report may publish: a Hub name as it is, of a folder on this machine its last part only.

    A folder in the Hub's cache has the name of its repository.
    """
    name = origin_of(part).place if isinstance(part, PreTrainedModel) else os.fspath(part)
    if not name:
        return f"{type(part).__name__} instance"
    if not os.path.isdir(name) and not is_way(name):
        return name
    path = os.path.abspath(name)
    cached = cached_repository(path)
    return cached[0] if cached else os.path.basename(path)


def part_source(part: str | os.PathLike | PreTrainedModel) -> PartSource:
    """Where a part comes from, with the licence that the card beside it states and the commit of a Hub repository.

    What can't be found, as offline, is left empty: a report is no reason to fail.
    """
    origin = origin_of(part) if isinstance(part, PreTrainedModel) else Origin(os.fspath(part))
    if not origin.place:
        return PartSource(source_name(part))
    return PartSource(source_name(part), stated_license(card_metadata(origin.place)), _revision(origin))


def card_metadata(name_or_folder: str | os.PathLike) -> dict[str, Any]:
    """The header of the card, `README.md`, of a folder or a Hub repository; empty where there is none, or none that reads."""
    try:
        file = find_file(name_or_folder, "README.md")
        header = metadata_load(file) if file is not None else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return header if isinstance(header, dict) else {}


def stated_license(metadata: Mapping[str, Any]) -> str:
    """The licence in a card's header, as `PartSource` has it; empty if it has none.

    Args:
        metadata: what `card_metadata` gives.
    """
    stated = metadata.get("license")
    if isinstance(stated, list) and len(stated) == 1:
        stated = stated[0]
    if not isinstance(stated, str) or stated == "unknown":
        return ""
    more = [str(metadata[key]) for key in ("license_name", "license_link") if metadata.get(key)]
    return f"{stated} ({', '.join(more)})" if stated == "other" and more else stated


def _revision(origin: Origin) -> str:
    """The commit of what was loaded, or of what the cache holds under a Hub name."""
    if origin.revision and not os.path.exists(origin.place):
        return origin.revision
    try:
        file = find_file(origin.place, "config.json")
    except (OSError, ValueError):
        return ""
    cached = cached_repository(os.path.abspath(file)) if file is not None else None
    return cached[1] if cached else ""


def hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Give back the SHA-256 of tensors, in hex: over name, dtype, shape and bytes of each, sorted by name.

    The same values in another dtype have another hash; device, memory layout and order of the mapping don't count.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def _count(tensors: Mapping[str, int]) -> str:
    """Say how many tensors and values there are: `198 (22.1M)`."""
    values = sum(tensors.values())
    if not tensors:
        return "0"
    return f"{len(tensors)} ({values / 1e6:.1f}M)" if values >= 1e5 else f"{len(tensors)} ({values})"


def _names(names: list[str]) -> str:
    """Say which tensors, three by name."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
