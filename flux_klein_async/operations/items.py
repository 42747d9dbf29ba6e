"""One item of a fan-out, from its input to its files.

A journal that recognises items is asked first: an item is submitted only if no earlier submit of it was accepted or may
have been. How many items run at once is not decided here (`fanout`).
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from flux_klein_async.api.messages import Response
from flux_klein_async.api.responses import read_result
from flux_klein_async.api.urls import host_of, is_loopback, parsed
from flux_klein_async.errors import (
    LOOK_FOR_IT,
    OF_EARLIER_RUN,
    BudgetExceededError,
    ConfigurationError,
    DownloadError,
    FanOutHaltedError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InvalidInputError,
    ItemClaimedError,
    JournalError,
    NotFoundError,
    ResultNotReadyError,
    SubmissionUncertainError,
)
from flux_klein_async.journal.base import Claim, ItemClaims, ItemJournal
from flux_klein_async.journal.states import Action, EntryState
from flux_klein_async.models import GenerationResult, SavedFile, whole, without_file
from flux_klein_async.operations import download
from flux_klein_async.operations.calls import cancel_abandoned, fetch_result, record_result, status
from flux_klein_async.operations.context import ClientContext, ignoring_errors, wrapping_errors
from flux_klein_async.operations.fanout import Product, dooms, ends_only_submits, not_submitted
from flux_klein_async.operations.files import unwritable
from flux_klein_async.operations.inputs import digest_files
from flux_klein_async.operations.names import checked_stem
from flux_klein_async.operations.operation import Operation
from flux_klein_async.operations.submit import AcceptedRequest, PreparedRequest, from_user, in_thread, submit
from flux_klein_async.operations.wait import wait
from flux_klein_async.options import OnAbandon
from flux_klein_async.transport.throttle import Slot

__all__ = ["EMULATED", "ItemRunner", "all_there"]

EMULATED = "x-flux-klein-emulator"  # a header of the emulator, which the core does not import
_LOOK_FIRST = f"{LOOK_FOR_IT}; if it is not there, resubmit_uncertain=True submits it again"
_CLAIMING = wrapping_errors("The journal", JournalError)
_FAILED_BEFORE = "retry_failed=True submits it again"

T = TypeVar("T")
_Made = tuple[GenerationResult, tuple[SavedFile, ...]]


@dataclass(frozen=True, slots=True)
class _Item:
    """An item under way; `stem` names its files."""

    index: int
    prepared: PreparedRequest
    stem: str | None


def _without_file(error: FluxKleinError) -> bool:
    """Whether a generation was completed, and so charged, without a file."""
    paid = isinstance(error, GenerationFailedError) and error.charged == "yes"
    return paid or isinstance(error, ResultNotReadyError)


class _Row:
    """How many ended badly in a row, in the order in which they began: of many at once, the lost ones may end first.

    What is under way ends a row, since it may yet end well. What ended neither well nor badly is left out.
    """

    def __init__(self) -> None:
        self._bad: dict[int, bool | None] = {}  # how they ended, by number, behind the first that is under way
        self._first = self._next = 0
        self._before = 0  # the row that ends before the first

    def begin(self) -> int:
        """One begins; returns its number."""
        self._next += 1
        return self._next - 1

    def is_under_way(self, number: int) -> bool:
        """Whether it has not ended."""
        return number >= self._first and number not in self._bad

    @property
    def under_way(self) -> int:
        """How many have not ended."""
        return self._next - self._first - len(self._bad)

    def end(self, number: int, bad: bool | None) -> int:
        """One ended; None: neither well nor badly. Returns how many bad ones stand in a row there."""
        self._bad[number] = bad
        row = 0 if bad is False else bool(bad) + self._beside(number, -1) + self._beside(number, 1)
        while self._first in self._bad:
            bad = self._bad.pop(self._first)
            self._first += 1
            if bad is not None:
                self._before = self._before + 1 if bad else 0
        return row

    def _beside(self, number: int, step: int) -> int:
        count, number = 0, number + step
        while number in self._bad and self._bad[number] is not False:
            count += bool(self._bad[number])
            number += step
        return count + self._before if number < self._first else count


class _Losses:
    """Counts what may have been charged and gave no file, and finds the row of it that halts a fan-out.

    Attributes:
        halted_by: The error of such a row, once there was one; its count goes on.
    """

    def __init__(self, halt_after: int | None) -> None:
        self._halt_after = halt_after
        self._rows = {"submits": _Row(), "generations": _Row()}
        self._count = 0
        self._last: FluxKleinError | None = None
        self.halted_by: FanOutHaltedError | None = None

    @property
    def unanswered(self) -> int:
        """How many submits are on their way."""
        return self._rows["submits"].under_way

    def begin(self, what: str) -> int:
        """One begins; returns its number."""
        return self._rows[what].begin()

    def good(self, what: str, number: int) -> None:
        """One was accepted, or has files."""
        self._end(what, number, bad=False)

    def bad(self, what: str, number: int, error: FluxKleinError | None) -> None:
        """One ended uncertain, or without a file."""
        self._count += 1
        self._last = error
        self._end(what, number, bad=True)

    def neither(self, what: str, number: int) -> None:
        """One ended otherwise, if it has not ended yet."""
        if self._rows[what].is_under_way(number):
            self._end(what, number, bad=None)

    def _end(self, what: str, number: int, *, bad: bool | None) -> None:
        row, most = self._rows[what].end(number, bad), self._halt_after
        if self.halted_by is None and most is not None and row >= most:
            end = "uncertain" if what == "submits" else "without a file"
            reason = f"{most} {what if most > 1 else what[:-1]} in a row ended {end}"
            cause = self._last and (self._last.cause or str(self._last))
            self.halted_by = FanOutHaltedError(reason=reason, cause=cause)
        if self.halted_by is not None:
            self.halted_by.possibly_charged = self._count


class ItemRunner(Generic[T]):
    """Runs the items of one fan-out."""

    def __init__(
        self,
        context: ClientContext,
        to_prepared: Callable[[T], PreparedRequest],
        to_id: Callable[[T], str | int | None] | None,
        to_name: Callable[[T], str | int] | None,
        *,
        timeout: float | None,
        on_abandon: OnAbandon,
        directory: Path | None,
        halt_after: int | None,
    ) -> None:
        """`timeout`: seconds for a generation, and as many again for its files."""
        self._context = context
        self._to_prepared = to_prepared
        self._to_id = to_id
        self._to_name = to_name
        self._timeout = timeout
        self._on_abandon: OnAbandon = on_abandon
        self._directory = directory
        self._checked = False
        self._checking = asyncio.Lock()
        self._stopped_by: FluxKleinError | None = None
        self._halted = False
        self._losses = _Losses(halt_after)
        self._generating: set[Operation] = set()
        self._is_local = is_loopback(host_of(parsed(context.api.urls.origin)) or "")
        self._claims: ItemClaims | None = context.journal.items() if isinstance(context.journal, ItemJournal) else None

    async def make(self, index: int, item: T) -> Product:
        """The item's result, and its files if there is a directory.

        Raises:
            FluxKleinError: The item's own error.
        """
        if self._claims is None or not ends_only_submits(self._stopped_by):
            self._check_wanted()
        with wrapping_errors("The input", InvalidInputError):  # a Mapping or path of the user's may raise anything
            prepared = self._to_prepared(item)
        made = _Item(index, prepared, self._stem(item))
        if self._claims is None:
            return await self._submit(made)
        prepared.item_id = self._id(item)
        content = await self._content(made)
        with _CLAIMING:
            claim = await self._claims.claim(prepared.model, content, prepared.item_id)
        prepared.item = claim.item
        try:
            return await self._act(made, claim)
        finally:
            with ignoring_errors("The journal"):
                self._claims.release(claim)

    async def _content(self, item: _Item) -> bytes:
        """What the journal recognises the item by; local files are read in pieces for it, and again to be sent."""
        body = item.prepared.body
        if body.files:
            with Operation(self._context, self._timeout, tag=item.index):
                await in_thread(self._context, digest_files, body)
        return body.content

    def stop(self, error: FluxKleinError | None = None) -> None:
        """Submit nothing more.

        With an error, which dooms every further submit, what was submitted goes on. Without one the user wants to end:
        queued requests are cancelled too, also those whose POST is under way, and what runs is waited for.
        """
        if error is not None:
            self._stopped_by = self._stopped_by or error
            if not self._halted and not isinstance(error, BudgetExceededError):  # what has its money may submit
                self._halted = True
                for operation in self._generating:
                    operation.halt(not_submitted(error))
        elif not isinstance(self._stopped_by, GenerationCancelledError):
            self._stopped_by = GenerationCancelledError("Stopped before it was submitted", charged="no")
            self._stopped_by.stopped = True
            for operation in list(self._generating):
                self._stop_one(operation)

    def _stop_one(self, operation: Operation) -> None:
        """End a generation, unless the service runs it already. The current task is never cancelled."""
        if operation not in self._generating:
            return  # it has ended meanwhile
        if operation.request_id is None and operation.is_running_here:
            self._context.loop.call_soon(self._stop_one, operation)  # an event handler of this very item stops it
            return
        operation.stop()
        if operation.request_id is not None:
            self._cancel(operation, operation.request_id)

    def _cancel(self, operation: Operation, request_id: str) -> None:
        """Cancel a request in the background, if it is still queued; its item waits for what comes of it."""
        self._context.background.queue(partial(cancel_abandoned, self._context, request_id, operation.tag))

    def halted_by(self) -> FluxKleinError | None:
        """The error by which all items together end the fan-out, or None; nothing halts what the user has stopped."""
        stopped = isinstance(self._stopped_by, GenerationCancelledError)
        return None if stopped else self._losses.halted_by

    def unanswered(self) -> int:
        """How many submits are on their way: each may be accepted."""
        return self._losses.unanswered

    def _posted(self, number: int, error: FluxKleinError | None) -> None:
        """A POST was accepted, or ended in this error."""
        if error is None:
            self._losses.good("submits", number)
        elif isinstance(error, SubmissionUncertainError):
            self._losses.bad("submits", number, error)
        else:
            self._losses.neither("submits", number)
            if dooms(error):
                self.stop(error)
        self._stop_if_halted()

    def _stop_if_halted(self) -> None:
        if self._losses.halted_by is not None:
            self.stop(self._losses.halted_by)

    def _generated(self, number: int, has_file: bool, error: FluxKleinError | None = None) -> None:
        """A generation was completed."""
        if has_file:
            self._losses.good("generations", number)
        else:
            self._losses.bad("generations", number, error)
            self._stop_if_halted()

    def _check_wanted(self) -> None:
        if self._stopped_by is not None:
            raise not_submitted(self._stopped_by)

    def _id(self, item: T) -> str | None:
        """The item's id; None if it has none, and is known by its content."""
        item_id = None if self._to_id is None else _named("to_id", self._to_id, item)
        if item_id is None or (isinstance(item_id, str) and item_id):
            return item_id
        raise InvalidInputError(
            f"to_id must give a text that is not empty, a whole number, or None; not {item_id!r:.60}"
        )

    def _stem(self, item: T) -> str | None:
        """The name of the item's files, checked before anything is paid for."""
        if self._to_name is None:
            return None
        return checked_stem(_named("to_name", self._to_name, item))

    async def _act(self, item: _Item, claim: Claim) -> Product:
        """Do what the journal's knowledge of the item calls for."""
        if claim.request_id is not None:
            self._context.known_ids.take(claim.request_id)
        if claim.action is Action.CLAIMED:
            raise ItemClaimedError(request_id=claim.request_id)
        if claim.action is not Action.SUBMIT:
            try:
                result, files = await self._of_earlier_run(item, claim)
            except FluxKleinError as error:
                if not self._is_submitted_again(claim, error):
                    return Product(error=error, from_journal=True)
            else:
                return Product(result, files=files, from_journal=True)
        # New; or what was to be resumed or recalled is gone, or may be made again.
        return await self._submit(item)

    async def _of_earlier_run(self, item: _Item, claim: Claim) -> _Made:
        """The result and the files of what an earlier run submitted, or its error."""
        if claim.action is Action.RECALL:
            return await self._recall(item, claim)
        if claim.action is Action.RESUME:
            result = await self._resume(item, claim)
            return result, await self._files(item, result, again=True)
        raise _left_alone(claim)

    def _is_submitted_again(self, claim: Claim, error: FluxKleinError) -> bool:
        """Whether this error of what an earlier run submitted lets the item be submitted again."""
        if isinstance(error, NotFoundError):
            return self._died(error)
        # The cause is None (an answer without a file) or NotFoundError (a result that is gone). After any other the
        # service could not be asked, and may hold a file by now.
        resubmits = claim.action is Action.RECALL and claim.resubmits
        return (
            resubmits and isinstance(error, GenerationFailedError) and isinstance(error.__cause__, NotFoundError | None)
        )

    # --- to a result

    async def _submit(self, item: _Item) -> Product:
        self._check_wanted()
        await self._check_directory()

        async def run(operation: Operation) -> GenerationResult:
            accepted = await submit(operation, item.prepared, on_abandon=self._on_abandon)
            if operation.stopped_at is not None:  # while it was on its way
                self._cancel(operation, accepted.request_id)
            return await wait(operation, accepted, on_abandon=self._on_abandon)

        result = await self._in_slot(item, run)
        try:
            return Product(result, files=await self._files(item, result))
        except DownloadError as error:
            error.paid_by_this_call = self._claims is None  # with a journal the same item is not paid for again
            raise

    async def _check_directory(self) -> None:
        """Refuse, before anything is paid for, a directory that cannot be written to.

        Raises:
            ConfigurationError: It cannot.
        """
        if self._checked or self._directory is None:
            return
        async with self._checking:
            if self._checked:  # for another item, meanwhile
                return
            problem = await self._context.in_thread(partial(unwritable, self._directory))
            if problem is not None:
                raise ConfigurationError(f"Nothing can be written to {str(self._directory)!r:.200}: {problem}")
            self._checked = True

    async def _resume(self, item: _Item, claim: Claim) -> GenerationResult:
        """Wait for a request that an earlier run submitted."""
        accepted = AcceptedRequest(
            request_id=claim.request_id or "",
            model=item.prepared.model,
            pixels=item.prepared.pixels,
            asked=item.prepared.asked,
        )
        try:
            await self._check_alive(item, accepted.request_id)
            return await self._in_slot(
                item,
                lambda operation: wait(operation, accepted, on_abandon=self._on_abandon),
                request_id=accepted.request_id,
            )
        except NotFoundError as error:  # the service has deleted it: later runs must not wait for it again
            state = EntryState.CANCELLED if self._died(error) else EntryState.FAILED
            await self._context.write(state, request_id=accepted.request_id, error=str(error))
            raise

    async def _check_alive(self, item: _Item, request_id: str) -> None:
        """Raise at once if the request died with its emulator: a wait asks again for ten seconds."""
        if self._is_local:
            try:
                with Operation(self._context, self._timeout, request_id=request_id, tag=item.index) as operation:
                    await status(operation, request_id)
            except FluxKleinError as error:
                if isinstance(error, NotFoundError) and self._died(error):
                    raise

    def _died(self, error: NotFoundError) -> bool:
        """Whether the request was of an emulator that has ended: nothing was charged, and it is submitted again.

        The service proper may stand behind an address of this machine too. It does not say that it is an emulator.
        """
        return self._is_local and EMULATED in error.headers

    async def _in_slot(
        self, item: _Item, run: Callable[[Operation], Awaitable[GenerationResult]], *, request_id: str | None = None
    ) -> GenerationResult:
        """Wait for a slot; the item's timeout starts when it has one."""
        async with Slot(self._context.limiter) as slot:
            if request_id is None:
                self._check_wanted()
            operation = Operation(
                self._context,
                self._timeout,
                request_id=request_id,
                tag=item.index,
                waits=True,
                slot=slot,
                patient=True,
            )
            losses, post, generation = self._losses, None, self._losses.begin("generations")

            def on_post() -> Callable[[FluxKleinError | None], None]:
                nonlocal post
                post = losses.begin("submits")
                return partial(self._posted, post)

            operation.on_post = on_post
            try:
                self._generating.add(operation)  # `stop` may end it
                with operation.reporting("generate", item.prepared.model), operation:
                    result = await run(operation)
                self._generated(generation, has_file=bool(result.urls))
            except SubmissionUncertainError as error:
                if error is not operation.last_error and post is not None:  # it was abandoned before its answer came
                    self._posted(post, error)
                raise
            except FluxKleinError as error:
                if _without_file(error):
                    self._generated(generation, has_file=False, error=error)
                raise
            finally:  # its task goes on without it
                self._generating.discard(operation)
                losses.neither("generations", generation)
                if post is not None:
                    losses.neither("submits", post)
            return result

    async def _recall(self, item: _Item, claim: Claim) -> _Made:
        """The result of an earlier run: from the journal, otherwise from the service."""
        request_id = claim.request_id or ""
        if claim.answer is None:
            result = await self._fetch(item, request_id)
            if not result.urls:
                raise without_file(result)
            return result, await self._files(item, result, claim.files, again=True)
        answer, origin = Response(status=200, headers={}, body=claim.answer), self._context.api.urls.origin
        result = read_result(answer, request_id, origin=origin, asked=item.prepared.asked)
        if not result.urls:
            result = await self._completed_since(item, result)
        try:
            files = await self._files(item, result, claim.files, again=True)
        except DownloadError as error:
            # Files may have moved since, and a wrong answer must not stay wrong in every later run.
            result = await self._moved(item, result, error)
            files = await self._files(item, result, again=True)
        return result, files

    async def _completed_since(self, item: _Item, known: GenerationResult) -> GenerationResult:
        """The result as the service has it now, if it holds files that it did not hold in an earlier run."""
        try:
            result = await self._fetch(item, known.request_id)
        except FluxKleinError as error:
            if isinstance(error, NotFoundError) and self._died(error):
                raise
            raise without_file(known) from error
        if not result.urls:
            raise without_file(result)
        await record_result(self._context, result)
        return result

    async def _moved(self, item: _Item, known: GenerationResult, error: DownloadError) -> GenerationResult:
        """The result as the service has it now, if it names other files; otherwise raise the error."""
        try:
            result = await self._fetch(item, known.request_id)
        except NotFoundError as missing:
            if self._died(missing):
                raise
            gone = (
                "The files are missing and the service has deleted the result; to pay for it again, change the item or "
                "give it a new id"
            )
            raise DownloadError(
                gone,
                url=error.url,
                status_code=error.status_code,
                cost_usd=known.cost_usd,
                request_id=known.request_id,
                advice="",
            ) from None
        except FluxKleinError:
            raise error from None
        if not result.urls or result.urls == known.urls:
            raise error
        await record_result(self._context, result)
        return result

    async def _fetch(self, item: _Item, request_id: str) -> GenerationResult:
        with Operation(self._context, self._timeout, request_id=request_id, tag=item.index) as operation:
            return await fetch_result(operation, request_id, asked=item.prepared.asked)

    # --- to files

    async def _files(
        self, item: _Item, result: GenerationResult, known: tuple[SavedFile, ...] = (), *, again: bool = False
    ) -> tuple[SavedFile, ...]:
        if self._directory is None:
            return ()
        directory, context = self._directory, self._context
        complete = len(known) == len(result.urls) and len(known) > 0
        if complete and await context.in_thread(partial(all_there, known, directory), DownloadError):
            return tuple(replace(file, path=directory / file.path.name) for file in known)
        operation = Operation(context, self._timeout, request_id=result.request_id, tag=item.index)
        # Every name is compared if an earlier run may have saved the files, one if another run may be saving them now.
        compared = math.inf if again else 1 if self._claims is not None else 0
        return tuple(await download.save(operation, result, directory, stem=item.stem, compared=compared))


