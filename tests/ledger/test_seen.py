"""Remembering any number of things."""

import sqlite3
import threading

import pytest

from flux_klein_async.errors import JournalError
from flux_klein_async.ledger.seen import Seen


@pytest.fixture
def seen():
    seen = Seen()
    yield seen
    seen.close()


def test_the_value_before_is_given_back(seen: Seen) -> None:
    assert [seen.add(b"a", 1), seen.add(b"b", b"2"), seen.add(b"a", 3), seen.add(b"a", 4)] == [None, None, 1, 3]
    assert [seen.get(b"a"), seen.get(b"b"), seen.get(b"c")] == [4, b"2", None]


def test_keys_are_bytes_and_nothing_more(seen: Seen) -> None:
    for key in (b"", b"\x00", b"a", b"a\x00", b"A", b"\xff", b"1"):
        assert seen.add(key, 1) is None


def test_it_may_move_from_thread_to_thread(seen: Seen) -> None:
    seen.add(b"a", 1)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(seen.add(b"a", 2)))
    thread.start()
    thread.join()
    assert found == [1]


def test_two_share_nothing(seen: Seen) -> None:
    other = Seen()
    seen.add(b"a", 1)
    assert other.get(b"a") is None
    other.close()


def test_a_full_disk_is_told_with_what_to_do(seen: Seen) -> None:
    pages = seen._database.execute("PRAGMA max_page_count = 10").fetchone()[0]
    with pytest.raises(JournalError, match=r"no room for temporary files; make some.*SQLITE_TMPDIR") as caught:
        for number in range(100 * pages):
            seen.add(b"%1000d" % number, number)
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
