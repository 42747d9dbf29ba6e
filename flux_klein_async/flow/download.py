"""The files of one result, one after another, to disk or to memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flux_klein_async.errors import APITimeoutError, DownloadError, FluxKleinError, InvalidInputError
from flux_klein_async.events import Downloaded
from flux_klein_async.flow.call import Call
from flux_klein_async.flow.calls import tell_failed
from flux_klein_async.flow.core import Core
from flux_klein_async.flow.files import InMemory, PartFile, checked_names
from flux_klein_async.flow.transfer import Transfer
from flux_klein_async.ledger.base import EntryState
from flux_klein_async.models import GenerationResult, SavedFile

__all__ = ["read", "save"]


async def save(
    core: Core, call: Call, result: GenerationResult, directory: Path, names: Sequence[str] | None
) -> list[SavedFile]:
    """Download every file of a result into a directory.

    Raises:
        InvalidInputError: `names` are not plain file names, one for each file.
        DownloadError: A file could not be brought home; of that file nothing is left behind.
    """
    naming = _naming(result, names)
    with _telling(core, call, "download"):
        with _within(call, result.request_id):
            saved = [
                await Transfer(core, call, url, PartFile(directory, name)).fetch()
                for url, name in zip(result.urls, naming, strict=True)
            ]
        files = tuple(replace(file, path=file.path.absolute()) for file in saved)
        await core.write(EntryState.DOWNLOADED, request_id=result.request_id, files=files)
    core.emit(
        lambda at: Downloaded(
            at=at,
            request_id=result.request_id,
            tag=call.tag,
            paths=tuple(str(file.path) for file in saved),
            sha256=tuple(file.sha256 for file in saved),
            seconds=at - call.started,
        )
    )
    return saved


async def read(core: Core, call: Call, result: GenerationResult) -> list[bytes]:
    """Every file of a result, in memory.

    Raises:
        DownloadError: A file could not be brought home.
    """
    with _telling(core, call, "read"), _within(call, result.request_id):
        return [await Transfer(core, call, url, InMemory()).fetch() for url in result.urls]


def _naming(result: GenerationResult, names: Sequence[str] | None) -> list[Callable[[str], str]]:
    """For each file, how to name it once its content is known; nothing but plain names comes of it."""
    count = len(result.urls)
    if names is not None:
        return [lambda _suffix, name=name: name for name in checked_names(names, count)]  # type: ignore[misc]
    numbers = [f"-{number}" if count > 1 else "" for number in range(1, count + 1)]
    try:
        stems = checked_names([result.request_id + number for number in numbers], count)
    except InvalidInputError:  # an id such as "nul" is no file name everywhere; one that leads elsewhere stays refused
        if not result.request_id:
            raise
        stems = checked_names([f"request-{result.request_id}{number}" for number in numbers], count)
    return [stem.__add__ for stem in stems]


@contextmanager
def _telling(core: Core, call: Call, verb: str) -> Iterator[None]:
    try:
        yield
    except FluxKleinError as error:
        tell_failed(core, call, error, verb)
        raise


@contextmanager
def _within(call: Call, request_id: str) -> Iterator[None]:
    """The call's deadline, ending in the error of this verb."""
    try:
        with call:
            yield
    except APITimeoutError as error:
        cause = str(error).removesuffix(f" (request {request_id})")  # said once is enough
        raise DownloadError(request_id=request_id, transient=True, cause=cause) from error
