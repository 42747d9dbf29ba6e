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
    ItemTakenError,
    JournalError,
    NotFoundError,
    SubmissionUncertainError,
)
from flux_klein_async.journal.base import Action, Claim, EntryState, Items, Ledger
from flux_klein_async.models import GenerationResult, SavedFile
from flux_klein_async.operations import download
from flux_klein_async.operations.calls import cancel_abandoned, fetch_result, tell_failed, write_result
from flux_klein_async.operations.context import Core, asked, told
from flux_klein_async.operations.fanout import Product
from flux_klein_async.operations.operation import Call
from flux_klein_async.operations.submit import Order, made_id
from flux_klein_async.operations.wait import Ticket, generate, wait
from flux_klein_async.options import OnAbandon
from flux_klein_async.transport.throttle import Slot

__all__ = ["Workshop"]


T = TypeVar("T")


class Workshop(Generic[T]):
    """What is the same for all items of one fan-out; `make` makes one of them."""

    def __init__(
        self,
        core: Core,
        to_order: Callable[[T], Order],
        to_id: Callable[[T], str | None] | None,
        *,
        timeout: float | None,
        on_abandon: OnAbandon,
        directory: Path | None,
    ) -> None:
        """`timeout`: seconds for a generation, and as many again for its files."""
        self._core = core
        self._to_order = to_order
        self._to_id = to_id
        self._timeout = timeout
        self._on_abandon: OnAbandon = on_abandon
        self._directory = directory
        self._stopping = False
        self._calls: set[Call] = set()  # generations under way
        self._items: Items | None = core.journal.items() if isinstance(core.journal, Ledger) else None

    async def make(self, index: int, item: T) -> Product:
        """The item's result, and its files where they are wanted.

        Raises:
            FluxKleinError: The item's own error.
        """
        self._check_wanted()
        order = self._to_order(item)
        if self._items is None:
            return await self._submitted(index, order)
        item_id = made_id(item, self._to_id)
        with asked("journal", JournalError):
            claim = await self._items.claim(order.model, order.body, item_id)
        try:
            return await self._claimed(index, order, claim)
        finally:
            with told("journal"):
                self._items.release(claim)

    def stop(self) -> None:
        """Submit nothing more, cancel what is queued; what runs is waited for."""
        if self._stopping:
            return
        self._stopping = True
        for call in self._calls:
            if call.request_id is None:
                call.stop()
            else:
                self._core.background.queue(partial(cancel_abandoned, self._core, call.request_id, call.tag))

    def _check_wanted(self) -> None:
        if self._stopping:
            raise GenerationCancelledError("Stopped before it was submitted", charged="no")

    async def _claimed(self, index: int, order: Order, claim: Claim) -> Product:
        """What was paid for before is brought home; what may have been paid for is left alone."""
        if claim.action is Action.SUBMIT:
            return await self._submitted(index, replace(order, item=claim.item))
        if claim.action is Action.TAKE_UP:
            result = await self._taken_up(index, order, claim)
            return Product(result, await self._files(index, result), recalled=True)
        if claim.action is Action.KEEP:
            return await self._kept(index, claim)
        raise _left_alone(claim)

    # --- from an order or a request to a result

    async def _submitted(self, index: int, order: Order) -> Product:
        async def through(call: Call, slot: Slot) -> GenerationResult:
            return await generate(self._core, call, order, slot, on_abandon=self._on_abandon)

        result = await self._in_slot(index, order, through)
        return Product(result, await self._files(index, result))

    async def _taken_up(self, index: int, order: Order, claim: Claim) -> GenerationResult:
        """Wait for a request that an earlier run submitted."""
        ticket = Ticket(request_id=claim.request_id or "", model=order.model, pixels=order.pixels)

        async def through(call: Call, _slot: Slot) -> GenerationResult:
            return await wait(self._core, call, ticket, on_abandon=self._on_abandon, on_status=None)

        try:
            return await self._in_slot(index, order, through, request_id=ticket.request_id)
        except NotFoundError as error:  # the service has deleted it: nobody shall wait for it again and again
            await self._core.write(EntryState.FAILED, request_id=ticket.request_id, error=str(error))
            raise

    async def _in_slot(
        self,
        index: int,
        order: Order,
        through: Callable[[Call, Slot], Awaitable[GenerationResult]],
        *,
        request_id: str | None = None,
    ) -> GenerationResult:
        """Wait for a slot; the item's time begins when it has one."""
        slot = Slot(self._core.limiter)
        await slot.take()
        try:
            self._check_wanted()
            call = self._core.call(self._timeout, request_id=request_id, tag=index, waits=True)
            self._calls.add(call)
            try:
                with call:
                    return await through(call, slot)
            except FluxKleinError as error:
                tell_failed(self._core, call, error, "generate", order.model)
                raise
            finally:
                self._calls.discard(call)
        finally:
            slot.give()

    async def _kept(self, index: int, claim: Claim) -> Product:
        """A result that was there in an earlier run: as it was written down, else as the service still has it."""
        request_id = claim.request_id or ""
        if claim.answer is None:
            result = await self._fetched(index, request_id)
            return Product(result, await self._files(index, result, claim.files), recalled=True)
        result = read_result(Response(status=200, headers={}, body=claim.answer), request_id)
        try:
            return Product(result, await self._files(index, result, claim.files), recalled=True)
        except DownloadError as error:
            # Files may have moved since, and an answer that was wrong must not stay so in every run to come.
            result = await self._moved(index, result, error)
            return Product(result, await self._files(index, result), recalled=True)

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
        await write_result(self._core, result)
        return result

    async def _fetched(self, index: int, request_id: str) -> GenerationResult:
        with self._core.call(self._timeout, request_id=request_id, tag=index) as call:
            return await fetch_result(self._core, call, request_id)

    # --- from a result to files

    async def _files(
        self, index: int, result: GenerationResult, known: tuple[SavedFile, ...] = ()
    ) -> tuple[SavedFile, ...]:
        if self._directory is None:
            return ()
        if len(known) == len(result.urls) and known:
            there = partial(_all_there, known, self._directory)
            if await self._core.loop.run_in_executor(None, there):
                return tuple(replace(file, path=self._directory / file.path.name) for file in known)
        call = self._core.call(self._timeout, request_id=result.request_id, tag=index)
        return tuple(await download.save(self._core, call, result, self._directory, None))


def _left_alone(claim: Claim) -> FluxKleinError:
    if claim.action is Action.TAKEN:
        return ItemTakenError(request_id=claim.request_id)
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
