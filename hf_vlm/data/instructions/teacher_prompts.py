"""What a teacher that reads prompts is told: a system message, worked examples, and what is known of the picture.

A folder of prompts is laid out as LLaVA's own, so that either is put in the other's place:

    conversation/         system_message.txt, then examples: 000_caps.txt, what is known, and 000_conv.txt, the wanted answer
    detail_description/   the same; questions.txt, ways to ask for a description, one a line (ours if it is missing)
    complex_reasoning/    the same

What is known is captions, one a line; except for conversations, an empty line and the boxes follow, one a line:
`category: [x1, y1, x2, y2]`.

Source: Liu et al. 2023, https://arxiv.org/abs/2304.08485, section 3 and appendix; the folder playground/data/prompts of its code.
    The texts are our own.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_vlm.data.instructions.contexts import Context
from hf_vlm.data.instructions.teachers import KINDS

_OURS = Path(__file__).parent / "teacher_prompts"
_QUESTIONS = "questions.txt"
_LAYOUT = 1  # of what `messages` makes of a context; a part of the hash


class PromptError(ValueError):
    """There is nothing to ask about; `kind` names the fault, for counting."""

    def __init__(self, message: str, kind: str = "nothing to ask about") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class _KindPrompt:
    system: str
    shots: tuple[tuple[str, str], ...]  # what is known, the wanted answer


@dataclass(frozen=True)
class TeacherPrompts:
    """The prompts of some kinds; made by `load`.

    Attributes:
        kinds: that there are prompts for.
        questions: ways to ask for a detailed description.
        max_captions, max_boxes: so many at most are told of a picture, the first captions and the largest boxes; a small teacher
            reads no more than a few thousand tokens.
    """

    questions: tuple[str, ...]
    max_captions: int
    max_boxes: int
    _prompts: dict[str, _KindPrompt]

    @classmethod
    def load(
        cls,
        folder: str | Path | None = None,
        *,
        kinds: Sequence[str] = KINDS,
        num_shots: int | None = None,
        max_captions: int = 10,
        max_boxes: int = 30,
    ) -> "TeacherPrompts":
        """The prompts of a folder.

        Args:
            folder: laid out as above; None for ours.
            kinds: that are wanted; the folder need not hold others.
            num_shots: examples a kind, the first ones; None for all there are.

        Raises:
            FileNotFoundError: if a file or folder of a wanted kind is missing, such as an example's answer.
            ValueError: if a file is empty or not UTF-8, a kind is unknown, or there are fewer examples than `num_shots`.
        """
        root = _OURS if folder is None else Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"A folder of prompts is wanted, got {root}, which is none. Correct its name.")
        for name, number, least in (
            ("num_shots", num_shots, 0),
            ("max_captions", max_captions, 1),
            ("max_boxes", max_boxes, 1),
        ):
            if number is not None and number < least:
                raise ValueError(f"`{name}` must be {least} or more, got {number}. Correct it.")
        prompts = {kind: _read_kind(root, kind, num_shots) for kind in kinds}
        questions = root / "detail_description" / _QUESTIONS
        if not questions.is_file():
            questions = _OURS / "detail_description" / _QUESTIONS
        asked = tuple(line.strip() for line in _read_text(questions).splitlines() if line.strip())
        return cls(asked, max_captions, max_boxes, prompts)

    @property
    def kinds(self) -> tuple[str, ...]:
        """That there are prompts for."""
        return tuple(self._prompts)

    def messages(self, kind: str, context: Context) -> list[dict[str, str]]:
        """The prompt: `system`, then every example as `user` and `assistant`, then what is known of the picture as `user`.

        A conversation is told no boxes; where there is no caption, what was said of the picture's regions stands in for them.

        Raises:
            PromptError: if nothing is known that the kind can go by.
            ValueError: if there is no prompt for the kind.
        """
        prompt = self._prompt(kind)
        known = self._known(kind, context)
        if not known:
            wanted = "captions or regions" if kind == "conversation" else "captions, boxes or regions"
            raise PromptError(
                f"{context.source or context.id}: {kind} needs {wanted}, got none. Leave it out, or give it some."
            )
        turns = [{"role": "system", "content": prompt.system}]
        for caps, answer in prompt.shots:
            turns += [{"role": "user", "content": caps}, {"role": "assistant", "content": answer}]
        return [*turns, {"role": "user", "content": known}]

    def question(self, seed: int, context_id: str) -> str:
        """One of `questions`, a function of the arguments alone; each about equally often."""
        number = int.from_bytes(hashlib.sha256(f"{seed}|{context_id}".encode()).digest()[:8], "big")
        return self.questions[number % len(self.questions)]

    def hash(self, kind: str) -> str:
        """16 hex digits of all that the prompts of a kind depend on besides the contexts."""
        prompt = self._prompt(kind)
        told: list[Any] = [_LAYOUT, self.max_captions, self.max_boxes, prompt.system, prompt.shots]
        if kind == "detail_description":
            told.append(self.questions)
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def examples(self, kind: str) -> tuple[str, ...]:
        """The answers of the kind's examples; none where there is no prompt for it."""
        return tuple(answer for _, answer in self._prompts[kind].shots) if kind in self._prompts else ()

    def _prompt(self, kind: str) -> _KindPrompt:
        if kind not in self._prompts:
            raise ValueError(
                f"`kind` must be one of those that were loaded, {', '.join(self._prompts)}, got {kind!r}. Load it too."
            )
        return self._prompts[kind]

    def _known(self, kind: str, context: Context) -> str:
        few = self._cut(context)
        if kind != "conversation":
            return "\n\n".join(part for part in (few.caption_lines(), few.box_lines()) if part)
        phrases = dict.fromkeys(region.phrase for region in few.regions)
        return few.caption_lines() or "\n".join(phrases)

    def _cut(self, context: Context) -> Context:
        """The context with so many captions and boxes as may be told, in their order."""
        boxes = [one.box for one in context.instances] + [one.box for one in context.regions]
        areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
        largest = set(sorted(range(len(boxes)), key=lambda place: -areas[place])[: self.max_boxes])
        num_instances = len(context.instances)
        return replace(
            context,
            captions=context.captions[: self.max_captions],
            instances=tuple(one for place, one in enumerate(context.instances) if place in largest),
            regions=tuple(one for place, one in enumerate(context.regions) if place + num_instances in largest),
        )


