"""Waiting: what each poll leads to and exactly when, how a wait ends, and what becomes of an abandoned request."""

import asyncio
import itertools
import logging
import math
import statistics
from typing import Any

import pytest

from flux_klein_async import (
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    FixedPolling,
    GenerationCancelledError,
    GenerationFailedError,
    InsufficientBalanceError,
    JournalError,
    Limits,
    NotFoundError,
    Observation,
    PermissionDeniedError,
    Progress,
    Queued,
    RateLimitError,
    RequestState,
    ResultNotReadyError,
    RetryPolicy,
    ServerError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.api.messages import Kind
from flux_klein_async.emulator import (
    Garbage,
    Generation,
    Hang,
    InProcessEmulator,
    Pass,
    Reply,
    Reset,
    Rewrite,
    Truncate,
    error_reply,
)
from flux_klein_async.events import Failed, Finished, Held, Polled, StateChanged, Submitted
from flux_klein_async.journal.states import EntryState
from flux_klein_async.transport.throttle import InProcessLimiter, Lanes
from tests.fakes import Events, now, outcome, settle, strays
from tests.operations.helpers import EVERY_SECOND, Book, abandoned, asked, block, sent


async def test_a_result_comes_with_the_first_poll_after_its_completion(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=2.5))
    result = await connect(polling=EVERY_SECOND).generate("a cat")
    assert now() == 3.0
    assert result.timings.polls == 3
    assert (result.timings.lag_max, result.timings.running) == (1.0, 2.0)
    assert (result.timings.submit, result.timings.queued, result.timings.fetch) == (0.0, 1.0, 0.0)
    assert result.cost_usd == 0.01


@pytest.mark.parametrize("poll_endpoint", ["status", "result"])
async def test_a_wait_for_a_generation_without_a_file_fails_and_says_that_it_is_charged(
    klein_emulator, connect, tmp_path, poll_endpoint
):
    events, book = Events(), Book()
    client = connect(on_event=events, journal=book, budget=book, poll_endpoint=poll_endpoint)
    klein_emulator.script("submit", Generation(after=0.0, output={"images": []}))
    error = await outcome(client.generate("a cat"))
    [request_id] = klein_emulator.completions
    for found in (error, await outcome(client.wait_for_result(request_id))):
        assert (type(found), found.charged, found.retryable) == (GenerationFailedError, "yes", False)
        assert (found.request_id, found.detail, found.cost_usd) == (request_id, None, 0.01)
    assert book.lines[-2:] == [("settle", 0.01), "completed"]
    assert (len(events.of(Failed)), events.of(Finished)) == (2, [])
    result = await client.result(request_id)  # as it is
    assert result.urls == []
    for files in (client.download(result, tmp_path), client.download_bytes(result)):
        assert "holds no file" in str(await outcome(files))
    assert "downloaded" not in book.lines
    with pytest.raises(GenerationFailedError):
        _ = result.image_url


LATE = [
    # when the generation ends, when the loop is blocked and until when, the last poll's answer; the end and its instant
    pytest.param(3.0, 1.5, 9.0, None, None, 9.0, id="finished meanwhile"),
    pytest.param(30.0, 1.5, 9.0, None, WaitTimeoutError, 9.0, id="not finished"),
    pytest.param(3.0, 1.5, 9.0, ("status", Pass(delay=0.9)), None, 9.9, id="slow poll"),
    pytest.param(3.0, 1.5, 9.0, ("result", Pass(delay=0.9)), None, 9.9, id="slow fetch"),
    pytest.param(3.0, 1.5, 9.0, ("status", Hang()), WaitTimeoutError, 10.0, id="no answer to the poll"),
    pytest.param(3.0, 1.5, 9.0, ("result", Hang()), WaitTimeoutError, 10.0, id="no answer to the fetch"),
    pytest.param(3.0, 1.5, 9.0, ("status", error_reply(500)), WaitTimeoutError, 9.0, id="failed poll"),
    pytest.param(3.0, 1.5, 9.0, ("status", error_reply(429, retry_after=5)), WaitTimeoutError, 9.0, id="held"),
    pytest.param(30.0, 1.5, 3.9, None, WaitTimeoutError, 4.5, id="not blocked past the deadline"),
]


@pytest.mark.parametrize(("after", "begin", "end", "last", "kind", "at"), LATE)
async def test_a_wait_whose_loop_was_blocked_past_its_deadline_polls_once_more(
    klein_emulator, connect, after, begin, end, last, kind, at
):
    klein_emulator.script("submit", Generation(after=after))
    handle = await connect().submit("a cat")
    client = connect(polling=FixedPolling(10.0 if end > 4.5 else 4.4))
    loop = asyncio.get_running_loop()
    if last is not None:
        loop.call_at(begin, klein_emulator.script, *last)
    loop.call_at(begin, block, end)
    ended = await outcome(client.wait_for_result(handle.request_id, timeout=4.5))
    assert (type(ended) if kind else None, now()) == (kind, at)
    assert klein_emulator.calls["status"] <= 1


async def test_an_answer_that_is_there_after_a_blocked_loop_counts(klein_emulator, connect):
    """The first poll was sent before the loop was blocked, and the answer of a submit too."""
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("submit", Generation(after=0.0, delay=1.0))
    asyncio.get_running_loop().call_at(0.5, block, 9.0)
    result = await client.generate("a cat", timeout=2.0)
    assert (result.timings.polls, now()) == (1, 9.0)
    klein_emulator.script("status", Pass(delay=1.0))
    asyncio.get_running_loop().call_at(now() + 0.5, block, 12.0)
    assert (await client.status(result.request_id, timeout=2.0)).state is RequestState.COMPLETED
    assert now() == 12.0


@pytest.mark.parametrize(("after", "kind"), [(1.2, None), (30.0, WaitTimeoutError)])
async def test_a_poll_under_way_while_the_loop_is_blocked_is_not_the_last(klein_emulator, connect, after, kind):
    klein_emulator.script("submit", Generation(after=after))
    klein_emulator.script("status", Pass(delay=1.0))  # what it saw is older than the block
    asyncio.get_running_loop().call_at(1.5, block, 4.0)
    ended = await outcome(connect(polling=EVERY_SECOND).generate("a cat", timeout=1.8))
    assert (type(ended) if kind else None, now()) == (kind, 4.0)


@pytest.mark.parametrize("verb", ["status", "submit"])
async def test_a_blocked_loop_gives_no_more_time_to_what_has_no_answer(klein_emulator, connect, verb):
    client = connect()
    klein_emulator.script(verb, Hang())
    asyncio.get_running_loop().call_at(1.0, block, 9.0)
    call = client.status("x", timeout=2.0) if verb == "status" else client.submit("a cat", timeout=2.0)
    error = await outcome(call)
    assert now() == 9.0
    assert isinstance(error, APITimeoutError | SubmissionUncertainError)


