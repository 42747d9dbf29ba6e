"""The journal as a client uses it: durable when `record` returns, in one thread, with one transaction for many.

A process that is killed at any instant leaves a file that holds all it was told to hold, and nothing by halves.
"""

import asyncio
import gc
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from flux_klein_async.errors import JournalError
from flux_klein_async.journal.base import Action, ItemJournal, Reservation
from flux_klein_async.journal.database import Database, check
from flux_klein_async.journal.sqlite import Spending, SqliteJournal

from .helpers import Run, child, content, delete, entry, files, mode, request, requests, states
from .test_database import STRANGERS

# --- life


async def test_it_is_a_ledger_made_at_its_first_use_and_leaves_one_file_behind(path: Path) -> None:
    journal = SqliteJournal(path)
    assert isinstance(journal, ItemJournal)
    assert isinstance(journal.for_account("token"), ItemJournal)
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


async def test_a_released_item_can_be_claimed_again_and_one_that_is_not_cannot(journal: SqliteJournal) -> None:
    items = journal.items()
    claimed = await items.claim("a/b", b"{}", None)
    taken = await journal.items().claim("a/b", b"{}", None)
    items.release(taken)
    assert (taken.action, (await journal.items().claim("a/b", b"{}", None)).action) == (Action.CLAIMED, Action.CLAIMED)
    items.release(claimed)
    assert (await journal.items().claim("a/b", b"{}", None)).action is Action.SUBMIT


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


def account_names(database: Database) -> list[object]:
    return database.db.execute("SELECT name FROM accounts").fetchall()


async def test_an_account_is_known_again_in_the_same_journal_alone(tmp_path: Path) -> None:
    names = []
    for name in ("one", "one", "two"):
        async with SqliteJournal(tmp_path / name) as journal:
            await journal.for_account("token").record(entry("completed", request_id="r", cost_usd=0.01))
            names.append(await journal._writer.operate(account_names))
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
from flux_klein_async.journal.base import Reservation
from flux_klein_async.journal.database import Database
from flux_klein_async.journal.sqlite import SqliteJournal
from tests.journal.helpers import entry

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
        alone = time.monotonic() + 60
        while len(list(Path(path).parent.glob("*.here"))) < 3 and time.monotonic() < alone:
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
from flux_klein_async.journal.database import Database
from flux_klein_async.journal.sqlite import SqliteJournal
from tests.journal.helpers import entry

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
            assert (await journal.items().claim("a/b", b"{}", None)).action is Action.CLAIMED
        claimed = await journal.items().claim("a/b", b"{}", None)
        assert (claimed.action, states(path)) == (Action.UNCERTAIN, ["uncertain"])
        assert len(files(path)) == 4
    async with SqliteJournal(path, resubmit_uncertain=True) as journal:
        assert (await journal.items().claim("a/b", b"{}", None)).action is Action.SUBMIT


async def test_one_that_is_used_through_a_link_is_the_same_journal(
    journal: SqliteJournal, tmp_path_factory: pytest.TempPathFactory
) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "link.sqlite"
    link.symlink_to(journal.path)
    async with SqliteJournal(link) as other:
        await other.items().claim("a/b", b"{}", None)
        assert (await journal.items().claim("a/b", b"{}", None)).action is Action.CLAIMED


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


