"""What a run that makes visual instructions has read and been answered, in one SQLite file that outlives a kill at any moment.

    contexts    number, id, source, record (`Context.to_dict` as JSON)
    replies     number = 3 * the context's + the kind's place in `KINDS`; text as it came, why it ended, tokens, verdict
    settings    what all replies of the file have in common

Replies are added in transactions, all of a call or none, and a number twice is refused by the table itself: what is there is
neither doubled nor lost. The file is locked while a run has it. In memory are a few hundred contexts at a time, however many
there are.
"""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from hf_vlm.data.conversations.conversation_files import ConversationError, cut
from hf_vlm.data.instructions.contexts import Context
from hf_vlm.data.instructions.teachers import KINDS, TeacherReply

_PAGE = 500  # contexts read at a time
_LAST = "reading = (SELECT MAX(reading) FROM contexts)"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contexts (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, source TEXT NOT NULL, record TEXT NOT NULL, reading INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS replies (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INTEGER,
    completion_tokens INTEGER, verdict TEXT NOT NULL
);
"""


class StoredReply(NamedTuple):
    """A reply as it is kept; `verdict` is empty where it was accepted, else the reason why not."""

    kind: str
    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    verdict: str


class InstructionStore:
    """The file of a run, in a `with` block; several threads may use it.

    Args:
        file: made if it is not there.

    Raises:
        ValueError: if another run has the file, or it is none.
        OSError: if it can't be made or written, such as on a full disk; what was stored before stays.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self._lock = threading.RLock()
        with self._told():
            self._database = sqlite3.connect(self.file, timeout=1, isolation_level=None, check_same_thread=False)
        try:
            with self._told():
                # One process at a time, so that the log needs no shared memory, which network file systems don't have.
                self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = NORMAL")
                self._database.execute("BEGIN EXCLUSIVE")
                self._database.execute("COMMIT")
                self._database.executescript(_SCHEMA)
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._database.close()

    def settings(self) -> dict[str, Any]:
        """What was set, by name."""
        return {name: json.loads(value) for name, value in self._query("SELECT name, value FROM settings")}

    def set(self, name: str, value: Any) -> None:
        """Keep a JSON-like value by name; one that is there is replaced."""
        with self._transaction():
            self._database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    def add_contexts(self, contexts: Iterable[Context], on_bad_row: Any) -> int:
        """Add those that are new, all or none of them, and return how many; those that are there must be the same, but for the
        picture's name. Those that are not among them are kept, but no longer given.

        Args:
            contexts: in the order that their numbers shall have; errors that the iteration raises leave the file as it was.
            on_bad_row: called with a ConversationError for each id that is there twice; the first is kept.

        Raises:
            ValueError: if a context differs from the one of its id that is stored.
        """
        with self._transaction():
            ((number, reading),) = self._query(
                "SELECT COALESCE(MAX(number), -1), COALESCE(MAX(reading), 0) FROM contexts"
            )
            before, reading = number, reading + 1
            for context in contexts:
                told = context.to_dict()
                record = json.dumps(told, ensure_ascii=False)
                known = self._database.execute(
                    "SELECT source, record, reading FROM contexts WHERE id = ?", (context.id,)
                ).fetchone()
                if known is None:
                    number += 1
                    added = (number, context.id, context.source, record, reading)
                    self._database.execute("INSERT INTO contexts VALUES (?, ?, ?, ?, ?)", added)
                elif known[2] == reading:
                    on_bad_row(
                        ConversationError(
                            f"{context.source}: wanted an `id` of its own, got {cut(context.id, 80)!r}, which is in "
                            f"{known[0]} too. Give it another, or remove one.",
                            "duplicate ids",
                        )
                    )
                elif json.loads(known[1]) | {"image": None} != told | {"image": None}:
                    raise ValueError(
                        f"{context.source}: wanted what the run began with as context {cut(context.id, 80)!r}, got another one. "
                        "Give changed contexts another folder, or another `id`."
                    )
                else:
                    now = (
                        reading,
                        record,
                        context.source,
                        context.id,
                    )  # a picture may have been found under another name
                    self._database.execute("UPDATE contexts SET reading = ?, record = ?, source = ? WHERE id = ?", now)
        return number - before

    def num_contexts(self) -> int:
        """How many there are of the last reading."""
        return self._query(f"SELECT COUNT(*) FROM contexts WHERE {_LAST}")[0][0]

    def categories(self) -> list[str]:
        """Of all things in the contexts of the last reading, each once, in alphabetical order."""
        return sorted({thing.category for _, context, _ in self.contexts() for thing in context.instances})

    def num_replies(self) -> int:
        """How many there are, to whatever context."""
        return self._query("SELECT COUNT(*) FROM replies")[0][0]

    def clear(self) -> None:
        """Forget all."""
        with self._transaction():
            for table in ("settings", "contexts", "replies"):
                self._database.execute(f"DELETE FROM {table}")

    def contexts(self, most: int | None = None) -> Iterator[tuple[int, Context, dict[str, StoredReply]]]:
        """Number, context and the replies to it by kind, of the last reading, in order of their numbers; the first `most`."""
        last, left = -1, most
        while left is None or left > 0:
            page = _PAGE if left is None else min(_PAGE, left)
            rows = self._query(
                f"SELECT number, source, record FROM contexts WHERE number > ? AND {_LAST} ORDER BY number LIMIT ?",
                (last, page),
            )
            if not rows:
                return
            replies: dict[int, StoredReply] = {}
            wanted = (rows[0][0] * len(KINDS), (rows[-1][0] + 1) * len(KINDS))
            for number, *fields in self._query("SELECT * FROM replies WHERE number >= ? AND number < ?", wanted):
                replies[number] = StoredReply(*fields)
            for number, source, record in rows:
                numbers = range(number * len(KINDS), (number + 1) * len(KINDS))
                given = {replies[one].kind: replies[one] for one in numbers if one in replies}
                yield number, Context.from_dict(json.loads(record), source), given
            last, left = rows[-1][0], None if left is None else left - len(rows)

    def add_replies(self, replies: Sequence[tuple[TeacherReply, str]]) -> None:
        """Add replies with their verdicts, all or none.

        Raises:
            ValueError: if one to the same request is there.
        """
        rows = [
            (
                reply.request.number,
                reply.request.kind,
                # a lone half of a character, as a model may write it, has no UTF-8
                reply.text.encode(errors="replace").decode(),
                reply.finish_reason,
                reply.prompt_tokens,
                reply.completion_tokens,
                verdict,
            )
            for reply, verdict in replies
        ]
        try:
            with self._transaction():
                self._database.executemany("INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError as error:
            raise ValueError(f"{self.file}: a reply is wanted once, got one again ({error}).") from error

    def verdicts(self, most: int | None = None) -> dict[str, dict[str, int]]:
        """Kind -> verdict -> how many replies, those accepted under the empty text; to the contexts that `contexts` gives."""
        counts: dict[str, dict[str, int]] = {}
        given = f"SELECT number FROM contexts WHERE {_LAST} ORDER BY number LIMIT ?"
        sql = f"SELECT kind, verdict, COUNT(*) FROM replies WHERE number / {len(KINDS)} IN ({given}) GROUP BY kind, verdict"
        for kind, verdict, number in self._query(sql, (-1 if most is None else most,)):
            counts.setdefault(kind, {})[verdict] = number
        return counts

    def num_tokens(self) -> tuple[int, int]:
        """Of all replies: tokens of prompts, and of answers, as far as they were counted."""
        return self._query("SELECT COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0) FROM replies")[
            0
        ]

    @contextlib.contextmanager
    def seen_keys(self) -> Iterator[Any]:
        """A function that tells of a key, bytes, whether it was asked of before, on disk as far as memory wants it."""
        with self._lock, self._told():
            self._database.execute("CREATE TEMP TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID")

        def is_seen(key: bytes) -> bool:
            with self._lock, self._told():
                return self._database.execute("INSERT OR IGNORE INTO keys VALUES (?)", (key,)).rowcount == 0

        try:
            yield is_seen
        finally:
            with self._lock, self._told():
                self._database.execute("DROP TABLE keys")

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, self._told():
            return self._database.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._told():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ValueError(
                    f"{self.file} must be free, got one that another run has open. Wait for that run, or give another folder."
                ) from error
            raise OSError(
                f"{self.file} must be written, got: {error}. Make room there, or give another folder."
            ) from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.file} must be a run's file, got something else ({error}). Restore it, or give another folder."
            ) from error
