"""Entries become requests, money is counted, items are recognised, and a renewed token takes over its account.

No weaker entry overwrites what is known, no two runs work on one item, and the totals are right after any entries.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flux_klein_async.errors import BudgetExceededError, InvalidInputError, JournalError
from flux_klein_async.journal.base import Claim, Entry, Reservation
from flux_klein_async.journal.reader import JournalReader
from flux_klein_async.journal.sql import Location, files_from
from flux_klein_async.journal.sqlite import SqliteLocation
from flux_klein_async.journal.states import Action, EntryState, charge
from flux_klein_async.models import SavedFile

from .helpers import AGAIN, Run, check, entry, item, set_version, write
from .test_states import AFTER

Start = Callable[[], Run]
LOST = "The process ended before the service's answer was written down"
PRICE = Reservation(usd=0.01, max_usd=0.03)
FILE = SavedFile(path=Path("/out/r.png"), sha256="ab", size=3)


def intent(key: str = "k", **facts: Any) -> Entry:
    return entry("submitting", key=key, model="a/b", body=b'{"prompt": "a"}', reservation=PRICE, **facts)


def reopened(start: Start, run: Run) -> Run:
    """The next run, after this one's end."""
    run.close()
    return start()


# --- entries


def test_a_request_from_its_intent_to_its_files(run: Run) -> None:
    run.write(intent())
    new = dict.fromkeys(("item", "request_id", "cost", "files", "error", "answer"))
    assert run.request() == new | {
        "id": 1,
        "account": 1,
        "run": 1,
        "key": "k",
        "state": "submitting",
        "model": "a/b",
        "reserved": 10**7,
        "body": b'{"prompt": "a"}',
        "created": 1000.0,
        "updated": 1000.0,
    }
    assert run.money() == (0, 10)
    run.now = 1001.0
    run.write(entry("submitted", key="k", model="a/b", request_id="r"))
    assert (run.request()["state"], run.request()["request_id"], run.money()) == ("submitted", "r", (0, 10))
    run.write(entry("completed", request_id="r", cost_usd=0.004, answer=b"{}"))
    assert (run.request()["state"], run.request()["answer"], run.money()) == ("completed", b"{}", (4, 0))
    run.write(entry("downloaded", request_id="r", files=(FILE,)))
    last = run.request()
    assert (last["state"], last["answer"], files_from(last["files"])) == ("downloaded", b"{}", (FILE,))
    assert (last["created"], last["updated"], run.money()) == (1000.0, 1001.0, (4, 0))


def test_a_weaker_entry_adds_what_it_knows_and_changes_nothing_else(run: Run) -> None:
    run.write(intent(), entry("completed", request_id="r", cost_usd=0.01, answer=b"{}"))
    run.write(entry("submitted", key="k", request_id="r"))
    facts = run.request()
    assert (facts["key"], facts["state"], facts["answer"], run.money()) == ("k", "completed", b"{}", (10, 0))
    run.now = 2000.0
    run.write(entry("failed", request_id="r", error="late"), entry("uncertain", key="k"))
    assert run.request() == facts
    run.write(entry("downloaded", request_id="r"), entry("completed", request_id="r", cost_usd=0.02, files=(FILE,)))
    facts = run.request()
    assert (facts["state"], files_from(facts["files"]), run.money()) == ("downloaded", (FILE,), (20, 0))


@pytest.mark.parametrize(
    ("intended", "accepted", "known"),
    [
        ({}, {"request_id": "r", "model": "a/b"}, {"request_id": "r", "model": "a/b"}),
        ({"model": "a/b"}, {"request_id": "r", "model": "c/d"}, {"request_id": "r", "model": "a/b"}),
        ({"model": "a/b"}, {"request_id": "r", "cost_usd": 0.02}, {"request_id": "r", "cost": 20_000_000}),
        ({"model": "a/b", "request_id": "r"}, {"request_id": "s"}, {"request_id": "r"}),
        ({"model": "a/b", "error": "why"}, {"request_id": "r"}, {"request_id": "r", "error": None}),
    ],
)
def test_an_acceptance_adds_what_its_intent_lacks(
    run: Run, intended: dict[str, Any], accepted: dict[str, Any], known: dict[str, Any]
) -> None:
    run.write(entry("submitting", key="k", **intended), entry("submitted", key="k", **accepted))
    [found] = run.requests()
    assert {name: found[name] for name in ("state", *known)} == {"state": "submitted", **known}


@pytest.mark.parametrize(
    "meanwhile",
    [
        (),
        (entry("submitted", request_id="r", cost_usd=0.02),),
        (entry("submitted", request_id="r", answer=b"{}"),),
        (entry("completed", request_id="r", cost_usd=0.02, answer=b"{}"),),
        (entry("cancelled", request_id="r", error="why"),),
        (entry("submitting", key="other", model="a/b"), entry("completed", key="other", request_id="o", cost_usd=5.0)),
    ],
)
@pytest.mark.parametrize(
    "last",
    [
        entry("completed", request_id="r", cost_usd=0.01, answer=b'{"a": 1}'),
        entry("completed", request_id="r", error="no file"),
        entry("completed", key="k", request_id="r", cost_usd=0.03),
        entry("completed", request_id="r", answer=b'{"a": 1}', files=(FILE,)),
        entry("submitted", key="k", request_id="r", answer=b'{"a": 1}'),
        entry("failed", request_id="r", error="why"),
    ],
)
def test_what_a_run_has_under_way_is_written_as_if_it_were_read(
    start: Start, meanwhile: tuple[Entry, ...], last: Entry
) -> None:
    run, other = start(), start()

    def outcome(token: str, *, is_read: bool) -> list[tuple[Any, ...]]:
        write(run.store, intent(), entry("submitted", key="k", request_id="r"), token=token)
        write(other.store, *meanwhile, token=token)
        if is_read:
            run.store._own.clear()
        write(run.store, last, token=token)
        columns = "key, request_id, state, reserved, cost, model, error, files, answer"
        account = run.store.account(token)
        rows = run.store.execute(f"SELECT {columns} FROM requests WHERE account = ? ORDER BY id", (account,)).fetchall()
        return [*rows, run.store.execute("SELECT settled, held FROM accounts WHERE id = ?", (account,)).fetchone()]

    assert outcome("a", is_read=False) == outcome("b", is_read=True)
    check(run.location)


