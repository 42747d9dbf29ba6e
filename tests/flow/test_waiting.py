"""Waiting: how a wait ends, exactly when, and what becomes of a request that nobody waits for."""

import asyncio
import itertools
import logging
import math
from typing import Any

import pytest

from flux_klein_async import (
    APITimeoutError,
    AuthenticationError,
    FixedPolling,
    GenerationCancelledError,
    GenerationFailedError,
    InsufficientBalanceError,
    Limits,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResultNotReadyError,
    RetryPolicy,
    ServerError,
    WaitTimeoutError,
)
from flux_klein_async.emulator import Endless, Garbage, Generation, Hang, Pass, Reply, Reset, Truncate, error_reply
from flux_klein_async.events import Failed, Finished, StateChanged
from flux_klein_async.ledger.base import Entry, EntryState
from tests.fakes import Events, now, outcome, settle, strays

EVERY_SECOND = FixedPolling(1.0)


@pytest.mark.parametrize(
    ("fate", "kind", "charged", "detail"),
    [
        (
            Generation(ends="failed", error="out of memory", after=0.5),
            GenerationFailedError,
            "unknown",
            "out of memory",
        ),
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


async def test_a_cancelled_request_has_no_result_to_ask_for(klein_emulator, connect):
    klein_emulator.script("submit", Generation(ends="cancelled", after=0.5))
    error = await outcome(connect().generate("a cat"))
    assert type(error) is GenerationCancelledError
    assert klein_emulator.calls["result"] == 0


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
    ("answer", "kind"),
    [
        (Reply(200, {"status": "in_progress"}), ResultNotReadyError),
        (Reply(200, {"status": "completed"}), ResultNotReadyError),
        (Reply(404, {}), NotFoundError),
    ],
)
async def test_a_completed_request_without_a_result_is_given_up_after_ten_seconds(
    klein_emulator, connect, answer, kind
):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("result", *[answer] * 100)
    error = await outcome(connect(polling=EVERY_SECOND).generate("a cat"))
    assert (type(error), error.charged, error.retryable) == (kind, "unknown", False)
    asked = [record.at for record in klein_emulator.records if record.endpoint == "result"]
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, *[1.0] * 8])
    assert now() == asked[-1]


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


