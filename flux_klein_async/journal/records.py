"""Accounts are told apart by their tokens; a token that was renewed is a stranger until somebody says whose it is.

Within a transaction, in the journal's thread.

Entries, written into the requests of an account: within a transaction, in the journal's thread.

Items, taken to be worked on: within a transaction, in the journal's thread.

An item that this run, or another that is alive, has under way is taken. It is free again once a request of its own has
ended, its run has, or (for this run alone) it was released.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from flux_klein_async.errors import BudgetExceededError, InvalidInputError, JournalError
from flux_klein_async.journal.base import (
    ENDED,
    Action,
    Charge,
    Claim,
    Entry,
    EntryState,
    Reservation,
    charge,
    from_nano,
    heeds,
    to_nano,
)
from flux_klein_async.journal.database import Database
from flux_klein_async.models import SavedFile

__all__ = [
    "WORKING",
    "claim",
    "files_from",
    "files_text",
    "forget_pass",
    "preview",
    "record",
    "strangers",
    "take_over",
]


_USED = (
    "(settled <> 0 OR held <> 0 OR EXISTS (SELECT 1 FROM items WHERE account = accounts.id)"
    " OR EXISTS (SELECT 1 FROM requests WHERE account = accounts.id))"
)


def strangers(db: Database, token: str, ignored: Iterable[str] = ()) -> list[str]:
    """The names of the accounts that the journal knows if it knows nothing of this one, else none.

    `ignored`: tokens whose accounts do not count, such as an emulator's.
    """
    used = {name for [name] in db.db.execute(f"SELECT name FROM accounts WHERE {_USED}")}  # noqa: S608  # of a constant
    if db.account_name(token) in used:
        return []
    return sorted(used - {"", *map(db.account_name, ignored)})


def take_over(db: Database, token: str, ignored: Iterable[str] = ()) -> None:
    """Make what was submitted with the only other token this one's, if nothing was submitted with this one.

    Raises:
        JournalError: There are several others.
    """
    names = strangers(db, token, ignored)
    if len(names) > 1:
        raise JournalError(f"The journal {db.path} knows {len(names)} other tokens: which of them was renewed?")
    for name in names:
        db.rename_account(name, token)


_LONGEST: Final = 2100  # characters of an error: those of the package's own sentences at most
_COLUMNS: Final = "id, state, request_id, reserved, cost, files, answer"
_BY_KEY: Final = f"SELECT {_COLUMNS} FROM requests WHERE account = ? AND key = ?"  # noqa: S608  # of constants
_BY_REQUEST: Final = f"SELECT {_COLUMNS} FROM requests WHERE account = ? AND request_id = ?"  # noqa: S608
_NAMELESS: Final = f"SELECT {_COLUMNS}, error FROM requests WHERE account = ? AND request_id = ? AND key IS NULL"  # noqa: S608

_NO_PRICE: Final = "key IS NOT NULL AND reserved IS NULL AND cost IS NULL"
_UNPRICED: Final = f"SELECT id, state FROM requests WHERE id > ? AND account = ? AND {_NO_PRICE}"  # noqa: S608
_INSERT: Final = (
    "INSERT INTO requests (account, item, key, request_id, state, run, reserved, cost, created, updated, model, error,"
    " files, answer, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_FACTS: Final = "state = ?, cost = ?, files = ?, answer = ?, error = CASE WHEN ? THEN error ELSE ? END, updated = ?"
_UPDATE: Final = f"UPDATE requests SET {_FACTS} WHERE id = ?"  # noqa: S608
# Apart: a column that is set is taken out of its index and put in again, even where it stays what it was.
_UPDATE_WITH_ID: Final = f"UPDATE requests SET {_FACTS}, request_id = ? WHERE id = ?"  # noqa: S608


class _Row(NamedTuple):
    id: int
    state: str
    request_id: str | None
    reserved: int | None
    cost: int | None
    files: str | None
    answer: bytes | None


def record(db: Database, token: str, entry: Entry) -> None:
    """Write one entry down.

    Raises:
        BudgetExceededError: Its reservation is more than is left.
        JournalError: It says of no request what it is about.
    """
    account = db.account(token)
    if entry.state is EntryState.SUBMITTING:
        _intend(db, account, entry)
        return
    rows = _requests_of(db, account, entry)
    for row in rows:
        _change(db, account, row, entry)
    if not rows and entry.state is not EntryState.REFUSED:  # one that was refused before its intent was written is none
        _insert(db, account, entry)


def _requests_of(db: Database, account: int, entry: Entry) -> list[_Row]:
    """The requests that an entry is about; of one request there are several only if the service gave its id twice."""
    if entry.key is None and entry.request_id is None:
        raise JournalError(f"An entry of state {entry.state.value} names neither its submit nor its request")
    rows: list[Any] = []
    if entry.key is not None:
        rows = db.db.execute(_BY_KEY, (account, entry.key)).fetchall()
    if not rows and entry.request_id is not None:
        rows = db.db.execute(_BY_REQUEST, (account, entry.request_id)).fetchall()
    return [_Row(*row) for row in rows]


def _intend(db: Database, account: int, entry: Entry) -> None:
    if entry.key is None:
        raise JournalError("An intent needs the key of its submit")
    if entry.reservation is not None:
        _afford(db, account, entry.reservation)
    _insert(db, account, entry)


def _afford(db: Database, account: int, reservation: Reservation) -> None:
    """Refuse what is more than is left; no other process can spend between this and the intent."""
    price, most = to_nano(reservation.usd), to_nano(reservation.max_usd)
    if price is None:
        raise BudgetExceededError(f"The next submit is expected to cost {reservation.usd:g} USD, which is no amount")
    _price_others(db, account, price)
    settled, held = db.db.execute("SELECT settled, held FROM accounts WHERE id = ?", (account,)).fetchone()
    if (most is None and not reservation.max_usd > 0) or (most is not None and settled + held + price > most):
        raise BudgetExceededError(
            f"The next submit is expected to cost {reservation.usd:g} USD; of {reservation.max_usd:g} USD, "
            f"{from_nano(settled):g} are spent and {from_nano(held):g} set aside",
            charged="no",
        )


def _price_others(db: Database, account: int, price: int) -> None:
    """Set the same aside for each submit that was made without a budget and whose cost is not known: none is free."""
    since = db.priced.get(account, 0)
    [newest] = db.db.execute("SELECT coalesce(max(id), 0) FROM requests").fetchone()
    if newest == since:
        return
    rows = db.db.execute(_UNPRICED, (since, account)).fetchall()
    db.db.executemany("UPDATE requests SET reserved = ? WHERE id = ?", [(price, request) for request, _ in rows])
    held = sum(charge(EntryState(state), price, None).held for _, state in rows)
    _charge(db, account, Charge(0, 0), Charge(0, held))
    db.priced[account] = newest


def _insert(db: Database, account: int, entry: Entry) -> None:
    now = db.clock()
    reserved = None if entry.reservation is None else to_nano(entry.reservation.usd)
    cost = _cost(entry)
    files = files_text(entry.files)
    cursor = db.db.execute(
        _INSERT,
        (
            account,
            _item(entry.item),
            entry.key,
            entry.request_id,
            entry.state.value,
            db.run,
            reserved,
            cost,
            now,
            now,
            entry.model,
            _short(entry.error),
            files,
            entry.answer,
            entry.body,
        ),
    )
    if not cursor.rowcount:
        raise JournalError(f"The submit {entry.key} was written down before")
    _charge(db, account, Charge(0, 0), charge(entry.state, reserved, cost))


def _change(db: Database, account: int, row: _Row, entry: Entry) -> None:
    """Give a request the state of an entry, if that is stronger, and in any case what the entry knows more."""
    if entry.request_id is not None and row.request_id is None:
        row = _absorb(db, account, row, entry.request_id)
    before = state = EntryState(row.state)
    error = None
    if heeds(before, entry.state):
        state, error = entry.state, _short(entry.error)
    elif not _knows_more(row, entry):
        return
    told = _cost(entry)
    cost = row.cost if told is None else told
    files = files_text(entry.files) or row.files
    answer = row.answer if entry.answer is None else entry.answer
    facts = (state.value, cost, files, answer, state is before, error, db.clock())
    if row.request_id is None and entry.request_id is not None:
        db.db.execute(_UPDATE_WITH_ID, (*facts, entry.request_id, row.id))
    else:
        db.db.execute(_UPDATE, (*facts, row.id))
    _charge(db, account, charge(before, row.reserved, row.cost), charge(state, row.reserved, cost))


def _knows_more(row: _Row, entry: Entry) -> bool:
    """Whether an entry has something to add to a request whose state is stronger than its own."""
    new_id = entry.request_id is not None and row.request_id is None
    return new_id or _cost(entry) is not None or entry.answer is not None or entry.files != ()


def _absorb(db: Database, account: int, row: _Row, request_id: str) -> _Row:
    """Of a request that was heard of before its submit was known to be its own, make one request."""
    for *found, error in db.db.execute(_NAMELESS, (account, request_id)).fetchall():
        other = _Row(*found)
        db.db.execute("DELETE FROM requests WHERE id = ?", (other.id,))
        state = EntryState(other.state)
        _charge(db, account, charge(state, other.reserved, other.cost), Charge(0, 0))
        cost = None if other.cost is None else from_nano(other.cost)
        known = Entry(
            state=state,
            request_id=request_id,
            cost_usd=cost,
            answer=other.answer,
            files=files_from(other.files),
            error=error,
        )
        db.db.execute("UPDATE requests SET request_id = ? WHERE id = ?", (request_id, row.id))
        _change(db, account, row._replace(request_id=request_id), known)
        [row] = [_Row(*again) for again in db.db.execute(_BY_REQUEST, (account, request_id)) if again[0] == row.id]
    return row


def _charge(db: Database, account: int, before: Charge, after: Charge) -> None:
    settled, held = after.settled - before.settled, after.held - before.held
    if settled or held:
        db.db.execute(
            "UPDATE accounts SET settled = settled + ?, held = held + ? WHERE id = ?", (settled, held, account)
        )


def _cost(entry: Entry) -> int | None:
    return None if entry.cost_usd is None else to_nano(entry.cost_usd)


def _item(item: str | None) -> int | None:
    if item is None:
        return None
    try:
        return int(item)
    except ValueError:
        raise JournalError(f"This journal gave no such item: {item[:40]!r}") from None


def _short(error: str | None) -> str | None:
    """An error's text, fit to be stored: a server may have written it."""
    return None if error is None else error[:_LONGEST].encode(errors="backslashreplace").decode()


