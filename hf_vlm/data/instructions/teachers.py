"""What a teacher is: something that answers requests for visual instructions, in any order, as many at a time as it likes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from hf_vlm.data.instructions.contexts import Context

KINDS = ("conversation", "detail_description", "complex_reasoning")


@dataclass(frozen=True)
class TeacherRequest:
    """What a teacher is asked.

    Attributes:
        number: of the request in its run, 0 or more; a pure function of the contexts and the kinds.
        kind: one of `KINDS`.
        context: what is known of the picture.
        messages: the prompt, `{"role": "system" | "user" | "assistant", "content": str}` each, the last of `user`.
        seed: for whatever the teacher leaves to chance; a function of the run's seed and the context's id and kind.
    """

    number: int
    kind: str
    context: Context
    messages: list[dict[str, str]]
    seed: int


@dataclass(frozen=True)
class TeacherReply:
    """What a teacher answered.

    Attributes:
        request: that is answered.
        text: the answer, as it came.
        finish_reason: `stop`, or `length` where the answer was cut, or whatever else an endpoint tells.
        prompt_tokens, completion_tokens: how many there were; None where nobody counted.
        is_last: False while others follow that must be kept with this one or not at all, such as those of a batch.
        error: why there is no answer, after all that was tried; None where there is one. Such a request is asked again when
            the run goes on.
    """

    request: TeacherRequest
    text: str = ""
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    is_last: bool = True
    error: str | None = None


class BudgetReached(ValueError):
    """The cost has reached the budget, and requests are left that were not asked."""


class Teacher(Protocol):
    """Answers requests.

    Attributes:
        name: for people and for provenance, such as a model's name or `rules`.
        settings: JSON-like; what the answers depend on besides the requests: sampling, lengths, a model's hash. Two teachers of
            the same name and settings may go on with each other's run.
        commit_every: how many replies may wait to be kept together; 1 where an answer is dear.
        reads_prompts: whether the requests need `messages`.
    """

    name: str
    settings: dict[str, Any]
    commit_every: int
    reads_prompts: bool

    def replies(self, requests: Iterable[TeacherRequest]) -> Iterator[TeacherReply]:
        """A reply to each request, in any order; requests are taken when there is room for them, and never all at once.

        Raises:
            ConnectionError, ValueError: if no request can be answered, such as with a wrong key; replies that came before are
                yielded first.
        """
        ...
