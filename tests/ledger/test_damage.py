"""A file that was damaged anywhere gives the right answer or a JournalError: nothing is paid twice for it."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.errors import InvalidInputError, JournalError
from flux_klein_async.ledger.base import Action, Claim, Reservation
from flux_klein_async.ledger.troubles import trouble
from flux_klein_async.models import SavedFile

from .helpers import Run, entry

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
    """A journal's file with orders of all kinds."""
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


class Looked:
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
            self._look(run)
        finally:
            run.close()

    def _look(self, run: Run) -> None:
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
    again = Claim(item=right.item, action=Action.KEEP, request_id=right.request_id)
    # The text of an error decides nothing, and so nothing guards it.
    text = (found.item, found.action, found.request_id) == (right.item, right.action, right.request_id)
    return (right.action is Action.KEEP and found == again) or (text and found.error != right.error)


@pytest.fixture(scope="module")
def right(sound: Content, folder: Path) -> Looked:
    looked = Looked(folder, sound)
    assert looked.told == []
    assert {claim.action for claim in looked.claims if claim} == set(Action) - {Action.TAKEN}
    return looked


def judge(looked: Looked, right: Looked) -> None:
    for found, wanted in zip(looked.claims, right.claims, strict=True):
        assert agrees(found, wanted), (found, wanted)
    assert looked.spent in (None, right.spent)


@given(place=st.integers(0, LENGTH - 1), change=st.integers(1, 255))
def test_a_byte_that_changed(sound: Content, right: Looked, folder: Path, place: int, change: int) -> None:
    content = bytearray(sound)
    content[place] ^= change
    judge(Looked(folder, bytes(content)), right)


@pytest.mark.parametrize("name", [b"id:item 5", b"id:item 21", b"key 13", b"request 12"])
def test_what_stands_in_table_and_index_is_damaged_in_neither(
    sound: Content, right: Looked, folder: Path, name: bytes
) -> None:
    places = [place for place in range(len(sound)) if sound.startswith(name, place)]
    assert len(places) >= 2
    for place in places:
        content = bytearray(sound)
        content[place + len(name) - 1] ^= 1
        looked = Looked(folder, bytes(content))
        judge(looked, right)
        assert looked.told


@given(length=st.integers(0, LENGTH))
def test_a_file_that_was_cut_off(sound: Content, right: Looked, folder: Path, length: int) -> None:
    looked = Looked(folder, sound[:length])
    judge(looked, right)
    assert looked.told or length > len(sound) - PAGE, "the last page may have nothing at its end"


@pytest.mark.parametrize("length", [0, 1, 99, 100, 4096, 8192])
def test_a_file_that_was_cut_off_at_an_edge(sound: Content, right: Looked, folder: Path, length: int) -> None:
    assert Looked(folder, sound[:length]).told


@given(st.binary(max_size=5000))
def test_anything_else_is_no_journal(folder: Path, sound: Content, content: bytes) -> None:
    assert Looked(folder, content).told