FAILING_POLLS = [
    *[error_reply(*status) for status in [(500,), (502,), (429,), (401,), (404, 404001)]],
    error_reply(503, retry_after="soon"),
    *[Reply(200, body) for body in ({"error_code": 500001}, "<html>", {"status": 7}, [])],
    *[Reply(302, "", {"Location": "/elsewhere"}), Garbage(), Truncate()],
]


async def test_a_poll_on_a_connection_that_breaks_twice_saw_nothing(klein_emulator, connect):
    """aiohttp itself repeats a GET once when a kept-alive connection turns out dead."""
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("status", Reset(), Reset())
    result = await connect(polling=EVERY_SECOND).generate("a cat")
    assert (now(), result.timings.polls, klein_emulator.calls["status"]) == (2.0, 2, 3)


@pytest.mark.parametrize("answer", FAILING_POLLS, ids=repr)
async def test_a_poll_that_fails_saw_nothing_and_is_not_repeated(klein_emulator, connect, answer):
    klein_emulator.script("submit", Generation(after=1.5))
    klein_emulator.script("status", answer)
    events = Events()
    result = await connect(polling=EVERY_SECOND, on_event=events).generate("a cat")
    assert (now(), result.timings.polls, klein_emulator.calls["status"]) == (2.0, 2, 2)
    assert [event.error is None for event in events.of(Polled)] == [False, True]


async def test_polls_and_changes_are_told_with_request_and_tag(klein_emulator, connect):
    events = Events()
    klein_emulator.script("submit", Generation(after=3.5))
    klein_emulator.script("status", Reply(200, {"status": "in_queue", "queue_position": 3}), error_reply(500))
    result = await connect(polling=EVERY_SECOND, on_event=events).generate("a cat", tag="mine")
    polled = events.of(Polled)
    assert {(event.request_id, event.tag) for event in (*polled, *events.of(StateChanged))} == {
        (result.request_id, "mine")
    }
    assert [(event.at, event.poll, event.state) for event in polled] == [
        (1.0, 1, "in_queue"),
        (2.0, 2, None),
        (3.0, 3, "in_progress"),
        (4.0, 4, "completed"),
    ]
    assert [event.error is None or "HTTP 500" in event.error for event in polled] == [True] * 4
    assert [(event.at, event.state, event.queue_position) for event in events.of(StateChanged)] == [
        (1.0, "in_queue", 3),
        (3.0, "in_progress", None),
        (4.0, "completed", None),
    ]


