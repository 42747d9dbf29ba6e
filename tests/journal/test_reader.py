"""A journal is read beside the runs that write it, and checked.

Pruning deletes what ended long ago, but not what it cost, and nothing that may still be paid for.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async.errors import ConfigurationError, JournalError
from flux_klein_async.journal import reader
from flux_klein_async.journal.base import Reservation
from flux_klein_async.journal.reader import JournalReader, exists, locate, prune
from flux_klein_async.journal.sql import Location
from flux_klein_async.journal.sqlite import SqliteLocation
from flux_klein_async.journal.states import Action, EntryState
from flux_klein_async.models import SavedFile

from .helpers import Run, check, entry, states

FILE = SavedFile(path=Path("/out/r.png"), sha256="ab", size=3)


@pytest.fixture
def read(location: Location) -> Iterator[Callable[[], JournalReader]]:
    readers = []

    def begin() -> JournalReader:
        readers.append(JournalReader(location))
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


def test_a_request_is_found_without_reading_all(four: Run, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = read()
    store = reader._store
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(store, "stream", lambda *query: asked.append(query) or iter(()))
    numbers(reader, request_id="r2")
    [(sql, values)] = asked
    if isinstance(four.location, SqliteLocation):
        plan = store.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
    else:
        store.execute("SET enable_seqscan = off")  # small tables are read as they are
        plan = store.execute(f"EXPLAIN {sql}", values).fetchall()
    assert "requests_by_id" in str(plan)


def test_counts_and_money(four: Run, read: Read) -> None:
    four.write(entry("submitting", key="k", reservation=Reservation(usd=0.02, max_usd=1.0)))
    four.write(entry("completed", request_id="r1", cost_usd=0.01))
    reader = read()
    assert reader.sums().counts == {
        EntryState.SUBMITTING: 2,
        EntryState.SUBMITTED: 1,
        EntryState.COMPLETED: 1,
        EntryState.FAILED: 1,
    }
    assert next(iter(reader.sums().counts)) is EntryState.SUBMITTING
    assert reader.sums()[1:] == (0.01, 0.08, 0, 0.0, 0.0)  # the budget reserved as much for each of the others


def test_the_sums_are_of_one_moment(four: Run, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """One statement: runs may write between two."""
    reader = read()
    execute, asked = reader._store.execute, []
    monkeypatch.setattr(reader._store, "execute", lambda *query: asked.append(query) or execute(*query))
    assert (sum(reader.sums(since=1003.0).counts.values()), len(asked)) == (2, 1)


def test_what_a_dead_run_had_under_way_is_uncertain_and_stays_for_the_next_run_to_find(
    four: Run, read: Read, location: Location
) -> None:
    assert numbers(read(), states=[EntryState.SUBMITTING]) == [4]
    four.close()
    reader = read()
    assert numbers(reader, states=[EntryState.SUBMITTING]) == []
    assert numbers(reader, states=[EntryState.UNCERTAIN]) == [4]
    assert reader.sums().counts[EntryState.UNCERTAIN] == 1
    assert states(location).count("submitting") == 1


def test_an_empty_journal(run: Run, read: Read) -> None:
    reader = read()
    assert (list(reader.requests()), reader.sums()) == ([], ({}, 0.0, 0.0, 0, 0.0, 0.0))


def test_reading_makes_no_journal_and_changes_none(run: Run, read: Read, new_location: Callable[[], Location]) -> None:
    nothing = new_location()
    with pytest.raises(JournalError, match="There is no journal"):
        JournalReader(nothing)
    assert (exists(nothing), exists(run.location)) == (False, True)
    with pytest.raises(Exception, match=r"read-?only"):
        read()._store.execute("DELETE FROM requests")
    with JournalReader(run.location) as reader:
        assert list(reader.requests()) == []


def test_damage_is_an_error(run: Run, read: Read) -> None:
    run.write(entry("submitting", key="k", body=b'{"prompt": "a"'))
    with pytest.raises(JournalError, match="is damaged"):
        list(read().requests())
    run.store.execute("DROP TABLE runs")
    with pytest.raises(JournalError, match=r"no such table|does not exist"):
        read()
    gc.collect()  # an open connection would warn


def test_what_is_left_of_many_requests_is_not_read(run: Run, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write(*(entry("submitting", key=f"{number}") for number in range(300)))
    reader = read()
    some = reader.requests()
    assert [next(some).number for _ in range(3)] == [300, 299, 298]
    assert reader.sums().counts == {EntryState.SUBMITTING: 300}, "while the others are not read yet"
    some.close()  # type: ignore[attr-defined]
    assert len(numbers(reader, limit=250)) == 250


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE accounts SET settled = 6", r"account without a name: 6\+7, not 5\+7"),
        ("UPDATE requests SET cost = 4 WHERE state = 'completed'", r"5\+7, not 4\+7"),
        ("UPDATE requests SET state = 'refused' WHERE state = 'uncertain'", r"5\+7, not 5\+0"),
        ("INSERT INTO accounts (id, name, held) VALUES (2, 'x', 5)", r"account x: 0\+5, not 0\+0"),
    ],
)
def test_the_check_finds_totals_that_contradict_the_requests(
    start: Callable[[], Run], location: Location, damage: str, says: str
) -> None:
    run = start()
    run.store.execute("INSERT INTO accounts (id, name, settled, held) VALUES (1, '', 5, 7)")
    for state, cost in (("completed", 5), ("uncertain", None), ("cancelled", None)):
        run.store.execute(
            "INSERT INTO requests (account, state, run, created, updated, cost, reserved) VALUES (1, ?, 1, 0, 0, ?, 7)",
            (state, cost),
        )
    check(location)
    run.store.execute(damage)
    start()  # opening a journal does not check it
    with pytest.raises(JournalError, match=f"is damaged.*{says}"):
        check(location)


def test_the_check_finds_damage_of_the_file(path: Path) -> None:
    Run(path).close()
    with path.open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\xff" * 100)
    with pytest.raises(JournalError, match=r"is damaged"):
        check(path)


STATES = [
    "submitting",
    "repeated",
    "refused",
    "uncertain",
    "submitted",
    "completed",
    "downloaded",
    "failed",
    "cancelled",
]
PRICE = Reservation(usd=0.01, max_usd=9.0)


def fill(run: Run) -> None:
    """A request of an item in each state."""
    for state in STATES:
        claimed = run.claim(state.encode())
        run.write(entry("submitting", key=state, item=claimed.item, reservation=PRICE))
        if state != "submitting":
            cost = 0.004 if state == "completed" else None
            run.write(
                entry("submitted", key=state, request_id=state) if state not in STATES[:4] else entry(state, key=state)
            )
            run.write(entry(state, key=state, cost_usd=cost))


@pytest.mark.parametrize("at_once", [500, 2, 1])
def test_what_ended_before_a_time_is_pruned_and_its_cost_stays_counted(
    start: Callable[[], Run], location: Location, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(reader, "_AT_ONCE", at_once)
    run = start()
    fill(run)
    total = sum(run.money())
    run.now = 2000.0
    late = run.claim(b"late")
    run.write(entry("submitting", key="late", item=late.item), entry("failed", key="late"))
    run.close()
    assert prune(location, 2000.0, clock=lambda: 3000.0, dry_run=True) == 6
    assert prune(location, 2000.0, clock=lambda: 3000.0) == 6
    assert prune(location, 2000.0, clock=lambda: 3000.0) == 0
    run = start()
    assert run.states() == ["uncertain", "uncertain", "submitted", "failed"]
    new = {state for state in STATES if run.claim(state.encode()).action is Action.SUBMIT}
    assert new == {"repeated", "refused", "completed", "downloaded", "failed", "cancelled"}
    assert (sum(run.money()), run.money()[1]) == (total, 30), "reserved for the three that are still open"
    check(location)


def test_an_item_that_a_run_has_under_way_is_not_pruned(start: Callable[[], Run], location: Location) -> None:
    run = start()
    claimed = run.claim()
    run.write(entry("submitting", key="k", item=claimed.item), entry("refused", key="k"))
    assert prune(location, 2000.0, clock=lambda: 3000.0) == 1
    run.write(entry("submitting", key="l", item=claimed.item))
    assert start().claim().action is Action.CLAIMED


def test_an_item_with_a_newer_request_is_not_pruned(start: Callable[[], Run], location: Location) -> None:
    run = start()
    claimed = run.claim()
    run.write(entry("submitting", key="k", item=claimed.item), entry("failed", key="k"))
    run.now = 2000.0
    run.write(entry("submitting", key="l", item=claimed.item), entry("submitted", key="l", request_id="r"))
    run.close()
    assert prune(location, 1500.0, clock=lambda: 3000.0) == 1
    assert start().claim().action is Action.RESUME


def test_a_request_that_belongs_to_no_item_is_pruned_too(run: Run, location: Location) -> None:
    run.write(entry("completed", request_id="r", cost_usd=0.01))
    assert prune(location, 2000.0, clock=lambda: 3000.0) == 1
    assert (run.states(), run.money()) == ([], (10, 0))


@pytest.mark.parametrize(
    ("make", "says"), [(lambda path: None, "There is no journal"), (lambda path: path.mkdir(), "is a directory")]
)
def test_only_a_journal_can_be_pruned(path: Path, make: Callable[[Path], None], says: str) -> None:
    make(path)
    with pytest.raises(JournalError, match=says):
        prune(path, 0.0, clock=lambda: 0.0)


def test_a_locked_journal_is_an_error(run: Run, location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flux_klein_async.journal.sqlite.BUSY", 0.01)
    if not isinstance(location, SqliteLocation):
        settings = import_module("flux_klein_async.journal.postgres")._SETTINGS
        monkeypatch.setitem(settings, "lock_timeout", "10ms")
    with run.store.writing(), pytest.raises(JournalError, match=r"is locked|is busy"):
        prune(location, 0.0, clock=lambda: 0.0)


@pytest.mark.parametrize("journal", ["postgresql://me@host/db", "postgres://me@host/db"])
def test_a_journal_is_in_the_file_or_the_database_that_its_name_says(
    journal: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(locate(journal)) == "postgresql://me@host/db"
    assert [str(locate(name)) for name in (path, str(path), locate(path))] == [str(path)] * 3
    monkeypatch.delitem(sys.modules, "flux_klein_async.journal.postgres")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flux_klein_async\[postgres\]'"):
        locate(journal)
