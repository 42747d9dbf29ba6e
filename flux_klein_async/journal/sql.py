"""The SQL of a journal: entries, claims, accounts and the budget that its processes share, once for every store.

A store derives from `JournalStore` and brings its connection, its placeholders and column types, its transactions, and
its way to tell which runs are alive. Everything here runs in the store's thread and within a transaction.

The SQL is what SQLite and PostgreSQL have in common. No value makes a statement fail, because PostgreSQL would then
undo the whole transaction, with the entries of others in it: `record` refuses text that a store cannot hold before it
writes.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from flux_klein_async.errors import BudgetExceededError, InvalidInputError, JournalError
from flux_klein_async.journal.base import Claim, Entry, Reservation
from flux_klein_async.journal.budget import over_budget
from flux_klein_async.journal.states import (
    FULL,
    LARGEST_COST,
    STATES,
    Action,
    Charge,
    EntryState,
    charge,
    from_nano,
    supersedes,
    to_nano,
)
from flux_klein_async.models import SavedFile

__all__ = ["ITEM_ID", "ODD_VALUE", "VERSION", "JournalStore", "Location", "files_from"]

VERSION: Final = 3  # of the tables
# What a value that should not be there leads to: text that cannot be decoded, a state that does not exist, a text in a
# column of amounts.
ODD_VALUE: Final = (ValueError, TypeError, AttributeError, ArithmeticError)

ITEM_ID: Final = b"id:"  # begins the name of an item that has an id
_LONGEST: Final = 2100  # characters of an error: no sentence of this package is longer
_LOST: Final = "The process ended before the service's answer was written down"
_NOTHING: Final = Charge(0, 0)
_REMEMBERED: Final = 10_000  # contents of a pass in memory, 1.5 MB; what comes after them is kept on the disk
_UNDER_WAY: Final = 10_000  # requests that are found without reading them
_LONE_OR_NUL: Final = re.compile("[\0\ud800-\udfff]")
_DIGITS: Final = 18  # of the number of an item at most


def _listed(states: Iterable[EntryState]) -> str:
    return f"({', '.join(repr(state.value) for state in states)})"


# Not `key IS NOT NULL`: with that, SQLite reads all keys of the account.
_WITHOUT_COST: Final = "length(key) >= 0 AND cost IS NULL"
_UNPRICED: Final = f"{_WITHOUT_COST} AND reserved IS NULL"  # submitted without a budget
_CHARGED: Final = f"state IN {_listed(state for state in STATES if STATES[state].charged)}"
_PENDING: Final = _listed((EntryState.SUBMITTING, EntryState.SUBMITTED, EntryState.UNCERTAIN))  # a cost may still come
# An uncertain submit may have been accepted: it stays until somebody knows.
_UNSENT: Final = {EntryState.REPEATED, EntryState.REFUSED}
_KEPT: Final = {EntryState.SUBMITTING, EntryState.UNCERTAIN, EntryState.SUBMITTED}
_PRUNABLE: Final = (
    f"FROM requests WHERE state IN {_listed(state for state in STATES if state not in _KEPT)} AND updated < ?"
)
_COLUMNS: Final = "account, item, key, state, run, reserved, created, updated, model, body"
_FACTS: Final = "request_id, cost, error, files, answer"  # which an intent does not have yet
_NO_FACTS: Final = (None,) * 5
_VALUES: Final = "?, ?, ?, ?, ?, nullif(?, -1), ?, ?, ?, ?"
_INTEND: Final = f"INSERT INTO requests ({_COLUMNS}) VALUES ({_VALUES}) ON CONFLICT DO NOTHING"  # noqa: S608
_INSERT: Final = f"INSERT INTO requests ({_COLUMNS}, {_FACTS}) VALUES ({_VALUES}{', ?' * 5}) ON CONFLICT DO NOTHING"  # noqa: S608
_TOTALS: Final = "SELECT settled, held FROM accounts WHERE id = ?"
_SAME: Final = "account = ? AND key = ? OR account = ? AND request_id = ?"
# The usual course of a submit: it gets an id, which no other has; it completes, and nothing was written meanwhile.
_ACCEPT: Final = (
    "UPDATE requests SET state = 'submitted', request_id = ?, error = NULL, updated = ?"
    " WHERE id = ? AND state = 'submitting' AND request_id IS NULL"
    " AND NOT EXISTS (SELECT 1 FROM requests WHERE account = ? AND request_id = ?)"
)
_COMPLETE: Final = (
    "UPDATE requests SET state = 'completed', cost = ?, answer = ?, error = NULL, updated = ?"
    " WHERE id = ? AND state = 'submitted' AND cost IS NULL AND answer IS NULL AND coalesce(reserved, -1) = ?"
)
_NEW_ITEM: Final = (
    "INSERT INTO items (account, name, content, run, before_claim) VALUES (?, ?, ?, ?, 0) ON CONFLICT DO NOTHING"
)
_RAISE: Final = (
    "INSERT INTO highest_costs (account, model, cost) VALUES (?, ?, ?)"
    " ON CONFLICT (account, model) DO UPDATE SET cost = excluded.cost"
)
# In use: something may have been charged, which could be paid for again. Every request has a key or an id, and an index
# of each.
_USED_ACCOUNTS: Final = f"""
    SELECT name FROM accounts WHERE settled <> 0 OR held <> 0
        OR EXISTS (SELECT 1 FROM requests WHERE account = accounts.id AND key IS NOT NULL AND {_CHARGED})
        OR EXISTS (SELECT 1 FROM requests WHERE account = accounts.id AND request_id IS NOT NULL AND {_CHARGED})
