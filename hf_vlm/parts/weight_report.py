"""Say, part by part, where a model's weights came from: copied, folded, new, tied, dropped, with a hash a part.

Printed when a model is put together, and saved beside it as `weight_report.json`, so that a folder tells what it is
made of.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

REPORT_FILE = "weight_report.json"


@dataclass
class PartReport:
    """What one part (`vision`, `decoder`, ...) is made of. Names of the part's own tensors are relative to the part.

    Attributes:
        name: the part's role in the whole model.
        source: the Hub name or folder that it came from; empty for a part that is new.
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
            part = self[name]
            state = _state(given) if isinstance(given, nn.Module) else given
            part.sha256 = hash_weights({key: value for key, value in state.items() if key not in part.tied})

    def save(self, folder: str | Path) -> Path:
        """Write `weight_report.json` into a folder that exists, and give back its path."""
        path = Path(folder) / REPORT_FILE
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "WeightReport":
        """Read `weight_report.json` of a folder.

        Raises:
            FileNotFoundError: if the folder has none.
        """
        path = Path(folder) / REPORT_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"`{REPORT_FILE}` wanted in `{folder}`, got none. "
                "It is written for models made by `from_pretrained_parts`; others have no report."
            )
        return cls(parts=[PartReport(**part) for part in json.loads(path.read_text(encoding="utf-8"))["parts"]])


def describe_part(
    name: str,
    module: nn.Module,
    *,
    source: str = "",
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
    new = set(own) if not source else set(new) - set(tied)
    unknown = sorted((new | set(tied)) - set(state))
    if unknown:
        raise ValueError(
            f"`new` and `tied` must name tensors of the part `{name}`, got `{unknown[0]}`. "
            "Give names relative to the part, without its own name in front."
        )
    return PartReport(
        name=name,
        source=source,
        copied={key: value.numel() for key, value in own.items() if key not in new},
        new={key: value.numel() for key, value in own.items() if key in new},
        tied=dict(tied),
        folded=dict(folded or {}),
        dropped=dict(dropped or {}),
        sha256=hash_weights(own),
    )


def source_name(part: str | os.PathLike | PreTrainedModel) -> str:
    """What a report may publish: a Hub name as it is, of a folder on this machine its last part only."""
    name = part.name_or_path if isinstance(part, PreTrainedModel) else str(part)
    if not name:
        return f"{type(part).__name__} instance"
    return os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name


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