def test_what_is_undone_is_not_under_way(run: Run) -> None:
    with pytest.raises(OSError, match="full"), run.store.writing():
        run.store.record("", intent("a"))
        raise OSError("full")
    run.write(intent("b"), entry("submitted", key="a", request_id="r"))
    assert [(one["key"], one["state"]) for one in run.requests()] == [("b", "submitting"), ("a", "submitted")]


def test_a_run_remembers_a_bounded_number_of_requests_under_way(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flux_klein_async.journal.sql._UNDER_WAY", 2)
    for key in "abcde":
        run.write(entry("submitting", key=key, model="a/b"))
        assert len(run.store._own) <= 2
    run.write(*(entry("submitted", key=key, request_id=f"r-{key}") for key in "abcde"))
    run.write(*(entry("completed", request_id=f"r-{key}", cost_usd=0.01) for key in "abcde"))
    assert (run.states(), run.store._own) == (["completed"] * 5, {})


def test_an_error_stays_with_the_state_that_it_explains(run: Run) -> None:
    run.write(intent(), entry("uncertain", key="k", error="no answer"))
    assert run.request()["error"] == "no answer"
    run.write(entry("uncertain", key="k", error="again"))
    assert run.request()["error"] == "no answer"
    run.write(entry("submitted", key="k", request_id="r"))
    assert run.request()["error"] is None
    run.write(entry("failed", request_id="r", error="\ud800\0" + "x" * 5000))
    run.write(entry("failed", request_id="r", cost_usd=0.01, error="again"))
    error = run.request()["error"]
    assert error.startswith("\\ud800\\x00xxx")
    assert len(error) < 2200


def test_a_request_or_submit_without_an_intent_is_recorded_unless_it_was_refused(run: Run) -> None:
    run.write(entry("refused", key="b", error="budget"))
    assert run.requests() == []
    run.write(entry("submitted", key="k", request_id="r"), entry("uncertain", key="l"))
    run.write(entry("completed", request_id="s", cost_usd=0.01, answer=b"{}"))
    assert [(one["key"], one["request_id"], one["state"], one["answer"]) for one in run.requests()] == [
        ("k", "r", "submitted", None),
        ("l", None, "uncertain", None),
        (None, "s", "completed", b"{}"),
    ]
    assert run.money() == (10, 0)


def test_a_request_keeps_the_id_that_it_has(run: Run) -> None:
    run.write(intent(), entry("submitted", key="k", request_id="r"), entry("completed", key="k", request_id="s"))
    assert (run.request()["request_id"], run.request()["state"]) == ("r", "completed")


def test_a_request_is_known_by_its_id_whichever_account_made_it(run: Run) -> None:
    run.write(intent(), entry("submitted", key="k", request_id="r"))
    write(run.store, entry("submitted", request_id="s"), token="other")
    assert run.store.known_requests(["r", "s", "t"]) == {"r", "s"}


@pytest.mark.parametrize("state", ["submitted", "completed"])
def test_a_request_id_that_another_submit_has_is_not_this_submits(start: Start, state: str) -> None:
    """Whichever run has it, and whether that request is under way or ended."""
    first, second = start(), start()
    first.write(intent("a"), entry(state, key="a", request_id="r"), intent("b"))
    second.write(intent("c"))
    for run, key in ((first, "b"), (second, "c"), (second, "without an intent"), (second, "A")):
        with pytest.raises(JournalError, match="The request id 'r' belongs to another submit") as caught:
            run.write(entry("submitted", key=key, request_id="r"))
        assert caught.value.charged == "unknown"
    assert [(one["request_id"], one["state"]) for one in first.requests()] == [
        ("r", state),
        (None, "submitting"),
        (None, "submitting"),
    ]
    first.write(entry("submitted", key="a", request_id="r"), entry("submitted", key="b", request_id="s"))
    second.write(entry("uncertain", key="c"))
    write(second.store, intent(), entry("submitted", key="k", request_id="r"), token="another account's")
    assert first.states() == [state, "submitted", "uncertain", "submitted"]


@pytest.mark.parametrize(
    "wrong",
    [
        entry("submitting", request_id="r"),
        entry("submitted"),
        *(entry("submitting", key="k", item=item) for item in ("one", "1", "2-1", "1-" + "9" * 19, "1-\u0661")),
        *(entry("submitting", key=text) for text in ("a\0b", "\ud800")),
        entry("submitting", key="k", model="a/\0"),
        entry("submitted", key="k", request_id="\udfff"),
    ],
)
def test_an_entry_that_names_no_request_is_refused(run: Run, wrong: Entry) -> None:
    """Or an item that this run has not claimed, or what no store can hold."""
    with run.store.writing():  # what shares its transaction is written
        run.store.record("", entry("submitting", key="before"))
        with pytest.raises(JournalError):
            run.store.record("", wrong)
        run.store.record("", entry("submitting", key="after"))
    assert [one["key"] for one in run.requests()] == ["before", "after"]


def test_no_run_submits_for_what_another_claimed(start: Start) -> None:
    """As one whose lock was lost would, if its claims still counted."""
    one, other = start(), start()
    claimed = one.claim()
    one.store.release(claimed)
    with pytest.raises(JournalError, match="has not claimed the item"):
        other.write(entry("submitting", key="k", item=claimed.item))
    run = reopened(start, one)
    again = run.claim()
    assert (item(again), again.item) != (item(claimed), claimed.item)
    run.store.release(claimed)  # the other run's claim: nothing
    assert run.claim().action is Action.CLAIMED


# --- budget


def test_money_is_reserved_until_none_is_left(run: Run) -> None:
    run.write(intent("a"), intent("b"), intent("c"))
    with pytest.raises(BudgetExceededError) as caught:
        run.write(intent("d"))
    assert str(caught.value) == "The next generation may cost $0.01, and $0.00 of $0.03 is left"
    assert (caught.value.charged, len(run.requests())) == ("no", 3)
    run.write(entry("refused", key="a"), intent("e"))
    run.write(entry("submitted", key="b", request_id="r"), entry("completed", request_id="r", cost_usd=0.002))
    with pytest.raises(BudgetExceededError, match=r"\$0\.008 of \$0\.03 is left"):
        run.write(intent("f"))


def unbudgeted(key: str, state: str = "submitted", **facts: Any) -> list[Entry]:
    intended = entry("submitting", key=key, model="a/b", body=b"{}")
    return [intended, entry(state, key=key, request_id=f"of {key}", **facts)]


def test_what_was_submitted_without_a_budget_and_may_cost_something_is_not_free_in_one(run: Run) -> None:
    run.write(*unbudgeted("a"), *unbudgeted("b", "failed"), *unbudgeted("c", "cancelled"))
    run.write(*unbudgeted("d", "completed", cost_usd=0.002))
    assert run.money() == (2, 0), "what was spent without a budget counts in one"
    with pytest.raises(BudgetExceededError, match=r"\$0\.008 of \$0\.03 is left"):
        run.write(intent())
    run.write(entry("completed", request_id="of a", cost_usd=0.004))
    with pytest.raises(BudgetExceededError, match=r"\$0\.00 of \$0\.03 is left"):
        run.write(intent(), *unbudgeted("e"), intent("l"))
    assert run.money() == (6, 20)
    check(run.location)


def test_others_may_submit_without_a_budget_meanwhile(start: Callable[[], Run]) -> None:
    bounded, other = start(), start()
    bounded.write(intent("a"))
    other.write(*unbudgeted("b"))
    write(other.store, *unbudgeted("c"), token="another account's")
    bounded.write(intent("d"))
    other.write(entry("completed", request_id="of b", cost_usd=0.0))
    bounded.write(intent("e"))
    with pytest.raises(BudgetExceededError, match=r"\$0\.00 of \$0\.03 is left"):
        bounded.write(intent("f"))


def bought(
    run: Run, key: str, cost: float | None, *, usd: float = 0.01, most: float = 9.0, model: str = "a/b"
) -> float:
    """Submit at a price, and let it end at a cost, if there is one; the USD that were reserved."""
    price = Reservation(usd=usd, max_usd=most)
    run.write(entry("submitting", key=key, model=model, reservation=price))
    if cost is not None:
        run.write(entry("submitted", key=key, request_id=f"r-{key}"))
        run.write(entry("completed", request_id=f"r-{key}", cost_usd=cost))
    return next(one["reserved"] for one in run.requests() if one["key"] == key) / 10**9


def test_what_a_model_cost_beyond_its_price_is_reserved_for_it_from_then_on(start: Start) -> None:
    one, other = start(), start()
    assert bought(one, "a", 0.04) == 0.01
    assert [bought(one, "b", 0.02), bought(other, "c", 0.04), bought(one, "d", 0.05), bought(other, "e", 0.01)] == [
        0.04,
        0.04,
        0.04,
        0.05,
    ]
    with pytest.raises(BudgetExceededError, match=r"is left$"):
        bought(one, "nothing is reserved", None, most=0.2)
    one.write(
        Entry(state=EntryState.SUBMITTING, key="pending", model="a/b", reservation=Reservation(usd=0.01, max_usd=9))
    )
    with pytest.raises(BudgetExceededError, match=r"is left, beside \$0\.05 reserved for requests that may cost less"):
        bought(one, "h", None, most=0.2)
    one.write(entry("refused", key="pending"))
    assert bought(one, "f", 0.005, model="c/d") == bought(one, "g", 0.01, model="c/d") == 0.01
    with pytest.raises(BudgetExceededError, match=r"may cost \$0\.05, and \$0\.025 of \$0\.20 is left"):
        bought(one, "h", None, most=0.2)
    with one.store.writing():
        one.store.prune(2000.0, 100)
    run = reopened(start, one)
    assert bought(run, "i", None) == 0.05, "in later runs too, whatever was pruned"
    check(run.location)


def test_a_lower_price_is_reserved_if_nothing_cost_more_than_the_price_of_its_time(run: Run) -> None:
    assert [bought(run, "a", 0.04, usd=0.04), bought(run, "b", 0.03, usd=0.04)] == [0.04, 0.04]
    assert bought(run, "c", None, usd=0.01) == 0.01


def test_what_a_model_cost_without_a_budget_is_reserved_for_it_in_one(run: Run) -> None:
    run.write(
        *unbudgeted("a", "completed", cost_usd=0.04), entry("completed", request_id="r", model="c/d", cost_usd=0.1)
    )
    run.write(entry("completed", request_id="no model", cost_usd=0.5), *unbudgeted("d", "completed", cost_usd=0.03))
    assert [bought(run, "b", None), bought(run, "c", None, model="c/d")] == [0.04, 0.1]


def test_a_higher_cost_is_reserved_for_what_is_pending_too(run: Run) -> None:
    for key in ("submitting", "submitted", "uncertain", "failed", "refused", "cheap"):
        bought(run, key, None)
    for state in ("submitted", "uncertain", "failed", "refused"):
        run.write(entry(state, key=state))
    bought(run, "another's", None, model="c/d")
    assert run.money() == (0, 60)
    run.write(entry("completed", key="cheap", cost_usd=0.001))
    assert run.money() == (1, 50)
    bought(run, "dear", 0.04)
    assert run.money() == (41, 3 * 40 + 20)
    run.write(entry("completed", key="submitted", cost_usd=0.04))
    assert run.money() == (81, 2 * 40 + 20)
    check(run.location)


def test_what_shares_a_transaction_counts_at_once(run: Run) -> None:
    price = Reservation(usd=0.01, max_usd=0.1)
    with run.store.writing():
        for key in "ab":
            run.store.record("", entry("submitting", key=key, model="a/b", reservation=price))
            run.store.record("", entry("completed", key=key, request_id=f"r-{key}", cost_usd=0.04))
        with pytest.raises(BudgetExceededError, match=r"may cost \$0\.04, and \$0\.02 of \$0\.10 is left"):
            run.store.record("", entry("submitting", key="c", model="a/b", reservation=price))
        assert run.store.totals(run.store.account("")) == (80_000_000, 0)
        for key, reservation in (("a", price), ("b", None), ("c", price)):
            run.store.record("another", entry("submitting", key=key, reservation=reservation))
        assert run.store.totals(run.store.account("another")) == (0, 30_000_000), (
            "what came without a budget is not free in one"
        )
    check(run.location)


def test_a_journal_of_an_earlier_version_learns_costs_too(start: Start) -> None:
    run = start()
    run.close()
    set_version(run.location, 1, "DROP TABLE highest_costs")
    run = start()
    bought(run, "a", 0.04)
    assert bought(run, "b", None) == 0.04


@pytest.mark.parametrize(
    ("usd", "most", "fits"),
    [(0.01, float("inf"), True), (0.01, 50_000.0, True), (0.0, 0.0, True), (0.01, -1.0, False)]
    + [(usd, 1.0, False) for usd in (-0.01, float("nan"), float("inf"))]
    + [(0.01, float("nan"), False)],
)
def test_only_amounts_of_money_can_be_reserved(run: Run, usd: float, most: float, fits: bool) -> None:
    wanted = entry("submitting", key="k", reservation=Reservation(usd=usd, max_usd=most))
    if fits:
        run.write(wanted)
    else:
        with pytest.raises(BudgetExceededError):
            run.write(wanted)
    assert len(run.requests()) == fits


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0, 1e300, 4e9, 10_001.0])
def test_a_cost_that_is_no_amount_is_not_known(run: Run, cost: float) -> None:
    run.write(intent(), entry("submitted", key="k", request_id="r"), entry("completed", request_id="r", cost_usd=cost))
    assert run.money() == (0, 10)
    run.write(entry("completed", request_id="r", cost_usd=0.004), entry("completed", request_id="r", cost_usd=cost))
    assert run.money() == (4, 0)


