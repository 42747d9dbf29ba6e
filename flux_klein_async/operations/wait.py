"""The only loop over time: poll, ask the policy when to poll again, until something has changed.

A poll that fails is a poll that saw nothing: it is not repeated, the schedule goes on. Every instant is the running
loop's.

Waiting for a request's end, and bringing its result or the error that it ended in.

The changes of one request as an async iterator.

A class, not an async generator: between two changes it holds neither a task nor a timer, so that a reader may leave
at any time (PEP 789).

One generation: submit an order, then wait for its result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from flux_klein_async.api.messages import Kind, Response
from flux_klein_async.api.responses import read_result, read_status
from flux_klein_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InsufficientBalanceError,
    InvalidResponseError,
    PermissionDeniedError,
    ResultNotReadyError,
    WaitTimeoutError,
)
from flux_klein_async.events import Finished, Polled, StateChanged
from flux_klein_async.journal.base import EntryState
from flux_klein_async.misuse import NotForLoop
from flux_klein_async.models import GenerationResult, RequestState, RequestStatus, Timings
from flux_klein_async.operations.calls import fetch_result, write_result
from flux_klein_async.operations.context import ClientContext, log, sleep_until
from flux_klein_async.operations.operation import Operation
from flux_klein_async.operations.submit import PreparedRequest, abandon, submit
from flux_klein_async.options import OnAbandon
from flux_klein_async.polling.policies import Observation, Progress, Queued, checked_interval
from flux_klein_async.transport.throttle import Slot

__all__ = ["PATIENCE", "AcceptedRequest", "Poller", "Updates", "accepted_request", "generate", "wait"]


PATIENCE = 10.0  # seconds for what must pass by itself: a result that lags behind its status, a wrong refusal
_ENOUGH = 3  # waits without early results, after which the client looks for none
_SAW_NOTHING = (APIConnectionError, APIStatusError, InvalidResponseError)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedRequest:
    """A request to wait for, and what is known of it beforehand.

    Attributes:
        accepted_at: When it was accepted, on the loop's clock; None for one taken up later.
        submit_seconds: How long its submit took, or None.
    """

    request_id: str
    model: str | None = None
    pixels: int | None = None
    accepted_at: float | None = None
    submit_seconds: float | None = None


class Poller:
    """Polls one request until it ends. Holds no task and no timer between two polls."""

    def __init__(self, operation: Operation, accepted: AcceptedRequest) -> None:
        context = operation.context
        self._context = context
        self._operation = operation
        self._accepted = accepted
        self._loop = context.loop
        self._status_request = context.api.poll(accepted.request_id)  # the same for every poll
        self._result_request = context.api.poll_result(accepted.request_id) if context.polls_result else None
        self._at_once = False
        self._price = 1.0
        self._answer: Response | None = None
        now = self._loop.time()
        self._begun = now if accepted.accepted_at is None else accepted.accepted_at
        self._sent = self._begun  # when the last poll was sent
        self._not_yet = self._begun  # when the last poll that said "not yet" was sent
        self.seen = self._begun  # when the last poll was answered
        self._changed = self._begun
        self._interval: float | None = None
        self._round_trip: float | None = None
        self._refused_since: float | None = None
        self._last: RequestStatus | None = None
        self._left_queue: float | None = None
        self._running: float | None = None
        self._queued: Queued | None = None

    def on(self, operation: Operation) -> None:
        """Go on under another call's deadline."""
        operation.polls, operation.state = self._operation.polls, self._operation.state
        self._operation = operation

    async def next_change(self) -> RequestStatus:
        """Poll until the state or the queue position is another one than before.

        Raises:
            APIStatusError: The service has refused every poll for 10 s, in a way that time does not heal.
        """
        while True:
            status = await self._poll()
            if status is not None and self._note(status):
                return status

    async def _poll(self) -> RequestStatus | None:
        context, operation = self._context, self._operation
        await self._until_next()
        self._sent = self._loop.time()
        operation.polls += 1
        status, failure = None, None
        direct = self._result_request if context.polls_result else None
        try:
            answer = await context.send(direct or self._status_request)
            status = read_status(answer, self._accepted.request_id)
            self._answer = answer if direct else None
            if direct:
                context.no_early_results = 0
        except _SAW_NOTHING as error:
            failure = operation.last_error = error
            if direct and (isinstance(error, InvalidResponseError | APITimeoutError) or not error.retryable):
                self._poll_status(error)
        finally:
            context.lanes.leave(Kind.READ)
        self.seen = self._loop.time()
        self._round_trip = self.seen - self._sent
        if context.on_event is not None:
            self._tell_poll(status, failure)
        self._weigh(failure)
        return status

    def _poll_status(self, error: FluxKleinError) -> None:
        """`result` was not answered before the end: this wait asks for the status from now on, and now.

        One odd answer says little of the service: the client itself changes its mind after three waits in a row.
        """
        context = self._context
        context.no_early_results += 1
        if context.polls_result and context.no_early_results >= _ENOUGH:
            context.polls_result = False
            log.info("The service gives no early results; polling the status instead: %s", error)
        self._result_request = None
        self._at_once = True

    async def _until_next(self) -> None:
        """Sleep until the policy wants a poll, the ceiling allows one and no hold is in the way."""
        context, operation = self._context, self._operation
        if not self._at_once:
            await self._until_due()
        self._at_once = False
        while True:  # a turn under the ceiling is of no use once a hold has come: who is held takes another one later
            await context.gate(Kind.READ, operation)
            await context.limiter.poll_turn(self._price)
            if context.limiter.held_until(Kind.READ) <= self._loop.time() and await context.take_lane(Kind.READ):
                return

    async def _until_due(self) -> None:
        context, operation = self._context, self._operation
        now = self._loop.time()
        last = self._last
        self._price = context.limiter.poll_price()
        progress = Progress(
            model=self._accepted.model,
            pixels=self._accepted.pixels,
            polls=operation.polls,
            age=now - self._begun,
            state=last.state if last else None,
            state_age=now - self._changed,
            queue_position=last.queue_position if last else None,
            last_interval=self._interval,
            round_trip=self._round_trip,
            sent=self._sent - self._begun,
            queued=self._queued,
            price=self._price,
        )
        self._interval = self._planned(progress)
        at = self._sent + self._interval
        context.check_hold(Kind.READ, operation)
        if at > self._loop.time():
            await sleep_until(self._loop, at)

    def _planned(self, progress: Progress) -> float:
        try:
            return checked_interval(self._context.polling.next_poll(progress))
        except FluxKleinError:
            raise
        except Exception as error:
            raise ConfigurationError("The poll policy failed", cause=f"{type(error).__name__}: {error}") from error

    def _weigh(self, failure: FluxKleinError | None) -> None:
        """Believe a refusal that time does not heal only when it has stood for a while: gateways err."""
        if failure is None:
            self._refused_since = None
        elif not failure.retryable:
            if self._refused_since is None:
                self._refused_since = self.seen
            elif self.seen - self._refused_since >= PATIENCE:
                raise failure

    def _note(self, status: RequestStatus) -> bool:
        """Take in what a poll saw; whether it is news."""
        operation, state, at = self._operation, status.state, self.seen
        operation.state = state.value
        if state is RequestState.UNKNOWN:
            self._context.note_unknown(str(status.raw.get("status")))
        if not state.final:
            self._not_yet = self._sent
        if state is RequestState.IN_QUEUE:
            self._note_queued(status.queue_position)
        elif self._left_queue is None:
            self._left_queue = at
        if state is RequestState.IN_PROGRESS and self._running is None:
            self._running = at
        last, self._last = self._last, status
        if last is not None and (last.state, last.queue_position) == (state, status.queue_position):
            return False
        if last is None or last.state is not state:
            self._changed = at
        if self._context.on_event is not None:
            self._tell_change(status)
        return True

    def _note_queued(self, position: int | None) -> None:
        sent, queued = self._sent - self._begun, self._queued
        if queued is None:
            self._queued = Queued(sent, position, sent, position, sent)
        elif queued.position == position:
            self._queued = queued._replace(until=sent)
        else:
            self._queued = queued._replace(since=sent, position=position, until=sent)

    def _tell_change(self, status: RequestStatus) -> None:
        self._context.emit(
            lambda at: StateChanged(
                at=at,
                request_id=self._accepted.request_id,
                tag=self._operation.tag,
                state=status.state,
                queue_position=status.queue_position,
            )
        )

    def _tell_poll(self, status: RequestStatus | None, failure: FluxKleinError | None) -> None:
        operation = self._operation
        self._context.emit(
            lambda at: Polled(
                at=at,
                request_id=self._accepted.request_id,
                tag=operation.tag,
                poll=operation.polls,
                state=status.state if status else None,
                error=str(failure) if failure else None,
            )
        )

    # --- what the polls tell

    def early_result(self) -> GenerationResult | None:
        """The result, where the last poll asked for it and it is whole."""
        if self._answer is None:
            return None
        try:
            return read_result(self._answer, self._accepted.request_id, self.timings)
        except ResultNotReadyError:
            return None

    def teach(self, served: float | None) -> None:
        """Let the policy learn from this wait; `served` is the service's own duration in seconds, or None."""
        observation = Observation(
            model=self._accepted.model,
            pixels=self._accepted.pixels,
            not_before=self._not_yet - self._begun,
            not_after=self.seen - self._begun,
            running_since=None if self._running is None else self._running - self._begun,
            served=served,
            polls=self._operation.polls,
            sent=self._sent - self._begun,
            queued=self._queued,
        )
        try:
            self._context.polling.observe(observation)
        except Exception:  # noqa: BLE001  # whatever it is: the result is paid for, and here
            log.exception("The poll policy raised on what a wait taught; ignored: the result is here")

    def timings(self) -> Timings:
        """Where the time went, now that the result is here."""
        left_queue = self._left_queue
        known = self._accepted.accepted_at is not None
        return Timings(
            submit=self._accepted.submit_seconds,
            queued=left_queue - self._begun if left_queue is not None and known else None,
            running=None if self._running is None else self.seen - self._running,
            fetch=self._loop.time() - self.seen,
            lag_max=self.seen - self._not_yet,
            polls=self._operation.polls,
        )


