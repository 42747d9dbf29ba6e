"""What all calls share: exact sleeping, and the gate that obeys the service's wish for patience."""

import asyncio
import logging

import pytest

from flux_klein_async import FixedPolling
from flux_klein_async.emulator import Generation, Reply, error_reply
from flux_klein_async.events import Held, Retrying
from flux_klein_async.flow.core import sleep_until
from tests.fakes import Events, now, outcome

EVERY_SECOND = FixedPolling(1.0)


@pytest.mark.usefixtures("klein_emulator")
@pytest.mark.parametrize("when", [0.1 + 0.2, 1 / 3, 1e6 + 0.1, -5.0])
async def test_sleeping_until_an_instant_ends_at_that_very_instant(when):
    await sleep_until(asyncio.get_running_loop(), when)
    assert now() == max(when, 0.0)


@pytest.mark.usefixtures("klein_emulator")
async def test_a_cancelled_sleep_in_the_instant_of_its_end_leaves_no_trace():
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(sleep_until(loop, 1.0))
    await asyncio.sleep(0)
    loop.call_at(1.0, task.cancel)  # after the sleep's own timer, in the same instant
    loop.call_at(0.5, lambda: None)
    [found] = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(found, asyncio.CancelledError)


async def test_a_cancel_that_is_told_to_come_later_holds_nobody(klein_emulator, connect):
    events = Events()
    client = connect(on_event=events, timeout=60)
    klein_emulator.script("cancel", error_reply(429, retry_after=50))
    await client.cancel((await client.submit("a cat")).request_id)
    assert now() < 1
    assert events.of(Held) == []
    assert [event.attempt for event in events.of(Retrying)] == [2]


async def test_a_longer_hold_that_comes_meanwhile_is_obeyed_too(klein_emulator, connect):
    client = connect(timeout=600, polling=EVERY_SECOND)
    klein_emulator.script("model", error_reply(429, retry_after=5))
    klein_emulator.script("status", Reply(429, {}, {"Retry-After": "30"}, delay=2.0))
    klein_emulator.script("submit", Generation(after=0.5))
    waiting = asyncio.ensure_future(client.generate("a cat"))
    await asyncio.sleep(1.5)
    await client.model()
    assert now() == 33.0
    await waiting


async def test_only_a_hundred_unknown_words_are_logged(klein_emulator, connect, caplog):
    klein_emulator.script("status", *[Reply(200, {"status": f"word {number}"}) for number in range(150)])
    with caplog.at_level(logging.WARNING):
        await outcome(connect(polling=EVERY_SECOND, timeout=160).wait_for_result("x"))
    assert len([record for record in caplog.records if "Unknown state" in record.getMessage()]) == 100