def test_no_sum_of_costs_overflows_and_what_is_full_stays_full(start: Start) -> None:
    """An account that a service charged in a wrong unit, up to the bound of a 64-bit column."""
    run = start()
    with run.store.writing():
        account = run.store.account("")
        run.store.execute("UPDATE accounts SET settled = ?, held = ?", (2**62 - 1, 2**62 - 1))
    for key in "abc":
        run.write(entry("submitting", key=key, reservation=Reservation(usd=10_000.0, max_usd=float("inf"))))
        run.write(entry("submitted", key=key, request_id=key), entry("completed", request_id=key, cost_usd=10_000.0))
    for most in (1e6, 4e9):
        with pytest.raises(BudgetExceededError):
            run.write(entry("submitting", key="d", reservation=Reservation(usd=0.01, max_usd=most)))
    [(settled, held)] = run.store.execute("SELECT settled, held FROM accounts WHERE id = ?", (account,)).fetchall()
    assert (type(settled), type(held)) == (int, int)
    assert settled == held == 2**62 - 1 + 10**13
    check(run.location)
    run.now = 3000.0
    with run.store.writing():
        assert run.store.prune(2000.0, 10) == 3
    check(reopened(start, run).location)


@pytest.mark.parametrize("amount", [2**62 - 1, 2**63 - 1, 1e300, -(2**63)])
def test_a_journal_opens_whatever_amounts_are_in_it(start: Start, location: Location, amount: float) -> None:
    """As an earlier version, or another program, may have left them. PostgreSQL's columns take no others."""
    amount = amount if isinstance(location, SqliteLocation) else 2**62 - 1
    run = start()
    for key in "abc":
        run.submit(key, body=key.encode())
        run.write(entry("completed", request_id=f"r-{key}", cost_usd=0.01))
    run.store.execute("UPDATE requests SET cost = ?, reserved = ?", (amount, amount))
    run.store.execute("UPDATE accounts SET settled = ?, held = ?, pruned = ?", (amount, amount, amount))
    write(run.store, entry("completed", request_id="s", cost_usd=0.01), token="another")
    run = reopened(start, run)
    assert run.claim(b"a").action is Action.RECALL
    run.submit("d", body=b"d")
    run.write(entry("completed", request_id="r-d", cost_usd=0.01))
    with JournalReader(run.location) as reader:
        assert [len(list(reader.requests())), sum(reader.sums().counts.values())] == [5, 5]
        with contextlib.suppress(JournalError):  # it may say that the totals differ, and nothing else
            reader.check()
    run.now = 3000.0
    with run.store.writing():
        assert run.store.prune(2000.0, 10) == 5


