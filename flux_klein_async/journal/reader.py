"""Reads a journal, for people and reports: beside the runs that write it, and without a trace.

Forgetting what ended long ago, a part in each transaction, so that the runs that write meanwhile need not wait.
"""

import contextlib
import json
import sqlite3
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from flux_klein_async.errors import JournalError
from flux_klein_async.journal.base import ENDED, EntryState, charge, from_nano
from flux_klein_async.journal.database import Database, check, connect, trouble
from flux_klein_async.journal.lease import is_alive
from flux_klein_async.journal.records import files_from
from flux_klein_async.models import SavedFile

__all__ = ["JournalReader", "JournaledRequest", "prune"]


_ID: Final = b"id:"
_COLUMNS: Final = (
    "requests.id, key, request_id, {state}, model, name, error, created, updated, cost, reserved, files, answer, body"
)
_FROM: Final = "FROM requests LEFT JOIN items ON items.id = requests.item"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournaledRequest:
    """One submit, as far as the journal knows it.

    Attributes:
        number: Counts the requests of a journal.
        item_id: The id of the item that it was for, where that had one.
        created: When it was written down first, and `updated` last: seconds since 1970.
        cost_usd: What the service says that it cost; None where it does not say.
        reserved_usd: What a budget set aside for it.
        answer: The service's answer with the result, and `input` what was posted: JSON, or None where not known.
    """

    number: int
    key: str | None
    request_id: str | None
    state: EntryState
    model: str | None
    item_id: str | None
    error: str | None
    created: float
    updated: float
    cost_usd: float | None
    reserved_usd: float | None
    files: tuple[SavedFile, ...]
    answer: Any = field(repr=False)
    input: Any = field(repr=False)

    @property
    def prompt(self) -> str | None:
        """What was asked for, where the input has a prompt."""
        prompt = self.input.get("prompt") if isinstance(self.input, dict) else None
        return prompt if isinstance(prompt, str) else None


class JournalReader:
    """A journal's requests; nothing is written.

    What a process had on its way when it ended is told as uncertain, as the next run will find it.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            JournalError: It is not there, is none, or cannot be read.
        """
        self.path = path.resolve()
        with self._troubles():
            db = connect(self.path)
        if db is None:
            raise JournalError(f"There is no journal {path}")
        self._db = db
        try:
            with self._troubles():
                self._db.execute("PRAGMA query_only = ON")
                alive = [
                    str(run) for run, name in self._db.execute("SELECT id, name FROM runs") if self._is_alive(name)
                ]
        except BaseException:
            self._db.close()
            raise
        lost = f"state = '{EntryState.SUBMITTING}' AND requests.run NOT IN ({', '.join(alive)})"
        self._state = f"CASE WHEN {lost} THEN '{EntryState.UNCERTAIN}' ELSE state END"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def requests(
        self,
        *,
        states: Collection[EntryState] = (),
        since: float | None = None,
        request_id: str | None = None,
        limit: int | None = None,
        oldest_first: bool = False,
    ) -> Iterator[JournaledRequest]:
        """Orders, the newest first if not said otherwise; all states where none are named.

        Args:
            states: Those of one of these.
            since: Those written down first at this instant or later, in seconds since 1970.
            request_id: Those of one request.
            limit: So many at most.
            oldest_first: The other way round.

        Raises:
            JournalError: The file cannot be read.
        """
        parts, values = ["1"], list[Any]()
        if states:
            parts.append(f"{self._state} IN ({', '.join('?' * len(states))})")
            values += [state.value for state in states]
        if since is not None:
            parts.append("created >= ?")
            values.append(since)
        if request_id is not None:
            parts.append(
                "requests.account IN (SELECT id FROM accounts) AND request_id = ?"
            )  # for which there is an index
            values.append(request_id)
        query = (
            f"SELECT {_COLUMNS.format(state=self._state)} {_FROM} WHERE {' AND '.join(parts)} "
            f"ORDER BY requests.id {'ASC' if oldest_first else 'DESC'} LIMIT ?"
        )
        with self._troubles():
            for row in self._db.execute(query, (*values, -1 if limit is None else limit)):
                yield _order(row)

    def check(self) -> None:
        """Check the whole file; takes seconds for each million requests.

        Raises:
            JournalError: The file is damaged.
        """
        with self._troubles():
            check(self.path, self._db)

    def counts(self) -> dict[EntryState, int]:
        """How many requests are in each state; those of no request are left out.

        Raises:
            JournalError: The file cannot be read.
        """
        query = f"SELECT {self._state}, count(*) FROM requests GROUP BY 1"  # noqa: S608
        with self._troubles():
            found = dict(self._db.execute(query).fetchall())
        return {state: found[state.value] for state in EntryState if state.value in found}

    def spent_usd(self) -> tuple[float, float]:
        """What all accounts together have spent, and what is set aside, in USD.

        Raises:
            JournalError: The file cannot be read.
        """
        query = "SELECT coalesce(sum(settled), 0), coalesce(sum(held), 0) FROM accounts"
        with self._troubles():
            settled, held = self._db.execute(query).fetchone()
        return from_nano(settled), from_nano(held)

    def _is_alive(self, run: str) -> bool:
        return is_alive(self.path, run)

    @contextlib.contextmanager
    def _troubles(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, ValueError) as error:
            raise trouble(self.path, error) from error


