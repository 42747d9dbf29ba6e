"""Twenty-four hours of one client in virtual time, with bursts, faults and holds: nothing piles up."""

import asyncio
import gc
import logging
import random
from collections import Counter
from itertools import count
from typing import Any

import pytest

from flux_klein_async import FluxKleinClient, GenerationResult, SubmissionUncertainError, WaitTimeoutError
from flux_klein_async.emulator import Generation, InProcessEmulator, Refuse, Reset, error_reply
from flux_klein_async.events import Cancelled, Event, Held, Retrying
from flux_klein_async.transport.retry import RetryQuota
from tests.fakes import now, outcome, settle, strays

pytestmark = pytest.mark.slow

HOUR = 3600.0
SMALL = {"width": 64, "height": 64}


def misbehave(emulator: InProcessEmulator) -> None:
    """Each fault now and then, on every endpoint."""
    busy = error_reply(503, None, "busy")
    for endpoint, answer in [
        ("connect", Refuse()),
        ("submit", error_reply(429, None, "slower", retry_after=7)),
        ("submit", Reset(accepted=True)),
        ("status", busy),
        ("status", Reset()),
        ("status", error_reply(429, None, "slower", retry_after=3)),
        ("result", busy),
        ("file", busy),
        ("cancel", busy),
    ]:
        emulator.fault(endpoint, answer, probability=0.02)


class Day:
    """One client's work and its results."""

    def __init__(self, emulator: InProcessEmulator, client: FluxKleinClient) -> None:
        self.emulator = emulator
        self.client = client
        self.ids: list[str] = []  # of results
        self.errors: Counter[type[Exception]] = Counter()
        self._numbers = count()

    async def one(self) -> None:
        """A generation with its file, and a state that the client does not know."""
        number = next(self._numbers)
        self.emulator.script("submit", Generation(after=2.0, words={"in_progress": f"pondering {number}"}))
        found = await outcome(self.client.generate(f"cat {number}", **SMALL))
        self.take(found)
        if isinstance(found, GenerationResult):
            [picture] = await self.client.download_bytes(found)
            assert picture.startswith(b"\x89PNG")

    async def burst(self) -> None:
        """Many at once."""
        outcomes = await self.client.generate_all([f"dog {next(self._numbers)}" for _ in range(30)], concurrency=20)
        for found in outcomes:
            self.take(found.result or found.error)

    async def abandoned(self) -> None:
        """A call that is cancelled, and one that times out."""
        task = asyncio.ensure_future(self.client.generate("nobody waits", **SMALL))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.wait({task})
        found = await outcome(self.client.generate("no time", timeout=0.2, **SMALL))
        assert isinstance(found, Exception)

    def take(self, found: Any) -> None:
        """Keep the id or the class of the error: results and tracebacks would pile up here."""
        if isinstance(found, GenerationResult):
            self.ids.append(found.request_id)
        else:
            self.errors[type(found)] += 1

    async def hour(self) -> None:
        for part in range(6):
            begun = now()
            await self.one()
            if part == 2:
                await self.burst()
            if part == 4:
                await self.abandoned()
            await asyncio.sleep(begun + HOUR / 6 - now())


def held() -> Counter[str]:
    """How many objects of the package are alive, by class, without the emulator's."""
    gc.collect()
    names = (f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects())
    return Counter(name for name in names if name.startswith("flux_klein_async.") and ".emulator." not in name)


def timers() -> int:
    """How many timers are pending."""
    return sum(not timer.cancelled() for timer in asyncio.get_running_loop()._scheduled)


@pytest.mark.usefixtures("klein_emulator")
async def test_a_day_leaves_nothing_behind(monkeypatch):
    random.seed(24)  # the pauses between repeats; the emulator's faults have a seed of their own
    # pytest's log handler would keep the errors and everything that they refer to.
    monkeypatch.setattr(logging.getLogger("flux_klein_async"), "disabled", True)
    seen: Counter[type[Event]] = Counter()
    async with InProcessEmulator(round_trip=0.04, max_records=10) as emulator:
        misbehave(emulator)
        options = {"base_url": emulator.base_url, "session": emulator.session()}
        client = FluxKleinClient(emulator.api_key, **options, on_event=lambda event: seen.update([type(event)]))
        core, day = client._context, Day(emulator, client)
        for _ in range(2):
            await day.hour()
        connector = core.transport._api.connector
        early = held()
        for _ in range(21):
            await day.hour()
        grown = held() - early
        # For each price of a poll, in quarters of an octave, a schedule (429 raises the price, to 64 at the most);
        # a hold for each kind of call; a distribution for each prediction of the model.
        most_of = {"polling.durations.Schedule": 25, "transport.throttle.Ramp": 3, "polling.durations.Distribution": 8}
        for name, most in most_of.items():
            assert grown.pop(f"flux_klein_async.{name}", 0) <= most
        assert grown == Counter()
        assert timers() == sum(map(len, connector._conns.values()))  # the emulator times each idle connection

        # An hour without faults fills the retry quota again.
        emulator.calm()
        await day.hour()
        assert now() == pytest.approx(24 * HOUR)
        assert core.quota._credits == RetryQuota.CAPACITY

        # A hold, and a long drain.
        emulator.script("status", error_reply(429, None, "slower", retry_after=100))
        emulator.script("submit", Generation(after=2000.0))
        last = asyncio.ensure_future(client.generate("the last", timeout=None))
        await asyncio.sleep(1)
        assert await client.aclose(drain=HOUR) == ()
        day.take(await last)
        assert 2000 <= now() - 24 * HOUR <= 2010
        await settle()

        assert strays() == []
        assert core.operations == core.background._tasks == core.left_running == set()
        assert list(core.background._waiting) == []
        assert len(core._warned) <= 100
        assert len(core.limiter._holds) <= 3
        assert (connector._acquired, connector._waiters) == (set(), {})

    assert len(set(day.ids)) == len(day.ids) > 700
    assert set(day.errors) <= {SubmissionUncertainError, WaitTimeoutError}
    assert {Retrying, Held, Cancelled} <= set(seen)
    await asyncio.sleep(1)  # until the last close has arrived
    assert timers() == 0
