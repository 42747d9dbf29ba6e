"""A journal is read beside the runs that write it, and checked.

Pruning deletes what ended long ago, but not what it cost, and nothing that may still be paid for.
"""

import contextlib
import gc
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async.errors import JournalError
from flux_klein_async.journal import reader
from flux_klein_async.journal.base import Action, EntryState, Reservation
from flux_klein_async.journal.reader import JournalReader, prune
from flux_klein_async.models import SavedFile

from .helpers import Run, check, entry

FILE = SavedFile(path=Path("/out/r.png"), sha256="ab", size=3)


@pytest.fixture
def read(path: Path) -> Iterator[Callable[[], JournalReader]]:
    readers = []

    def begin() -> JournalReader:
        readers.append(JournalReader(path))
        return readers[-1]

    yield begin
    for opened in readers:
        opened.__exit__()


Read = Callable[[], JournalReader]


def numbers(reader: JournalReader, **filters: Any) -> list[int]:
    return [request.number for request in reader.requests(**filters)]


@pytest.fixture
def four(run: Run) -> Run:
    """Four requests, a second apart: completed, failed, submitted, submitting."""
    for number, state in enumerate(("completed", "failed", "submitted", "submitting"), 1):
        run.now = 1000.0 + number
        run.write(entry("submitting", key=f"k{number}", model="a/b"))
        if state != "submitting":
            run.write(entry("submitted", key=f"k{number}", request_id=f"r{number}"), entry(state, key=f"k{number}"))
    return run


def test_all_that_is_known_of_a_request(run: Run, read: Read) -> None:
    body, price = b'{"prompt": "a", "x": NaN}', Reservation(usd=0.02, max_usd=1.0)
    item = run.claim(body, "i\ud800").item
    run.write(entry("submitting", key="k", item=item, model="a/b", body=body, reservation=price))
    run.now = 1001.0
    run.write(
        entry("submitted", key="k", request_id="r"),
        entry("completed", request_id="r", cost_usd=0.01, answer=b'{"a": 1}'),
        entry("downloaded", request_id="r", files=(FILE,)),
    )
    [request] = read().requests()
    assert {name: getattr(request, name) for name in request.__slots__} == {
        "number": 1,
        "key": "k",
        "request_id": "r",
        "state": EntryState.DOWNLOADED,
        "model": "a/b",
        "item_id": "i\ud800",
        "error": None,
        "created": 1000.0,
        "updated": 1001.0,
        "cost_usd": 0.01,
        "reserved_usd": 0.02,
        "files": (FILE,),
        "answer": {"a": 1},
        "input": {"prompt": "a", "x": "NaN"},
    }
    assert request.prompt == "a"
    assert "prompt" not in repr(request)


@pytest.mark.parametrize("body", [None, b"{}", b"[]", b'{"prompt": 3}'])
def test_a_request_whose_prompt_is_not_known(run: Run, read: Read, body: bytes | None) -> None:
    run.write(entry("submitting", key="k", item=run.claim(b"1").item, body=body))
    [request] = read().requests()
    assert (request.prompt, request.item_id, request.cost_usd) == (None, None, None)


def test_requests_are_chosen_by_state_time_request_and_number(four: Run, read: Read) -> None:
    reader = read()
    assert numbers(reader) == [4, 3, 2, 1]
    assert numbers(reader, oldest_first=True, limit=3) == [1, 2, 3]
    assert numbers(reader, states=[EntryState.FAILED, EntryState.COMPLETED]) == [2, 1]
    assert numbers(reader, since=1003.0) == [4, 3]
    assert numbers(reader, request_id="r2") == [2]
    assert numbers(reader, request_id="none") == []
    assert numbers(reader, states=[EntryState.FAILED], since=1003.0) == []


def test_a_request_is_found_without_reading_all(four: Run, read: Read) -> None:
    reader = read()
    steps: list[str] = []
    reader._db.set_trace_callback(steps.append)
    numbers(reader, request_id="r2")
    [plan] = [reader._db.execute(f"EXPLAIN QUERY PLAN {step}").fetchall() for step in steps]
    assert any("requests_by_id" in row[3] for row in plan)


