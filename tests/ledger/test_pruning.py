"""What ended long ago is forgotten, but not what it cost, and nothing that may still be paid for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flux_klein_async.errors import JournalError
from flux_klein_async.ledger import pruning
from flux_klein_async.ledger.base import Action, Reservation
from flux_klein_async.ledger.pruning import prune
from flux_klein_async.ledger.schema import check

from .helpers import Run, entry, orders

STATES = ["submitting", "refused", "uncertain", "submitted", "completed", "downloaded", "failed", "cancelled"]
PRICE = Reservation(usd=0.01, max_usd=9.0)


def fill(run: Run) -> None:
    """An order of an item in each state."""
    for state in STATES:
        claimed = run.claim(state.encode())
        run.write(entry("submitting", key=state, item=claimed.item, reservation=PRICE))
        if state != "submitting":
            cost = 0.004 if state == "completed" else None
            run.write(
                entry("submitted", key=state, request_id=state) if state not in STATES[:3] else entry(state, key=state)
            )
            run.write(entry(state, key=state, cost_usd=cost))


def left(run: Run) -> list[str]:
    return [order["state"] for order in orders(run.database)]


def money(run: Run) -> tuple[int, int]:
    [row] = run.database.db.execute("SELECT settled, held FROM accounts").fetchall()
    return row[0] + row[1], row[1]


@pytest.mark.parametrize("at_once", [500, 2, 1])
def test_what_ended_before_an_instant_is_forgotten_and_its_cost_stays_counted(
    start: Callable[[], Run], path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(pruning, "_AT_ONCE", at_once)
    run = start()
    fill(run)
    total, _ = money(run)
    run.now = 2000.0
    late = run.claim(b"late")
    run.write(entry("submitting", key="late", item=late.item), entry("failed", key="late"))
    run.close()
    assert prune(path, 2000.0, clock=lambda: 3000.0, dry_run=True) == 5
    assert prune(path, 2000.0, clock=lambda: 3000.0) == 5
    assert prune(path, 2000.0, clock=lambda: 3000.0) == 0
    run = start()
    assert left(run) == ["uncertain", "uncertain", "submitted", "failed"]
    assert money(run) == (total, 30_000_000), "what was set aside for the three that are still open"
    check(path, run.database.db)


def test_an_item_of_which_nothing_is_known_any_more_is_new(start: Callable[[], Run], path: Path) -> None:
    run = start()
    fill(run)
    run.close()
    prune(path, 2000.0, clock=lambda: 3000.0)
    run = start()
    actions = {state: run.claim(state.encode()).action for state in STATES}
    assert [state for state, action in actions.items() if action is Action.SUBMIT] == [
        "refused",
        "completed",
        "downloaded",
        "failed",
        "cancelled",
    ]


def test_an_item_that_a_run_has_under_way_is_not_forgotten(start: Callable[[], Run], path: Path) -> None:
    run = start()
    claimed = run.claim()
    run.write(entry("submitting", key="k", item=claimed.item), entry("refused", key="k"))
    assert prune(path, 2000.0, clock=lambda: 3000.0) == 1
    run.write(entry("submitting", key="l", item=claimed.item))
    assert start().claim().action is Action.TAKEN


def test_an_item_with_a_newer_order_is_not_forgotten(start: Callable[[], Run], path: Path) -> None:
    run = start()
    claimed = run.claim()
    run.write(entry("submitting", key="k", item=claimed.item), entry("failed", key="k"))
    run.now = 2000.0
    run.write(entry("submitting", key="l", item=claimed.item), entry("submitted", key="l", request_id="r"))
    run.close()
    assert prune(path, 1500.0, clock=lambda: 3000.0) == 1
    assert start().claim().action is Action.TAKE_UP


def test_a_request_that_belongs_to_no_item_is_forgotten_too(run: Run, path: Path) -> None:
    run.write(entry("completed", request_id="r", cost_usd=0.01))
    assert prune(path, 2000.0, clock=lambda: 3000.0) == 1
    assert (left(run), money(run)) == ([], (10_000_000, 0))


@pytest.mark.parametrize(
    ("make", "says"), [(lambda path: None, "There is no journal"), (lambda path: path.mkdir(), "is a directory")]
)
def test_what_is_no_journal_is_told(path: Path, make: Callable[[Path], None], says: str) -> None:
    make(path)
    with pytest.raises(JournalError, match=says):
        prune(path, 0.0, clock=lambda: 0.0)


def test_trouble_with_the_file_is_told(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.database.db.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("flux_klein_async.ledger.connections.BUSY", 0.01)
    with pytest.raises(JournalError, match="is locked"):
        prune(path, 0.0, clock=lambda: 0.0)
    run.database.db.execute("ROLLBACK")
