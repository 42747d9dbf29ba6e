"""The seam between what is said and how bytes travel: the `Transport` protocol and the guard of a paid body."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from flux_klein_async.api.messages import Request, Response

__all__ = ["BodyGuard", "Transport"]


class _Body(Enum):
    WAITING = "waiting"
    BEGUN = "begun"
    WRITTEN = "written"
    DROPPED = "dropped"


@dataclass(slots=True)
class BodyGuard:
    """Decides once whether a body leaves: it is begun, or it is dropped, never both.

    Cancelling a task does not stop a write that another task is about to make. The writer asks `begin` at the very
    moment of writing, the side that gives up asks `drop`; whoever comes first decides.
    """

    _state: _Body = _Body.WAITING

    @property
    def written(self) -> bool:
        """Whether a byte of the body was written; asked when the call has failed, and nothing more can be."""
        return self._state is _Body.WRITTEN

    def begin(self) -> bool:
        """Called before the first byte is written; False forbids writing.

        True once: a middleware of a borrowed session that sends again what was sent would pay twice.
        """
        if self._state is not _Body.WAITING:
            return False
        self._state = _Body.BEGUN
        return True

    def wrote(self) -> None:
        """Called when the first byte has been written."""
        self._state = _Body.WRITTEN

    def drop(self) -> bool:
        """Called by who gives up; True promises that nothing was written and nothing will be."""
        if self._state is _Body.WAITING:
            self._state = _Body.DROPPED
        return self._state is _Body.DROPPED


class Transport(Protocol):
    """Sends requests. Implementations map every failure of theirs to the package's errors.

    Raises of both calls: `APIConnectionError`, `APITimeoutError` (with `sent` telling whether the body may have
    left), `InvalidResponseError` for what is no HTTP or, in `send`, exceeds the bound, `ConfigurationError` for a
    session that cannot be used.
    """

    async def send(self, request: Request, guard: BodyGuard | None = None) -> Response:
        """Send one request and read its whole answer, bounded."""
        ...

    def stream(self, request: Request) -> AbstractAsyncContextManager[tuple[Response, AsyncIterator[bytes]]]:
        """Send one request; its head (with an empty body), and the body in pieces.

        Whoever reads them bounds them: a file that comes in several transfers has one bound.
        """
        ...

    async def aclose(self) -> None:
        """Close what this transport opened itself."""
        ...

    def abandon(self) -> None:
        """Drop what this transport opened, from a finalizer, without a loop and without a warning."""
        ...
