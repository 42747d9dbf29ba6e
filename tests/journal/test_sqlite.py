"""A journal in a file: made whole, opened at once, durable when `record` returns, and shared by processes.

A process that is killed at any time leaves a file with everything that it recorded and nothing by halves.
"""

import asyncio
import errno
import gc
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from flux_klein_async.errors import JournalError
from flux_klein_async.journal import sqlite
from flux_klein_async.journal.base import AccountJournal, Action, ItemJournal, Reservation
from flux_klein_async.journal.sqlite import APPLICATION_ID, VERSION, SqliteJournal, SqliteStore, connect, to_error
from flux_klein_async.journal.writer import Spending

from .helpers import Run, check, child, content, entry, files, states

# --- errors


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (sqlite_error(sqlite3.SQLITE_BUSY), "close it, or give each a journal of its own"),
        (sqlite_error(sqlite3.SQLITE_LOCKED), "close it, or give each a journal of its own"),
        (sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT), "close it, or give each a journal of its own"),
        (sqlite_error(sqlite3.SQLITE_FULL), "make room, then go on with the same journal"),
        (sqlite_error(sqlite3.SQLITE_READONLY), "make the file and its directory writable"),
        (sqlite_error(sqlite3.SQLITE_READONLY_DBMOVED), "make the file and its directory writable"),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN), "make the file and its directory writable"),
        (sqlite_error(sqlite3.SQLITE_CORRUPT), "is damaged: keep the file"),
        (sqlite_error(sqlite3.SQLITE_NOTADB), "is damaged: keep the file"),
        (sqlite_error(sqlite3.SQLITE_IOERR_FSYNC), "check the disk"),
        (sqlite_error(sqlite3.SQLITE_ERROR), "cannot be used: OperationalError: as SQLite says it"),
        (sqlite3.InterfaceError("odd"), "cannot be used: InterfaceError: odd"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"), "is damaged"),
        (OSError(errno.EACCES, "as the system says it"), "make the file and its directory writable"),
        (OSError(errno.EROFS, "as the system says it"), "make the file and its directory writable"),
        (OSError(errno.ENOSPC, "as the system says it"), "make room"),
        (OSError(errno.EIO, "as the system says it"), "check the disk"),
        (OSError(errno.ENOENT, "as the system says it"), "its directory does not exist"),
        (OSError(errno.ENOTDIR, "as the system says it"), "its directory does not exist"),
        (OSError(errno.EMFILE, "as the system says it"), "ulimit"),
        (OSError(errno.ELOOP, "as the system says it"), "cannot be used: as the system says it"),
        (OSError("odd"), "cannot be used: OSError"),
    ],
    ids=str,
)
def test_an_error_of_sqlite_or_the_system_becomes_advice(error: Exception, says: str) -> None:
    text = str(to_error(Path("run.sqlite"), error))
    assert text.startswith("The journal run.sqlite ")
    assert says in text


# --- the file


async def open_and_close(path: Path) -> None:
    async with SqliteJournal(path):
        pass


def test_a_commit_is_on_the_disk_when_it_returns(run: Run) -> None:
    names = ("synchronous", "fullfsync", "journal_mode", "temp_store", "trusted_schema")
    assert [run.store.execute(f"PRAGMA {name}").fetchone()[0] for name in names] == [2, 1, "wal", 1, 0]


def test_a_file_is_made_whole_and_only_its_owner_can_read_it(path: Path) -> None:
    Run(path).close()
    assert files(path) == ["run.sqlite"]
    assert path.stat().st_mode & 0o777 == 0o600
    with closing(connect(path)) as db:
        names = ("application_id", "user_version", "journal_mode")
        assert [db.execute(f"PRAGMA {name}").fetchone()[0] for name in names] == [APPLICATION_ID, VERSION, "wal"]


@pytest.mark.parametrize("links", [True, False])
def test_two_runs_that_make_the_file_at_once_share_the_first(
    path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(sqlite.os, "link", _fail)

    def not_there(_: Path) -> None:
        monkeypatch.setattr(sqlite, "connect", connect)
        Run(path).close()
        raise FileNotFoundError

    monkeypatch.setattr(sqlite, "connect", not_there)
    run = Run(path)
    assert run.store.run == 2, "the other was the first"
    run.close()
    assert files(path) == ["run.sqlite"]


def _fail(*_: object) -> None:
    raise OSError


def test_a_file_that_could_not_be_made_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqliteStore, "schema", lambda: ["CREATE TABLE settings (name, value)", "NONSENSE"])
    with pytest.raises(sqlite3.Error):
        Run(path)
    assert files(path) == []


def test_an_error_while_opening_leaves_no_run_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(path).close()
    monkeypatch.setattr(SqliteStore, "begin", _fail)
    with pytest.raises(OSError):
        Run(path)
    gc.collect()  # an open connection would warn
    assert files(path) == ["run.sqlite"]


