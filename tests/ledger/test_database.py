"""The open file: transactions, runs, accounts."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from flux_klein_async.errors import JournalError
from flux_klein_async.ledger import database as module
from flux_klein_async.ledger.database import Database

from .helpers import Run, entry, order, orders


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
    assert [facts["state"] for facts in orders(living.database)] == ["submitting", "submitted"]
    one.close()
    start()
    assert [facts["state"] for facts in orders(living.database)] == ["uncertain", "submitted"]
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

    monkeypatch.setattr(module, "connect", fail)
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
    assert order(run.database)["key"] == "k"


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
