"""One item of a fan-out, from its input to its files.

With a journal that knows items again, what it knows of one comes first: only an item for which nothing was accepted
yet is submitted.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
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
from flux_klein_async.operations.operation import Operation
from flux_klein_async.operations.submit import PreparedRequest, made_id
from flux_klein_async.operations.wait import AcceptedRequest, generate, wait
from flux_klein_async.options import OnAbandon
from flux_klein_async.transport.throttle import Slot

__all__ = ["ItemRunner"]


T = TypeVar("T")


class ItemRunner(Generic[T]):
    """What is the same for all items of one fan-out; `make` makes one of them."""

    def __init__(
        self,
        context: ClientContext,
        to_order: Callable[[T], PreparedRequest],
        to_id: Callable[[T], str | None] | None,
        *,
        timeout: float | None,
        on_abandon: OnAbandon,
        directory: Path | None,
    ) -> None:
        """`timeout`: seconds for a generation, and as many again for its files."""
        self._context = context
        self._to_order = to_order
        self._to_id = to_id
        self._timeout = timeout
        self._on_abandon: OnAbandon = on_abandon
        self._directory = directory
        self._stopping = False
        self._operations: set[Operation] = set()  # generations under way
        self._items: ItemClaims | None = context.journal.items() if isinstance(context.journal, ItemJournal) else None

    async def make(self, index: int, item: T) -> Product:
        """The item's result, and its files where they are wanted.

        Raises:
            FluxKleinError: The item's own error.
        """
        self._check_wanted()
        prepared = self._to_order(item)
        if self._items is None:
            return await self._submitted(index, prepared)
        item_id = made_id(item, self._to_id)
        with asked("journal", JournalError):
            claim = await self._items.claim(prepared.model, prepared.body, item_id)
        try:
            return await self._claimed(index, prepared, claim)
        finally:
            with told("journal"):
                self._items.release(claim)

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

    async def _claimed(self, index: int, prepared: PreparedRequest, claim: Claim) -> Product:
        """What was paid for before is brought home; what may have been paid for is left alone."""
        if claim.action is Action.SUBMIT:
            return await self._submitted(index, replace(prepared, item=claim.item))
        if claim.action is Action.RESUME:
            result = await self._taken_up(index, prepared, claim)
            return Product(result, await self._files(index, result), from_journal=True)
        if claim.action is Action.RECALL:
            return await self._kept(index, claim)
        raise _left_alone(claim)

    # --- from an order or a request to a result

    async def _submitted(self, index: int, prepared: PreparedRequest) -> Product:
        async def through(operation: Operation, slot: Slot) -> GenerationResult:
            return await generate(self._context, operation, prepared, slot, on_abandon=self._on_abandon)

        result = await self._in_slot(index, prepared, through)
        return Product(result, await self._files(index, result))

    async def _taken_up(self, index: int, prepared: PreparedRequest, claim: Claim) -> GenerationResult:
        """Wait for a request that an earlier run submitted."""
        accepted = AcceptedRequest(request_id=claim.request_id or "", model=prepared.model, pixels=prepared.pixels)

        async def through(operation: Operation, _slot: Slot) -> GenerationResult:
            return await wait(self._context, operation, accepted, on_abandon=self._on_abandon, on_status=None)

        try:
            return await self._in_slot(index, prepared, through, request_id=accepted.request_id)
        except NotFoundError as error:  # the service has deleted it: nobody shall wait for it again and again
            await self._context.write(EntryState.FAILED, request_id=accepted.request_id, error=str(error))
            raise

    async def _in_slot(
        self,
        index: int,
        prepared: PreparedRequest,
        through: Callable[[Operation, Slot], Awaitable[GenerationResult]],
        *,
        request_id: str | None = None,
    ) -> GenerationResult:
        """Wait for a slot; the item's time begins when it has one."""
        slot = Slot(self._context.limiter)
        await slot.take()
        try:
            self._check_wanted()
            operation = self._context.operation(self._timeout, request_id=request_id, tag=index, waits=True)
            self._operations.add(operation)
            try:
                with operation:
                    return await through(operation, slot)
            except FluxKleinError as error:
                tell_failed(self._context, operation, error, "generate", prepared.model)
                raise
            finally:
                self._operations.discard(operation)
        finally:
            slot.give()

    async def _kept(self, index: int, claim: Claim) -> Product:
        """A result that was there in an earlier run: as it was written down, else as the service still has it."""
        request_id = claim.request_id or ""
        if claim.answer is None:
            result = await self._fetched(index, request_id)
            return Product(result, await self._files(index, result, claim.files), from_journal=True)
        result = read_result(Response(status=200, headers={}, body=claim.answer), request_id)
        try:
            return Product(result, await self._files(index, result, claim.files), from_journal=True)
        except DownloadError as error:
            # Files may have moved since, and an answer that was wrong must not stay so in every run to come.
            result = await self._moved(index, result, error)
            return Product(result, await self._files(index, result), from_journal=True)

    async def _moved(self, index: int, known: GenerationResult, error: DownloadError) -> GenerationResult:
        """The result as the service tells it now, if that names other files; else the error."""
        try:
            result = await self._fetched(index, known.request_id)
        except NotFoundError:
            gone = "The files have gone, and the service has deleted the result; under another id it is paid for anew"
            raise DownloadError(
                gone, url=error.url, status_code=error.status_code, request_id=known.request_id
            ) from None
        except FluxKleinError:
            raise error from None
        if result.urls == known.urls:
            raise error
        await write_result(self._context, result)
        return result

    async def _fetched(self, index: int, request_id: str) -> GenerationResult:
        with self._context.operation(self._timeout, request_id=request_id, tag=index) as operation:
            return await fetch_result(self._context, operation, request_id)

    # --- from a result to files

    async def _files(
        self, index: int, result: GenerationResult, known: tuple[SavedFile, ...] = ()
    ) -> tuple[SavedFile, ...]:
        if self._directory is None:
            return ()
        if len(known) == len(result.urls) and known:
            there = partial(_all_there, known, self._directory)
            if await self._context.loop.run_in_executor(None, there):
                return tuple(replace(file, path=self._directory / file.path.name) for file in known)
        operation = self._context.operation(self._timeout, request_id=result.request_id, tag=index)
        return tuple(await download.save(self._context, operation, result, self._directory, None))


def _left_alone(claim: Claim) -> FluxKleinError:
    if claim.action is Action.CLAIMED:
        return ItemClaimedError(request_id=claim.request_id)
    if claim.action is Action.UNCERTAIN:
        cause = _news(claim, SubmissionUncertainError)
        return SubmissionUncertainError(request_id=claim.request_id, cause=cause)
    return GenerationFailedError(request_id=claim.request_id, detail=_news(claim, GenerationFailedError))


def _news(claim: Claim, kind: type[FluxKleinError]) -> str | None:
    """What was written down of an end, less what the error of its kind says in any case."""
    text = (claim.error or "").removesuffix(f" (request {claim.request_id})")
    return text.removeprefix(str(kind())).removeprefix(": ") or None


def _all_there(files: tuple[SavedFile, ...], directory: Path) -> bool:
    """Whether the files are where they are wanted, as long as they were when they were saved."""
    folder = directory.absolute()
    try:
        return all(file.path.parent == folder and file.path.stat().st_size == file.size for file in files)
    except OSError:
        return False
