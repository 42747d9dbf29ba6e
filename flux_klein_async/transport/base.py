"""The seam between messages and bytes: the `Transport` protocol, and the guard of a body that costs money."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from flux_klein_async.api.messages import Request, Response

__all__ = ["BodyGuard", "Transport"]


@dataclass(slots=True)
class BodyGuard:
    """Decides once whether a body is sent: it is begun or dropped, never both.

    Cancelling a task does not stop a write that another task is about to make. The writer calls `begin` just before it
    writes, the caller that gives up calls `drop`, and the first of the two decides.
    """

    _state: Literal["waiting", "begun", "written", "dropped"] = "waiting"

    @property
    def written(self) -> bool:
        """Whether any byte was written. Read it when the call has failed and nothing more can be written."""
        return self._state == "written"

    def begin(self) -> bool:
        """Whether the body may be written: once, since a borrowed session's middleware may send a request again."""
        if self._state != "waiting":
            return False
        self._state = "begun"
        return True

    def wrote(self) -> None:
        """The first byte is written, or will be in this very step of the loop."""
        self._state = "written"

    def drop(self) -> bool:
        """Give the body up; True promises that nothing was written and nothing will be."""
        if self._state == "waiting":
            self._state = "dropped"
        return self._state == "dropped"


class Transport(Protocol):
    """Sends requests, and maps each of its failures to one of the package's errors.

    Both calls raise `APIConnectionError` or `APITimeoutError` (`sent` tells whether the body may have been written),
    `InvalidResponseError` for an answer that is not HTTP or is too large, and `ConfigurationError` for a session that
    cannot be used. What the reader of a stream raises passes unchanged.
    """

    async def send(self, request: Request, guard: BodyGuard | None = None) -> Response:
        """Send one request and read its whole answer, bounded."""
        ...

    def stream(self, request: Request) -> AbstractAsyncContextManager[tuple[Response, AsyncIterator[bytes]]]:
        """Send one request; its head with an empty body, and the body in pieces, which the reader bounds."""
        ...

    async def aclose(self) -> None:
        """Close what this transport opened itself."""
        ...

    def abandon(self) -> None:
        """Drop what this transport opened, from a finalizer: without a loop and without a warning."""
        ...
