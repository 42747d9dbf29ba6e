"""The journal's thread, over each store: it blocks nobody, shares transactions, and answers each caller.

Several processes share a journal; one that is killed at any time leaves everything that it recorded.
"""

import asyncio
import gc
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async.emulator import VirtualTimeLoop
from flux_klein_async.errors import BudgetExceededError, InvalidInputError, JournalError
from flux_klein_async.journal.base import Reservation
from flux_klein_async.journal.sql import Location
from flux_klein_async.journal.sqlite import SqliteJournal, SqliteLocation
from flux_klein_async.journal.states import Action
from flux_klein_async.journal.writer import EMULATED_TOKEN, Spending, StoredJournal

from .helpers import Run, check, entry, journal_at, known, named, states

ITEM = ("a/b", b"{}", None)
ODD = sqlite3.OperationalError("odd")


def in_virtual_time(body: Coroutine[Any, Any, float]) -> float:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(body)


class Holder:
    """Another program that writes to the journal, until it ends."""

    def __init__(self, location: Location) -> None:
        self._run = Run(location)
        if not isinstance(location, SqliteLocation):
            self._run.store.execute("SET idle_in_transaction_session_timeout = 0")
        self._writing = self._run.store.writing()
        self._writing.__enter__()

    def end(self) -> None:
        if self._writing is not None:
            self._writing.__exit__(None, None, None)
            self._writing = None
            self._run.close()


@asynccontextmanager
async def sharing(journal: StoredJournal, location: Location) -> AsyncIterator[None]:
    """What the body starts shares a transaction, which begins at its end."""
    other = Holder(location)
    first = asyncio.ensure_future(journal.open())
    await asyncio.sleep(0)
    yield
    await asyncio.sleep(0)  # all of them wait for the next transaction
    other.end()
    await first


async def test_closing_waits_for_what_is_being_written(location: Location) -> None:
    journal = journal_at(location)
    writing = [asyncio.ensure_future(journal.record(entry("submitting", key=str(number)))) for number in range(1700)]
    await asyncio.sleep(0)
    await asyncio.gather(journal.aclose(), journal.aclose())
    await asyncio.gather(*writing)
    assert len(states(location)) == 1700


async def test_a_journal_that_is_dropped_unclosed_warns(location: Location) -> None:
    journal = journal_at(location)
    await journal.open()
    store, thread = journal._writer._store, journal._writer._thread
    assert store is not None
    assert thread is not None
    thread.submit(int).result()  # the thread is done with its last job, and with the journal
    with pytest.warns(ResourceWarning, match="unclosed [A-Za-z]+Journal"):
        del journal
        gc.collect()
    thread.submit(store.close).result()


def test_one_object_belongs_to_one_loop(location: Location) -> None:
    journal = journal_at(location)

    async def elsewhere() -> None:
        for use in (journal.open, journal.spent, journal.aclose):
            with pytest.raises(JournalError, match="another event loop"):
                await use()

    with asyncio.Runner() as runner:
        runner.run(journal.open())
        asyncio.run(elsewhere())
        runner.run(journal.aclose())


def test_virtual_time_stands_still_while_it_writes(location: Location) -> None:
    async def body() -> float:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(3600, lambda: None)
        async with journal_at(location) as journal:
            for number in range(20):
                await journal.record(entry("submitting", key=str(number)))
            at = loop.time()
        timer.cancel()
        return at

    assert in_virtual_time(body()) == 0.0
    assert len(states(location)) == 20


def test_many_who_write_one_after_the_other_share_transactions_ten_milliseconds_apart(location: Location) -> None:
    """Eight callers of five entries each; a lone caller's are not held up, as the test above shows."""
    commits = 0

    async def caller(journal: StoredJournal, name: str) -> None:
        for number in range(5):
            await journal.record(entry("submitting", key=f"{name}{number}"))

    async def body() -> float:
        async with journal_at(location) as journal:
            store: Any = journal._writer._store
            writing = store.writing

            def counted(*tokens: Any) -> Any:
                nonlocal commits
                commits += 1
                return writing(*tokens)

            store.writing = counted
            await asyncio.gather(*(caller(journal, name) for name in "abcdefgh"))
            return asyncio.get_running_loop().time()

    elapsed = in_virtual_time(body())
    assert len(states(location)) == 40
    # The first goes at once and alone, and so do the seven that come meanwhile; then they go together.
    assert commits == 6
    assert elapsed == pytest.approx(0.04)


