"""Items, taken to be worked on: within a transaction, in the journal's thread.

An item that this run, or another that is alive, has under way is taken. It is free again once an order of its own has
ended, its run has, or (for this run alone) it was released.
"""

import hashlib
import zlib
from typing import Any, Final, NamedTuple

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.ledger.base import Action, Claim, EntryState
from flux_klein_async.ledger.database import Database
from flux_klein_async.ledger.entries import files_from, seal
from flux_klein_async.ledger.transitions import ENDED
from flux_klein_async.ledger.troubles import damaged

__all__ = ["WORKING", "claim", "forget_pass", "look"]

# Whoever gets one of these works on the item until it releases it.
WORKING: Final = frozenset({Action.SUBMIT, Action.TAKE_UP})

_DIGEST, _SEAL = 16, 4  # bytes
_ITEM: Final = "SELECT id, content, run, seen FROM items WHERE account = ? AND name = ?"
_NEWEST: Final = (
    "SELECT id, state, request_id, error, files, answer, digest FROM orders WHERE item = ? ORDER BY id DESC LIMIT 1"
)


class _Newest(NamedTuple):
    """The newest order of an item."""

    id: int
    state: EntryState
    request_id: str | None
    error: str | None
    files: str | None
    answer: bytes | None
    digest: int | None


def claim(
    db: Database, token: str, number: int, model: str, body: bytes, item_id: str | None, again: frozenset[EntryState]
) -> Claim:
    """Take an item, if nobody has it under way; `again`: the ends after which it is submitted once more.

    Raises:
        InvalidInputError: Its id came before in this pass, or stood for another input.
        JournalError: What it stood for is damaged.
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


def look(
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
    content = _sealed(hashlib.blake2b(model.encode() + b"\0" + body, digest_size=_DIGEST).digest())
    return db.account(token), content, _name_in_pass(db, number, content, item_id)


def _found(
    db: Database, row: Any, content: bytes, item_id: str | None, again: frozenset[EntryState]
) -> tuple[Action, _Newest | None]:
    """What is to be done with an item of which there is a row, and its newest order.

    Raises:
        InvalidInputError: Its id stood for another input.
        JournalError: What it stood for is damaged.
    """
    item, known, run, seen = row
    if known != content:
        if known != _sealed(known[:-_SEAL]):
            raise damaged(db.path, [f"item {item}"])
        raise InvalidInputError(f"The journal knows another input by the id {(item_id or '')[:60]!r}")
    alive = db.is_alive(run)  # first: it may change what is known of the order
    newest = _newest(db, item)
    taken = _under_way(db, item, run, seen, newest, alive=alive)
    return Action.TAKEN if taken else _action(newest, again), newest


def _name_in_pass(db: Database, number: int, content: bytes, item_id: str | None) -> bytes:
    """By what an item is known: its id, or its content and how often that came before in this pass."""
    name = content[:_DIGEST] if item_id is None else b"id:" + item_id.encode(errors="surrogatepass")
    db.db.execute(
        "INSERT INTO temp.seen VALUES (?, ?, 1) ON CONFLICT (pass, name) DO UPDATE SET count = count + 1",
        (number, name),
    )
    [count] = db.db.execute("SELECT count FROM temp.seen WHERE pass = ? AND name = ?", (number, name)).fetchone()
    if item_id is None:
        return b"=%s%d" % (content[:_DIGEST], count)
    if count > 1:
        raise InvalidInputError(f"The id {item_id[:60]!r} came before in this pass: ids tell items apart")
    return name


def _sealed(digest: bytes) -> bytes:
    """A digest that tells a damaged one from another."""
    return digest + zlib.crc32(digest).to_bytes(_SEAL, "big")


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
    EntryState.SUBMITTED: Action.TAKE_UP,
    EntryState.COMPLETED: Action.KEEP,
    EntryState.DOWNLOADED: Action.KEEP,
    EntryState.FAILED: Action.FAILED,
}


def _take(db: Database, item: int, newest: _Newest | None, action: Action) -> None:
    """Write down who has it, and after which order it will be free again."""
    seen = 0 if newest is None else newest.id - (action is Action.TAKE_UP)
    db.db.execute("UPDATE items SET run = ?, seen = ? WHERE id = ?", (db.run, seen, item))
    db.taken.add(item)


def _told(item: int, action: Action, newest: _Newest | None) -> Claim:
    if newest is None or action is Action.SUBMIT:
        return Claim(item=str(item), action=action)
    if action is not Action.KEEP:
        return Claim(item=str(item), action=action, request_id=newest.request_id, error=newest.error)
    if newest.digest != seal(newest.files, newest.answer):  # damaged: the service still has it
        return Claim(item=str(item), action=action, request_id=newest.request_id)
    return Claim(
        item=str(item),
        action=action,
        request_id=newest.request_id,
        answer=newest.answer,
        files=files_from(newest.files),
    )
