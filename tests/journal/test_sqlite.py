"""A journal in a file: made whole, opened at once, durable when `record` returns, and shared by processes.

A process that is killed at any time leaves a file with everything that it recorded and nothing by halves.
"""

import asyncio
import errno
import gc
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_asyncio

from flux_klein_async.errors import ConfigurationError, JournalError
from flux_klein_async.journal import sqlite
from flux_klein_async.journal.base import AccountJournal, ItemJournal
from flux_klein_async.journal.sql import VERSION
from flux_klein_async.journal.sqlite import (
    APPLICATION_ID,
    Lease,
    SqliteJournal,
    SqliteLocation,
    SqliteStore,
    connect,
    is_alive,
    to_error,
)
from flux_klein_async.journal.states import Action

from .helpers import Run, content, entry, files, states


@pytest.fixture
def location(path: Path) -> SqliteLocation:
    return SqliteLocation(path)


@pytest_asyncio.fixture
async def journal(path: Path) -> AsyncIterator[SqliteJournal]:
    async with SqliteJournal(path, clock=lambda: 1000.0) as journal:
        yield journal


# --- errors


@pytest.mark.parametrize(
    ("says", "codes", "numbers"),
    [
        (
            "close it, or give each a journal of its own",
            [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_BUSY_SNAPSHOT],
            [],
        ),
        ("make room, then go on with the same journal", [sqlite3.SQLITE_FULL], [errno.ENOSPC, errno.EDQUOT]),
        (
            "make the file and its directory writable",
            [sqlite3.SQLITE_READONLY, sqlite3.SQLITE_READONLY_DBMOVED, sqlite3.SQLITE_CANTOPEN],
            [errno.EACCES, errno.EPERM, errno.EROFS],
        ),
        ("is damaged: keep the file", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB], []),
        ("check the disk", [sqlite3.SQLITE_IOERR_FSYNC], [errno.EIO]),
        (
            "without working locks, .*: name a journal on a local disk",
            [
                sqlite3.SQLITE_PROTOCOL,
                sqlite3.SQLITE_IOERR_LOCK,
                sqlite3.SQLITE_IOERR_RDLOCK,
                sqlite3.SQLITE_IOERR_UNLOCK,
                sqlite3.SQLITE_IOERR_SHMMAP,
                sqlite3.SQLITE_IOERR_SHMLOCK,
            ],
            [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS],
        ),
        ("its directory does not exist", [], [errno.ENOENT, errno.ENOTDIR]),
        ("ulimit", [], [errno.EMFILE, errno.ENFILE]),
        ("cannot be used", [sqlite3.SQLITE_ERROR], [errno.ELOOP]),
    ],
)
def test_an_error_of_sqlite_or_the_system_becomes_advice(says: str, codes: list[int], numbers: list[int]) -> None:
    for code in codes:
        error = sqlite3.OperationalError("as SQLite says it")
        error.sqlite_errorcode = code
        assert re.search(
            f"^The journal x .*{says}.*: OperationalError: as SQLite says it$", str(to_error(Path("x"), error))
        )
    for number in numbers:
        text = str(to_error(Path("x"), OSError(number, "as the system says it")))
        assert re.search(f"^The journal x .*{says}.*: as the system says it$", text)


def test_an_error_without_a_code_is_named() -> None:
    for error, says in (
        (OSError("odd"), "cannot be used: OSError"),
        (sqlite3.InterfaceError("odd"), "cannot be used: InterfaceError: odd"),
        (ValueError("odd"), "is damaged: .*: ValueError: odd"),
    ):
        assert re.fullmatch(f"The journal x {says}", str(to_error(Path("x"), error)))


# --- the file


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
    monkeypatch.setattr(SqliteStore, "upgrade", lambda _: ["CREATE TABLE settings (name, value)", "NONSENSE"])
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
        (_newer, rf"newer version .* \(its format is {VERSION + 1}, known here is {VERSION}\): update the package"),
    ],
)
async def test_what_is_not_a_journal_of_this_version_is_left_as_it_is(
    path: Path, make: Callable[[Path], object], says: str
) -> None:
    make(path)
    before = content(path)
    assert re.search(says, await refused(path))
    assert (content(path), files(path)) == (before, ["run.sqlite"])


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


def test_the_number_of_a_run_is_never_given_twice(start: Callable[[], Run]) -> None:
    runs = []
    for _ in range(3):
        runs.append(start())
        runs[-1].close()
    assert len({run.store.run for run in runs}) == 3
    assert not start().store.is_alive(runs[0].store.run, 1)