@pytest.mark.parametrize(("callers", "waits"), [(9, [0.01, 0.0]), (8, [0.0, 0.0])])
def test_who_comes_soon_after_many_waits_for_company(location: Location, callers: int, waits: list[float]) -> None:
    async def body() -> list[float]:
        loop, waited = asyncio.get_running_loop(), []
        async with journal_at(location) as journal:
            # The first goes alone, and the others together.
            await asyncio.gather(*(journal.record(entry("submitting", key=str(number))) for number in range(callers)))
            for pause in (0.05, 0.1):
                await asyncio.sleep(pause)
                start = loop.time()
                await journal.record(entry("submitting", key=f"after {pause}"))
                waited.append(loop.time() - start)
        return waited

    assert in_virtual_time(body()) == pytest.approx(waits)


def test_closing_does_not_wait_for_the_next_turn(location: Location) -> None:
    async def body() -> float:
        journal = journal_at(location)
        first = [asyncio.ensure_future(journal.record(entry("submitting", key=f"{number}"))) for number in range(9)]
        await asyncio.gather(*first)
        late = asyncio.ensure_future(journal.record(entry("submitting", key="late")))
        await asyncio.sleep(0)
        await journal.aclose()
        await late
        return asyncio.get_running_loop().time()

    assert in_virtual_time(body()) == 0.0
    assert len(states(location)) == 10


async def test_the_loop_goes_on_while_another_program_holds_the_file(
    journal: StoredJournal, location: Location
) -> None:
    async with sharing(journal, location):
        writing = asyncio.ensure_future(journal.record(entry("submitting", key="k")))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not writing.done()
    await writing


async def test_what_one_entry_is_refused_for_concerns_it_alone(journal: StoredJournal, location: Location) -> None:
    reservation = Reservation(usd=0.01, max_usd=0.02)
    items = journal.items()
    ended = await asyncio.gather(
        *(journal.record(entry("submitting", key=f"k{number}", reservation=reservation)) for number in range(4)),
        journal.record(entry("submitting", key="\ud800")),
        items.claim("a/b", b"{}", "i"),
        items.claim("a/b", b"[]", "i"),
        journal.record(entry("submitting", key="without")),
        return_exceptions=True,
    )
    assert [type(one) for one in ended[:5]] == [type(None)] * 2 + [BudgetExceededError] * 2 + [JournalError]
    assert (getattr(ended[5], "action", None), type(ended[6]), ended[7]) == (Action.SUBMIT, InvalidInputError, None)
    assert states(location) == ["submitting"] * 3


async def test_an_entry_is_written_even_if_its_caller_is_cancelled(journal: StoredJournal, location: Location) -> None:
    writing = asyncio.ensure_future(journal.record(entry("submitting", key="k")))
    await asyncio.sleep(0)
    writing.cancel()
    await journal.open()
    assert writing.cancelled()
    assert states(location) == ["submitting"]


async def test_an_item_claimed_for_a_caller_who_was_cancelled_is_free(journal: StoredJournal) -> None:
    claiming = asyncio.ensure_future(journal.items().claim(*ITEM))
    await asyncio.sleep(0)
    claiming.cancel()
    await journal.open()
    assert (await journal.items().claim(*ITEM)).action is Action.SUBMIT


async def test_an_item_claimed_in_the_instant_in_which_its_caller_is_cancelled_is_free(
    journal: StoredJournal, location: Location
) -> None:
    async def cancel() -> None:
        await journal.open()
        claiming.cancel()  # between the claim's result and the step of the task that waits for it

    async with sharing(journal, location):
        cancelling = asyncio.ensure_future(cancel())
        claiming = asyncio.ensure_future(journal.items().claim(*ITEM))
    await cancelling
    with pytest.raises(asyncio.CancelledError):
        await claiming
    assert (await journal.items().claim(*ITEM)).action is Action.SUBMIT


