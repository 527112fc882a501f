"""Visual instruction data from captions and boxes: ask a teacher for questions and answers about pictures, keep the good.

    OUT/run.sqlite                    all that was read and answered; a run that was stopped goes on from it
    OUT/data/train-*.parquet          the conversations, `messages` and `images`, with where each came from; `read_conversations`,
                                      `datasets.load_dataset` and training read them
    OUT/llava.json                    the same in LLaVA's form, pictures by their names
    OUT/README.md                     the data card: how it was made, and what share was accepted, and why the rest was not

One picture is asked about in three ways (LLaVA's): a conversation, a detailed description, and a question that needs reasoning.
What a teacher answers is kept as it came; whether it is good enough is decided by `instruction_checks.py` when the data set is
written, so other checks need no new answers: run again with them.

Source: Liu et al. 2023, https://arxiv.org/abs/2304.08485, section 3.
"""

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from hf_vlm.data.conversations.conversation_files import ConversationError, cut
from hf_vlm.data.conversations.conversation_writer import ConversationWriter
from hf_vlm.data.instructions.context_files import read_contexts
from hf_vlm.data.instructions.contexts import Context
from hf_vlm.data.instructions.instruction_card import write_card
from hf_vlm.data.instructions.instruction_checks import InstructionLimits, Rejection, dedupe_key, read_reply
from hf_vlm.data.instructions.instruction_store import InstructionStore, StoredReply
from hf_vlm.data.instructions.teacher_prompts import TeacherPrompts
from hf_vlm.data.instructions.teachers import KINDS, BudgetReached, Teacher, TeacherReply, TeacherRequest

NOTES = {"kind": "string", "teacher": "string", "prompt_hash": "string", "seed": "int64"}
_SAMPLES = 5  # of each kind of fault, in the report
_SECONDS = 0.5  # between two calls of `progress`


