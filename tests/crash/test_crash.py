"""A batch killed at any instant, and run again until it is done: nothing paid is lost, nothing is paid twice.

Killed by SIGKILL, which no process sees coming: by the emulator as soon as it has heard a call (and, of a submit, taken
it, and not answered yet), or by itself at a place within the journal, a download or the manifest (`victim`).
"""

import json
import multiprocessing
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest
from faulty_batches import PRICE, Accounts, Rules, audit, ends, totals
from faulty_client import accepted_submits

from flux_klein_async.emulator import Emulator
from flux_klein_async.journal.sql import Location
from flux_klein_async.journal.sqlite import SqliteLocation
from tests.crash import victim
from tests.databases import Cluster
from tests.fakes import png
from tests.served import PATIENCE, in_thread, once

pytestmark = pytest.mark.slow

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([victim.__name__])
SEED = 20261124
PROMPTS = [f"picture {number}" for number in range(24)]
STORIES, KILLS = 10, 3
# Per run, the last occurrence at which it is killed: so early that the runs after it have enough left to be killed in.
HEARD = {"submit": 5, "status": 5, "result": 5, "file": 5, "model": 1}
FIRST = {"making": 1, "made": 1}  # of a journal, once
WITHIN = {
    "begin": 8,
    "intent": 5,
    "change": 8,
    "step": 60,
    "commit": 8,
    "committed": 8,
    "half a file": 4,
    "sync": 4,
    "naming": 4,
    "named": 4,
    "half a line": 4,
    "line": 4,
}
AGAIN = Rules(again=frozenset({"repeated", "refused", "cancelled", "uncertain"}))


class Instant(NamedTuple):
    """The `number`-th time that this happens in a run; `heard` by the emulator, or within the process."""

    place: str
    number: int

    @property
    def heard(self) -> bool:
        return self.place in HEARD


def stories() -> list[list[Instant]]:
    """Thirty instants, each place at least once, in stories of three; the same ones each time."""
    rng = random.Random(SEED)
    later = {**HEARD, **WITHIN}
    places = [*later, *rng.choices(list(later), k=STORIES * KILLS - len(later) - len(FIRST))]
    rng.shuffle(places)
    firsts = [*FIRST, *(places.pop() for _ in range(STORIES - len(FIRST)))]
    rng.shuffle(firsts)
    told = [[first, places.pop(), places.pop()] for first in firsts]
    return [[Instant(place, rng.randint(1, {**later, **FIRST}[place])) for place in story] for story in told]


def over(process: BaseProcess) -> int:
    """Wait for its end: its exit code, or the negative number of the signal."""
    process.join(PATIENCE)
    assert process.exitcode is not None
    return process.exitcode


def named(story: list[Instant]) -> str:
    return ", ".join(f"{instant.place} {instant.number}" for instant in story)


class Batch:
    """One folder with a file of prompts, against one emulator."""

    def __init__(self, folder: Path, emulated: Emulator, database: str = "") -> None:
        """`database`: where the journal is, if it is not in a file."""
        self.folder = folder
        self.database = database
        self.emulated = emulated
        self.options: tuple[str, ...] = ()
        self.write({})

    def write(self, fields: dict[str, object]) -> None:
        """Write the file of prompts; each row has these fields too, `{number}` in them is the number of the row."""
        rows = [{"prompt": prompt, "width": 64, "height": 64, **fields} for prompt in PROMPTS]
        text = [json.dumps(row).replace("{number}", str(number)) for number, row in enumerate(rows)]
        (self.folder / "prompts.jsonl").write_text("\n".join(text))

    def killed(self, instant: Instant) -> int:
        """Run it until it is killed; how its process ended."""
        if not instant.heard:
            return over(self.started(instant))
        before, started = self.emulated.calls[instant.place], threading.Event()

        def kill() -> None:
            assert started.wait(PATIENCE)
            process.kill()

        once(self.emulated, lambda: self.emulated.calls[instant.place] >= before + instant.number, kill)
        process = self.started()
        started.set()
        return over(process)

    def ended(self, *options: str) -> tuple[int, str]:
        """Run it to its end: its exit code, and what it told."""
        code = over(self.started(options=options))
        return code, (self.folder / victim.NOTES).read_text()

    def started(self, within: Instant = Instant("", 0), options: tuple[str, ...] = ()) -> BaseProcess:  # noqa: B008  # a constant
        limits = ("--concurrency", "4", "--max-spend", "1")
        arguments = ["batch", "prompts.jsonl", *limits, "--quiet", "--no-report", *self.options, *options]
        arguments += ["--journal", self.database] if self.database else []
        token = {"RUNCOMFY_MODEL_API_BASE": self.emulated.base_url, "RUNCOMFY_API_TOKEN": self.emulated.api_key}
        process = FORKS.Process(target=victim.run, args=(*within, arguments, self.folder, {**os.environ, **token}))
        process.start()
        return process

    def books(self) -> Accounts:
        return Accounts(
            self.database or self.folder / "out" / "journal.sqlite",
            self.folder / "out",
            accepted_submits(self.emulated.records),
            PROMPTS,
            self.emulated.seed,
        )


