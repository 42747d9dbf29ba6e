"""Downloads: the files of a result, one after another, to disk or to memory.

Only from trusted hosts, bounded, and each attempt from the first byte. The token is never sent here. A file that came
inside the answer, as a data URI, is decoded and then treated alike. What blocks (decoding, writing, syncing, hashing)
runs in the client's own threads: an application may fill asyncio's default executor.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from flux_klein_async.api.messages import Kind, Response
from flux_klein_async.api.outputs import inline_file, is_inline, too_large
from flux_klein_async.api.urls import redirected, trusted_file_url
from flux_klein_async.errors import (
    APITimeoutError,
    ConfigurationError,
    DownloadError,
    FluxKleinError,
    status_error_class,
)
from flux_klein_async.events import Downloaded
from flux_klein_async.journal.base import RunJournal
from flux_klein_async.journal.states import EntryState
from flux_klein_async.models import GenerationResult, SavedFile, brief_url
from flux_klein_async.operations.context import ClientContext, ignoring_errors
from flux_klein_async.operations.files import (
    START,
    FileBytes,
    IncomingFile,
    InMemory,
    PartFile,
    part_files,
    problem_with,
    remove_files,
)
from flux_klein_async.operations.names import checked_names, default_names
from flux_klein_async.operations.operation import Operation

__all__ = ["read", "save"]

T = TypeVar("T")
R = TypeVar("R")
_REDIRECTS = 5
_FLUSH = 1024 * 1024  # bytes gathered before a thread takes them
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)


async def save(
    operation: Operation,
    result: GenerationResult,
    directory: Path,
    names: Sequence[str] | None = None,
    stem: str | None = None,
    compared: float = 0,
) -> list[SavedFile]:
    """Download every file of a result into a directory.

    `names` replace files of the same names, and so does the request id, which names the files by default. With `stem`
    no file is replaced; with `compared` names the files of another run are recognised (`PartFile`).

    Raises:
        InvalidInputError: `names` are not plain file names, one for each file.
        DownloadError: A file could not be downloaded or saved, and nothing of it is left behind; or there is none.
    """
    context = operation.context
    _check_files(operation, result, "download")
    count = len(result.urls)
    if stem is not None:
        chosen, numbers = [stem] * count, list[int | None](range(1, count + 1))
    else:
        chosen = default_names(result.request_id, len(result.urls)) if names is None else checked_names(names, count)
        numbers = [None] * count
    with _reported(operation, result, "download"):
        with operation:
            mark = await _sweep(context, directory)
            exact = names is not None
            files = [
                PartFile(directory, name, exact=exact, number=number, compared=compared, mark=mark)
                for name, number in zip(chosen, numbers, strict=True)
            ]
            saved = [
                await _Transfer(operation, url, file).fetch() for url, file in zip(result.urls, files, strict=True)
            ]
        found = tuple(replace(file, path=file.path.absolute()) for file in saved)
        await _record(operation, context.write(EntryState.DOWNLOADED, request_id=result.request_id, files=found))
    operation.emit(
        Downloaded,
        paths=tuple(str(file.path) for file in saved),
        sha256=tuple(file.sha256 for file in saved),
        seconds=operation.elapsed,
    )
    return saved


async def _record(operation: Operation, writing: Coroutine[Any, Any, None]) -> None:
    """Wait for an entry of the journal until the deadline; the files are there, and it is written in the background."""
    context, task = operation.context, asyncio.ensure_future(writing)
    left = None if operation.deadline is None else operation.deadline - context.loop.time()
    try:
        await asyncio.wait({task}, timeout=left)
    finally:
        if not task.done():
            context.background.keep(task)
    if task.done():
        task.result()


async def _sweep(context: ClientContext, directory: Path) -> str:
    """Remove what dead runs of the same journal left in a directory, once; return the mark of this run's files."""
    mark, journal = "", context.journal
    if isinstance(journal, RunJournal):
        with ignoring_errors("Removing the unfinished files of earlier runs"):
            mark = await journal.run_mark()
            if directory not in context.swept:
                context.swept.add(directory)
                left = await context.in_thread(partial(part_files, directory))
                ended = await journal.ended_runs(left) if left else ()
                for run in ended:
                    await context.in_thread(partial(remove_files, left[run]))
    return mark


async def read(operation: Operation, result: GenerationResult) -> list[FileBytes]:
    """Download every file of a result into memory.

    Raises:
        DownloadError: A file could not be downloaded, or there is none.
    """
    _check_files(operation, result, "download_bytes")
    with _reported(operation, result, "download_bytes"), operation:
        return [FileBytes(await _Transfer(operation, url, InMemory()).fetch()) for url in result.urls]


def _check_files(operation: Operation, result: GenerationResult, verb: str) -> None:
    """Refuse a result without a file: nothing to download is not "downloaded"."""
    if not result.urls:
        with operation.reporting(verb):
            raise DownloadError("The result holds no file; fetch it again later", request_id=result.request_id)


