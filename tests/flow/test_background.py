"""The client's own tasks: few at a time, all awaited, failures logged."""

import asyncio
import contextlib
import logging
from typing import Any

import pytest

from flux_klein_async import ServerError
from flux_klein_async.flow.background import Background
from tests.fakes import now, settle, strays

pytestmark = pytest.mark.usefixtures("klein_emulator")  # for its virtual time


async def test_queued_jobs_run_a_few_at_a_time():
    background, running, peak = Background(), 0, 0

    async def job() -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(1)
        running -= 1

    for batch in (1, 2):
        for _ in range(20):
            background.queue(job)
        await asyncio.sleep(10)
        assert (peak, running, now()) == (Background.AT_ONCE, 0, 10.0 * batch)
    for _ in range(20):
        background.queue(job)
    await background.finish(100)
    assert (peak, now()) == (Background.AT_ONCE, 23.0)


@pytest.mark.parametrize("swallowed", [(), asyncio.CancelledError])
async def test_finishing_cancels_what_takes_too_long_and_forgets_what_waits(swallowed):
    background, begun = Background(), []

    async def job() -> None:
        begun.append(now())
        with contextlib.suppress(swallowed):
            await asyncio.sleep(1000)

    for _ in range(20):
        background.queue(job)
    await background.finish(5)
    assert (now(), len(begun), strays()) == (5.0, Background.AT_ONCE, [])


async def test_a_job_that_fails_is_logged_and_does_not_stop_the_others(caplog):
    background, done = Background(), []

    async def broken() -> None:
        raise KeyError("mine")

    async def job() -> None:
        done.append(True)

    with caplog.at_level(logging.ERROR):
        for _ in range(2 * Background.AT_ONCE):
            background.queue(broken)
        background.queue(job)
        await settle()
    told = {(record.name, record.getMessage()) for record in caplog.records}
    assert (told, done) == ({("flux_klein_async", "A background task failed")}, [True])
    assert all(record.exc_info and isinstance(record.exc_info[1], KeyError) for record in caplog.records)


async def test_an_expected_failure_is_told_in_one_line(caplog):
    background = Background()

    async def refused() -> None:
        raise ServerError(status_code=500)

    with caplog.at_level(logging.WARNING):
        background.start(refused)
        await settle()
    [record] = caplog.records
    assert (record.levelname, record.exc_info) == ("WARNING", None)


async def test_a_kept_task_is_awaited_though_cancelled(caplog):
    background = Background()

    async def slow_to_die() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(2)
            raise

    task: asyncio.Task[Any] = asyncio.ensure_future(slow_to_die())
    background.keep(task)
    await settle()
    await background.finish(1)
    assert (task.cancelled(), now()) == (True, 3.0)
    assert caplog.records == []


async def test_what_ends_at_the_end_of_finishing_begins_nothing_more():
    background = Background()

    async def nothing_more() -> None:
        raise AssertionError

    async def leaves_work() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            background.queue(nothing_more)

    background.start(leaves_work)
    await settle()
    await background.finish(5)
    assert (now(), strays()) == (5.0, [])
    await settle()
    assert strays() == []