def files_text(files: Sequence[SavedFile]) -> str | None:
    """Files as they are stored."""
    if not files:
        return None
    return json.dumps([[str(file.path), file.sha256, file.size] for file in files])


def files_from(text: str | None) -> tuple[SavedFile, ...]:
    """Files as they were stored."""
    if text is None:
        return ()
    return tuple(SavedFile(path=Path(path), sha256=sha256, size=size) for path, sha256, size in json.loads(text))


# Whoever gets one of these works on the item until it releases it.
WORKING: Final = frozenset({Action.SUBMIT, Action.RESUME})

_DIGEST = 16  # bytes
_ITEM: Final = "SELECT id, content, run, seen FROM items WHERE account = ? AND name = ?"
_NEWEST: Final = (
    "SELECT id, state, request_id, error, files, answer FROM requests WHERE item = ? ORDER BY id DESC LIMIT 1"
)


class _Newest(NamedTuple):
    """The newest request of an item."""

    id: int
    state: EntryState
    request_id: str | None
    error: str | None
    files: str | None
    answer: bytes | None


def claim(
    db: Database, token: str, number: int, model: str, body: bytes, item_id: str | None, again: frozenset[EntryState]
) -> Claim:
    """Take an item, if nobody has it under way; `again`: the ends after which it is submitted once more.

    Raises:
        InvalidInputError: Its id came before in this pass, or stood for another input.
    """
    account, content, name = _known_as(db, token, number, model, body, item_id)
    row = db.db.execute(_ITEM, (account, name)).fetchone()
    if row is None:
        cursor = db.db.execute(
            "INSERT INTO items (account, name, content, run, seen) VALUES (?, ?, ?, ?, 0)",
            (account, name, content, db.run),
        )
        item = cursor.lastrowid or 0
        db.taken.add(item)
        return Claim(item=str(item), action=Action.SUBMIT)
    item = row[0]
    action, newest = _found(db, row, content, item_id, again)
    if action in WORKING:
        _take(db, item, newest, action)
    return _told(item, action, newest)


