"""What all calls share: exact sleeping, and the gate that obeys the service's wish for patience."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from flux_klein_async import ConfigurationError, FixedPolling, Limits, ModelInfo, Observation, Progress, RetryPolicy
from flux_klein_async.api.messages import Kind
from flux_klein_async.emulator import Generation, Pass, Reply, error_reply
from flux_klein_async.events import Held, Retrying
from flux_klein_async.flow.core import sleep_until
from flux_klein_async.transport.pacing import InProcessLimiter
from tests.fakes import Events, now, outcome, settle

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


@pytest.mark.usefixtures("klein_emulator")
async def test_a_cancelled_sleep_leaves_no_timer():
    loop: Any = asyncio.get_running_loop()
    task = asyncio.ensure_future(sleep_until(loop, 1e6))
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait({task})
    assert [timer.when() for timer in loop._scheduled if not timer.cancelled()] == []


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
    assert 33.0 <= now() < 33.1  # the wait's look and this one come back one after the other
    await waiting


async def test_who_waits_for_the_end_of_a_hold_obeys_a_longer_one_that_comes_meanwhile(klein_emulator, connect):
    client = connect(timeout=600, retry=RetryPolicy(attempts=1))
    klein_emulator.script("status", Reply(429, {}, {"Retry-After": "30"}, delay=2.0))
    klein_emulator.script("model", error_reply(429, retry_after=5))
    under_way = asyncio.ensure_future(outcome(client.status("x")))
    await settle()
    await outcome(client.model())
    await client.model()
    assert now() == 32.0
    await under_way


async def test_only_a_hundred_unknown_words_are_logged(klein_emulator, connect, caplog):
    klein_emulator.script("status", *[Reply(200, {"status": f"word {number}"}) for number in range(150)])
    with caplog.at_level(logging.WARNING):
        await outcome(connect(polling=EVERY_SECOND, timeout=160).wait_for_result("x"))
    unknown = [record for record in caplog.records if "Unknown state" in record.getMessage()]
    assert len(unknown) == 100
    assert {record.name for record in unknown} == {"flux_klein_async"}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Reply(200, {"status": "in_queue"}), "served"),
        (Reply(302, ""), "served"),
        (error_reply(400), None),
        (error_reply(404), None),
        (error_reply(429), "refused"),
        (error_reply(429, retry_after=1), "refused"),
        (error_reply(500, retry_after=1), None),
        (error_reply(503), None),
        (error_reply(503, retry_after=1), "refused"),
        (error_reply(503, retry_after=0), "refused"),
    ],
)
async def test_the_limiter_is_told_what_it_can_learn_from(klein_emulator, connect, answer, told):
    found: list[tuple[str, Kind]] = []

    class Told(InProcessLimiter):
        def served(self, kind: Kind) -> None:
            found.append(("served", kind))

        def refused(self, kind: Kind) -> None:
            found.append(("refused", kind))

    klein_emulator.script("status", answer)
    await outcome(connect(limits=Told(Limits()), retry=RetryPolicy(attempts=1)).status("x"))
    assert found == ([(told, Kind.READ)] if told else [])


async def test_a_repeat_is_told_with_its_pause_and_its_cause(klein_emulator, connect):
    events = Events()
    klein_emulator.script("status", error_reply(429, retry_after=2), Reply(200, {"status": "in_queue"}))
    await asyncio.sleep(1.5)
    await connect(on_event=events).status("x")
    klein_emulator.script("submit", error_reply(429, retry_after=3))
    await connect(on_event=events).generate("a cat", tag="mine")
    facts = [(event.at, event.request_id, event.tag, event.attempt, event.seconds) for event in events.of(Retrying)]
    assert facts == [(1.5, "x", None, 2, 2.0), (3.5, None, "mine", 2, 3.0)]
    assert all("HTTP 429" in event.error for event in events.of(Retrying))


async def test_an_outage_is_not_multiplied_and_polite_refusals_are_no_outage(klein_emulator, connect):
    client = connect(timeout=None)
    klein_emulator.script("model", *[error_reply(500)] * 126, *[Pass()] * 5, *[error_reply(500)] * 9)
    for _ in range(26):  # a hundred repeats, then none
        await outcome(client.model())
    assert klein_emulator.calls["model"] == 126
    klein_emulator.script("submit", *[error_reply(429)] * 3)
    await client.submit("a cat")
    for _ in range(5):  # five successes pay for one repeat
        await client.model()
    klein_emulator.script("status", *[error_reply(500)] * 9)
    await outcome(client.status("x"))
    assert klein_emulator.calls["status"] == 2


@pytest.mark.parametrize("timeout", [5.01, 6, 30])
async def test_a_hold_costs_nobody_more_than_it_asked_for(klein_emulator, connect, timeout):
    """Who is let in gradually after a hold is let in before its deadline."""
    client = connect(timeout=timeout, polling=EVERY_SECOND, limits=Limits(max_in_flight=500))
    klein_emulator.script("model", error_reply(429, retry_after=4))
    outcomes = await asyncio.gather(client.model(), *(outcome(client.model()) for _ in range(300)))
    assert {type(found) for found in outcomes} == {ModelInfo}
    assert now() <= 6


@pytest.mark.parametrize("waits", [64, 500])
async def test_a_refused_look_with_a_short_hold_loses_no_wait(klein_emulator, connect, waits):
    client = connect(timeout=6, polling=EVERY_SECOND, limits=Limits(max_in_flight=waits))
    klein_emulator.script("status", error_reply(429, retry_after=1))
    outcomes = await client.generate_all(["a cat"] * waits)
    assert [item.error for item in outcomes if item.error] == []
    assert now() <= 6


async def test_a_ceiling_holds_after_a_hold_too(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND, timeout=None, limits=Limits(max_in_flight=100, looks_per_second=5))
    klein_emulator.script("status", None, None, error_reply(429, retry_after=20))
    klein_emulator.script("submit", *[Generation(after=0.5)] * 100)
    await client.generate_all(["a cat"] * 100)
    looks = sorted(record.at for record in klein_emulator.records if record.endpoint == "status")
    assert max(sum(at <= other < at + 1 for other in looks) for at in looks) <= 6
    assert not any(1.4 < at < 21.4 for at in looks)


async def test_a_long_unknown_word_is_logged_shortened(klein_emulator, connect, caplog):
    klein_emulator.script("status", *[Reply(200, {"status": "x" * 5000 + str(number)}) for number in range(3)])
    await outcome(connect(polling=EVERY_SECOND, timeout=4).wait_for_result("x"))
    [line] = [record.getMessage() for record in caplog.records]
    assert line == f"Unknown state '{'x' * 40}'; waiting on until the deadline"


async def test_without_a_handler_a_generation_says_nothing(klein_emulator, connect, caplog):
    caplog.set_level(logging.INFO, "flux_klein_async")
    await connect().generate("a cat")
    assert caplog.records == []


async def test_a_limiter_that_raises_costs_no_connection(klein_emulator, connect):
    class Moody(InProcessLimiter):
        asked = 0

        def held_until(self, kind: Kind) -> float:
            self.asked += 1
            if self.asked == 2:  # with the connection in hand
                raise ZeroDivisionError
            return super().held_until(kind)

    session = klein_emulator.session(connector=klein_emulator.connector(limit=1))
    client = connect(session=session, limits=Moody(Limits()), timeout=9)
    assert type(await outcome(client.model())) is ConfigurationError
    assert (type(await outcome(client.model())), now() < 1) == (ModelInfo, True)


# --- learning


class Pupil:
    """A policy that keeps what it learned."""

    def __init__(self) -> None:
        self.learned = 0
        self.threads: list[int] = []
        self.saved: list[int] = []

    def next_look(self, _progress: Progress) -> float:
        return 0.5

    def observe(self, _observation: Observation) -> None:
        self.learned += 1

    def unsaved(self, at_least: int = 1) -> Callable[[], None] | None:
        return self.save if self.learned >= at_least else None

    def save(self) -> None:
        self.threads.append(threading.get_ident())
        self.saved.append(self.learned)
        self.learned = 0


async def test_what_a_policy_learned_is_saved_every_two_hundred_waits_and_at_the_end(klein_emulator, connect):
    pupil = Pupil()
    client = connect(polling=pupil)
    for batch, saved in [(199, []), (2, [200])]:
        await client.generate_all(["a cat"] * batch, concurrency=1)
        if under_way := client._core.background._tasks:
            await asyncio.wait(set(under_way))
        assert pupil.saved == saved
    await client.aclose()
    assert pupil.saved == [200, 1]
    assert threading.get_ident() not in pupil.threads


async def test_nothing_learned_is_nothing_saved(klein_emulator, connect):
    pupil = Pupil()
    client = connect(polling=pupil)
    await client.submit("a cat")
    await client.aclose()
    assert pupil.saved == []


# --- many calls at once


async def test_after_a_hold_looks_come_back_gradually(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND, timeout=600, limits=Limits(max_in_flight=500))
    klein_emulator.script("status", error_reply(429, retry_after=5))
    await client.generate_all(["a cat"] * 500)
    reads = [record.at for record in klein_emulator.records if record.endpoint in ("status", "result")]
    held = [at for at in reads if at > 1.0]
    assert min(held) == 6.0
    first, second, third, fourth = (sum(6.0 + part / 2 <= at < 6.5 + part / 2 for at in held) for part in range(4))
    assert 0 < first < second < third < fourth
    assert max(held) <= 9.0


async def test_submits_that_queue_for_a_connection_obey_a_hold_that_comes_meanwhile(klein_emulator, connect):
    client = connect(limits=Limits(max_connections=2), timeout=60)
    klein_emulator.script("submit", Pass(1.0), Reply(429, {}, {"Retry-After": "5"}, delay=1.0))
    await client.generate_all(["a cat"] * 10)
    submits = [record.at for record in klein_emulator.records if record.endpoint == "submit"]
    assert submits[:2] == [0.0, 0.0]
    assert all(at >= 6.0 for at in submits[2:])
    assert (len(submits), klein_emulator.accepted) == (11, 10)


async def test_looks_and_results_go_before_submits_where_connections_are_scarce(klein_emulator, connect):
    klein_emulator.fault("submit", Pass(0.1), probability=1)
    client = connect(limits=Limits(max_connections=1), polling=FixedPolling(0.2))
    outcomes = await client.generate_all(["a cat"] * 30)
    assert now() > 3.0  # one after the other
    assert max(item.result.timings.lag_max for item in outcomes) <= 0.2 + 0.1 + 1e-9


async def test_a_small_borrowed_pool_is_what_is_shared(klein_emulator, connect):
    session = klein_emulator.session(connector=klein_emulator.connector(limit=10, limit_per_host=1))
    klein_emulator.fault("model", Pass(1.0), probability=1)
    client = connect(session=session)
    results = [asyncio.ensure_future(client.model()) for _ in range(3)]
    await asyncio.sleep(0.5)
    assert klein_emulator.calls["model"] == 1
    await asyncio.gather(*results)
    assert now() == 3.0


async def test_refused_submits_lower_the_number_in_flight_and_success_raises_it(klein_emulator, connect):
    """The service takes 8 at once and says so by 429 to the rest."""
    refusals = 0
    client = connect(limits=Limits(max_in_flight=64), timeout=None, polling=EVERY_SECOND)
    limiter = client._core.limiter
    seen = []

    original = klein_emulator.engine.handle

    def handle(call, at):
        nonlocal refusals
        queue = klein_emulator.engine.service.queue
        queue.advance(at)
        if call.method == "POST" and "/models/" in call.target:
            running = sum(job.state == "in_progress" for job in queue.jobs.values())
            if running >= 8:
                refusals += 1
                return error_reply(429, retry_after=1)
            seen.append(limiter.in_flight_limit)
        return original(call, at)

    klein_emulator.engine.handle = handle
    outcomes = await client.generate_all(["a cat"] * 300)
    assert all(item.error is None for item in outcomes)
    assert max(seen) == 64
    assert min(seen) < 16
    assert refusals < 300