def _read_kind(root: Path, kind: str, num_shots: int | None) -> _KindPrompt:
    if kind not in KINDS:
        raise ValueError(f"`kinds` must be some of {', '.join(KINDS)}, got {kind!r}. Correct it.")
    folder = root / kind
    if not folder.is_dir():
        there = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name in KINDS)
        raise FileNotFoundError(
            f"{root} must have a folder {kind} with its prompt, got {', '.join(there) or 'none of the kinds'}. Add it, or leave "
            "that kind out."
        )
    system = _read_text(folder / "system_message.txt")
    numbers = sorted(
        {
            found.group(1)
            for path in folder.iterdir()
            if (found := re.fullmatch(r"(\d+)_(?:caps|conv)\.txt", path.name))
        },
        key=lambda number: (int(number), number),
    )
    if num_shots is not None:
        if num_shots > len(numbers):
            raise ValueError(
                f"`num_shots` must be at most {len(numbers)}, as {folder} has no more, got {num_shots}. Lower it."
            )
        numbers = numbers[:num_shots]
    shots = [(_read_text(folder / f"{one}_caps.txt"), _read_text(folder / f"{one}_conv.txt")) for one in numbers]
    return _KindPrompt(system, tuple(shots))


def _read_text(file: Path) -> str:
    """A file's text, without white space around it."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        beside = {"caps": "conv", "conv": "caps"}.get(file.stem.rpartition("_")[2])
        why = f", which {file.name.replace(file.stem[-4:], beside)} beside it needs" if beside else ""
        raise FileNotFoundError(f"{file} is wanted{why}, got no such file. Add it.") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} must be UTF-8, got byte 0x{error.object[error.start]:02x} at place {error.start}. Save it as UTF-8."
        ) from None
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise ValueError(f"{file} must hold a text, got an empty file. Fill it, or take it away.")
    return text