def preview(
    db: Database, token: str, number: int, model: str, body: bytes, item_id: str | None, again: frozenset[EntryState]
) -> Action:
    """What a claim would lead to; nobody takes the item.

    Raises:
        InvalidInputError, JournalError: As `claim`.
    """
    account, content, name = _known_as(db, token, number, model, body, item_id)
    row = db.db.execute(_ITEM, (account, name)).fetchone()
    return Action.SUBMIT if row is None else _found(db, row, content, item_id, again)[0]


def forget_pass(db: Database, number: int) -> None:
    """Nobody goes on with a pass."""
    db.db.execute("DELETE FROM temp.seen WHERE pass = ?", (number,))


def _known_as(
    db: Database, token: str, number: int, model: str, body: bytes, item_id: str | None
) -> tuple[int, bytes, bytes]:
    """Account, content and name of an item."""
    content = hashlib.blake2b(model.encode() + b"\0" + body, digest_size=_DIGEST).digest()
    return db.account(token), content, _name_in_pass(db, number, content, item_id)


def _found(
    db: Database, row: Any, content: bytes, item_id: str | None, again: frozenset[EntryState]
) -> tuple[Action, _Newest | None]:
    """What is to be done with an item of which there is a row, and its newest request.

    Raises:
        InvalidInputError: Its id stood for another input.
    """
    item, known, run, seen = row
    if known != content:
        raise InvalidInputError(f"The journal knows another input by the id {(item_id or '')[:60]!r}")
    alive = db.is_alive(run)  # first: it may change what is known of the request
    newest = _newest(db, item)
    taken = _under_way(db, item, run, seen, newest, alive=alive)
    return Action.CLAIMED if taken else _action(newest, again), newest


