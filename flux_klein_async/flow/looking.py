"""The only loop over time: look, ask the policy when to look again, until something has changed.

A look that fails is a look that saw nothing: it is not repeated, the schedule goes on. Every instant is the running
loop's.
"""

from dataclasses import dataclass

from flux_klein_async.api.messages import Kind, Response
from flux_klein_async.api.responses import read_result, read_status
from flux_klein_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    FluxKleinError,
    InvalidResponseError,
    ResultNotReadyError,
)
from flux_klein_async.events import Looked, StateChanged
from flux_klein_async.flow.call import Call
from flux_klein_async.flow.core import Core, log, sleep_until
from flux_klein_async.models import GenerationResult, RequestState, RequestStatus, Timings
from flux_klein_async.polling.policies import Observation, Progress, Queued, checked_interval

__all__ = ["PATIENCE", "Ticket", "Watch"]

PATIENCE = 10.0  # seconds for what must pass by itself: a result that lags behind its status, a wrong refusal
_ENOUGH = 3  # waits without early results, after which the client looks for none
_SAW_NOTHING = (APIConnectionError, APIStatusError, InvalidResponseError)


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
        self._loop = core.loop
        self._status_request = core.api.look(ticket.request_id)  # the same for every look
        self._result_request = core.api.look_at_result(ticket.request_id) if core.looks_at_result else None
        self._at_once = False
        self._price = 1.0
        self._answer: Response | None = None
        now = self._loop.time()
        self._begun = now if ticket.accepted_at is None else ticket.accepted_at
        self._sent = self._begun  # when the last look was sent
        self._not_yet = self._begun  # when the last look that said "not yet" was sent
        self.seen = self._begun  # when the last look was answered
        self._changed = self._begun
        self._interval: float | None = None
        self._round_trip: float | None = None
        self._refused_since: float | None = None
        self._last: RequestStatus | None = None
        self._left_queue: float | None = None
        self._running: float | None = None
        self._queued: Queued | None = None

    def on(self, call: Call) -> None:
        """Go on under another call's deadline."""
        call.looks, call.state = self._call.looks, self._call.state
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
        self._sent = self._loop.time()
        call.looks += 1
        status, failure = None, None
        direct = self._result_request if core.looks_at_result else None
        try:
            answer = await core.send(direct or self._status_request)
            status = read_status(answer, self._ticket.request_id)
            self._answer = answer if direct else None
            if direct:
                core.no_early_results = 0
        except _SAW_NOTHING as error:
            failure = call.last_error = error
            if direct and (isinstance(error, InvalidResponseError | APITimeoutError) or not error.retryable):
                self._look_at_status(error)
        finally:
            core.lanes.leave(Kind.READ)
        self.seen = self._loop.time()
        self._round_trip = self.seen - self._sent
        if core.on_event is not None:
            self._tell_look(status, failure)
        self._weigh(failure)
        return status

    def _look_at_status(self, error: FluxKleinError) -> None:
        """`result` was not answered before the end: this wait asks for the status from now on, and now.

        One odd answer says little of the service: the client itself changes its mind after three waits in a row.
        """
        core = self._core
        core.no_early_results += 1
        if core.looks_at_result and core.no_early_results >= _ENOUGH:
            core.looks_at_result = False
            log.info("The service gives no early results; looking at the status instead: %s", error)
        self._result_request = None
        self._at_once = True

    async def _until_next(self) -> None:
        """Sleep until the policy wants a look, the ceiling allows one and no hold is in the way."""
        core, call = self._core, self._call
        if not self._at_once:
            await self._until_due()
        self._at_once = False
        while True:  # a turn under the ceiling is of no use once a hold has come: who is held takes another one later
            await core.gate(Kind.READ, call)
            await core.limiter.look(self._price)
            if core.limiter.held_until(Kind.READ) <= self._loop.time() and await core.take_lane(Kind.READ):
                return

    async def _until_due(self) -> None:
        core, call = self._core, self._call
        now = self._loop.time()
        last = self._last
        self._price = core.limiter.look_price()
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
            sent=self._sent - self._begun,
            queued=self._queued,
            price=self._price,
        )
        self._interval = self._planned(progress)
        at = self._sent + self._interval
        core.check_hold(Kind.READ, call)
        if at > self._loop.time():
            await sleep_until(self._loop, at)

    def _planned(self, progress: Progress) -> float:
        try:
            return checked_interval(self._core.polling.next_look(progress))
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
        """Take in what a look saw; whether it is news."""
        call, state, at = self._call, status.state, self.seen
        call.state = state.value
        if state is RequestState.UNKNOWN:
            self._core.note_unknown(str(status.raw.get("status")))
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
        if self._core.on_event is not None:
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
        self._core.emit(
            lambda at: StateChanged(
                at=at,
                request_id=self._ticket.request_id,
                tag=self._call.tag,
                state=status.state,
                queue_position=status.queue_position,
            )
        )

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

    # --- what the looks tell

    def early_result(self) -> GenerationResult | None:
        """The result, where the last look asked for it and it is whole."""
        if self._answer is None:
            return None
        try:
            return read_result(self._answer, self._ticket.request_id, self.timings)
        except ResultNotReadyError:
            return None

    def teach(self, served: float | None) -> None:
        """Let the policy learn from this wait; `served` is the service's own duration in seconds, or None."""
        observation = Observation(
            model=self._ticket.model,
            pixels=self._ticket.pixels,
            not_before=self._not_yet - self._begun,
            not_after=self.seen - self._begun,
            running_since=None if self._running is None else self._running - self._begun,
            served=served,
            looks=self._call.looks,
            sent=self._sent - self._begun,
            queued=self._queued,
        )
        try:
            self._core.polling.observe(observation)
        except Exception:  # noqa: BLE001  # whatever it is: the result is paid for, and here
            log.exception("The poll policy raised on what a wait taught; ignored: the result is here")

    def timings(self) -> Timings:
        """Where the time went, now that the result is here."""
        left_queue = self._left_queue
        known = self._ticket.accepted_at is not None
        return Timings(
            submit=self._ticket.submit_seconds,
            queued=left_queue - self._begun if left_queue is not None and known else None,
            running=None if self._running is None else self.seen - self._running,
            fetch=self._loop.time() - self.seen,
            lag_max=self.seen - self._not_yet,
            looks=self._call.looks,
        )