async def test_a_pass_that_was_dropped_is_forgotten(journal: StoredJournal) -> None:
    def remembered(store: Any) -> int:
        return len(store._passed)

    items = journal.items()
    await items.claim(*ITEM)
    assert await journal._writer.run(remembered) == 1
    del items
    gc.collect()
    assert await journal._writer.run(remembered) == 0


async def test_an_error_of_the_store_fails_all_that_shared_the_transaction(
    journal: StoredJournal, location: Location
) -> None:
    def fail(_: object) -> None:
        raise ODD

    earlier = journal.items()
    earlier.release(await earlier.claim(*ITEM))
    items = journal.items()
    async with sharing(journal, location):
        ending = asyncio.gather(
            journal.record(entry("submitting", key="k")),
            items.claim(*ITEM),
            journal._writer.run(fail),
            return_exceptions=True,
        )
    ended = await ending
    assert [type(one) for one in ended] == [JournalError] * 3
    assert len({id(one) for one in ended}) == 3, "each caller has an error of its own"
    assert states(location) == []
    assert (await journal.items().claim(*ITEM)).action is Action.SUBMIT, "nobody has it"
    await journal.record(entry("submitting", key="k2"))


async def test_a_clock_that_raises_ends_no_wait_without_an_answer(location: Location) -> None:
    ticks = iter([1.0])
    async with journal_at(location, clock=lambda: next(ticks)) as journal:
        with pytest.raises(JournalError, match="cannot be used: StopIteration"):
            await journal.record(entry("submitting", key="k"))


