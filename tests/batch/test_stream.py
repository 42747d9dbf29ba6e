"""Rows for the loop, read in a thread: in order, a few ahead, and never waited for in vain."""

import asyncio
import threading

import pytest

from flux_klein_async.batch.rows import BadRow, Row
from flux_klein_async.batch.stream import RowStream
from flux_klein_async.errors import JournalError


def row(number: int) -> Row:
    return Row(number, None, {"prompt": f"prompt {number}"})


async def everything(feed: RowStream) -> list[Row | BadRow]:
    return [found async for found in feed]


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 3000])
async def test_every_row_comes_once_and_in_order(count):
    rows = [row(number) for number in range(count)]
    with RowStream(rows) as feed:
        assert await feed.first_bad() == []
        assert await everything(feed) == rows
        assert await everything(feed) == []
        assert (feed.count, feed.total) == (count, count if count < 1000 else None)


async def test_the_first_thousand_are_checked_before_any_is_given_out():
    bad = [BadRow(5, "blank"), BadRow(1000, "too wide")]
    rows = [*map(row, range(1, 5)), bad[0], *map(row, range(6, 1000)), bad[1], BadRow(1001, "later"), row(1002)]
    with RowStream(rows) as feed:
        assert await feed.first_bad() == bad
        found = await everything(feed)
    assert found == rows


async def test_a_slow_pipe_is_read_line_by_line_and_does_not_hold_up_the_loop():
    gates = [threading.Event() for _ in range(3)]

    def slowly():
        yield from map(row, range(1000))
        for number, gate in enumerate(gates):
            gate.wait()
            yield row(1000 + number)

    with RowStream(slowly()) as feed:
        assert await feed.first_bad() == []
        for _ in range(1000):
            await anext(feed)
        for number, gate in enumerate(gates):
            coming = asyncio.ensure_future(anext(feed))
            await asyncio.sleep(0)
            assert not coming.done()
            gate.set()
            assert await coming == row(1000 + number)


async def test_no_more_is_read_than_is_wanted_soon():
    read = []

    def rows():
        for number in range(10_000):
            read.append(number)
            yield row(number)

    over = threading.Event()
    with RowStream(rows(), over.set) as feed:
        await feed.first_bad()
        for _ in range(2000):
            await anext(feed)
        assert len(read) <= 2000 + 300
    assert await asyncio.get_running_loop().run_in_executor(None, over.wait, 10)
    assert len(read) <= 2000 + 300


@pytest.mark.parametrize("before", [0, 1500])
async def test_what_stands_in_the_way_of_reading_is_raised_on_the_loop(before):
    def rows():
        yield from map(row, range(before))
        raise JournalError("no room")

    over = threading.Event()
    with RowStream(rows(), over.set) as feed:
        if before == 0:
            with pytest.raises(JournalError):
                await feed.first_bad()
        else:
            assert await feed.first_bad() == []
        for _ in range(before):
            await anext(feed)
        for _ in range(2):
            with pytest.raises(JournalError):
                await anext(feed)
    assert over.is_set()


def test_a_thread_whose_loop_has_gone_ends_by_itself():
    gate, over = threading.Event(), threading.Event()

    def rows():
        gate.wait()
        yield row(0)

    async def body() -> None:
        RowStream(rows(), over.set)

    asyncio.run(body())
    gate.set()
    assert over.wait(10)
