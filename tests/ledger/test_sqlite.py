"""The journal as a client uses it: durable when `record` returns, in one thread, with one transaction for many."""

import asyncio
import gc
import logging
import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_asyncio

from flux_klein_async.emulator import VirtualTimeLoop
from flux_klein_async.errors import BudgetExceededError, InvalidInputError, JournalError
from flux_klein_async.ledger.base import Action, Ledger, Reservation
from flux_klein_async.ledger.database import Database
from flux_klein_async.ledger.sqlite import Spending, SqliteJournal

from .helpers import child, entry
from .test_schema import STRANGERS


@pytest_asyncio.fixture
async def journal(path: Path) -> AsyncIterator[SqliteJournal]:
    async with SqliteJournal(path, clock=lambda: 1000.0) as journal:
        yield journal


def states(path: Path) -> list[str]:
    """As another program reads them, which sees what was committed."""
    db = sqlite3.connect(path)
    found = [state for [state] in db.execute("SELECT state FROM orders ORDER BY id")]
    db.close()
    return found


def files(path: Path) -> list[str]:
    return sorted(found.name for found in path.parent.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def delete(path: Path) -> None:
    path.unlink()


def content(path: Path) -> bytes:
    return b"".join(found.read_bytes() for found in sorted(path.parent.iterdir()) if found.is_file())


# --- life


async def test_it_is_a_ledger_made_at_its_first_use_and_leaves_one_file_behind(path: Path) -> None:
    journal = SqliteJournal(path)
    assert isinstance(journal, Ledger)
    assert isinstance(journal.for_account("token"), Ledger)
    assert files(path) == []
    await journal.record(entry("submitting", key="k"))
    assert states(path) == ["submitting"]
    assert mode(path) == 0o600
    assert len(files(path)) == 4, "the file, its WAL with an index, and the lock"
    await journal.aclose()
    await journal.aclose()
    assert files(path) == ["run.sqlite"]
    with pytest.raises(JournalError, match="is closed"):
        await journal.record(entry("submitting", key="l"))


async def test_one_that_was_never_used_makes_no_file(path: Path) -> None:
    journal = SqliteJournal(path)
    await journal.aclose()
    assert files(path) == []
    assert repr(journal) == f"SqliteJournal('{path}')"


async def test_closing_waits_for_what_is_being_written(path: Path) -> None:
    journal = SqliteJournal(path)
    writing = [asyncio.ensure_future(journal.record(entry("submitting", key=str(number)))) for number in range(700)]
    await asyncio.sleep(0)
    await asyncio.gather(journal.aclose(), journal.aclose())
    await asyncio.gather(*writing)
    assert len(states(path)) == 700


async def test_one_that_was_dropped_unclosed_says_so(path: Path) -> None:
    journal = SqliteJournal(path)
    await journal.open()
    database, thread = journal._database, journal._thread
    assert database is not None
    assert thread is not None
    thread.submit(int).result()  # the thread is done with its last job, and with the journal
    with pytest.warns(ResourceWarning, match="unclosed SqliteJournal"):
        del journal
        gc.collect()
    thread.submit(database.close).result()


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

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(body()) == 0.0
    assert len(states(path)) == 20


# --- many callers


async def test_what_comes_while_it_writes_shares_one_transaction(journal: SqliteJournal, path: Path) -> None:
    await journal.record(entry("submitting", key="first"))
    commits = []
    assert journal._database is not None
    await journal.operate(lambda database: database.db.set_trace_callback(commits.append))
    commits.clear()
    await asyncio.gather(*(journal.record(entry("submitting", key=str(number))) for number in range(64)))
    await journal.operate(lambda database: database.db.set_trace_callback(None))
    assert 1 <= commits.count("COMMIT") <= 3
    assert len(states(path)) == 65


async def test_the_loop_goes_on_while_another_program_holds_the_file(journal: SqliteJournal, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(journal.record(entry("submitting", key="k")))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not writing.done()
    other.execute("COMMIT")
    other.close()
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


async def test_an_entry_is_written_even_if_its_caller_gives_up(journal: SqliteJournal, path: Path) -> None:
    writing = asyncio.ensure_future(journal.record(entry("submitting", key="k")))
    await asyncio.sleep(0)
    writing.cancel()
    await journal.open()
    assert writing.cancelled()
    assert states(path) == ["submitting"]


async def test_an_item_claimed_for_a_caller_who_gave_up_is_free(journal: SqliteJournal) -> None:
    claiming = asyncio.ensure_future(journal.items().claim("a/b", b"{}", None))
    await asyncio.sleep(0)
    claiming.cancel()
    await journal.open()
    assert (await journal.items().claim("a/b", b"{}", None)).action is Action.SUBMIT


async def test_an_item_claimed_in_the_instant_in_which_its_caller_gives_up_is_free(journal: SqliteJournal) -> None:
    async def give_up() -> None:
        await journal.open()
        claiming.cancel()  # between the claim's result and the step of the task that waits for it

    giving_up = asyncio.ensure_future(give_up())
    claiming = asyncio.ensure_future(journal.items().claim("a/b", b"{}", None))
    await giving_up
    with pytest.raises(asyncio.CancelledError):
        await claiming
    assert (await journal.items().claim("a/b", b"{}", None)).action is Action.SUBMIT


async def test_a_released_item_can_be_claimed_again_and_one_that_is_not_cannot(journal: SqliteJournal) -> None:
    items = journal.items()
    claimed = await items.claim("a/b", b"{}", None)
    taken = await journal.items().claim("a/b", b"{}", None)
    items.release(taken)
    assert (taken.action, (await journal.items().claim("a/b", b"{}", None)).action) == (Action.TAKEN, Action.TAKEN)
    items.release(claimed)
    assert (await journal.items().claim("a/b", b"{}", None)).action is Action.SUBMIT


async def test_a_pass_that_nobody_goes_on_with_is_forgotten(journal: SqliteJournal) -> None:
    def remembered(database: Any) -> int:
        return int(database.db.execute("SELECT count(*) FROM temp.seen").fetchone()[0])

    items = journal.items()
    await items.claim("a/b", b"{}", None)
    assert await journal.operate(remembered) == 1
    del items
    gc.collect()
    assert await journal.operate(remembered) == 0


# --- accounts


async def test_the_token_is_nowhere(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with SqliteJournal(path) as journal:
        account = journal.for_account("a-secret-token")
        await account.record(entry("submitting", key="k"))
        await account.items().claim("a/b", b"{}", None)
        with pytest.raises(JournalError) as caught:
            await account.record(entry("submitting", key="k"))
        shown = repr(account) + repr(journal) + repr(caught.value) + caplog.text
        held = content(path)
    assert "secret" not in shown
    assert b"secret" not in held + content(path)


async def test_an_account_is_known_again_in_the_same_journal_alone(tmp_path: Path) -> None:
    names = []
    for name in ("one", "one", "two"):
        async with SqliteJournal(tmp_path / name) as journal:
            await journal.for_account("token").record(entry("completed", request_id="r", cost_usd=0.01))
            names.append(
                await journal.operate(lambda database: database.db.execute("SELECT name FROM accounts").fetchall())
            )
            assert (await journal.for_account("token").spent()).usd == 0.01
    assert names[0] == names[1] != names[2]


async def test_what_an_account_spent(journal: SqliteJournal) -> None:
    await journal.record(entry("submitting", key="k", reservation=Reservation(usd=0.02, max_usd=1.0)))
    await journal.record(entry("completed", request_id="r", cost_usd=0.01))
    assert await journal.spent() == Spending(settled_usd=0.01, held_usd=0.02)
    assert (await journal.spent()).usd == 0.03
    assert (await journal.for_account("token").spent()).usd == 0.0


# --- several processes

SPEND = """
import asyncio, sys, time
from pathlib import Path
from flux_klein_async.errors import BudgetExceededError
from flux_klein_async.ledger.base import Reservation
from flux_klein_async.ledger.database import Database
from flux_klein_async.ledger.sqlite import SqliteJournal
from tests.ledger.helpers import entry

path, name = sys.argv[1:]
PRICE = Reservation(usd=0.01, max_usd=0.5)

async def spend():
    async with SqliteJournal(path) as journal:
        async def one(number):
            try:
                await journal.record(entry("submitting", key=f"{name}-{number}", reservation=PRICE))
            except BudgetExceededError:
                pass

        Path(path).with_name(f"{name}.here").touch()
        while len(list(Path(path).parent.glob("*.here"))) < 3:
            time.sleep(0.001)
        for begin in range(0, 100, 4):
            await asyncio.gather(*(one(number) for number in range(begin, begin + 4)))

asyncio.run(spend())
"""


async def test_several_processes_never_spend_more_than_the_budget_together(path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", SPEND, str(path), name]) for name in "abc"]  # noqa: ASYNC220
    assert [process.wait() for process in processes] == [0, 0, 0]
    async with SqliteJournal(path) as journal:
        assert (await journal.spent()).usd == 0.5
    assert len(states(path)) == 50


HOLD = """
import asyncio
from flux_klein_async.ledger.database import Database
from flux_klein_async.ledger.sqlite import SqliteJournal
from tests.ledger.helpers import entry

async def hold():
    journal = SqliteJournal(sys.argv[1])
    claimed = await journal.items().claim("a/b", b"{}", None)
    await journal.record(entry("submitting", key="k", item=claimed.item))
    print("ready", flush=True)
    sys.stdin.read()

asyncio.run(hold())
"""


async def test_a_killed_process_leaves_what_it_recorded_and_holds_nothing(path: Path) -> None:
    async with SqliteJournal(path) as journal:
        with child(HOLD, path):
            assert (await journal.items().claim("a/b", b"{}", None)).action is Action.TAKEN
        claimed = await journal.items().claim("a/b", b"{}", None)
        assert (claimed.action, states(path)) == (Action.UNCERTAIN, ["uncertain"])
        assert len(files(path)) == 4
    async with SqliteJournal(path, resubmit_uncertain=True) as journal:
        assert (await journal.items().claim("a/b", b"{}", None)).action is Action.SUBMIT


async def test_failures_are_run_again_where_that_is_wanted(path: Path) -> None:
    async with SqliteJournal(path) as journal:
        claimed = await journal.items().claim("a/b", b"{}", None)
        await journal.record(entry("submitting", key="k", item=claimed.item))
        await journal.record(entry("failed", key="k"))
    async with SqliteJournal(path) as journal:
        assert (await journal.items().claim("a/b", b"{}", None)).action is Action.FAILED
    async with SqliteJournal(path, retry_failed=True) as journal:
        assert (await journal.items().claim("a/b", b"{}", None)).action is Action.SUBMIT


# --- trouble


async def test_a_database_error_fails_all_that_shared_the_transaction(journal: SqliteJournal, path: Path) -> None:
    def fail(_: object) -> None:
        raise sqlite3.OperationalError("odd")

    items = journal.items()
    ended = await asyncio.gather(
        journal.record(entry("submitting", key="k")),
        items.claim("a/b", b"{}", None),
        journal.operate(fail),
        return_exceptions=True,
    )
    shared = [one for one in ended if isinstance(one, JournalError)]
    assert ended[2] in shared
    assert len({id(one) for one in shared}) == len(shared), "each caller has an error of its own"
    assert (await journal.items().claim("a/b", b"{}", None)).action is Action.SUBMIT, "nobody was told that he has it"
    await journal.record(entry("submitting", key="k2"))


async def test_a_clock_that_raises_ends_no_wait_without_an_answer(path: Path) -> None:
    ticks = iter([1.0])
    async with SqliteJournal(path, clock=lambda: next(ticks)) as journal:
        with pytest.raises(JournalError, match="cannot be used: StopIteration"):
            await journal.record(entry("submitting", key="k"))


async def test_a_journal_that_was_deleted_under_it_is_an_error(journal: SqliteJournal, path: Path) -> None:
    delete(path)
    with pytest.raises(JournalError, match="deleted or replaced"):
        await journal.record(entry("submitting", key="k"))


@contextmanager
def unprivileged() -> Iterator[None]:
    """As somebody to whom a file's mode says something."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A journal that was closed, in a directory that everybody may enter."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        asyncio.run(_make(folder / "run.sqlite"))
        (folder / "run.sqlite").chmod(0o666)
        yield folder
        folder.chmod(0o777)


async def _make(path: Path) -> None:
    async with SqliteJournal(path):
        pass


async def refused(path: Path) -> str:
    """What opening a journal ends in, and so does its first entry."""
    journal = SqliteJournal(path)
    texts = set()
    for use in (journal.open, lambda: journal.record(entry("submitting", key="k"))):
        with pytest.raises(JournalError) as caught:
            await use()
        assert (caught.value.charged, caught.value.retryable) == ("no", False)
        texts.add(str(caught.value))
    await journal.aclose()
    [text] = texts
    return text


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o555, 0o666), (0o555, 0o444), (0o777, 0o444), (0o777, 0o000)])
async def test_what_cannot_be_written_is_an_error_that_says_what_to_do(
    shared: Path, folder_mode: int, file_mode: int
) -> None:
    path = shared / "run.sqlite"
    before = content(path)
    set_modes(path, folder_mode, file_mode)
    with unprivileged():
        text = await refused(path)
    assert "make the file and its directory writable" in text
    set_modes(path, 0o777, 0o666)
    assert (content(path), files(path)) == (before, ["run.sqlite"])


def set_modes(path: Path, folder_mode: int, file_mode: int) -> None:
    path.chmod(file_mode)
    path.parent.chmod(folder_mode)


async def test_a_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert "make it, or name another journal" in await refused(tmp_path / "none" / "run.sqlite")
    assert files(tmp_path / "x") == []


@pytest.mark.parametrize(("stranger", "says"), STRANGERS)
async def test_what_is_no_journal_is_left_as_it_is(path: Path, stranger: Callable[[Path], object], says: str) -> None:
    stranger(path)
    before = content(path.parent / "x")
    assert re.search(says, await refused(path))
    assert (content(path.parent / "x"), files(path)) == (before, ["run.sqlite"])


async def test_a_file_that_another_program_holds_for_too_long_is_an_error(
    journal: SqliteJournal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal._database is not None
    await journal.operate(lambda database: database.db.execute("PRAGMA busy_timeout = 10"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        with pytest.raises(JournalError, match="another program has been writing to it for too long"):
            await journal.record(entry("submitting", key="k"))
    monkeypatch.setattr("flux_klein_async.ledger.connections.BUSY", 0.01)
    assert "is locked" in await refused(path)
    other.execute("COMMIT")
    other.close()
    await journal.record(entry("submitting", key="k"))
    assert states(path) == ["submitting"]


async def test_a_full_disk_is_an_error_and_the_journal_goes_on_when_there_is_room(
    journal: SqliteJournal, path: Path
) -> None:
    def room(pages: int) -> Callable[[Any], object]:
        return lambda database: database.db.execute(f"PRAGMA max_page_count = {pages}")

    await journal.record(entry("submitting", key="before"))
    await journal.operate(room(1))  # no more than there are
    large = [entry("submitting", key=str(number), body=b"x" * 20_000) for number in range(3)]
    ended = await asyncio.gather(*map(journal.record, large), return_exceptions=True)
    assert {type(one) for one in ended} == {JournalError}
    assert "make room, then go on with the same journal" in str(ended[0])
    assert states(path) == ["submitting"]
    await journal.operate(room(1_000_000))
    await journal.record(large[0])
    assert states(path) == ["submitting"] * 2


async def test_one_that_could_not_be_opened_can_be_tried_again(path: Path) -> None:
    journal = SqliteJournal(path.parent / "folder" / "run.sqlite")
    with pytest.raises(JournalError):
        await journal.open()
    make_folder(path.parent / "folder")
    await journal.record(entry("submitting", key="k"))
    await journal.aclose()


def make_folder(path: Path) -> None:
    path.mkdir()


async def test_one_that_cannot_be_opened_leaves_nothing_open(path: Path) -> None:
    with pytest.raises(JournalError):
        async with SqliteJournal(path.parent):
            raise AssertionError
    gc.collect()  # would warn


async def test_trouble_while_closing_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = SqliteJournal(path)
    await journal.open()
    close = Database.close

    def fail(database: Database) -> None:
        close(database)
        raise sqlite3.OperationalError("odd")

    monkeypatch.setattr(Database, "close", fail)
    with pytest.raises(JournalError, match="odd"):
        await journal.aclose()


def test_nonsense_for_a_path_is_one_error() -> None:
    with pytest.raises(TypeError):
        SqliteJournal(3)  # type: ignore[arg-type]
    gc.collect()