@dataclass
class InstructionReport:
    """What a run came to.

    Attributes:
        num_contexts: that were asked about.
        bad_contexts: kind of fault -> how many contexts of the file were left out, and the first messages.
        accepted: kind -> how many replies became a conversation.
        rejected: kind -> reason -> how many did not.
        failed: kind -> how many requests have no reply; they are asked again when the run goes on.
        failures: the first messages of these, and of pictures that are gone.
        num_exchanges: questions with answers, in all conversations.
        num_tokens: of prompts and of answers, as far as they were counted.
        seconds: that asking took, of all times that the run went on.
        account: what the teacher itself kept count of, such as requests that were sent again, over all times.
        samples: kind -> picture's name and exchanges of one conversation.
    """

    num_contexts: int = 0
    bad_contexts: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    num_exchanges: int = 0
    num_tokens: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    account: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, tuple[str, list[tuple[str, str]]]] = field(default_factory=dict)

    @property
    def num_accepted(self) -> int:
        """Of all kinds."""
        return sum(self.accepted.values())

    @property
    def num_failed(self) -> int:
        """Of all kinds."""
        return sum(self.failed.values())

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> how many replies of all kinds were rejected for it, the commonest first."""
        total: Counter[str] = Counter()
        for counts in self.rejected.values():
            total.update(counts)
        return dict(total.most_common())

    @property
    def num_done(self) -> int:
        """Requests with a reply, or without for good."""
        return self.num_accepted + sum(self.reasons.values()) + self.num_failed

    def add(self, kind: str, reason: str) -> None:
        """Count a reply: accepted, where the reason is empty."""
        if reason:
            reasons = self.rejected.setdefault(kind, {})
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            self.accepted[kind] = self.accepted.get(kind, 0) + 1

    def add_failure(self, message: str) -> None:
        """Keep a message, if it is new and among the first."""
        if len(self.failures) < _SAMPLES and message not in self.failures:
            self.failures.append(message)

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)

    def progress(self) -> str:
        """One line: how many replies were accepted and rejected so far, by reason."""
        told = [f"{self.num_accepted} accepted", f"{sum(self.reasons.values())} rejected"]
        if self.num_failed:
            told.append(f"{self.num_failed} failed")
        most = [f"{reason} {number}" for reason, number in list(self.reasons.items())[:4]]
        return ", ".join(told) + (f" ({', '.join(most)})" if most else "")

    def __str__(self) -> str:
        lines = []
        for kind in KINDS:
            reasons = self.rejected.get(kind, {})
            accepted, failed = self.accepted.get(kind, 0), self.failed.get(kind, 0)
            answered = accepted + sum(reasons.values())
            if not answered + failed:
                continue
            share = f"{100 * accepted / answered:.1f} %" if answered else "-"
            told = ", ".join(
                f"{reason} {number}" for reason, number in sorted(reasons.items(), key=lambda item: -item[1])
            )
            lines.append(
                f"{kind}: {accepted} of {answered} accepted ({share})"
                + (f"; rejected: {told}" if told else "")
                + (f"; without reply: {failed}" if failed else "")
            )
        for kind, (number, messages) in self.bad_contexts.items():
            lines += [f"contexts left out, {kind}: {number}", *(f"  {message}" for message in messages)]
        lines += [f"  {message}" for message in self.failures]
        lines.append(
            f"{self.num_accepted} conversations with {self.num_exchanges} exchanges about {self.num_contexts} contexts"
        )
        return "\n".join(lines)


def make_instructions(
    contexts: str | Path,
    out: str | Path,
    teacher: Teacher,
    *,
    split: str | None = None,
    kinds: Sequence[str] = KINDS,
    prompts: TeacherPrompts | None = None,
    limits: InstructionLimits | None = None,
    across_pictures: bool = True,
    image_folder: str | Path | None = None,
    bbox_format: str | None = None,
    allow_urls: bool = False,
    max_contexts: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int, InstructionReport], None] | None = None,
) -> InstructionReport:
    """Make, or go on making, a data set of visual instructions; see above for what is in `out`.

    Args:
        contexts: a file or folder that `context_files.read_contexts` reads; `split`, `image_folder`, `bbox_format` and
            `allow_urls` are its own. With `image_folder` the pictures are put into the data set, else their names alone.
        out: a folder; what a stopped run left there is gone on with.
        teacher: who is asked; the same, by name and settings, each time.
        kinds: of `teachers.KINDS`; others can be asked for later in the same folder.
        prompts: None for those that come along.
        limits: what an answer must keep to; None for the defaults.
        across_pictures: whether an answer that another picture got word for word is left out. A teacher that knows a picture by
            its boxes alone says the same of pictures that have the same boxes, and rightly.
        max_contexts: how many are asked about, the first ones; None for all. Later runs in the same folder may ask for more.
        seed: of all that is drawn.
        progress: called now and then with requests done, requests in all, and the report so far.

    Raises:
        FileNotFoundError: if `contexts` or `image_folder` is missing.
        ValueError: if `kinds` are unknown, nothing can be read from `contexts`, or `out` holds a run of another teacher, other
            prompts or another seed, or is in use.
        BudgetReached, ConnectionError: if no more may be asked, or an endpoint answers nothing; of what came before there is a
            data set all the same.
        FileExistsError: if `out` holds something else.
        OSError: if a disk is full.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"`kinds` must be some of {', '.join(KINDS)}, got {', '.join(unknown) or 'none'}. Correct it.")
    kinds = [kind for kind in KINDS if kind in kinds]
    if not 0 <= seed < 2**63:
        raise ValueError(f"`seed` must be in [0, 2**63), got {seed}. Choose another.")
    prompts, limits, out = prompts or TeacherPrompts.load(kinds=kinds), limits or InstructionLimits(), Path(out)
    folder = Path(image_folder) if image_folder is not None else None
    _refuse_others(out)
    ConversationWriter(out, "train", notes=NOTES, replace=True)  # says what stands in its way before anything is asked
    report = InstructionReport()
    with InstructionStore(out / "run.sqlite") as store:
        if not store.num_replies():
            store.clear()  # of a run that came to nothing, such as for a wrong option
        _keep_settings(store, teacher, prompts, kinds, seed)
        _read(store, report, contexts, split, folder, bbox_format, allow_urls)
        if (take := getattr(teacher, "use_vocabulary", None)) is not None:  # what was looked for, as far as can be told
            names = store.settings().get("vocabulary") or store.categories()
            store.set("vocabulary", names)
            take(names)
        report.num_contexts = min(store.num_contexts(), max_contexts or store.num_contexts())
        run = _Run(store, teacher, prompts, limits, kinds, max_contexts, seed)
        failure: Exception | None = None
        try:
            run.ask(report, progress)
        except (BudgetReached, ConnectionError) as error:
            if not store.num_replies():
                raise
            failure = error  # what there is becomes a data set all the same
        settings = store.settings()
        report.seconds, report.account = settings.get("seconds", 0.0), settings.get("account", {})
        report.num_tokens = store.num_tokens()
        run.write(report, out, across_pictures, folder)
        write_card(out, report, store.settings(), limits)
    if failure is not None:
        raise failure
    return report


