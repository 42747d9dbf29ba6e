"""The journal's thread: it blocks nobody, shares transactions, and answers each caller."""

import asyncio
import gc
import sqlite3
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async.emulator import VirtualTimeLoop
from flux_klein_async.errors import BudgetExceededError, InvalidInputError, JournalError
from flux_klein_async.journal.base import Action, Reservation
from flux_klein_async.journal.sqlite import SqliteJournal, SqliteStore

from .helpers import entry, files, states

ITEM = ("a/b", b"{}", None)


def in_virtual_time(body: Coroutine[Any, Any, float]) -> float:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(body)


@asynccontextmanager
async def sharing(journal: SqliteJournal, path: Path) -> AsyncIterator[None]:
    """What the body starts shares a transaction, which begins at its end."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    first = asyncio.ensure_future(journal.open())
    await asyncio.sleep(0)
    yield
    await asyncio.sleep(0)  # all of them wait for the next transaction
    other.execute("COMMIT")
    other.close()
    await first


async def test_closing_waits_for_what_is_being_written(path: Path) -> None:
    journal = SqliteJournal(path)
    writing = [asyncio.ensure_future(journal.record(entry("submitting", key=str(number)))) for number in range(1700)]
    await asyncio.sleep(0)
    await asyncio.gather(journal.aclose(), journal.aclose())
    await asyncio.gather(*writing)
    assert len(states(path)) == 1700


async def test_a_journal_that_is_dropped_unclosed_warns(path: Path) -> None:
    journal = SqliteJournal(path)
    await journal.open()
    store, thread = journal._writer._store, journal._writer._thread
    assert store is not None
    assert thread is not None
    thread.submit(int).result()  # the thread is done with its last job, and with the journal
    with pytest.warns(ResourceWarning, match="unclosed SqliteJournal"):
        del journal
        gc.collect()
    thread.submit(store.close).result()


def test_one_object_belongs_to_one_loop(path: Path) -> None:
    journal = SqliteJournal(path)

    async def elsewhere() -> None:
        for use in (journal.open, journal.spent, journal.aclose):
            with pytest.raises(JournalError, match="another event loop"):
                await use()

    with asyncio.Runner() as runner:
        runner.run(journal.open())
        asyncio.run(elsewhere())
        runner.run(journal.aclose())


def test_virtual_time_stands_still_while_it_writes(path: Path) -> None:
    async def body() -> float:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(3600, lambda: None)
        async with SqliteJournal(path) as journal:
            for number in range(20):
                await journal.record(entry("submitting", key=str(number)))
            at = loop.time()
        timer.cancel()
        return at

    assert in_virtual_time(body()) == 0.0
    assert len(states(path)) == 20


def test_many_who_write_one_after_the_other_share_transactions_ten_milliseconds_apart(path: Path) -> None:
    """Eight callers of five entries each; a lone caller's are not held up, as the test above shows."""
    commits: list[str] = []

    async def caller(journal: SqliteJournal, name: str) -> None:
        for number in range(5):
            await journal.record(entry("submitting", key=f"{name}{number}"))

    async def body() -> float:
        async with SqliteJournal(path) as journal:
            await journal._writer.run(lambda store: store.db.set_trace_callback(commits.append))
            commits.clear()
            await asyncio.gather(*(caller(journal, name) for name in "abcdefgh"))
            return asyncio.get_running_loop().time()

    elapsed = in_virtual_time(body())
    assert len(states(path)) == 40
    # The first goes at once and alone, and so do the seven that come meanwhile; then they go together.
    assert commits.count("COMMIT") == 6
    assert elapsed == pytest.approx(0.04)


def test_closing_does_not_wait_for_the_next_turn(path: Path) -> None:
    async def body() -> float:
        journal = SqliteJournal(path)
        first = [asyncio.ensure_future(journal.record(entry("submitting", key=f"{number}"))) for number in range(9)]
        await asyncio.gather(*first)
        late = asyncio.ensure_future(journal.record(entry("submitting", key="late")))
        await asyncio.sleep(0)
        await journal.aclose()
        await late
        return asyncio.get_running_loop().time()

    assert in_virtual_time(body()) == 0.0
    assert len(states(path)) == 10


async def test_the_loop_goes_on_while_another_program_holds_the_file(journal: SqliteJournal, path: Path) -> None:
    async with sharing(journal, path):
        writing = asyncio.ensure_future(journal.record(entry("submitting", key="k")))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not writing.done()
    await writing