def _order(row: tuple[Any, ...]) -> JournaledRequest:
    number, key, request_id, state, model, name, error, created, updated, cost, reserved, files, answer, body = row
    return JournaledRequest(
        number=number,
        key=key,
        request_id=request_id,
        state=EntryState(state),
        model=model,
        item_id=name[len(_ID) :].decode(errors="surrogatepass") if name is not None and name.startswith(_ID) else None,
        error=error,
        created=created,
        updated=updated,
        cost_usd=None if cost is None else from_nano(cost),
        reserved_usd=None if reserved is None else from_nano(reserved),
        files=files_from(files),
        answer=_parsed(answer),
        input=_parsed(body),
    )


def _parsed(text: bytes | None) -> Any:
    """JSON as it was stored; the numbers that are none, which Python writes and others cannot read, as text."""
    return None if text is None else json.loads(text, parse_constant=str)


_AT_ONCE: Final = 500  # requests forgotten in one transaction: other processes wait for its end
# What may have been accepted stays until somebody knows.
_FORGOTTEN: Final = tuple(sorted(state.value for state in ENDED - {EntryState.UNCERTAIN}))
_OLD: Final = f"FROM requests WHERE state IN ({', '.join('?' * len(_FORGOTTEN))}) AND updated < ?"


def prune(path: Path, before: float, *, clock: Callable[[], float], dry_run: bool = False) -> int:
    """Forget the requests that ended before an instant; what they cost stays counted. How many they are, or would be.

    An item whose requests are all forgotten is one that was never submitted. The file does not shrink; new requests
    fill it up. Blocks: in an application on a loop, call it in a thread.

    Raises:
        JournalError: There is none, or it cannot be written.
    """
    path = path.resolve()
    try:
        if not path.exists():
            raise JournalError(f"There is no journal {path}")
        with contextlib.closing(Database.open(path, clock)) as db:
            return _prune(db, before, dry_run=dry_run)
    except (OSError, sqlite3.Error, ValueError) as error:
        raise trouble(path, error) from error


def _prune(db: Database, before: float, *, dry_run: bool) -> int:
    if dry_run:
        [count] = db.db.execute(f"SELECT count(*) {_OLD}", (*_FORGOTTEN, before)).fetchone()
        return int(count)
    total, count = 0, _AT_ONCE
    while count == _AT_ONCE:
        with db.writing():
            count = _some(db, before)
        total += count
    return total


def _some(db: Database, before: float) -> int:
    rows = db.db.execute(
        f"SELECT id, account, item, state, reserved, cost {_OLD} LIMIT {_AT_ONCE}", (*_FORGOTTEN, before)
    ).fetchall()
    for request, account, item, state, reserved, cost in rows:
        db.db.execute("DELETE FROM requests WHERE id = ?", (request,))
        settled, held = charge(EntryState(state), reserved, cost)
        # What was set aside for it and never settled counts as spent from now on.
        db.db.execute(
            "UPDATE accounts SET settled = settled + ?, held = held - ?, pruned = pruned + ? WHERE id = ?",
            (held, held, settled + held, account),
        )
        if item is not None:
            _forget_item(db, item)
    return len(rows)


def _forget_item(db: Database, item: int) -> None:
    """Unless something else is known of it, or a run that is alive has it under way."""
    row = db.db.execute(
        "SELECT run FROM items WHERE id = ? AND NOT EXISTS (SELECT 1 FROM requests WHERE item = items.id)", (item,)
    ).fetchone()
    if row is not None and not db.is_alive(row[0]):
        db.db.execute("DELETE FROM items WHERE id = ?", (item,))
