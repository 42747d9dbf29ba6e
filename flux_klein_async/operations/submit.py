"""From what a user gives to what is posted: model, body, size. Pure.

The one paid POST: never repeated unless it was not accepted, never forgotten once it may have been.

The POST runs in a task of its own, so that a caller who gives up does not tear it down half way: before its body
began to be written it is dropped, later it is seen through for a few seconds.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from flux_klein_async.api.messages import Kind
from flux_klein_async.api.requests import encode_input
from flux_klein_async.api.responses import excerpt, read_submit
from flux_klein_async.api.urls import checked_model_id
from flux_klein_async.errors import FluxKleinError, InvalidInputError, SubmissionUncertainError
from flux_klein_async.events import Submitted, Uncertain
from flux_klein_async.journal.base import EntryState
from flux_klein_async.misuse import slip
from flux_klein_async.models import (
    KLEIN_4B_TEXT_TO_IMAGE,
    KLEIN_9B_TEXT_TO_IMAGE,
    Input,
    TextToImage9BInput,
    TextToImageInput,
)
from flux_klein_async.operations.calls import cancel_abandoned, get_model
from flux_klein_async.operations.context import ClientContext, log
from flux_klein_async.operations.operation import Operation
from flux_klein_async.options import OnAbandon, RetryPolicy
from flux_klein_async.transport.base import BodyGuard
from flux_klein_async.transport.retry import Verdict, classify, refused_for_now
from flux_klein_async.transport.throttle import Slot

__all__ = ["PreparedRequest", "abandon", "made_by_user", "made_id", "made_input", "prepare", "submit"]


T = TypeVar("T")

_TYPED = {KLEIN_4B_TEXT_TO_IMAGE: TextToImageInput, KLEIN_9B_TEXT_TO_IMAGE: TextToImage9BInput}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """One submit, ready to leave.

    Attributes:
        pixels: Width times height, where known.
        item: How a journal calls the item that it is for, where it is one's.
    """

    model: str
    body: bytes = field(repr=False)
    pixels: int | None
    item: str | None = None


def prepare(
    input: Input,  # noqa: A002  # the public name
    *,
    model: str | None,
    width: int | None,
    height: int | None,
    default_model: str,
) -> PreparedRequest:
    """Check an input and encode it.

    A string becomes the typed input of its model; for a model without one it goes as `{"prompt": ...}` with the
    size where one was given. A Mapping goes as it is, so that a size beside it is refused.

    Raises:
        InvalidInputError: It cannot be sent, and nothing was.
    """
    size = {name: value for name, value in (("width", width), ("height", height)) if value is not None}
    if model is None:
        model = input.default_model if isinstance(input, TextToImage9BInput) else default_model
    model = checked_model_id(model)
    fields: TextToImageInput | Mapping[str, Any]
    if isinstance(input, Mapping):
        if size:
            raise InvalidInputError("A Mapping goes as it is: put width and height into it")
        fields = input
    elif isinstance(input, str):
        fields = _typed(_TYPED.get(model), {"prompt": input, **size})
    elif isinstance(input, TextToImageInput):
        fields = _typed(type(input), {**dict(input), **size}) if size else input
    else:
        raise InvalidInputError(f"An input is a string, a typed input or a Mapping, not {slip(input)}")
    return PreparedRequest(model=model, body=encode_input(fields), pixels=_pixels(fields))


def _typed(kind: type[TextToImageInput] | None, fields: dict[str, Any]) -> TextToImageInput | dict[str, Any]:
    if kind is None:
        if not str(fields["prompt"]).strip():
            raise InvalidInputError("prompt: the prompt is blank", fields={"prompt": "the prompt is blank"})
        return fields
    try:
        return kind(**fields)
    except ValidationError as error:
        raise _invalid_input(error) from None


def _invalid_input(error: ValidationError) -> InvalidInputError:
    """Pydantic's findings as one sentence: field, then what is wrong with it."""
    fields = {
        ".".join(map(str, item["loc"])): item["msg"].removeprefix("Value error, ")  # ours, which need no such title
        for item in error.errors(include_url=False)
    }
    return InvalidInputError("; ".join(f"{name}: {message}" for name, message in fields.items()), fields=fields)


def _pixels(fields: TextToImageInput | Mapping[str, Any]) -> int | None:
    if isinstance(fields, TextToImageInput):
        return fields.width * fields.height
    width, height = fields.get("width"), fields.get("height")
    if type(width) is int and type(height) is int and width > 0 and height > 0:
        return width * height
    return None


