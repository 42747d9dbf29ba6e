"""Entries become orders, money is counted, and nothing weaker overwrites what is known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async.errors import BudgetExceededError, JournalError
from flux_klein_async.ledger.base import Entry, Reservation
from flux_klein_async.ledger.entries import files_from, record
from flux_klein_async.ledger.schema import check
from flux_klein_async.models import SavedFile

from .helpers import Run, entry, order, orders, write

PRICE = Reservation(usd=0.01, max_usd=0.03)
FILE = SavedFile(path=Path("/out/r.png"), sha256="ab", size=3)


def intent(key: str = "k", **facts: Any) -> Entry:
    return entry("submitting", key=key, model="a/b", body=b'{"prompt": "a"}', reservation=PRICE, **facts)


def money(run: Run) -> tuple[int, int]:
    """Settled and held, in thousandths of a USD, of the only account."""
    [(settled, held)] = run.database.db.execute("SELECT settled, held FROM accounts").fetchall()
    return settled / 10**6, held / 10**6


def test_an_order_from_its_intent_to_its_files(run: Run) -> None:
    run.write(intent())
    facts = order(run.database)
    assert {name: facts[name] for name in ("key", "state", "model", "body", "request_id", "created", "updated")} == {
        "key": "k",
        "state": "submitting",
        "model": "a/b",
        "body": b'{"prompt": "a"}',
        "request_id": None,
        "created": 1000.0,
        "updated": 1000.0,
    }
    assert money(run) == (0, 10)
    run.now = 1001.0
    run.write(entry("submitted", key="k", model="a/b", request_id="r"))
    assert (order(run.database)["state"], order(run.database)["request_id"]) == ("submitted", "r")
    assert money(run) == (0, 10)
    run.write(entry("completed", request_id="r", cost_usd=0.004, answer=b"{}"))
    assert (order(run.database)["state"], order(run.database)["answer"]) == ("completed", b"{}")
    assert money(run) == (4, 0)
    run.write(entry("downloaded", request_id="r", files=(FILE,)))
    facts = order(run.database)
    assert (facts["state"], facts["answer"], files_from(facts["files"])) == ("downloaded", b"{}", (FILE,))
    assert (facts["created"], facts["updated"], money(run)) == (1000.0, 1001.0, (4, 0))


@pytest.mark.parametrize(
    ("entries", "state", "spent"),
    [
        ([entry("refused", key="k", error="no")], "refused", (0, 0)),
        ([entry("uncertain", key="k", error="who knows")], "uncertain", (0, 10)),
        ([entry("uncertain", key="k"), entry("submitted", key="k", request_id="r")], "submitted", (0, 10)),
        ([entry("submitted", key="k", request_id="r"), entry("failed", request_id="r")], "failed", (0, 10)),
        ([entry("submitted", key="k", request_id="r"), entry("cancelled", request_id="r")], "cancelled", (0, 0)),
        ([entry("submitted", key="k", request_id="r"), entry("completed", request_id="r")], "completed", (0, 10)),
        (
            [
                entry("submitted", key="k", request_id="r"),
                entry("cancelled", request_id="r"),
                entry("completed", request_id="r", cost_usd=0.02),
            ],
            "completed",
            (20, 0),
        ),
    ],
)
def test_how_an_order_ends_and_what_it_counts_with(
    run: Run, entries: list[Entry], state: str, spent: tuple[int, int]
) -> None:
    run.write(intent(), *entries)
    assert (order(run.database)["state"], money(run)) == (state, spent)


def test_a_weaker_entry_adds_what_it_knows_and_changes_nothing_else(run: Run) -> None:
    run.write(intent(), entry("completed", request_id="r", cost_usd=0.01, answer=b"{}"))
    run.write(entry("submitted", key="k", request_id="r"))
    facts = order(run.database)
    assert (facts["key"], facts["state"], facts["answer"], money(run)) == ("k", "completed", b"{}", (10, 0))
    run.now = 2000.0
    run.write(entry("failed", request_id="r", error="late"), entry("uncertain", key="k"))
    assert order(run.database) == facts
    run.write(entry("downloaded", request_id="r", files=(FILE,)), entry("completed", request_id="r", cost_usd=0.02))
    facts = order(run.database)
    assert (facts["state"], files_from(facts["files"]), money(run)) == ("downloaded", (FILE,), (20, 0))


def test_an_error_stays_with_the_state_that_it_explains(run: Run) -> None:
    run.write(intent(), entry("uncertain", key="k", error="no answer"))
    assert order(run.database)["error"] == "no answer"
    run.write(entry("uncertain", key="k", error="again"))
    assert order(run.database)["error"] == "no answer"
    run.write(entry("submitted", key="k", request_id="r"))
    assert order(run.database)["error"] is None
    run.write(entry("failed", request_id="r", error="\ud800" + "x" * 5000))
    run.write(entry("failed", request_id="r", cost_usd=0.01, error="again"))
    error = order(run.database)["error"]
    assert error.startswith("\\ud800xxx")
    assert len(error) < 2200


def test_a_request_of_another_program_is_written_down_too(run: Run) -> None:
    run.write(entry("completed", request_id="r", cost_usd=0.01, answer=b"{}"))
    facts = order(run.database)
    assert (facts["key"], facts["state"], facts["answer"], money(run)) == (None, "completed", b"{}", (10, 0))
    run.write(entry("downloaded", request_id="r", files=(FILE,)))
    assert order(run.database)["state"] == "downloaded"


def test_a_submit_that_was_refused_before_its_intent_was_written_is_no_order(run: Run) -> None:
    run.write(entry("refused", key="k", error="budget"))
    assert orders(run.database) == []


def test_a_submit_without_an_intent_is_not_lost(run: Run) -> None:
    run.write(entry("submitted", key="k", request_id="r"), entry("uncertain", key="l"))
    assert [(facts["key"], facts["state"]) for facts in orders(run.database)] == [
        ("k", "submitted"),
        ("l", "uncertain"),
    ]


def test_an_id_that_the_service_gave_twice_stands_for_both_orders(run: Run) -> None:
    run.write(intent("k"), intent("l"))
    run.write(entry("submitted", key="k", request_id="r"), entry("submitted", key="l", request_id="r"))
    run.write(entry("completed", request_id="r", cost_usd=0.01))
    assert [facts["state"] for facts in orders(run.database)] == ["completed", "completed"]
    assert money(run) == (20, 0), "rather too much than too little"


def test_an_order_keeps_the_id_that_it_has(run: Run) -> None:
    run.write(intent(), entry("submitted", key="k", request_id="r"), entry("completed", key="k", request_id="s"))
    assert (order(run.database)["request_id"], order(run.database)["state"]) == ("r", "completed")


@pytest.mark.parametrize(
    "wrong",
    [
        entry("submitting", request_id="r"),
        entry("submitted"),
        entry("submitting", key="k", item="one"),
    ],
)
def test_an_entry_that_says_of_nothing_what_it_is_about_is_refused(run: Run, wrong: Entry) -> None:
    with pytest.raises(JournalError):
        run.write(wrong)
    assert orders(run.database) == []


def test_a_submit_is_intended_once(run: Run) -> None:
    run.write(intent())
    with pytest.raises(JournalError, match="before"):
        run.write(intent())
    assert money(run) == (0, 10)


# --- budget


def test_money_is_set_aside_until_none_is_left(run: Run) -> None:
    run.write(intent("a"), intent("b"), intent("c"))
    with pytest.raises(BudgetExceededError) as caught:
        run.write(intent("d"))
    assert str(caught.value) == (
        "The next submit is expected to cost 0.01 USD; of 0.03 USD, 0 are spent and 0.03 set aside"
    )
    assert (caught.value.charged, len(orders(run.database))) == ("no", 3)
    run.write(entry("refused", key="a"), intent("e"))
    run.write(entry("submitted", key="b", request_id="r"), entry("completed", request_id="r", cost_usd=0.002))
    with pytest.raises(BudgetExceededError, match=r"0\.002 are spent and 0\.02 set aside"):
        run.write(intent("f"))


def test_what_was_spent_without_a_budget_counts_in_one(run: Run) -> None:
    run.write(entry("completed", request_id="r", cost_usd=0.025))
    with pytest.raises(BudgetExceededError):
        run.write(intent())


def unbudgeted(key: str, state: str = "submitted", **facts: Any) -> list[Entry]:
    intended = entry("submitting", key=key, model="a/b", body=b"{}")
    return [intended, entry(state, key=key, request_id=f"of {key}", **facts)]


def test_what_was_submitted_without_a_budget_and_may_cost_something_is_not_free_in_one(run: Run) -> None:
    run.write(*unbudgeted("a"), *unbudgeted("b", "failed"), *unbudgeted("c", "cancelled"))
    run.write(*unbudgeted("d", "completed", cost_usd=0.002))
    assert money(run) == (2, 0)
    with pytest.raises(BudgetExceededError, match=r"0\.002 are spent and 0\.02 set aside"):
        run.write(intent())
    run.write(entry("completed", request_id="of a", cost_usd=0.004))
    with pytest.raises(BudgetExceededError, match=r"0\.006 are spent and 0\.03 set aside"):
        run.write(intent(), *unbudgeted("e"), intent("l"))
    assert money(run) == (6, 20)
    check(run.database.path, run.database.db)


def test_others_may_submit_without_a_budget_meanwhile(start: Callable[[], Run]) -> None:
    bounded, other = start(), start()
    bounded.write(intent("a"))
    other.write(*unbudgeted("b"))
    write(other.database, *unbudgeted("c"), token="another account's")
    bounded.write(intent("d"))
    other.write(entry("completed", request_id="of b", cost_usd=0.0))
    bounded.write(intent("e"))
    with pytest.raises(BudgetExceededError, match=r"0 are spent and 0\.03 set aside"):
        bounded.write(intent("f"))


@pytest.mark.parametrize(
    ("usd", "most", "fits"),
    [(0.01, float("inf"), True), (0.0, 0.0, True), (0.01, -1.0, False)]
    + [(usd, 1.0, False) for usd in (-0.01, float("nan"), float("inf"))]
    + [(0.01, float("nan"), False)],
)
def test_only_amounts_of_money_can_be_set_aside(run: Run, usd: float, most: float, fits: bool) -> None:
    wanted = entry("submitting", key="k", reservation=Reservation(usd=usd, max_usd=most))
    if fits:
        run.write(wanted)
    else:
        with pytest.raises(BudgetExceededError):
            run.write(wanted)
    assert len(orders(run.database)) == fits


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_cost_that_is_no_amount_is_not_known(run: Run, cost: float) -> None:
    run.write(intent(), entry("submitted", key="k", request_id="r"), entry("completed", request_id="r", cost_usd=cost))
    assert money(run) == (0, 10)
    run.write(entry("completed", request_id="r", cost_usd=0.004), entry("completed", request_id="r", cost_usd=cost))
    assert money(run) == (4, 0)


def test_accounts_share_neither_orders_nor_money(run: Run) -> None:
    for token in ("one", "two"):
        with run.database.writing():
            record(run.database, token, intent())
            record(run.database, token, entry("submitted", key="k", request_id="r"))
    with run.database.writing():
        record(run.database, "one", entry("completed", request_id="r", cost_usd=0.02))
    assert [facts["state"] for facts in orders(run.database)] == ["completed", "submitted"]
    totals = run.database.db.execute("SELECT settled, held FROM accounts ORDER BY id").fetchall()
    assert totals == [(20_000_000, 0), (0, 10_000_000)]


@pytest.mark.parametrize(
    ("state", "facts"),
    [("downloaded", {"files": (FILE,)}), ("completed", {"cost_usd": 0.25}), ("failed", {"error": "why"})],
)
def test_what_was_heard_of_a_request_before_its_submit_is_kept_with_it(
    run: Run, state: str, facts: dict[str, Any]
) -> None:
    run.write(entry(state, request_id="r", **facts))
    run.write(entry("submitting", key="k"), entry("submitted", key="k", request_id="r"))
    only = order(run.database)
    assert (only["key"], only["request_id"], only["state"]) == ("k", "r", state)
    assert files_from(only["files"]) == facts.get("files", ())
    assert only["cost"] == (250_000_000 if "cost_usd" in facts else None)
    assert only["error"] == facts.get("error")


def test_files_are_written_down_after_a_stronger_end(run: Run) -> None:
    run.write(entry("downloaded", request_id="r"), entry("completed", request_id="r", files=(FILE,)))
    assert files_from(order(run.database)["files"]) == (FILE,)
