"""Slots are fair and follow what the service takes; lanes have priorities; holds end gradually; polls have a price."""

import asyncio
import itertools
import math
import random
from bisect import bisect_left
from collections.abc import Coroutine
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.api.messages import Kind
from flux_klein_async.emulator import VirtualTimeLoop
from flux_klein_async.options import Limits
from flux_klein_async.transport.throttle import InProcessLimiter, Lanes, PollPrice, Ramp, Slot, Slots
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


@pytest.mark.parametrize(("taken", "limit"), [(10, 5), (0, 32), (64, 32)])
async def test_what_is_in_flight_is_halved_and_the_most_where_nothing_is(taken, limit):
    slots = Slots(64)
    for _ in range(taken):
        await slots.acquire()
    slots.refused(0.0)
    assert slots.limit == limit


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


async def test_slots_go_first_come_first_served_and_nobody_overtakes_who_waits():
    slots, order = Slots(2), list[str]()

    async def take(name: str) -> None:
        await slots.acquire()
        order.append(name)
        slots.release()

    await fill(slots)
    waiting = [asyncio.ensure_future(take(name)) for name in "abc"]
    await settle()
    slots.release()
    await take("later")
    await asyncio.gather(*waiting)
    assert order == ["a", "b", "c", "later"]


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


async def test_results_and_cancels_go_before_files_and_files_before_submits():
    lanes = Lanes(1)
    assert lanes.take(Kind.SUBMIT)
    gone, _ = await queue_up(lanes, [Kind.SUBMIT, Kind.FILE, Kind.READ, Kind.SUBMIT, Kind.CANCEL, Kind.READ])
    for count, kind in enumerate((Kind.SUBMIT, Kind.READ, Kind.CANCEL, Kind.READ, Kind.FILE, Kind.SUBMIT), 1):
        lanes.leave(kind)
        await settle()
        assert len(gone) == count
    assert gone == [Kind.READ, Kind.CANCEL, Kind.READ, Kind.FILE, Kind.SUBMIT, Kind.SUBMIT]


@pytest.mark.parametrize(
    ("poll", "submit", "order"),
    [
        (0.1, 0.1, "result poll submit poll submit poll submit poll"),
        (0.1, 0.2, "result poll submit poll poll submit poll submit"),
        (0.2, 0.1, "result poll submit submit poll submit poll poll"),
        (0.0, 0.1, "result poll poll poll poll submit submit submit"),
    ],
)
async def test_results_go_first_and_polls_and_submits_get_as_many_seconds_as_each_other(poll, submit, order):
    lanes = Lanes(1)
    seconds = {"result": poll, "poll": poll, "submit": submit}
    gone: list[str] = []

    async def go(name: str) -> None:
        kind = Kind.SUBMIT if name == "submit" else Kind.READ
        await lanes.wait(kind, poll=name == "poll")
        gone.append(name)
        lanes.leave(kind, seconds[name])

    assert lanes.take(Kind.SUBMIT)
    lanes.leave(Kind.SUBMIT, submit)
    assert lanes.take(Kind.READ)
    tasks = [asyncio.create_task(go(name)) for name in [*["submit"] * 3, *["poll"] * 4, "result"]]
    await settle()
    lanes.leave(Kind.READ, poll)
    await asyncio.gather(*tasks)
    assert gone == order.split()


KINDS = {"result": Kind.READ, "poll": Kind.READ, "file": Kind.FILE, "submit": Kind.SUBMIT}


