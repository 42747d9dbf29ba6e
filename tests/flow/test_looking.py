"""Looking: what each look and its failure leads to, exactly when, and what the policy is told."""

import asyncio
import itertools
import logging
import math
import statistics

import pytest

from flux_klein_async import (
    AdaptivePolling,
    ConfigurationError,
    ExponentialPolling,
    FixedPolling,
    GenerationCancelledError,
    GenerationFailedError,
    Limits,
    Observation,
    Progress,
    Queued,
    RequestState,
    WaitTimeoutError,
)
from flux_klein_async.emulator import (
    Garbage,
    Generation,
    Hang,
    InProcessEmulator,
    Pass,
    Reply,
    Reset,
    Truncate,
    error_reply,
)
from flux_klein_async.events import Held, Looked, StateChanged, Submitted
from flux_klein_async.transport.pacing import InProcessLimiter
from tests.fakes import Events, now, outcome, settle

EVERY_SECOND = FixedPolling(1.0)


async def test_a_result_comes_with_the_first_look_after_its_completion(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=2.5))
    result = await connect(polling=EVERY_SECOND).generate("a cat")
    assert now() == 3.0
    assert result.timings.looks == 3
    assert (result.timings.lag_max, result.timings.running) == (1.0, 2.0)
    assert (result.timings.submit, result.timings.queued, result.timings.fetch) == (0.0, 1.0, 0.0)
    assert result.cost_usd == 0.01


FAILING_LOOKS = [
    error_reply(500),
    error_reply(502),
    error_reply(503, retry_after="soon"),
    error_reply(429),
    error_reply(404, 404001),
    error_reply(401),
    Reply(200, {"error_code": 500001}),
    Reply(200, "<html>"),
    Reply(200, {"status": 7}),
    Reply(200, []),
    Reply(302, "", {"Location": "/elsewhere"}),
    Garbage(),
    Truncate(),
]


async def test_a_look_on_a_connection_that_breaks_twice_saw_nothing(klein_emulator, connect):
    """aiohttp itself repeats a GET once when a kept-alive connection turns out dead."""
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("status", Reset(), Reset())
    result = await connect(polling=EVERY_SECOND).generate("a cat")
    assert (now(), result.timings.looks, klein_emulator.calls["status"]) == (2.0, 2, 3)


@pytest.mark.parametrize("answer", FAILING_LOOKS, ids=repr)
async def test_a_look_that_fails_saw_nothing_and_is_not_repeated(klein_emulator, connect, answer):
    klein_emulator.script("submit", Generation(after=1.5))
    klein_emulator.script("status", answer)
    events = Events()
    result = await connect(polling=EVERY_SECOND, on_event=events).generate("a cat")
    assert (now(), result.timings.looks, klein_emulator.calls["status"]) == (2.0, 2, 2)
    assert [event.error is None for event in events.of(Looked)] == [False, True]


async def test_looks_and_changes_are_told_with_request_and_tag(klein_emulator, connect):
    events = Events()
    klein_emulator.script("submit", Generation(after=3.5))
    klein_emulator.script("status", Reply(200, {"status": "in_queue", "queue_position": 3}), error_reply(500))
    result = await connect(polling=EVERY_SECOND, on_event=events).generate("a cat", tag="mine")
    looked = events.of(Looked)
    assert {(event.request_id, event.tag) for event in (*looked, *events.of(StateChanged))} == {
        (result.request_id, "mine")
    }
    assert [(event.at, event.look, event.state) for event in looked] == [
        (1.0, 1, "in_queue"),
        (2.0, 2, None),
        (3.0, 3, "in_progress"),
        (4.0, 4, "completed"),
    ]
    assert [event.error is None or "HTTP 500" in event.error for event in looked] == [True] * 4
    assert [(event.at, event.state, event.queue_position) for event in events.of(StateChanged)] == [
        (1.0, "in_queue", 3),
        (3.0, "in_progress", None),
        (4.0, "completed", None),
    ]