def _foreign(path: Path, application_id: int = 0) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (a)")
        db.execute(f"PRAGMA application_id = {application_id}")


def _newer(path: Path) -> None:
    Run(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.mkdir, "is a directory"),
        (Path.touch, "is not a journal"),
        (lambda path: path.write_bytes(b"{}"), "is not a journal"),
        (lambda path: path.write_bytes(b"prompt,width\n" * 1000), "is not a journal"),
        (lambda path: path.write_bytes(b"SQLite format 3\x00"), "is not a journal"),
        (_foreign, "is not a journal"),
        (lambda path: _foreign(path, 0x0F055112), "is not a journal"),
        (_newer, r"newer version .* \(its format is 2, known here is 1\): update the package"),
    ],
)
async def test_what_is_not_a_journal_of_this_version_is_left_as_it_is(
    path: Path, make: Callable[[Path], object], says: str
) -> None:
    make(path)
    before = content(path / "x" if path.is_dir() else path)
    assert re.search(says, await refused(path))
    assert (content(path / "x" if path.is_dir() else path), files(path)) == (before, ["run.sqlite"])


def test_damage_is_an_error_of_its_own(path: Path) -> None:
    Run(path).close()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3000)
    with pytest.raises(sqlite3.DatabaseError):
        Run(path)
    assert files(path) == ["run.sqlite"]


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_was_deleted_or_replaced_is_not_written_to(run: Run, path: Path, how: str) -> None:
    run.write(entry("submitting", key="k"))
    path.rename(path.with_name("elsewhere"))
    if how == "replaced":
        path.touch()
    with pytest.raises(JournalError, match="deleted or replaced"):
        run.write(entry("submitting", key="l"))
    path.with_name("elsewhere").rename(path)
    assert run.request()["key"] == "k"


def test_a_transaction_that_fails_leaves_nothing(run: Run) -> None:
    with pytest.raises(KeyError), run.store.writing():
        run.store.account("token")
        raise KeyError
    assert run.store.execute("SELECT count(*) FROM accounts").fetchone() == (0,)
    with run.store.writing():
        assert run.store.account("token") == run.store.account("token")
    assert run.store.execute("SELECT count(*) FROM accounts").fetchone() == (1,)


# --- runs


def test_the_next_run_finds_what_a_dead_one_had_under_way(start: Callable[[], Run]) -> None:
    one = start()
    one.write(entry("submitting", key="k"), entry("submitting", key="l"), entry("submitted", key="l", request_id="r"))
    living = start()
    assert living.states() == ["submitting", "submitted"]
    one.close()
    start()
    assert living.states() == ["uncertain", "submitted"]
    assert living.store.execute("SELECT count(*) FROM runs").fetchone() == (2,)


def test_the_number_of_a_run_is_never_given_twice(start: Callable[[], Run]) -> None:
    runs = []
    for _ in range(3):
        runs.append(start())
        runs[-1].close()
    assert len({run.store.run for run in runs}) == 3
    assert not start().store.is_alive(runs[0].store.run)


# --- life


async def test_the_file_is_made_at_the_first_use_and_is_alone_after_the_last(path: Path) -> None:
    journal = SqliteJournal(path)
    assert isinstance(journal, ItemJournal)
    assert isinstance(journal, AccountJournal)
    assert isinstance(journal.for_account("token"), ItemJournal)
    assert files(path) == []
    await journal.record(entry("submitting", key="k"))
    assert states(path) == ["submitting"]
    assert len(files(path)) == 4, "the file, its WAL with an index, and the lock"
    await journal.aclose()
    await journal.aclose()
    assert files(path) == ["run.sqlite"]
    with pytest.raises(JournalError, match="is closed"):
        await journal.record(entry("submitting", key="l"))


async def test_a_journal_that_was_never_used_makes_no_file(path: Path) -> None:
    journal = SqliteJournal(path)
    await journal.aclose()
    assert files(path) == []
    assert repr(journal) == f"SqliteJournal('{path}')"


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
            names.append(await journal._writer.run(lambda store: store.execute("SELECT name FROM accounts").fetchall()))
            assert (await journal.for_account("token").spent()).usd == 0.01
    assert names[0] == names[1] != names[2]


async def test_what_an_account_spent(journal: SqliteJournal) -> None:
    await journal.record(entry("submitting", key="k", reservation=Reservation(usd=0.02, max_usd=1.0)))
    await journal.record(entry("completed", request_id="r", cost_usd=0.01))
    assert await journal.spent() == Spending(settled_usd=0.01, held_usd=0.02)
    assert (await journal.spent()).usd == 0.03
    assert (await journal.for_account("token").spent()).usd == 0.0


async def test_a_renewed_token_takes_over_an_account(journal: SqliteJournal) -> None:
    old, new = journal.for_account("old"), journal.for_account("new")
    await old.record(entry("completed", request_id="r", cost_usd=0.01))
    assert (await old.is_stranger(), await new.is_stranger()) == (False, True)
    assert await new.is_stranger(ignored=("old",)) is False
    await new.take_over(ignored=("old",))
    assert (await new.spent()).usd == 0.0
    await new.take_over()
    assert ((await new.spent()).usd, await new.is_stranger()) == (0.01, False)


