"""Waiting for a request's end, and bringing its result or the error that it ended in."""

from collections.abc import Callable
from datetime import datetime

from flux_klein_async.errors import (
    APIStatusError,
    AuthenticationError,
    ConfigurationError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InsufficientBalanceError,
    PermissionDeniedError,
    ResultNotReadyError,
    WaitTimeoutError,
)
from flux_klein_async.events import Finished
from flux_klein_async.flow.call import Call
from flux_klein_async.flow.calls import fetch_result, write_result
from flux_klein_async.flow.core import Core, sleep_until
from flux_klein_async.flow.looking import PATIENCE, Ticket, Watch
from flux_klein_async.flow.submission import abandon
from flux_klein_async.ledger.base import EntryState
from flux_klein_async.models import GenerationResult, RequestState, RequestStatus, Timings
from flux_klein_async.options import OnAbandon

__all__ = ["wait"]

_FIRST_AGAIN = 0.05  # seconds before a result that is not there yet is asked for again; then twice as long
_LONGEST_AGAIN = 1.0
_SAVED_EVERY = 200  # waits after which what was learned is saved: a process may be killed before it closes
# Such a refusal of the result stands; a transient one has been repeated already.
_NOT_LATE = (AuthenticationError, PermissionDeniedError, InsufficientBalanceError)


async def wait(
    core: Core,
    call: Call,
    ticket: Ticket,
    *,
    on_abandon: OnAbandon,
    on_status: Callable[[RequestStatus], object] | None,
) -> GenerationResult:
    """Wait for the end and bring the result; an abandoned wait does with the request as `on_abandon` says.

    Raises:
        GenerationFailedError, GenerationCancelledError: It ended so.
        ResultNotReadyError, NotFoundError: "completed", yet no result for 10 s.
        WaitTimeoutError: The deadline is too near for the hold that the service asked for.
    """
    try:
        watch = Watch(core, call, ticket)
        status = await _last_status(watch, on_status)
        result = watch.early_result() or await _conclude(core, call, status, watch.timings)
        watch.teach(_served(result.created_at, result.finished_at))
        core.save_learned(_SAVED_EVERY)
    except BaseException as error:
        if not isinstance(error, FluxKleinError) or isinstance(error, WaitTimeoutError | ConfigurationError):
            abandon(core, ticket.request_id, on_abandon, call.tag)
        elif isinstance(error, GenerationFailedError | GenerationCancelledError):
            await _write_down(core, ticket.request_id, error)
        raise
    core.budget.settle(ticket.request_id, result.cost_usd)
    await write_result(core, result)
    core.emit(
        lambda at: Finished(
            at=at,
            request_id=ticket.request_id,
            tag=call.tag,
            seconds=at - call.started,
            looks=result.timings.looks,
            lag_max=result.timings.lag_max,
            cost_usd=result.cost_usd,
            model=ticket.model,
        )
    )
    return result


async def _last_status(watch: Watch, on_status: Callable[[RequestStatus], object] | None) -> RequestStatus:
    while True:
        status = await watch.next_change()
        if on_status is not None:
            on_status(status)
        if status.state.final:
            return status


async def _conclude(core: Core, call: Call, status: RequestStatus, timings: Callable[[], Timings]) -> GenerationResult:
    """From a final state to the result, or to the error that it stands for.

    The result's own word decides: a picture that is there is not lost to a status that said "failed".
    """
    if status.state is RequestState.CANCELLED:
        raise GenerationCancelledError(request_id=status.request_id)
    until, pause = core.loop.time() + PATIENCE, _FIRST_AGAIN
    while True:
        try:
            return await fetch_result(core, call, status.request_id, timings)
        except (GenerationFailedError, GenerationCancelledError):
            raise
        except FluxKleinError as error:
            if not _late(error, status.state) or core.loop.time() + pause > until:
                if status.state is RequestState.FAILED:
                    raise _failure(status) from error
                raise
        await sleep_until(core.loop, core.loop.time() + pause)
        pause = min(2 * pause, _LONGEST_AGAIN)


def _late(error: FluxKleinError, state: RequestState) -> bool:
    """Whether a result may only lag behind its status. One that failed has nothing to wait for but the result's no."""
    if isinstance(error, ResultNotReadyError):
        return True
    if state is not RequestState.COMPLETED or not isinstance(error, APIStatusError):
        return False
    return not (error.transient or isinstance(error, _NOT_LATE))


def _failure(status: RequestStatus) -> GenerationFailedError:
    """The failure as the status tells it, for where the result does not."""
    detail = next((status.raw[key] for key in ("error_message", "message", "error") if status.raw.get(key)), None)
    return GenerationFailedError(request_id=status.request_id, detail=detail)


def _served(created: datetime | None, finished: datetime | None) -> float | None:
    """The service's own duration in seconds, where both instants are of one kind."""
    if created is None or finished is None or (created.tzinfo is None) != (finished.tzinfo is None):
        return None
    return (finished - created).total_seconds()


async def _write_down(core: Core, request_id: str, error: FluxKleinError) -> None:
    cancelled = isinstance(error, GenerationCancelledError)
    core.budget.settle(request_id, 0.0 if cancelled else None)
    state = EntryState.CANCELLED if cancelled else EntryState.FAILED
    await core.write(state, request_id=request_id, error=str(error))