def test_accounts_share_neither_requests_nor_money(run: Run) -> None:
    for token in ("one", "two"):
        write(run.store, intent(), entry("submitted", key="k", request_id="r"), token=token)
    write(run.store, entry("completed", request_id="r", cost_usd=0.02), token="one")
    assert run.states() == ["completed", "submitted"]
    with run.store.writing():
        assert (run.store.totals(run.store.account("one")), run.store.totals(run.store.account("two"))) == (
            (20_000_000, 0),
            (0, 10_000_000),
        )


@pytest.mark.parametrize(
    ("state", "facts"),
    [("downloaded", {"files": (FILE,)}), ("completed", {"cost_usd": 0.25}), ("failed", {"error": "why"})],
)
def test_what_was_heard_of_a_request_before_its_submit_is_kept_with_it(
    run: Run, state: str, facts: dict[str, Any]
) -> None:
    run.write(entry(state, request_id="r", **facts))
    run.write(entry("submitting", key="k"), entry("submitted", key="k", request_id="r"))
    only = run.request()
    assert (only["key"], only["request_id"], only["state"]) == ("k", "r", state)
    assert files_from(only["files"]) == facts.get("files", ())
    assert only["cost"] == (250_000_000 if "cost_usd" in facts else None)
    assert only["error"] == facts.get("error")


