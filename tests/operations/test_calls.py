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
    ResultNotReadyError,
    ServerError,
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


@pytest.mark.parametrize(
    ("fate", "cost", "end"),
    [
        (Generation(cost=0.04), 0.04, "completed"),
        (Generation(ends="failed", error="no"), None, "failed"),
        (Generation(ends="cancelled"), 0.0, "cancelled"),
        (Generation(), None, None),
    ],
)
async def test_budget_and_journal_learn_the_end_from_a_result_that_is_fetched_without_a_wait(
    klein_emulator, connect, fate, cost, end
):
    book = Book()
    client = connect(journal=book, budget=book)
    klein_emulator.script("submit", fate)
    handle = await client.submit("a cat")
    told = len(book.lines)
    assert isinstance(await outcome(handle.result()), ResultNotReadyError)
    await asyncio.sleep(5)
    if end is None:  # it may still get an output
        klein_emulator.script("result", Reply(200, {"status": "completed", "output": None}))
    assert (await outcome(handle.result())).request_id == handle.request_id
    assert book.lines[told:] == ([] if end is None else [("settle", cost), end])


async def test_thousands_of_abandoned_requests_are_cancelled_a_few_at_a_time(klein_emulator, connect):
    client = connect(timeout=2, polling=FixedPolling(1))
    klein_emulator.script("submit", *[Generation(after=500)] * 300)
    await client.generate_all([f"picture {number}" for number in range(300)], concurrency=300)
    await settle()
    assert len(strays()) <= 8 + 8
    await client.aclose()
    assert klein_emulator.calls["cancel"] == 300


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


def page(*names: str, total: object) -> Reply:
    return Reply(200, {"models": [{"model_id": f"a/{name}"} for name in names], "total": total})


def full(start: int, total: object) -> Reply:
    return page(*map(str, range(start, start + 100)), total=total)


# Answers, the models that they give, the calls, and the error that ends the list.
PAGES = {
    "one page": ([page("x", "y", total=2)], 2, 1, None),
    "nothing": ([page(total=0)], 0, 1, None),
    "smaller pages than asked for": ([page("x", total=3), page("y", "z", total=3)], 3, 2, None),
    "the last page is full": ([full(0, 100), page(total=100)], 100, 2, None),
    "a total too high": ([page("x", total=9), page("y", total=9), page(total=9)], 2, 3, None),
    "a total too low": ([full(0, 1), full(100, 1), page("x", total=1)], 201, 3, None),
    "no total": ([page("x", total=None), page("y", total="2"), page(total=-1)], 2, 3, None),
    "the same without a total": ([page("x", total=None)] * 2, 1, 2, None),
    "everything at every offset": ([full(0, 100)] * 2, 100, 2, None),
    "a model that comes twice": ([page("x", "x", total=4), page("x", "y", total=4)], 2, 2, None),
    "empty for a moment": ([page(total=1), page("x", total=1)], 1, 2, None),
    "empty": ([page(total=1)] * 5, 0, 5, "names 1 models, and gives none after the first 0"),
    "the same": ([page("x", total=9)] * 6, 1, 6, "names 9 models, and gives none after the first 1"),
    "without end": (
        [full(n, 10**6) for n in [*range(0, 10_000, 100), *[10_000] * 5]],
        *(10_000, 105, "more than 10000 models"),
    ),
}


@pytest.mark.parametrize("name", PAGES)
async def test_a_list_of_models_ends_whatever_its_pages_say(klein_emulator, connect, name):
    answers, models, calls, sentence = PAGES[name]
    klein_emulator.script("models", *answers)
    listed, found = connect().list_models(), []
    with pytest.raises((StopAsyncIteration, InvalidResponseError)) as ended:
        while True:
            found.append((await anext(listed)).model_id)
    assert len(set(found)) == len(found) == models
    assert sentence in str(ended.value) if sentence else ended.type is StopAsyncIteration
    assert sentence or await anext(listed, None) is None
    assert klein_emulator.calls["models"] == calls


async def test_a_page_is_fetched_when_it_is_needed_and_again_after_an_error(klein_emulator, connect):
    client = connect()
    listed = client.list_models(search="a b&c", category="x/y")
    assert klein_emulator.calls["models"] == 0
    klein_emulator.script("models", page("x", "y", total=3), error_reply(404, 404001), page("z", total=3))
    assert [(await anext(listed)).model_id for _ in range(2)] == ["a/x", "a/y"]
    assert klein_emulator.calls["models"] == 1
    assert type(await outcome(anext(listed))) is NotFoundError
    assert [info.model_id async for info in listed] == ["a/z"]
    queries = [record.query for record in klein_emulator.records]
    assert queries == [{"search": "a b&c", "category": "x/y", "limit": "100", "offset": offset} for offset in "022"]


async def test_tasks_that_share_a_list_get_each_model_once(klein_emulator, connect):
    klein_emulator.fault("models", Pass(1.0), probability=1)
    listed = connect().list_models()
    found = await asyncio.gather(*(anext(listed) for _ in range(12)))
    assert (len({info.model_id for info in found}), klein_emulator.calls["models"], now()) == (12, 1, 1.0)
    assert [info async for info in listed] == []
