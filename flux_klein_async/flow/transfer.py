"""One file from its URL to where it goes: only from trusted hosts, bounded, continued where the transfer broke.

No token ever travels here. What blocks (hashing, looking at formats, writing) is done on the loop's default executor.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Generic, TypeVar
from urllib.parse import urljoin

from flux_klein_async.api.messages import Kind, Response
from flux_klein_async.api.ranges import Body, Part, body_of
from flux_klein_async.api.urls import trusted_file_url
from flux_klein_async.errors import (
    ConfigurationError,
    DownloadError,
    FluxKleinError,
    RateLimitError,
    ServerError,
    status_error_class,
)
from flux_klein_async.flow.call import Call
from flux_klein_async.flow.core import Core
from flux_klein_async.flow.files import Arrival, Sink

__all__ = ["Transfer"]

T = TypeVar("T")
R = TypeVar("R")
_REDIRECTS = 5
_FLUSH = 1024 * 1024  # bytes gathered before a worker thread takes them


class Transfer(Generic[T]):
    """One file under way, over as many attempts as it takes: what of it is here, and whose it is."""

    def __init__(self, core: Core, call: Call, url: str, sink: Sink[T]) -> None:
        self._core = core
        self._call = call
        self._url = url
        self._arrival = Arrival(sink)
        self._handed_over = False
        self._gathered = bytearray()  # here, but not handed to the worker yet
        self._size = 0  # bytes that are here
        self._host_url = url  # where they came from: after redirects another URL
        self._etag: str | None = None
        self._total: int | None = None
        self._headers: Mapping[str, str] = {}

    async def bring(self) -> T:
        """Bring the file home, with repeats inside the deadline and the client's quota.

        Raises:
            DownloadError: It could not be; nothing of it is left behind.
        """
        try:
            return await self._core.attempt(
                Kind.FILE,
                self._call,
                self._once,
                allows=lambda error: error.retryable,
                attempts=self._core.retry.attempts,
            )
        except BaseException as error:
            if self._handed_over:
                cleaning = self._drop()
                if isinstance(error, FluxKleinError):  # who is cancelled, or out of time, is not held up
                    await asyncio.wait({cleaning})
            raise

    async def _once(self) -> T:
        try:
            await self._core.lane(Kind.FILE, self._call)
            try:
                await self._follow()
            finally:
                self._core.lanes.leave(Kind.FILE)
            return await self._finish()
        except DownloadError as error:
            error.url = error.url or self._shown(self._url)
            raise
        except ConfigurationError:
            raise  # the call's scope adds the request id
        except FluxKleinError as error:
            raise DownloadError(url=self._shown(self._url), transient=error.retryable, cause=str(error)) from error

    # --- asking

    async def _follow(self) -> None:
        """Ask for what is missing, or for all; follow redirects, each only if files may come from there."""
        if self._part is not None:
            if await self._ask(self._host_url) is None:
                return
            self._forget()  # no such rest: what is here is of no use
        url = self._url
        for _ in range(_REDIRECTS + 1):
            elsewhere = await self._ask(url)
            if elsewhere is None:
                return
            url = elsewhere
        raise DownloadError(f"The file is more than {_REDIRECTS} redirects away", url=self._shown(url))

    @property
    def _part(self) -> Part | None:
        """What is here and can be continued."""
        return Part(self._size, self._etag, self._total) if self._size and self._etag else None

    async def _ask(self, url: str) -> str | None:
        """Receive what a URL has; else say where to ask instead."""
        trusted = trusted_file_url(url, self._core.api.urls.origin)
        if trusted is None:
            raise DownloadError("Files are not taken from this address", url=self._shown(url))
        part = self._part
        async with self._core.transport.stream(self._core.api.file(trusted, part)) as (head, pieces):
            if head.status not in {200, 206}:
                return self._elsewhere(head, trusted)
            body = body_of(head.status, head.headers, part)
            if body is not None:
                if body.first == 0:
                    self._forget()
                    self._host_url, self._headers = trusted, head.headers
                self._etag, self._total = body.etag, body.total
                await self._receive(body, pieces)
                return None
            if part is None:
                raise DownloadError("The file's host sent a part that nobody asked for", transient=True)
            return self._url

    def _elsewhere(self, head: Response, url: str) -> str:
        location = head.headers.get("location")
        if head.status in {301, 302, 303, 307, 308} and location:
            try:
                return urljoin(url, location)
            except ValueError:
                raise DownloadError("The file's host redirects to no URL", url=self._shown(url)) from None
        self._core.heed(Kind.FILE, head)
        passing = issubclass(status_error_class(head.status, None), RateLimitError | ServerError)
        if self._part is not None and not passing:
            return self._url  # the rest is refused (416, a signature that ran out), which says nothing of the whole
        raise DownloadError(
            f"The file's host answered HTTP {head.status}",
            url=self._shown(url),
            status_code=head.status,
            transient=passing,
        )

    def _shown(self, url: str) -> str:
        """A URL without its query, which may hold a signature, and without the token, which a redirect may echo."""
        return self._core.redact(url.partition("?")[0])[:300]

    # --- receiving

    async def _receive(self, body: Body, pieces: AsyncIterator[bytes]) -> None:
        limit = self._core.max_file_bytes
        if body.total is not None and body.total > limit:
            raise _too_large(limit)
        async for piece in pieces:
            self._size += len(piece)
            if self._size > limit:
                raise _too_large(limit)
            if body.end is not None and self._size > body.end:
                self._forget()
                raise DownloadError("The file's host sent more than it had announced", transient=True)
            self._gathered += piece
            if len(self._gathered) >= _FLUSH:
                data, at = self._take()
                await self._work(partial(self._arrival.add, data, at))
        if body.total is not None and self._size < body.total:
            raise DownloadError(f"Only {self._size} of {body.total} bytes came", transient=True)

    async def _finish(self) -> T:
        data, at = self._take()
        headers, url = self._headers, self._url
        try:
            return await self._work(
                lambda: self._arrival.finish(data, at, lambda seen: seen.complaint(headers, url)),
            )
        except DownloadError:
            self._forget()  # all of it is here, and it is no good
            raise

    def _take(self) -> tuple[bytes, int]:
        """The bytes not handed over yet, and their place in the file."""
        data = bytes(self._gathered)
        self._gathered.clear()
        return data, self._size - len(data)

    def _forget(self) -> None:
        """Begin anew: the next bytes are the first."""
        self._gathered.clear()
        self._size, self._etag, self._total = 0, None, None

    # --- on the worker

    async def _work(self, job: Callable[[], R]) -> R:
        """Run one blocking job; one that has begun outlives its caller's cancellation."""
        self._handed_over = True
        return await self._core.loop.run_in_executor(None, job)

    def _drop(self) -> "asyncio.Future[None]":
        """Have removed what was written: a job for the executor at once, since the loop may be about to end."""
        job = self._core.loop.run_in_executor(None, self._arrival.drop)

        async def seen_through() -> None:
            await asyncio.shield(job)

        self._core.background.start(seen_through)
        return job


def _too_large(limit: int) -> DownloadError:
    return DownloadError(f"The file is larger than {limit} bytes (Limits.max_file_bytes)")