@pytest.fixture
def batch(tmp_path: Path, new_location: Callable[[], Location], get_cluster: Callable[[], Cluster]) -> Iterator[Batch]:
    in_file = isinstance(new_location(), SqliteLocation)
    with in_thread(Emulator(profile="fixed:0.02")) as emulated:
        yield Batch(tmp_path, emulated, "" if in_file else get_cluster().new_database())


def finish(batch: Batch) -> None:
    """Run it to its end, first with what is uncertain left alone; the books are right after each."""
    code, err = batch.ended()
    books = batch.books()
    assert audit(books, AGAIN) == dict.fromkeys(audit(books, AGAIN), 0), err
    unsure = ends(books.requests)["uncertain"]
    assert ends(books.requests) == Counter({"downloaded": len(PROMPTS) - unsure, "uncertain": unsure}) - Counter()
    assert (code != 0) == (unsure > 0), err
    assert err.count("--resubmit-uncertain") == (unsure > 0)
    if unsure:
        code, err = batch.ended("--resubmit-uncertain")
        assert code == 0, err


def check(batch: Batch) -> None:
    """Every prompt has its picture, and what was paid besides is what the journal calls uncertain."""
    books = batch.books()
    found = audit(books, AGAIN)
    assert found == dict.fromkeys(found, 0)
    assert ends(books.requests) == {"downloaded": len(PROMPTS)}
    unsure = [request for request in books.requests if request.state == "uncertain"]
    known = [request for request in books.requests if request.request_id is not None]
    assert len(known) == len(PROMPTS)
    # The accepted submits are those, and of the uncertain ones those that did get there.
    arrived = {submit.request_id for submit in books.submits} - {request.request_id for request in known}
    assert batch.emulated.accepted == len(books.submits) == len(PROMPTS) + len(arrived)
    assert len(arrived) <= len(unsure)
    polled_at = {record.request_id for record in batch.emulated.records if record.endpoint in {"status", "result"}}
    assert polled_at <= {request.request_id for request in known}, "nobody waits for what is not written down"
    lines = (batch.folder / "out" / "manifest.jsonl").read_text().splitlines()
    assert max(line.count('{"index": ') for line in lines) == 1, "no line goes on where another was broken off"
    assert list((batch.folder / "out").glob(".*.part")) == [], "a later run removes what a killed one left"
    # What the journal knows of was spent; what it calls uncertain is reserved.
    assert totals(books.journal) == (PRICE * len(PROMPTS), PRICE * len(unsure))
    assert round(batch.emulated.spent_usd * 1e9) == PRICE * (len(PROMPTS) + len(arrived))


@pytest.mark.parametrize("story", stories(), ids=named)
def test_a_batch_that_is_killed_at_any_instants_loses_nothing_and_pays_for_nothing_twice(
    batch: Batch, story: list[Instant]
) -> None:
    for instant in story:
        assert batch.killed(instant) == -signal.SIGKILL, f"it was over before {instant}"
    finish(batch)
    check(batch)


def test_a_write_of_the_journal_that_is_cut_short_at_any_byte_is_undone(tmp_path: Path) -> None:
    """Of its file, which a server writes itself."""
    with in_thread(Emulator(profile="fixed:0.02")) as emulated:
        batch = Batch(tmp_path, emulated)
        for size in (20_000, 100_000, 150_000):
            assert batch.killed(Instant("bytes", size)) == -signal.SIGXFSZ
        finish(batch)
        check(batch)


def test_a_batch_of_edits_that_is_killed_goes_on_with_its_files_elsewhere(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit is recognised when its file was moved, and is another item when its content changed."""
    monkeypatch.setattr("faulty_batches.PRICE", 25_000_000)  # of that model, in billionths of a USD
    refs, moved = batch.folder / "refs", batch.folder / "moved"
    refs.mkdir()
    for number in range(len(PROMPTS)):
        (refs / f"{number}.png").write_bytes(png(20_000 + number))
    batch.options = ("--model", "blackforestlabs/flux-2/dev/edit", "--allow-unlisted")  # the rows have sizes
    batch.write({"image_urls": [{"file": "refs/{number}.png"}]})
    assert batch.killed(Instant("status", 5)) == -signal.SIGKILL
    refs.rename(moved)
    batch.write({"image_urls": [{"file": "moved/{number}.png"}]})
    assert batch.killed(Instant("intent", 5)) == -signal.SIGKILL
    finish(batch)
    books = batch.books()
    assert ends(books.requests) == {"downloaded": len(PROMPTS)}
    unsure = sum(request.state == "uncertain" for request in books.requests)
    accepted = batch.emulated.accepted
    assert len(PROMPTS) <= accepted <= len(PROMPTS) + unsure
    (moved / "3.png").write_bytes(png(30_000))
    assert batch.ended()[0] == 0
    assert batch.emulated.accepted == accepted + 1
    kept = b"".join(path.read_bytes() for path in (batch.folder / "out").iterdir() if path.suffix != ".png")
    assert b"base64" not in kept
    assert kept.count(b'"file": "') > 0


def test_the_thirty_instants_are_of_every_kind() -> None:
    instants = [instant for story in stories() for instant in story]
    assert len(instants) == 30
    assert {instant.place for instant in instants} == {*HEARD, *WITHIN, *FIRST}
    assert {*WITHIN, *FIRST, "bytes"} == set(victim.PLACES)
