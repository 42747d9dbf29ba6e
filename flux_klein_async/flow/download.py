"""From URLs to files or bytes: only from trusted hosts, bounded, repeated where a transfer broke.

No token ever travels here. Disk work is done on the loop's default executor, never on the loop.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urljoin

from flux_klein_async.api.addresses import trusted_file_url
from flux_klein_async.api.messages import Kind, Response
from flux_klein_async.errors import (
    APITimeoutError,
    ConfigurationError,
    DownloadError,
    FluxKleinError,
    RateLimitError,
    ServerError,
    status_error_class,
)
from flux_klein_async.events import Downloaded
from flux_klein_async.flow.call import Call
from flux_klein_async.flow.core import Core
from flux_klein_async.flow.files import PartFile, checked_names, suffix_of
from flux_klein_async.ledger.base import EntryState
from flux_klein_async.models import GenerationResult

__all__ = ["read", "save"]

T = TypeVar("T")
_Receive = Callable[[AsyncIterator[bytes]], Awaitable[T]]
_REDIRECTS = 5
_START = 16  # bytes that tell a file's format
_FLUSH = 1024 * 1024  # bytes gathered before a worker thread writes them


async def save(
    core: Core, call: Call, result: GenerationResult, directory: Path, names: Sequence[str] | None
) -> list[Path]:
    """Download every file of a result into a directory.

    Raises:
        InvalidInputError: `names` are not plain file names, one for each file.
        DownloadError: A file could not be brought home; of that file nothing is left behind.
    """
    urls = result.urls
    given = checked_names(names, len(urls)) if names is not None else None
    stems = [result.request_id + (f"-{number}" if len(urls) > 1 else "") for number in range(1, len(urls) + 1)]

    def receive(number: int) -> _Receive[Path]:
        def name(start: bytes) -> str:
            return given[number] if given else stems[number] + suffix_of(start)

        return lambda pieces: _to_disk(core, directory, name, pieces)

    with _within(call, result.request_id):
        paths = [await _fetch(core, call, url, result.request_id, receive(number)) for number, url in enumerate(urls)]
    files = tuple(str(path) for path in paths)
    await core.write(EntryState.DOWNLOADED, request_id=result.request_id, files=files)
    core.emit(lambda at: Downloaded(at=at, request_id=result.request_id, tag=call.tag, paths=files))
    return paths


async def read(core: Core, call: Call, result: GenerationResult) -> list[bytes]:
    """Every file of a result, in memory.

    Raises:
        DownloadError: A file could not be brought home.
    """
    with _within(call, result.request_id):
        return [await _fetch(core, call, url, result.request_id, _to_memory) for url in result.urls]


@contextmanager
def _within(call: Call, request_id: str) -> Iterator[None]:
    """The call's deadline, ending in the error of this verb."""
    try:
        with call:
            yield
    except (APITimeoutError, RateLimitError) as error:
        raise DownloadError(request_id=request_id, transient=True, cause=str(error)) from error


async def _fetch(core: Core, call: Call, url: str, request_id: str, receive: _Receive[T]) -> T:
    """Bring one file home, with repeats inside the deadline and the client's quota."""

    async def once() -> T:
        try:
            await core.gate(Kind.FILE, call)
            return await _follow(core, url, receive)
        except (DownloadError, ConfigurationError):
            raise  # the call's scope adds the request id
        except FluxKleinError as error:
            raise DownloadError(
                url=_shown(url), request_id=request_id, transient=error.retryable, cause=str(error)
            ) from error

    return await core.attempt(Kind.FILE, call, once, allows=lambda error: error.retryable, attempts=core.retry.attempts)


async def _follow(core: Core, url: str, receive: _Receive[T]) -> T:
    """Open a URL, and what it redirects to, each only if files may come from there."""
    for _ in range(_REDIRECTS + 1):
        trusted = trusted_file_url(url, core.api.addresses.origin)
        if trusted is None:
            raise DownloadError("Files are not taken from this address", url=_shown(url))
        async with core.transport.stream(core.api.file(trusted)) as (head, pieces):
            if head.status == 200:
                return await receive(pieces)
            url = _elsewhere(core, head, trusted)
    raise DownloadError(f"The file is more than {_REDIRECTS} redirects away", url=_shown(url))


def _elsewhere(core: Core, head: Response, url: str) -> str:
    location = head.headers.get("location")
    if head.status in {301, 302, 303, 307, 308} and location:
        try:
            return urljoin(url, location)
        except ValueError:
            raise DownloadError("The file's host redirects to no URL", url=_shown(url)) from None
    core.heed(Kind.FILE, head)
    kind = status_error_class(head.status, None)
    raise DownloadError(
        f"The file's host answered HTTP {head.status}",
        url=_shown(url),
        status_code=head.status,
        transient=issubclass(kind, RateLimitError | ServerError),
    )


def _shown(url: str) -> str:
    """A URL without its query, which may hold a signature."""
    return url.partition("?")[0][:300]


def _not_empty(data: bytes) -> bytes:
    if not data:
        raise DownloadError("The file is empty", transient=True)
    return data


async def _to_memory(pieces: AsyncIterator[bytes]) -> bytes:
    return _not_empty(b"".join([piece async for piece in pieces]))


async def _to_disk(core: Core, directory: Path, name: Callable[[bytes], str], pieces: AsyncIterator[bytes]) -> Path:
    part = PartFile(directory)
    disk = _Disk(core)
    gathered, start = bytearray(), b""
    try:
        async for piece in pieces:
            gathered += piece
            start = start or (bytes(gathered[:_START]) if len(gathered) >= _START else b"")
            if len(gathered) >= _FLUSH:
                data = bytes(gathered)
                gathered.clear()
                await disk.do(partial(part.write, data))
        start = start or _not_empty(bytes(gathered))
        return await disk.do(lambda: part.commit(bytes(gathered), name(start)))
    except BaseException:
        disk.clean_up(part)
        raise


class _Disk:
    """Runs one blocking job after another on the executor; a job under way outlives its caller's cancellation."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._job: asyncio.Future[object] | None = None

    async def do(self, job: Callable[[], T]) -> T:
        future = self._core.loop.run_in_executor(None, job)
        self._job = future  # type: ignore[assignment]
        try:
            return await asyncio.shield(future)
        except OSError as error:
            raise DownloadError("The file cannot be written", cause=f"{type(error).__name__}: {error}") from error

    def clean_up(self, part: PartFile) -> None:
        """Remove what was written, after the job under way, in the background."""
        job = self._job
        if job is None:
            return

        async def remove() -> None:
            await asyncio.wait({job})
            await self._core.loop.run_in_executor(None, part.discard)

        self._core.background.start(remove)
