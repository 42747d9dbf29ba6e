"""Single calls: status, result, cancel and catalogue, each repeated where repeating is harmless.

Also what follows from them: the cancel of a request that nobody waits for, and a result in the journal.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Self

from pydantic_core import to_json

from flux_klein_async.api.messages import Response
from flux_klein_async.api.requests import PAGE, checked_word
from flux_klein_async.api.responses import ModelPage, read_cancel, read_model, read_models, read_result, read_status
from flux_klein_async.errors import (
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InvalidResponseError,
    NotFoundError,
)
from flux_klein_async.events import Cancelled
from flux_klein_async.journal.states import EntryState
from flux_klein_async.misuse import NotForLoop
from flux_klein_async.models import (
    CancelOutcome,
    GenerationResult,
    ModelInfo,
    RequestStatus,
    Timings,
    brief_repr,
    model_advice,
    without_file,
)
from flux_klein_async.operations.context import ClientContext, log
from flux_klein_async.operations.operation import Operation
from flux_klein_async.options import OnAbandon
from flux_klein_async.schema import every_name

__all__ = [
    "ModelList",
    "abandon",
    "cancel",
    "cancel_abandoned",
    "fetch_result",
    "get_model",
    "lags",
    "record_failure",
    "record_result",
    "result",
    "status",
]


CANCEL_WITHIN = 5.0  # seconds for a cancel that nobody waits for
_MOST_MODELS = 10_000  # docs/wire.md: 384 in 2026; a longer catalogue is taken for one that never ends


async def status(operation: Operation, request_id: str) -> RequestStatus:
    """Ask where the request stands."""
    read = partial(read_status, request_id=request_id)
    return await operation.exchange(operation.context.api.status(request_id), read)


async def fetch_result(
    operation: Operation, request_id: str, timings: Callable[[], Timings] = Timings, *, asked: int | None = None
) -> GenerationResult:
    """Fetch the result of a completed request; `asked`: the pictures that its input asked for, if known."""
    origin = operation.context.api.urls.origin
    read = partial(read_result, request_id=request_id, timings=timings, origin=origin, asked=asked)
    return await operation.exchange(operation.context.api.result(request_id), read)


async def result(operation: Operation, request_id: str, asked: int | None) -> GenerationResult:
    """Fetch the result of a request that nobody here may have waited for, and record how it ended."""
    try:
        found = await fetch_result(operation, request_id, asked=asked)
    except (GenerationFailedError, GenerationCancelledError) as error:
        await record_failure(operation.context, request_id, error)
        raise
    if not lags(found):
        await record_result(operation.context, found)
    return found


def lags(result: GenerationResult) -> bool:
    """Whether the output may come later than the word "completed"."""
    raw = result.raw
    return raw.get("output") is None and not (raw.get("error_message") or raw.get("error"))


async def get_model(operation: Operation, model: str) -> ModelInfo:
    """Fetch the catalogue entry."""
    try:
        info = await operation.exchange(operation.context.api.model(model), read_model)
    except NotFoundError as error:
        error.advice = model_advice(model)
        raise
    operation.context.note_fields(model, every_name(info.input_schema))
    return info


class ModelList(NotForLoop):
    """Gives the models of the catalogue that match, each once, and asks for a page when it is needed.

    A class, not an async generator: between two pages it holds neither a task nor a timer (PEP 789). After an error,
    the next call asks for the same page again.
    """

    def __init__(self, context: ClientContext, timeout: float | None, search: str | None, category: str | None) -> None:
        self._context = context
        self._timeout = timeout
        self._words = {"search": checked_word("search", search), "category": checked_word("category", category)}
        self._offset = 0
        self._seen: set[str] = set()
        self._page: deque[ModelInfo] = deque()
        self._ended = False
        self._turn = asyncio.Lock()  # several tasks may share the list

    def __repr__(self) -> str:
        return brief_repr(self, {**self._words, "offset": self._offset})

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ModelInfo:
        """Return the next model; a page has the client's timeout.

        Raises:
            InvalidResponseError: The pages contradict themselves or do not end.
            FluxKleinError: As `status`.
        """
        async with self._turn:
            while not self._page:
                if self._ended:
                    raise StopAsyncIteration
                request = self._context.api.models(self._words["search"], self._words["category"], self._offset)
                with Operation(self._context, self._timeout) as operation:
                    page = await operation.exchange(request, self._read)
                self._take(page)
            return self._page.popleft()

    def _read(self, response: Response) -> ModelPage:
        """Read a page; one that says that there are more models, and gives none, is asked for again."""
        page = read_models(response)
        claims_more = page.total is not None and page.total > self._offset
        # At the end, a total may have been too high.
        stuck = not self._fresh(page) if page.size else self._offset == 0
        if claims_more and stuck:
            sentence = f"The catalogue names {page.total} models, and gives none after the first {self._offset}"
            raise InvalidResponseError(sentence, status_code=response.status)
        if self._offset + page.size > _MOST_MODELS:
            sentence = f"The catalogue does not end: it has more than {_MOST_MODELS} models"
            raise InvalidResponseError(sentence, status_code=response.status)
        return page

    def _fresh(self, page: ModelPage) -> list[ModelInfo]:
        unique = {info.model_id: info for info in page.models}
        return [info for model_id, info in unique.items() if model_id not in self._seen]

    def _take(self, page: ModelPage) -> None:
        """Keep what is new. A short page is the last one only if the total agrees: the service may give fewer."""
        fresh = self._fresh(page)
        self._page.extend(fresh)
        self._seen.update(info.model_id for info in fresh)
        self._offset += page.size
        complete = page.total is not None and page.total <= self._offset and page.size < PAGE
        self._ended = complete or not fresh


async def cancel(operation: Operation, request_id: str, *, abandoned: bool = False) -> CancelOutcome:
    """Ask the service to cancel; report its answer as an event, and to budget and journal."""
    context = operation.context
    read = partial(read_cancel, request_id=request_id)
    outcome = await operation.exchange(context.api.cancel(request_id), read)
    operation.emit(Cancelled, cancelled=outcome.cancelled, abandoned=abandoned)
    if outcome.cancelled:
        context.budget.settle(request_id, 0.0)
        await context.write(EntryState.CANCELLED, request_id=request_id)
    return outcome


def abandon(operation: Operation, request_id: str, on_abandon: OnAbandon) -> None:
    """Cancel a request that nobody waits for, or leave it running."""
    context = operation.context
    if on_abandon == "cancel" or context.closing:
        context.left_running.add(request_id)
    if on_abandon == "cancel":
        context.background.queue(lambda: cancel_abandoned(context, request_id, operation.tag))


async def cancel_abandoned(context: ClientContext, request_id: str, tag: object) -> None:
    """Cancel a request that nobody waits for; one that could not be cancelled while closing is left running."""
    operation = Operation(context, CANCEL_WITHIN, request_id=request_id, tag=tag, registered=False)
    answered = False
    try:
        with operation:
            outcome = await cancel(operation, request_id, abandoned=True)
        answered = True
        if outcome.cancelled:
            context.left_running.discard(request_id)
    except FluxKleinError as error:
        log.warning("Request %s was abandoned and could not be cancelled: %s", request_id, error)
    finally:  # also where the client closes and ends this
        if not answered:
            operation.emit(Cancelled, cancelled=None, abandoned=True)
        if not context.closing:
            context.left_running.discard(request_id)


async def record_failure(
    context: ClientContext, request_id: str, error: GenerationFailedError | GenerationCancelledError
) -> None:
    """Tell budget and journal that a generation failed, and may have been paid for, or was cancelled.

    Raises:
        JournalError: It could not be written.
    """
    cancelled = isinstance(error, GenerationCancelledError)
    context.budget.settle(request_id, 0.0 if cancelled else None)
    state = EntryState.CANCELLED if cancelled else EntryState.FAILED
    await context.write(state, request_id=request_id, error=str(error))


async def record_result(context: ClientContext, result: GenerationResult) -> None:
    """Tell the budget what a result cost, and the journal the result, in the service's own words.

    Raises:
        JournalError: It could not be written.
    """
    context.budget.settle(result.request_id, result.cost_usd)
    if context.journal is not None:
        answer = to_json(result.raw)
        error = None if result.urls else str(without_file(result))
        await context.write(
            EntryState.COMPLETED, request_id=result.request_id, cost_usd=result.cost_usd, answer=answer, error=error
        )
