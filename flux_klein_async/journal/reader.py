"""Reads a journal beside the runs that write it, without changing it; and prunes one.

Pruning takes many short transactions, so that the runs that write meanwhile do not wait.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from flux_klein_async.errors import ConfigurationError, FluxKleinError
from flux_klein_async.journal.sql import ITEM_ID, Location, files_from
from flux_klein_async.journal.sqlite import SqliteLocation
from flux_klein_async.journal.states import STATES, EntryState, from_nano
from flux_klein_async.models import SavedFile
from flux_klein_async.paths import user_path

if TYPE_CHECKING:
    import os

__all__ = ["JournalReader", "JournaledRequest", "Sums", "exists", "locate", "prune"]

_AT_ONCE: Final = 500  # requests pruned in one transaction: other processes wait for its end
# The columns are in the order of JournaledRequest's fields.
_SELECT: Final = """
    SELECT requests.id, key, request_id, {state}, model, name, error, created, updated, cost, reserved, files, answer,
        body
    FROM requests LEFT JOIN items ON items.id = requests.item
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournaledRequest:
    """One submit, as the journal knows it.

    Attributes:
        number: Counts the requests of a journal.
        key: Identifies the submit; None if another process made it.
        request_id: The service's id, once known.
        state: The state of the request.
        model: The model's id, if known.
        item_id: The id of the item that it was submitted for, if that had one.
        error: What went wrong, as a sentence.
        created: When it was first recorded, and `updated` when it was last changed: seconds since 1970.
        cost_usd: The cost that the service reports in USD; None if it reports none.
        reserved_usd: USD that a budget reserved for it.
        files: The files that were saved.
        answer: The service's answer with the result, if known.
        input: The JSON that was posted, if known; a local file is an object of `file`, `size` and `sha256`.
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
        """The prompt, if the input has one."""
        prompt = self.input.get("prompt") if isinstance(self.input, dict) else None
        return prompt if isinstance(prompt, str) else None


class Sums(NamedTuple):
    """What requests come to, as of one moment.

    Attributes:
        counts: How many are in each state; states without requests are left out.
        spent_usd: The sum of the costs that are known.
        reserved_usd: What budgets reserved for the others.
        unpriced: How many may be charged at a cost that is not known, with nothing reserved.
        free_usd: What requests with the free token would have cost; no other amount counts them.
        pruned_usd: What was spent for requests that were pruned, of any time and state; `spent_usd` is without it.
    """

    counts: dict[EntryState, int]
    spent_usd: float
    reserved_usd: float
    unpriced: int
    free_usd: float
    pruned_usd: float


class JournalReader:
    """Reads a journal's requests. A submit that a dead process had under way is shown as uncertain."""

    def __init__(self, journal: "str | os.PathLike[str] | Location") -> None:
        """Open the journal.

        Raises:
            JournalError: It does not exist, is not a journal, or cannot be read.
        """
        self._location = locate(journal)
        with contextlib.ExitStack() as stack, _errors(self._location):
            self._store = self._location.read()
            stack.callback(self._store.close)
            alive = ", ".join(map(str, [0, *self._store.living()]))  # no run has the number 0
            stack.pop_all()
        lost = f"state = '{EntryState.SUBMITTING}' AND requests.run NOT IN ({alive})"
        self._state = f"CASE WHEN {lost} THEN '{EntryState.UNCERTAIN}' ELSE state END"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def requests(
        self,
        *,
        states: Collection[EntryState] = (),
        since: float | None = None,
        request_id: str | None = None,
        item_id: str | None = None,
        limit: int | None = None,
        oldest_first: bool = False,
    ) -> Iterator[JournaledRequest]:
        """Iterate over requests, the newest first.

        Args:
            states: Only those in one of these states.
            since: Only those first recorded at this time or later, in seconds since 1970.
            request_id: Only those with this id.
            item_id: Only those of the item with this id.
            limit: At most this many.
            oldest_first: Begin with the oldest.

        Raises:
            JournalError: The journal cannot be read.
        """
        chosen, values = self._chosen(states, since)
        if request_id is not None:  # the index begins with the account
            chosen += " AND requests.account IN (SELECT id FROM accounts) AND request_id = ?"
            values.append(request_id)
        if item_id is not None:
            chosen += " AND items.account IN (SELECT id FROM accounts) AND items.name = ?"
            values.append(ITEM_ID + item_id.encode(errors="surrogatepass"))
        query = f"{_SELECT.format(state=self._state)} WHERE {chosen} ORDER BY requests.id "
        query += "ASC" if oldest_first else "DESC"
        if limit is not None:
            query += f" LIMIT {limit}"
        with _errors(self._location):
            for row in self._store.stream(query, values):
                yield _request(row)

    def check(self) -> None:
        """Check the whole journal; takes seconds for each million requests.

        Raises:
            JournalError: It is damaged.
        """
        with _errors(self._location):
            findings = self._store.findings()
        if findings:
            failure = self._location.to_error(ValueError("; ".join(findings)))
            raise failure

    def sums(
        self, *, states: Collection[EntryState] = (), since: float | None = None, free_token: str | None = None
    ) -> Sums:
        """Sum up the requests that `requests` gives for these states and this time.

        Args:
            states: Only those in one of these states.
            since: Only those first recorded at this time or later, in seconds since 1970.
            free_token: The token of services that charge nothing.

        Raises:
            JournalError: The journal cannot be read.
        """
        chosen, values = self._chosen(states, since)
        # One statement, because runs may write between two.
        query = f"""
            SELECT {self._state}, accounts.name, count(*), coalesce(sum(CAST(cost AS DOUBLE PRECISION)), 0),
                count(CASE WHEN cost IS NULL AND coalesce(reserved, 0) = 0 THEN 1 END),
                coalesce(sum(CASE WHEN cost IS NULL THEN CAST(reserved AS DOUBLE PRECISION) END), 0)
            FROM requests JOIN accounts ON accounts.id = requests.account WHERE {chosen} GROUP BY 1, 2
            UNION ALL SELECT NULL, name, 0, CAST(pruned AS DOUBLE PRECISION), 0, 0 FROM accounts
        """  # noqa: S608
        with _errors(self._location):
            found = self._store.execute(query, values).fetchall()
            unpaying = None if free_token is None else self._store.account_name(free_token)
        counts, unpriced = Counter[EntryState](), 0
        spent = reserved = unpaid = pruned = 0.0
        for word, name, count, cost, unknown, held in found:
            free = name.partition("@")[0] == unpaying
            if word is None:
                pruned += 0 if free else cost
                continue
            counts[EntryState(word)] += count
            if not STATES[EntryState(word)].charged:
                continue
            if free:
                unpaid += cost + held
            else:
                spent, reserved, unpriced = spent + cost, reserved + held, unpriced + unknown
        in_order = {state: counts[state] for state in EntryState if state in counts}
        return Sums(in_order, from_nano(spent), from_nano(reserved), unpriced, from_nano(unpaid), from_nano(pruned))

    def _chosen(self, states: Collection[EntryState], since: float | None) -> tuple[str, list[Any]]:
        """The condition in SQL, and its values."""
        conditions, values = ["1 = 1"], list[Any]()
        if states:
            conditions.append(f"{self._state} IN ({', '.join('?' * len(states))})")
            values += [state.value for state in states]
        if since is not None:
            conditions.append("created >= ?")
            values.append(since)
        return " AND ".join(conditions), values


