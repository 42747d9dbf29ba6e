"""Slots are fair and follow what the service can take; lanes let those go first who are worth more."""

import asyncio

import pytest

from flux_klein_async.api.messages import Kind
from flux_klein_async.transport.slots import Lanes, Slots
from tests.fakes import settle


async def fill(slots: Slots) -> int:
    """Take slots until none is free; how many there were."""
    taken = 0
    while taken < slots.limit:
        await slots.acquire()
        taken += 1
    return taken


async def test_a_refusal_halves_what_is_in_flight_once_a_wave():
    slots = Slots(64)
    assert await fill(slots) == 64
    for at, limit in [(0.0, 32), (0.9, 32), (1.0, 16), (2.5, 8), (9.0, 4), (10.0, 2), (11.0, 1), (12.0, 1)]:
        slots.refused(at)
        assert slots.limit == limit


async def test_few_in_flight_are_what_is_halved():
    slots = Slots(1000)
    for _ in range(10):
        await slots.acquire()
    slots.refused(0.0)
    assert slots.limit == 5


def test_a_refusal_of_what_took_no_slot_halves_the_most():
    slots = Slots(64)
    slots.refused(0.0)
    assert slots.limit == 32


async def test_successes_bring_the_limit_back_and_never_above_the_most():
    slots = Slots(8)
    await fill(slots)
    slots.refused(0.0)
    limits = []
    for _ in range(60):
        slots.served()
        limits.append(slots.limit)
    assert limits == sorted(limits)
    assert (limits[0], limits[10], limits[-1]) == (4, 5, 8)
    slots.refused(2.0)
    assert slots.limit == 4


async def test_those_above_a_smaller_limit_keep_their_slots_and_nobody_follows():
    slots = Slots(4)
    await fill(slots)
    slots.refused(0.0)  # 2
    waiting = asyncio.ensure_future(slots.acquire())
    for done in (False, False, True):
        slots.release()
        await settle()
        assert waiting.done() is done


async def test_a_slot_that_success_opens_goes_to_who_waits():
    slots = Slots(2)
    await fill(slots)
    slots.refused(0.0)  # 1
    slots.release()
    waiting = [asyncio.ensure_future(slots.acquire()) for _ in range(2)]
    await settle()
    assert [task.done() for task in waiting] == [False, False]
    for _ in range(11):
        slots.served()
    await settle()
    assert [task.done() for task in waiting] == [True, False]
    slots.release()
    await settle()
    assert waiting[1].done()


@pytest.mark.parametrize("late", [False, True])
async def test_who_gives_up_leaves_the_slot_to_the_next(late):
    """Also in the very instant in which it was given."""
    slots = Slots(1)
    await slots.acquire()
    first, second = (asyncio.ensure_future(slots.acquire()) for _ in range(2))
    await settle()
    if late:
        slots.release()
        first.cancel()
    else:
        first.cancel()
        await settle()
        slots.release()
    third = asyncio.ensure_future(slots.acquire())
    await settle()
    assert (first.cancelled(), second.done(), third.done()) == (True, True, False)
    slots.release()
    await settle()
    assert third.done()


# --- lanes


async def queue_up(lanes: Lanes, kinds: list[Kind]) -> tuple[list[Kind], list[asyncio.Task[None]]]:
    """Let calls wait in this order; the list that they write their kind into when they go."""
    gone: list[Kind] = []

    async def go(kind: Kind) -> None:
        await lanes.wait(kind)
        gone.append(kind)

    tasks = [asyncio.create_task(go(kind)) for kind in kinds]
    await settle()
    return gone, tasks


async def test_reads_go_before_files_and_files_before_submits():
    lanes = Lanes(1)
    assert lanes.take(Kind.SUBMIT)
    gone, _ = await queue_up(lanes, [Kind.SUBMIT, Kind.FILE, Kind.READ, Kind.SUBMIT, Kind.CANCEL, Kind.READ])
    for count, kind in enumerate((Kind.SUBMIT, Kind.READ, Kind.CANCEL, Kind.READ, Kind.FILE, Kind.SUBMIT), 1):
        lanes.leave(kind)
        await settle()
        assert len(gone) == count
    assert gone == [Kind.READ, Kind.CANCEL, Kind.READ, Kind.FILE, Kind.SUBMIT, Kind.SUBMIT]


async def test_files_leave_a_quarter_of_the_lanes_to_the_rest():
    lanes = Lanes(8)
    assert [lanes.take(Kind.FILE) for _ in range(7)] == [True] * 6 + [False]
    gone, _ = await queue_up(lanes, [Kind.FILE])
    assert (lanes.take(Kind.SUBMIT), lanes.take(Kind.READ), lanes.take(Kind.READ)) == (True, True, False)
    lanes.leave(Kind.READ)
    await settle()
    assert gone == []
    lanes.leave(Kind.FILE)
    await settle()
    assert gone == [Kind.FILE]


@pytest.mark.parametrize("kind", [Kind.READ, Kind.CANCEL, Kind.SUBMIT])
async def test_files_that_wait_for_their_own_share_hold_up_nobody_else(kind):
    lanes = Lanes(4)
    assert [lanes.take(each) for each in (Kind.FILE, Kind.FILE, Kind.FILE, Kind.READ)] == [True] * 4
    gone, _ = await queue_up(lanes, [Kind.FILE, kind])
    lanes.leave(Kind.READ)
    await settle()
    assert gone == [kind]


@pytest.mark.parametrize("connections", [1, 2, 3])
def test_a_file_can_go_over_the_only_connection(connections):
    assert Lanes(connections).take(Kind.FILE)


async def test_a_lane_is_not_lost_with_who_gives_up():
    lanes = Lanes(1)
    assert lanes.take(Kind.READ)
    gone, tasks = await queue_up(lanes, [Kind.READ, Kind.READ])
    lanes.leave(Kind.READ)  # the first is woken
    tasks[0].cancel()
    await settle()
    assert gone == [Kind.READ]
    tasks[1].cancel()
    lanes.leave(Kind.READ)
    assert (lanes.take(Kind.SUBMIT), lanes.take(Kind.SUBMIT)) == (True, False)