"""  # noqa: S608  # of constants
# The accounts whose totals differ from the sums over their requests. Sums of integers can overflow; those of floats are
# exact up to millions of USD, and the tolerance covers what they round beyond.
_BALANCE: Final = f"""
    SELECT name, settled - pruned, held, coalesce(settled_sum, 0), coalesce(held_sum, 0)
    FROM accounts LEFT JOIN (
        SELECT account, sum(CAST(coalesce(cost, 0) AS DOUBLE PRECISION)) AS settled_sum,
            sum(CAST(CASE WHEN cost IS NULL THEN coalesce(reserved, 0) ELSE 0 END AS DOUBLE PRECISION)) AS held_sum
        FROM requests WHERE {_CHARGED} GROUP BY account
    ) AS sums ON sums.account = accounts.id
    WHERE settled < {FULL} AND held < {FULL} AND (
        abs(settled - pruned - coalesce(settled_sum, 0)) > 0.5 + settled * 1e-12
        OR abs(held - coalesce(held_sum, 0)) > 0.5 + held * 1e-12)
"""  # noqa: S608  # of constants


class _Request(NamedTuple):
    """A row of the table of requests, or what an entry adds to one."""

    id: int
    key: str | None
    state: EntryState
    model: str | None
    request_id: str | None
    reserved: int | None
    cost: int | None
    files: str | None
    answer: bytes | None
    error: str | None

    @classmethod
    def of(cls, entry: Entry) -> "_Request":
        reserved = None if entry.reservation is None else to_nano(entry.reservation.usd)
        cost = None if entry.cost_usd is None else to_nano(entry.cost_usd)
        error = entry.error
        if error is not None:  # a server may have written it: it can be long, or no text that a store can hold
            error = error[:_LONGEST].replace("\0", "\\x00").encode(errors="backslashreplace").decode()
        files = json.dumps([[str(file.path), file.sha256, file.size] for file in entry.files]) if entry.files else None
        return cls(0, entry.key, entry.state, entry.model, entry.request_id, reserved, cost, files, entry.answer, error)

    @property
    def charge(self) -> Charge:
        return charge(self.state, self.reserved, self.cost)


_SELECT: Final = f"SELECT {', '.join(_Request._fields)} FROM requests WHERE "  # noqa: S608  # names of columns


@cache
def _update(*columns: str) -> str:
    return f"UPDATE requests SET {', '.join(f'{name} = ?' for name in columns)}, updated = ? WHERE id = ?"  # noqa: S608


class _Own(NamedTuple):
    """What a run knows of a request that it has under way: the number of its row, its model and what is reserved."""

    id: int
    model: str
    reserved: int | None


class _Books:
    """What a transaction knows of an account, which no other run changes meanwhile, and what is to be added to it."""

    def __init__(self) -> None:
        self.due = {"settled": 0, "held": 0, "pruned": 0}
        self.totals: Charge | None = None  # when they were read
        self.highest: dict[str | None, int] = {}  # by model
        self.all_priced = False  # no request is without cost and reservation


def _resubmits(action: Action, newest: _Request | None, again: frozenset[EntryState]) -> bool:
    """Whether an item that completed without a file (its result has an error) may be submitted again."""
    lost = action is Action.RECALL and newest is not None and newest.error is not None
    return lost and EntryState.FAILED in again


def _claim(action: Action, newest: _Request | None) -> Claim:
    """What is known about an item, as the claim of no run."""
    claim = Claim(item="0-0", action=action)
    if newest is None or action is Action.SUBMIT:
        return claim._replace(pays_again=newest is not None and STATES[newest.state].charged)
    answer = newest.answer if isinstance(newest.answer, bytes) else None  # otherwise the service is asked again
    files = files_from(newest.files)
    return claim._replace(request_id=newest.request_id, answer=answer, files=files, error=newest.error)


def _blob(data: bytes | None) -> bytearray | None:
    """Bytes for a statement: for `bytes`, as for None, sqlite3 looks for an adapter at each use, which takes longer."""
    return None if data is None else bytearray(data)


def _check_text(entry: Entry) -> None:
    """Refuse names that a store cannot hold: PostgreSQL has no NUL in texts, and no store lone surrogates."""
    for text in (entry.key, entry.request_id, entry.model):
        if text is not None and ("\0" in text or not text.isascii()) and _LONE_OR_NUL.search(text):
            raise JournalError(f"An entry cannot be written: {text[:40]!r} is no text that can be stored")


def files_from(text: str | None) -> tuple[SavedFile, ...]:
    """Read files as they were stored."""
    return tuple(SavedFile(path=Path(path), sha256=sha, size=size) for path, sha, size in json.loads(text or "[]"))


class Location(ABC):
    """Where a journal is. Its text names it in messages, and shows no password.

    Attributes:
        has_password: Whether its name holds one.
    """

    has_password = False

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is something; `open` makes a journal where there is nothing."""

    @abstractmethod
    def open(self, clock: Callable[[], float]) -> "JournalStore":
        """Open the journal, or make it, and begin a run."""

    @abstractmethod
    def read(self) -> "JournalStore":
        """Open the journal to read it, without a run.

        Raises:
            JournalError: There is none.
        """

    @abstractmethod
    def to_error(self, error: Exception) -> JournalError:
        """The error to raise for an exception of the store."""