def locate(journal: "str | os.PathLike[str] | Location") -> Location:
    """Where a journal is: in a file, or in the database that a URI names (`postgresql://`).

    Raises:
        ConfigurationError: The URI cannot be read, or psycopg is not installed.
    """
    if isinstance(journal, Location):
        return journal
    if not str(journal).startswith(("postgresql:", "postgres:")):
        return SqliteLocation(user_path(journal).absolute())
    try:
        from flux_klein_async.journal.postgres import PostgresLocation  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigurationError(str(error)) from None
    return PostgresLocation(str(journal))


def exists(location: Location) -> bool:
    """Whether there is a journal.

    Raises:
        JournalError: That cannot be told.
    """
    with _errors(location):
        return location.exists()


@contextlib.contextmanager
def _errors(location: Location) -> Iterator[None]:
    try:
        yield
    except FluxKleinError:
        raise
    except Exception as error:
        raise location.to_error(error) from error


def _request(row: tuple[Any, ...]) -> JournaledRequest:
    fields = dict(zip(JournaledRequest.__slots__, row, strict=True))
    name, cost, reserved = fields["item_id"], fields["cost_usd"], fields["reserved_usd"]
    has_id = name is not None and name.startswith(ITEM_ID)
    fields |= {
        "state": EntryState(fields["state"]),
        "item_id": name.removeprefix(ITEM_ID).decode(errors="surrogatepass") if has_id else None,
        "cost_usd": None if cost is None else from_nano(cost),
        "reserved_usd": None if reserved is None else from_nano(reserved),
        "files": files_from(fields["files"]),
        "answer": _parsed(fields["answer"]),
        "input": _parsed(fields["input"]),
    }
    return JournaledRequest(**fields)


def _parsed(text: bytes | None) -> Any:
    """Parse stored JSON; NaN and the infinities, which Python writes and JSON forbids, become text."""
    return None if text is None else json.loads(text, parse_constant=str)


def prune(
    journal: "str | os.PathLike[str] | Location", before: float, *, clock: Callable[[], float], dry_run: bool = False
) -> int:
    """Delete the requests that ended before a time, and return how many; their cost stays counted.

    An item whose requests are all deleted counts as never submitted. A file does not shrink; new requests reuse the
    space. This blocks: in an application with a loop, call it in a thread.

    Raises:
        JournalError: There is no journal, or it cannot be written.
    """
    location = locate(journal)
    with _errors(location):
        location.read().close()  # makes none
        with contextlib.closing(location.open(clock)) as store:
            if dry_run:
                return store.prunable(before)
            total, count = 0, _AT_ONCE
            while count == _AT_ONCE:
                with store.writing():
                    count = store.prune(before, _AT_ONCE)
                total += count
            return total