# --- what to do with an item


@pytest.mark.parametrize(
    ("states", "action", "facts"),
    [
        ([], Action.SUBMIT, {}),
        (["submitting"], Action.UNCERTAIN, {"error": LOST}),
        (["submitting", "repeated"], Action.SUBMIT, {}),
        (["submitting", "refused"], Action.SUBMIT, {}),
        (["submitting", "uncertain"], Action.UNCERTAIN, {"error": "why"}),
        (["submitting", "submitted"], Action.RESUME, {"request_id": "r"}),
        (["submitting", "submitted", "completed"], Action.RECALL, {"request_id": "r", "answer": b"{}"}),
        (
            ["submitting", "submitted", "completed", "downloaded"],
            Action.RECALL,
            {"request_id": "r", "answer": b"{}", "files": (FILE,)},
        ),
        (["submitting", "submitted", "failed"], Action.FAILED, {"request_id": "r", "error": "why"}),
        (["submitting", "submitted", "cancelled"], Action.SUBMIT, {}),
    ],
)
def test_what_is_to_be_done_with_an_item_of_an_earlier_run(
    start: Start, states: list[str], action: Action, facts: dict[str, object]
) -> None:
    run = start()
    claimed = run.claim()
    known = {
        "submitted": {"key": "k", "request_id": "r"},
        "completed": {"request_id": "r", "answer": b"{}"},
        "downloaded": {"request_id": "r", "files": (FILE,)},
        "failed": {"request_id": "r", "error": "why"},
        "cancelled": {"request_id": "r"},
    }
    for state in states:
        run.write(entry(state, item=claimed.item, **known.get(state, {"key": "k", "error": "why"})))
    later = reopened(start, run)
    assert later.preview() is action
    again = later.claim()
    assert item(again) == item(claimed)
    assert again == Claim(item=again.item, action=action, **facts)  # type: ignore[arg-type]


def test_a_preview_claims_nothing(start: Start) -> None:
    one, two = start(), start()
    assert one.preview() is Action.SUBMIT
    assert two.claim().action is Action.SUBMIT
    assert one.preview() is Action.CLAIMED


def test_an_intent_whose_process_died_is_written_down_as_uncertain(start: Start) -> None:
    one, living = start(), start()
    one.write(entry("submitting", key="k", item=one.claim(b"1").item))
    one.submit("l", body=b"2")
    one.claim(b"3")
    assert [living.claim(body).action for body in (b"1", b"2", b"3")] == [Action.CLAIMED] * 3
    assert living.states() == ["submitting", "submitted"]
    one.close()
    claims = [living.claim(body) for body in (b"1", b"2", b"3")]
    assert [claim.action for claim in claims] == [Action.UNCERTAIN, Action.RESUME, Action.SUBMIT]
    assert (claims[0].error, living.states()) == (LOST, ["uncertain", "submitted"])


# --- which run works on it


def test_an_item_that_is_under_way_here_is_taken_until_it_is_released(run: Run) -> None:
    claimed = run.claim()
    taken = run.claim()
    assert (taken.item, taken.action) == (claimed.item, Action.CLAIMED)
    run.store.release(taken)  # as its caller does with every claim
    assert run.claim().action is Action.CLAIMED
    run.store.release(claimed)
    assert run.claim().action is Action.SUBMIT


def test_an_item_whose_abandoned_submit_is_under_way_is_taken(run: Run) -> None:
    claimed = run.claim()
    run.write(entry("submitting", key="k", item=claimed.item))
    run.store.release(claimed)
    assert run.claim().action is Action.CLAIMED
    run.write(entry("submitted", key="k", request_id="r"))
    assert run.claim().action is Action.RESUME


@pytest.mark.parametrize(
    ("states", "action"),
    [
        ([], Action.CLAIMED),
        (["submitting"], Action.CLAIMED),
        (["submitting", "repeated"], Action.CLAIMED),  # it is submitted again there
        (["submitting", "submitted"], Action.CLAIMED),
        (["submitting", "submitted", "completed"], Action.RECALL),
        (["submitting", "submitted", "failed"], Action.FAILED),
        (["submitting", "submitted", "cancelled"], Action.SUBMIT),
        (["submitting", "refused"], Action.SUBMIT),
        (["submitting", "repeated", "refused"], Action.SUBMIT),
        (["submitting", "uncertain"], Action.UNCERTAIN),
    ],
)
def test_an_item_of_another_run_that_is_alive_is_free_once_its_request_ended(
    start: Start, states: list[str], action: Action
) -> None:
    one, other = start(), start()
    claimed = one.claim()
    for state in states:
        one.write(entry(state, key="k", item=claimed.item, request_id="r" if state != "submitting" else None))
    one.store.release(claimed)  # which only the run itself knows
    assert other.claim().action is action