def test_counts_and_money(four: Run, read: Read) -> None:
    four.write(entry("submitting", key="k", reservation=Reservation(usd=0.02, max_usd=1.0)))
    four.write(entry("completed", request_id="r1", cost_usd=0.01))
    reader = read()
    assert reader.counts() == {
        EntryState.SUBMITTING: 2,
        EntryState.SUBMITTED: 1,
        EntryState.COMPLETED: 1,
        EntryState.FAILED: 1,
    }
    assert next(iter(reader.counts())) is EntryState.SUBMITTING
    assert reader.spent_usd() == (0.01, 0.08)  # the budget reserved as much for each of the others


def test_what_a_dead_run_had_under_way_is_uncertain_and_stays_for_the_next_run_to_find(
    four: Run, read: Read, path: Path
) -> None:
    assert numbers(read(), states=[EntryState.SUBMITTING]) == [4]
    four.close()
    reader = read()
    assert numbers(reader, states=[EntryState.SUBMITTING]) == []
    assert numbers(reader, states=[EntryState.UNCERTAIN]) == [4]
    assert reader.counts()[EntryState.UNCERTAIN] == 1
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM requests WHERE state = 'submitting'").fetchone() == (1,)
    db.close()


def test_an_empty_journal(run: Run, read: Read) -> None:
    reader = read()
    assert (list(reader.requests()), reader.counts(), reader.spent_usd()) == ([], {}, (0.0, 0.0))


def test_reading_makes_no_journal_and_changes_none(run: Run, read: Read, path: Path, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="There is no journal"):
        JournalReader(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        read()._db.execute("DELETE FROM requests")
    with JournalReader(path) as reader:
        assert list(reader.requests()) == []


def test_a_damaged_file_is_an_error(run: Run, read: Read, path: Path) -> None:
    run.write(entry("submitting", key="k", body=b'{"prompt": "a"'))
    with pytest.raises(JournalError, match="is damaged"):
        list(read().requests())
    run.store.execute("DROP TABLE runs")
    with pytest.raises(JournalError, match="no such table"):
        read()
    gc.collect()  # an open connection would warn


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE accounts SET settled = 6", r"account without a name: 6\+7, not 5\+7"),
        ("UPDATE requests SET cost = 4 WHERE state = 'completed'", r"5\+7, not 4\+7"),
        ("UPDATE requests SET state = 'refused' WHERE state = 'uncertain'", r"5\+7, not 5\+0"),
        ("INSERT INTO accounts (name, held) VALUES ('x', 5)", r"account x: 0\+5, not 0\+0"),
    ],
)
def test_the_check_finds_totals_that_contradict_the_requests(
    start: Callable[[], Run], path: Path, damage: str, says: str
) -> None:
    run = start()
    run.store.execute("INSERT INTO accounts (id, name, settled, held) VALUES (1, '', 5, 7)")
    for state, cost in (("completed", 5), ("uncertain", None), ("cancelled", None)):
        run.store.execute(
            "INSERT INTO requests (account, state, run, created, updated, cost, reserved) VALUES (1, ?, 1, 0, 0, ?, 7)",
            (state, cost),
        )
    check(path)
    run.store.execute(damage)
    start()  # opening a journal does not check it
    with pytest.raises(JournalError, match=f"is damaged.*{says}"):
        check(path)


def test_the_check_finds_damage_of_the_file(start: Callable[[], Run], path: Path) -> None:
    start().close()
    with path.open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\xff" * 100)
    with pytest.raises(JournalError, match=r"is damaged"):
        check(path)


STATES = ["submitting", "refused", "uncertain", "submitted", "completed", "downloaded", "failed", "cancelled"]
PRICE = Reservation(usd=0.01, max_usd=9.0)


def fill(run: Run) -> None:
    """A request of an item in each state."""
    for state in STATES:
        claimed = run.claim(state.encode())
        run.write(entry("submitting", key=state, item=claimed.item, reservation=PRICE))
        if state != "submitting":
            cost = 0.004 if state == "completed" else None
            run.write(
                entry("submitted", key=state, request_id=state) if state not in STATES[:3] else entry(state, key=state)
            )
            run.write(entry(state, key=state, cost_usd=cost))