async def test_a_journal_that_was_deleted_under_it_is_an_error(journal: SqliteJournal, path: Path) -> None:
    delete(path)
    both = [journal.record(entry("submitting", key=key)) for key in "kl"]
    _, first, second = await asyncio.gather(journal.open(), *both, return_exceptions=True)
    assert "deleted or replaced" in str(first)
    assert (str(first), type(second)) == (str(second), JournalError)
    assert first is not second, "each caller has an error of its own"


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
    assert journal._writer._database is not None
    await journal._writer.operate(lambda database: database.db.execute("PRAGMA busy_timeout = 10"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        with pytest.raises(JournalError, match="another program has been writing to it for too long"):
            await journal.record(entry("submitting", key="k"))
    monkeypatch.setattr("flux_klein_async.journal.database.BUSY", 0.01)
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
    await journal._writer.operate(room(1))  # no more than there are
    large = [entry("submitting", key=str(number), body=b"x" * 20_000) for number in range(3)]
    ended = await asyncio.gather(*map(journal.record, large), return_exceptions=True)
    assert {type(one) for one in ended} == {JournalError}
    assert "make room, then go on with the same journal" in str(ended[0])
    assert states(path) == ["submitting"]
    await journal._writer.operate(room(1_000_000))
    await journal.record(large[0])
    assert states(path) == ["submitting"] * 2


async def test_one_that_cannot_be_opened_leaves_nothing_open(path: Path) -> None:
    with pytest.raises(JournalError):
        async with SqliteJournal(path.parent):
            raise AssertionError
    gc.collect()  # would warn


def test_nonsense_for_a_path_is_one_error() -> None:
    with pytest.raises(TypeError):
        SqliteJournal(3)  # type: ignore[arg-type]
    gc.collect()


DIE_INSIDE = """
import os, signal, sys
from pathlib import Path
from flux_klein_async.journal.base import Reservation
from tests.journal.helpers import Run, entry

path, statement = sys.argv[1:]
run = Run(Path(path))
run.submit()

def die(text):
    if text.startswith(statement):
        os.kill(os.getpid(), signal.SIGKILL)

run.database.db.set_trace_callback(die)
run.write(entry("completed", request_id="r-k", cost_usd=0.01, answer=b"{}"))
"""


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("BEGIN", "submitted"),
        ("UPDATE requests", "submitted"),
        ("UPDATE accounts", "submitted"),
        ("COMMIT", "submitted"),
        ("never", "completed"),
    ],
)
def test_one_that_dies_inside_a_transaction_leaves_none_of_it(path: Path, statement: str, expected: str) -> None:
    process = subprocess.run([sys.executable, "-c", DIE_INSIDE, str(path), statement], check=False)
    assert process.returncode == (0 if expected == "completed" else -signal.SIGKILL)
    run = Run(path)
    assert request(run.database)["state"] == expected
    check(path, run.database.db)
    assert run.claim().action is (Action.RECALL if expected == "completed" else Action.RESUME)
    run.close()


DIE_WHILE_MAKING = """
import os, signal, sys
from pathlib import Path
from flux_klein_async.journal import database
from tests.journal.helpers import Run

path, where = sys.argv[1:]
if where == "before":
    database._into_place = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
else:
    database._sync_directory = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Run(Path(path))
"""


@pytest.mark.parametrize("where", ["before", "after"])
def test_one_that_dies_while_it_makes_the_file_leaves_a_whole_one_or_none(path: Path, where: str) -> None:
    process = subprocess.run([sys.executable, "-c", DIE_WHILE_MAKING, str(path), where], check=False)
    assert process.returncode == -signal.SIGKILL
    assert path.exists() == (where == "after")
    run = Run(path)
    assert requests(run.database) == []
    run.close()
    assert [found.name for found in path.parent.iterdir()] == [path.name]


WRITE_ON = """
import asyncio, itertools, sys
from flux_klein_async.journal.sqlite import SqliteJournal
from tests.journal.helpers import entry

async def main():
    journal = SqliteJournal(sys.argv[1])

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


@pytest.mark.parametrize("lines", [1, 20, 57, 130, 333])
def test_what_was_recorded_is_there_whenever_the_process_is_killed(path: Path, lines: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITE_ON, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline().split() for _ in range(lines)]
    process.kill()
    told += [line.split() for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait()
    run = Run(path)
    found = {facts["key"]: facts["request_id"] for facts in requests(run.database)}
    assert {key for _, key in told} <= set(found)
    assert {key: f"r-{key}" for what, key in told if what == "id"}.items() <= found.items()
    check(path, run.database.db)
    run.close()