def made_input(item: T, to_input: Callable[[T], Input] | None) -> Any:
    """An item's input; whatever goes wrong in the making is the item's own error.

    Raises:
        InvalidInputError: `to_input` raised something that is no error of this package.
    """
    return item if to_input is None else made_by_user("to_input", to_input, item)


def made_id(item: T, to_id: Callable[[T], str | None] | None) -> str | None:
    """An item's id; None where it has none, and is known by its content.

    Raises:
        InvalidInputError: `to_id` raised something that is no error of this package, or gave no text.
    """
    item_id: object = None if to_id is None else made_by_user("to_id", to_id, item)
    if item_id is None or (isinstance(item_id, str) and item_id):
        return item_id
    raise InvalidInputError(f"to_id must give a text that is not empty, or None; not {item_id!r:.60}")


def made_by_user(name: str, make: Callable[[T], Any], item: T) -> Any:
    """What the user's function makes of an item; whatever it raises is the item's own error.

    Raises:
        InvalidInputError: It raised something that is no error of this package.
    """
    try:
        return make(item)
    except FluxKleinError:
        raise
    except ValidationError as error:
        raise _invalid_input(error) from error
    except Exception as error:
        raise InvalidInputError(f"{name} failed", cause=f"{type(error).__name__}: {error}") from error


SEEN_THROUGH = 5.0  # seconds that an abandoned POST is given to bring its id


async def submit(
    operation: Operation,
    prepared: PreparedRequest,
    *,
    on_abandon: OnAbandon,
    slot: Slot | None = None,
) -> None:
    """Submit one order; then the call knows its id. A refusal for now gives the slot back until the next try.

    Raises:
        SubmissionUncertainError: It may or may not have been accepted.
        FluxKleinError: It was not accepted.
    """
    context = operation.context
    submission = _Submission(operation, prepared, on_abandon, slot)
    reservation = await context.budget.reserve(
        submission.key, prepared.model, lambda model: get_model(operation, model)
    )
    try:
        await submission.write(EntryState.SUBMITTING, item=prepared.item, body=prepared.body, reservation=reservation)
        request_id = await submission.until_accepted()
    except asyncio.CancelledError:
        if not submission.handed_over:
            context.background.queue(submission.refused)
        raise
    except SubmissionUncertainError as error:
        await submission.uncertain(error)
        raise
    except FluxKleinError as error:
        if error.request_id is None:  # else it was accepted, and only writing that down failed
            await submission.refused(error)
        raise
    submission.tell_accepted(request_id)


@dataclass(slots=True)
class _Patience:
    """How often a submit may still be repeated: connections that failed and polite refusals count apart."""

    policy: RetryPolicy
    failures: int = 0
    refusals: int = 0

    def allows(self, error: FluxKleinError) -> bool:
        if refused_for_now(error):
            self.refusals += 1
            limit = self.policy.refused_submits
            return limit is None or self.refusals < limit
        self.failures += 1
        return self.failures < self.policy.attempts


