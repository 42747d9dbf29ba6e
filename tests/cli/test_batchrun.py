"""One run over the rows of a file, in virtual time: what it tells, and how long it waits when it is told to stop."""

import asyncio
import json
import threading
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async import FluxKleinClient
from flux_klein_async.batch.manifest import Manifest, read_manifest
from flux_klein_async.batch.rows import BadRow, Row
from flux_klein_async.cli.batchrun import BatchPlan, BatchRun
from flux_klein_async.cli.exits import ExitCode
from flux_klein_async.cli.feed import Numbered
from flux_klein_async.cli.render import Screen
from flux_klein_async.cli.stopping import Stop
from flux_klein_async.cli.tally import Tally
from flux_klein_async.emulator import Generation, error_reply
from flux_klein_async.models import Outcome
from tests.fakes import now

SMALL = {"width": 64, "height": 64}


def rows(count: int) -> list[Row | BadRow]:
    return [Row(number + 1, None, {"prompt": f"picture {number}", **SMALL}) for number in range(count)]


class Ready:
    """A feed without a thread, for which virtual time would not wait."""

    def __init__(self, found: Iterable[Row | BadRow]) -> None:
        self.count, self.total = 0, None
        self._rows = iter(found)

    def __aiter__(self) -> "Ready":
        return self

    async def __anext__(self) -> Numbered:
        for row in self._rows:
            self.count += 1
            return Numbered(self.count - 1, row)
        raise StopAsyncIteration


class Bench:
    """A run with its surroundings."""

    def __init__(self, client: FluxKleinClient, folder: Any, tally: Tally, *, as_json: bool = False) -> None:
        self.manifest = Manifest(folder / "manifest.jsonl")
        self.stop = Stop(asyncio.current_task())  # type: ignore[arg-type]
        self.tally = tally
        plan = BatchPlan(concurrency=4, directory=None, as_json=as_json)
        self.with_manifest = partial(BatchRun, client, tally, Screen(), plan)
        self.run = self.with_manifest(self.manifest)

    async def through(self, found: Iterable[Row | BadRow]) -> ExitCode:
        with self.manifest:
            return await self.run.through(Ready(found), self.stop)  # type: ignore[arg-type]


@pytest.fixture
def bench(klein_emulator, connect, tmp_path):
    def make(**options: Any) -> Bench:
        tally = Tally()
        return Bench(connect(on_event=tally.note), tmp_path, tally, **options)

    return make


async def test_every_row_ends_in_a_line_and_in_the_manifest(bench, capsys, tmp_path):
    it = bench()
    code = await it.through(rows(5))
    assert (code, it.tally.done, it.tally.total) == (ExitCode.OK, 5, 5)
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert {record["index"] for record in read_manifest(tmp_path / "manifest.jsonl")} == set(range(5))


class Slow(Manifest):
    """A manifest on a slow disk: a line takes until somebody says so."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.begun, self.go_on, self.written = asyncio.Event(), threading.Event(), 0
        self._loop = asyncio.get_running_loop()

    def append(self, outcome: Outcome[Row]) -> bool:
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self.go_on.wait(30)
        self.written += super().append(outcome)
        return True


async def test_a_slow_disk_under_the_manifest_holds_up_nobody_else(bench, tmp_path):
    """And a line that was begun is written to its end, before anybody closes the file."""
    it = bench()
    with Slow(tmp_path / "slow.jsonl") as slow:
        it.run = it.with_manifest(slow)
        running = asyncio.ensure_future(it.through(rows(2)))
        await slow.begun.wait()
        running.cancel()
        await asyncio.sleep(0)
        assert (running.done(), slow.written) == (False, 0)
        slow.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert slow.written == 1


async def test_failures_are_told_one_by_one_and_then_counted(bench, klein_emulator, capsys):
    klein_emulator.script("submit", *[error_reply(422, 422001, "no cats")] * 30)
    it = bench()
    assert await it.through(rows(30)) == ExitCode.BAD_INPUT
    err = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in err[:3]] == ["Line 1", "Line 2", "Line 3"]
    assert (len(err), err[-1]) == (21, f"10 more: see {it.manifest.path}")


async def test_the_worst_row_decides(bench, klein_emulator):
    klein_emulator.script("submit", error_reply(422, 422001, "no cats"), error_reply(503, retry_after=1), None)
    assert await bench().through([*rows(3), BadRow(9, "blank")]) == ExitCode.BAD_INPUT


async def test_told_to_stop_it_waits_for_what_runs_and_no_longer_than_it_said(bench, klein_emulator, capsys):
    """One generation takes three seconds, the other an hour: the first is brought home, the second left."""
    klein_emulator.script("submit", Generation(after=3.0), Generation(after=3600.0))
    it = bench()
    asyncio.get_running_loop().call_later(1, it.stop.because, ExitCode.INTERRUPTED)
    assert await it.through(rows(2)) == ExitCode.INTERRUPTED
    assert now() == 31.0
    assert (it.tally.done, it.tally.left) == (1, 1)
    assert klein_emulator.accepted == 2


async def test_told_to_stop_it_ends_as_soon_as_all_have_ended(bench, klein_emulator):
    klein_emulator.script("submit", *[Generation(after=3.0)] * 4)
    it = bench()
    asyncio.get_running_loop().call_later(1, it.stop.because, ExitCode.TERMINATED)
    assert await it.through(rows(100)) == ExitCode.TERMINATED
    assert 3 <= now() < 5
    assert (it.tally.done, klein_emulator.accepted) == (4, 4)


async def test_a_wish_to_stop_that_came_before_the_first_submit_is_heard(bench, klein_emulator):
    it = bench()
    it.stop.gently(lambda: None)
    it.stop.because(ExitCode.INTERRUPTED)
    assert await it.through(rows(10)) == ExitCode.INTERRUPTED
    assert klein_emulator.accepted == 0


async def test_records_have_the_number_of_the_row_bad_ones_counted(bench, capsys):
    it = bench(as_json=True)
    await it.through([*rows(1), BadRow(2, "blank"), *rows(1)])
    assert [json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()] == [0, 2]
    assert it.tally.bad == 1
