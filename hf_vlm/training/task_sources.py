"""The data sets that recipes of tasks name."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from hf_vlm.data.conversations.conversations import Conversations
from hf_vlm.data.tasks.format_prompts import format_prompt
from hf_vlm.data.tasks.task_rows import TASKS, read_task
from hf_vlm.training.recipe_files import listed


@dataclasses.dataclass(kw_only=True)
class TaskSource:
    """A set that `hf_vlm.data.tasks.task_rows.read_task` reads.

    Attributes:
        path: folder or file, relative to `data.folder`.
        split: which split of it; None if it has one only.
        task: what it holds; None means the recipe's `task`.
        prompt: preset of `hf_vlm.data.tasks.format_prompts`, or a text, that tells in which form to answer.
        columns: `question`, `answer`, `image`, `id`, `kind` or `group` -> the column that has it, where it is called otherwise.
        image_folder: where pictures with names lie, relative to `data.folder`; None means beside the file.
        max_rows: how many rows are taken, spread evenly over the set; None means all.
    """

    path: str
    split: str | None = None
    task: str | None = None
    prompt: str | None = None
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    image_folder: str | None = None
    max_rows: int | None = None

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"`task` of `{self.path}` must be one of {listed(TASKS)}, got {self.task!r}. Correct it.")
        format_prompt(self.prompt)  # refuses unknown ones
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(
                f"`max_rows` of `{self.path}` must be 1 or more, got {self.max_rows}. Leave it out for all."
            )


@dataclasses.dataclass(kw_only=True)
class WeightedSource(TaskSource):
    """One set of a mixture.

    Attributes:
        weight: how often each of its rows comes in a pass over the mixture: 2 is twice, 0.5 every second row, chosen by the seed.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight < math.inf:
            raise ValueError(
                f"`weight` of `{self.path}` must be above 0, got {self.weight}. Leave the set out of the mixture."
            )


def read_source(folder: str, source: TaskSource, task: str, **settings: Any) -> Conversations:
    """The rows of a recipe's set.

    Args:
        folder: the recipe's `data.folder`.
        task: of the recipe.
        settings: of `read_task`: `every_answer`, `max_exchanges`.
    """
    image_folder = Path(folder) / source.image_folder if source.image_folder is not None else None
    rows = read_task(
        Path(folder) / source.path,
        source.split,
        task=source.task or task,
        prompt=source.prompt,
        columns=source.columns,
        image_folder=image_folder,
        **settings,
    )
    return rows if source.max_rows is None else rows.spread(source.max_rows)
