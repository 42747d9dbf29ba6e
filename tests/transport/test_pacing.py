"""Slots go in the order they were asked for; holds only grow; looks keep their distance."""

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.api.messages import Kind
from flux_klein_async.emulator import VirtualTimeLoop
from flux_klein_async.options import Limits
from flux_klein_async.transport.pacing import InProcessLimiter

NEVER = float("-inf")


def limiter(*, slots: int = 1, rate: float | None = None) -> InProcessLimiter:
    return InProcessLimiter(Limits(max_in_flight=slots, looks_per_second=rate))


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_no_more_than_the_limit_hold_a_slot(slots: int) -> None:
    holding = most = 0

    async def hold(shared: InProcessLimiter) -> None:
        nonlocal holding, most
        await shared.acquire()
        holding += 1
        most = max(most, holding)
        await asyncio.sleep(0)
        holding -= 1
        shared.release()

    async def main() -> None:
        shared = limiter(slots=slots)
        await asyncio.gather(*(hold(shared) for _ in range(20)))

    asyncio.run(main())
    assert (most, holding) == (slots, 0)


async def take(shared: InProcessLimiter, name: str, order: list[str]) -> None:
    await shared.acquire()
    order.append(name)
    shared.release()


def test_slots_go_first_come_first_served() -> None:
    async def main() -> list[str]:
        shared, order = limiter(), list[str]()
        await shared.acquire()
        waiting = [asyncio.create_task(take(shared, name, order)) for name in "abc"]
        await asyncio.sleep(0)
        shared.release()
        await asyncio.gather(*waiting)
        return order

    assert asyncio.run(main()) == ["a", "b", "c"]


def test_who_comes_later_never_overtakes_who_waits() -> None:
    async def main() -> list[str]:
        shared, order = limiter(), list[str]()
        await shared.acquire()
        waiting = asyncio.create_task(take(shared, "waited", order))
        await asyncio.sleep(0)
        shared.release()
        await take(shared, "came later", order)
        await waiting
        return order

    assert asyncio.run(main()) == ["waited", "came later"]


def test_who_gives_up_waiting_takes_no_slot() -> None:
    async def main() -> list[str]:
        shared, order = limiter(), list[str]()
        await shared.acquire()
        gives_up, waits = (asyncio.create_task(take(shared, name, order)) for name in ("gives up", "waits"))
        await asyncio.sleep(0)
        gives_up.cancel()
        shared.release()
        await asyncio.gather(gives_up, waits, return_exceptions=True)
        await take(shared, "comes later", order)
        return order

    assert asyncio.run(main()) == ["waits", "comes later"]


def test_nothing_is_held_at_first() -> None:
    assert [limiter().held_until(kind) for kind in Kind] == [NEVER] * 4


@pytest.mark.parametrize(
    ("wishes", "until"),
    [([5.0], 5.0), ([5.0, 7.0], 7.0), ([7.0, 5.0], 7.0), ([-3.0], -3.0), ([-3.0, -5.0], -3.0)],
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


async def look(shared: InProcessLimiter, at: float) -> float:
    """Ask for a look at this instant; when it was allowed."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(at - loop.time())
    await shared.look()
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
def test_looks_keep_their_distance_under_the_ceiling(
    rate: float | None, wanted: list[float], granted: list[float]
) -> None:
    async def main() -> list[float]:
        shared = limiter(rate=rate)
        return await asyncio.gather(*(look(shared, at) for at in wanted))

    assert in_virtual_time(main()) == granted


@given(st.floats(0.01, 1000), st.lists(st.floats(0, 1e4), min_size=2, max_size=20))
def test_a_look_is_never_granted_early_or_too_close(rate: float, wanted: list[float]) -> None:
    async def main() -> list[float]:
        shared = limiter(rate=rate)
        return await asyncio.gather(*(look(shared, at) for at in wanted))

    granted = in_virtual_time(main())
    assert all(given >= asked for given, asked in zip(granted, wanted, strict=True))
    gaps = [later - earlier for earlier, later in itertools.pairwise(sorted(granted))]
    assert min(gaps) >= 1 / rate - 1e-9


def test_those_who_give_up_while_waiting_for_a_turn_have_taken_none() -> None:
    async def main() -> float:
        shared = limiter(rate=1.0)
        crowd = [asyncio.ensure_future(look(shared, 0.0)) for _ in range(100)]
        await asyncio.sleep(0.5)
        for one in crowd:
            one.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return await look(shared, 0.5)

    assert in_virtual_time(main()) == 1.0
