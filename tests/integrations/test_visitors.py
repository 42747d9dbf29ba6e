import asyncio

import pytest

from flux_klein_async.integrations.visitors import VisitorGoneError, until_gone

from .serving import nothing_left_behind


class Work:
    """Runs until it is told to end, and says how it ended."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.told = asyncio.Event()
        self.end = None

    async def run(self):
        self.begun.set()
        try:
            await self.told.wait()
        except asyncio.CancelledError:
            self.end = "cancelled"
            raise
        self.end = "done"
        return 7


async def test_work_that_ends_is_returned_and_the_watch_is_over():
    async with nothing_left_behind():
        work, watch = Work(), Work()
        work.told.set()
        assert await until_gone(work.run(), watch.run()) == 7
        assert watch.end == "cancelled"


async def test_a_visitor_who_goes_ends_the_work():
    async with nothing_left_behind():
        work, watch = Work(), Work()
        watch.told.set()
        with pytest.raises(VisitorGoneError):
            await until_gone(work.run(), watch.run())
        assert work.end == "cancelled"


async def test_what_the_work_raises_is_raised_as_it_is():
    async def fails():
        raise KeyError(1)

    async with nothing_left_behind():
        with pytest.raises(KeyError):
            await until_gone(fails(), Work().run())


async def test_work_that_fails_when_given_up_leaves_no_complaint(caplog):
    async def stubborn():
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError(1)

    async def gone():
        await asyncio.sleep(0)

    async with nothing_left_behind():
        with pytest.raises(VisitorGoneError):
            await until_gone(stubborn(), gone())
    assert caplog.records == []


async def test_a_watch_that_breaks_is_no_visitor_who_left():
    async def breaks():
        raise KeyError(2)

    work = Work()
    async with nothing_left_behind():
        with pytest.raises(KeyError):
            await until_gone(work.run(), breaks())


async def test_a_cancelled_caller_takes_both_along():
    async with nothing_left_behind():
        work, watch = Work(), Work()
        caller = asyncio.create_task(until_gone(work.run(), watch.run()))
        await work.begun.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert (work.end, watch.end) == ("cancelled", "cancelled")


async def test_a_result_that_is_there_goes_before_a_visitor_who_leaves():
    work, watch = Work(), Work()
    work.told.set()
    watch.told.set()
    assert await until_gone(work.run(), watch.run()) == 7
