"""One verb's scope: it ends at its deadline or with its client, and never swallows a cancellation."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from flux_klein_async import (
    APITimeoutError,
    BudgetExceededError,
    ClientClosedError,
    GenerationCancelledError,
    ServerError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.operations.context import KnownIds
from flux_klein_async.operations.operation import Operation
from tests.fakes import now, outcome

pytestmark = pytest.mark.usefixtures("klein_emulator")  # for its virtual time


def make(timeout: float | None = 2.0, **options: Any) -> Operation:
    operations: set[Operation] = set()
    context: Any = SimpleNamespace(
        bind=asyncio.get_running_loop, operations=operations, ended=operations.discard, known_ids=KnownIds()
    )
    return Operation(context, timeout, **options)


async def inside(call: Operation) -> None:
    with call:
        await asyncio.sleep(10)


@pytest.mark.parametrize(
    ("facts", "kind", "charged"),
    [
        ({}, APITimeoutError, "no"),
        ({"request_id": "x", "last_error": ServerError(status_code=500)}, ServerError, "unknown"),
        ({"last_error": ServerError(status_code=500)}, ServerError, "no"),
        ({"uncertain": True}, SubmissionUncertainError, "unknown"),
        ({"request_id": "x"}, APITimeoutError, "unknown"),
        ({"request_id": "x", "waits": True, "polls": 3}, WaitTimeoutError, "unknown"),
        ({"waits": True, "last_error": ServerError(status_code=500)}, ServerError, "no"),
    ],
)
async def test_the_deadline_ends_in_the_error_that_the_facts_call_for(facts, kind, charged):
    call = make()
    for name, value in facts.items():
        setattr(call, name, value)
    error = await outcome(inside(call))
    assert (type(error), error.charged, now()) == (kind, charged, 2.0)
    assert error.request_id == facts.get("request_id")
    assert error.__context__ is None or isinstance(error.__context__, asyncio.CancelledError)
    assert error.__suppress_context__


@pytest.mark.parametrize("last", [None, ServerError(status_code=500)])
async def test_a_wait_out_of_time_tells_how_far_it_came(last):
    await asyncio.sleep(1.5)
    call = make(2.0, request_id="x", waits=True)
    call.polls, call.state, call.last_error = 7, "in_queue", last
    error = await outcome(inside(call))
    assert type(error) is WaitTimeoutError
    assert (error.request_id, error.elapsed, error.polls, error.state) == ("x", 2.0, 7, "in_queue")
    assert error.cause == (str(last) if last else None)
    assert str(error).startswith("The deadline passed after 2 s; last seen in_queue in 7 polls")


@pytest.mark.parametrize("timeout", [2.0, None])
async def test_a_wait_given_up_before_its_deadline_says_so(timeout):
    call = make(timeout, request_id="x", waits=True)
    assert str(call.out_of_time(None)).startswith("The service wants no such call before the deadline; ")


async def test_every_error_of_a_call_leaves_with_its_request_id():
    for request_id, mine in [(None, "x"), ("theirs", "theirs")]:
        call = make(request_id="x")
        error = ServerError(status_code=500, request_id=request_id)
        with pytest.raises(ServerError), call:
            raise error
        assert error.request_id == mine


async def test_what_was_being_handled_when_the_deadline_passed_is_not_chained():
    """It may be an error of the wire, which holds the request and its token."""
    call = make()

    async def body() -> None:
        with call:
            try:
                raise KeyError("secret")
            except KeyError:
                await asyncio.sleep(10)

    error = await outcome(body())
    assert isinstance(error.__context__, asyncio.CancelledError)
    assert (error.__cause__, error.__context__.__context__) == (None, None)


@pytest.mark.parametrize(
    ("facts", "end", "kind", "charged"),
    [
        ({}, "close", ClientClosedError, "no"),
        ({"uncertain": True}, "close", ClientClosedError, "unknown"),
        ({"last_error": SubmissionUncertainError()}, "close", ClientClosedError, "unknown"),
        ({}, "stop", GenerationCancelledError, "no"),
        ({"uncertain": True}, "stop", SubmissionUncertainError, "unknown"),
        ({"last_error": SubmissionUncertainError()}, "stop", SubmissionUncertainError, "unknown"),
        ({}, "halt", BudgetExceededError, "no"),
    ],
)
async def test_a_call_that_is_ended_from_outside_ends_once_in_the_right_error(facts, end, kind, charged):
    call = make(None)
    for name, value in facts.items():
        setattr(call, name, value)
    task = asyncio.ensure_future(outcome(inside(call)))
    await asyncio.sleep(1)
    assert call.context.operations == {call}
    for _ in range(2):
        getattr(call, end)(*([BudgetExceededError()] if end == "halt" else []))
    error = await task
    assert (type(error), error.charged, now()) == (kind, charged, 1.0)
    assert call.context.operations == set()


@pytest.mark.parametrize("facts", [{"request_id": "x"}, {"drop_post": lambda: False}])
async def test_halting_leaves_alone_what_is_submitted(facts):
    call = make(2.0)
    for name, value in facts.items():
        setattr(call, name, value)
    task = asyncio.ensure_future(outcome(inside(call)))
    await asyncio.sleep(1)
    call.halt(BudgetExceededError())
    assert isinstance(await task, APITimeoutError)
    assert now() == 2.0


@pytest.mark.parametrize(
    ("answered", "error", "at"), [(None, GenerationCancelledError, 6.0), (3.0, APITimeoutError, 9.0)]
)
async def test_a_stopped_call_waits_five_seconds_for_a_post_that_has_begun(answered, error, at):
    call = make(9.0)
    call.drop_post = lambda: False
    task = asyncio.ensure_future(outcome(inside(call)))
    for seconds in (1.0, 2.0):
        asyncio.get_running_loop().call_at(seconds, call.stop)
    if answered is not None:
        asyncio.get_running_loop().call_at(answered, setattr, call, "drop_post", None)
    assert (type(await task), now()) == (error, at)


async def test_a_call_whose_request_is_accepted_in_the_instant_that_ends_it_may_be_charged():
    call = make(None)
    task = asyncio.ensure_future(outcome(inside(call)))
    await asyncio.sleep(1)
    call.stop()
    call.request_id = "x"
    error = await task
    assert (type(error), error.charged, error.request_id) == (GenerationCancelledError, "unknown", "x")


async def test_a_cancellation_from_outside_wins_over_the_deadline():
    call = make(2.0)
    task = asyncio.ensure_future(inside(call))
    asyncio.get_running_loop().call_at(2.0, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_value_returned_in_the_instant_of_the_deadline_is_kept():
    call = make(2.0)

    async def body() -> str:
        with call:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                return "kept"
        return "lost"

    assert await body() == "kept"
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_callers_own_timeout_is_left_alone():
    call = make(5.0)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(1):
            await inside(call)
    assert type(caught.value) is TimeoutError
    assert now() == 1.0


async def test_a_call_needs_a_task():
    call = make()
    found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def outside_of_any_task() -> None:
        with pytest.raises(RuntimeError, match="inside a task"):
            call.__enter__()
        found.set_result(None)

    asyncio.get_running_loop().call_soon(outside_of_any_task)
    await found
