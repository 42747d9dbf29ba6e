"""The changes of one request as an async iterator.

A class, not an async generator: between two changes it holds neither a task nor a timer, so that a reader may leave
at any time (PEP 789).
"""

from typing import Self

from flux_klein_async.flow.core import Core
from flux_klein_async.flow.looking import Ticket, Watch
from flux_klein_async.misuse import NotForLoop
from flux_klein_async.models import RequestStatus

__all__ = ["Updates"]


class Updates(NotForLoop):
    """Gives a `RequestStatus` at each change of state or queue position; ends after the final one."""

    def __init__(self, core: Core, ticket: Ticket, timeout: float | None) -> None:
        self._core = core
        self._ticket = ticket
        self._timeout = timeout
        self._deadline: float | None = None
        self._watch: Watch | None = None
        self._ended = False

    def __repr__(self) -> str:
        return f"<Updates of {self._ticket.request_id}{', ended' if self._ended else ''}>"

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
        loop = self._core.bind()
        if self._watch is None and self._timeout is not None:
            self._deadline = loop.time() + self._timeout
        left = None if self._deadline is None else self._deadline - loop.time()
        call = self._core.call(left, request_id=self._ticket.request_id, waits=True)
        if self._watch is None:
            self._watch = Watch(self._core, call, self._ticket)
        else:
            self._watch.on(call)
        with call:
            if left is not None and left <= 0:  # no look more: it would be given up in this very instant
                raise call.out_of_time(None)
            status = await self._watch.next_change()
        self._ended = status.state.final
        return status