@pytest.mark.parametrize("before", ["failed", "refused", "uncertain", "cancelled"])
def test_an_earlier_request_is_not_the_end_of_what_is_under_way_now(start: Start, before: str) -> None:
    run = start()
    run.write(entry("submitting", key="k", item=run.claim().item), entry(before, key="k"))
    one, other = reopened(start, run), start()
    again = AGAIN | {EntryState.FAILED, EntryState.UNCERTAIN}
    claimed = one.claim(again=again)
    assert claimed.action is Action.SUBMIT
    assert other.claim(again=again).action is Action.CLAIMED
    one.write(entry("submitting", key="l", item=claimed.item))
    assert other.claim(again=again).action is Action.CLAIMED
    one.write(entry("submitted", key="l", request_id="r"))
    assert reopened(start, one).claim().action is Action.RESUME, "the newest request counts"


def test_a_resumed_request_is_free_again_once_it_ended_or_was_released(start: Start) -> None:
    run = start()
    run.submit()
    one, other = reopened(start, run), start()
    resumed = one.claim()
    assert resumed.action is Action.RESUME
    assert (one.claim().action, other.claim().action) == (Action.CLAIMED, Action.CLAIMED)
    one.store.release(resumed)
    resumed = one.claim()
    assert (resumed.action, other.claim().action) == (Action.RESUME, Action.CLAIMED)
    one.write(entry("completed", request_id="r-k"))
    assert other.claim().action is Action.RECALL


def test_a_result_without_a_file_is_recalled_and_may_be_submitted_again_by_one_run_that_is_asked_to(
    start: Start,
) -> None:
    run, failed = start(), AGAIN | {EntryState.FAILED}
    run.submit()
    run.write(entry("completed", request_id="r-k", answer=b"{}", error="no file"))
    one, other = reopened(start, run), start()
    known = one.claim()
    assert (known.action, known.error, known.is_ours, known.resubmits) == (Action.RECALL, "no file", False, False)
    assert (one.preview(), one.preview(again=failed)) == (Action.RECALL, Action.SUBMIT)
    asked = one.claim(again=failed)
    assert (asked.action, asked.answer, asked.is_ours, asked.resubmits) == (Action.RECALL, b"{}", True, True)
    assert {each.claim(again=failed).action for each in (one, other)} == {Action.CLAIMED}
    one.store.release(asked)
    one.write(entry("completed", request_id="r-k", answer=b'{"image": "there"}'))
    healed = one.claim(again=failed)
    assert (healed.answer, healed.error, healed.resubmits) == (b'{"image": "there"}', None, False)
    one.write(entry("submitted", request_id="r-k"), entry("downloaded", request_id="r-k", files=(FILE,)))
    assert (one.claim(again=failed).resubmits, one.claim(again=failed).files) == (False, (FILE,))


# --- how an item is recognised


