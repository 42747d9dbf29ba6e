"""What a user reads when the file of a journal fails.

A journal's file is opened so that commits are durable and no lock is lost.

The file: made whole, recognized, migrated, checked; what is none of ours is left as it is.

The open file: transactions, runs, accounts.

A file that was damaged anywhere gives the right answer or a JournalError: nothing is paid twice for it.
"""

import errno
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.errors import InvalidInputError, JournalError
from flux_klein_async.journal import database
from flux_klein_async.journal.base import Action, Claim, Reservation
from flux_klein_async.journal.database import (
    APPLICATION_ID,
    STEPS,
    Database,
    check,
    connect,
    damaged,
    header,
    make,
    migrate,
    recognize,
    salt_of,
    trouble,
)
from flux_klein_async.journal.reader import JournalReader
from flux_klein_async.models import SavedFile

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


def test_damage_is_named_shortly() -> None:
    text = str(damaged(PATH, ["page 3 is never used", "x" * 1000]))
    assert "is damaged" in text
    assert "page 3 is never used; xxx" in text
    assert len(text) < 500


def test_a_commit_is_on_the_disk_when_it_returns(run: Run) -> None:
    names = ("synchronous", "fullfsync", "journal_mode", "temp_store")
    pragmas = {name: run.database.db.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
    assert pragmas == {"synchronous": 2, "fullfsync": 1, "journal_mode": "wal", "temp_store": 1}


def test_a_connection_that_cannot_be_set_up_is_closed(path: Path) -> None:
    path.write_bytes(b"nonsense" * 1000)
    with pytest.raises(sqlite3.DatabaseError):
        connect(path)
    assert header(path) == (b"nonsense" * 13)[:100]
    with pytest.raises(FileNotFoundError):
        connect(path.with_name("none"))
    assert not path.with_name("none").exists()


def test_a_header_is_read_only_while_this_process_has_no_connection(start: Callable[[], Run], path: Path) -> None:
    one, other = start(), start()
    assert header(path) is None
    one.close()
    one.close()
    assert header(path) is None
    other.close()
    found = header(path)
    assert found is not None
    assert found.startswith(b"SQLite format 3")


LOCKED = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    # The byte range in which connections share a lock: https://www.sqlite.org/fileformat2.html, "the lock-byte page"
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000000 + 2)
    except OSError:
        sys.exit(3)
"""


def locked(path: Path) -> bool:
    """Whether another process sees a connection's lock on the file."""
    return subprocess.run([sys.executable, "-c", LOCKED, str(path)], check=False).returncode == 3


def test_who_opens_a_file_again_takes_no_lock_from_those_who_have_it(start: Callable[[], Run], path: Path) -> None:
    run = start()
    run.write(entry("submitting", key="k"))
    assert locked(path)
    start().close()
    JournalReader(path).__exit__()
    assert locked(path)
    run.close()
    assert not locked(path)


RUN = "0123456789abcdef"


@pytest.fixture
def made(path: Path) -> Path:
    make(path, RUN)
    return path


def test_a_file_is_made_whole_and_nothing_is_left_beside_it(made: Path) -> None:
    assert [found.name for found in made.parent.iterdir()] == [made.name]
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert recognize(made)
    db = sqlite3.connect(made)
    assert [
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version", "journal_mode")
    ] == [
        APPLICATION_ID,
        len(STEPS),
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
        assert recognize(path)
        assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_one_that_could_not_be_made_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "STEPS", (("CREATE TABLE facts (name, value, digest)", "NONSENSE"),))
    with pytest.raises(sqlite3.Error):
        make(path, RUN)
    assert list(path.parent.iterdir()) == []


def test_a_file_that_is_not_there_is_none(path: Path) -> None:
    assert not recognize(path)


def foreign_database(path: Path, application_id: int = 0) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (a)")
    db.execute(f"PRAGMA application_id = {application_id}")
    db.close()


def newer(path: Path) -> None:
    make(path, RUN)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
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
        recognize(path)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert before is None or path.read_bytes() == before