async def test_what_one_entry_is_refused_for_concerns_it_alone(journal: SqliteJournal, path: Path) -> None:
    reservation = Reservation(usd=0.01, max_usd=0.02)
    items = journal.items()
    ended = await asyncio.gather(
        *(journal.record(entry("submitting", key=f"k{number}", reservation=reservation)) for number in range(4)),
        journal.record(entry("submitting", key="\ud800")),
        items.claim("a/b", b"{}", "i"),
        items.claim("a/b", b"{}", "i"),
        journal.record(entry("submitting", key="without")),
        return_exceptions=True,
    )
    assert [type(one) for one in ended[:5]] == [type(None)] * 2 + [BudgetExceededError] * 2 + [JournalError]
    assert (getattr(ended[5], "action", None), type(ended[6]), ended[7]) == (Action.SUBMIT, InvalidInputError, None)
    assert states(path) == ["submitting"] * 3


async def test_an_entry_is_written_even_if_its_caller_is_cancelled(journal: SqliteJournal, path: Path) -> None:
    writing = asyncio.ensure_future(journal.record(entry("submitting", key="k")))
    await asyncio.sleep(0)
    writing.cancel()
    await journal.open()
    assert writing.cancelled()
    assert states(path) == ["submitting"]


async def test_an_item_claimed_for_a_caller_who_was_cancelled_is_free(journal: SqliteJournal) -> None:
    claiming = asyncio.ensure_future(journal.items().claim(*ITEM))
    await asyncio.sleep(0)
    claiming.cancel()
    await journal.open()
    assert (await journal.items().claim(*ITEM)).action is Action.SUBMIT


async def test_an_item_claimed_in_the_instant_in_which_its_caller_is_cancelled_is_free(
    journal: SqliteJournal, path: Path
) -> None:
    async def cancel() -> None:
        await journal.open()
        claiming.cancel()  # between the claim's result and the step of the task that waits for it

    async with sharing(journal, path):
        cancelling = asyncio.ensure_future(cancel())
        claiming = asyncio.ensure_future(journal.items().claim(*ITEM))
    await cancelling
    with pytest.raises(asyncio.CancelledError):
        await claiming
    assert (await journal.items().claim(*ITEM)).action is Action.SUBMIT


async def test_a_pass_that_was_dropped_is_forgotten(journal: SqliteJournal) -> None:
    def remembered(store: Any) -> int:
        return int(store.execute("SELECT count(*) FROM passed").fetchone()[0])

    items = journal.items()
    await items.claim(*ITEM)
    assert await journal._writer.run(remembered) == 1
    del items
    gc.collect()
    assert await journal._writer.run(remembered) == 0


async def test_an_error_of_the_store_fails_all_that_shared_the_transaction(journal: SqliteJournal, path: Path) -> None:
    def fail(_: object) -> None:
        raise sqlite3.OperationalError("odd")

    earlier = journal.items()
    earlier.release(await earlier.claim(*ITEM))
    items = journal.items()
    async with sharing(journal, path):
        ending = asyncio.gather(
            journal.record(entry("submitting", key="k")),
            items.claim(*ITEM),
            journal._writer.run(fail),
            return_exceptions=True,
        )
    ended = await ending
    assert [type(one) for one in ended] == [JournalError] * 3
    assert len({id(one) for one in ended}) == 3, "each caller has an error of its own"
    assert states(path) == []
    assert (await journal.items().claim(*ITEM)).action is Action.SUBMIT, "nobody has it"
    await journal.record(entry("submitting", key="k2"))


async def test_a_clock_that_raises_ends_no_wait_without_an_answer(path: Path) -> None:
    ticks = iter([1.0])
    async with SqliteJournal(path, clock=lambda: next(ticks)) as journal:
        with pytest.raises(JournalError, match="cannot be used: StopIteration"):
            await journal.record(entry("submitting", key="k"))


async def test_an_error_while_closing_is_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = SqliteJournal(path)
    await journal.open()
    close = SqliteStore.close

    def fail(store: SqliteStore) -> None:
        close(store)
        raise sqlite3.OperationalError("odd")

    monkeypatch.setattr(SqliteStore, "close", fail)
    with pytest.raises(JournalError, match="odd"):
        await journal.aclose()


