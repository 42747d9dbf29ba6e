"""The file of a journal: made whole, opened at once, checked when asked; a foreign file is left as it is."""

import errno
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from flux_klein_async.errors import JournalError
from flux_klein_async.journal import database
from flux_klein_async.journal.database import APPLICATION_ID, VERSION, Database, check, connect, make, trouble
from flux_klein_async.journal.reader import JournalReader

from .helpers import Run, entry, request, requests

PATH = Path("run.sqlite")


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (sqlite3.SQLITE_BUSY, "close it, or give each a journal of its own"),
        (sqlite3.SQLITE_LOCKED, "close it, or give each a journal of its own"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "close it, or give each a journal of its own"),
        (sqlite3.SQLITE_FULL, "make room, then go on with the same journal"),
        (sqlite3.SQLITE_READONLY, "make the file and its directory writable"),
        (sqlite3.SQLITE_READONLY_DBMOVED, "make the file and its directory writable"),
        (sqlite3.SQLITE_CANTOPEN, "make the file and its directory writable"),
        (sqlite3.SQLITE_CORRUPT, "is damaged: keep the file"),
        (sqlite3.SQLITE_NOTADB, "is damaged: keep the file"),
        (sqlite3.SQLITE_IOERR_FSYNC, "check the disk"),
        (sqlite3.SQLITE_ERROR, "cannot be used"),
    ],
)
def test_what_sqlite_reports_becomes_advice(code: int, advice: str) -> None:
    text = str(trouble(PATH, sqlite_error(code)))
    assert text.startswith("The journal run.sqlite ")
    assert advice in text
    assert text.endswith(": OperationalError: as SQLite says it")


def test_an_error_without_a_code_is_told_as_it_is() -> None:
    assert str(trouble(PATH, sqlite3.InterfaceError("odd"))) == (
        "The journal run.sqlite cannot be used: InterfaceError: odd"
    )


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "make the file and its directory writable"),
        (errno.EROFS, "make the file and its directory writable"),
        (errno.ENOSPC, "make room"),
        (errno.EIO, "check the disk"),
        (errno.ENOENT, "its directory is not there"),
        (errno.ENOTDIR, "its directory is not there"),
        (errno.EMFILE, "ulimit"),
        (errno.ELOOP, "cannot be used"),
    ],
)
def test_the_systems_own_errors_become_advice(number: int, advice: str) -> None:
    text = str(trouble(PATH, OSError(number, os.strerror(number))))
    assert text.startswith("The journal run.sqlite ")
    assert advice in text
    assert text.endswith(f": {os.strerror(number)}")


def test_an_error_of_the_system_without_a_number_is_told_as_it_is() -> None:
    assert str(trouble(PATH, OSError("odd"))) == "The journal run.sqlite cannot be used: OSError"