@pytest.mark.parametrize(
    ("first", "went", "later", "order"),
    [
        ("poll submit poll", 1, "file result", "poll result file submit poll"),
        ("poll poll poll poll", 3, "submit submit poll", "poll poll poll poll submit poll submit"),
        ("submit submit submit submit", 3, "poll poll submit", "submit submit submit poll submit poll submit"),
    ],
    ids=["a submit's turn", "polls waited alone", "submits waited alone"],
)
async def test_results_and_files_go_before_whose_turn_it_is_and_what_waited_alone_owes_nothing(
    first, went, later, order
):
    """The others come when so many of the first went."""
    lanes, gone, tasks = Lanes(1), list[str](), list[asyncio.Task[None]]()

    async def go(name: str) -> None:
        await lanes.wait(KINDS[name], poll=name == "poll")
        gone.append(name)

    for kind in (Kind.READ, Kind.SUBMIT):
        assert lanes.take(kind)
        lanes.leave(kind, 0.1)
    assert lanes.take(Kind.READ)
    for number in range(len(order.split())):
        come = {0: first, went: later}.get(number, "")
        tasks += [asyncio.create_task(go(name)) for name in come.split()]
        await settle()
        lanes.leave(KINDS[gone[-1]] if gone else Kind.READ, 0.1)
        await settle()
    assert gone == order.split()
    await asyncio.gather(*tasks)


async def test_submits_and_files_leave_a_tenth_of_the_lanes_to_what_is_urgent_and_files_another_to_submits():
    lanes = Lanes(20)
    assert [lanes.take(Kind.FILE) for _ in range(17)] == [True] * 16 + [False]
    gone, _ = await queue_up(lanes, [Kind.FILE])
    assert [lanes.take(Kind.SUBMIT) for _ in range(3)] == [True, True, False]
    assert [lanes.take(kind) for kind in (Kind.READ, Kind.CANCEL, Kind.READ)] == [True, True, False]
    lanes.leave(Kind.READ)
    await settle()
    assert gone == []
    lanes.leave(Kind.SUBMIT)
    await settle()
    assert gone == []
    lanes.leave(Kind.FILE)
    await settle()
    assert gone == [Kind.FILE]


async def test_a_poll_delays_the_calls_that_wait_by_its_round_trip_for_each_of_the_connections():
    lanes = Lanes(10)
    assert lanes.take(Kind.READ)
    lanes.leave(Kind.READ, 0.04)
    while lanes.take(Kind.SUBMIT):
        pass
    assert lanes.delay == 0
    await queue_up(lanes, [Kind.SUBMIT] * 25)
    assert lanes.delay == pytest.approx(0.1)


@pytest.mark.parametrize("connections", [2, 3, 4, 10, 100])
@pytest.mark.parametrize("bulk", [[Kind.SUBMIT], [Kind.FILE], [Kind.FILE, Kind.SUBMIT], [Kind.SUBMIT, Kind.FILE]])
async def test_however_many_submits_and_files_are_under_way_a_lane_is_free_for_a_cancel(connections, bulk):
    lanes = Lanes(connections)
    for kind in bulk:
        while lanes.take(kind):
            pass
    await queue_up(lanes, bulk * 9)
    lanes.leave(bulk[0])  # those that wait take what is theirs
    await settle()
    assert lanes.take(Kind.CANCEL)


@pytest.mark.parametrize("kind", [Kind.READ, Kind.CANCEL, Kind.SUBMIT])
async def test_files_that_wait_for_their_own_share_hold_up_nobody_else(kind):
    lanes = Lanes(4)
    assert [lanes.take(each) for each in (Kind.FILE, Kind.FILE, Kind.SUBMIT, Kind.READ)] == [True] * 4
    gone, _ = await queue_up(lanes, [Kind.FILE, kind])
    lanes.leave(Kind.SUBMIT if kind is Kind.SUBMIT else Kind.READ)
    await settle()
    assert gone == [kind]


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("connections", [1, 2, 3])
def test_every_call_can_go_over_the_only_connection(connections, kind):
    assert Lanes(connections).take(kind)


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


NEVER = float("-inf")


def limiter(*, slots: int = 1, rate: float | None = None) -> InProcessLimiter:
    return InProcessLimiter(Limits(max_in_flight=slots, polls_per_second=rate, submits_per_second=rate))


def test_nothing_is_held_at_first() -> None:
    assert [limiter().held_until(kind) for kind in Kind] == [NEVER] * 4


