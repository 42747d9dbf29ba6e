"""What all calls of a client share: background tasks, guarded parts, holds, connections, learning, and its end."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from flux_klein_async import (
    ClientClosedError,
    ConfigurationError,
    DownloadError,
    FixedPolling,
    FluxKleinClient,
    FluxKleinError,
    GenerationResult,
    InvalidInputError,
    Limits,
    ModelInfo,
    Observation,
    Progress,
    RateLimitError,
    RetryPolicy,
    ServerError,
    SqliteJournal,
)
from flux_klein_async.api.messages import Kind
from flux_klein_async.emulator import Generation, Hang, InProcessEmulator, Pass, Reply, VirtualTimeLoop, error_reply
from flux_klein_async.events import Closed, Held, Retrying
from flux_klein_async.journal.base import NoBudget
from flux_klein_async.operations import wait
from flux_klein_async.operations.context import _MOST_MODELS, Background, KnownIds, UnderWay
from flux_klein_async.operations.operation import sleep_until
from flux_klein_async.transport.throttle import InProcessLimiter
from tests.cells import cells
from tests.fakes import Events, now, outcome, png, settle, strays
from tests.operations.helpers import EVERY_SECOND, Book, abandoned, sent

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


@pytest.mark.parametrize(
    ("error", "text"),
    [(KeyError("mine"), "A background task failed"), (ServerError("ours"), "A background task failed: ours")],
)
async def test_a_job_that_fails_is_logged_and_does_not_stop_the_others(caplog, error, text):
    background, done = Background(), []

    async def broken() -> None:
        raise error

    async def job() -> None:
        done.append(True)

    for _ in range(2 * Background.AT_ONCE):
        background.queue(broken)
    background.queue(job)
    background.start(broken)
    await settle()
    told = {(record.name, record.getMessage()) for record in caplog.records}
    assert (told, done) == ({("flux_klein_async", text)}, [True])
    # The trace of a defect is logged, that of an error of the package is not.
    assert {bool(record.exc_info) for record in caplog.records} == {isinstance(error, KeyError)}


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


def breaking(base: Any, method: str, error: BaseException) -> Any:
    """A part that does its work, and raises in one of its methods."""
    plain = getattr(base, method)

    def call(*arguments: Any) -> Any:
        plain(*arguments)
        raise error

    async def call_later(*arguments: Any) -> Any:
        await plain(*arguments)
        raise error

    setattr(base, method, call_later if asyncio.iscoroutinefunction(plain) else call)
    return base


def limiter(method: str, error: BaseException | None = None) -> Any:
    return breaking(InProcessLimiter(Limits()), method, error or LookupError("mine"))


ACCEPTED_YET_REFUSED = Reply(429, {"request_id": "known-1"}, {"Retry-After": "1"})


@pytest.mark.parametrize(
    ("method", "answer"),
    [("served", None), ("release", None), ("refused", ACCEPTED_YET_REFUSED), ("hold", ACCEPTED_YET_REFUSED)],
)
async def test_what_a_limiter_is_told_it_may_not_lose(klein_emulator, connect, caplog, method, answer):
    client = connect(limits=limiter(method))
    klein_emulator.script("submit", answer)
    if answer is None:
        assert isinstance(await client.generate("a cat"), GenerationResult)
    else:
        assert (await client.submit("a cat")).request_id == "known-1"
    assert klein_emulator.calls["submit"] == 1
    assert {record.getMessage() for record in caplog.records} == {"The limiter raised; ignored"}
    assert "LookupError: mine" in caplog.text


@pytest.mark.parametrize(
    ("method", "charged"),
    [("acquire", "no"), ("held_until", "no"), ("admit", "no"), ("poll_price", "unknown"), ("turn", "no")],
)
async def test_a_limiter_that_cannot_be_asked_ends_the_call_and_keeps_the_id(klein_emulator, connect, method, charged):
    part = limiter(method)
    if method == "admit":
        part.hold(Kind.SUBMIT, 5.0)
    error = await outcome(connect(limits=part).generate("a cat"))
    assert (type(error), error.charged, error.cause) == (ConfigurationError, charged, "LookupError: mine")
    assert isinstance(error.__cause__, LookupError)
    assert [error.request_id] == ([*klein_emulator.completions] or [None])


@pytest.mark.parametrize("error", [RateLimitError("not today", status_code=429), asyncio.CancelledError()])
async def test_errors_of_ours_and_cancellations_pass_unchanged(klein_emulator, connect, error):
    with pytest.raises(type(error)) as caught:
        await connect(limits=limiter("acquire", error)).generate("a cat")
    assert isinstance(error, asyncio.CancelledError) or caught.value is error


@pytest.mark.parametrize(
    ("method", "answer", "kind"),
    [("accepted", None, GenerationResult), ("settle", None, GenerationResult), ("release", error_reply(402), None)],
)
async def test_what_a_budget_is_told_it_may_not_lose(klein_emulator, connect, caplog, method, answer, kind):
    client = connect(budget=breaking(NoBudget(), method, LookupError("mine")))
    klein_emulator.script("submit", answer)
    found = await outcome(client.generate("a cat"))
    assert isinstance(found, kind or FluxKleinError)
    assert {record.getMessage() for record in caplog.records} == {"The budget raised; ignored"}


async def test_a_budget_that_cannot_be_asked_pays_for_nothing(klein_emulator, connect):
    error = await outcome(connect(budget=breaking(NoBudget(), "reserve", LookupError("mine"))).generate("a cat"))
    assert (type(error), error.charged, error.cause) == (ConfigurationError, "no", "LookupError: mine")
    assert klein_emulator.calls["submit"] == 0


@pytest.mark.parametrize("when", [0.1 + 0.2, 1 / 3, 1e6 + 0.1, -5.0])
async def test_sleeping_until_an_instant_ends_at_that_very_instant(when):
    await sleep_until(asyncio.get_running_loop(), when)
    assert now() == max(when, 0.0)


@pytest.mark.parametrize("end", [1.0, 1e6])
async def test_a_cancelled_sleep_leaves_no_trace_even_in_the_instant_of_its_end(end):
    loop: Any = asyncio.get_running_loop()
    task = asyncio.ensure_future(sleep_until(loop, end))
    await asyncio.sleep(0)
    loop.call_at(1.0, task.cancel)  # after the sleep's own timer
    [found] = await asyncio.gather(task, return_exceptions=True)
    assert (isinstance(found, asyncio.CancelledError), now()) == (True, 1.0)
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
    await client.get_model()
    assert 33.0 <= now() < 33.1  # the wait's poll and this one come back one after the other
    await waiting


async def test_who_waits_for_the_end_of_a_hold_obeys_a_longer_one_that_comes_meanwhile(klein_emulator, connect):
    client = connect(timeout=600, retry=RetryPolicy(attempts=1))
    klein_emulator.script("status", Reply(429, {}, {"Retry-After": "30"}, delay=2.0))
    klein_emulator.script("model", error_reply(429, retry_after=5))
    under_way = asyncio.ensure_future(outcome(client.status("x")))
    await settle()
    await outcome(client.get_model())
    await client.get_model()
    assert now() == 32.0
    await under_way


async def test_only_a_hundred_unknown_words_are_logged_each_shortened(klein_emulator, connect, caplog):
    words = ["x" * 5000, "x" * 5001, *(f"word {number}" for number in range(150))]
    klein_emulator.script("status", *[Reply(200, {"status": word}) for word in words])
    await outcome(connect(polling=EVERY_SECOND, timeout=160).wait_for_result("x"))
    lines = [record.getMessage() for record in caplog.records if record.name == "flux_klein_async"]
    assert (len(lines), lines[0]) == (100, f"Unknown state '{'x' * 40}'; waiting on until the deadline")


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
        await outcome(client.get_model())
    assert klein_emulator.calls["model"] == 126
    klein_emulator.script("submit", *[error_reply(429)] * 3)
    await client.submit("a cat")
    for _ in range(5):  # five successes pay for one repeat
        await client.get_model()
    klein_emulator.script("status", *[error_reply(500)] * 9)
    await outcome(client.status("x"))
    assert klein_emulator.calls["status"] == 2


@pytest.mark.parametrize("timeout", [5.01, 6, 30])
async def test_a_hold_costs_nobody_more_than_it_asked_for(klein_emulator, connect, timeout):
    """Who is let in gradually after a hold is let in before its deadline."""
    client = connect(timeout=timeout, polling=EVERY_SECOND, limits=Limits(max_in_flight=500))
    klein_emulator.script("model", error_reply(429, retry_after=4))
    outcomes = await asyncio.gather(client.get_model(), *(outcome(client.get_model()) for _ in range(300)))
    assert {type(found) for found in outcomes} == {ModelInfo}
    assert now() <= 6


@pytest.mark.parametrize("waits", cells([64, 500], fast=[(64,)]))
async def test_a_refused_poll_with_a_short_hold_loses_no_wait(klein_emulator, connect, waits):
    client = connect(timeout=6, polling=EVERY_SECOND, limits=Limits(max_in_flight=waits))
    klein_emulator.script("status", error_reply(429, retry_after=1))
    outcomes = await client.generate_all(["a cat"] * waits)
    assert [item.error for item in outcomes if item.error] == []
    assert now() <= 6


async def test_a_ceiling_holds_after_a_hold_too(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND, timeout=None, limits=Limits(max_in_flight=100, polls_per_second=5))
    klein_emulator.script("status", None, None, error_reply(429, retry_after=20))
    klein_emulator.script("submit", *[Generation(after=0.5)] * 100)
    await client.generate_all(["a cat"] * 100)
    polls = sorted(sent(klein_emulator, "status"))
    assert max(sum(at <= other < at + 1 for other in polls) for at in polls) <= 6
    assert not any(1.4 < at < 21.4 for at in polls)


async def test_without_a_handler_a_generation_says_nothing(klein_emulator, connect, caplog):
    caplog.set_level(logging.INFO, "flux_klein_async")
    await connect().generate("a cat")
    assert caplog.records == []


async def test_a_limiter_that_raises_costs_no_connection(klein_emulator, connect):
    class Moody(InProcessLimiter):
        asked = 0

        def held_until(self, kind: Kind) -> float:
            self.asked += 1
            if self.asked == 3:  # with the connection in hand that the second call waited for
                raise ZeroDivisionError
            return super().held_until(kind)

    session = klein_emulator.session(connector=klein_emulator.connector(limit=1))
    client = connect(session=session, limits=Moody(Limits()), timeout=9)
    ends = await asyncio.gather(outcome(client.get_model()), outcome(client.get_model()))
    assert [type(end) for end in ends] == [ModelInfo, ConfigurationError]
    assert (type(await outcome(client.get_model())), now() < 1) == (ModelInfo, True)


# --- learning


class Pupil:
    """A policy that keeps what it learned."""

    def __init__(self) -> None:
        self.learned = 0
        self.threads: list[int] = []
        self.saved: list[int] = []

    def next_poll(self, _progress: Progress) -> float:
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
    await client.submit("nothing to learn")
    for batch, saved in [(199, []), (2, [200])]:
        await client.generate_all(["a cat"] * batch, concurrency=1)
        if under_way := client._context.background._tasks:
            await asyncio.wait(set(under_way))
        assert pupil.saved == saved
    await client.aclose()
    await connect(polling=pupil).aclose()  # nothing is left to save
    assert pupil.saved == [200, 1]
    assert threading.get_ident() not in pupil.threads


class Unlucky(Pupil):
    """A policy that can never tell what it learned."""

    def unsaved(self, at_least: int = 1) -> Callable[[], None] | None:
        raise OSError("the disk is gone")


@pytest.mark.parametrize("trouble", ["policy", "thread"])
async def test_what_cannot_be_saved_costs_no_result(klein_emulator, connect, monkeypatch, trouble):
    monkeypatch.setattr(wait, "_SAVED_EVERY", 1)
    client = connect(polling=Unlucky() if trouble == "policy" else Pupil())
    if trouble == "thread":
        client._context.threads.shutdown()
    assert (await client.generate("a cat")).urls
    await client.aclose()
    assert klein_emulator.calls["cancel"] == 0


async def test_where_no_thread_can_start_each_verb_has_its_own_error_and_pays_for_nothing(
    klein_emulator, connect, tmp_path
):
    """An executor that is shut down refuses a job as one does that can start no thread."""
    (tmp_path / "in.png").write_bytes(png())
    edit: dict[str, Any] = {"prompt": "night", "image_urls": [tmp_path / "in.png"]}
    editor = "blackforestlabs/flux-2/dev/edit"
    journal = SqliteJournal(tmp_path / "run.sqlite")
    client = connect(journal=journal)
    [known] = await client.generate_all(["a cat"], directory=tmp_path / "out")
    paid = klein_emulator.accepted
    client._context.threads.shutdown()
    errors = [
        await outcome(client.submit(edit, model=editor)),
        (await client.generate_all([edit], model=editor))[0].error,
        (await client.generate_all(["a dog"], directory=tmp_path / "out"))[0].error,
        (await client.generate_all(["a cat"], directory=tmp_path / "out"))[0].error,
        await outcome(client.download(known.result, tmp_path)),
    ]
    await journal.aclose()
    assert [type(error) for error in errors] == [ConfigurationError] * 3 + [DownloadError] * 2
    assert all("thread" in str(error) for error in errors)
    assert (klein_emulator.accepted, list(tmp_path.glob(".*"))) == (paid, [])


# --- many calls at once


async def test_after_a_hold_polls_come_back_gradually(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND, timeout=600, limits=Limits(max_in_flight=250))
    klein_emulator.script("status", error_reply(429, retry_after=5))
    await client.generate_all(["a cat"] * 250)
    held = [at for at in (*sent(klein_emulator, "status"), *sent(klein_emulator, "result")) if at > 1.0]
    assert min(held) == 6.0
    first, second, third, fourth = (sum(6.0 + part / 2 <= at < 6.5 + part / 2 for at in held) for part in range(4))
    assert 0 < first < second < third < fourth
    assert max(held) <= 9.0


async def test_submits_that_queue_for_a_connection_obey_a_hold_that_comes_meanwhile(klein_emulator, connect):
    client = connect(limits=Limits(max_connections=3), timeout=60)  # one is kept for polls
    klein_emulator.script("submit", Pass(1.0), Reply(429, {}, {"Retry-After": "5"}, delay=1.0))
    await client.generate_all(["a cat"] * 10)
    submits = sent(klein_emulator, "submit")
    assert submits[:2] == [0.0, 0.0]
    assert all(at >= 6.0 for at in submits[2:])
    assert (len(submits), klein_emulator.accepted) == (11, 10)


async def test_slow_submits_hold_up_no_short_poll_where_connections_are_scarce(klein_emulator, connect):
    klein_emulator.fault("submit", Pass(0.1), probability=1)
    client = connect(limits=Limits(max_connections=1), polling=FixedPolling(0.2))
    outcomes = await client.generate_all(["a cat"] * 30)
    assert now() > 3.0  # one after the other
    assert max(item.result.timings.lag_max for item in outcomes) <= 0.2 + 0.1 + 1e-9


async def test_a_small_borrowed_pool_is_what_is_shared(klein_emulator, connect):
    session = klein_emulator.session(connector=klein_emulator.connector(limit=10, limit_per_host=1))
    klein_emulator.fault("model", Pass(1.0), probability=1)
    client = connect(session=session)
    results = [asyncio.ensure_future(client.get_model()) for _ in range(3)]
    await asyncio.sleep(0.5)
    assert klein_emulator.calls["model"] == 1
    await asyncio.gather(*results)
    assert now() == 3.0


async def test_refused_submits_lower_the_number_in_flight_and_success_raises_it(klein_emulator, connect):
    """The service takes 8 at once and says so by 429 to the rest."""
    refusals = 0
    client = connect(limits=Limits(max_in_flight=64), timeout=None, polling=EVERY_SECOND)
    limiter = client._context.limiter
    seen = []

    original = klein_emulator.handle

    def handle(method, target, headers, body, at):
        nonlocal refusals
        queue = klein_emulator.service.queue
        queue.advance(at)
        if method == "POST" and "/models/" in target:
            running = sum(job.state == "in_progress" for job in queue.jobs.values())
            if running >= 8:
                refusals += 1
                return error_reply(429, retry_after=1)
            seen.append(limiter.in_flight_limit)
        return original(method, target, headers, body, at)

    klein_emulator.handle = handle
    outcomes = await client.generate_all(["a cat"] * 300)
    assert all(item.error is None for item in outcomes)
    assert max(seen) == 64
    assert min(seen) < 16
    assert refusals < 300


async def test_closing_twice_gives_the_same_answer_and_use_after_it_is_an_error(klein_emulator, connect):
    assert await connect().aclose() == ()  # never used
    client = connect()
    await client.generate("a cat")
    assert (await client.aclose(), await client.aclose()) == ((), ())
    for call in (client.generate("a dog"), client.get_model(), client.status("x"), client.submit("a dog")):
        assert type(await outcome(call)) is ClientClosedError
    assert "closed" in repr(client)


@pytest.mark.parametrize("drain", [0.0, 2.0])
async def test_calls_under_way_end_with_client_closed_after_the_drain(klein_emulator, connect, drain):
    events = Events()
    client = connect(polling=EVERY_SECOND, on_event=events)
    klein_emulator.script("submit", Generation(after=0.5), Generation(after=50), Generation(after=50))
    calls = [
        asyncio.ensure_future(outcome(client.generate("done within two seconds"))),
        asyncio.ensure_future(outcome(client.generate("left", on_abandon="leave"))),
        asyncio.ensure_future(outcome(client.generate("cancelled"))),
    ]
    await asyncio.sleep(0.25)
    left = await client.aclose(drain=drain)
    assert now() == 0.25 + drain
    first, *others = await asyncio.gather(*calls)
    assert isinstance(first, ClientClosedError if drain == 0 else GenerationResult)
    assert [type(error) for error in others] == [ClientClosedError] * 2
    assert {error.charged for error in others} == {"unknown"}
    # The emulator runs them all at once: none could be cancelled any more.
    still = {error.request_id for error in others} | ({first.request_id} if drain == 0 else set())
    assert set(left) == still
    assert [event.left_running for event in events.of(Closed)] == [left]
    assert strays() == []


async def test_what_is_cancelled_upstream_while_closing_is_not_left_running(connect):
    async with InProcessEmulator(workers=0) as idle:
        client = connect(idle.api_key, session=idle.session())
        call = asyncio.ensure_future(outcome(client.generate("a cat")))
        await asyncio.sleep(1)
        assert await client.aclose() == ()
        assert isinstance(await call, ClientClosedError)


@pytest.mark.parametrize(("count", "shown"), [(50, 10), (11, 10), (10, 10)])
async def test_closing_takes_five_seconds_at_most_beyond_its_drain(klein_emulator, connect, caplog, count, shown):
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("cancel", *[Hang()] * 100)
    klein_emulator.script("submit", *[Generation(after=500)] * count)
    calls = [asyncio.ensure_future(outcome(client.generate("a cat"))) for _ in range(count)]
    await asyncio.sleep(1.5)
    left = await client.aclose(drain=3)
    assert now() == 1.5 + 3 + 5
    assert len(left) == count
    [line] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Closed")]
    more = f" and {count - shown} more" if count > shown else ""
    assert line == f"Closed; still running: {', '.join(left[:shown])}{more}"
    await asyncio.gather(*calls)
    assert strays() == []


class Stubborn(InProcessLimiter):
    """A shared limiter that does not let go, or cannot be attached."""

    def __init__(self, error: Exception | None = None) -> None:
        self.limits = Limits()
        self.error = error
        super().__init__(self.limits)

    def attach(self, _tell: Callable[[str | None], None]) -> None:
        if self.error is not None:
            raise self.error

    async def detach(self, _tell: Callable[[str | None], None]) -> None:
        await asyncio.sleep(100)


async def test_a_shared_limiter_holds_up_no_closing_and_its_failure_is_an_error_of_ours(connect, caplog):
    broken = FluxKleinClient("t", base_url="http://127.0.0.1:9", limits=Stubborn(LookupError("no")))
    with pytest.raises(ConfigurationError, match="The limiter failed: LookupError: no"):
        await broken.get_model()
    client = connect(limits=Stubborn())
    await client.get_model()
    began = now()
    await client.aclose()
    assert (now() - began < 1, client._context.threads._shutdown) == (True, True)
    assert "The limiter raised; ignored" in caplog.text


async def test_a_submit_under_way_while_closing_is_seen_through(klein_emulator, connect):
    client = connect()
    klein_emulator.script("submit", Pass(delay=3.0))
    call = asyncio.ensure_future(outcome(client.generate("a cat")))
    await asyncio.sleep(1)
    left = await client.aclose()
    error = await call
    assert (type(error), error.charged) == (ClientClosedError, "unknown")
    assert (now(), klein_emulator.calls["cancel"]) == (3.0, 1)
    assert left == tuple(klein_emulator.completions)


async def test_a_fan_out_under_way_while_closing_ends_with_client_closed(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND)
    running = asyncio.ensure_future(client.generate_all(["a cat"] * 20, concurrency=2))
    await asyncio.sleep(2.5)
    await client.aclose(drain=1)
    outcomes = await running
    assert len([found for found in outcomes if found.error is None]) == 6
    assert {type(found.error) for found in outcomes if found.error} == {ClientClosedError}


async def test_an_item_that_comes_after_the_closing_is_told_so(connect, tmp_path):
    async def late() -> AsyncIterator[str]:
        await asyncio.sleep(1)
        yield "a cat"

    client = connect()
    running = asyncio.ensure_future(client.generate_all(late(), directory=tmp_path))
    await settle()
    await client.aclose()
    assert [type(found.error) for found in await running] == [ClientClosedError]


@pytest.mark.parametrize("drain", [-1, "5", float("nan")])
async def test_a_drain_that_is_no_number_leaves_the_client_open(klein_emulator, connect, drain):
    client = connect()
    with pytest.raises(InvalidInputError, match=f"^drain must be .*, not {drain!r}$"):
        await client.aclose(drain=drain)
    assert await client.generate("a cat")
    assert await client.aclose() == ()


async def test_a_drain_without_limit_waits_for_every_call(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("submit", Generation(after=90.5))
    call = asyncio.ensure_future(client.generate("a cat"))
    await asyncio.sleep(1)
    assert await client.aclose(drain=None) == ()
    assert (now(), (await call).state) == (91.0, "completed")


def test_a_closing_that_the_end_of_the_loop_cuts_short_leaves_no_warning():
    emulator = InProcessEmulator()
    emulator.script("cancel", Hang())

    async def main() -> None:
        connector = emulator.connector()
        client = FluxKleinClient(
            "emulator-token", base_url=emulator.base_url, session=emulator.session(connector=connector)
        )
        call = asyncio.ensure_future(outcome(client.generate("a cat", timeout=1)))
        await call
        asyncio.ensure_future(client.aclose())  # noqa: RUF006  # nobody waits: the loop ends first
        await asyncio.sleep(0.1)
        await emulator.aclose()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


async def test_a_closing_that_is_cancelled_goes_on(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("submit", Generation(after=3.5))
    call = asyncio.ensure_future(outcome(client.generate("a cat")))
    await asyncio.sleep(0.5)
    closing = asyncio.ensure_future(client.aclose(drain=10))
    await settle()
    closing.cancel()
    assert await client.aclose() == ()
    assert (now(), isinstance(await call, GenerationResult)) == (4.0, True)


async def test_an_id_that_comes_to_light_at_the_very_end_of_closing_is_left_running_and_starts_nothing(
    klein_emulator, connect
):
    events = Events()
    client = connect(journal=Book(submitted=100), on_event=events)
    await abandoned(client)
    left = await client.aclose()
    assert (now(), left, strays()) == (6.0, tuple(klein_emulator.completions), [])
    assert isinstance(events[-1], Closed)
    await asyncio.sleep(10)
    assert isinstance(events[-1], Closed)


def test_the_ids_of_submits_are_remembered_up_to_a_bound():
    ids = KnownIds()
    assert [ids.take(str(number)) for number in (1, 2, 1)] == [True, True, False]
    assert all(ids.take(f"other {number}") for number in range(KnownIds.MOST - 1))
    assert [ids.take(name) for name in ("2", "1", "other 5")] == [False, True, False]
    assert len(ids._ids) == KnownIds.MOST


def test_the_ends_of_earlier_generations_tell_when_so_many_were_left():
    line = UnderWay()
    for instant in range(3):
        line.enter(float(instant))
    fell_to = line.enter(10.0)
    assert [fell_to(count) for count in (3, 2)] == [0.0, None]
    line.end(12.0)
    line.end(15.0)
    assert [fell_to(count) for count in (2, 1, 0)] == [2.0, 5.0, None]
    for _ in range(5000):
        line.enter(20.0)
        line.end(20.0)
    assert fell_to(2) is None, "only the last ends are kept"


async def test_the_fields_of_so_many_models_are_remembered(connect):
    context = connect()._context
    for number in range(_MOST_MODELS + 5):
        context.note_fields(f"owner/{number}", ())
    assert len(context.listed_fields) == _MOST_MODELS
