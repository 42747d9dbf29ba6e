"""One verb under way: its one deadline, its end by `aclose`, and what it knew when it ended.

Works as `asyncio.timeout` does (cancel the task, turn the CancelledError that comes out into the right error, leave
foreign cancellations alone), for three reasons instead of one: the deadline, the client being closed, and a fan-out
being stopped.
"""

import asyncio
import itertools
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Self

from flux_klein_async.errors import (
    APITimeoutError,
    ClientClosedError,
    FluxKleinError,
    GenerationCancelledError,
    SubmissionUncertainError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from flux_klein_async.operations.context import ClientContext

__all__ = ["Operation", "OperationRegistry"]


_NUMBERS = itertools.count(1)


class _Reason(Enum):
    EXPIRED = "expired"
    CLOSED = "closed"
    STOPPED = "stopped"


class OperationRegistry:
    """The verbs under way in one client: what `aclose` waits for, and then ends."""

    def __init__(self) -> None:
        self._operations: set[Operation] = set()
        self._empty: asyncio.Future[None] | None = None

    def add(self, operation: "Operation") -> None:
        """A verb has begun."""
        self._operations.add(operation)

    def discard(self, operation: "Operation") -> None:
        """A verb has ended."""
        self._operations.discard(operation)
        if not self._operations and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    async def drained(self, seconds: float | None) -> None:
        """Wait until no verb is under way, for at most so long (None: without limit)."""
        if self._operations:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._empty}, timeout=seconds)

    def close(self) -> None:
        """End every verb with `ClientClosedError`."""
        for operation in list(self._operations):
            operation.close()


class Operation:
    """A scope (`with call:`) and the facts that its error is made of.

    Attributes:
        context: The client's parts.
        deadline: The instant on the loop's clock after which nothing is awaited any more, or None.
        number: Which call of this process it is.
        request_id: Set as soon as it is known.
        submitted: A submit of this very call was accepted.
        uncertain: A submit's body has begun to be written and its answer is not known.
        last_error: What the last attempt ended in.
        waits: The verb waits for a generation's end: out of time is a `WaitTimeoutError` then.
        gave_up: An error was raised because the deadline is too near; nothing may be repeated.
    """

    __slots__ = (
        "_cancelling",
        "_loop",
        "_reason",
        "_registry",
        "_task",
        "_timer",
        "context",
        "deadline",
        "gave_up",
        "last_error",
        "number",
        "polls",
        "request_id",
        "started",
        "state",
        "submitted",
        "tag",
        "uncertain",
        "waits",
    )

    def __init__(
        self,
        context: "ClientContext",
        timeout: float | None,
        *,
        request_id: str | None = None,
        tag: object = None,
        waits: bool = False,
        registered: bool = True,
    ) -> None:
        self.context = context
        self._loop = loop = context.loop
        self._registry = context.operations if registered else None
        self.number = next(_NUMBERS)
        self.started = loop.time()
        self.deadline = None if timeout is None else self.started + timeout
        self.request_id = request_id
        self.tag = tag
        self.waits = waits
        self.submitted = False
        self.uncertain = False
        self.gave_up = False
        self.last_error: FluxKleinError | None = None
        self.polls = 0
        self.state: str | None = None
        self._reason: _Reason | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            msg = "a verb must be awaited inside a task"
            raise RuntimeError(msg)
        self._task: asyncio.Task[object] = task
        self._cancelling = task.cancelling()
        if self.deadline is not None:
            self._timer = self._loop.call_at(self.deadline, self._interrupt, _Reason.EXPIRED)
        if self._registry is not None:
            self._registry.add(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._registry is not None:
            self._registry.discard(self)
        if isinstance(exc, FluxKleinError):
            self._with_id(exc)
        if self._reason is None:
            return
        if self._task.uncancel() <= self._cancelling and isinstance(exc, asyncio.CancelledError):
            exc.__context__ = None  # it may have passed through a request that holds the token
            raise self._with_id(self._ended()) from None

    def _with_id(self, error: FluxKleinError) -> FluxKleinError:
        """The wire, a policy or a journal knows no request id; it must not be lost."""
        if error.request_id is None:
            error.request_id = self.request_id
        return error

    def close(self) -> None:
        """End the verb with `ClientClosedError`."""
        self._interrupt(_Reason.CLOSED)

    def stop(self) -> None:
        """End the verb with `GenerationCancelledError`: its caller wants nothing submitted any more."""
        self._interrupt(_Reason.STOPPED)

    def _interrupt(self, reason: _Reason) -> None:
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    def _ended(self) -> FluxKleinError:
        if self._reason is _Reason.CLOSED:
            uncertain = self.uncertain or isinstance(self.last_error, SubmissionUncertainError)
            return ClientClosedError(
                "The client was closed while the call was under way", charged="unknown" if uncertain else None
            )
        if self._reason is _Reason.STOPPED:
            return GenerationCancelledError(
                "Stopped before it was submitted" if not self.uncertain else "Stopped while it was submitted",
                charged="unknown" if self.uncertain else "no",
            )
        return self.out_of_time(self.last_error)

    def out_of_time(self, last: FluxKleinError | None) -> FluxKleinError:
        """The error for a deadline that has passed, or is too near for anything more to make sense.

        The id is added where the error leaves the scope.
        """
        self.gave_up = True
        if self.waits and self.request_id is not None:
            early = self.deadline is None or self._loop.time() < self.deadline
            return WaitTimeoutError(
                "The service wants no such call before the deadline; the request may still finish" if early else "",
                elapsed=self._loop.time() - self.started,
                polls=self.polls,
                state=self.state,
                cause=str(last) if last else None,
            )
        if self.uncertain:
            return SubmissionUncertainError("The deadline passed before the submit was answered")
        return last or APITimeoutError("The deadline passed", sent=False)