async def test_a_poll_that_is_never_answered_is_given_up_after_five_seconds(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("status", Hang())
    result = await connect(polling=EVERY_SECOND).generate("a cat")
    assert (now(), result.timings.polls) == (6.0, 2)


async def test_a_poll_that_dribbles_is_given_up_after_ten_seconds(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("status", Reply(200, b" " * 1000, dribble=0.5))
    result = await connect(polling=EVERY_SECOND, timeout=None).generate("a cat")
    assert (round(now(), 6), result.timings.polls) == (11.0, 2)


async def test_the_round_trip_is_part_of_the_interval(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=2.9))
    klein_emulator.script("status", Pass(delay=0.7), Pass(delay=0.7))
    await connect(polling=EVERY_SECOND).generate("a cat")
    assert sent(klein_emulator, "status") == [1.0, 2.0, 3.0]


async def test_a_hold_on_polls_is_obeyed_by_every_wait(klein_emulator, connect):
    events = Events()
    client = connect(polling=EVERY_SECOND, on_event=events)
    klein_emulator.script("submit", Generation(after=1.5), Generation(after=1.5))
    klein_emulator.script("status", error_reply(429, retry_after=5))
    await asyncio.gather(client.generate("a cat"), client.generate("a dog"))
    assert sent(klein_emulator, "status") == [
        1.0,
        1.0,
        6.0,
        pytest.approx(6.039, abs=1e-3),  # one after the other
    ]
    assert [(event.kind, event.seconds) for event in events.of(Held)] == [("read", 5.0)]


async def test_a_hold_on_polls_that_outlasts_the_deadline_ends_the_wait_at_once(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND, timeout=10)
    klein_emulator.script("submit", Generation(after=1.5))
    klein_emulator.script("status", error_reply(429, retry_after=60))
    error = await outcome(client.generate("a cat"))
    assert (type(error), now()) == (WaitTimeoutError, 1.0)
    await settle()
    assert klein_emulator.calls["cancel"] == 1  # cancels are never held


async def test_a_hold_known_before_the_next_poll_is_not_slept_towards(klein_emulator, connect):
    klein_emulator.script("status", error_reply(429, retry_after=100))
    error = await outcome(connect(polling=FixedPolling(5.0), timeout=30).wait_for_result("x"))
    assert (type(error), now()) == (WaitTimeoutError, 5.0)
    assert str(error).startswith("The service wants no such call before the deadline")


async def test_the_ceiling_on_polls_spreads_them_evenly(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND, limits=Limits(polls_per_second=2))
    klein_emulator.script("submit", *[Generation(after=0.5)] * 4)
    await client.generate_all(["a", "b", "c", "d"])
    assert sent(klein_emulator, "status") == [1.0, 1.5, 2.0, 2.5]


async def test_under_a_ceiling_a_crowd_waits_alike_and_all_end(klein_emulator, connect):
    """Nobody's gap is more than three times the median gap at the same age."""
    events = Events()
    limits = Limits(max_in_flight=400, polls_per_second=20)
    client = connect(limits=limits, on_event=events, timeout=None)
    klein_emulator.script("submit", *[Generation(after=30.0)] * 400)
    outcomes = await client.generate_all(["a cat"] * 400, concurrency=400)
    assert all(item.result for item in outcomes)
    instants: dict[object, list[float]] = {}
    for event in events:
        if isinstance(event, Submitted | Polled):
            instants.setdefault(event.request_id, []).append(event.at)
    windows: dict[int, list[float]] = {}
    for polls in instants.values():
        for earlier, later in itertools.pairwise(polls):
            windows.setdefault(int(later // 5), []).append(later - earlier)
    assert max(max(gaps) / statistics.median(gaps) for gaps in windows.values()) <= 3
    polled = sorted(event.at for event in events.of(Polled))
    assert min(later - earlier for earlier, later in itertools.pairwise(polled)) >= 0.05 - 1e-9


# --- polling the result itself


async def test_polling_the_result_saves_a_round_trip(klein_emulator, connect):
    klein_emulator.round_trip = 0.5
    klein_emulator.script("submit", Generation(after=2.8))
    client = connect(polling=EVERY_SECOND, poll_endpoint="result")
    begun = now()
    result = await client.generate("a cat")
    assert result.image_url
    assert result.cost_usd == 0.01
    # The connection and the submit take a round trip each; the third poll is sent 3 s later and brings it all.
    assert (now() - begun, result.timings.polls, result.timings.fetch) == (0.5 + 0.5 + 3.0 + 0.5, 3, 0.0)
    assert (klein_emulator.calls["status"], klein_emulator.calls["result"]) == (0, 3)


@pytest.mark.parametrize(
    "early", [error_reply(404, 404001), error_reply(400, 400001), error_reply(409), Reply(200, {}), Reply(200, "no")]
)
async def test_a_service_without_early_results_is_polled_by_its_status(klein_emulator, connect, early, caplog):
    caplog.set_level(logging.INFO)
    klein_emulator.script("submit", *[Generation(after=2.5, early_result=early)] * 5)
    client = connect(polling=EVERY_SECOND, poll_endpoint="result")
    assert (await client.generate("a cat")).image_url
    assert now() == 3.0
    polls = [(record.endpoint, record.at) for record in klein_emulator.records][1:]
    assert polls == [("result", 1.0), ("status", 1.0), ("status", 2.0), ("status", 3.0), ("result", 3.0)]
    results = []
    for name in ("second", "third", "fourth"):
        before = klein_emulator.calls["result"]
        await client.generate(name)
        results.append(klein_emulator.calls["result"] - before)
    assert results == [2, 2, 1]  # after three in a row the client looks for no more
    assert len([record for record in caplog.records if "no early results" in record.getMessage()]) == 1


async def test_waits_that_learn_at_once_that_there_are_no_early_results_all_go_on(klein_emulator, connect, caplog):
    klein_emulator.script("submit", *[Generation(after=1.5, early_result=error_reply(404, 404001))] * 5)
    with caplog.at_level(logging.INFO):
        await connect(polling=EVERY_SECOND, poll_endpoint="result").generate_all(["a cat"] * 5)
    assert (now(), klein_emulator.calls["status"]) == (2.0, 10)
    assert caplog.text.count("no early results") == 1


@pytest.mark.parametrize("odd", [Reply(200, "<html>"), error_reply(404, 404001), Hang()], ids=repr)
async def test_one_odd_answer_does_not_end_polling_the_result(klein_emulator, connect, odd):
    client = connect(polling=EVERY_SECOND, poll_endpoint="result")
    for _ in range(5):
        klein_emulator.script("submit", Generation(after=1.5), Generation(after=1.5))
        klein_emulator.script("result", odd)
        await client.generate("met by it")
        before = klein_emulator.calls["status"]
        await client.generate("not met by it")
        assert klein_emulator.calls["status"] == before


@pytest.mark.parametrize("answer", [error_reply(500), error_reply(429), Reset()], ids=repr)
async def test_trouble_at_the_result_is_no_reason_to_poll_elsewhere(klein_emulator, connect, answer):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("result", answer, answer)  # aiohttp repeats a GET whose connection was reset
    await connect(polling=EVERY_SECOND, poll_endpoint="result").generate("a cat")
    assert klein_emulator.calls["status"] == 0


async def test_a_completed_state_without_its_output_is_asked_for_again(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("result", Reply(200, {"status": "completed"}))
    result = await connect(polling=EVERY_SECOND, poll_endpoint="result").generate("a cat")
    assert result.image_url
    assert klein_emulator.calls["result"] == 2


@pytest.mark.parametrize(("ends", "kind"), [("failed", GenerationFailedError), ("cancelled", GenerationCancelledError)])
async def test_a_bad_end_seen_in_the_result_is_its_error(klein_emulator, connect, ends, kind):
    klein_emulator.script("submit", Generation(ends=ends, error="out of memory", after=0.5))
    error = await outcome(connect(polling=EVERY_SECOND, poll_endpoint="result").generate("a cat"))
    assert type(error) is kind
    assert klein_emulator.calls["result"] == 1


# --- the policy


class Spy:
    """A policy of a user's own."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.observations: list[Observation] = []

    def next_poll(self, progress: Progress) -> float:
        self.progress.append(progress)
        return 1.0

    def observe(self, observation: Observation) -> None:
        self.observations.append(observation)


async def test_a_policy_is_told_what_was_seen_of_the_queue(connect):
    async with InProcessEmulator(profile="fixed:1.2", workers=1) as emulator:
        spy = Spy()
        client = connect(emulator.api_key, session=emulator.session(), polling=spy)
        handles = [await client.submit(name) for name in ("first", "second", "third")]
        await handles[2].wait_for_result()
    told = list(dict.fromkeys(item.queued for item in spy.progress))
    # Before it at acceptance: one running, one waiting. The second starts at 1.2 s, the third at 2.4 s.
    assert told == [None, Queued(1.0, 1, 1.0, 1, 1.0), Queued(1.0, 1, 2.0, 0, 2.0)]
    [taught] = spy.observations
    assert (taught.queued, taught.running_since, taught.sent) == (told[-1], 3.0, 4.0)


async def test_a_policy_is_told_of_the_queue_in_seconds_since_acceptance(klein_emulator, connect):
    spy, model, pixels = Spy(), "blackforestlabs/flux-2-klein/4b/text-to-image", 1024 * 1024
    klein_emulator.script("submit", Generation(after=4.5))
    queue = [(2, 0.25), (2, 0.0), (1, 0.0)]
    answers = [Reply(200, {"status": "in_queue", "queue_position": place}, delay=delay) for place, delay in queue]
    klein_emulator.script("status", *answers)
    await asyncio.sleep(1.5)
    timings = (await connect(polling=spy).generate("a cat")).timings
    assert (timings.queued, timings.running, timings.lag_max) == (4.0, 1.0, 1.0)
    assert [each._replace(fell_to=None) for each in spy.progress] == [
        Progress(model, pixels, 0, 0.0, None, 0.0, None, None, None, 0.0, None),
        Progress(model, pixels, 1, 1.25, RequestState.IN_QUEUE, 0.0, 2, 1.0, 0.25, 1.0, Queued(1.0, 2, 1.0, 2, 1.0)),
        Progress(model, pixels, 2, 2.0, RequestState.IN_QUEUE, 0.75, 2, 1.0, 0.0, 2.0, Queued(1.0, 2, 1.0, 2, 2.0)),
        Progress(model, pixels, 3, 3.0, RequestState.IN_QUEUE, 1.75, 1, 1.0, 0.0, 3.0, Queued(1.0, 2, 3.0, 1, 3.0)),
        Progress(
            model, pixels, 4, 4.0, RequestState.IN_PROGRESS, 0.0, None, 1.0, 0.0, 4.0, Queued(1.0, 2, 3.0, 1, 3.0)
        ),
    ]
    assert [each._replace(fell_to=None) for each in spy.observations] == [
        Observation(
            model=model,
            pixels=pixels,
            not_before=4.0,
            not_after=5.0,
            running_since=4.0,
            served=4.5,
            polls=5,
            sent=5.0,
            queued=Queued(1.0, 2, 3.0, 1, 3.0),
        )
    ]


async def test_a_wait_begun_later_knows_the_age_of_its_request_where_its_handle_was_there_at_the_submit(
    klein_emulator, connect
):
    spy = Spy()
    client = connect(polling=spy)
    klein_emulator.script("submit", Generation(after=2.5))
    handle = await client.submit("a cat")
    await asyncio.sleep(2)
    assert (await handle.wait_for_result()).timings.queued == 2.0
    assert (await client.wait_for_result(handle.request_id)).timings.queued is None
    assert [(item.age, item.sent) for item in spy.progress if item.polls == 0] == [(2.0, 0.0), (0.0, 0.0)]


async def test_the_price_of_a_poll_is_asked_for_its_policy_and_paid_at_its_turn(klein_emulator, connect):
    class Till(InProcessLimiter):
        paid: list[float]

        async def turn(self, kind: Kind, price: float = 1.0) -> None:
            if kind is Kind.READ:
                self.paid.append(price)

    spy, till = Spy(), Till(Limits())
    till.paid = []
    klein_emulator.script("submit", Generation(after=3.5))
    klein_emulator.script("status", error_reply(429))
    await connect(polling=spy, limits=till).generate("a cat")
    assert [item.price for item in spy.progress] == till.paid == [1.0, 2.0, 2.0 * 0.95, 2.0 * 0.95 * 0.95]


@pytest.mark.parametrize(
    ("created", "finished", "served"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:02.5+00:00", 2.5),
        ("2026-01-01T00:00:00", "2026-01-01T00:00:02", 2.0),
        ("2026-01-01T00:00:00", "2026-01-01T00:00:02Z", 2.0),  # without a zone: UTC
        ("2026-01-01T00:00:02Z", "2026-01-01T00:00:00Z", -2.0),
        (None, "2026-01-01T00:00:02Z", None),
        ("2026-01-01T00:00:02Z", None, None),
        ("yesterday", "today", None),
    ],
)
async def test_the_services_own_duration_is_taught_where_it_gives_one(
    klein_emulator, connect, created, finished, served
):
    spy = Spy()
    answer = {
        "status": "completed",
        "output": "https://x.invalid/a.png",
        "created_at": created,
        "finished_at": finished,
    }
    klein_emulator.script("result", Reply(200, answer))
    await connect(polling=spy).generate("a cat")
    assert [taught.served for taught in spy.observations] == [served]


async def test_a_policy_that_cannot_learn_does_not_cost_the_result(klein_emulator, connect, caplog):
    class Forgetful(Spy):
        def observe(self, observation: Observation) -> None:
            raise RuntimeError("boom")

    assert (await connect(polling=Forgetful()).generate("a cat")).image_url
    assert "The poll policy raised; ignored" in caplog.text
    assert klein_emulator.calls["cancel"] == 0


NO_SECONDS: list[Any] = [-1.0, -0.001, math.nan, math.inf, -math.inf, 10**400, True, "1", b"1", 1j, [1.0], None]


@pytest.mark.parametrize(
    ("answer", "text"),
    [*[(answer, f"answered {answer!r}") for answer in NO_SECONDS], (ValueError("no idea"), "ValueError: no idea")],
    ids=lambda value: str(value)[:20],
)
async def test_a_policy_that_answers_nonsense_or_raises_is_a_configuration_error(klein_emulator, connect, answer, text):
    class Broken(Spy):
        def next_poll(self, progress: Progress) -> Any:
            if isinstance(answer, ValueError):
                raise answer
            return answer

    error = await outcome(connect(polling=Broken()).generate("a cat"))
    assert (type(error), error.charged, text[:300] in str(error)) == (ConfigurationError, "unknown", True)
    assert error.request_id in klein_emulator.completions
    await settle()
    assert klein_emulator.calls["cancel"] == 1


@pytest.mark.parametrize(
    ("fate", "kind", "charged", "detail"),
    [
        (Generation(ends="failed", error="no memory", after=0.5), GenerationFailedError, "unknown", "no memory"),
        (Generation(ends="cancelled", after=0.5), GenerationCancelledError, "no", None),
    ],
)
async def test_a_generation_that_ends_badly_is_an_error(klein_emulator, connect, fate, kind, charged, detail):
    events = Events()
    client = connect(on_event=events)
    klein_emulator.script("submit", fate)
    error = await outcome(client.generate("a cat"))
    assert (type(error), error.charged, error.retryable) == (kind, charged, False)
    assert error.request_id in klein_emulator.completions
    assert getattr(error, "detail", None) == detail
    assert [(event.error_type, event.verb) for event in events.of(Failed)] == [(kind.__name__, "generate")]
    assert klein_emulator.calls["result"] == (1 if detail else 0)  # a cancelled request has none


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        ({"error": "bad seed"}, "bad seed"),
        ({"message": "bad seed", "error": {"code": 7}}, "bad seed"),
        ({"error_message": "bad seed", "message": "see error_message", "error": ""}, "bad seed"),
        ({}, None),
    ],
)
async def test_the_reason_of_a_failure_is_taken_from_the_status_where_the_result_has_none(
    klein_emulator, connect, said, detail
):
    klein_emulator.script("submit", Generation(ends="failed", after=0.5))
    klein_emulator.script("status", Reply(200, {"status": "failed", **said}))
    klein_emulator.script("result", Reply(404, {}))
    error = await outcome(connect().generate("a cat"))
    assert (type(error), error.detail) == (GenerationFailedError, detail)
    assert error.request_id in klein_emulator.completions
    assert isinstance(error.__cause__, NotFoundError)


async def test_a_result_that_says_cancelled_is_believed_where_the_status_said_failed(klein_emulator, connect):
    klein_emulator.script("submit", Generation(ends="cancelled", after=0.5))
    klein_emulator.script("status", FAILED)
    error = await outcome(connect(polling=EVERY_SECOND).generate("a cat"))
    assert (type(error), error.charged) == (GenerationCancelledError, "no")


FAILED = Reply(200, {"status": "failed", "error": "bad seed"})


async def test_a_picture_is_not_lost_to_a_status_that_says_failed(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("status", FAILED)
    result = await connect(polling=FixedPolling(5.0, first=0.2)).generate("a cat")
    assert result.image_url
    assert (klein_emulator.calls["status"], now()) == (1, 0.55)  # the result's own doubling pauses from 0.05 s


async def test_a_failure_that_its_result_never_admits_is_believed_after_ten_seconds(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=60))
    klein_emulator.script("status", FAILED)
    error = await outcome(connect(polling=EVERY_SECOND).generate("a cat"))
    assert (type(error), error.detail) == (GenerationFailedError, "bad seed")
    assert 10 < now() <= 11


@pytest.mark.parametrize("answer", [Reply(404, {}), Reply(401, {}), Reply(200, "<html>"), Reset()], ids=repr)
async def test_a_failure_whose_result_cannot_be_had_is_told_at_once(klein_emulator, connect, answer):
    klein_emulator.script("submit", Generation(ends="failed", after=0.5))
    klein_emulator.script("status", FAILED)
    klein_emulator.fault("result", answer, probability=1)
    client = connect(polling=EVERY_SECOND, retry=RetryPolicy(attempts=1))
    error = await outcome(client.generate("a cat"))
    assert (type(error), error.detail, now()) == (GenerationFailedError, "bad seed", 1.0)


async def test_a_result_that_lags_behind_its_status_is_asked_for_again(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=0.5, result_lag=3.0))
    result = await connect(polling=EVERY_SECOND).generate("a cat")
    assert 3.5 <= now() < 5.0
    assert result.timings.fetch == now() - 1.0


@pytest.mark.parametrize("early", [Reply(404, {"error_code": 404001}), Reply(400, {}), Reply(425, {}), Reply(409, {})])
async def test_a_result_that_is_refused_for_a_moment_is_asked_for_again(klein_emulator, connect, early):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("result", early, early)
    result = await connect(polling=EVERY_SECOND).generate("a cat")
    assert result.image_url
    assert now() == 1.0 + 0.05 + 0.1


@pytest.mark.parametrize(
    ("answer", "kind", "charged", "status"),
    [
        (Reply(200, {"status": "in_progress"}), ResultNotReadyError, "unknown", None),
        (Reply(200, {"status": "completed"}), GenerationFailedError, "yes", None),
        (Reply(200, {"status": "completed", "output": None}), GenerationFailedError, "yes", None),
        (Reply(200, {"status": "completed", "output": None}), GenerationFailedError, "unknown", "failed"),
        (Reply(404, {}), NotFoundError, "unknown", None),
    ],
)
async def test_a_completed_request_without_a_result_is_given_up_after_ten_seconds(
    klein_emulator, connect, answer, kind, charged, status
):
    klein_emulator.script("submit", Generation(after=0.5, words={"completed": status} if status else {}))
    klein_emulator.script("result", *[answer] * 100)
    error = await outcome(connect(polling=EVERY_SECOND).generate("a cat"))
    assert (type(error), error.charged, error.retryable) == (kind, charged, False)
    calls = sent(klein_emulator, "result")
    pauses = [later - earlier for earlier, later in itertools.pairwise(calls)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, *[1.0] * 8])
    assert now() == calls[-1]


@pytest.mark.parametrize("endpoint", ["status", "result"])
@pytest.mark.parametrize("later", [None, {"output": None, "error": "all pictures were filtered"}])
async def test_an_output_that_is_not_there_yet_is_asked_for_again_until_the_service_says_why(
    klein_emulator, connect, endpoint, later
):
    klein_emulator.script("submit", Generation(after=0.5))
    not_yet = Rewrite({"output": None, "error": None, "message": "done"})
    klein_emulator.script("result", not_yet, not_yet, *([Rewrite(later)] if later else []))
    client = connect(polling=EVERY_SECOND, poll_endpoint=endpoint)
    found = await outcome(client.generate("a cat"))
    assert (len(sent(klein_emulator, "result")), now() < 2.0) == (3, True)
    if later is None:
        assert found.image_url
    else:
        assert (type(found), found.charged, found.detail) == (GenerationFailedError, "yes", later["error"])
        klein_emulator.script("result", not_yet)
        assert (await client.result(found.request_id)).urls == []


@pytest.mark.parametrize(
    ("status", "kind", "calls"),
    [
        (401, AuthenticationError, 1),
        (402, InsufficientBalanceError, 1),
        (403, PermissionDeniedError, 1),
        (429, RateLimitError, 5),
        (500, ServerError, 5),
    ],
)
async def test_a_result_refused_for_good_or_repeatedly_is_not_late(klein_emulator, connect, status, kind, calls):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("result", *[error_reply(status)] * 30)
    error = await outcome(connect(polling=EVERY_SECOND).generate("a cat"))
    assert (type(error), klein_emulator.calls["result"]) == (kind, calls)


async def test_a_refusal_that_went_away_counts_from_its_return(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=15.5))
    klein_emulator.script("status", error_reply(401), Pass(), *[error_reply(401)] * 10)  # at 1 s, and from 3 to 12 s
    await connect(polling=EVERY_SECOND).generate("a cat")
    assert now() == 16.0


@pytest.mark.parametrize(("status", "kind"), [(401, AuthenticationError), (404, NotFoundError)])
async def test_a_refusal_that_stands_for_ten_seconds_is_believed(klein_emulator, connect, status, kind):
    klein_emulator.script("status", *[error_reply(status)] * 100)
    error = await outcome(connect(polling=EVERY_SECOND, timeout=None).wait_for_result("gone"))
    assert (type(error), error.request_id, now()) == (kind, "gone", 11.0)


GONE = error_reply(404, 404001)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([GONE] * 9, NotFoundError),
        ([GONE, error_reply(500), *[GONE] * 9], WaitTimeoutError),
        ([error_reply(401), *[GONE] * 9], WaitTimeoutError),
        ([*[GONE] * 3, error_reply(429, retry_after=60)], WaitTimeoutError),
    ],
    ids=["always", "but for once", "but for the first poll", "until a hold"],
)
async def test_a_wait_for_a_request_that_the_service_never_knew_says_so_at_its_deadline(
    klein_emulator, connect, answers, kind
):
    klein_emulator.script("status", *answers)
    client = connect(polling=EVERY_SECOND, timeout=5)
    error = await outcome(client.wait_for_result("gone"))
    assert (type(error), str(error).count("gone"), error.request_id) == (kind, 1, "gone")
    assert ("may still finish" in str(error)) == (kind is WaitTimeoutError)


async def test_updates_of_a_request_that_the_service_never_knew_say_so_at_every_call(klein_emulator, connect):
    klein_emulator.script("status", *[GONE] * 99)
    updates = connect(polling=EVERY_SECOND).updates("gone", timeout=3.5)
    assert [type(await outcome(updates.__anext__())) for _ in range(2)] == [NotFoundError] * 2
    assert (klein_emulator.calls["status"], now()) == (3, 3.5)


async def test_a_request_of_this_client_or_its_journal_may_be_late_on_a_replica(klein_emulator, connect):
    klein_emulator.script("submit", *[Generation(after=60.0)] * 2)
    client = connect(polling=EVERY_SECOND)
    handle = await client.submit("a cat")
    klein_emulator.script("status", *[GONE] * 99)
    for call in (handle.wait_for_result(timeout=5), client.generate("a dog", timeout=5)):
        assert type(await outcome(call)) is WaitTimeoutError


async def test_trouble_that_passes_is_waited_out_until_the_deadline(klein_emulator, connect):
    klein_emulator.script("status", *[error_reply(500)] * 100)
    error = await outcome(connect(polling=EVERY_SECOND, timeout=30).wait_for_result("there"))
    assert (type(error), error.polls, error.state, now()) == (WaitTimeoutError, 29, None, 30.0)
    assert "HTTP 500" in str(error)


async def test_an_unknown_state_is_waited_out_and_logged_once(klein_emulator, connect, caplog):
    klein_emulator.script("submit", *[Generation(after=3.5, words={"in_progress": "PONDERING"})] * 2)
    events = Events()
    with caplog.at_level(logging.WARNING):
        await connect(polling=EVERY_SECOND, on_event=events).generate_all(["a", "b"])
    assert [record.getMessage() for record in caplog.records] == [
        "Unknown state 'PONDERING'; waiting on until the deadline"
    ]
    assert {event.state.value for event in events.of(StateChanged)} == {"unknown", "completed"}


ILL = {"status": "TIMED_OUT", "error": "it took too long"}
WELL = {"status": "in_progress"}
ENDS = [
    # what status and result say of a generation that never ends, from when on they say it; the error and its instant
    pytest.param([(0, ILL)], [(0, ILL)], GenerationFailedError, 11.0, id="both from the first poll on"),
    pytest.param([(0, WELL), (3.5, ILL)], [(0, ILL)], GenerationFailedError, 14.0, id="both, later"),
    pytest.param([(0, ILL), (5.5, WELL), (7.5, ILL)], [(0, ILL)], GenerationFailedError, 18.0, id="in between well"),
    pytest.param([(0, ILL)], [(0, WELL), (15, ILL)], GenerationFailedError, 21.0, id="the result 10 s after that"),
    pytest.param([(0, ILL)], [(0, WELL)], WaitTimeoutError, 30.0, id="the result never"),
    pytest.param([(0, ILL)], [(0, {"status": "TIMED_OUT"})], WaitTimeoutError, 30.0, id="a word without an error"),
    pytest.param([(0, ILL)], [(0, None)], WaitTimeoutError, 30.0, id="no result"),
    pytest.param([(0, WELL | {"error": "x"})], [(0, ILL)], WaitTimeoutError, 30.0, id="beside a documented word"),
    pytest.param([(0, ILL)], [(0, WELL | {"error": "x"})], WaitTimeoutError, 30.0, id="the result beside one"),
]


def says(emulator: Any, endpoint: str, answers: list[Any]) -> None:
    """Let an endpoint give each answer from its instant on."""

    def change(answer: Any) -> None:
        emulator._scripts.pop(endpoint, None)
        reply = error_reply(404, 404001) if answer is None else Reply(200, answer)
        emulator.script(endpoint, *[reply] * 100)

    for at, answer in answers:
        asyncio.get_running_loop().call_at(at, change, answer)


@pytest.mark.parametrize("poll_endpoint", ["status", "result"])
@pytest.mark.parametrize(("status", "result", "kind", "at"), ENDS)
async def test_an_error_beside_an_unknown_state_is_believed_once_status_and_result_held_it_for_ten_seconds(
    klein_emulator, connect, status, result, kind, at, poll_endpoint
):
    klein_emulator.script("submit", Generation(after=1e9))
    other = {"status": "result", "result": "status"}[poll_endpoint]
    says(klein_emulator, poll_endpoint, status)
    says(klein_emulator, other, result)
    book = Book()
    client = connect(polling=EVERY_SECOND, timeout=30, journal=book, poll_endpoint=poll_endpoint)
    error = await outcome(client.generate("a cat", on_abandon="leave"))
    assert (type(error), error.charged, error.retryable, now()) == (kind, "unknown", False, at)
    assert ("it took too long" in str(error)) == (kind is GenerationFailedError)
    assert book.lines[-1] == ("failed" if kind is GenerationFailedError else "submitted")


async def test_the_poll_that_ends_such_a_wait_comes_after_ten_seconds_whatever_the_policy_says(klein_emulator, connect):
    for endpoint in ("status", "result"):
        says(klein_emulator, endpoint, [(0, ILL)])
    client = connect(polling=FixedPolling(9.0, first=1.0), timeout=60)
    with pytest.raises(GenerationFailedError):
        async for status in client.updates("there"):
            assert status.state.value == "unknown"
    assert now() == 11.0


async def test_a_result_that_says_completed_is_believed_beside_such_a_status(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=3))
    says(klein_emulator, "status", [(0, ILL)])
    result = await connect(polling=EVERY_SECOND).generate("a cat")
    assert (result.state.value, now()) == ("completed", 11.0)


@pytest.mark.parametrize("word", ["TIMED_OUT", "done", "x" * 100])
async def test_a_word_that_nobody_documented_is_in_the_error_of_the_wait_that_ran_out(klein_emulator, connect, word):
    klein_emulator.script("submit", Generation(words={"completed": word}))
    error = await outcome(connect(polling=EVERY_SECOND, timeout=5).generate("a cat", on_abandon="leave"))
    assert (type(error), error.state, error.word) == (WaitTimeoutError, "unknown", word[:40])
    assert f"last seen unknown ({word[:40]!r}) in 4 polls" in str(error)


@pytest.mark.parametrize("poll_endpoint", ["status", "result"])
@pytest.mark.parametrize(
    ("output", "asked", "missing"),
    [
        ({"images": ["{file}", None, ""]}, {}, 2),
        ({"images": ["{file}"]}, {"num_images": 4}, 3),
        ({"images": ["{file}"]}, {"num_images": 1}, 0),
        ({"images": ["{file}"]}, {"num_images": "4"}, None),
    ],
)
async def test_a_result_that_lost_files_keeps_the_others_and_says_how_many_are_missing(
    klein_emulator, connect, caplog, output, asked, missing, poll_endpoint
):
    client = connect(poll_endpoint=poll_endpoint)
    klein_emulator.script("submit", *[Generation(output=output)] * 2)
    result = await client.generate({"prompt": "a cat", **asked}, model="emulator/any/image-to-images")
    handle = await client.submit({"prompt": "a cat", **asked}, model="emulator/any/image-to-images")
    await handle.wait_for_result()
    for found in (result, await handle.result()):
        assert (len(found.urls), found.missing) == (1, missing)
    told = [record.getMessage() for record in caplog.records]
    what = f"{missing} files are" if missing and missing > 1 else "1 file is"
    assert told == [f"{what} missing, 1 is there (request {i})" for i in ids(told)]
    assert len(told) == (2 if missing else 0)


def ids(sentences: list[str]) -> list[str]:
    return [sentence.rpartition(" ")[2].rstrip(")") for sentence in sentences]


# --- the deadline


HANGING = [
    ("status", Hang()),
    ("status", Reply(200, {"status": "in_progress"}, dribble=0.5)),
    ("result", Hang()),
    (
        "result",
        Reply(200, {"status": "completed", "output": {"image": "https://x.runcomfy.net/" + "y" * 99}}, dribble=0.5),
    ),
]


@pytest.mark.parametrize(("endpoint", "answer"), HANGING)
@pytest.mark.parametrize("timeout", [2.5, 4.125])
async def test_a_hanging_or_dribbling_answer_ends_exactly_at_the_deadline(
    klein_emulator, connect, endpoint, answer, timeout
):
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script(endpoint, answer)
    error = await outcome(client.generate("a cat", timeout=timeout, on_abandon="leave"))
    assert (type(error), error.charged, error.retryable, now()) == (WaitTimeoutError, "unknown", False, timeout)
    result = await client.wait_for_result(error.request_id, timeout=60)
    assert result.request_id == error.request_id


@pytest.mark.parametrize("endpoint", ["status", "result", "cancel", "model"])
async def test_a_single_call_ends_exactly_at_the_deadline(klein_emulator, connect, endpoint):
    client = connect(timeout=3.5)
    klein_emulator.script(endpoint, *[Hang()] * 10)
    error = await outcome(asked(client, endpoint))
    assert (type(error), now()) == (APITimeoutError, 3.5)


async def test_the_deadline_covers_the_wait_for_a_slot(klein_emulator, connect):
    client = connect(limits=Limits(max_in_flight=1), polling=EVERY_SECOND)
    klein_emulator.script("submit", Generation(after=50))
    first = asyncio.ensure_future(client.generate("a cat"))
    await settle()
    error = await outcome(client.generate("a dog", timeout=5))
    assert (isinstance(error, TimeoutError), error.charged, now()) == (True, "no", 5.0)
    assert klein_emulator.accepted == 1
    first.cancel()


@pytest.mark.parametrize("timeout", [None, math.inf])
async def test_no_limit_waits_for_days(klein_emulator, connect, timeout):
    klein_emulator.script("submit", Generation(after=3 * 86_400))
    await connect(polling=FixedPolling(3600)).generate("a cat", timeout=timeout)
    assert now() == 3 * 86_400


# --- abandoning


PHASES = [("result", Hang(), 1.5), ("status", Hang(), 1.5), ("status", None, 0.5)]


@pytest.mark.parametrize(("endpoint", "answer", "at"), PHASES)
@pytest.mark.parametrize(("on_abandon", "cancels"), [("cancel", 1), ("leave", 0)])
async def test_a_cancelled_wait_does_with_the_request_as_was_said(
    klein_emulator, connect, endpoint, answer, at, on_abandon, cancels
):
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("submit", Generation(after=0.8))
    klein_emulator.script(endpoint, answer)
    await abandoned(client, at=at, on_abandon=on_abandon)
    assert now() == at
    await client.aclose()
    assert (klein_emulator.calls["cancel"], strays()) == (cancels, [])


async def test_a_request_that_nobody_waits_for_any_more_is_ahead_of_no_later_one(klein_emulator, connect):
    spy = Spy()
    client = connect(polling=spy)
    await abandoned(client, at=0.5)
    await client.generate("a dog")
    assert {progress.fell_to(0) for progress in spy.progress} == {0.0}


@pytest.mark.parametrize(
    "error", [KeyError("mine"), GenerationCancelledError("mine"), GenerationFailedError("mine"), JournalError("mine")]
)
async def test_an_exception_of_on_status_leaves_unwrapped_and_abandons(klein_emulator, connect, error):
    """Whatever its class, it is no answer of the service: the money stays reserved, and the request is no failure."""

    def on_status(_status):
        raise error

    book = Book()
    client = connect(polling=EVERY_SECOND, journal=book, budget=book)
    with pytest.raises(type(error)) as caught:
        await client.generate("a cat", on_status=on_status)
    assert caught.value is error
    assert book.lines == ["reserve", "submitting", "accepted", "submitted"]
    await client.aclose()
    assert klein_emulator.calls["cancel"] == 1


async def test_on_status_and_updates_see_each_change_of_state_and_queue_position(klein_emulator, connect):
    def described(status):
        return (status.state.value, status.queue_position)

    client = connect(polling=EVERY_SECOND)
    polls = [("in_queue", 2), ("in_queue", 2), ("in_queue", 1), ("in_progress", None), ("in_progress", None)]
    answers = [Reply(200, {"status": state, "queue_position": position}) for state, position in polls]
    expected = [("in_queue", 2), ("in_queue", 1), ("in_progress", None), ("completed", None)]
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("status", *answers)
    seen = []
    await client.generate("a cat", on_status=lambda status: seen.append(described(status)))
    assert seen == expected
    handle = await client.submit("a dog")
    klein_emulator.script("status", *answers)
    assert [described(status) async for status in handle.updates()] == expected


async def test_a_finished_generation_is_an_event_with_its_figures(klein_emulator, connect):
    events = Events()
    await asyncio.sleep(1.5)
    klein_emulator.script("submit", Generation(after=2.5))
    result = await connect(polling=EVERY_SECOND, on_event=events).generate("a cat", tag="mine")
    [event] = events.of(Finished)
    assert event.request_id == result.request_id
    assert (event.tag, event.seconds, event.polls, event.lag_max, event.cost_usd) == ("mine", 3.0, 3, 1.0, 0.01)


# --- what is written down


ENDINGS = [
    pytest.param(Generation(), EntryState.COMPLETED, 0.01, id="completed"),
    pytest.param(Generation(ends="failed", error="out of memory"), EntryState.FAILED, None, id="failed"),
    pytest.param(Generation(ends="cancelled"), EntryState.CANCELLED, 0.0, id="cancelled"),
]


@pytest.mark.parametrize("on_status", [None, id])
@pytest.mark.parametrize(("fate", "state", "cost"), ENDINGS)
async def test_the_end_of_a_request_is_written_down_with_what_it_cost(
    klein_emulator, connect, fate, state, cost, on_status
):
    book = Book()
    klein_emulator.script("submit", fate)
    client = connect(journal=book, budget=book)
    found = await outcome(client.generate("a cat", on_status=on_status))
    error = None if state is EntryState.COMPLETED else str(found)
    written = cost if error is None else None
    assert (book.lines[-2:], book.facts[-1]) == ([("settle", cost), state.value], (found.request_id,))
    end = book.entries[-1]
    assert (end.request_id, end.cost_usd, end.error) == (found.request_id, written, error)
    await client.aclose()
    assert klein_emulator.calls["cancel"] == 0


@pytest.mark.parametrize("answer", [error_reply(401), error_reply(500)])
async def test_an_end_that_was_not_seen_is_not_written_down(klein_emulator, connect, answer):
    book = Book()
    klein_emulator.script("result", *[answer] * 30)
    await outcome(connect(journal=book, budget=book).generate("a cat"))
    assert book.lines == ["reserve", "submitting", "accepted", "submitted"]


async def test_a_failure_that_only_the_status_tells_is_written_down_too(klein_emulator, connect):
    book = Book()
    klein_emulator.script("status", FAILED)
    klein_emulator.script("result", Reply(404, {}))
    error = await outcome(connect(journal=book, budget=book).generate("a cat"))
    end = book.entries[-1]
    assert (end.state, end.request_id, end.error) == (EntryState.FAILED, error.request_id, str(error))


async def test_the_final_state_is_the_last_update(klein_emulator, connect):
    klein_emulator.script("submit", Generation(ends="failed", after=2.5))
    handle = await connect(polling=FixedPolling(1)).submit("a cat")
    updates = handle.updates()
    assert [status.state.value async for status in updates] == ["in_progress", "failed"]
    assert [status async for status in updates] == []


async def test_one_deadline_covers_all_updates(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=50))
    await asyncio.sleep(1.5)
    handle = await connect(polling=FixedPolling(1)).submit("a cat")
    updates = handle.updates(timeout=5)
    await anext(updates)
    await asyncio.sleep(2)
    error = await outcome(anext(updates))
    assert (type(error), now(), error.request_id) == (WaitTimeoutError, 6.5, handle.request_id)
    assert (error.polls, error.state) == (3, "in_progress")
    polls = klein_emulator.calls["status"]
    error = await outcome(anext(updates))
    assert (type(error), now(), error.state) == (WaitTimeoutError, 6.5, "in_progress")
    assert (error.polls, error.request_id) == (3, handle.request_id)
    error = await outcome(anext(handle.updates(timeout=0)))
    assert (type(error), now(), error.polls) == (WaitTimeoutError, 6.5, 0)
    await settle()
    assert klein_emulator.calls["status"] == polls  # nothing is asked that nobody can wait for


async def test_no_limit_and_a_reader_that_leaves_leave_nothing_running(klein_emulator, connect):
    events = Events()
    klein_emulator.script("submit", Generation(after=50))
    handle = await connect(polling=FixedPolling(1), on_event=events).submit("a cat")
    async for _ in handle.updates(timeout=None):
        break
    assert strays() == []
    async for _ in handle.updates(timeout=None):
        pass
    assert [event.poll for event in events.of(Polled)][1:4] == [1, 2, 3]


async def test_the_wait_knows_how_long_the_submit_took_and_when_it_was_accepted(klein_emulator, connect):
    klein_emulator.round_trip = 0.2
    klein_emulator.script("submit", Reply(429, b"", {"Retry-After": "3"}))
    client, begun = connect(), now()
    result = await client.generate("a cat")
    timings = result.timings
    assert timings.submit == pytest.approx(3.6, abs=0.1)  # the refused one, the hold, the accepted one
    whole = (timings.submit or 0) + (timings.queued or 0) + (timings.running or 0) + (timings.fetch or 0)
    assert whole == pytest.approx(now() - begun)


async def test_a_poll_that_is_due_is_planned_again_while_calls_wait_for_a_connection_or_the_policy_replans(
    klein_emulator, connect
):
    class Later(Spy):
        replans = False

        def next_poll(self, progress):
            super().next_poll(progress)
            return 1.5 if progress.delay or (self.replans and progress.age) else 1.0

    for replans, crowded, polled in ((False, 0.0, 1.0), (False, 0.5, 1.5), (True, 0.0, 1.5)):
        spy = Later()
        spy.replans = replans
        client = connect(polling=spy)
        klein_emulator.script("submit", Generation(after=0.1))
        handle = await client.submit("a cat")
        client._context.lanes = CrowdedLanes(crowded)
        begun = now()
        await handle.wait_for_result()
        assert now() - begun == polled
        assert [progress.delay for progress in spy.progress] == [0.0, *[crowded] * (len(spy.progress) - 1)]


class CrowdedLanes(Lanes):
    """As if others waited for a connection."""

    def __init__(self, delay: float) -> None:
        super().__init__(10)
        self._delay = delay

    @property
    def delay(self) -> float:
        return self._delay


@pytest.mark.parametrize("takes", [4.0, 8.0, 50.0])
async def test_a_service_that_is_slow_to_answer_polls_is_seen_all_the_same(klein_emulator, connect, takes):
    klein_emulator.fault("status", Pass(takes), probability=1)
    await connect().generate("a cat", timeout=200)
    assert klein_emulator.calls["status"] <= 6  # 5, 10, 20, 40 s are too short for the slowest


async def test_a_poll_on_a_dead_connection_still_fails_within_five_seconds(klein_emulator, connect):
    klein_emulator.script("status", Hang())
    await connect().generate("a cat")
    assert now() < 5 + 2


@pytest.mark.parametrize(("on_abandon", "goes_on"), [("leave", True), ("cancel", False)])
async def test_a_wait_out_of_time_says_what_becomes_of_the_request(klein_emulator, connect, on_abandon, goes_on):
    klein_emulator.script("submit", Generation(after=100))
    error = await outcome(connect().generate("a cat", timeout=3, on_abandon=on_abandon))
    assert (type(error), "wait_for_result(request_id) goes on" in str(error)) == (WaitTimeoutError, goes_on)
    assert (error.state, error.cancelling) == ("in_progress", not goes_on)  # which no service cancels
    assert "may still finish" in str(error)
    async with InProcessEmulator(profile="fixed:100", workers=0) as emulator:
        error = await outcome(
            connect(session=emulator.session(), base_url=emulator.base_url).generate(
                "a cat", timeout=3, on_abandon=on_abandon
            )
        )
    assert (error.state, error.cancelling) == ("in_queue", not goes_on)
    assert ("may still finish" in str(error), "is cancelled" in str(error)) == (goes_on, not goes_on)