async def test_a_look_that_is_never_answered_is_given_up_after_five_seconds(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("status", Hang())
    result = await connect(polling=EVERY_SECOND).generate("a cat")
    assert (now(), result.timings.looks) == (6.0, 2)


async def test_a_look_that_dribbles_is_given_up_after_ten_seconds(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("status", Reply(200, b" " * 1000, dribble=0.5))
    result = await connect(polling=EVERY_SECOND, timeout=None).generate("a cat")
    assert (round(now(), 6), result.timings.looks) == (11.5, 2)


async def test_the_round_trip_is_part_of_the_interval(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=2.9))
    klein_emulator.script("status", Pass(delay=0.7), Pass(delay=0.7))
    await connect(polling=EVERY_SECOND).generate("a cat")
    looks = [record.at for record in klein_emulator.records if record.endpoint == "status"]
    assert looks == [1.0, 2.0, 3.0]


async def test_a_hold_on_looks_is_obeyed_by_every_wait(klein_emulator, connect):
    events = Events()
    client = connect(polling=EVERY_SECOND, on_event=events)
    klein_emulator.script("submit", Generation(after=1.5), Generation(after=1.5))
    klein_emulator.script("status", error_reply(429, retry_after=5))
    await asyncio.gather(client.generate("a cat"), client.generate("a dog"))
    assert [record.at for record in klein_emulator.records if record.endpoint == "status"] == [
        1.0,
        1.0,
        6.0,
        pytest.approx(6.039, abs=1e-3),  # one after the other
    ]
    assert [(event.kind, event.seconds) for event in events.of(Held)] == [("read", 5.0)]


async def test_a_hold_on_looks_that_outlasts_the_deadline_ends_the_wait_at_once(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND, timeout=10)
    klein_emulator.script("submit", Generation(after=1.5))
    klein_emulator.script("status", error_reply(429, retry_after=60))
    error = await outcome(client.generate("a cat"))
    assert (type(error), now()) == (WaitTimeoutError, 1.0)
    await settle()
    assert klein_emulator.calls["cancel"] == 1  # cancels are never held


async def test_a_hold_known_before_the_next_look_is_not_slept_towards(klein_emulator, connect):
    klein_emulator.script("status", error_reply(429, retry_after=100))
    error = await outcome(connect(polling=FixedPolling(5.0), timeout=30).wait_for_result("x"))
    assert (type(error), now()) == (WaitTimeoutError, 5.0)
    assert str(error).startswith("The service wants no such call before the deadline")


async def test_the_ceiling_on_looks_spreads_them_evenly(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND, limits=Limits(looks_per_second=2))
    klein_emulator.script("submit", *[Generation(after=0.5)] * 4)
    await client.generate_all(["a", "b", "c", "d"])
    looks = [record.at for record in klein_emulator.records if record.endpoint == "status"]
    assert looks == [1.0, 1.5, 2.0, 2.5]


async def test_under_a_ceiling_a_crowd_waits_alike_and_all_end(klein_emulator, connect):
    """Nobody's gap is more than three times the median gap at the same age."""
    events = Events()
    limits = Limits(max_in_flight=400, looks_per_second=20)
    client = connect(limits=limits, on_event=events, timeout=None)
    klein_emulator.script("submit", *[Generation(after=30.0)] * 400)
    outcomes = await client.generate_all(["a cat"] * 400, concurrency=400)
    assert all(item.result for item in outcomes)
    instants: dict[object, list[float]] = {}
    for event in events:
        if isinstance(event, Submitted | Looked):
            instants.setdefault(event.request_id, []).append(event.at)
    windows: dict[int, list[float]] = {}
    for looks in instants.values():
        for earlier, later in itertools.pairwise(looks):
            windows.setdefault(int(later // 5), []).append(later - earlier)
    assert max(max(gaps) / statistics.median(gaps) for gaps in windows.values()) <= 3
    looked = sorted(event.at for event in events.of(Looked))
    assert min(later - earlier for earlier, later in itertools.pairwise(looked)) >= 0.05 - 1e-9


async def test_a_refused_look_makes_every_wait_look_more_rarely_for_a_while(klein_emulator, connect):
    prices = []

    class Priced(Spy):
        def next_look(self, progress: Progress) -> float:
            prices.append(progress.price)
            return super().next_look(progress)

    klein_emulator.script("submit", Generation(after=30.0))
    klein_emulator.script("status", None, error_reply(429))
    await connect(polling=Priced()).generate("a cat")
    assert prices[:3] == [1.0, 1.0, 2.0]
    assert prices[3:] == sorted(prices[3:], reverse=True)
    assert prices[-1] == 1.0


# --- looking at the result itself


async def test_looking_at_the_result_saves_a_round_trip(klein_emulator, connect):
    klein_emulator.round_trip = 0.5
    klein_emulator.script("submit", Generation(after=2.8))
    client = connect(polling=EVERY_SECOND, look_at="result")
    begun = now()
    result = await client.generate("a cat")
    assert result.image_url
    assert result.cost_usd == 0.01
    # The connection and the submit take a round trip each; the third look is sent 3 s later and brings it all.
    assert (now() - begun, result.timings.looks, result.timings.fetch) == (0.5 + 0.5 + 3.0 + 0.5, 3, 0.0)
    assert (klein_emulator.calls["status"], klein_emulator.calls["result"]) == (0, 3)


@pytest.mark.parametrize(
    "early", [error_reply(404, 404001), error_reply(400, 400001), error_reply(409), Reply(200, {}), Reply(200, "no")]
)
async def test_a_service_without_early_results_is_looked_at_by_its_status(klein_emulator, connect, early, caplog):
    caplog.set_level(logging.INFO)
    klein_emulator.script("submit", *[Generation(after=2.5, early_result=early)] * 5)
    client = connect(polling=EVERY_SECOND, look_at="result")
    assert (await client.generate("a cat")).image_url
    assert now() == 3.0
    looks = [(record.endpoint, record.at) for record in klein_emulator.records][1:]
    assert looks == [("result", 1.0), ("status", 1.0), ("status", 2.0), ("status", 3.0), ("result", 3.0)]
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
        await connect(polling=EVERY_SECOND, look_at="result").generate_all(["a cat"] * 5)
    assert (now(), klein_emulator.calls["status"]) == (2.0, 10)
    assert caplog.text.count("no early results") == 1


@pytest.mark.parametrize("odd", [Reply(200, "<html>"), error_reply(404, 404001), Hang()], ids=repr)
async def test_one_odd_answer_does_not_end_looking_at_the_result(klein_emulator, connect, odd):
    client = connect(polling=EVERY_SECOND, look_at="result")
    for _ in range(5):
        klein_emulator.script("submit", Generation(after=1.5), Generation(after=1.5))
        klein_emulator.script("result", odd)
        await client.generate("met by it")
        before = klein_emulator.calls["status"]
        await client.generate("not met by it")
        assert klein_emulator.calls["status"] == before


class Raising:
    """A policy with a defect."""

    def __init__(self, *, at: str) -> None:
        self._at = at

    def next_look(self, progress: Progress) -> float:
        if self._at == "next_look":
            raise RuntimeError("boom")
        return 1.0

    def observe(self, observation: Observation) -> None:
        raise RuntimeError("boom")


async def test_a_policy_that_cannot_learn_does_not_cost_the_result(klein_emulator, connect, caplog):
    result = await connect(polling=Raising(at="observe")).generate("a cat")
    assert result.image_url
    assert "ignored: the result is here" in caplog.text
    assert klein_emulator.calls["cancel"] == 0


async def test_a_policy_that_raises_is_a_configuration_error_with_the_id(klein_emulator, connect):
    error = await outcome(connect(polling=Raising(at="next_look")).generate("a cat"))
    assert (type(error), "RuntimeError: boom" in str(error)) == (ConfigurationError, True)
    assert error.request_id in klein_emulator.completions


@pytest.mark.parametrize("answer", [error_reply(500), error_reply(429), Reset()], ids=repr)
async def test_trouble_at_the_result_is_no_reason_to_look_elsewhere(klein_emulator, connect, answer):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("result", answer, answer)  # aiohttp repeats a GET whose connection was reset
    await connect(polling=EVERY_SECOND, look_at="result").generate("a cat")
    assert klein_emulator.calls["status"] == 0


async def test_a_completed_state_without_its_output_is_asked_for_again(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("result", Reply(200, {"status": "completed"}))
    result = await connect(polling=EVERY_SECOND, look_at="result").generate("a cat")
    assert result.image_url
    assert klein_emulator.calls["result"] == 2


@pytest.mark.parametrize(("ends", "kind"), [("failed", GenerationFailedError), ("cancelled", GenerationCancelledError)])
async def test_a_bad_end_seen_in_the_result_is_its_error(klein_emulator, connect, ends, kind):
    klein_emulator.script("submit", Generation(ends=ends, error="out of memory", after=0.5))
    error = await outcome(connect(polling=EVERY_SECOND, look_at="result").generate("a cat"))
    assert type(error) is kind
    assert klein_emulator.calls["result"] == 1


# --- the policy


class Spy:
    """A policy of a user's own."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.observations: list[Observation] = []

    def next_look(self, progress: Progress) -> float:
        self.progress.append(progress)
        return 1.0

    def observe(self, observation: Observation) -> None:
        self.observations.append(observation)


async def test_a_policy_is_told_how_the_wait_stands_and_what_it_taught(klein_emulator, connect):
    spy = Spy()
    klein_emulator.script("submit", Generation(after=2.5))
    klein_emulator.script("status", Pass(delay=0.25))
    await connect(polling=spy).generate("a cat", width=512, height=256)
    facts = [(item.looks, item.age, item.state, item.pixels, item.round_trip) for item in spy.progress]
    assert facts == [
        (0, 0.0, None, 512 * 256, None),
        (1, 1.25, "in_progress", 512 * 256, 0.25),
        (2, 2.0, "in_progress", 512 * 256, 0.0),
    ]
    [taught] = spy.observations
    assert (taught.not_before, taught.not_after, taught.served, taught.looks) == (2.0, 3.0, 2.5, 3)
    assert taught.model == "blackforestlabs/flux-2-klein/4b/text-to-image"


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


async def test_what_a_policy_learned_is_saved_when_the_client_closes(klein_emulator, connect, tmp_path):
    path = tmp_path / "learned" / "times.json"
    client = connect(polling=AdaptivePolling(store=path))
    await client.generate("a cat")
    assert not path.exists()
    await client.aclose()
    model, pixels = "blackforestlabs/flux-2-klein/4b/text-to-image", 1024 * 1024
    warm, cold = AdaptivePolling(store=path).prediction(model, pixels), AdaptivePolling().prediction(model, pixels)
    assert warm.distribution().quantile(0.5) != cold.distribution().quantile(0.5)


async def test_what_a_policy_learned_is_saved_now_and_then(klein_emulator, connect, tmp_path):
    path = tmp_path / "times.json"
    client = connect(polling=AdaptivePolling(store=path))
    await client.generate_all(["a cat"] * 199)
    assert not path.exists()
    await client.generate("a cat")
    await settle()
    await asyncio.sleep(1)
    assert path.exists()


async def test_a_policy_is_told_of_the_queue_in_seconds_since_acceptance(klein_emulator, connect):
    spy, model, pixels = Spy(), "blackforestlabs/flux-2-klein/4b/text-to-image", 1024 * 1024
    klein_emulator.script("submit", Generation(after=4.5))
    queue = [(2, 0.25), (2, 0.0), (1, 0.0)]
    answers = [Reply(200, {"status": "in_queue", "queue_position": place}, delay=delay) for place, delay in queue]
    klein_emulator.script("status", *answers)
    await asyncio.sleep(1.5)
    timings = (await connect(polling=spy).generate("a cat")).timings
    assert (timings.queued, timings.running, timings.lag_max) == (4.0, 1.0, 1.0)
    assert spy.progress == [
        Progress(model, pixels, 0, 0.0, None, 0.0, None, None, None, 0.0, None),
        Progress(model, pixels, 1, 1.25, RequestState.IN_QUEUE, 0.0, 2, 1.0, 0.25, 1.0, Queued(1.0, 2, 1.0, 2, 1.0)),
        Progress(model, pixels, 2, 2.0, RequestState.IN_QUEUE, 0.75, 2, 1.0, 0.0, 2.0, Queued(1.0, 2, 1.0, 2, 2.0)),
        Progress(model, pixels, 3, 3.0, RequestState.IN_QUEUE, 1.75, 1, 1.0, 0.0, 3.0, Queued(1.0, 2, 3.0, 1, 3.0)),
        Progress(
            model, pixels, 4, 4.0, RequestState.IN_PROGRESS, 0.0, None, 1.0, 0.0, 4.0, Queued(1.0, 2, 3.0, 1, 3.0)
        ),
    ]
    assert spy.observations == [
        Observation(
            model=model,
            pixels=pixels,
            not_before=4.0,
            not_after=5.0,
            running_since=4.0,
            served=4.5,
            looks=5,
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
    assert [(item.age, item.sent) for item in spy.progress if item.looks == 0] == [(2.0, 0.0), (0.0, 0.0)]


async def test_the_price_of_a_look_is_asked_for_its_policy_and_paid_at_its_turn(klein_emulator, connect):
    class Till(InProcessLimiter):
        paid: list[float]

        async def look(self, price: float) -> None:
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
        ("2026-01-01T00:00:00", "2026-01-01T00:00:02Z", None),
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
    answer = {"status": "completed", "output": {}, "created_at": created, "finished_at": finished}
    klein_emulator.script("result", Reply(200, answer))
    await connect(polling=spy).generate("a cat")
    assert [taught.served for taught in spy.observations] == [served]


@pytest.mark.parametrize("answer", [-1.0, math.nan, math.inf])
async def test_a_policy_that_answers_nonsense_is_a_configuration_error(klein_emulator, connect, answer):
    class Nonsense(Spy):
        def next_look(self, progress: Progress) -> float:
            return answer

    error = await outcome(connect(polling=Nonsense()).generate("a cat"))
    assert (type(error), error.charged) == (ConfigurationError, "unknown")
    assert error.request_id in klein_emulator.completions
    await settle()
    assert klein_emulator.calls["cancel"] == 1


async def test_the_default_policy_needs_few_looks_for_half_a_second(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=0.57))
    client = connect(polling=ExponentialPolling(spread=lambda: 0.5))
    result = await client.generate("a cat")
    assert (result.timings.looks, round(now(), 3)) == (4, 0.577)