async def test_a_run_that_ended_is_known_by_its_mark_in_its_own_journal_alone(path: Path, tmp_path: Path) -> None:
    async with SqliteJournal(path) as journal:
        ended = await journal.run_mark()
        assert re.fullmatch("[0-9a-f]{12}-[0-9a-f]{16}", ended)
        assert await journal.for_account("token").run_mark() == ended
        assert await journal.ended_runs([ended]) == set()
    (tmp_path / "copy").mkdir()
    copied = shutil.copy(path, tmp_path / "copy")
    async with SqliteJournal(path) as journal, SqliteJournal(copied) as copy:
        marks = [ended, await journal.run_mark(), await copy.run_mark(), "odd", ""]
        assert await journal.ended_runs(marks) == {ended}
        assert await copy.ended_runs(marks) == set()


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


async def test_each_service_has_its_own_account_however_its_address_is_spelt(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    spellings = ["https://model-api.runcomfy.net", "HTTPS://Model-API.runcomfy.net.:443/v1/", None]
    others = ["https://model-api-int.runcomfy.net", "http://127.0.0.1:1", "http://127.0.0.1:2", "https://a.b/c"]
    await journal.for_account("token").record(entry("completed", request_id="r", cost_usd=0.01))
    assert [(await journal.for_account("token", url).spent()).usd for url in spellings] == [0.01] * 3
    assert [(await journal.for_account("token", url).spent()).usd for url in others] == [0.0] * 4
    monkeypatch.setenv("RUNCOMFY_MODEL_API_BASE", "https://a.b")
    assert (await journal.for_account("token").spent()).usd == 0.0
    with pytest.raises(ConfigurationError):
        journal.for_account("token", "no address")


async def test_a_journal_that_is_used_through_a_link_is_the_same(journal: SqliteJournal, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link.sqlite"
    link.symlink_to(journal.path)
    async with SqliteJournal(link) as other:
        await other.items().claim("a/b", b"{}", None)
        assert (await journal.items().claim("a/b", b"{}", None)).action is Action.CLAIMED


# --- errors while in use


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


@contextmanager
def unprivileged(path: Path, folder_mode: int, file_mode: int) -> Iterator[None]:
    """As a user who is not root, and to whom these modes apply."""
    user = os.geteuid()
    path.chmod(file_mode)
    path.parent.chmod(folder_mode)
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)
        path.parent.chmod(0o777)
        path.chmod(0o666)


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o555, 0o666), (0o555, 0o444), (0o777, 0o444), (0o777, 0o000)])
async def test_what_cannot_be_written_is_an_error_that_says_what_to_do(folder_mode: int, file_mode: int) -> None:
    with TemporaryDirectory() as name:  # pytest's own directories are closed to other users
        path = Path(name, "run.sqlite")
        Run(path).close()
        before = content(path)
        with unprivileged(path, folder_mode, file_mode):
            assert "make the file and its directory writable" in await refused(path)
        assert (content(path), files(path)) == (before, ["run.sqlite"])


async def test_a_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert "make it, or name another journal" in await refused(tmp_path / "none" / "run.sqlite")
    assert files(tmp_path / "x") == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("call", ["flock", "lockf"])
@pytest.mark.parametrize("made", [False, True])
async def test_a_file_system_without_locks_is_named_and_nothing_is_left_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, made: bool
) -> None:
    """A network file system may lack the locks of both kinds, or of one."""
    if made:
        Run(path).close()
        path.with_name(f"{path.name}-0123456789abcdef.lock").touch()  # of a run on a better day
    before = files(path)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"fcntl.{call}", refuse)
    descriptors = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    text = await refused(path)
    assert "is on a file system without working locks, as network and shared folders often are" in text
    assert f"name a journal on a local disk: {os.strerror(number)}" in text
    with pytest.raises(OSError):
        is_alive(path, "0123456789abcdef") if made else Lease.take(path)
    assert files(path) == before
    assert set(os.listdir("/proc/self/fd")) <= descriptors  # noqa: PTH208


@pytest.mark.parametrize("error", [BlockingIOError, PermissionError])
def test_a_file_system_whose_locks_of_both_kinds_are_one_has_locks(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    monkeypatch.setattr("fcntl.lockf", lambda *_: (_ for _ in ()).throw(error))
    run = Run(path)
    assert is_alive(path, run.store._lease.run)
    run.close()


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
    _foreign(path.with_name("theirs"))
    with closing(sqlite3.connect(path.with_name("theirs"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "is locked" in await refused(path.with_name("theirs"))
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


@pytest.mark.parametrize("answer", ["{}", 5, 1.5])
def test_a_recorded_answer_that_is_none_is_asked_for_again(run: Run, answer: object) -> None:
    claim = run.submit("a")
    run.write(entry("completed", request_id="r-a", answer=b"{}"))
    run.store.execute("UPDATE requests SET answer = ?", (answer,))
    run.store.release(claim)
    claim = run.claim()
    assert (claim.action, claim.request_id, claim.answer) == (Action.RECALL, "r-a", None)