@contextmanager
def _reported(operation: Operation, result: GenerationResult, verb: str) -> Iterator[None]:
    """Report a verb's failure as an event, with the cost; a deadline that passed is a `DownloadError`."""
    with operation.reporting(verb):
        try:
            yield
        except APITimeoutError as error:
            cause = str(error).removesuffix(f" (request {result.request_id})")  # the new error says it
            raise DownloadError(
                request_id=result.request_id, cost_usd=result.cost_usd, transient=True, cause=cause
            ) from error
        except DownloadError as error:
            error.cost_usd = result.cost_usd
            raise


class _Transfer(Generic[T]):
    """One file, over as many attempts as it takes."""

    def __init__(self, operation: Operation, url: str, file: IncomingFile[T]) -> None:
        self._context = operation.context
        self._operation = operation
        self._url = url
        self._file = file
        self._begun = False

    async def fetch(self) -> T:
        """Fetch the file, with repeats inside the deadline and the client's quota; on failure leave nothing behind."""
        try:
            if is_inline(self._url):
                return await self._inline()
            return await self._operation.repeat(
                Kind.FILE,
                self._once,
                allows=lambda error: error.retryable,
                attempts=self._context.retry.attempts,
            )
        except BaseException as error:
            with suppress(RuntimeError):  # no thread can start: the removal stays in the queue, or no thread ever wrote
                if self._begun:  # hand the removal over at once: the loop may be about to end
                    removal = self._context.loop.run_in_executor(self._context.threads, self._file.drop)
                    self._context.background.keep(asyncio.shield(removal))
                    if isinstance(error, FluxKleinError):  # a cancellation and a deadline do not wait
                        await asyncio.wait({removal})
            raise

    async def _once(self) -> T:
        try:
            async with self._operation.admission(Kind.FILE):
                headers, rest = await self._follow()
            return await self._in_thread(partial(self._file.finish, rest, headers, self._url))
        except DownloadError as error:
            error.url = error.url or self._shown(self._url)
            raise
        except ConfigurationError:
            raise  # the operation adds the request id
        except FluxKleinError as error:
            raise DownloadError(url=self._shown(self._url), transient=error.transient, cause=str(error)) from error

    async def _inline(self) -> T:
        """Keep the file that the URL itself holds. Another attempt would find the same."""
        try:
            return await self._in_thread(self._decoded)
        except DownloadError as error:
            error.url = self._shown(self._url)
            raise

    def _decoded(self) -> T:
        kind, content = inline_file(self._url, self._context.max_file_bytes)
        headers = {"content-type": kind}
        if (problem := problem_with(content[:START], headers, "")) is not None:
            raise DownloadError(problem)
        self._file.restart()
        return self._file.finish(content, headers, "")

    async def _follow(self) -> tuple[Mapping[str, str], bytes]:
        """Receive the file, after at most five redirects, each to a trusted host; its headers and its last bytes."""
        url = self._url
        for _ in range(_REDIRECTS + 1):
            urls = self._context.api.urls
            trusted = trusted_file_url(url, urls.origin, urls.file_hosts)
            if trusted is None:
                shown = self._shown(url)
                advice = "--file-host, in Python Limits(file_hosts=...), adds a public host"
                raise DownloadError(f"Files are not taken from {shown!r:.200}; {advice}", url=shown)
            async with self._context.transport.stream(self._context.api.file(trusted)) as (head, pieces):
                if head.status == 200:
                    return head.headers, await self._receive(head.headers, pieces)
                url = self._redirected(head, trusted)
        raise DownloadError(f"The file is more than {_REDIRECTS} redirects away", url=self._shown(url))

    def _redirected(self, head: Response, url: str) -> str:
        location = head.headers.get("location")
        if head.status in {301, 302, 303, 307, 308} and location:
            return redirected(url, location)
        self._context.throttle(Kind.FILE, head)
        raise DownloadError(
            f"The file's host answered HTTP {head.status}",
            url=self._shown(url),
            status_code=head.status,
            transient=status_error_class(head.status, None)(status_code=head.status).transient,
        )

    async def _receive(self, headers: Mapping[str, str], pieces: AsyncIterator[bytes]) -> bytes:
        """Hand the body to a thread piece by piece, except for its last bytes, which are returned."""
        self._file.restart()
        size, gathered = 0, bytearray()
        limit, length = self._context.max_file_bytes, headers.get("content-length", "")
        if _LENGTH.fullmatch(length) and int(length) > limit:
            raise too_large(limit)
        async for piece in pieces:
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            gathered += piece
            if len(gathered) >= _FLUSH:
                await self._in_thread(partial(self._file.add, bytes(gathered)))
                gathered.clear()
        return bytes(gathered)

    async def _in_thread(self, job: Callable[[], R]) -> R:
        """Run a job in a thread; any failure is a `DownloadError`."""
        self._begun = True
        return await self._context.in_thread(job, DownloadError)

    def _shown(self, url: str) -> str:
        """A URL without its query, which may hold a signature, and without the token, which a redirect may echo."""
        return self._context.redact(brief_url(url).partition("?")[0])[:300]
