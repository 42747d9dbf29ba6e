"""The file: made whole, recognized, migrated, checked; what is none of ours is left as it is."""

import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from flux_klein_async.errors import JournalError
from flux_klein_async.ledger import schema
from flux_klein_async.ledger.schema import APPLICATION_ID, STEPS, check, make, migrate, recognize, salt_of

from .helpers import Run

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
    monkeypatch.setattr(schema.os, "link", _without_links)
    for _ in range(2):
        make(path, RUN)
        assert recognize(path)
        assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_one_that_could_not_be_made_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "STEPS", (("CREATE TABLE facts (name, value, digest)", "NONSENSE"),))
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
    db.execute("INSERT INTO orders (account, state, run, created, updated) VALUES (1, 'failed', 1, 0, 0)")
    db.execute("INSERT INTO runs (name, began) VALUES ('dead', 0)")
    added = ("ALTER TABLE orders ADD COLUMN note TEXT",)
    monkeypatch.setattr(schema, "STEPS", (*STEPS, added, ("UPDATE orders SET note = 'new'",)))
    with pytest.raises(JournalError, match="used by an earlier version"):
        migrate(made, db, lambda _: True)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    for _ in range(2):
        migrate(made, db, lambda _: False)
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        assert db.execute("SELECT state, note FROM orders").fetchall() == [("failed", "new")]
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
    monkeypatch.setattr(schema, "STEPS", (*STEPS, ("ALTER TABLE orders ADD COLUMN note TEXT", "NONSENSE")))
    with pytest.raises(sqlite3.Error):
        migrate(made, db, lambda _: False)
    assert "note" not in [row[1] for row in db.execute("PRAGMA table_info (orders)")]
    db.close()


def test_another_process_may_have_migrated_meanwhile(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db, other = open_made(made), open_made(made)
    monkeypatch.setattr(schema, "STEPS", (*STEPS, ("ALTER TABLE orders ADD COLUMN note TEXT",)))
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
        ("UPDATE orders SET cost = 4 WHERE state = 'completed'", r"5\+7, not 4\+7"),
        ("UPDATE orders SET state = 'refused' WHERE state = 'uncertain'", r"5\+7, not 5\+0"),
    ],
)
def test_totals_that_contradict_the_orders_are_damage(made: Path, damage: str, says: str) -> None:
    db = open_made(made)
    db.execute("INSERT INTO accounts (id, name, settled, held) VALUES (1, '', 5, 7)")
    for state, cost in (("completed", 5), ("uncertain", None), ("cancelled", None)):
        db.execute(
            "INSERT INTO orders (account, state, run, created, updated, cost, reserved) VALUES (1, ?, 1, 0, 0, ?, 7)",
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
