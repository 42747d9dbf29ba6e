"""Limits of several processes: never exceeded, fair, used; holds everywhere; Redis away, back, empty.

The script itself runs in virtual time on a model of the server; `test_redis_server.py` runs it on a real one.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis_model import ModelledLimiter, ModelServer

from flux_klein_async import APITimeoutError, ConfigurationError, FluxKleinClient, Limits, RedisLimiter
from flux_klein_async.api.messages import Kind
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop
from flux_klein_async.events import LimiterChanged
from flux_klein_async.transport.redis import LEASE
from flux_klein_async.transport.throttle import InProcessLimiter, SharedLimiter
from tests.cells import cells
from tests.fakes import Events, now, strays
from tests.tracebacks import shown_by


def virtual(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


class Service:
    """What the service counts: generations in flight, polls a second."""

    def __init__(self) -> None:
        self.in_flight = self.most = 0
        self.calls: dict[Kind, list[float]] = {Kind.SUBMIT: [], Kind.READ: []}
        self.done: Counter[int] = Counter()

    def most_a_second(self, kind: Kind) -> int:
        """Within any second, wherever it begins."""
        window: deque[float] = deque()
        most = 0
        for at in sorted(self.calls[kind]):
            window.append(at)
            while window[0] <= at - 1:
                window.popleft()
            most = max(most, len(window))
        return most

    async def generation(self, limiter: InProcessLimiter, who: int = 0, seconds: float = 0.5, polls: int = 4) -> None:
        await limiter.acquire()
        try:
            await limiter.turn(Kind.SUBMIT)
            self.calls[Kind.SUBMIT].append(now())
            limiter.over(Kind.SUBMIT)
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
            for _ in range(polls):
                await asyncio.sleep(seconds / polls)
                price = limiter.poll_price()
                await limiter.turn(Kind.READ, price)
                self.calls[Kind.READ].append(now())
                limiter.over(Kind.READ)
            self.in_flight -= 1
            self.done[who] += 1
        finally:
            limiter.release()

    def keep_busy(self, limiter: InProcessLimiter, who: int, tasks: int = 40, **how: Any) -> "asyncio.Future[Any]":
        async def one() -> None:
            while True:
                await self.generation(limiter, who, **how)

        return asyncio.gather(*(one() for _ in range(tasks)))


@asynccontextmanager
async def attached(server: ModelServer, count: int, **options: Any):
    """So many processes that share limits."""
    limiters = [ModelledLimiter(server, **{"max_in_flight": 50, **options}) for _ in range(count)]
    tells: list[Callable[[str | None], None]] = [lambda _: None for _ in limiters]
    for limiter, tell in zip(limiters, tells, strict=True):
        limiter.attach(tell)
    try:
        yield limiters
    finally:
        for limiter, tell in zip(limiters, tells, strict=True):
            await limiter.detach(tell)


async def ended(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_six_processes_never_exceed_the_limits_use_them_and_are_served_alike():
    async def main() -> None:
        server, service = ModelServer(), Service()
        async with attached(server, 6, polls_per_second=200, submits_per_second=100) as limiters:
            busy = [service.keep_busy(limiter, who) for who, limiter in enumerate(limiters)]
            await asyncio.sleep(2)
            service.done.clear()
            begun = {kind: len(calls) for kind, calls in service.calls.items()}
            await asyncio.sleep(10)
            assert service.most == 50
            assert service.most_a_second(Kind.READ) <= 200
            assert service.most_a_second(Kind.SUBMIT) <= 100
            assert len(service.calls[Kind.READ]) - begun[Kind.READ] >= 0.9 * 200 * 10
            counts = [service.done[who] for who in range(6)]
            assert max(counts) <= 1.25 * min(counts)
            await ended(*busy)

    virtual(main())


def test_what_one_process_does_not_need_others_get_and_a_newcomer_its_part():
    async def main() -> None:
        server, service = ModelServer(), Service()
        async with attached(server, 2) as (one, other):
            busy = service.keep_busy(one, 0, tasks=60, polls=1)
            await asyncio.sleep(1)
            assert one._slots.taken == 50
            late = service.keep_busy(other, 1, tasks=60, polls=1)
            await asyncio.sleep(1)
            assert {one._slots.taken, other._slots.taken} == {25}
            assert service.most == 50
            await ended(late)
            await asyncio.sleep(0.5)
            assert one._slots.taken == 50
            await ended(busy)

    virtual(main())


def test_the_part_of_a_killed_process_comes_back_when_its_lease_ends():
    class Unheard(ModelServer):
        async def exchange(self, report: str) -> str:
            return "" if "leaves" in report else await super().exchange(report)

    async def main() -> None:
        service = Service()
        async with attached(Unheard(), 2) as (one, other):
            busy = [service.keep_busy(limiter, 0, tasks=60, polls=1) for limiter in (one, other)]
            await asyncio.sleep(1)
            await ended(*other._tasks, busy[1])
            await asyncio.sleep(LEASE - 0.2)
            assert one._slots.taken == 25
            await asyncio.sleep(0.5)
            assert one._slots.taken == 50
            await ended(busy[0])

    virtual(main())


def test_holds_refusals_and_the_price_of_a_poll_are_felt_by_idle_processes_within_a_fifth_of_a_second():
    async def main() -> None:
        server = ModelServer()
        async with attached(server, 3, polls_per_second=100) as (one, two, three):
            await asyncio.sleep(2.5)
            one.hold(Kind.SUBMIT, now() + 3)
            two.refused(Kind.READ)
            until = one.held_until(Kind.SUBMIT)
            await asyncio.sleep(0.2)
            for limiter in (two, three):
                assert limiter.held_until(Kind.SUBMIT) == pytest.approx(until, abs=0.01)
                assert limiter.poll_price() == 2.0
            two.refused(Kind.SUBMIT)
            await asyncio.sleep(0.2)
            assert server.state["fraction"] == 0.5
            for _ in range(300):
                one.served(Kind.SUBMIT)
                three.served(Kind.READ)
            await asyncio.sleep(2.2)
            assert server.state["fraction"] == 1
            assert {limiter.poll_price() for limiter in (one, three)} == {1.0}

    virtual(main())


@pytest.mark.parametrize(
    ("mode", "forgets", "seconds"),
    cells(["stop", "share"], [False, True], [4, 60], fast=[("stop", False, 4), ("share", True, 60)]),
)
def test_without_redis_nothing_is_submitted_or_each_process_has_an_even_part(mode, forgets, seconds, caplog):
    submits = 60 if mode == "share" else 0

    async def main() -> None:
        server, service = ModelServer(), Service()
        async with attached(server, 2, polls_per_second=200, when_unavailable=mode) as limiters:
            busy = [service.keep_busy(limiter, who) for who, limiter in enumerate(limiters)]
            await asyncio.sleep(3)
            server.stop()
            await asyncio.sleep(0.2)
            begun, done = len(service.calls[Kind.SUBMIT]), sum(service.done.values())
            await asyncio.sleep(seconds)
            assert (len(service.calls[Kind.SUBMIT]) - begun > submits) is bool(submits)
            assert sum(service.done.values()) - done >= 40  # those that ran were waited for
            assert service.most <= 50
            server.error = None
            if forgets:
                server.forget()  # a failover to an empty server
            await asyncio.sleep(LEASE + 4)
            assert service.most <= 50
            assert service.most_a_second(Kind.READ) <= 200
            assert len(service.calls[Kind.SUBMIT]) - begun > 100
            await ended(*busy)

    virtual(main())
    lines = [record.getMessage() for record in caplog.records if "Redis" in record.getMessage()]
    assert len(lines) == 4
    assert ("without new submits" in lines[0]) is (mode == "stop")


def test_a_process_that_never_reached_redis_waits_or_works_alone():
    async def main() -> list[int]:
        found = []
        for mode in ("stop", "share"):
            server, service = ModelServer(), Service()
            server.stop()
            async with attached(server, 1, polls_per_second=50, when_unavailable=mode) as (limiter,):
                busy = service.keep_busy(limiter, 0, polls=1)
                await limiter.turn(Kind.READ)  # a request that runs already
                await asyncio.sleep(5)
                found.append(service.most)
                await ended(busy)
        return found

    assert virtual(main()) == [0, 1]


def test_a_process_that_was_suspended_past_its_lease_renews_it_before_it_submits():
    async def main() -> None:
        server = ModelServer(delay=0.05)
        async with attached(server, 1) as (limiter,):
            await limiter.acquire()
            await limiter.turn(Kind.SUBMIT)
            limiter._lease_ends = now()
            before = server.exchanges
            await limiter.turn(Kind.SUBMIT)
            assert server.exchanges > before
            limiter.release()

    virtual(main())


def test_it_closes_even_if_the_client_of_redis_hides_the_cancellation():
    class Abrupt(ModelServer):
        async def news(self) -> AsyncIterator[None]:
            try:
                async for _ in super().news():
                    yield
            finally:
                raise RedisConnectionError("Connection closed by server")

        async def exchange(self, report: str) -> str:
            try:
                return await super().exchange(report)
            except asyncio.CancelledError:
                return await super().exchange(report)

    async def main() -> None:
        for seconds in (0.0, 0.0002, 1.0):  # before anything, in an exchange, between two
            async with asyncio.timeout(10), attached(Abrupt(), 2):
                await asyncio.sleep(seconds)
        assert strays() == []

    virtual(main())


def test_credentials_that_redis_refuses_end_the_call():
    async def main() -> None:
        server = ModelServer()
        server.error = AuthenticationError("invalid username-password pair")
        async with attached(server, 1, polls_per_second=5) as (limiter,):
            await limiter.acquire()
            with pytest.raises(ConfigurationError, match="invalid username-password pair"):
                await limiter.turn(Kind.SUBMIT)
            await limiter.turn(Kind.READ)
            await asyncio.sleep(1)
            assert limiter._tasks[0].done()

    virtual(main())


def test_fewer_slots_than_processes_go_round():
    async def main() -> None:
        server, service = ModelServer(), Service()
        async with attached(server, 3, max_in_flight=1) as limiters:
            busy = [service.keep_busy(limiter, who, polls=1) for who, limiter in enumerate(limiters)]
            await asyncio.sleep(20)
            assert service.most == 1
            assert all(service.done[who] for who in range(3))
            await ended(*busy)

    virtual(main())


def test_a_client_opens_and_closes_it_tells_its_events_and_two_share_it():
    async def main() -> None:
        server, events = ModelServer(), Events()
        limiter = ModelledLimiter(server, max_in_flight=4, limits=Limits(halt_after=None))
        assert isinstance(limiter, SharedLimiter)
        async with InProcessEmulator() as emulator:
            made = {"base_url": emulator.base_url, "api_key": emulator.api_key, "session": emulator.session()}
            async with FluxKleinClient(**made, limits=limiter, on_event=events) as client:
                assert client._halt_after is None
                async with FluxKleinClient(**made, limits=limiter) as second:
                    await second.generate("a")
                assert len(await client.generate_all(["a"] * 9)) == 9
                server.stop()
                await asyncio.sleep(1)
                with pytest.raises(APITimeoutError, match="the limiter's, or it is unavailable"):
                    await client.submit("a", timeout=1)
                waiting = asyncio.ensure_future(client.generate("a"))
                await asyncio.sleep(1)
                server.error = None
                assert (await waiting).image_url
            assert [event.available for event in events.of(LimiterChanged)] == [False, True]
            assert server.leases == {}
            assert server.parts == {}
            limiter.attach(print)  # again, later
            await limiter.detach(print)
            await limiter.detach(print)
        assert strays() == []

    virtual(main())


async def test_it_belongs_to_one_loop_at_a_time():
    server = ModelServer()
    limiter = ModelledLimiter(server, max_in_flight=4)
    limiter.attach(print)

    async def elsewhere() -> None:
        limiter.attach(repr)

    with pytest.raises(ConfigurationError, match="in use in another event loop"):
        await asyncio.to_thread(asyncio.run, elsewhere())
    await limiter.detach(print)
    await asyncio.to_thread(asyncio.run, elsewhere())  # dropped unclosed, with its loop
    limiter.attach(print)
    await limiter.detach(print)


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("http://host", {}, "needs a URL such as"),
        ("redis://user:pass/word@host:6379", {}, "needs a URL such as"),
        ("redis://host", {"max_in_flight": 0}, "max_in_flight"),
        ("redis://host", {"polls_per_second": 0}, "polls_per_second"),
        ("redis://host", {"when_unavailable": "go"}, "when_unavailable"),
    ],
)
def test_unusable_settings_are_refused_without_the_password(url, options, words):
    with pytest.raises(ConfigurationError, match=words) as refused:
        RedisLimiter(url, **{"max_in_flight": 1, **options})
    assert "word" not in str(refused.value)
    assert refused.value.__cause__ is refused.value.__context__ is None
    assert shown_by(refused.value, "redis://") == []  # nor does a variable of a frame hold it, and every repr works


def test_it_shows_no_password():
    assert "hidden" not in repr(RedisLimiter("redis://:hidden@host", max_in_flight=1))


def test_an_answer_that_makes_no_sense_counts_as_none(caplog):
    class Odd(ModelServer):
        async def exchange(self, report: str) -> str:
            await asyncio.sleep(0.001)
            return "nonsense"

        async def news(self) -> AsyncIterator[None]:
            raise ConnectionResetError
            yield

    async def main() -> None:
        async with attached(Odd(), 1) as (limiter,):
            await asyncio.sleep(3)
            assert limiter._unavailable is not None

    caplog.set_level(logging.WARNING)
    virtual(main())
    assert "JSONDecodeError" in caplog.text