_FIRST_AGAIN = 0.05  # seconds before a result that is not there yet is asked for again; then twice as long
_LONGEST_AGAIN = 1.0
_SAVED_EVERY = 200  # waits after which what was learned is saved: a process may be killed before it closes
# Such a refusal of the result stands; a transient one has been repeated already.
_NOT_LATE = (AuthenticationError, PermissionDeniedError, InsufficientBalanceError)


async def wait(
    operation: Operation,
    accepted: AcceptedRequest,
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
    context = operation.context
    try:
        poller = Poller(operation, accepted)
        status = await _last_status(poller, on_status)
        result = poller.early_result() or await _conclude(operation, status, poller.timings)
        poller.teach(_served(result.created_at, result.finished_at))
        context.save_learned(_SAVED_EVERY)
    except BaseException as error:
        if not isinstance(error, FluxKleinError) or isinstance(error, WaitTimeoutError | ConfigurationError):
            abandon(context, accepted.request_id, on_abandon, operation.tag)
        elif isinstance(error, GenerationFailedError | GenerationCancelledError):
            await _write_down(context, accepted.request_id, error)
        raise
    context.budget.settle(accepted.request_id, result.cost_usd)
    await write_result(context, result)
    context.emit(
        lambda at: Finished(
            at=at,
            request_id=accepted.request_id,
            tag=operation.tag,
            seconds=at - operation.started,
            polls=result.timings.polls,
            lag_max=result.timings.lag_max,
            cost_usd=result.cost_usd,
            model=accepted.model,
        )
    )
    return result


async def _last_status(poller: Poller, on_status: Callable[[RequestStatus], object] | None) -> RequestStatus:
    while True:
        status = await poller.next_change()
        if on_status is not None:
            on_status(status)
        if status.state.final:
            return status


async def _conclude(operation: Operation, status: RequestStatus, timings: Callable[[], Timings]) -> GenerationResult:
    """From a final state to the result, or to the error that it stands for.

    The result's own word decides: a picture that is there is not lost to a status that said "failed".
    """
    context = operation.context
    if status.state is RequestState.CANCELLED:
        raise GenerationCancelledError(request_id=status.request_id)
    until, pause = context.loop.time() + PATIENCE, _FIRST_AGAIN
    while True:
        try:
            return await fetch_result(operation, status.request_id, timings)
        except (GenerationFailedError, GenerationCancelledError):
            raise
        except FluxKleinError as error:
            if not _late(error, status.state) or context.loop.time() + pause > until:
                if status.state is RequestState.FAILED:
                    raise _failure(status) from error
                raise
        await sleep_until(context.loop, context.loop.time() + pause)
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


async def _write_down(context: ClientContext, request_id: str, error: FluxKleinError) -> None:
    cancelled = isinstance(error, GenerationCancelledError)
    context.budget.settle(request_id, 0.0 if cancelled else None)
    state = EntryState.CANCELLED if cancelled else EntryState.FAILED
    await context.write(state, request_id=request_id, error=str(error))


class Updates(NotForLoop):
    """Gives a `RequestStatus` at each change of state or queue position; ends after the final one."""

    def __init__(self, context: ClientContext, accepted: AcceptedRequest, timeout: float | None) -> None:
        self._context = context
        self._accepted = accepted
        self._timeout = timeout
        self._deadline: float | None = None
        self._watch: Poller | None = None
        self._ended = False

    def __repr__(self) -> str:
        return f"<Updates of {self._accepted.request_id}{', ended' if self._ended else ''}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestStatus:
        """Wait for the next change.

        Raises:
            WaitTimeoutError: The deadline, counted from the first call, passed before it.
            FluxKleinError: As `wait_for_result`.
        """
        if self._ended:
            raise StopAsyncIteration
        loop = self._context.bind()
        if self._watch is None and self._timeout is not None:
            self._deadline = loop.time() + self._timeout
        left = None if self._deadline is None else self._deadline - loop.time()
        operation = self._context.operation(left, request_id=self._accepted.request_id, waits=True)
        if self._watch is None:
            self._watch = Poller(operation, self._accepted)
        else:
            self._watch.on(operation)
        with operation:
            if left is not None and left <= 0:  # no poll more: it would be given up in this very instant
                raise operation.out_of_time(None)
            status = await self._watch.next_change()
        self._ended = status.state.final
        return status


async def generate(
    operation: Operation,
    prepared: PreparedRequest,
    slot: Slot,
    *,
    on_abandon: OnAbandon,
    on_status: Callable[[RequestStatus], object] | None = None,
) -> GenerationResult:
    """Submit and wait, in a slot that was taken.

    Raises:
        FluxKleinError: As `submit` and `wait`.
    """
    context = operation.context
    begun = context.loop.time()
    await submit(operation, prepared, on_abandon=on_abandon, slot=slot)
    return await wait(
        operation,
        accepted_request(operation, prepared, begun),
        on_abandon=on_abandon,
        on_status=on_status,
    )


def accepted_request(operation: Operation, prepared: PreparedRequest, begun: float) -> AcceptedRequest:
    """What is known of a request that was accepted just now, its submit begun at this instant."""
    context = operation.context
    now = context.loop.time()
    return AcceptedRequest(
        request_id=operation.request_id or "",
        model=prepared.model,
        pixels=prepared.pixels,
        accepted_at=now,
        submit_seconds=now - begun,
    )
