"""The only loop over time: look, ask the policy when to look again, obey the deadline, fetch the result.

A look that fails is a look that saw nothing: it is not repeated, the schedule goes on. Every instant is the running
loop's.
"""

from collections.abc import Callable
from dataclasses import dataclass

from flux_klein_async.api.answers import read_status
from flux_klein_async.api.messages import Kind
from flux_klein_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InsufficientBalanceError,
    InvalidResponseError,
    PermissionDeniedError,
    RateLimitError,
    ResultNotReadyError,
    ServerError,
    WaitTimeoutError,
)
from flux_klein_async.events import Finished, Looked, StateChanged
from flux_klein_async.flow.call import Call
from flux_klein_async.flow.calls import fetch_result
from flux_klein_async.flow.core import Core, sleep_until
from flux_klein_async.flow.submission import abandon
from flux_klein_async.ledger.base import Entry, EntryState
from flux_klein_async.models import GenerationResult, RequestState, RequestStatus, Timings
from flux_klein_async.options import OnAbandon
from flux_klein_async.polling.policies import Observation, Progress, checked_interval

__all__ = ["Ticket", "Watch", "wait"]

_PATIENCE = 10.0  # seconds for what must pass by itself: a result that lags behind its status, a wrong refusal
_FIRST_AGAIN = 0.05  # seconds before a result that is not there yet is asked for again; then twice as long
_LONGEST_AGAIN = 1.0
_SAW_NOTHING = (APIConnectionError, APITimeoutError, APIStatusError, InvalidResponseError)
_NEVER_LATENESS = (
    AuthenticationError,
    PermissionDeniedError,
    InsufficientBalanceError,
    RateLimitError,
    ServerError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
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


class Watch:
    """Looks at one request until it ends. Holds no task and no timer between two looks."""

    def __init__(self, core: Core, call: Call, ticket: Ticket) -> None:
        self._core = core
        self._call = call
        self._ticket = ticket
        now = core.loop.time()
        self._begun = now if ticket.accepted_at is None else ticket.accepted_at
        self._sent = self._begun  # when the last look was sent
        self._not_yet = self._begun  # when the last look that said "not yet" was sent
        self._answered = self._begun
        self._changed = self._begun
        self._interval: float | None = None
        self._round_trip: float | None = None
        self._refused_since: float | None = None
        self._last: RequestStatus | None = None
        self._left_queue: float | None = None
        self._running: float | None = None

    def on(self, call: Call) -> None:
        """Go on under another call's deadline."""
        call.looks = self._call.looks
        self._call = call

    async def next_change(self) -> RequestStatus:
        """Look until the state or the queue position is another one than before.

        Raises:
            APIStatusError: The service has refused every look for 10 s, in a way that time does not heal.
        """
        while True:
            status = await self._look()
            if status is not None and self._note(status):
                return status

    async def _look(self) -> RequestStatus | None:
        core, call = self._core, self._call
        await self._until_next()
        self._sent = core.loop.time()
        call.looks += 1
        status, failure = None, None
        try:
            status = read_status(await core.exchange(core.api.look(self._ticket.request_id)), self._ticket.request_id)
        except _SAW_NOTHING as error:
            failure = call.last_error = error
        self._answered = core.loop.time()
        self._round_trip = self._answered - self._sent
        if core.on_event is not None:
            self._tell_look(status, failure)
        self._weigh(failure)
        return status

    async def _until_next(self) -> None:
        """Sleep until the policy wants a look, the ceiling allows one and no hold is in the way."""
        core, call = self._core, self._call
        now = core.loop.time()
        last = self._last
        progress = Progress(
            model=self._ticket.model,
            pixels=self._ticket.pixels,
            looks=call.looks,
            age=now - self._begun,
            state=last.state if last else None,
            state_age=now - self._changed,
            queue_position=last.queue_position if last else None,
            last_interval=self._interval,
            round_trip=self._round_trip,
        )
        self._interval = checked_interval(core.polling.next_look(progress))
        at = core.limiter.look_at(max(now, self._sent + self._interval))
        if at > now:
            await sleep_until(core.loop, at)
        await core.gate(Kind.READ, call)

    def _weigh(self, failure: FluxKleinError | None) -> None:
        """Believe a refusal that time does not heal only when it has stood for a while: gateways err."""
        if failure is None:
            self._refused_since = None
        elif isinstance(failure, APIStatusError) and not failure.retryable:
            if self._refused_since is None:
                self._refused_since = self._answered
            elif self._answered - self._refused_since >= _PATIENCE:
                raise failure

    def _note(self, status: RequestStatus) -> bool:
        """Take in what a look saw; whether it is news."""
        call, state, at = self._call, status.state, self._answered
        call.state = state.value
        if state is RequestState.UNKNOWN:
            self._core.note_unknown(str(status.raw.get("status")))
        if not state.final:
            self._not_yet = self._sent
        if state is not RequestState.IN_QUEUE and self._left_queue is None:
            self._left_queue = at
        if state is RequestState.IN_PROGRESS and self._running is None:
            self._running = at
        last, self._last = self._last, status
        if last is not None and (last.state, last.queue_position) == (state, status.queue_position):
            return False
        if last is None or last.state is not state:
            self._changed = at
        self._core.emit(
            lambda at: StateChanged(
                at=at,
                request_id=self._ticket.request_id,
                tag=call.tag,
                state=state,
                queue_position=status.queue_position,
            )
        )
        return True

    def _tell_look(self, status: RequestStatus | None, failure: FluxKleinError | None) -> None:
        call = self._call
        self._core.emit(
            lambda at: Looked(
                at=at,
                request_id=self._ticket.request_id,
                tag=call.tag,
                look=call.looks,
                state=status.state if status else None,
                error=str(failure) if failure else None,
            )
        )

    # --- the end

    async def conclude(self, status: RequestStatus) -> GenerationResult:
        """From a final state to the result, or to the error that it stands for.

        Raises:
            GenerationFailedError, GenerationCancelledError: It ended so.
            ResultNotReadyError, NotFoundError: "completed", yet no result for 10 s.
        """
        request_id = self._ticket.request_id
        if status.state is RequestState.CANCELLED:
            raise GenerationCancelledError(request_id=request_id)
        if status.state is RequestState.FAILED:
            raise await self._failure(status)
        seen = self._answered
        result = await self._fetch()
        self._teach(result, seen)
        return result.model_copy(update={"timings": self._timings(seen)})

    async def _fetch(self) -> GenerationResult:
        """The result, asked for again while it lags behind its status."""
        loop = self._core.loop
        until, pause = loop.time() + _PATIENCE, _FIRST_AGAIN
        while True:
            try:
                return await fetch_result(self._core, self._call, self._ticket.request_id)
            except (ResultNotReadyError, APIStatusError) as error:
                if self._call.gave_up or isinstance(error, _NEVER_LATENESS) or loop.time() + pause > until:
                    raise
                self._call.last_error = error
            await sleep_until(loop, loop.time() + pause)
            pause = min(2 * pause, _LONGEST_AGAIN)

    async def _failure(self, status: RequestStatus) -> FluxKleinError:
        """What went wrong stands in the result; where that cannot be read, in the status, or nowhere."""
        request_id = self._ticket.request_id
        try:
            await fetch_result(self._core, self._call, request_id)
        except GenerationFailedError as error:
            return error
        except FluxKleinError as error:
            self._call.last_error = error
        detail = status.raw.get("error_message") or status.raw.get("message") or status.raw.get("error")
        return GenerationFailedError(request_id=request_id, detail=detail)

    def _teach(self, result: GenerationResult, seen: float) -> None:
        created, finished = result.created_at, result.finished_at
        served = None
        if created is not None and finished is not None and (created.tzinfo is None) == (finished.tzinfo is None):
            served = (finished - created).total_seconds()
        self._core.polling.observe(
            Observation(
                model=self._ticket.model,
                pixels=self._ticket.pixels,
                not_before=self._not_yet - self._begun,
                not_after=seen - self._begun,
                running_since=None if self._running is None else self._running - self._begun,
                served=served,
                looks=self._call.looks,
            )
        )

    def _timings(self, seen: float) -> Timings:
        left_queue = self._left_queue
        known = self._ticket.accepted_at is not None
        return Timings(
            submit=self._ticket.submit_seconds,
            queued=left_queue - self._begun if left_queue is not None and known else None,
            running=None if self._running is None else seen - self._running,
            fetch=self._core.loop.time() - seen,
            lag_max=seen - self._not_yet,
            looks=self._call.looks,
        )


async def wait(
    core: Core,
    call: Call,
    ticket: Ticket,
    *,
    on_abandon: OnAbandon,
    on_status: Callable[[RequestStatus], object] | None,
) -> GenerationResult:
    """Wait for the end and bring the result; an abandoned wait does with the request as `on_abandon` says."""
    call.request_id = ticket.request_id
    try:
        watch = Watch(core, call, ticket)
        while not (status := await watch.next_change()).state.final:
            if on_status is not None:
                on_status(status)
        if on_status is not None:
            on_status(status)
        result = await watch.conclude(status)
    except BaseException as error:
        if not isinstance(error, FluxKleinError) or isinstance(error, WaitTimeoutError):
            abandon(core, ticket.request_id, on_abandon, call.tag)
        elif isinstance(error, GenerationFailedError | GenerationCancelledError):
            await _write_down(core, ticket.request_id, error)
        raise
    core.budget.settle(ticket.request_id, result.cost_usd)
    await core.journal.record(Entry(state=EntryState.COMPLETED, request_id=ticket.request_id, cost_usd=result.cost_usd))
    core.emit(
        lambda at: Finished(
            at=at,
            request_id=ticket.request_id,
            tag=call.tag,
            seconds=at - call.started,
            looks=result.timings.looks,
            lag_max=result.timings.lag_max,
            cost_usd=result.cost_usd,
        )
    )
    return result


async def _write_down(core: Core, request_id: str, error: FluxKleinError) -> None:
    cancelled = isinstance(error, GenerationCancelledError)
    core.budget.settle(request_id, 0.0 if cancelled else None)
    state = EntryState.CANCELLED if cancelled else EntryState.FAILED
    await core.journal.record(Entry(state=state, request_id=request_id, error=str(error)))
