"""Accounts are told apart by their tokens; a token that was renewed is a stranger until somebody says whose it is.

Within a transaction, in the journal's thread.
"""

from collections.abc import Iterable

from flux_klein_async.errors import JournalError
from flux_klein_async.ledger.database import Database

__all__ = ["strangers", "take_over"]

_USED = (
    "(settled <> 0 OR held <> 0 OR EXISTS (SELECT 1 FROM items WHERE account = accounts.id)"
    " OR EXISTS (SELECT 1 FROM orders WHERE account = accounts.id))"
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