def _refuse_others(out: Path) -> None:
    """Raises FileExistsError if a folder holds what would be overwritten, and is not of a run."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"`out` must be a folder, got the file {out}. Name another.")
    there = [name for name in ("README.md", "llava.json", "data") if (out / name).exists()]
    if there and not (out / "run.sqlite").exists():
        raise FileExistsError(
            f"`out` must be new, or hold a run to go on with, got {out}, which holds {there[0]}. Name another."
        )
    out.mkdir(parents=True, exist_ok=True)


def _keep_settings(
    store: InstructionStore, teacher: Teacher, prompts: TeacherPrompts, kinds: Sequence[str], seed: int
) -> None:
    """Keeps what all replies have in common, or raises ValueError if it was something else before."""
    wanted: dict[str, Any] = {"teacher": {"name": teacher.name, **teacher.settings}, "seed": seed}
    if teacher.reads_prompts:
        wanted |= {f"prompts of {kind}": prompts.hash(kind) for kind in kinds}
    known = store.settings()
    for name, value in wanted.items():
        value = json.loads(json.dumps(value))
        if known.get(name, value) != value:
            raise ValueError(
                f"{store.file.parent} must hold a run of the same {name}, got {_difference(known[name], value)}. Give another "
                "folder, or go on with the same."
            )
    for name, value in wanted.items():
        if name not in known:
            store.set(name, value)


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return "; ".join(f"`{name}` {before.get(name)!r} before, {now.get(name)!r} now" for name in names)
    return f"{before!r} before, {now!r} now"


def _read(
    store: InstructionStore,
    report: InstructionReport,
    path: str | Path,
    split: str | None,
    image_folder: Path | None,
    bbox_format: str | None,
    allow_urls: bool,
) -> None:
    """Puts all contexts into the store, unless the same file was read before."""
    mark = [_mark(Path(path)), split, str(image_folder), bbox_format, allow_urls]
    known = store.settings()
    if known.get("contexts", {}).get("mark") == mark:
        report.bad_contexts = {
            kind: (number, messages) for kind, (number, messages) in known["contexts"]["bad"].items()
        }
        return

    def bad_row(error: Exception) -> None:
        kind = getattr(error, "kind", "missing pictures" if isinstance(error, FileNotFoundError) else "bad rows")
        number, messages = report.bad_contexts.get(kind, (0, []))
        report.bad_contexts[kind] = (number + 1, [*messages, str(error)] if number < _SAMPLES else messages)

    found = read_contexts(
        path, split, image_folder=image_folder, bbox_format=bbox_format, allow_urls=allow_urls, on_bad_row=bad_row
    )
    store.add_contexts(_with_pictures(found, image_folder is not None, bad_row), bad_row)
    if not store.num_contexts():
        raise ValueError(f"{path} must hold contexts with a picture's name, got none. Give each an `image`.")
    store.set("contexts", {"path": str(path), "mark": mark, "bad": report.bad_contexts})


def _with_pictures(
    contexts: Iterable[Context], has_folder: bool, on_bad_row: Callable[[Exception], None]
) -> Iterator[Context]:
    for context in contexts:
        if context.image is None:
            told = "wanted an `image`, got none. Name the picture that the conversation will be about."
            on_bad_row(ConversationError(f"{context.source}: {told}", "no picture"))
        elif has_folder and "://" in context.image:
            told = f"wanted a file of `image_folder`, got the URL {cut(context.image, 80)}. Download it, or give no folder."
            on_bad_row(ConversationError(f"{context.source}: {told}", "unwanted names of pictures"))
        else:
            yield context


def _mark(path: Path) -> list[Any]:
    """What tells that files are as they were: names, sizes and times."""
    kinds = (".json", ".jsonl", ".parquet", ".arrow")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix.lower() in kinds)
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


class _Run:
    """Asks and writes."""

    def __init__(
        self,
        store: InstructionStore,
        teacher: Teacher,
        prompts: TeacherPrompts,
        limits: InstructionLimits,
        kinds: Sequence[str],
        max_contexts: int | None,
        seed: int,
    ) -> None:
        self._store, self._teacher, self._prompts, self._limits = store, teacher, prompts, limits
        self._kinds, self._max_contexts, self._seed = kinds, max_contexts, seed

    def ask(self, report: InstructionReport, progress: Callable[[int, int, InstructionReport], None] | None) -> None:
        """Ask for every reply that is missing; each is kept as soon as it may be."""
        for kind, verdicts in self._store.verdicts(self._max_contexts).items():
            if kind in self._kinds:
                report.accepted[kind] = verdicts.pop("", 0)
                report.rejected[kind] = verdicts
        total = report.num_contexts * len(self._kinds)
        begun = told = time.monotonic()
        before = self._store.settings().get("seconds", 0.0)
        account = getattr(self._teacher, "account", None)
        account_before = account.to_dict() if account is not None else {}
        if account is not None:
            self._teacher.count_before(*self._store.num_tokens())  # type: ignore[attr-defined]
        waiting: list[tuple[TeacherReply, str]] = []
        try:
            with contextlib.closing(self._teacher.replies(self._requests(report))) as replies:  # type: ignore[type-var]
                for reply in replies:
                    kind = reply.request.kind
                    if reply.error is not None:
                        report.failed[kind] = report.failed.get(kind, 0) + 1
                        report.add_failure(f"{reply.request.context.source}: {reply.error}")
                    else:
                        _, verdict = self._read(kind, reply.text, reply.finish_reason, reply.request.context)
                        report.add(kind, verdict)
                        waiting.append((reply, verdict))
                        if reply.is_last and len(waiting) >= self._teacher.commit_every:
                            self._store.add_replies(waiting)
                            waiting = []
                    if progress is not None and time.monotonic() - told > _SECONDS:
                        told = time.monotonic()
                        progress(report.num_done, total, report)
        finally:
            while waiting and not waiting[-1][0].is_last:  # of a batch that was not finished
                waiting.pop()
            self._store.add_replies(waiting)
            self._store.set("seconds", before + time.monotonic() - begun)
            if account is not None:
                kept = self._store.settings().get("account", {})
                self._store.set("account", _added(kept, account.to_dict(), account_before))
        if progress is not None:
            progress(report.num_done, total, report)

    def write(self, report: InstructionReport, out: Path, across_pictures: bool, image_folder: Path | None) -> None:
        """Write the data set of all replies that pass the checks, in the order of the contexts."""
        report.accepted, report.rejected = {}, {}
        llava = out / ".llava.json.unfinished"
        notes, settings = {"teacher": self._teacher.name, "seed": self._seed}, self._store.settings()
        with (
            self._store.seen_keys() as is_seen,
            ConversationWriter(out, "train", notes=NOTES, replace=True) as writer,
            _written(llava) as stream,
        ):
            stream.write("[")
            for _, context, given in self._store.contexts(self._max_contexts):
                asked: set[str] = set()
                for kind in (kind for kind in KINDS if kind in given):  # those of earlier runs, too
                    exchanges, reason = self._chosen(
                        kind, given[kind], context, asked, is_seen if across_pictures else None
                    )
                    assert context.image is not None  # `_with_pictures`
                    picture = image_folder / context.image if image_folder is not None else context.image
                    name = f"{context.id}-{kind}"
                    prompt_hash = settings.get(f"prompts of {kind}", "")
                    row_notes = {**notes, "kind": kind, "prompt_hash": prompt_hash}
                    if not reason:
                        try:
                            writer.add(_messages(exchanges), [picture], id=name, names=[context.image], **row_notes)
                        except (
                            FileNotFoundError,
                            ConversationError,
                        ) as error:  # it was there when the contexts were read
                            reason = getattr(error, "kind", "missing pictures")
                            report.add_failure(f"{context.source}: {error}")
                    report.add(kind, reason)
                    if reason:
                        continue
                    row = {"id": name, "image": context.image, "conversations": _turns(exchanges)}
                    stream.write(("," if report.num_exchanges else "") + "\n" + json.dumps(row, ensure_ascii=False))
                    report.num_exchanges += len(exchanges)
                    report.samples.setdefault(kind, (context.image, exchanges))
            stream.write("\n]\n")
            stream.close()
            os.replace(llava, out / "llava.json")

    def _requests(self, report: InstructionReport) -> Iterator[TeacherRequest]:
        for number, context, given in self._store.contexts(self._max_contexts):
            for kind in self._kinds:
                if kind in given:
                    continue
                seed = _seed_of(self._seed, context.id, kind)
                request = TeacherRequest(number * len(KINDS) + KINDS.index(kind), kind, context, [], seed)
                if self._teacher.reads_prompts:
                    try:
                        request.messages.extend(self._prompts.messages(kind, context))
                    except ValueError:  # there is nothing to go by
                        self._store.add_replies([(TeacherReply(request), _NOTHING)])
                        report.add(kind, _NOTHING)
                        continue
                yield request

    def _read(self, kind: str, text: str, finish_reason: str, context: Context) -> tuple[list[tuple[str, str]], str]:
        """The exchanges of a reply, or none and why."""
        try:
            exchanges = read_reply(
                kind,
                text,
                finish_reason=finish_reason,
                context=context,
                prompts=self._prompts,
                limits=self._limits,
                seed=self._seed,
            )
        except Rejection as rejection:
            return [], rejection.reason
        return exchanges, ""

    def _chosen(
        self,
        kind: str,
        reply: StoredReply,
        context: Context,
        asked: set[str],
        is_seen: Callable[[bytes], bool] | None,
    ) -> tuple[list[tuple[str, str]], str]:
        """The exchanges of a stored reply that are new, or none and why."""
        if reply.verdict == _NOTHING:
            return [], _NOTHING
        exchanges, reason = self._read(kind, reply.text, reply.finish_reason, context)
        if reason:
            return [], reason
        exchanges = [(question, answer) for question, answer in exchanges if question.casefold() not in asked]
        if not exchanges:
            return [], "asked before"
        asked.update(question.casefold() for question, _ in exchanges)
        if is_seen is not None and is_seen(dedupe_key(exchanges)):
            return [], "said of another picture"
        return exchanges, ""


@contextlib.contextmanager
def _written(file: Path) -> Iterator[TextIO]:
    """A file to write to, which is gone after an error."""
    try:
        with file.open("w", encoding="utf-8") as stream:
            yield stream
    except OSError as error:
        if error.filename is None or Path(error.filename) == file:  # not of another file
            error = OSError(f"{file} must be written, got: {error.strerror}. Make room there, or give another folder.")
        with contextlib.suppress(OSError):
            file.unlink()
        raise error


def _added(kept: Mapping[str, Any], now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """An account with what came to it from `before` to `now`: requests, those sent again and given up, and their cost."""
    added: dict[str, Any] = {}
    for name in ("requests", "failed", "cost"):
        if now.get(name) is not None:
            added[name] = (kept.get(name) or 0) + now[name] - (before.get(name) or 0)
    retries = Counter(kept.get("retries", {})) + (Counter(now.get("retries", {})) - Counter(before.get("retries", {})))
    return added | ({"retries": dict(retries)} if retries else {})


_NOTHING = "nothing to ask about"


def _seed_of(seed: int, name: str, kind: str) -> int:
    """A seed in [0, 2**31) for one request."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{kind}|{name}".encode()).digest()[:4], "big") >> 1


def _messages(exchanges: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for question, answer in exchanges:
        picture = [] if messages else [{"type": "image"}]
        messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def _turns(exchanges: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """LLaVA's form of an exchange, the picture's place first."""
    turns: list[dict[str, str]] = []
    for question, answer in exchanges:
        turns.append({"from": "human", "value": question if turns else f"<image>\n{question}"})
        turns.append({"from": "gpt", "value": answer})
    return turns