@pytest.mark.parametrize(
    ("wishes", "until"), [([5.0], 5.0), ([5.0, 7.0], 7.0), ([7.0, 5.0], 7.0), ([-3.0], -3.0), ([-3.0, -5.0], -3.0)]
)
@pytest.mark.parametrize("kind", [Kind.SUBMIT, Kind.READ, Kind.FILE])
def test_the_longest_wish_holds_its_kind_alone(kind: Kind, wishes: list[float], until: float) -> None:
    shared = limiter()
    for wish in wishes:
        shared.hold(kind, wish)
    assert {other: shared.held_until(other) for other in Kind} == {**dict.fromkeys(Kind, NEVER), kind: until}


def test_cancels_are_never_held() -> None:
    shared = limiter()
    shared.hold(Kind.CANCEL, 5.0)
    assert shared.held_until(Kind.CANCEL) == NEVER


async def turn(shared: InProcessLimiter, kind: Kind, at: float) -> float:
    """Ask for a turn this instant; when it was given."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(at - loop.time())
    await shared.turn(kind)
    shared.over(kind)
    return loop.time()


def in_virtual_time(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


@pytest.mark.parametrize(
    ("rate", "wanted", "granted"),
    [
        (None, [1.0, 1.0, 0.5], [1.0, 1.0, 0.5]),
        (2.0, [1.0, 1.0, 1.0], [1.0, 1.5, 2.0]),
        (2.0, [1.0, 9.0, 9.0], [1.0, 9.0, 9.5]),
        (4.0, [1.0, 1.1, 1.9], [1.0, 1.25, 1.9]),
        (0.5, [0.0, 0.0, 0.0], [0.0, 2.0, 4.0]),
    ],
)
def test_polls_and_submits_keep_their_distance_under_a_ceiling_of_their_own(
    rate: float | None, wanted: list[float], granted: list[float]
) -> None:
    async def main(kind: Kind, *, busy: Kind) -> list[float]:
        shared = limiter(rate=rate)
        await shared.turn(busy)
        return await asyncio.gather(*(turn(shared, kind, at) for at in wanted))

    for kind, busy in itertools.permutations((Kind.READ, Kind.SUBMIT)):
        assert in_virtual_time(main(kind, busy=busy)) == granted


@given(st.floats(0.01, 1000), st.lists(st.floats(0, 1e4), min_size=2, max_size=20))
def test_a_turn_is_never_given_early_or_too_close(rate: float, wanted: list[float]) -> None:
    async def main() -> list[float]:
        shared = limiter(rate=rate)
        return await asyncio.gather(*(turn(shared, Kind.SUBMIT, at) for at in wanted))

    granted = in_virtual_time(main())
    assert all(given >= asked for given, asked in zip(granted, wanted, strict=True))
    gaps = [later - earlier for earlier, later in itertools.pairwise(sorted(granted))]
    assert min(gaps) >= 1 / rate - 1e-9


def test_those_who_give_up_while_waiting_for_a_turn_have_taken_none() -> None:
    async def main() -> float:
        shared = limiter(rate=1.0)
        crowd = [asyncio.ensure_future(turn(shared, Kind.SUBMIT, 0.0)) for _ in range(100)]
        await asyncio.sleep(0.5)
        for one in crowd:
            one.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return await turn(shared, Kind.SUBMIT, 0.5)

    assert in_virtual_time(main()) == 1.0


@pytest.mark.parametrize("rate", [1.0, 2.5, 20.0, 200.0])
def test_no_second_at_the_service_has_more_calls_than_the_ceiling_however_unevenly_they_travel(rate: float) -> None:
    chance = random.Random(5)
    arrived: list[float] = []

    async def main() -> None:
        shared, loop = limiter(rate=rate), asyncio.get_running_loop()
        stalled = -1.0

        async def call() -> None:
            await shared.turn(Kind.READ)
            await asyncio.sleep(0.05 + chance.expovariate(200))  # there
            await asyncio.sleep(max(0.0, stalled - loop.time()))
            arrived.append(loop.time())
            await asyncio.sleep(0.02 + chance.expovariate(200))  # and back
            shared.over(Kind.READ)

        async def calls() -> None:
            while loop.time() < 30:
                await call()

        busy = asyncio.gather(*(calls() for _ in range(200)))
        await asyncio.sleep(10)
        for _ in range(30):  # the service answers nothing for a while
            await asyncio.sleep(chance.uniform(0.1, 1))
            stalled = loop.time() + chance.uniform(0, 0.9)
        await busy

    in_virtual_time(main())
    arrived.sort()
    assert max(bisect_left(arrived, at + 1) - first for first, at in enumerate(arrived)) <= math.ceil(rate)
    assert bisect_left(arrived, 10) - bisect_left(arrived, 1) >= 0.9 * 9 * rate


def test_turns_that_a_blocked_loop_gives_late_put_off_none_of_the_others_and_do_not_all_come_at_once() -> None:
    async def main(blocked: float) -> list[float]:
        shared, loop = limiter(rate=50.0), cast("VirtualTimeLoop", asyncio.get_running_loop())
        turns = [asyncio.ensure_future(turn(shared, Kind.READ, 0.0)) for _ in range(40)]
        await asyncio.sleep(0.1)
        loop._jump(loop.time() + blocked)
        return [round(at, 6) for at in await asyncio.gather(*turns)]

    for blocked, at_once in ((0.05, 3), (5.0, 13)):
        granted = in_virtual_time(main(blocked))
        assert granted.count(round(0.1 + blocked, 6)) == at_once


def test_a_call_that_never_ends_counts_for_two_seconds() -> None:
    async def main() -> list[float]:
        shared, loop = limiter(rate=2.0), asyncio.get_running_loop()
        given = []
        for _ in range(4):
            await shared.turn(Kind.READ)
            given.append(loop.time())
        return given

    assert in_virtual_time(main()) == [0.0, 0.5, 2.0, 2.5]


# --- after a hold


def test_calls_come_back_ever_closer_together_and_all_within_two_seconds():
    ramp = Ramp(100.0)
    instants = [ramp.admit() for _ in range(20_000)]
    assert instants[0] == 100.0
    assert instants[-1] < 102.0
    gaps = [later - earlier for earlier, later in itertools.pairwise(instants)]
    assert gaps[0] == pytest.approx(2 / 51)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(gaps))


def test_a_limiter_lets_those_go_one_after_the_other_whom_it_held():
    shared = limiter()
    assert shared.admit(Kind.READ) == NEVER
    shared.hold(Kind.READ, 5.0)
    first, second, third = (shared.admit(Kind.READ) for _ in range(3))
    assert 5.0 == first < second < third < 5.1
    assert shared.admit(Kind.SUBMIT) == NEVER
    shared.hold(Kind.READ, 7.0)  # a longer hold begins the ramp again
    assert (shared.admit(Kind.READ), shared.held_until(Kind.READ)) == (7.0, 7.0)


@pytest.mark.parametrize("again", [5.0, 4.0])
def test_the_same_wish_from_many_calls_lets_none_of_them_jump_the_queue(again: float) -> None:
    shared, admitted = limiter(), []
    for _ in range(5):
        shared.hold(Kind.READ, 5.0)
        admitted.append(shared.admit(Kind.READ))
        shared.hold(Kind.READ, again)
    assert admitted == sorted(set(admitted))


# --- what a poll costs


def test_without_a_ceiling_only_refusals_raise_the_price():
    price = PollPrice(None)
    for _ in range(1000):
        price.asked(0.0, 1.0)
    assert price.now(0.0) == 1.0
    for at, costs in [(0.0, 2.0), (0.5, 2.0), (0.95, 2.0), (1.0, 4.0), (2.0, 8.0)]:
        price.refused(at)
        assert price.now(at) == costs


def test_the_price_sinks_back_with_each_poll_that_is_answered():
    price = PollPrice(None)
    price.refused(0.0)
    for polls in range(1, 14):
        price.served()
        assert price.now(0.0) == pytest.approx(2 * 0.95**polls)
    price.served()
    assert price.now(0.0) == 1.0


def test_refusals_never_make_polls_dearer_than_sixty_four_times():
    price = PollPrice(None)
    for second in range(20):
        price.refused(float(second))
    assert price.now(20.0) == 64.0


@pytest.mark.parametrize("waiters", [100, 1000, 5000])
def test_the_price_settles_where_the_demand_meets_the_ceiling(waiters):
    """Each waiter would poll once a second; at a price it polls as much rarer as its square root says."""
    price, ceiling, now, polls = PollPrice(50.0), 50.0, 0.0, 0
    while now < 20.0:
        planned = price.now(now)
        now += math.sqrt(planned) / waiters
        price.asked(now, planned)
        polls += now > 10.0
    assert polls / 10.0 == pytest.approx(ceiling, rel=0.25)
    assert price.now(now) == pytest.approx((waiters / ceiling) ** 2, rel=0.5)


def test_a_refusal_makes_polls_dearer_under_a_ceiling_too():
    price = PollPrice(50.0)
    for _ in range(100):
        price.asked(0.0, 1.0)
    price.refused(0.0)
    assert price.now(0.0) == pytest.approx(2 * (100 / 50) ** 2)


def test_below_the_ceiling_the_price_is_one_and_after_a_crowd_it_is_one_again():
    assert PollPrice(0.1).now(0.0) == 1.0
    price = PollPrice(50.0)
    for second in range(10):
        price.asked(float(second), 1.0)
        assert price.now(float(second)) == 1.0
    for _ in range(500):
        price.asked(10.0, 1.0)
    assert 100 < price.now(10.0) < 110
    assert price.now(15.0) == 1.0


@given(st.floats(0.001, 1e6), st.lists(st.tuples(st.floats(0, 10), st.sampled_from(["asked", "refused", "served"]))))
def test_the_price_is_a_number_between_one_and_its_bound(ceiling, story):
    price, now = PollPrice(ceiling), 0.0
    for pause, what in story:
        now += pause
        if what == "asked":
            price.asked(now, price.now(now))
        elif what == "refused":
            price.refused(now)
        else:
            price.served()
        assert 1.0 <= price.now(now) <= PollPrice.MOST


def test_a_crowd_that_waits_for_its_turn_makes_polls_dearer_for_all():
    async def main() -> float:
        shared = limiter(rate=10.0)
        assert shared.poll_price() == 1.0
        crowd = [asyncio.ensure_future(shared.turn(Kind.READ)) for _ in range(100)]
        await asyncio.sleep(0.5)
        price = shared.poll_price()
        for one in crowd:
            one.cancel()
        return price

    assert 30 < in_virtual_time(main()) < 100


def test_a_limiter_hears_of_refusals_and_successes():
    async def main() -> list[tuple[float, int]]:
        shared = limiter(slots=8)
        told = []
        for kind in (Kind.FILE, Kind.CANCEL, Kind.READ, Kind.SUBMIT):
            shared.refused(kind)
            told.append((shared.poll_price(), shared.in_flight_limit))
        for kind in (Kind.FILE, Kind.READ, Kind.SUBMIT):
            for _ in range(100):
                shared.served(kind)
            told.append((shared.poll_price(), shared.in_flight_limit))
        return told

    assert in_virtual_time(main()) == [(1, 8), (1, 8), (2, 8), (2, 4), (2, 4), (1, 4), (1, 8)]


async def test_a_slot_is_taken_once_and_given_back_once():
    shared = limiter(slots=1)
    async with Slot(shared) as slot:
        again, waiting = asyncio.ensure_future(slot.take()), asyncio.ensure_future(Slot(shared).take())
        await settle()
        assert (again.done(), waiting.done()) == (True, False)
        slot.give()
        await waiting
    another = asyncio.ensure_future(shared.acquire())
    await settle()
    assert not another.done()
    another.cancel()


def test_a_call_that_takes_very_long_counts_as_arrived_and_its_end_no_more():
    async def waited() -> float:
        limiter, loop = InProcessLimiter(Limits(submits_per_second=1)), asyncio.get_running_loop()
        await limiter.turn(Kind.SUBMIT)
        await asyncio.sleep(9)
        await limiter.turn(Kind.SUBMIT)  # the first counts as arrived by now
        limiter.over(Kind.SUBMIT)
        limiter.over(Kind.SUBMIT)  # the first: nothing is under way
        begun = loop.time()
        await limiter.turn(Kind.SUBMIT)
        return loop.time() - begun

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(waited()) == pytest.approx(1)
