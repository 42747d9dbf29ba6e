"""Single calls: status, result, cancel and catalogue entry, each repeated where repeating is harmless.

Also what follows from them: the cancel of a request that nobody waits for, and a result in the journal.
"""

import json
from collections.abc import Callable
from functools import partial

from flux_klein_async.api.responses import read_cancel, read_model, read_result, read_status
from flux_klein_async.errors import FluxKleinError
from flux_klein_async.events import Cancelled
from flux_klein_async.journal.base import EntryState
from flux_klein_async.models import CancelOutcome, GenerationResult, ModelInfo, RequestStatus, Timings
from flux_klein_async.operations.context import ClientContext, log
from flux_klein_async.operations.operation import Operation
from flux_klein_async.options import OnAbandon

__all__ = ["abandon", "cancel", "cancel_abandoned", "fetch_result", "get_model", "status", "write_result"]


CANCEL_WITHIN = 5.0  # seconds for a cancel that nobody waits for


async def status(operation: Operation, request_id: str) -> RequestStatus:
    """Ask where the request stands."""
    read = partial(read_status, request_id=request_id)
    return await operation.exchange(operation.context.api.status(request_id), read)


async def fetch_result(
    operation: Operation, request_id: str, timings: Callable[[], Timings] = Timings
) -> GenerationResult:
    """Fetch the result of a completed request."""
    read = partial(read_result, request_id=request_id, timings=timings)
    return await operation.exchange(operation.context.api.result(request_id), read)


async def get_model(operation: Operation, model: str) -> ModelInfo:
    """Fetch the catalogue entry."""
    return await operation.exchange(operation.context.api.model(model), read_model)


async def cancel(operation: Operation, request_id: str, *, abandoned: bool = False) -> CancelOutcome:
    """Ask the service to cancel; report its answer as an event, and to budget and journal."""
    context = operation.context
    read = partial(read_cancel, request_id=request_id)
    outcome = await operation.exchange(context.api.cancel(request_id), read)
    operation.emit(Cancelled, cancelled=outcome.cancelled, abandoned=abandoned)
    if outcome.cancelled:
        context.budget.settle(request_id, 0.0)
        await context.write(EntryState.CANCELLED, request_id=request_id)
    return outcome


def abandon(operation: Operation, request_id: str, on_abandon: OnAbandon) -> None:
    """Cancel a request that nobody waits for, or leave it running."""
    context = operation.context
    if on_abandon == "cancel" or context.closing:
        context.left_running.add(request_id)
    if on_abandon == "cancel":
        context.background.queue(lambda: cancel_abandoned(context, request_id, operation.tag))


async def cancel_abandoned(context: ClientContext, request_id: str, tag: object) -> None:
    """Cancel a request that nobody waits for; one that could not be cancelled while closing is left running."""
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
            operation.emit(Cancelled, cancelled=None, abandoned=True)
        if not context.closing:
            context.left_running.discard(request_id)


async def write_result(context: ClientContext, result: GenerationResult) -> None:
    """Write a result into the journal, in the service's own words.

    Raises:
        JournalError: It could not be written.
    """
    if context.journal is not None:
        answer = json.dumps(result.raw).encode()
        await context.write(EntryState.COMPLETED, request_id=result.request_id, cost_usd=result.cost_usd, answer=answer)