async def test_a_preview_claims_nothing(journal: SqliteJournal) -> None:
    item = ("a/b", b"{}", None)
    assert await journal.items().preview(*item) is Action.SUBMIT
    assert (await journal.items().claim(*item)).action is Action.SUBMIT
    assert await journal.items().preview(*item) is Action.CLAIMED


# --- several processes

SPEND = """
import asyncio, sys, time
from pathlib import Path
from flux_klein_async.errors import BudgetExceededError
from flux_klein_async.journal.base import Reservation
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


async def test_a_journal_that_is_used_through_a_link_is_the_same(journal: SqliteJournal, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link.sqlite"
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


# --- errors while in use


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
        asyncio.run(open_and_close(folder / "run.sqlite"))
        (folder / "run.sqlite").chmod(0o666)
        yield folder
        folder.chmod(0o777)


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
    _set_modes(path, folder_mode, file_mode)
    with unprivileged():
        text = await refused(path)
    assert "make the file and its directory writable" in text
    _set_modes(path, 0o777, 0o666)
    assert (content(path), files(path)) == (before, ["run.sqlite"])


def _set_modes(path: Path, folder_mode: int, file_mode: int) -> None:
    path.chmod(file_mode)
    path.parent.chmod(folder_mode)


async def test_a_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert "make it, or name another journal" in await refused(tmp_path / "none" / "run.sqlite")
    assert files(tmp_path / "x") == []


async def test_a_file_that_another_program_holds_for_too_long_is_an_error(
    journal: SqliteJournal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await journal._writer.run(lambda store: store.execute("PRAGMA busy_timeout = 10"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        with pytest.raises(JournalError, match="another program has been writing to it for too long"):
            await journal.record(entry("submitting", key="k"))
    monkeypatch.setattr("flux_klein_async.journal.sqlite.BUSY", 0.01)
    assert "is locked" in await refused(path)
    other.execute("COMMIT")
    other.close()
    await journal.record(entry("submitting", key="k"))
    assert states(path) == ["submitting"]


async def test_a_full_disk_is_an_error_and_the_journal_goes_on_when_there_is_room(
    journal: SqliteJournal, path: Path
) -> None:
    def room(pages: int) -> Callable[[Any], object]:
        return lambda store: store.execute(f"PRAGMA max_page_count = {pages}")

    await journal.record(entry("submitting", key="before"))
    await journal._writer.run(room(1))  # no more than there are
    large = [entry("submitting", key=str(number), body=b"x" * 20_000) for number in range(3)]
    ended = await asyncio.gather(*map(journal.record, large), return_exceptions=True)
    assert {type(one) for one in ended} == {JournalError}
    assert "make room, then go on with the same journal" in str(ended[0])
    assert states(path) == ["submitting"]
    await journal._writer.run(room(1_000_000))
    await journal.record(large[0])
    assert states(path) == ["submitting"] * 2


async def test_a_journal_that_cannot_be_opened_leaves_nothing_open(path: Path) -> None:
    with pytest.raises(JournalError):
        async with SqliteJournal(path.parent):
            raise AssertionError
    gc.collect()  # would warn


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

run.store.db.set_trace_callback(die)
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
def test_a_process_that_dies_inside_a_transaction_leaves_none_of_it(path: Path, statement: str, expected: str) -> None:
    process = subprocess.run([sys.executable, "-c", DIE_INSIDE, str(path), statement], check=False)
    assert process.returncode == (0 if expected == "completed" else -signal.SIGKILL)
    run = Run(path)
    assert run.states() == [expected]
    check(path)
    assert run.claim().action is (Action.RECALL if expected == "completed" else Action.RESUME)
    run.close()


DIE_WHILE_MAKING = """
import os, signal, sys
from pathlib import Path
from tests.journal.helpers import Run

path, where = sys.argv[1:]
link = os.link

def die(*paths):
    if where == "after":
        link(*paths)
    os.kill(os.getpid(), signal.SIGKILL)

os.link = die
Run(Path(path))
"""


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_process_that_dies_while_it_makes_the_file_leaves_a_whole_one_or_none(path: Path, where: str) -> None:
    process = subprocess.run([sys.executable, "-c", DIE_WHILE_MAKING, str(path), where], check=False)
    assert process.returncode == -signal.SIGKILL
    assert path.exists() == (where == "after")
    run = Run(path)
    assert run.requests() == []
    run.close()
    assert files(path) == ["run.sqlite"]


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
    found = {request["key"]: request["request_id"] for request in run.requests()}
    assert {key for _, key in told} <= set(found)
    assert {key: f"r-{key}" for what, key in told if what == "id"}.items() <= found.items()
    check(path)
    run.close()
