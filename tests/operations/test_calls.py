"""The plain calls are repeated where repeating is harmless, and an abandoned request is cancelled for sure or not."""

import asyncio

import pytest

from flux_klein_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    FixedPolling,
    FluxKleinClient,
    InvalidResponseError,
    NotFoundError,
    RateLimitError,
    ServerError,
)
from flux_klein_async.emulator import (
    Garbage,
    Generation,
    Hang,
    InProcessEmulator,
    Refuse,
    Reply,
    Reset,
    Truncate,
    error_reply,
)
from flux_klein_async.events import Cancelled, Retrying
from tests.fakes import Events, now, outcome, settle, strays
from tests.operations.helpers import Book, asked

PASSING = [
    (error_reply(500), ServerError),
    (error_reply(429), RateLimitError),
    (error_reply(408), APIStatusError),
    (error_reply(503, retry_after=1), ServerError),
    (Garbage(), InvalidResponseError),
    (Truncate(), APIConnectionError),
    (Reply(200, "<html>"), InvalidResponseError),
    (Reply(302, "", {"Location": "/x"}), InvalidResponseError),
]


@pytest.mark.parametrize(("answer", "kind"), PASSING)
@pytest.mark.parametrize("endpoint", ["status", "result", "cancel", "model"])
async def test_a_call_is_made_five_times_at_most(klein_emulator, connect, endpoint, answer, kind):
    client = connect()
    klein_emulator.script(endpoint, *[answer] * 10)
    error = await outcome(asked(client, endpoint))
    assert (type(error), error.retryable, klein_emulator.calls[endpoint]) == (kind, True, 5)
    assert error.request_id in {None, "some-id"}


@pytest.mark.parametrize("endpoint", ["status", "result", "cancel", "model"])
async def test_a_refusal_is_not_repeated(klein_emulator, connect, endpoint):
    client = connect()
    klein_emulator.script(endpoint, error_reply(404, 404001))
    error = await outcome(asked(client, endpoint))
    assert (type(error), klein_emulator.calls[endpoint], now()) == (NotFoundError, 1, 0.0)


async def test_the_last_cause_is_the_error_when_the_deadline_passes_between_attempts(klein_emulator, connect):
    client = connect(timeout=0.5)
    klein_emulator.script("model", error_reply(500), error_reply(429), Hang())
    error = await outcome(client.get_model())
    assert (type(error), now()) == (RateLimitError, 0.5)


async def test_a_repeat_that_would_come_after_the_deadline_is_not_waited_for(klein_emulator, connect):
    client = connect(timeout=30)
    klein_emulator.script("model", error_reply(429, retry_after=31))
    error = await outcome(client.get_model())
    assert (type(error), now()) == (RateLimitError, 0.0)


async def test_silence_is_given_up_and_repeated(klein_emulator, connect):
    client = connect(timeout=600)
    klein_emulator.script("model", *[Hang()] * 4)
    await client.get_model()
    assert 40 <= now() <= 43
    klein_emulator.script("model", *[Hang()] * 5)
    assert isinstance(await outcome(client.get_model()), APITimeoutError)


ABANDONED = [
    pytest.param(None, None, False, id="running"),
    pytest.param(0, None, True, id="queued"),
    pytest.param(None, [Reset()] * 9, None, id="unreachable"),
    pytest.param(None, [Hang()] * 9, None, id="silent"),
    pytest.param(None, [Reply(200, {"outcome": "perhaps"})] * 9, None, id="nonsense"),
]


@pytest.mark.parametrize(("workers", "answers", "told"), ABANDONED)
@pytest.mark.usefixtures("klein_emulator")
async def test_an_abandoned_request_is_cancelled_and_the_answer_is_told(workers, answers, told, caplog):
    events = Events()
    async with InProcessEmulator(workers=workers, profile="fixed:50") as emulator:
        emulator.script("cancel", *(answers or []))
        client = FluxKleinClient(
            emulator.api_key,
            base_url=emulator.base_url,
            session=emulator.session(),
            on_event=events,
            polling=FixedPolling(1),
        )
        error = await outcome(client.generate("a cat", timeout=3, tag="mine"))
        assert now() == 3.0
        await asyncio.sleep(5)
        await settle()
        [event] = events.of(Cancelled)
        assert (event.cancelled, event.tag, event.request_id) == (told, "mine", error.request_id)
        assert (event.at == 3.0 + 5.0) if answers and answers[0] == Hang() else (event.at < 3.0 + 5.0)
        assert {(again.request_id, again.tag) for again in events.of(Retrying)} <= {(error.request_id, "mine")}
        assert strays() == []
        unanswered = [record.getMessage() for record in caplog.records if error.request_id in record.getMessage()]
        assert [line.partition(": ")[0] for line in unanswered] == (
            [f"Request {error.request_id} was abandoned and could not be cancelled"] if told is None else []
        )
        assert await client.aclose() == ()  # long abandoned: closing does not report it


async def test_thousands_of_abandoned_requests_are_cancelled_a_few_at_a_time(klein_emulator, connect):
    client = connect(timeout=2, polling=FixedPolling(1))
    klein_emulator.script("submit", *[Generation(after=500)] * 300)
    await client.generate_all([f"picture {number}" for number in range(300)], concurrency=300)
    await settle()
    assert len(strays()) <= 8 + 8
    await client.aclose()
    assert klein_emulator.calls["cancel"] == 300


async def test_a_refused_connection_is_repeated(klein_emulator, connect):
    klein_emulator.script("connect", Refuse(), Refuse())
    await connect().get_model()
    assert klein_emulator.calls["connect"] == 3


@pytest.mark.parametrize(("outcome_said", "cancelled"), [("cancelled", True), ("not_cancellable", False)])
async def test_a_cancel_is_told_and_written_down_where_it_came_in_time(
    klein_emulator, connect, outcome_said, cancelled
):
    events, book = Events(), Book()
    klein_emulator.script("cancel", Reply(200, {"outcome": outcome_said}))
    answer = await connect(on_event=events, journal=book, budget=book).cancel("x")
    assert answer.cancelled is cancelled
    assert [(event.request_id, event.cancelled) for event in events.of(Cancelled)] == [("x", cancelled)]
    assert (book.lines, book.facts) == (([("settle", 0.0), "cancelled"], [("x",)]) if cancelled else ([], []))
    assert [entry.request_id for entry in book.entries] == (["x"] if cancelled else [])