@pytest.mark.parametrize("at_once", [500, 2, 1])
def test_what_ended_before_a_time_is_pruned_and_its_cost_stays_counted(
    start: Callable[[], Run], path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(reader, "_AT_ONCE", at_once)
    run = start()
    fill(run)
    total = sum(run.money())
    run.now = 2000.0
    late = run.claim(b"late")
    run.write(entry("submitting", key="late", item=late.item), entry("failed", key="late"))
    run.close()
    assert prune(path, 2000.0, clock=lambda: 3000.0, dry_run=True) == 5
    assert prune(path, 2000.0, clock=lambda: 3000.0) == 5
    assert prune(path, 2000.0, clock=lambda: 3000.0) == 0
    run = start()
    assert run.states() == ["uncertain", "uncertain", "submitted", "failed"]
    new = {state for state in STATES if run.claim(state.encode()).action is Action.SUBMIT}
    assert new == {"refused", "completed", "downloaded", "failed", "cancelled"}
    assert (sum(run.money()), run.money()[1]) == (total, 30), "reserved for the three that are still open"
    check(path)


def test_an_item_that_a_run_has_under_way_is_not_pruned(start: Callable[[], Run], path: Path) -> None:
    run = start()
    claimed = run.claim()
    run.write(entry("submitting", key="k", item=claimed.item), entry("refused", key="k"))
    assert prune(path, 2000.0, clock=lambda: 3000.0) == 1
    run.write(entry("submitting", key="l", item=claimed.item))
    assert start().claim().action is Action.CLAIMED


def test_an_item_with_a_newer_request_is_not_pruned(start: Callable[[], Run], path: Path) -> None:
    run = start()
    claimed = run.claim()
    run.write(entry("submitting", key="k", item=claimed.item), entry("failed", key="k"))
    run.now = 2000.0
    run.write(entry("submitting", key="l", item=claimed.item), entry("submitted", key="l", request_id="r"))
    run.close()
    assert prune(path, 1500.0, clock=lambda: 3000.0) == 1
    assert start().claim().action is Action.RESUME


def test_a_request_that_belongs_to_no_item_is_pruned_too(run: Run, path: Path) -> None:
    run.write(entry("completed", request_id="r", cost_usd=0.01))
    assert prune(path, 2000.0, clock=lambda: 3000.0) == 1
    assert (run.states(), run.money()) == ([], (10, 0))


@pytest.mark.parametrize(
    ("make", "says"), [(lambda path: None, "There is no journal"), (lambda path: path.mkdir(), "is a directory")]
)
def test_only_a_journal_can_be_pruned(path: Path, make: Callable[[Path], None], says: str) -> None:
    make(path)
    with pytest.raises(JournalError, match=says):
        prune(path, 0.0, clock=lambda: 0.0)


def test_a_locked_file_is_an_error(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.store.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("flux_klein_async.journal.sqlite.BUSY", 0.01)
    with pytest.raises(JournalError, match="is locked"):
        prune(path, 0.0, clock=lambda: 0.0)
    run.store.execute("ROLLBACK")


COLUMNS = {
    "accounts": ("name", "settled", "held", "pruned"),
    "requests": ("cost", "reserved", "created", "updated", "error", "files", "answer", "body", "model", "key", "run"),
    "items": ("name", "content", "run", "before_claim"),
    "highest_costs": ("cost",),
    "runs": ("name", "began"),
}


@pytest.mark.parametrize("odd", ["text", 5, b"\1\2", -(2**63), 1e300, None], ids=lambda odd: type(odd).__name__)
def test_whatever_another_program_left_in_a_column_is_read_or_named_as_damage(path: Path, odd: object) -> None:
    run = Run(path)
    run.submit(body=b"a")
    reservation = Reservation(usd=0.01, max_usd=1.0)
    run.write(entry("submitting", key="x", model="a/b", reservation=reservation))
    run.write(entry("completed", key="x", request_id="x", cost_usd=0.02, answer=b"{}", files=(FILE,)))
    run.close()
    for table, column in ((name, column) for name, columns in COLUMNS.items() for column in columns):
        copy = shutil.copy(path, path.with_name(f"{table}-{column}"))
        with contextlib.closing(sqlite3.connect(copy)) as db, contextlib.suppress(sqlite3.IntegrityError):
            db.execute("PRAGMA synchronous = OFF")
            with db:
                db.execute(f"UPDATE {table} SET {column} = ?", (odd,))
        with contextlib.suppress(JournalError), JournalReader(copy) as journal:
            requests = partial(list, journal.requests())
            for use in (journal.counts, journal.spent_usd, journal.check, requests):
                with contextlib.suppress(JournalError):
                    use()
        with contextlib.suppress(JournalError):
            assert prune(copy, 2000.0, clock=lambda: 3000.0) <= 1
