"""One item of a fan-out, from its input to its files.

A journal that recognises items is asked first: an item is submitted only if no earlier submit of it was accepted or may
have been.
"""

import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from flux_klein_async.api.messages import Response
from flux_klein_async.api.responses import read_result
from flux_klein_async.errors import (
    DownloadError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InvalidInputError,
    ItemClaimedError,
    JournalError,
    NotFoundError,
    SubmissionUncertainError,
)
from flux_klein_async.journal.base import Action, Claim, EntryState, ItemClaims, ItemJournal
from flux_klein_async.models import GenerationResult, SavedFile
from flux_klein_async.operations import download
from flux_klein_async.operations.calls import cancel_abandoned, fetch_result, tell_failed, write_result
from flux_klein_async.operations.context import ClientContext, asked, told
from flux_klein_async.operations.fanout import Product
from flux_klein_async.operations.files import checked_names
from flux_klein_async.operations.operation import Operation
from flux_klein_async.operations.submit import PreparedRequest, made_by_user, made_id
from flux_klein_async.operations.wait import AcceptedRequest, generate, wait
from flux_klein_async.options import OnAbandon
from flux_klein_async.transport.throttle import Slot

__all__ = ["ItemRunner"]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Item:
    """An item on its way; `stem` names its files."""

    index: int
    prepared: PreparedRequest
    stem: str | None