def _name_in_pass(db: Database, number: int, content: bytes, item_id: str | None) -> bytes:
    """By what an item is known: its id, or its content and how often that came before in this pass."""
    name = content if item_id is None else b"id:" + item_id.encode(errors="surrogatepass")
    db.db.execute(
        "INSERT INTO temp.seen VALUES (?, ?, 1) ON CONFLICT (pass, name) DO UPDATE SET count = count + 1",
        (number, name),
    )
    [count] = db.db.execute("SELECT count FROM temp.seen WHERE pass = ? AND name = ?", (number, name)).fetchone()
    if item_id is None:
        return b"=%s%d" % (content, count)
    if count > 1:
        raise InvalidInputError(f"The id {item_id[:60]!r} came before in this pass: ids tell items apart")
    return name


def _newest(db: Database, item: int) -> _Newest | None:
    row: Any = db.db.execute(_NEWEST, (item,)).fetchone()
    return None if row is None else _Newest(row[0], EntryState(row[1]), *row[2:])


def _under_way(db: Database, item: int, run: int, seen: int, newest: _Newest | None, *, alive: bool) -> bool:
    if run == db.run:
        # Released, yet its submit is still being seen through by whoever gave it up.
        return item in db.taken or (newest is not None and newest.state is EntryState.SUBMITTING)
    ended = newest is not None and newest.id > seen and newest.state in ENDED
    return alive and not ended


def _action(newest: _Newest | None, again: frozenset[EntryState]) -> Action:
    if newest is None or newest.state in again:
        return Action.SUBMIT
    return _ACTIONS[newest.state]


_ACTIONS: Final = {
    EntryState.SUBMITTING: Action.UNCERTAIN,
    EntryState.UNCERTAIN: Action.UNCERTAIN,
    EntryState.REFUSED: Action.SUBMIT,
    EntryState.CANCELLED: Action.SUBMIT,
    EntryState.SUBMITTED: Action.RESUME,
    EntryState.COMPLETED: Action.RECALL,
    EntryState.DOWNLOADED: Action.RECALL,
    EntryState.FAILED: Action.FAILED,
}


def _take(db: Database, item: int, newest: _Newest | None, action: Action) -> None:
    """Write down who has it, and after which request it will be free again."""
    seen = 0 if newest is None else newest.id - (action is Action.RESUME)
    db.db.execute("UPDATE items SET run = ?, seen = ? WHERE id = ?", (db.run, seen, item))
    db.taken.add(item)


def _told(item: int, action: Action, newest: _Newest | None) -> Claim:
    if newest is None or action is Action.SUBMIT:
        return Claim(item=str(item), action=action)
    if action is not Action.RECALL:
        return Claim(item=str(item), action=action, request_id=newest.request_id, error=newest.error)
    return Claim(
        item=str(item),
        action=action,
        request_id=newest.request_id,
        answer=newest.answer,
        files=files_from(newest.files),
    )