def open_made(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def test_a_newer_version_is_refused_even_where_its_header_does_not_tell(made: Path) -> None:
    db = open_made(made)
    db.execute("PRAGMA user_version = 9")  # in the WAL, not in the file
    with pytest.raises(JournalError, match="newer version"):
        migrate(made, db, lambda _: False)
    db.close()


def test_an_earlier_version_is_brought_up_to_this_one(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = open_made(made)
    db.execute("INSERT INTO requests (account, state, run, created, updated) VALUES (1, 'failed', 1, 0, 0)")
    db.execute("INSERT INTO runs (name, began) VALUES ('dead', 0)")
    added = ("ALTER TABLE requests ADD COLUMN note TEXT",)
    monkeypatch.setattr(database, "STEPS", (*STEPS, added, ("UPDATE requests SET note = 'new'",)))
    with pytest.raises(JournalError, match="used by an earlier version"):
        migrate(made, db, lambda _: True)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    for _ in range(2):
        migrate(made, db, lambda _: False)
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        assert db.execute("SELECT state, note FROM requests").fetchall() == [("failed", "new")]
    db.close()


def test_a_journal_of_version_1_is_still_understood(path: Path) -> None:
    sql = Path(__file__).with_name("version_1.sql").read_text()
    assert [statement for statement in STEPS[0] if statement not in sql] == [], "a step that was released is changed"
    db = sqlite3.connect(path)
    db.executescript(sql)
    db.close()
    run = Run(path)
    claims = [
        run.claim(b'{"prompt": "%d"}' % number, item_id)
        for number, item_id in enumerate((None, "row 2", "row 3", "row 4"))
    ]
    assert [claim.action.value for claim in claims] == ["keep", "take up", "uncertain", "uncertain"]
    assert (claims[0].answer, claims[0].files[0].size, claims[1].request_id) == (b'{"a": 1}', 3, "r1")
    assert run.database.db.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
    run.close()


def test_a_migration_that_fails_changes_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = open_made(made)
    monkeypatch.setattr(database, "STEPS", (*STEPS, ("ALTER TABLE requests ADD COLUMN note TEXT", "NONSENSE")))
    with pytest.raises(sqlite3.Error):
        migrate(made, db, lambda _: False)
    assert "note" not in [row[1] for row in db.execute("PRAGMA table_info (requests)")]
    db.close()


def test_another_process_may_have_migrated_meanwhile(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db, other = open_made(made), open_made(made)
    monkeypatch.setattr(database, "STEPS", (*STEPS, ("ALTER TABLE requests ADD COLUMN note TEXT",)))
    db.set_trace_callback(lambda text: migrate(made, other, lambda _: False) if text == "BEGIN IMMEDIATE" else None)
    migrate(made, db, lambda _: False)
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    db.close()
    other.close()


def test_a_sound_file_passes_its_check(made: Path) -> None:
    db = open_made(made)
    check(made, db)
    assert len(salt_of(made, db)) == 24
    db.close()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE accounts SET settled = 6", r"account without a name: 6\+7, not 5\+7"),
        ("UPDATE requests SET cost = 4 WHERE state = 'completed'", r"5\+7, not 4\+7"),
        ("UPDATE requests SET state = 'refused' WHERE state = 'uncertain'", r"5\+7, not 5\+0"),
    ],
)
def test_totals_that_contradict_the_orders_are_damage(made: Path, damage: str, says: str) -> None:
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


@pytest.mark.parametrize(
    "damage",
    ["UPDATE facts SET value = x'00'", "UPDATE facts SET value = 'text'", "DELETE FROM facts"],
)
def test_a_damaged_salt_is_not_taken_for_another_account(made: Path, damage: str) -> None:
    db = open_made(made)
    db.execute(damage)
    with pytest.raises(JournalError, match="the salt"):
        salt_of(made, db)
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
    db = sqlite3.connect(path)
    db.execute("UPDATE facts SET value = x'00'")
    db.commit()
    db.close()
    with pytest.raises(JournalError, match="the salt"):
        Run(path)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError

    monkeypatch.setattr(database, "connect", fail)
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


FILE = SavedFile(path=Path("/out/r.png"), sha256="ab", size=3)
PRICE = Reservation(usd=0.01, max_usd=9.0)
ENDS = ["submitting", "refused", "uncertain", "submitted", "completed", "downloaded", "failed", "cancelled"]
COUNT = 24
PAGE = 4096
LENGTH = 90_000  # of the file, at least


class Content(bytes):
    """Bytes that are not shown when a test fails."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


def body(number: int) -> bytes:
    return b'{"prompt": "%d %s"}' % (number, b"x" * (number * 60))


def item_id(number: int) -> str | None:
    return f"item {number}" if number % 2 else None


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> "Content":
    """A journal's file with requests of all kinds."""
    path = tmp_path_factory.mktemp("sound") / "run.sqlite"
    run = Run(path)
    for number in range(COUNT):
        claimed = run.claim(body(number), item_id(number))
        key, end = f"key {number}", ENDS[number % len(ENDS)]
        run.write(entry("submitting", key=key, item=claimed.item, body=body(number), reservation=PRICE))
        if end == "submitting":
            continue
        if end in {"refused", "uncertain"}:
            run.write(entry(end, key=key, error="why"))
            continue
        request_id = f"request {number}"
        run.write(entry("submitted", key=key, request_id=request_id))
        if end in {"completed", "downloaded"}:
            answer = b'{"a": "%s"}' % (b"y" * number * 100)
            run.write(entry("completed", request_id=request_id, cost_usd=0.004, answer=answer))
        run.write(entry(end, request_id=request_id, files=(FILE,) if end == "downloaded" else ()))
    run.close()
    content = path.read_bytes()
    assert len(content) >= LENGTH
    return Content(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


class Polled:
    """What a journal's file says, item by item; None where it says that it is damaged."""

    def __init__(self, folder: Path, content: bytes) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        path = folder / "run.sqlite"
        path.write_bytes(content)
        self.claims: list[Claim | None] = [None] * COUNT
        self.spent: list[tuple[int, int]] | None = None
        try:
            run = Run(path)
        except (JournalError, OSError, sqlite3.Error, ValueError) as error:
            self.told = [error if isinstance(error, JournalError) else trouble(path, error)]
            return
        self.told = []
        try:
            self._poll(run)
        finally:
            run.close()

    def _poll(self, run: Run) -> None:
        for number in range(COUNT):
            try:
                self.claims[number] = run.claim(body(number), item_id(number))
            except InvalidInputError:  # the input is as it was
                raise
            except (JournalError, sqlite3.Error, ValueError) as error:
                self.told.append(trouble(run.database.path, error))
        try:
            self.spent = run.database.db.execute("SELECT settled, held FROM accounts").fetchall()
        except sqlite3.Error as error:
            self.told.append(trouble(run.database.path, error))


def agrees(found: Claim | None, right: Claim | None) -> bool:
    """The same, or nothing, or so much that the rest can be had again from the service."""
    if found is None or right is None or found == right:
        return True
    again = Claim(item=right.item, action=Action.RECALL, request_id=right.request_id)
    # The text of an error decides nothing, and so nothing guards it.
    text = (found.item, found.action, found.request_id) == (right.item, right.action, right.request_id)
    return (right.action is Action.RECALL and found == again) or (text and found.error != right.error)


@pytest.fixture(scope="module")
def right(sound: Content, folder: Path) -> Polled:
    polled = Polled(folder, sound)
    assert polled.told == []
    assert {claim.action for claim in polled.claims if claim} == set(Action) - {Action.CLAIMED}
    return polled


def judge(polled: Polled, right: Polled) -> None:
    for found, wanted in zip(polled.claims, right.claims, strict=True):
        assert agrees(found, wanted), (found, wanted)
    assert polled.spent in (None, right.spent)


@given(place=st.integers(0, LENGTH - 1), change=st.integers(1, 255))
def test_a_byte_that_changed(sound: Content, right: Polled, folder: Path, place: int, change: int) -> None:
    content = bytearray(sound)
    content[place] ^= change
    judge(Polled(folder, bytes(content)), right)


@pytest.mark.parametrize("name", [b"id:item 5", b"id:item 21", b"key 13", b"request 12"])
def test_what_stands_in_table_and_index_is_damaged_in_neither(
    sound: Content, right: Polled, folder: Path, name: bytes
) -> None:
    places = [place for place in range(len(sound)) if sound.startswith(name, place)]
    assert len(places) >= 2
    for place in places:
        content = bytearray(sound)
        content[place + len(name) - 1] ^= 1
        polled = Polled(folder, bytes(content))
        judge(polled, right)
        assert polled.told


@given(length=st.integers(0, LENGTH))
def test_a_file_that_was_cut_off(sound: Content, right: Polled, folder: Path, length: int) -> None:
    polled = Polled(folder, sound[:length])
    judge(polled, right)
    assert polled.told or length > len(sound) - PAGE, "the last page may have nothing at its end"


@pytest.mark.parametrize("length", [0, 1, 99, 100, 4096, 8192])
def test_a_file_that_was_cut_off_at_an_edge(sound: Content, right: Polled, folder: Path, length: int) -> None:
    assert Polled(folder, sound[:length]).told


@given(st.binary(max_size=5000))
def test_anything_else_is_no_journal(folder: Path, sound: Content, content: bytes) -> None:
    assert Polled(folder, content).told