class JournalStore(ABC):
    """One run's use of a journal's tables.

    Attributes:
        clock: Gives the time that is written down, in seconds since 1970.
        run: This run's number in the table of runs; 0 without a run.
    """

    row_id: ClassVar[str]  # the type of a primary key that is never given twice
    blob: ClassVar[str]  # the type of bytes

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.run = 0
        self._name = ""
        self._accounts: dict[str, int] = {}  # by token
        self._salted = b""
        self._buried: set[tuple[int, int]] = set()  # dead runs, and the accounts in which that was written down
        self._claimed: set[int] = set()  # the items that this run works on
        # The requests that this run has under way, by key or by account and id. As nobody else usually writes to them,
        # they are not read again; what is written says what must not have changed.
        self._own: dict[str | tuple[int, str], _Own] = {}
        self._passed: defaultdict[int, dict[bytes, int]] = defaultdict(dict)  # by pass: how often each content came
        self._books: defaultdict[int, _Books] = defaultdict(_Books)  # by account, in this transaction

    @abstractmethod
    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Run one statement, with a value for each `?`, and return its cursor."""

    @abstractmethod
    def insert(self, sql: str, values: Sequence[Any]) -> int | None:
        """Insert a row and return its id; None if there was a conflict."""

    @abstractmethod
    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, which may be more than fit in memory."""

    @abstractmethod
    def writing(self, tokens: Collection[str] | None = None) -> AbstractContextManager[None]:
        """A transaction: durable at its end, undone by an exception.

        No other run writes to the accounts of these tokens meanwhile, or to any account if it is None.
        """

    @abstractmethod
    def holds_lease(self, name: str) -> bool:
        """Whether the run of this name is alive."""

    @abstractmethod
    def is_lost(self) -> bool:
        """Whether this run has died while it was in use: what it claimed is free, and another run must begin."""

    @abstractmethod
    def place(self) -> str:
        """Where the journal is: a copy of it elsewhere has runs of its own."""

    @abstractmethod
    def damage(self) -> list[str]:
        """What is wrong with the storage, as sentences."""

    @abstractmethod
    def close(self) -> None:
        """End the run."""

    @classmethod
    def upgrade(cls, version: int) -> list[str]:
        """The statements that bring the tables of a version up to date; version 0 has none."""
        steps = [
            [
                f"CREATE TABLE settings (name TEXT PRIMARY KEY, value {cls.blob} NOT NULL)",
                # settled, held: the sums of the requests' charges in billionths of a USD; pruned: the part of settled
                # whose requests were pruned.
                f"""CREATE TABLE accounts (
                    id {cls.row_id}, name TEXT NOT NULL UNIQUE, settled BIGINT NOT NULL DEFAULT 0,
                    held BIGINT NOT NULL DEFAULT 0, pruned BIGINT NOT NULL DEFAULT 0)""",
                f"CREATE TABLE runs (id {cls.row_id}, name TEXT NOT NULL UNIQUE, began DOUBLE PRECISION NOT NULL)",
                f"""CREATE TABLE requests (
                    id {cls.row_id}, account BIGINT NOT NULL, item BIGINT, key TEXT, request_id TEXT,
                    state TEXT NOT NULL, run BIGINT NOT NULL,
                    reserved BIGINT, cost BIGINT, created DOUBLE PRECISION NOT NULL, updated DOUBLE PRECISION NOT NULL,
                    model TEXT, error TEXT, files TEXT, answer {cls.blob}, body {cls.blob})""",
                "CREATE UNIQUE INDEX requests_by_key ON requests (account, key) WHERE key IS NOT NULL",
                "CREATE INDEX requests_by_id ON requests (account, request_id) WHERE request_id IS NOT NULL",
                "CREATE INDEX requests_by_item ON requests (item) WHERE item IS NOT NULL",
                "CREATE INDEX requests_submitting ON requests (run) WHERE state = 'submitting'",
                f"CREATE INDEX requests_without_cost ON requests (account, reserved, model) WHERE {_WITHOUT_COST}",
                # run: the run that claimed the item last; before_claim: the newest request that is not of that claim.
                f"""CREATE TABLE items (
                    id {cls.row_id}, account BIGINT NOT NULL, name {cls.blob} NOT NULL, content {cls.blob} NOT NULL,
                    run BIGINT NOT NULL, before_claim BIGINT NOT NULL, UNIQUE (account, name))""",
            ],
            [
                # The highest cost of a model that was more than its reservation: a catalogue's price is no promise.
                """CREATE TABLE IF NOT EXISTS highest_costs (
                    account BIGINT NOT NULL, model TEXT NOT NULL, cost BIGINT NOT NULL, PRIMARY KEY (account, model))"""
            ],
            # Accounts are named by service too, each when it is used next: a program that knows only version 2 would
            # not find them, and pay again.
            [],
        ]
        return [statement for step in steps[version:] for statement in step]

    # --- runs

    def begin(self, name: str) -> None:
        """Begin a run, and end those that died."""
        # What came in each pass over items beyond the first: on the disk, because it may be a million items.
        key = "PRIMARY KEY (pass, name)"
        self.execute(f"CREATE TEMP TABLE passed (pass BIGINT, name {self.blob}, count BIGINT, {key})")
        for run, other in self.execute("SELECT id, name FROM runs").fetchall():
            if not self.holds_lease(other):
                self._bury("run = ?", run)
                self.execute("DELETE FROM runs WHERE id = ?", (run,))
        self.run = self.insert("INSERT INTO runs (name, began) VALUES (?, ?)", (name, self.clock())) or 0
        self._name = name

    def mark(self) -> str:
        """What names the files of this run: what is the same for all runs of the journal, and the run's own name."""
        return f"{self._digest(self.place().encode(), 6).hex()}-{self._name}"

    def ended_runs(self, marks: Iterable[str]) -> set[str]:
        """Those of the marks that are of this journal's runs, and of runs that have ended."""
        journal = self.mark().partition("-")[0]
        return {mark for mark in marks if mark.startswith(f"{journal}-") and not self.holds_lease(mark[13:])}

    def living(self) -> list[int]:
        """The numbers of the runs that have not ended."""
        runs = self.execute("SELECT id, name FROM runs").fetchall()
        return [run for run, name in runs if self.holds_lease(name)]

    def is_alive(self, run: int, account: int) -> bool:
        """Whether a run has not ended; the submits that a dead run had under way in this account become uncertain.

        The next run that begins does it for the other accounts.
        """
        if run == self.run:
            return True
        if (run, account) not in self._buried:
            row = self.execute("SELECT name FROM runs WHERE id = ?", (run,)).fetchone()
            if row is not None:
                if self.holds_lease(row[0]):
                    return True
                self._bury("run = ? AND account = ?", run, account)
            self._buried.add((run, account))
        return False

    def _bury(self, condition: str, *values: int) -> None:
        self.execute(
            f"UPDATE requests SET state = ?, error = ?, updated = ? WHERE {condition} AND state = 'submitting'",  # noqa: S608
            (EntryState.UNCERTAIN.value, _LOST, self.clock(), *values),
        )

    def _undone(self) -> None:
        """Forget what a transaction noted that is undone."""
        self._accounts.clear()
        self._buried.clear()
        self._own.clear()
        self._books.clear()

    # --- accounts. `token` is a token, or as `for_account` makes it a token and a service with a blank between them.

    def account(self, token: str) -> int:
        """The number of a token's account."""
        number = self._accounts.get(token)
        if number is None:
            name, old = self._names(token)
            # An earlier version kept the account of a token for every service: the first that comes takes it over.
            adopt = "UPDATE accounts SET name = ? WHERE name = ? AND NOT EXISTS (SELECT 1 FROM accounts WHERE name = ?)"
            self.execute(adopt, (name, old, name))
            self.execute("INSERT INTO accounts (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
            [number] = self.execute("SELECT id FROM accounts WHERE name = ?", (name,)).fetchone()
            self._accounts[token] = number
        return number

    def account_name(self, token: str) -> str:
        """The stored name: a salted hash, from which the token cannot be told, and the service where one is given."""
        return self._names(token)[0]

    def _names(self, token: str) -> tuple[str, str]:
        """The name of an account, and the one that earlier versions gave it."""
        token, _, service = token.partition(" ")
        if not token:
            return "", ""
        hashed = self._digest(token.encode(errors="surrogatepass"), 16).hex()
        return f"{hashed}@{service}" if service else hashed, hashed

    def _digest(self, data: bytes, size: int) -> bytes:
        """A hash that is this journal's own."""
        if not self._salted:
            [self._salted] = self.execute("SELECT value FROM settings WHERE name = 'salt'").fetchone()
        return hashlib.blake2b(data, key=self._salted, digest_size=size).digest()

    def accounts(self) -> list[int]:
        """The numbers of all accounts."""
        return [number for [number] in self.execute("SELECT id FROM accounts").fetchall()]

    def totals(self, *accounts: int) -> Charge:
        """What accounts have spent and reserved."""
        self._settle()
        found = [self.execute(_TOTALS, (account,)).fetchone() for account in accounts]
        return Charge(sum(settled for settled, _ in found), sum(held for _, held in found))

    def unpriced(self, *accounts: int) -> int:
        """How many requests of accounts may be charged at an unknown cost, with nothing reserved."""
        count = f"SELECT count(*) FROM requests WHERE account = ? AND {_UNPRICED} AND {_CHARGED}"  # noqa: S608  # constants
        return sum(int(self.execute(count, (account,)).fetchone()[0]) for account in accounts)

    def highest_cost(self, model: str | None, *accounts: int) -> int:
        """The highest cost of generations of a model, if it was more than its reservation; else 0."""
        return max((self._highest_cost(account, model) for account in accounts), default=0)

    def other_accounts(self, token: str, ignored: Iterable[str] = ()) -> list[str]:
        """The names of all accounts in use, or none if this token's is; accounts of `ignored` tokens do not count."""
        used = {name for [name] in self.execute(_USED_ACCOUNTS)}
        if not used.isdisjoint(self._names(token)):
            return []
        hashes = {"", *map(self.account_name, ignored)}
        return sorted(name for name in used if name.partition("@")[0] not in hashes)

    def take_over(self, token: str, ignored: Iterable[str] = ()) -> None:
        """Give this token the only other account, unless it has one in use, or about to be used by a living run.

        Raises:
            JournalError: There are several others.
        """
        names = self.other_accounts(token, ignored)
        if len(names) > 1:
            raise JournalError(
                f"The journal knows {len(names)} other accounts, so it cannot tell which one this token continues"
            )
        account = self.account(token)
        claimed = self.execute("SELECT DISTINCT run FROM items WHERE account = ?", (account,)).fetchall()
        if any(self.is_alive(run, account) for [run] in claimed):
            return
        for name in names:
            new = self.account_name(token)
            self.execute("DELETE FROM accounts WHERE name = ?", (new,))
            self.execute("UPDATE accounts SET name = ? WHERE name = ?", (new, name))
            self._accounts.clear()

    # --- entries

    def record(self, token: str, entry: Entry) -> None:
        """Write an entry down.

        Raises:
            BudgetExceededError: The intent reserves more money than is left.
            JournalError: The entry does not say which request it is about, or holds text that cannot be stored; it is
                an intent for an item that this run has not claimed; or (`charged` is then "unknown") its request id
                belongs to another submit of the account, so that it says nothing about this one.
        """
        _check_text(entry)
        account = self.account(token)
        if entry.state is EntryState.SUBMITTING:
            if entry.key is None:
                raise JournalError("An intent needs the key of its submit")
            new = _Request.of(entry)
            if entry.reservation is not None:
                new = new._replace(reserved=self._check_budget(token, entry.model, entry.reservation))
            self._insert(account, entry, new, self._item(entry.item))
            return
        if entry.key is None and entry.request_id is None:
            raise JournalError(f"An entry of state {entry.state.value} names neither its submit nor its request")
        own = self._own.pop(entry.key or (account, entry.request_id or ""), None)
        if own is None or entry.files or entry.error is not None or not self._follow(account, own, entry):
            self._merge(account, entry, _Request.of(entry))

    def _follow(self, account: int, own: _Own, entry: Entry) -> bool:
        """Write in one statement what usually comes next of a request under way. Whether it was that."""
        if entry.state is EntryState.COMPLETED:
            return self._complete(account, own, entry.cost_usd, entry.answer)
        if entry.state is EntryState.SUBMITTED and entry.cost_usd is None and not entry.answer and entry.request_id:
            return self._accept(account, own, entry.request_id)
        return False

    def _accept(self, account: int, own: _Own, request_id: str) -> bool:
        if not self.execute(_ACCEPT, (request_id, self.clock(), own.id, account, request_id)).rowcount:
            return False
        self._own[account, request_id] = own
        return True

    def _complete(self, account: int, own: _Own, cost_usd: float | None, answer: bytes | None) -> bool:
        cost = None if cost_usd is None else to_nano(cost_usd)
        reserved = -1 if own.reserved is None else own.reserved
        if not self.execute(_COMPLETE, (cost, _blob(answer), self.clock(), own.id, reserved)).rowcount:
            return False
        if cost is not None:
            self._add(account, settled=cost, held=-(own.reserved or 0))
            self._learn_cost(account, own.model, own.reserved, cost)
        return True

    def _merge(self, account: int, entry: Entry, new: _Request) -> None:
        """Add what an entry says to the requests that it is about."""
        if entry.key is None:
            rows = self._select("account = ? AND request_id = ?", account, entry.request_id)
        else:
            rows = self._select(_SAME, account, entry.key, account, entry.request_id)
        unnamed = [row for row in rows if row.key is None]
        found = rows if entry.key is None else [row for row in rows if row.key == entry.key]
        if entry.key is not None and len(found) + len(unnamed) < len(rows):
            # A service that gives one id to two submits has lost one of them.
            raise JournalError(f"The request id {entry.request_id!r} belongs to another submit", charged="unknown")
        if entry.key is not None and found and found[0].request_id is None:
            # The request may be known by its id already, to which no submit belonged: both are one.
            for other in unnamed:
                self.execute("DELETE FROM requests WHERE id = ?", (other.id,))
                self._charge(account, _NOTHING, before=other.charge)
                found = [self._change(account, found[0], other)]
        for request in found or unnamed:
            self._change(account, request, new)
        if not rows and entry.state not in _UNSENT:  # not sent before its intent was written: no request
            self._insert(account, entry, new)

    def _item(self, claimed: str | None) -> int | None:
        """The number of an item that this run has claimed: no run submits for the claim of another or dead one."""
        if claimed is None:
            return None
        run, _, item = claimed.partition("-")
        if run != str(self.run) or not (item.isascii() and item.isdecimal() and len(item) <= _DIGITS):
            raise JournalError(f"This run has not claimed the item {claimed[:40]!r}, and must not submit it")
        return int(item)

    def _select(self, condition: str, *values: Any) -> list[_Request]:
        rows = self.execute(_SELECT + condition, values).fetchall()
        return [_Request(number, key, EntryState(state), *rest) for number, key, state, *rest in rows]

    def _insert(self, account: int, entry: Entry, new: _Request, item: int | None = None) -> None:
        now, key, state = self.clock(), entry.key, entry.state.value
        reserved = -1 if new.reserved is None else new.reserved
        row = account, item, key, state, self.run, reserved, now, now, entry.model, _blob(entry.body)
        facts = new.request_id, new.cost, new.error, new.files, new.answer
        number = self.insert(_INTEND, row) if facts == _NO_FACTS else self.insert(_INSERT, (*row, *facts))
        if number is None:
            raise JournalError(f"The submit {key} was recorded before")
        if key is not None and new.model is not None:
            if len(self._own) >= _UNDER_WAY:
                self._own.clear()
            self._own[key] = _Own(number, new.model, new.reserved)
        if new.reserved is not None or new.cost is not None:
            self._charge(account, new.charge)
            self._learn_cost(account, new.model, new.reserved, new.cost)
        self._books[account].all_priced &= new.reserved is not None

    def _change(self, account: int, request: _Request, new: _Request) -> _Request:
        """Give a request the state of another row if that ranks higher, and in any case what that row adds."""
        wins = supersedes(new.state, request.state)
        is_later = new.answer is not None and request.state is new.state  # a later answer, which may hold the files
        changed = _Request(
            request.id,
            request.key,
            new.state if wins else request.state,
            request.model or new.model,
            request.request_id or new.request_id,
            request.reserved,
            request.cost if new.cost is None else new.cost,
            new.files or request.files,
            new.answer or request.answer,
            new.error if wins or is_later else request.error,
        )
        # Only the columns that differ, because each indexed column costs time even if its value stays the same.
        fields = zip(_Request._fields, request, changed, strict=True)
        values = {name: value for name, old, value in fields if value is not old and value != old}
        if not values:
            return request
        if wins:
            values["state"] = new.state.value
        self.execute(_update(*values), (*values.values(), self.clock(), request.id))
        self._charge(account, changed.charge, before=request.charge)
        if "cost" in values:
            self._learn_cost(account, changed.model, changed.reserved, changed.cost)
        return changed

    # --- the budget, which all processes share that use the journal

    def _check_budget(self, token: str, model: str | None, reservation: Reservation) -> int:
        """Refuse an intent that costs more than is left; nothing else is spent before the transaction ends.

        Returns:
            What to reserve: the expected cost, or the highest that the service charged for the model.
        """
        price = to_nano(reservation.usd)
        if price is None:
            raise BudgetExceededError(
                f"The expected cost of a submit is from 0 to {LARGEST_COST:g} USD, not {reservation.usd:g}"
            )
        most = inf if reservation.max_usd == inf else to_nano(reservation.max_usd, most=from_nano(FULL))
        if most is None:
            raise BudgetExceededError(f"A budget is an amount of USD, not {reservation.max_usd:g}")
        account, known = self.account(token), price
        price = max(price, self._highest_cost(account, model))
        books = self._books[account]
        if not books.all_priced:
            # A request that was submitted without a budget, and whose cost is unknown, is not free: it counts as this.
            for request in self._select(f"account = ? AND {_UNPRICED}", account):
                self.execute("UPDATE requests SET reserved = ? WHERE id = ?", (price, request.id))
                self._charge(account, charge(request.state, price, None))
            books.all_priced = True
        if books.totals is None:
            books.totals = Charge(*self.execute(_TOTALS, (account,)).fetchone())
        settled, held = books.totals.settled + books.due["settled"], books.totals.held + books.due["held"]
        if settled + held + price > most:
            reserved = from_nano(held) if price > known else 0
            raise over_budget(from_nano(price), from_nano(settled + held), reservation.max_usd, reserved)
        return price

    def _highest_cost(self, account: int, model: str | None) -> int:
        """The highest cost of a model beyond its reservation; 0 if none is known."""
        highest = self._books[account].highest
        if model not in highest:
            select = "SELECT cost FROM highest_costs WHERE account = ? AND model = ?"
            row = self.execute(select, (account, model)).fetchone()
            highest[model] = 0 if row is None else int(row[0])
        return highest[model]

    def _learn_cost(self, account: int, model: str | None, reserved: int | None, cost: int | None) -> None:
        """If a request cost more than any of its model before, reserve that much for those that are pending too."""
        if cost is None or model is None or cost <= (reserved or 0):
            return
        if cost <= self._highest_cost(account, model):
            return
        self.execute(_RAISE, (account, model, cost))
        self._books[account].highest[model] = cost
        pending = f"account = ? AND reserved < ? AND model = ? AND {_WITHOUT_COST} AND state IN {_PENDING}"
        for other in self._select(pending, account, cost, model):
            self.execute("UPDATE requests SET reserved = ? WHERE id = ?", (cost, other.id))
            self._charge(account, charge(other.state, cost, None), before=other.charge)

    def _charge(self, account: int, after: Charge, *, before: Charge = _NOTHING) -> None:
        if after != before:
            self._add(account, settled=after.settled - before.settled, held=after.held - before.held)

    def _add(self, account: int, **amounts: int) -> None:
        """Add to an account's totals, at the end of the transaction."""
        due = self._books[account].due
        for name, amount in amounts.items():
            due[name] = max(-FULL, min(due[name] + amount, FULL))

    def _settle(self) -> None:
        """Write what is to be added to totals. One that is full stays so: no sum overflows, and no budget is larger."""
        for account, books in self._books.items():
            if due := {name: amount for name, amount in books.due.items() if amount}:
                changes = (f"{name} = CASE WHEN {name} < {FULL} THEN {name} + ? ELSE {name} END" for name in due)
                update = f"UPDATE accounts SET {', '.join(changes)} WHERE id = ?"  # noqa: S608  # names of columns
                self.execute(update, (*due.values(), account))
        self._books.clear()

    # --- claims

    def claim(
        self, token: str, pass_: int, model: str, body: bytes, item_id: str | None, again: frozenset[EntryState]
    ) -> Claim:
        """Claim an item, unless another run has it; `again`: the states after which an item is submitted again.

        A claimed item is free again once a request that this claim submitted or resumed has ended, the run that claimed
        it has ended, or (for that run alone) the claim was released.

        Raises:
            InvalidInputError: The id belongs to another input that may be paid for.
        """
        account, name, content = self._identified(token, pass_, model, body, item_id)
        item = self.insert(_NEW_ITEM, (account, _blob(name), _blob(content), self.run))
        if item is not None:
            self._claimed.add(item)
            return Claim(item=f"{self.run}-{item}", action=Action.SUBMIT)
        item, action, newest = self._known(account, name, content, item_id, again)
        resubmits = _resubmits(action, newest, again)
        claim = _claim(action, newest)._replace(item=f"{self.run}-{item}", resubmits=resubmits)
        if item is not None and claim.is_ours:
            # A request that is resumed counts as one of this claim, so that its end frees the item.
            before = 0 if newest is None else newest.id - (action is Action.RESUME)
            if newest is None:  # what comes late of another input's request is not this one's
                self.execute("UPDATE requests SET item = NULL WHERE item = ?", (item,))
            update = "UPDATE items SET content = ?, run = ?, before_claim = ? WHERE id = ?"
            self.execute(update, (content, self.run, before, item))
            self._claimed.add(item)
        return claim

    def preview(
        self, token: str, pass_: int, model: str, body: bytes, item_id: str | None, again: frozenset[EntryState]
    ) -> Claim:
        """Return what `claim` would return, without claiming the item; what it `resubmits` is submitted.

        Raises:
            InvalidInputError: As `claim`.
        """
        _, action, newest = self._known(*self._identified(token, pass_, model, body, item_id), item_id, again)
        return _claim(Action.SUBMIT if _resubmits(action, newest, again) else action, newest)

    def release(self, claim: Claim) -> None:
        """End this run's work on an item; can be called from any thread."""
        run, _, item = claim.item.partition("-")
        if claim.is_ours and int(run) == self.run:
            self._claimed.discard(int(item))

    def end_pass(self, pass_: int) -> None:
        """Forget what came in a pass."""
        self._passed.pop(pass_, None)
        self.execute("DELETE FROM passed WHERE pass = ?", (pass_,))

    def _identified(
        self, token: str, pass_: int, model: str, body: bytes, item_id: str | None
    ) -> tuple[int, bytes, bytes]:
        """The account, name and content of an item; its name is its id, or its content and how often that came."""
        content = hashlib.blake2b(model.encode(errors="surrogatepass") + b"\0" + body, digest_size=16).digest()
        if item_id is not None:
            return self.account(token), ITEM_ID + item_id.encode(errors="surrogatepass"), content
        return self.account(token), b"=%s%d" % (content, self._occurrence(pass_, content)), content

    def _occurrence(self, pass_: int, content: bytes) -> int:
        """How often this content has come in a pass, now included."""
        known = self._passed[pass_]
        if content in known or len(known) < _REMEMBERED:
            known[content] = count = known.get(content, 0) + 1
            return count
        row = pass_, content
        if self.execute("INSERT INTO passed VALUES (?, ?, 1) ON CONFLICT DO NOTHING", row).rowcount:
            return 1
        self.execute("UPDATE passed SET count = count + 1 WHERE pass = ? AND name = ?", row)
        [count] = self.execute("SELECT count FROM passed WHERE pass = ? AND name = ?", row).fetchone()
        return int(count)

    def _known(
        self, account: int, name: bytes, content: bytes, item_id: str | None, again: frozenset[EntryState]
    ) -> tuple[int | None, Action, _Request | None]:
        """The number of an item if it is known, what to do with it, and its newest request.

        An input replaces another one with its id, of which no request counts, if that cannot be paid for any more.
        """
        select = "SELECT id, content, run, before_claim FROM items WHERE account = ? AND name = ?"
        row = self.execute(select, (account, name)).fetchone()
        if row is None:
            return None, Action.SUBMIT, None
        item, known_content, run, before_claim = row
        alive = self.is_alive(run, account)  # first, because it may change the request
        newest = next(iter(self._select("item = ? ORDER BY id DESC LIMIT 1", item)), None)
        if run == self.run:
            # An abandoned submit may still be under way after its claim was released.
            busy = item in self._claimed or (newest is not None and newest.state is EntryState.SUBMITTING)
        else:
            ended = newest is not None and newest.id > before_claim and STATES[newest.state].ended
            busy = alive and not ended
        if known_content != content:
            if busy or self._select(f"item = ? AND {_CHARGED} LIMIT 1", item):
                raise InvalidInputError(
                    f"The journal knows another input by the id {(item_id or '')[:60]!r}, and it may be paid for: give "
                    "it back its old input (fields, model and content of files), or a new id, which is paid for again"
                )
            return item, Action.SUBMIT, None
        if busy:
            return item, Action.CLAIMED, newest
        if newest is None or newest.state in again:
            return item, Action.SUBMIT, newest
        return item, STATES[newest.state].action, newest

    def known_requests(self, request_ids: Collection[str]) -> set[str]:
        """Those of the ids that are of this journal's requests, whose account it may be."""
        marks = ", ".join("?" * len(request_ids))
        select = f"SELECT DISTINCT request_id FROM requests WHERE request_id IN ({marks})"  # noqa: S608  # of constants
        select += " AND account IN (SELECT id FROM accounts)"  # with which the index begins
        return {request_id for [request_id] in self.execute(select, tuple(request_ids)).fetchall()}

    def has_request(self, token: str, request_id: str) -> bool:
        """Whether a request is of this token's account."""
        return bool(self._select("account = ? AND request_id = ? LIMIT 1", self.account(token), request_id))

    # --- checking and pruning

    def findings(self) -> list[str]:
        """What is wrong with the storage, and which totals contradict the requests; takes a while."""
        return self.damage() + [
            f"account {name or 'without a name'}: {settled}+{held}, not {settled_sum:.0f}+{held_sum:.0f}"
            for name, settled, held, settled_sum, held_sum in self.execute(_BALANCE).fetchall()
        ]

    def prunable(self, before: float) -> int:
        """How many requests ended before this time."""
        return int(self.execute(f"SELECT count(*) {_PRUNABLE}", (before,)).fetchone()[0])

    def prune(self, before: float, most: int) -> int:
        """Delete some requests that ended before this time, and return how many; the totals keep their cost."""
        select = f"SELECT id, account, item, state, reserved, cost {_PRUNABLE} LIMIT ?"
        rows = self.execute(select, (before, most)).fetchall()
        for request, account, item, state, reserved, cost in rows:
            self.execute("DELETE FROM requests WHERE id = ?", (request,))
            settled, held = charge(EntryState(state), reserved, cost)
            # A reservation that was never settled counts as spent from now on.
            self._add(account, settled=held, held=-held, pruned=settled + held)
            # An item without requests goes too, unless a living run works on it.
            unused = "SELECT run FROM items WHERE id = ? AND NOT EXISTS (SELECT 1 FROM requests WHERE item = items.id)"
            for [run] in self.execute(unused, (item,)).fetchall():
                if not self.is_alive(run, account):
                    self.execute("DELETE FROM items WHERE id = ?", (item,))
        return len(rows)
