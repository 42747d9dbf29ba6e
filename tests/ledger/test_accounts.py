"""A token that was renewed is a stranger, and takes over what was submitted with the old one only if told to."""

from collections.abc import Callable

import pytest

from flux_klein_async.errors import JournalError
from flux_klein_async.ledger.accounts import strangers, take_over
from flux_klein_async.ledger.base import Action, Entry
from flux_klein_async.ledger.schema import check

from .helpers import Run, entry, write


def submit(run: Run, token: str) -> None:
    """An item of this token's account, submitted and done."""
    key = f"of {token}"
    claimed = run.claim(b"{}", key, token=token)
    told: list[Entry] = [entry("submitting", key=key, item=claimed.item), entry("submitted", key=key, request_id=key)]
    write(run.database, *told, entry("completed", request_id=key, cost_usd=0.25, answer=b"{}"), token=token)


def known(run: Run, token: str, ignored: tuple[str, ...] = ()) -> int:
    with run.database.writing():
        return len(strangers(run.database, token, ignored))


def test_a_journal_without_orders_knows_no_strangers(run: Run) -> None:
    write(run.database, entry("refused", key="k"), token="one that bought nothing")
    assert known(run, "new") == 0


def test_a_token_is_a_stranger_where_only_others_were_used(run: Run) -> None:
    submit(run, "old")
    assert (known(run, "new"), known(run, "old"), known(run, "new", ("old",))) == (1, 0, 0)
    submit(run, "new")
    assert known(run, "new") == 0


def test_a_new_token_takes_over_what_the_old_one_had(start: Callable[[], Run]) -> None:
    submit(start(), "old")
    run = start()
    write(run.database, entry("refused", key="k"), token="new")  # its account is there, and empty
    with run.database.writing():
        take_over(run.database, "new")
    run.number = 2
    assert run.claim(b"{}", "of old", token="new").action is Action.KEEP
    accounts = run.database.db.execute("SELECT name, settled FROM accounts").fetchall()
    assert accounts == [(run.database.account_name("new"), 250_000_000)]
    check(run.database.path, run.database.db)
    with run.database.writing():
        take_over(run.database, "new")  # once more changes nothing
    assert run.database.db.execute("SELECT name, settled FROM accounts").fetchall() == accounts


def test_which_of_several_was_renewed_nobody_knows(run: Run) -> None:
    submit(run, "old")
    submit(run, "another's")
    with pytest.raises(JournalError, match="2 other tokens"), run.database.writing():
        take_over(run.database, "new")