async def test_an_error_while_closing_is_raised(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = journal_at(location)
    await journal.open()
    store: Any = journal._writer._store
    close = store.close

    def fail() -> None:
        close()
        raise ODD

    monkeypatch.setattr(store, "close", fail)
    with pytest.raises(JournalError, match="odd"):
        await journal.aclose()


@asynccontextmanager
async def lost(location: Location) -> AsyncIterator[tuple[StoredJournal, Holder]]:
    """A journal that an accepted submit could not be written to, because another program holds the file."""
    journal = journal_at(location)
    await journal.record(entry("submitting", key="k"))
    impatient = "PRAGMA busy_timeout = 1" if isinstance(location, SqliteLocation) else "SET lock_timeout = 1"
    await journal._writer.run(lambda store: store.execute(impatient))
    other = Holder(location)
    with pytest.raises(JournalError, match=r"is locked|is busy"):
        await journal.record(entry("submitted", key="k", request_id="r"))
    try:
        yield journal, other
    finally:
        try:
            await journal.aclose()
        finally:
            other.end()


@pytest.mark.parametrize("seconds", [0, 8, 100])
def test_an_id_that_could_not_be_written_is_written_as_soon_as_it_can_be(location: Location, seconds: float) -> None:
    async def body() -> float:
        async with lost(location) as (_, other):
            await asyncio.sleep(seconds)
            assert known(location) == [("submitting", None)]
            other.end()
            await asyncio.sleep(1.01)
            assert known(location) == [("submitted", "r")]
        return asyncio.get_running_loop().time()

    assert in_virtual_time(body()) == pytest.approx(seconds + 1.01)


def test_the_next_entry_brings_what_could_not_be_written_and_does_not_wait_for_it(location: Location) -> None:
    async def body() -> float:
        async with lost(location) as (journal, other):
            other.end()
            await journal.record(entry("submitting", key="l"))
            at = asyncio.get_running_loop().time()
            assert known(location) == [("submitted", "r"), ("submitting", None)]
            await asyncio.gather(*(journal.record(entry("submitting", key=f"{number}")) for number in range(3)))
        return at

    assert in_virtual_time(body()) == 0.0
    assert len(states(location)) == 5


@pytest.mark.parametrize(("seconds", "took"), [(0, 0), (8, 8), (9.5, 10)])
def test_closing_waits_for_what_could_not_be_written(location: Location, seconds: float, took: float) -> None:
    async def body() -> float:
        loop = asyncio.get_running_loop()
        async with lost(location) as (journal, other):
            if seconds:
                loop.call_later(seconds, other.end)
            else:
                other.end()
            await journal.aclose()
        return loop.time()

    assert in_virtual_time(body()) == pytest.approx(took)
    assert known(location) == [("submitted", "r")]


def test_closing_ends_after_ten_seconds_and_says_what_is_lost(location: Location) -> None:
    async def body() -> float:
        with pytest.raises(JournalError, match="could not be written: 1 of its entries are lost"):
            async with lost(location) as (journal, _):
                await journal.aclose()
        return asyncio.get_running_loop().time()

    assert in_virtual_time(body()) == pytest.approx(10.0)


def test_nothing_is_written_later_for_which_nothing_was_sent(location: Location) -> None:
    """An intent, a claim; and of what did happen, nothing that the journal refuses."""

    async def body() -> float:
        async with lost(location) as (journal, other):
            failing = [journal.record(entry("submitting", key="l")), journal.items().claim(*ITEM)]
            failing.append(journal.record(entry("submitted", key="m", request_id="r")))
            ended = await asyncio.gather(*failing, return_exceptions=True)
            assert {type(one) for one in ended} == {JournalError}
            other.end()
            await asyncio.sleep(10)
            assert known(location) == [("submitted", "r")]
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


# --- accounts and options


async def test_where_no_thread_can_start_nothing_is_written_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    journal = SqliteJournal(path)
    with monkeypatch.context() as patch, pytest.raises(JournalError, match="can't start new thread"):
        patch.setattr(threading.Thread, "start", refuse)
        await journal.record(entry("submitting", key="refused"))
    await journal.record(entry("submitting", key="written"))
    await journal.aclose()
    assert states(SqliteLocation(path)) == ["submitting"]


async def test_what_an_account_spent(journal: StoredJournal) -> None:
    await journal.record(entry("submitting", key="k", reservation=Reservation(usd=0.02, max_usd=1.0)))
    await journal.record(entry("completed", request_id="r", cost_usd=0.01))
    assert await journal.spent() == Spending(settled_usd=0.01, held_usd=0.02)
    assert (await journal.spent()).usd == 0.03
    await journal.record(entry("submitting", key="l", model="a/b", reservation=Reservation(usd=0.02, max_usd=1.0)))
    await journal.record(entry("submitted", key="l", request_id="s"))
    await journal.record(entry("completed", request_id="s", cost_usd=0.04))
    known = [(await journal.spent(model)).highest_usd for model in ("a/b", "c/d", None)]
    assert known == [0.04, 0.0, 0.0], "of the model, if the service charged more than was reserved"
    other = journal.for_account("other")
    await other.record(entry("submitting", key="m", model="a/b"))
    await other.record(entry("completed", key="m", request_id="t", cost_usd=0.5))
    every, own = await journal.spent("a/b"), await other.spent("a/b")
    assert (every.settled_usd, every.highest_usd) == (0.55, 0.5), "of all accounts"
    assert (own.settled_usd, own.held_usd) == (0.5, 0.0)
    assert (await journal.for_account("token").spent()).usd == 0.0


async def test_a_renewed_token_takes_over_an_account(journal: StoredJournal) -> None:
    old, new = journal.for_account("old"), journal.for_account("new")
    await old.record(entry("completed", request_id="r", cost_usd=0.01))
    assert (await old.has_request("r"), await old.has_request("s"), await new.has_request("r")) == (True, False, False)
    assert (await new.is_stranger(), await new.is_stranger(ignored=("old",))) == (True, False)
    await new.take_over()
    assert ((await new.spent()).usd, await new.is_stranger()) == (0.01, False)


@pytest.mark.parametrize(
    ("used", "token", "warnings"),
    [
        (["old"], "new", 1),
        (["old", "older"], "new", 1),
        (["old", "new"], "new", 0),
        ([], "new", 0),
        ([EMULATED_TOKEN], "new", 0),
        (["old"], EMULATED_TOKEN, 0),
    ],
)
async def test_a_token_that_may_have_been_renewed_is_logged_before_its_first_submit(
    journal: StoredJournal, caplog: pytest.LogCaptureFixture, used: list[str], token: str, warnings: int
) -> None:
    for number, each in enumerate(used):
        await journal.for_account(each).record(entry("completed", request_id=f"r{number}"))
    account = journal.for_account(token)
    await account.record(entry("cancelled", request_id="theirs"))
    await asyncio.gather(*(account.record(entry("submitting", key=key)) for key in "abc"))
    await asyncio.gather(*(account.record(entry("refused", key=key)) for key in "abc"))
    await account.record(entry("submitting", key="d"))
    await journal.for_account(token, "https://other.example").record(entry("submitting", key="e"))
    await journal.record(entry("submitting", key="f"))
    assert [record.getMessage().partition(" holds ")[0] for record in caplog.records] == [repr(journal)] * warnings
    assert all("for_account(token, base_url).take_over()" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("end", "option"),
    [
        ("refused", {}),
        ("cancelled", {}),
        ("failed", {"retry_failed": True}),
        ("uncertain", {"resubmit_uncertain": True}),
    ],
)
async def test_an_item_without_a_result_is_submitted_again_as_the_options_say(
    location: Location, end: str, option: dict[str, Any]
) -> None:
    async with journal_at(location) as journal:
        claimed = await journal.items().claim("a/b", b"{}", None)
        await journal.record(entry("submitting", key="k", item=claimed.item))
        await journal.record(entry(end, key="k"))
    async with journal_at(location) as journal:
        previewed = await journal.items().preview("a/b", b"{}", None)
        assert previewed.action is (Action(end) if option else Action.SUBMIT)
    async with journal_at(location, **option) as journal:
        assert (await journal.items().claim("a/b", b"{}", None)).action is Action.SUBMIT


# --- several processes

SPEND = """
import asyncio, sys, time
from pathlib import Path
from flux_klein_async.errors import BudgetExceededError
from flux_klein_async.journal.base import Reservation
from tests.journal.helpers import entry, journal_named

where, folder, name = sys.argv[1:]
PRICE = Reservation(usd=0.01, max_usd=0.5)

async def spend():
    async with journal_named(where) as journal:
        Path(folder, f"{name}.here").touch()
        alone = time.monotonic() + 60
        while len(list(Path(folder).glob("*.here"))) < 3 and time.monotonic() < alone:
            time.sleep(0.001)
        for begin in range(0, 100, 4):
            intents = [entry("submitting", key=f"{name}-{begin + n}", reservation=PRICE) for n in range(4)]
            for end in await asyncio.gather(*map(journal.record, intents), return_exceptions=True):
                assert end is None or isinstance(end, BudgetExceededError), end

asyncio.run(spend())
"""


@pytest.mark.slow
async def test_several_processes_never_spend_more_than_the_budget_together(location: Location, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPEND, named(location), str(tmp_path)]
    processes = [subprocess.Popen([*command, name]) for name in "abc"]  # noqa: ASYNC220
    assert [process.wait() for process in processes] == [0, 0, 0]
    async with journal_at(location) as journal:
        assert (await journal.spent()).usd == 0.5
    assert len(states(location)) == 50


WRITE_ON = """
import asyncio, itertools, sys
from tests.journal.helpers import entry, journal_named

async def main():
    journal = journal_named(sys.argv[1])

    async def caller(name):
        for number in itertools.count():
            key = f"{name}-{number}"
            await journal.record(entry("submitting", key=key))
            print("intent", key, flush=True)
            await journal.record(entry("submitted", key=key, request_id="r-" + key))
            print("id", key, flush=True)

    await asyncio.gather(*(caller(name) for name in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [57, *(pytest.param(lines, marks=pytest.mark.slow) for lines in (1, 333))])
def test_what_was_recorded_is_there_whenever_the_process_is_killed(location: Location, lines: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITE_ON, named(location)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline().split() for _ in range(lines)]
    process.kill()
    told += [line.split() for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait()
    run = Run(location)
    found = {request["key"]: request["request_id"] for request in run.requests()}
    assert {key for _, key in told} <= set(found)
    assert {key: f"r-{key}" for what, key in told if what == "id"}.items() <= found.items()
    check(location)
    run.close()