def _named(name: str, make: Callable[[T], object], item: T) -> object:
    """What the user's function makes of an item: of a whole number, the key of a database's row, its text."""
    made = whole(from_user(name, make, item))
    return str(made) if isinstance(made, int) and not isinstance(made, bool) else made


def _left_alone(claim: Claim) -> FluxKleinError:
    """The error of an item that must not be submitted, and has nothing to wait for."""
    if claim.action is Action.UNCERTAIN:
        cause = _recorded(claim, SubmissionUncertainError)
        return SubmissionUncertainError(
            OF_EARLIER_RUN,
            request_id=claim.request_id,
            cause=cause,
            advice=_LOOK_FIRST,
        )
    detail = _recorded(claim, GenerationFailedError)
    return GenerationFailedError(request_id=claim.request_id, detail=detail, advice=_FAILED_BEFORE)


def _recorded(claim: Claim, kind: type[FluxKleinError]) -> str | None:
    """The recorded error, without what an error of its kind says anyway."""
    text = (claim.error or "").removesuffix(f" (request {claim.request_id})").removesuffix(f"; {LOOK_FOR_IT}")
    return text.removeprefix(str(kind(advice=""))).removeprefix(": ") or None


def all_there(files: tuple[SavedFile, ...], directory: Path) -> bool:
    """Whether files of these names and sizes are in the directory, which may have been moved since."""
    try:
        return all((directory / file.path.name).stat().st_size == file.size for file in files)
    except OSError:
        return False