@asynccontextmanager
async def lost(path: Path) -> AsyncIterator[tuple[SqliteJournal, sqlite3.Connection]]:
    """A journal that an accepted submit could not be written to, because another program holds the file."""
    journal = SqliteJournal(path)
    await journal._writer.run(lambda store: store.execute("PRAGMA busy_timeout = 1"))
    await journal.record(entry("submitting", key="k"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalError, match="is locked"):
        await journal.record(entry("submitted", key="k", request_id="r"))
    try:
        yield journal, other
    finally:
        other.close()
        await journal.aclose()


def known(path: Path) -> list[tuple[str, str | None]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT state, request_id FROM requests ORDER BY id").fetchall()


@pytest.mark.parametrize("seconds", [0, 8, 3600])
def test_an_id_that_could_not_be_written_is_written_as_soon_as_it_can_be(path: Path, seconds: float) -> None:
    async def body() -> float:
        async with lost(path) as (_, other):
            await asyncio.sleep(seconds)
            assert known(path) == [("submitting", None)]
            other.execute("COMMIT")
            await asyncio.sleep(1.01)
            assert known(path) == [("submitted", "r")]
        return asyncio.get_running_loop().time()

    assert in_virtual_time(body()) == pytest.approx(seconds + 1.01)


def test_the_next_entry_brings_what_could_not_be_written_and_does_not_wait_for_it(path: Path) -> None:
    async def body() -> float:
        async with lost(path) as (journal, other):
            other.execute("COMMIT")
            await journal.record(entry("submitting", key="l"))
            at = asyncio.get_running_loop().time()
            assert known(path) == [("submitted", "r"), ("submitting", None)]
            await asyncio.gather(*(journal.record(entry("submitting", key=f"{number}")) for number in range(3)))
        return at

    assert in_virtual_time(body()) == 0.0
    assert len(states(path)) == 5


@pytest.mark.parametrize(("seconds", "took"), [(0, 0), (8, 8), (9.5, 10)])
def test_closing_waits_for_what_could_not_be_written(path: Path, seconds: float, took: float) -> None:
    async def body() -> float:
        loop = asyncio.get_running_loop()
        async with lost(path) as (journal, other):
            if seconds:
                loop.call_later(seconds, other.execute, "COMMIT")
            else:
                other.execute("COMMIT")
            await journal.aclose()
        return loop.time()

    assert in_virtual_time(body()) == pytest.approx(took)
    assert known(path) == [("submitted", "r")]


def test_closing_ends_after_ten_seconds_and_says_what_is_lost(path: Path) -> None:
    async def body() -> float:
        with pytest.raises(JournalError, match="could not be written: 1 of its entries are lost"):
            async with lost(path) as (journal, _):
                await journal.aclose()
        return asyncio.get_running_loop().time()

    assert in_virtual_time(body()) == pytest.approx(10.0)
    assert files(path) == ["run.sqlite"], "closed all the same"


def test_nothing_is_written_later_for_which_nothing_was_sent(path: Path) -> None:
    """An intent, a claim; and of what did happen, nothing that the journal refuses."""

    async def body() -> float:
        async with lost(path) as (journal, other):
            failing = [journal.record(entry("submitting", key="l")), journal.items().claim(*ITEM)]
            failing.append(journal.record(entry("submitted", key="m", request_id="r")))
            ended = await asyncio.gather(*failing, return_exceptions=True)
            assert {type(one) for one in ended} == {JournalError}
            other.execute("COMMIT")
            await asyncio.sleep(10)
            assert known(path) == [("submitted", "r")]
            assert (await journal.items().claim(*ITEM)).action is Action.SUBMIT
        return 0.0

    in_virtual_time(body())


def test_what_a_deleted_journal_cannot_take_is_not_tried_again(path: Path) -> None:
    async def body() -> float:
        async with SqliteJournal(path) as journal:
            await journal.record(entry("submitting", key="k"))
            path.unlink()  # noqa: ASYNC240
            with pytest.raises(JournalError, match="deleted"):
                await journal.record(entry("submitted", key="k", request_id="r"))
        return asyncio.get_running_loop().time()

    assert in_virtual_time(body()) == 0.0


async def test_a_journal_that_could_not_be_opened_can_be_tried_again(path: Path) -> None:
    journal = SqliteJournal(path.parent / "folder" / "run.sqlite")
    with pytest.raises(JournalError):
        await journal.open()
    (path.parent / "folder").mkdir()
    await journal.record(entry("submitting", key="k"))
    await journal.aclose()