class ItemRunner(Generic[T]):
    """Runs the items of one fan-out; holds what all of them share."""

    def __init__(
        self,
        context: ClientContext,
        to_prepared: Callable[[T], PreparedRequest],
        to_id: Callable[[T], str | None] | None,
        to_name: Callable[[T], str] | None,
        *,
        timeout: float | None,
        on_abandon: OnAbandon,
        directory: Path | None,
    ) -> None:
        """`timeout`: seconds for a generation, and as many again for its files."""
        self._context = context
        self._to_prepared = to_prepared
        self._to_id = to_id
        self._to_name = to_name
        self._timeout = timeout
        self._on_abandon: OnAbandon = on_abandon
        self._directory = directory
        self._names: set[str] = set()
        self._stopping = False
        self._operations: set[Operation] = set()  # generations under way
        self._claims: ItemClaims | None = context.journal.items() if isinstance(context.journal, ItemJournal) else None

    async def make(self, index: int, item: T) -> Product:
        """The item's result, and its files if there is a directory.

        Raises:
            FluxKleinError: The item's own error.
        """
        self._check_wanted()
        going = _Item(index, self._to_prepared(item), self._stem(item))
        if self._claims is None:
            return await self._submit(going)
        item_id = made_id(item, self._to_id)
        with asked("journal", JournalError):
            claim = await self._claims.claim(going.prepared.model, going.prepared.body, item_id)
        try:
            return await self._act(going, claim)
        finally:
            with told("journal"):
                self._claims.release(claim)

    def stop(self) -> None:
        """Submit nothing more, cancel what is queued; what runs is waited for."""
        if self._stopping:
            return
        self._stopping = True
        for operation in self._operations:
            if operation.request_id is None:
                operation.stop()
            else:
                self._context.background.queue(
                    partial(cancel_abandoned, self._context, operation.request_id, operation.tag)
                )

    def _check_wanted(self) -> None:
        if self._stopping:
            raise GenerationCancelledError("Stopped before it was submitted", charged="no")

    def _stem(self, item: T) -> str | None:
        """The name of an item's files, checked before anything is paid for."""
        if self._to_name is None:
            return None
        [stem] = checked_names([made_by_user("to_name", self._to_name, item)], 1)
        same = unicodedata.normalize("NFC", stem).casefold()
        if same in self._names:
            raise InvalidInputError(f"to_name gave the name {stem[:60]!r} twice: the files would replace each other")
        self._names.add(same)
        return stem

    async def _act(self, going: _Item, claim: Claim) -> Product:
        """Do what the journal's knowledge of the item calls for."""
        if claim.action is Action.SUBMIT:
            return await self._submit(replace(going, prepared=replace(going.prepared, item=claim.item)))
        if claim.action is Action.RESUME:
            result = await self._resume(going, claim)
            return Product(result, await self._files(going, result), from_journal=True)
        if claim.action is Action.RECALL:
            return await self._recall(going, claim)
        raise _left_alone(claim)

    # --- to a result

    async def _submit(self, going: _Item) -> Product:
        async def through(operation: Operation, slot: Slot) -> GenerationResult:
            return await generate(operation, going.prepared, slot, on_abandon=self._on_abandon)

        result = await self._in_slot(going, through)
        return Product(result, await self._files(going, result))

    async def _resume(self, going: _Item, claim: Claim) -> GenerationResult:
        """Wait for a request that an earlier run submitted."""
        prepared = going.prepared
        accepted = AcceptedRequest(request_id=claim.request_id or "", model=prepared.model, pixels=prepared.pixels)

        async def through(operation: Operation, _slot: Slot) -> GenerationResult:
            return await wait(operation, accepted, on_abandon=self._on_abandon, on_status=None)

        try:
            return await self._in_slot(going, through, request_id=accepted.request_id)
        except NotFoundError as error:  # the service has deleted it: later runs must not wait for it again
            await self._context.write(EntryState.FAILED, request_id=accepted.request_id, error=str(error))
            raise

    async def _in_slot(
        self,
        going: _Item,
        through: Callable[[Operation, Slot], Awaitable[GenerationResult]],
        *,
        request_id: str | None = None,
    ) -> GenerationResult:
        """Wait for a slot; the item's timeout starts when it has one."""
        slot = Slot(self._context.limiter)
        await slot.take()
        try:
            self._check_wanted()
            operation = self._context.operation(self._timeout, request_id=request_id, tag=going.index, waits=True)
            self._operations.add(operation)
            try:
                with operation:
                    return await through(operation, slot)
            except FluxKleinError as error:
                tell_failed(operation, error, "generate", going.prepared.model)
                raise
            finally:
                self._operations.discard(operation)
        finally:
            slot.give()

    async def _recall(self, going: _Item, claim: Claim) -> Product:
        """The result of an earlier run: from the journal, else from the service."""
        request_id = claim.request_id or ""
        if claim.answer is None:
            result = await self._fetch(going, request_id)
            return Product(result, await self._files(going, result, claim.files), from_journal=True)
        result = read_result(Response(status=200, headers={}, body=claim.answer), request_id)
        try:
            return Product(result, await self._files(going, result, claim.files), from_journal=True)
        except DownloadError as error:
            # Files may have moved since, and a wrong answer must not stay wrong in every later run.
            result = await self._moved(going, result, error)
            return Product(result, await self._files(going, result), from_journal=True)

    async def _moved(self, going: _Item, known: GenerationResult, error: DownloadError) -> GenerationResult:
        """The result as the service has it now, if it names other files; else the error."""
        try:
            result = await self._fetch(going, known.request_id)
        except NotFoundError:
            gone = "The files are missing and the service has deleted the result; give the item a new id to pay again"
            raise DownloadError(
                gone, url=error.url, status_code=error.status_code, request_id=known.request_id
            ) from None
        except FluxKleinError:
            raise error from None
        if result.urls == known.urls:
            raise error
        await write_result(self._context, result)
        return result

    async def _fetch(self, going: _Item, request_id: str) -> GenerationResult:
        with self._context.operation(self._timeout, request_id=request_id, tag=going.index) as operation:
            return await fetch_result(operation, request_id)

    # --- to files

    async def _files(
        self, going: _Item, result: GenerationResult, known: tuple[SavedFile, ...] = ()
    ) -> tuple[SavedFile, ...]:
        if self._directory is None:
            return ()
        if len(known) == len(result.urls) and known:
            there = partial(_all_there, known, self._directory)
            if await self._context.loop.run_in_executor(self._context.threads, there):
                return tuple(replace(file, path=self._directory / file.path.name) for file in known)
        operation = self._context.operation(self._timeout, request_id=result.request_id, tag=going.index)
        return tuple(await download.save(operation, result, self._directory, stem=going.stem))


def _left_alone(claim: Claim) -> FluxKleinError:
    if claim.action is Action.CLAIMED:
        return ItemClaimedError(request_id=claim.request_id)
    if claim.action is Action.UNCERTAIN:
        cause = _recorded(claim, SubmissionUncertainError)
        return SubmissionUncertainError(request_id=claim.request_id, cause=cause)
    return GenerationFailedError(request_id=claim.request_id, detail=_recorded(claim, GenerationFailedError))


def _recorded(claim: Claim, kind: type[FluxKleinError]) -> str | None:
    """The recorded error, without what an error of its kind says anyway."""
    text = (claim.error or "").removesuffix(f" (request {claim.request_id})")
    return text.removeprefix(str(kind())).removeprefix(": ") or None


def _all_there(files: tuple[SavedFile, ...], directory: Path) -> bool:
    """Whether the files are in the directory, with the sizes that they had when they were saved."""
    folder = directory.absolute()
    try:
        return all(file.path.parent == folder and file.path.stat().st_size == file.size for file in files)
    except OSError:
        return False