class _Submission:
    """One order on its way, with the key that journal and budget know it by."""

    def __init__(
        self,
        operation: Operation,
        prepared: PreparedRequest,
        on_abandon: OnAbandon,
        slot: Slot | None,
    ) -> None:
        context = operation.context
        self._context = context
        self._operation = operation
        self._prepared = prepared
        self._on_abandon = on_abandon
        self._slot = slot
        self._request = context.api.submit(prepared.model, prepared.body)
        self.key = secrets.token_hex(8)
        self.handed_over = False
        self._accepted_as: str | None = None

    async def write(self, state: EntryState, **facts: Any) -> None:
        """A line for the journal."""
        await self._context.write(state, key=self.key, model=self._prepared.model, **facts)

    async def until_accepted(self) -> str:
        """Attempts, until one is accepted, fails for good, or may have been accepted."""
        patience = _Patience(self._context.retry)
        return await self._context.attempt(
            Kind.SUBMIT,
            self._operation,
            self._attempt,
            allows=lambda error: self._may_repeat(error) and patience.allows(error),
            attempts=None,
        )

    def _may_repeat(self, error: FluxKleinError) -> bool:
        if self._slot is not None and refused_for_now(error):
            self._slot.give()  # the service takes fewer at present: who goes next is decided anew
        return classify(error, self._request) is Verdict.RETRY

    async def _attempt(self) -> str:
        context = self._context
        if self._slot is not None:
            await self._slot.take()
        await context.lane(Kind.SUBMIT, self._operation)
        deadline = self._operation.deadline
        if deadline is not None and context.loop.time() >= deadline:  # nothing is paid for that nobody can wait for
            context.lanes.leave(Kind.SUBMIT)
            raise self._operation.out_of_time(self._operation.last_error)
        guard = BodyGuard()
        post = asyncio.ensure_future(self._post(guard))
        post.add_done_callback(lambda _: context.lanes.leave(Kind.SUBMIT))
        try:
            return await asyncio.shield(post)
        except asyncio.CancelledError:
            self._give_up(post, guard)
            raise

    async def _post(self, guard: BodyGuard) -> str:
        """Send once, read the answer, write the id down: all of it, whether or not somebody still waits."""
        response = None
        try:
            response = await self._context.send(self._request, guard)
            request_id = read_submit(response)
        except FluxKleinError as error:
            if classify(error, self._request) is Verdict.AMBIGUOUS:
                raw = excerpt(response) if response is not None else None
                raise SubmissionUncertainError(raw=raw, cause=str(error)) from error
            raise
        self._accepted_as = request_id
        self._context.budget.accepted(self.key, request_id)
        try:
            await self.write(EntryState.SUBMITTED, request_id=request_id)
        except FluxKleinError as error:
            error.request_id = request_id  # the id must not be lost with the journal
            raise
        return request_id

    # --- ends

    def tell_accepted(self, request_id: str) -> None:
        operation = self._operation
        operation.request_id, operation.submitted = request_id, True
        self._context.emit(
            lambda at: Submitted(
                at=at,
                request_id=request_id,
                tag=operation.tag,
                seconds=at - operation.started,
                model=self._prepared.model,
                call=operation.number,
            )
        )

    async def refused(self, error: FluxKleinError | None = None) -> None:
        """Nothing was accepted: give the money back, and write that down."""
        self._context.budget.release(self.key)
        await self._write_end(EntryState.REFUSED, str(error) if error else None)

    async def uncertain(self, error: BaseException) -> None:
        """It may have been accepted: say so everywhere. The money stays set aside."""
        log.warning("A submit may or may not have been accepted; it is not repeated: %s", error)
        operation = self._operation
        self._context.emit(
            lambda at: Uncertain(
                at=at,
                tag=operation.tag,
                error=str(error),
                seconds=at - operation.started,
                model=self._prepared.model,
                call=operation.number,
            )
        )
        try:
            await self._write_end(EntryState.UNCERTAIN, str(error))
        except FluxKleinError as failure:  # that money may be gone is the graver news
            log.warning("An uncertain submit could not be written down: %s", failure)

    async def _write_end(self, state: EntryState, error: str | None) -> None:
        """How it ended; who is cancelled meanwhile leaves it to the background, or it would stand as under way."""
        try:
            await self.write(state, error=error)
        except asyncio.CancelledError:
            self._context.background.queue(lambda: self.write(state, error=error))
            raise

    def _give_up(self, post: "asyncio.Task[str]", guard: BodyGuard) -> None:
        """The caller is gone: drop the POST if nothing of its body was written, else see it through."""
        if guard.drop():
            post.cancel()
            self._context.background.keep(post)
            return
        self.handed_over = True
        self._operation.uncertain = True
        if self._accepted_as is not None:  # it came in this very instant, or is being written down
            self._operation.request_id, self._operation.submitted = self._accepted_as, True
        self._context.background.start(lambda: self._see_through(post))

    async def _see_through(self, post: "asyncio.Task[str]") -> None:
        timer = self._context.loop.call_later(SEEN_THROUGH, post.cancel)
        stopped: asyncio.CancelledError | None = None
        while not post.done():
            try:
                await asyncio.wait({post})
            except asyncio.CancelledError as error:  # the client closes: first tell what is not known
                stopped = error
                post.cancel()
        timer.cancel()
        await self._after_abandoned(post)
        if stopped is not None:
            raise stopped

    async def _after_abandoned(self, post: "asyncio.Task[str]") -> None:
        error = None if post.cancelled() else post.exception()
        if self._accepted_as is not None:  # whether or not that could be written down
            self.tell_accepted(self._accepted_as)
            abandon(self._context, self._accepted_as, self._on_abandon, self._operation.tag)
            if error is not None:
                raise error
        elif isinstance(error, FluxKleinError) and not isinstance(error, SubmissionUncertainError):
            await self.refused(error)
        else:
            await self.uncertain(error or SubmissionUncertainError(f"No answer within {SEEN_THROUGH:g} s"))


def abandon(context: ClientContext, request_id: str, on_abandon: OnAbandon, tag: object) -> None:
    """Do with a request that nobody waits for as was said: cancel it, or leave it running."""
    if on_abandon == "cancel":
        context.left_running.add(request_id)
        context.background.queue(lambda: cancel_abandoned(context, request_id, tag))
    elif context.closing:
        context.left_running.add(request_id)