@pytest.mark.parametrize("in_memory", [2, 1, 0])
def test_items_without_an_id_are_known_by_content_and_occurrence(
    start: Start, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flux_klein_async.journal.sql._REMEMBERED", in_memory)
    run = start()
    first, second, other = [run.claim(body, number=1) for body in (b"1", b"1", b"2")]
    another = run.claim(b"1", model="c/d", number=1)
    assert len({claimed.item for claimed in (first, second, other, another)}) == 4
    again = reopened(start, run)
    items = [item(again.claim(body, number=1)) for body in (b"2", b"1", b"1")]
    assert items == [item(other), item(first), item(second)]
    assert item(again.claim(b"1", number=2)) == item(first), "each pass counts for itself"
    with again.store.writing():
        again.store.end_pass(1)
    assert item(again.claim(b"1", number=1)) == item(first)
    assert item(again.claim(b"1", number=2)) == item(second), "only that pass was forgotten"


def test_an_id_stands_for_one_input(start: Start) -> None:
    run = start()
    claimed = run.claim(b"1", "the id", number=1)
    assert run.claim(b"1", number=1).item != claimed.item, "the same content without an id is another item"
    assert run.claim(b"1", "the id", number=1).action is Action.CLAIMED, "in one pass too"
    run.write(entry("submitting", key="k", item=claimed.item), entry("completed", key="k", request_id="r"))
    run.store.release(claimed)
    assert run.claim(b"1", "the id", number=1).action is Action.RECALL
    run = reopened(start, run)
    for body, model in ((b"2", "a/b"), (b"1", "c/d")):
        with pytest.raises(InvalidInputError, match="knows another input by the id 'the id'"):
            run.claim(body, "the id", model=model)
    assert item(run.claim(b"1", "the id")) == item(claimed)
    assert run.claim(b"1", "\ud800").action is Action.SUBMIT


@pytest.mark.parametrize(
    ("earlier", "replaced"),
    [
        ([], True),
        (["refused"], True),
        (["cancelled"], True),
        (["submitting"], False),
        (["uncertain"], False),
        (["submitted"], False),
        (["failed"], False),
        (["completed"], False),
        (["uncertain", "refused"], False),  # submitted again on request
        (["failed", "cancelled"], False),
    ],
)
def test_another_input_takes_an_id_over_if_nothing_can_be_paid_for_the_first(
    start: Start, earlier: list[str], replaced: bool
) -> None:
    run, again = start(), AGAIN | {EntryState.FAILED, EntryState.UNCERTAIN}
    first = run.claim(b"1", "i")
    for key in earlier:
        item = run.claim(b"1", "i", again=again).item if key != earlier[0] else first.item
        run.write(entry("submitting", key=key, item=item))
        if key != "submitting":
            run.write(entry(key, key=key, request_id=f"r-{key}", error="why"))
        run.store.release(first)
    run, other = reopened(start, run), start()
    if not replaced:
        with pytest.raises(InvalidInputError, match="another input by the id 'i', and it may be paid for"):
            run.claim(b"2", "i", again=again)
        return
    claimed = run.claim(b"2", "i", again=again)
    assert (claimed.action, claimed.request_id, run.claim(b"2", "i").action) == (Action.SUBMIT, None, Action.CLAIMED)
    with pytest.raises(InvalidInputError, match="another input"):
        other.claim(b"1", "i")  # the run that has it is alive
    run.write(*(entry("completed", key=key, request_id=f"r-{key}", answer=b"of 1") for key in earlier))  # late
    run.write(entry("submitting", key="new", item=claimed.item), entry("submitted", key="new", request_id="r-new"))
    again_claimed = reopened(start, run).claim(b"2", "i")
    assert (again_claimed.action, again_claimed.request_id) == (Action.RESUME, "r-new")
    check(run.location)


def test_accounts_have_items_of_their_own(run: Run) -> None:
    mine = run.claim(b"1", "i", token="one")
    assert run.claim(b"2", "i").item != mine.item


# --- accounts


def buy(run: Run, token: str) -> None:
    """An item of this token's account, submitted and completed."""
    key = f"of {token}"
    claimed = run.claim(b"{}", key, token=token)
    bought = [entry("submitting", key=key, item=claimed.item), entry("submitted", key=key, request_id=key)]
    write(run.store, *bought, entry("completed", request_id=key, cost_usd=0.25, answer=b"{}"), token=token)


def others(run: Run, token: str, *ignored: str) -> int:
    with run.store.writing():
        return len(run.store.other_accounts(token, ignored))


def test_a_token_is_a_stranger_where_only_others_were_used(run: Run) -> None:
    for state in ("submitting", "refused"):
        item = run.claim(b"{}", "i", token="mistyped").item
        write(run.store, entry(state, key="k", item=item if state == "submitting" else None), token="mistyped")
    write(run.store, entry("submitting", key="k"))  # the account without a token is nobody's
    assert others(run, "new") == 0
    buy(run, "old")
    assert (others(run, "new"), others(run, "old"), others(run, "new", "old")) == (1, 0, 0)
    buy(run, "new")
    assert others(run, "new") == 0


@pytest.mark.parametrize(
    "used",
    [entry("submitting", key="k"), entry("submitted", request_id="r"), entry("completed", request_id="r", cost_usd=1)],
)
def test_an_account_is_in_use_once_it_has_a_request(run: Run, used: Entry) -> None:
    write(run.store, used, token="old")
    assert (others(run, "new"), others(run, "old")) == (1, 0)


def test_a_new_token_takes_over_what_the_old_one_had(start: Start) -> None:
    buy(start(), "old")
    run, other = start(), start()
    other.claim(token="new")
    with run.store.writing():
        run.store.take_over("new")
    assert others(run, "new") == 1, "a living run is about to submit with it"
    other.close()
    write(run.store, entry("refused", key="k"), token="new")  # nothing was bought
    for _ in range(2):  # once more changes nothing
        with run.store.writing():
            run.store.take_over("new")
        assert run.claim(b"{}", "of old", token="new").action is Action.RECALL
        accounts = run.store.execute("SELECT name, settled FROM accounts").fetchall()
        assert accounts == [(run.store.account_name("new"), 250_000_000)]
        check(run.location)


def test_which_of_several_tokens_was_renewed_nobody_knows(run: Run) -> None:
    buy(run, "old")
    buy(run, "another's")
    with pytest.raises(JournalError, match="2 other accounts"), run.store.writing():
        run.store.take_over("new")


def test_an_account_of_an_earlier_version_goes_to_the_first_service_that_comes(start: Start) -> None:
    buy(start(), "token")  # its name has no service
    run = start()
    assert others(run, "token https://a") == others(run, "token https://b") == 0
    assert others(run, "new https://a") == 1
    assert others(run, "new https://a", "token") == 0
    assert run.claim(b"{}", "of token", token="token https://a").action is Action.RECALL
    assert run.claim(b"{}", "of token", token="token https://b").action is Action.SUBMIT
    assert run.claim(b"{}", "of token", token="token https://a").action is Action.RECALL
    buy(run, "token https://b")
    assert others(run, "token https://c") == 2
    names = [name for [name] in run.store.execute("SELECT name FROM accounts ORDER BY id")]
    assert [name.partition("@")[2] for name in names] == ["https://a", "https://b"]
    check(run.location)


# --- speed at any size


def test_each_statement_of_a_run_finds_its_rows_by_an_index(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flux_klein_async.journal.sql._REMEMBERED", 0)
    run = start()
    run.submit("k0")
    run = reopened(start, run)
    statements: list[tuple[str, Any]] = []
    execute = run.store.execute

    def noted(sql: str, values: Any = ()) -> Any:
        statements.append((sql, values))
        return execute(sql, values)

    monkeypatch.setattr(run.store, "execute", noted)
    claimed = run.claim()
    run.submit("k1", body=b"1")
    bounded = entry("submitting", key="k3", reservation=Reservation(usd=0.01, max_usd=1))
    run.write(*unbudgeted("k2"), bounded, entry("completed", request_id="r-k1", cost_usd=0.01))
    run.write(entry("completed", request_id="r"), entry("submitted", key="k3", request_id="r"))
    run.write(entry("completed", request_id="of k2", cost_usd=0.04))
    run.preview()
    buy(run, "token")
    others(run, "new")
    with run.store.writing():
        run.store.end_pass(run.passes)
        run.store.is_alive(999, 1)
    run.store.release(claimed)
    monkeypatch.undo()
    found = [each for each in statements if each[0].split()[0] in {"SELECT", "UPDATE", "DELETE"}]
    if not isinstance(run.location, SqliteLocation):
        execute("SET enable_seqscan = off")  # small tables are read as they are
        plans = {line for sql, values in found for [line] in execute(f"EXPLAIN {sql}", values)}
        assert len([plan for plan in plans if "using requests_" in plan or "on requests_" in plan]) > 5
        assert [plan for plan in plans if "Seq Scan on" in plan and "accounts" not in plan and "runs" not in plan] == []
        return
    plans = set()
    for sql, values in found:
        for *_, detail in execute(f"EXPLAIN QUERY PLAN {sql}", values):
            plans.add(re.sub(r"TABLE |COVERING |sqlite_autoindex_", "", detail))
    assert {plan for plan in plans if plan.startswith("SCAN")} == {"SCAN accounts"}, "only to find strangers"
    searches = {plan.partition(" USING ")[2] for plan in plans if plan.startswith("SEARCH requests")}
    assert searches == {
        "INTEGER PRIMARY KEY (rowid=?)",
        "INDEX requests_by_item (item=?)",
        "INDEX requests_by_key (account=? AND key=?)",
        "INDEX requests_by_key (account=? AND key>?)",
        "INDEX requests_by_id (account=? AND request_id=?)",
        "INDEX requests_by_id (account=? AND request_id>?)",
        "INDEX requests_without_cost (account=? AND reserved<?)",
        "INDEX requests_without_cost (account=? AND reserved=?)",
    }


# --- any sequence of entries


KEYS = st.sampled_from(["k1", "k2", "k3"])
REQUESTS = st.sampled_from(["r1", "r2"])
COSTS = st.none() | st.sampled_from([0.0, 0.01, 0.03])
MODELS = st.sampled_from([None, "a/b"])

intents = st.builds(
    entry,  # for a NamedTuple, hypothesis would make the fields with defaults too
    state=st.just(EntryState.SUBMITTING),
    key=KEYS,
    model=MODELS,
    reservation=st.none() | st.just(Reservation(usd=0.03, max_usd=9.0)),  # no cost is higher
)
LATER = [state for state in EntryState if state is not EntryState.SUBMITTING]
by_key = st.builds(
    entry, state=st.sampled_from(LATER), key=KEYS, request_id=st.none() | REQUESTS, model=MODELS, cost_usd=COSTS
)
by_request = st.builds(entry, state=st.sampled_from(LATER), request_id=REQUESTS, cost_usd=COSTS)


@dataclass
class Known:
    """A request in the model; money in billionths of a USD."""

    key: str | None
    request_id: str | None
    state: str
    model: str | None
    reserved: int | None = None
    cost: int | None = None

    def hear(self, state: str, model: str | None, cost: int | None) -> None:
        self.model = self.model or model
        self.state = AFTER[self.state, state]
        self.cost = self.cost if cost is None else cost


class Model:
    """A journal without a file."""

    def __init__(self) -> None:
        self.requests: list[Known] = []

    @property
    def keys(self) -> set[str | None]:
        return {known.key for known in self.requests}

    def record(self, entry: Entry) -> bool:
        """Whether the entry is accepted."""
        cost = None if entry.cost_usd is None else round(entry.cost_usd * 10**9)
        found = [known for known in self.requests if entry.key is not None and known.key == entry.key]
        if entry.state is EntryState.SUBMITTING:
            if not found:
                self._intend(entry)
            return not found
        if entry.request_id is not None:
            same = [known for known in self.requests if known.request_id == entry.request_id]
            if entry.key is not None and any(known.key not in {None, entry.key} for known in same):
                return False
            found = found or same
        if not found and entry.state not in {EntryState.REPEATED, EntryState.REFUSED}:
            self.requests.append(Known(entry.key, entry.request_id, entry.state.value, entry.model, None, cost))
        for known in found:
            if entry.request_id is not None and known.request_id is None:
                known.request_id = entry.request_id
                for other in [one for one in self.requests if (one.key, one.request_id) == (None, entry.request_id)]:
                    self.requests.remove(other)
                    known.hear(other.state, other.model, other.cost)
            known.hear(entry.state.value, entry.model, cost)
        return True

    def _intend(self, entry: Entry) -> None:
        reserved = None if entry.reservation is None else round(entry.reservation.usd * 10**9)
        for known in self.requests:  # what was submitted without a budget is not free in one
            if known.key is not None and known.reserved is None and known.cost is None:
                known.reserved = reserved
        self.requests.append(Known(entry.key, None, "submitting", entry.model, reserved))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(intents | by_key | by_request, max_size=12), together=st.booleans())
def test_any_sequence_of_entries_ends_as_the_table_says(
    new_location: Callable[[], Location], entries: list[Entry], together: bool
) -> None:
    """Each in a transaction of its own, or all in one."""
    model, run = Model(), Run(new_location())
    unsynced = (
        "PRAGMA synchronous = OFF" if isinstance(run.location, SqliteLocation) else "SET synchronous_commit = off"
    )
    run.store.execute(unsynced)
    try:
        with run.store.writing() if together else contextlib.nullcontext():
            for one in entries:
                if together and one.state is EntryState.SUBMITTING and one.key in model.keys:
                    continue  # refused, but the requests without a price have its price already
                try:
                    if together:
                        run.store.record("", one)
                    else:
                        run.write(one)
                except JournalError:
                    assert not model.record(one)
                else:
                    assert model.record(one)
        found = [(one["key"], one["request_id"], one["state"], one["model"], one["cost"]) for one in run.requests()]
        wanted = [(one.key, one.request_id, one.state, one.model, one.cost) for one in model.requests]
        assert sorted(found, key=repr) == sorted(wanted, key=repr)
        charges = [sum(charge(EntryState(one.state), one.reserved, one.cost)) for one in model.requests]
        totals = run.store.execute("SELECT coalesce(sum(settled + held), 0) FROM accounts").fetchone()
        assert totals == (sum(charges),)
        check(run.location)
    finally:
        run.close()
