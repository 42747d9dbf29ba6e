"""The plain calls: status, result, cancel, catalogue entry. Each is repeated where repeating is harmless."""

import json
from collections.abc import Callable
from typing import TypeVar

from flux_klein_async.api.messages import Request, Response
from flux_klein_async.api.responses import read_cancel, read_model, read_result, read_status
from flux_klein_async.errors import FluxKleinError
from flux_klein_async.events import Cancelled, Failed
from flux_klein_async.journal.base import EntryState
from flux_klein_async.models import CancelOutcome, GenerationResult, ModelInfo, RequestStatus, Timings
from flux_klein_async.operations.context import ClientContext, log
from flux_klein_async.operations.operation import Operation
from flux_klein_async.transport.retry import Verdict, classify

__all__ = [
    "cancel",
    "cancel_abandoned",
    "fetch_result",
    "get_model",
    "single",
    "status",
    "tell_failed",
    "write_result",
]


T = TypeVar("T")
CANCEL_WITHIN = 5.0  # seconds for a cancel that nobody waits for


async def single(operation: Operation, request: Request, read: Callable[[Response], T]) -> T:
    """Make one call, with repeats inside the deadline and the client's quota.

    Raises:
        FluxKleinError: What the last attempt ended in.
    """
    context = operation.context

    async def once() -> T:
        return read(await context.exchange(request, operation))

    return await context.attempt(
        request.kind,
        operation,
        once,
        allows=lambda error: classify(error, request) is Verdict.RETRY,
        attempts=context.retry.attempts,
    )


async def status(operation: Operation, request_id: str) -> RequestStatus:
    """Where the request stands."""
    context = operation.context
    return await single(operation, context.api.status(request_id), lambda answer: read_status(answer, request_id))


async def fetch_result(
    operation: Operation, request_id: str, timings: Callable[[], Timings] = Timings
) -> GenerationResult:
    """The result of a completed request."""
    context = operation.context
    request = context.api.result(request_id)
    return await single(operation, request, lambda answer: read_result(answer, request_id, timings))


async def write_result(context: ClientContext, result: GenerationResult) -> None:
    """Write a result down, by which it can be read again.

    Raises:
        JournalError: It could not be written.
    """
    if context.journal is not None:
        answer = json.dumps(result.raw).encode()
        await context.write(EntryState.COMPLETED, request_id=result.request_id, cost_usd=result.cost_usd, answer=answer)


async def get_model(operation: Operation, model: str) -> ModelInfo:
    """The catalogue entry."""
    context = operation.context
    return await single(operation, context.api.model(model), read_model)


async def cancel(operation: Operation, request_id: str, *, abandoned: bool = False) -> CancelOutcome:
    """Ask the service to cancel, and say what it answered."""
    context = operation.context
    outcome = await single(operation, context.api.cancel(request_id), lambda answer: read_cancel(answer, request_id))
    context.emit(
        lambda at: Cancelled(
            at=at, request_id=request_id, tag=operation.tag, cancelled=outcome.cancelled, abandoned=abandoned
        )
    )
    if outcome.cancelled:
        context.budget.settle(request_id, 0.0)
        await context.write(EntryState.CANCELLED, request_id=request_id)
    return outcome


async def cancel_abandoned(context: ClientContext, request_id: str, tag: object) -> None:
    """Cancel a request that nobody waits for any more; what cannot be cancelled is remembered as running on."""
    operation = Operation(context, CANCEL_WITHIN, request_id=request_id, tag=tag, registered=False)
    answered = False
    try:
        with operation:
            outcome = await cancel(operation, request_id, abandoned=True)
        answered = True
        if outcome.cancelled:
            context.left_running.discard(request_id)
    except FluxKleinError as error:
        log.warning("Request %s was abandoned and could not be cancelled: %s", request_id, error)
    finally:  # also where the client closes and ends this
        if not answered:
            context.emit(lambda at: Cancelled(at=at, request_id=request_id, tag=tag, cancelled=None, abandoned=True))
        if not context.closing:  # only what is found running while closing is reported by it
            context.left_running.discard(request_id)


def tell_failed(operation: Operation, error: FluxKleinError, verb: str, model: str | None = None) -> None:
    """Tell the handler of events that a call is about to leave with this error.

    One whose own submit was accepted must not be made again, and its error says so from now on.
    """
    context = operation.context
    if operation.waits and operation.submitted:
        error.paid_by_this_call = True
    context.emit(
        lambda at: Failed(
            at=at,
            request_id=error.request_id or operation.request_id,
            tag=operation.tag,
            error_type=type(error).__name__,
            error=str(error),
            seconds=at - operation.started,
            model=model,
            call=operation.number,
            verb=verb,
        )
    )