def test_what_cannot_be_understood_is_damage() -> None:
    assert "is damaged" in str(trouble(PATH, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd")))


def test_a_commit_is_on_the_disk_when_it_returns(run: Run) -> None:
    names = ("synchronous", "fullfsync", "journal_mode", "temp_store")
    pragmas = {name: run.database.db.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
    assert pragmas == {"synchronous": 2, "fullfsync": 1, "journal_mode": "wal", "temp_store": 1}


RUN = "0123456789abcdef"


@pytest.fixture
def made(path: Path) -> Path:
    make(path, RUN)
    return path


def test_a_file_is_made_whole_and_nothing_is_left_beside_it(made: Path) -> None:
    assert [found.name for found in made.parent.iterdir()] == [made.name]
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    db = sqlite3.connect(made)
    assert [
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version", "journal_mode")
    ] == [
        APPLICATION_ID,
        VERSION,
        "wal",
    ]
    db.close()


def test_a_file_that_another_process_made_first_stays(made: Path) -> None:
    before = made.read_bytes()
    make(made, RUN)
    assert made.read_bytes() == before
    assert [found.name for found in made.parent.iterdir()] == [made.name]


def _without_links(*_: object) -> None:
    raise OSError


def test_where_there_are_no_links_it_is_renamed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database.os, "link", _without_links)
    for _ in range(2):
        make(path, RUN)
        assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_one_that_could_not_be_made_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_SCHEMA", ("CREATE TABLE facts (name, value)", "NONSENSE"))
    with pytest.raises(sqlite3.Error):
        make(path, RUN)
    assert list(path.parent.iterdir()) == []


def test_a_file_that_is_not_there_is_none_and_is_not_made(path: Path) -> None:
    assert connect(path) is None
    assert not path.exists()


def foreign_database(path: Path, application_id: int = 0) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (a)")
    db.execute(f"PRAGMA application_id = {application_id}")
    db.close()


def newer(path: Path) -> None:
    make(path, RUN)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()


STRANGERS = [
    (lambda path: path.mkdir(), "is a directory"),
    (lambda path: path.touch(), "is empty"),
    (lambda path: path.write_bytes(b"{}"), "is no journal"),
    (lambda path: path.write_bytes(b"prompt,width\n" * 1000), "is no journal"),
    (lambda path: path.write_bytes(b"SQLite format 3\x00"), "is no journal"),
    (foreign_database, "is no journal"),
    (lambda path: foreign_database(path, 0x0F055112), "is no journal"),
    (newer, r"newer version .* \(its format is 2, known here is 1\): update the package"),
]


@pytest.mark.parametrize(("stranger", "says"), STRANGERS)
def test_what_is_no_journal_of_this_version_is_refused_and_left_as_it_is(
    path: Path, stranger: Callable[[Path], object], says: str
) -> None:
    stranger(path)
    before = None if path.is_dir() else path.read_bytes()
    with pytest.raises(JournalError, match=says):
        connect(path)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert before is None or path.read_bytes() == before


def open_made(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def test_a_sound_file_passes_its_check(made: Path) -> None:
    db = open_made(made)
    check(made, db)
    db.close()


def test_opening_checks_nothing_and_the_check_finds_the_damage(path: Path) -> None:
    Run(path).close()
    db = open_made(path)
    db.execute("INSERT INTO accounts (id, name, settled) VALUES (7, 'x', 5)")
    db.close()
    Run(path).close()
    with JournalReader(path) as reader, pytest.raises(JournalError, match=r"is damaged.*account x: 5\+0, not 0\+0"):
        reader.check()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE accounts SET settled = 6", r"account without a name: 6\+7, not 5\+7"),
        ("UPDATE requests SET cost = 4 WHERE state = 'completed'", r"5\+7, not 4\+7"),
        ("UPDATE requests SET state = 'refused' WHERE state = 'uncertain'", r"5\+7, not 5\+0"),
    ],
)
def test_totals_that_contradict_the_requests_are_damage(made: Path, damage: str, says: str) -> None:
    db = open_made(made)
    db.execute("INSERT INTO accounts (id, name, settled, held) VALUES (1, '', 5, 7)")
    for state, cost in (("completed", 5), ("uncertain", None), ("cancelled", None)):
        db.execute(
            "INSERT INTO requests (account, state, run, created, updated, cost, reserved) VALUES (1, ?, 1, 0, 0, ?, 7)",
            (state, cost),
        )
    check(made, db)
    db.execute(damage)
    with pytest.raises(JournalError, match=says):
        check(made, db)
    db.close()


def test_a_transaction_that_fails_leaves_nothing(run: Run) -> None:
    with pytest.raises(KeyError), run.database.writing():
        run.database.account("token")
        raise KeyError
    assert run.database.db.execute("SELECT count(*) FROM accounts").fetchone() == (0,)
    with run.database.writing():
        assert run.database.account("token") == run.database.account("token")
    assert run.database.db.execute("SELECT count(*) FROM accounts").fetchone() == (1,)


def test_the_next_run_finds_what_a_dead_one_had_on_its_way(start: Callable[[], Run]) -> None:
    one = start()
    one.write(entry("submitting", key="k"), entry("submitting", key="l"), entry("submitted", key="l", request_id="r"))
    living = start()
    assert [facts["state"] for facts in requests(living.database)] == ["submitting", "submitted"]
    one.close()
    start()
    assert [facts["state"] for facts in requests(living.database)] == ["uncertain", "submitted"]
    assert living.database.db.execute("SELECT count(*) FROM runs").fetchone() == (2,)


def test_a_run_number_is_never_given_twice(start: Callable[[], Run]) -> None:
    numbers = []
    for _ in range(3):
        run = start()
        numbers.append(run.database.run)
        run.close()
    assert len(set(numbers)) == 3
    assert not start().database.is_alive(numbers[0])


def test_a_file_that_fails_to_open_leaves_no_run_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(path).close()

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError

    monkeypatch.setattr(database.Database, "_begin", fail)
    with pytest.raises(sqlite3.OperationalError):
        Run(path)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_is_no_longer_there_is_not_written_to(run: Run, path: Path, how: str) -> None:
    run.write(entry("submitting", key="k"))
    path.rename(path.with_name("elsewhere"))
    if how == "replaced":
        path.touch()
    with pytest.raises(JournalError, match="deleted or replaced"):
        run.write(entry("submitting", key="l"))
    path.with_name("elsewhere").rename(path)
    assert request(run.database)["key"] == "k"


def test_runs_that_use_the_file_through_a_link_know_of_each_other(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link.sqlite"
    link.symlink_to(path)
    one = Database.open(path.resolve(), lambda: 0.0)
    other = Database.open(link.resolve(), lambda: 0.0)
    with other.writing():
        assert other.is_alive(one.run)
    one.close()
    other.close()