async def test_a_result_call_that_fails_is_repeated(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("result", Reset(), error_reply(503), Truncate())
    result = await connect(polling=EVERY_SECOND).generate("a cat")
    assert (result.image_url is not None, klein_emulator.calls["result"]) == (True, 4)


async def test_a_result_call_that_fails_five_times_is_its_error(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("result", *[error_reply(500)] * 10)
    error = await outcome(connect(polling=EVERY_SECOND).generate("a cat"))
    assert (type(error), error.retryable, klein_emulator.calls["result"]) == (ServerError, False, 5)


@pytest.mark.parametrize("answer", [Reset(), Garbage(), Truncate(), Endless()])
async def test_an_error_of_the_wire_after_a_paid_submit_holds_its_id(klein_emulator, connect, answer):
    klein_emulator.script("submit", Generation(after=0.5))
    klein_emulator.script("result", *[answer] * 20)
    error = await outcome(connect(polling=EVERY_SECOND).generate("a cat"))
    assert error.request_id in klein_emulator.completions
    assert (error.charged, error.retryable) == ("unknown", False)


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


async def test_trouble_that_passes_is_waited_out_until_the_deadline(klein_emulator, connect):
    klein_emulator.script("status", *[error_reply(500)] * 100)
    error = await outcome(connect(polling=EVERY_SECOND, timeout=30).wait_for_result("there"))
    assert (type(error), error.looks, error.state, now()) == (WaitTimeoutError, 29, None, 30.0)
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


async def test_states_in_other_words_and_cases_are_understood(klein_emulator, connect):
    words = {"in_progress": "Processing", "completed": "SUCCEEDED"}
    klein_emulator.script("submit", Generation(after=0.5, words=words))
    assert (await connect().generate("a cat")).state == "completed"


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


async def test_a_dribbling_submit_ends_exactly_at_the_deadline(klein_emulator, connect):
    klein_emulator.script("submit", Reply(200, {"request_id": "x"}, dribble=0.5))
    error = await outcome(connect().generate("a cat", timeout=3.25))
    assert (error.charged, now()) == ("unknown", 3.25)


@pytest.mark.parametrize("endpoint", ["status", "result", "cancel", "model"])
async def test_a_single_call_ends_exactly_at_the_deadline(klein_emulator, connect, endpoint):
    client = connect(timeout=3.5)
    klein_emulator.script(endpoint, *[Hang()] * 10)
    argument = [] if endpoint == "model" else ["some-id"]
    error = await outcome(getattr(client, endpoint)(*argument))
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


PHASES = [
    ("result", Hang(), 1.5),
    ("status", Hang(), 1.5),
    ("status", None, 0.5),
]


@pytest.mark.parametrize(("endpoint", "answer", "at"), PHASES)
@pytest.mark.parametrize(("on_abandon", "cancels"), [("cancel", 1), ("leave", 0)])
async def test_a_cancelled_wait_does_with_the_request_as_was_said(
    klein_emulator, connect, endpoint, answer, at, on_abandon, cancels
):
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("submit", Generation(after=0.8))
    klein_emulator.script(endpoint, answer)
    task = asyncio.ensure_future(client.generate("a cat", on_abandon=on_abandon))
    await asyncio.sleep(at)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == at
    await client.aclose()
    assert (klein_emulator.calls["cancel"], strays()) == (cancels, [])


async def test_an_exception_of_on_status_leaves_unwrapped_and_abandons(klein_emulator, connect):
    def on_status(_status):
        raise KeyError("mine")

    client = connect(polling=EVERY_SECOND)
    with pytest.raises(KeyError):
        await client.generate("a cat", on_status=on_status)
    await client.aclose()
    assert klein_emulator.calls["cancel"] == 1


async def test_on_status_and_updates_see_each_change_of_state_and_queue_position(klein_emulator, connect):
    def described(status):
        return (status.state.value, status.queue_position)

    client = connect(polling=EVERY_SECOND)
    looks = [("in_queue", 2), ("in_queue", 2), ("in_queue", 1), ("in_progress", None), ("in_progress", None)]
    answers = [Reply(200, {"status": state, "queue_position": position}) for state, position in looks]
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
    assert (event.tag, event.seconds, event.looks, event.lag_max, event.cost_usd) == ("mine", 3.0, 3, 1.0, 0.01)


# --- what is written down


class Book:
    """A journal and a budget that keep how requests ended."""

    def __init__(self) -> None:
        self.ends: list[Any] = []

    async def record(self, entry: Entry) -> None:
        if entry.key is None:
            self.ends.append((entry.state, entry.request_id, entry.cost_usd, entry.error))

    async def reserve(self, *_: Any) -> None:
        """Anything goes."""

    release = accepted = lambda *_: None

    def settle(self, request_id: str, cost_usd: float | None) -> None:
        self.ends.append(("settled", request_id, cost_usd))


ENDINGS = [
    pytest.param(Generation(), EntryState.COMPLETED, 0.01, id="completed"),
    pytest.param(Generation(ends="failed", error="out of memory"), EntryState.FAILED, None, id="failed"),
    pytest.param(Generation(ends="cancelled"), EntryState.CANCELLED, 0.0, id="cancelled"),
]


@pytest.mark.parametrize(("fate", "state", "cost"), ENDINGS)
async def test_the_end_of_a_request_is_written_down_with_what_it_cost(klein_emulator, connect, fate, state, cost):
    book = Book()
    klein_emulator.script("submit", fate)
    found = await outcome(connect(journal=book, budget=book).generate("a cat"))
    error = None if state is EntryState.COMPLETED else str(found)
    written = cost if error is None else None
    assert book.ends == [("settled", found.request_id, cost), (state, found.request_id, written, error)]


@pytest.mark.parametrize("answer", [error_reply(401), error_reply(500)])
async def test_an_end_that_was_not_seen_is_not_written_down(klein_emulator, connect, answer):
    book = Book()
    klein_emulator.script("result", *[answer] * 30)
    await outcome(connect(journal=book, budget=book).generate("a cat"))
    assert book.ends == []


async def test_a_failure_that_only_the_status_tells_is_written_down_too(klein_emulator, connect):
    book = Book()
    klein_emulator.script("status", FAILED)
    klein_emulator.script("result", Reply(404, {}))
    error = await outcome(connect(journal=book, budget=book).generate("a cat"))
    assert book.ends[-1] == (EntryState.FAILED, error.request_id, None, str(error))
