"""Forgetting what ended long ago, a part in each transaction, so that the runs that write meanwhile need not wait."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flux_klein_async.errors import JournalError
from flux_klein_async.ledger.base import EntryState
from flux_klein_async.ledger.database import Database
from flux_klein_async.ledger.schema import recognize
from flux_klein_async.ledger.transitions import ENDED, charge
from flux_klein_async.ledger.troubles import trouble

__all__ = ["prune"]

_AT_ONCE: Final = 500  # orders forgotten in one transaction: other processes wait for its end
# What may have been accepted stays until somebody knows.
_FORGOTTEN: Final = tuple(sorted(state.value for state in ENDED - {EntryState.UNCERTAIN}))
_OLD: Final = f"FROM orders WHERE state IN ({', '.join('?' * len(_FORGOTTEN))}) AND updated < ?"


def prune(path: Path, before: float, *, clock: Callable[[], float], dry_run: bool = False) -> int:
    """Forget the orders that ended before an instant; what they cost stays counted. How many they are, or would be.

    An item whose orders are all forgotten is one that was never submitted. The file does not shrink; new orders
    fill it up. Blocks: in an application on a loop, call it in a thread.

    Raises:
        JournalError: There is none, or it cannot be written.
    """
    path = path.resolve()
    try:
        if not recognize(path):
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
    for order, account, item, state, reserved, cost in rows:
        db.db.execute("DELETE FROM orders WHERE id = ?", (order,))
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
        "SELECT run FROM items WHERE id = ? AND NOT EXISTS (SELECT 1 FROM orders WHERE item = items.id)", (item,)
    ).fetchone()
    if row is not None and not db.is_alive(row[0]):
        db.db.execute("DELETE FROM items WHERE id = ?", (item,))
