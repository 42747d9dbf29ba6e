"""One file from its URL to its sink: from trusted hosts only, bounded, from the beginning at each attempt.

The token is never sent here. Worker threads do what blocks: hashing, checking the format, writing.

The files of one result, one after another, to disk or to memory.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urljoin

from flux_klein_async.api.messages import Kind, Response
from flux_klein_async.api.urls import trusted_file_url
from flux_klein_async.errors import (
    APITimeoutError,
    ConfigurationError,
    DownloadError,
    FluxKleinError,
    InvalidInputError,
    status_error_class,
)
from flux_klein_async.events import Downloaded
from flux_klein_async.journal.base import EntryState
from flux_klein_async.models import GenerationResult, SavedFile
from flux_klein_async.operations.files import Arrival, InMemory, PartFile, Sink, checked_names
from flux_klein_async.operations.operation import Operation

__all__ = ["Transfer", "read", "save"]


T = TypeVar("T")
R = TypeVar("R")
_REDIRECTS = 5
_FLUSH = 1024 * 1024  # bytes gathered before a worker thread takes them
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)


class Transfer(Generic[T]):
    """One file under way, over as many attempts as it takes."""

    def __init__(self, operation: Operation, url: str, sink: Sink[T]) -> None:
        context = operation.context
        self._context = context
        self._operation = operation
        self._url = url
        self._arrival = Arrival(sink)
        self._in_threads = False

    async def fetch(self) -> T:
        """Fetch the file, with repeats inside the deadline and the client's quota.

        Raises:
            DownloadError: It could not be fetched or saved; nothing of it is left behind.
        """
        try:
            return await self._operation.repeat(
                Kind.FILE,
                self._once,
                allows=lambda error: error.retryable,
                attempts=self._context.retry.attempts,
            )
        except BaseException as error:
            if self._in_threads:
                cleaning = self._drop()
                if isinstance(error, FluxKleinError):  # neither a cancellation nor the deadline waits for this
                    await asyncio.wait({cleaning})
            raise

    async def _once(self) -> T:
        try:
            async with self._operation.admission(Kind.FILE):
                headers, rest = await self._follow()
            return await self._work(
                lambda: self._arrival.finish(rest, lambda content: content.complaint(headers, self._url))
            )
        except DownloadError as error:
            error.url = error.url or self._shown(self._url)
            raise
        except ConfigurationError:
            raise  # the call's scope adds the request id
        except FluxKleinError as error:
            raise DownloadError(url=self._shown(self._url), transient=error.transient, cause=str(error)) from error

    async def _follow(self) -> tuple[Mapping[str, str], bytes]:
        """Receive the file, after at most five redirects, each to a trusted host; its headers and its last bytes."""
        url = self._url
        for _ in range(_REDIRECTS + 1):
            trusted = trusted_file_url(url, self._context.api.urls.origin)
            if trusted is None:
                raise DownloadError("Files are not taken from this address", url=self._shown(url))
            async with self._context.transport.stream(self._context.api.file(trusted)) as (head, pieces):
                if head.status == 200:
                    return head.headers, await self._receive(head.headers, pieces)
                url = self._elsewhere(head, trusted)
        raise DownloadError(f"The file is more than {_REDIRECTS} redirects away", url=self._shown(url))

    def _elsewhere(self, head: Response, url: str) -> str:
        location = head.headers.get("location")
        if head.status in {301, 302, 303, 307, 308} and location:
            try:
                return urljoin(url, location)
            except ValueError:
                raise DownloadError("The file's host redirects to no URL", url=self._shown(url)) from None
        self._context.throttle(Kind.FILE, head)
        raise DownloadError(
            f"The file's host answered HTTP {head.status}",
            url=self._shown(url),
            status_code=head.status,
            transient=status_error_class(head.status, None)(status_code=head.status).transient,
        )

    def _shown(self, url: str) -> str:
        """A URL without its query, which may hold a signature, and without the token, which a redirect may echo."""
        return self._context.redact(url.partition("?")[0])[:300]

    async def _receive(self, headers: Mapping[str, str], pieces: AsyncIterator[bytes]) -> bytes:
        """Hand the body over to the worker thread, but for its last bytes."""
        self._arrival.restart()
        limit, announced = self._context.max_file_bytes, _announced(headers)
        if announced is not None and announced > limit:
            raise _too_large(limit)
        size, gathered = 0, bytearray()
        async for piece in pieces:
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            if announced is not None and size > announced:
                raise DownloadError("The file's host sent more than it had announced", transient=True)
            gathered += piece
            if len(gathered) >= _FLUSH:
                await self._work(partial(self._arrival.add, bytes(gathered)))
                gathered.clear()
        if announced is not None and size < announced:
            raise DownloadError(f"Only {size} of {announced} bytes came", transient=True)
        return bytes(gathered)

    async def _work(self, job: Callable[[], R]) -> R:
        """Run a blocking job in a thread; a job that has begun outlives the cancellation of its caller."""
        self._in_threads = True
        return await self._context.loop.run_in_executor(None, job)

    def _drop(self) -> "asyncio.Future[None]":
        """Remove what was written: the job goes to the executor at once, since the loop may be about to end."""
        job = self._context.loop.run_in_executor(None, self._arrival.drop)

        async def finish() -> None:
            await asyncio.shield(job)

        self._context.background.start(finish)
        return job


def _announced(headers: Mapping[str, str]) -> int | None:
    """The length of the body, or None: of an encoded body the server counts other bytes than arrive here."""
    if headers.get("content-encoding", "identity").strip().lower() not in {"identity", ""}:
        return None
    length = headers.get("content-length", "").strip()
    return int(length) if _LENGTH.fullmatch(length) else None


def _too_large(limit: int) -> DownloadError:
    return DownloadError(f"The file is larger than {limit} bytes (Limits.max_file_bytes)")


async def save(
    operation: Operation,
    result: GenerationResult,
    directory: Path,
    names: Sequence[str] | None = None,
    stem: str | None = None,
) -> list[SavedFile]:
    """Download every file of a result into a directory; `stem` names the files where `names` does not.

    Raises:
        InvalidInputError: `names` are not plain file names, one for each file.
        DownloadError: A file could not be downloaded or saved; nothing of it is left behind.
    """
    context = operation.context
    naming = _naming(result, names, stem)
    with operation.telling("download"):
        with _within(operation, result.request_id):
            saved = [
                await Transfer(operation, url, PartFile(directory, name)).fetch()
                for url, name in zip(result.urls, naming, strict=True)
            ]
        files = tuple(replace(file, path=file.path.absolute()) for file in saved)
        await context.write(EntryState.DOWNLOADED, request_id=result.request_id, files=files)
    context.emit(
        lambda at: Downloaded(
            at=at,
            request_id=result.request_id,
            tag=operation.tag,
            paths=tuple(str(file.path) for file in saved),
            sha256=tuple(file.sha256 for file in saved),
            seconds=at - operation.started,
        )
    )
    return saved


async def read(operation: Operation, result: GenerationResult) -> list[bytes]:
    """Every file of a result, in memory.

    Raises:
        DownloadError: A file could not be downloaded.
    """
    with operation.telling("download_bytes"), _within(operation, result.request_id):
        return [await Transfer(operation, url, InMemory()).fetch() for url in result.urls]


def _naming(result: GenerationResult, names: Sequence[str] | None, stem: str | None) -> list[Callable[[str], str]]:
    """For each file, how to name it once its content is known; only plain names come of it."""
    count = len(result.urls)
    if names is not None:
        return [lambda _suffix, name=name: name for name in checked_names(names, count)]  # type: ignore[misc]
    numbers = [f"-{number}" if count > 1 else "" for number in range(1, count + 1)]
    try:
        stems = checked_names([(stem or result.request_id) + number for number in numbers], count)
    except InvalidInputError:  # an id such as "nul" is not a file name everywhere; one that leads elsewhere is refused
        if not result.request_id:
            raise
        stems = checked_names([f"request-{result.request_id}{number}" for number in numbers], count)
    return [stem.__add__ for stem in stems]


@contextmanager
def _within(operation: Operation, request_id: str) -> Iterator[None]:
    """The call's deadline, ending in the error of this verb."""
    try:
        with operation:
            yield
    except APITimeoutError as error:
        cause = str(error).removesuffix(f" (request {request_id})")  # said once is enough
        raise DownloadError(request_id=request_id, transient=True, cause=cause) from error
