"""The one paid POST: prepared, sent, never repeated unless it was not accepted, never forgotten once it may have been.

The POST runs in a task of its own, so that a cancelled caller does not tear it apart. Before its body began to be
written it is dropped; later it gets 5 s to return its id. This module does not wait for the generation.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from flux_klein_async.api.messages import Kind
from flux_klein_async.api.requests import InputBody, encode_input, file_names, single_values
from flux_klein_async.api.responses import excerpt, read_submit
from flux_klein_async.api.urls import checked_model_id
from flux_klein_async.errors import (
    APITimeoutError,
    FluxKleinError,
    InputRejectedError,
    InvalidInputError,
    InvalidResponseError,
    JournalError,
    NotFoundError,
    SubmissionUncertainError,
)
from flux_klein_async.events import Submitted, Uncertain
from flux_klein_async.journal.states import EntryState
from flux_klein_async.misuse import slip
from flux_klein_async.models import (
    KLEIN_4B_TEXT_TO_IMAGE,
    KLEIN_9B_TEXT_TO_IMAGE,
    Input,
    TextToImage9BInput,
    TextToImageInput,
    findings,
    model_advice,
)
from flux_klein_async.operations.calls import abandon, get_model
from flux_klein_async.operations.context import ClientContext, ignoring_errors, log, wrapping_errors
from flux_klein_async.operations.inputs import read_body
from flux_klein_async.operations.operation import SEEN_THROUGH, Admission, Operation
from flux_klein_async.options import Limits, OnAbandon
from flux_klein_async.text import plain, shown
from flux_klein_async.transport.base import BodyGuard
from flux_klein_async.transport.retry import Verdict, classify, refused_for_now

__all__ = [
    "TYPED",
    "AcceptedRequest",
    "PreparedRequest",
    "from_user",
    "in_thread",
    "made_input",
    "prepare",
    "submit",
]


T = TypeVar("T")
_STILL_ON_TIME = 0.9  # of its timeout: a call that has more left has lost no time in line
_NEARLY_ALL = 0.9  # of the generations: what is left must be enough for so many

_FIELD = 40  # characters of a field's name in a log line
_FIELDS_WITHIN = 10.0  # seconds to read which fields a model has
_MOST_COMPARED = 100  # names of a model's fields, with one that it does not have
_NAMES = {KLEIN_4B_TEXT_TO_IMAGE: "FLUX.2 [klein] 4B", KLEIN_9B_TEXT_TO_IMAGE: "FLUX.2 [klein] 9B"}
_EDIT = "blackforestlabs/flux-2/dev/edit"  # docs/howto/models.md
TYPED: Final = {KLEIN_4B_TEXT_TO_IMAGE: TextToImageInput, KLEIN_9B_TEXT_TO_IMAGE: TextToImage9BInput}


@dataclass(slots=True, kw_only=True)
class PreparedRequest:
    """One submit, ready to be sent once its local files are read.

    Attributes:
        pixels: Width times height, where known.
        asked: The pictures that the input asks for, where it says so.
        unchecked: The names of the fields that are sent without a check.
        item: The journal's name of the item that it is for, once it is claimed.
        item_id: The user's id of that item, or None.
    """

    model: str
    body: InputBody = field(repr=False)
    pixels: int | None
    asked: int | None = None
    unchecked: tuple[str, ...] = field(default=(), repr=False)
    item: str | None = None
    item_id: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedRequest:
    """A request to wait for, and what is known of it beforehand.

    Attributes:
        accepted_at: When it was accepted, on the loop's clock; None for a request that is resumed.
        submit_seconds: How long its submit took, or None.
    """

    request_id: str
    model: str | None = None
    pixels: int | None = None
    asked: int | None = None
    accepted_at: float | None = None
    submit_seconds: float | None = None


# --- from an input to a request


@wrapping_errors("The input", InvalidInputError)  # a lazy Mapping or a path of the user's own may raise anything
def prepare(
    input: Input,  # noqa: A002  # the public name
    *,
    model: str | None,
    width: int | None,
    height: int | None,
    default_model: str,
) -> PreparedRequest:
    """Check an input and encode it.

    A string becomes the typed input of its model; for a model without one it is sent as `{"prompt": ...}` with the
    size where one was given. A Mapping is sent as it is, so that a size beside it is refused, and a local file for a
    model that takes none.

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
        fields = _typed(TYPED.get(model), {"prompt": input, **size})
    elif isinstance(input, TextToImageInput):
        fields = _typed(type(input), {**dict(input), **size}) if size else input
    else:
        raise InvalidInputError(f"An input is a string, a typed input or a Mapping, not {slip(input)}")
    values = fields if isinstance(fields, Mapping) else vars(fields)
    body, typed = encode_input(fields), TYPED.get(model)
    unchecked = () if typed is not None and type(fields) is typed else tuple(values)
    if typed is not None and body.files:  # it would be paid for, and ignored
        name = shown(body.files[0][0][:_FIELD])
        sentence = f"{_NAMES[model]} takes no file; a model that edits is {_EDIT}"
        raise InvalidInputError(f"{name}: {sentence}", fields={name: sentence})
    return PreparedRequest(model=model, body=body, pixels=_pixels(values), asked=_asked(values), unchecked=unchecked)


def _warn_of_unknown_fields(context: ClientContext, prepared: PreparedRequest) -> None:
    """Log each field that the model does not have, once: it is sent, and paid for, as it is.

    The catalogue entry of any but a klein model is read beside its first submit, which does not wait for it.
    """
    model = prepared.model
    typed = TYPED.get(model)
    if typed is None and prepared.unchecked and model not in context.listed_fields:
        context.note_fields(model, ())  # asked for once, whatever comes of it
        context.background.queue(lambda: _read_fields(context, prepared))
    known = context.listed_fields.get(model, ()) if typed is None else typed.model_fields
    for name in prepared.unchecked if known else ():
        if name not in known:
            near = get_close_matches(name[:_FIELD], islice(known, _MOST_COMPARED), n=1)
            hint = f" (did you mean {near[0][:_FIELD]!r}?)" if near else ""
            said = f"{_NAMES[model]} has no field" if typed else f"The catalogue lists for {model} no field"
            context.warn_once(f"{said} {name[:_FIELD]!r}{hint}; it is sent as it is")


async def _read_fields(context: ClientContext, prepared: PreparedRequest) -> None:
    try:
        with Operation(context, _FIELDS_WITHIN, registered=False) as operation:
            await get_model(operation, prepared.model)
    except FluxKleinError as error:
        log.info("The fields of %s are not known, and go as they are: %s", prepared.model, error)
    _warn_of_unknown_fields(context, prepared)


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
    fields = findings(error)
    return InvalidInputError("; ".join(f"{name}: {message}" for name, message in fields.items()), fields=fields)


def _pixels(values: Mapping[str, Any]) -> int | None:
    width, height = values.get("width"), values.get("height")
    return width * height if type(width) is type(height) is int and width > 0 and height > 0 else None


def _asked(values: Mapping[str, Any]) -> int | None:
    count = values.get("num_images")
    return count if type(count) is int and count > 0 else None


def from_user(name: str, make: Callable[[T], Any], item: T) -> Any:
    """Call the user's function on an item; what it raises is the item's own error.

    Raises:
        InvalidInputError: It raised something that is no error of this package.
    """
    with wrapping_errors(name, InvalidInputError):
        try:
            return make(item)
        except ValidationError as error:
            raise _invalid_input(error) from error


def made_input(item: T, to_input: Callable[[T], Input] | None) -> Any:
    """An item's input.

    Raises:
        InvalidInputError: `to_input` raised something that is no error of this package.
    """
    return item if to_input is None else from_user("to_input", to_input, item)


# --- from a request to its id


async def submit(operation: Operation, prepared: PreparedRequest, *, on_abandon: OnAbandon) -> AcceptedRequest:
    """Submit one request; from then on the operation knows its id.

    While a submit is refused for now, the operation's slot is free for others.

    Raises:
        SubmissionUncertainError: It may or may not have been accepted.
        FluxKleinError: It was not accepted.
    """
    context = operation.context
    begun = context.loop.time()
    request_id = await _Submission(operation, prepared, await _body_of(context, prepared.body), on_abandon).run()
    now = context.loop.time()
    return AcceptedRequest(
        request_id=request_id,
        model=prepared.model,
        pixels=prepared.pixels,
        asked=prepared.asked,
        accepted_at=now,
        submit_seconds=now - begun,
    )


async def in_thread(context: ClientContext, job: Callable[[InputBody, Limits], T], body: InputBody) -> T:
    """Run a job of `inputs` on the local files of an input.

    Raises:
        InvalidInputError: A file cannot be sent.
        ConfigurationError: No thread can start.
    """
    try:
        return await context.in_thread(partial(job, body, context.limits))
    except InvalidInputError as error:
        raise error.with_traceback(None) from None  # the frames hold what was read


async def _body_of(context: ClientContext, body: InputBody) -> bytes | memoryview:
    """What is posted; with files in a form that can be released, because the frames of an error keep it too."""
    return memoryview(await in_thread(context, read_body, body)) if body.files else body.template


class _Submission:
    """One submit, with the key that identifies it in the budget, and in the journal each POST of it."""

    def __init__(
        self, operation: Operation, prepared: PreparedRequest, body: bytes | memoryview, on_abandon: OnAbandon
    ) -> None:
        self._context = operation.context
        self._operation = operation
        self._prepared = prepared
        self._on_abandon = on_abandon
        self._request = operation.context.api.submit(prepared.model, body)
        self._posting: asyncio.Future[str] | None = None  # the latest POST
        self._key = secrets.token_hex(8)
        self._intents = 0
        self._intent: str | None = None  # the key of the latest: one that a killed process leaves open is uncertain
        self._failures = self._refusals = 0
        self._accepted_as: str | None = None
        self._handed_over = False  # the background sees the POST through

    async def run(self) -> str:
        try:
            return await self._run()
        finally:
            if self._posting is None or self._posting.done():
                self._release()
            else:
                self._posting.add_done_callback(self._release)

    def _release(self, _: object = None) -> None:
        """Free the body, which may be large and is not sent again, while the generation runs."""
        if isinstance(self._request.body, memoryview):
            self._request.body.release()

    async def _run(self) -> str:
        operation, prepared = self._operation, self._prepared
        self._reservation = await self._context.budget.reserve(
            self._key, prepared.model, lambda model: get_model(operation, model)
        )
        _warn_of_unknown_fields(self._context, prepared)  # a budget may just have read the catalogue
        try:
            request_id = await operation.repeat(
                Kind.SUBMIT, self._attempt, allows=self._judge, attempts=None, before_pause=self._put_off
            )
        except asyncio.CancelledError:
            if not self._handed_over:
                self._context.budget.release(self._key)
                if self._intent is not None:
                    self._context.background.queue(self._close_intent)
            raise
        except SubmissionUncertainError as error:
            await self._uncertain(error)
            raise
        except FluxKleinError as error:
            if error.request_id is None:  # otherwise it was accepted, and only the journal failed
                await self._not_accepted(error)
            if isinstance(error, InputRejectedError):
                recorded = prepared.body.recorded
                error.single, error.file_names = single_values(recorded, error), file_names(recorded, error)
            elif isinstance(error, NotFoundError) and error.request_id is None:
                error.advice = model_advice(prepared.model)
            raise
        self._note_accepted(request_id)
        return request_id

    def _check_time_left(self) -> None:
        """Do not pay for a picture that would come too late, where the call has lost its time in line.

        A timeout that was too short from the start is the caller's own choice.

        Raises:
            FluxKleinError: Nine of ten such generations take longer than what is left.
        """
        operation, quantile = self._operation, getattr(self._context.polling, "quantile", None)
        if operation.deadline is None or quantile is None or not operation.waits:
            return
        left = operation.deadline - self._context.loop.time()
        if left > _STILL_ON_TIME * (operation.deadline - operation.started):
            return
        takes: float | None = None
        with ignoring_errors("The poll policy"):
            takes = quantile(self._prepared.model, self._prepared.pixels, _NEARLY_ALL)
        if takes is not None and left < takes <= operation.deadline - operation.started:
            sentence = f"The turn of the submit came with {left:.1f} s left, and a generation takes up to {takes:.1f} s"
            raise operation.out_of_time(operation.last_error or APITimeoutError(sentence, sent=False))

    async def _write(self, state: EntryState, **facts: Any) -> None:
        await self._context.write(state, key=self._intent, model=self._prepared.model, **facts)

    async def _open_intent(self) -> None:
        """Write down that a POST is about to be sent; each has an intent of its own."""
        self._intents += 1
        self._intent = self._key if self._intents == 1 else f"{self._key}-{self._intents}"
        item, body = self._prepared.item, self._prepared.body.recorded
        await self._write(EntryState.SUBMITTING, item=item, body=body, reservation=self._reservation)

    async def _put_off(self, error: FluxKleinError | None = None) -> None:
        """Write down that the latest POST was not accepted, or not sent, and another one follows."""
        if self._intent is not None:
            await self._write_end(EntryState.REPEATED, str(error) if error else None)

    async def _close_intent(self, error: FluxKleinError | None = None) -> None:
        """Write down that the latest POST was not accepted, or not sent."""
        if self._intent is not None:
            await self._write_end(EntryState.REFUSED, str(error) if error else None)

    def _judge(self, error: FluxKleinError) -> bool:
        """Count a failure, and give the slot back at a refusal for now; whether to repeat: it was not accepted.

        Failed connections and refusals for now have limits of their own.
        """
        policy = self._context.retry
        if refused_for_now(error):
            if self._operation.slot is not None:
                self._operation.slot.give()  # the service takes fewer now: the next in line may try
            self._refusals += 1
            return policy.refused_submits is None or self._refusals < policy.refused_submits
        self._failures += 1
        return self._failures < policy.attempts and classify(error, self._request) is Verdict.RETRY

    async def _attempt(self) -> str:
        """POST once, when it may; no intent is open while it waits."""
        operation = self._operation
        while True:
            async with operation.admission(Kind.SUBMIT) as admission:
                self._check_time_left()
                await self._open_intent()
                if not operation.held(Kind.SUBMIT):  # else a hold came meanwhile
                    return await self._send(admission)
            await self._put_off()

    async def _send(self, admission: Admission) -> str:
        operation = self._operation
        if operation.deadline is not None and self._context.loop.time() >= operation.deadline:
            raise operation.out_of_time(operation.last_error)  # too late to wait for anything
        guard = BodyGuard()
        operation.drop_post = guard.drop  # before the task, which may begin eagerly
        self._posting = post = self._context.loop.create_task(self._post(guard), name="flux_klein_async submit")
        tell_end = operation.on_post() if operation.on_post is not None else None
        try:
            request_id = await asyncio.shield(post)
        except asyncio.CancelledError:
            admission.outlived_by(post)
            self._give_up(post, guard)
            raise
        except FluxKleinError as error:
            if tell_end is not None:
                tell_end(error)  # before the connection goes to the next submit
            raise
        finally:
            operation.drop_post = None
        if tell_end is not None:
            tell_end(None)
        return request_id

    async def _post(self, guard: BodyGuard) -> str:
        """Send once, read the answer, write the id down: all of it, even if nobody waits any more."""
        response = None
        try:
            response = await self._context.send(self._request, guard)
            request_id = read_submit(response)
            if not self._context.known_ids.take(request_id):
                raise InvalidResponseError(f"The service gave the id of another submit: {request_id}")
        except FluxKleinError as error:
            if classify(error, self._request) is Verdict.AMBIGUOUS:
                raw = excerpt(response) if response is not None else None
                raise SubmissionUncertainError(raw=raw, cause=str(error)) from error
            raise
        self._accepted_as, self._operation.accepted = request_id, True
        self._context.budget.accepted(self._key, request_id)
        try:
            await self._write(EntryState.SUBMITTED, request_id=request_id)
        except FluxKleinError as error:
            if isinstance(error, JournalError) and error.request_id is None and error.charged == "unknown":
                self._accepted_as = None  # the journal knows another submit by this id
                raise SubmissionUncertainError(raw=excerpt(response), cause=str(error)) from error
            error.request_id = request_id  # the id must not be lost with the journal
            raise
        return request_id

    # --- ends

    @property
    def _tagged(self) -> str:
        """The tag of the call, or the id of the item or else its index, for a log line."""
        tag, item_id = self._operation.tag, self._prepared.item_id
        if item_id is not None:
            return f" (item {plain(item_id)})"
        return "" if tag is None else f" ({'item' if type(tag) is int else 'tag'} {plain(tag)})"

    def _tell(self, kind: type[Submitted | Uncertain], **facts: Any) -> None:
        operation = self._operation
        operation.emit(kind, seconds=operation.elapsed, model=self._prepared.model, call=operation.number, **facts)

    def _note_accepted(self, request_id: str) -> None:
        self._operation.request_id, self._operation.submitted = request_id, True
        self._tell(Submitted)

    async def _not_accepted(self, error: FluxKleinError | None = None) -> None:
        """It was not accepted: give the money back, and write that down."""
        self._context.budget.release(self._key)
        await self._close_intent(error)

    async def _uncertain(self, error: BaseException) -> None:
        """It may have been accepted: say so everywhere. The money stays reserved."""
        log.warning("%s%s", error, self._tagged)
        self._tell(Uncertain, error=str(error))
        try:
            await self._write_end(EntryState.UNCERTAIN, str(error))
        except FluxKleinError as failure:  # that money may be gone is the graver news
            log.warning("An uncertain submit%s could not be written down: %s", self._tagged, failure)

    async def _write_end(self, state: EntryState, error: str | None) -> None:
        """Write how it ended. If cancelled here, finish in the background; otherwise it would stay "submitting"."""
        write = partial(self._context.write, state, key=self._intent, model=self._prepared.model, error=error)
        try:
            await write()
        except asyncio.CancelledError:
            self._context.background.queue(write)
            raise

    def _give_up(self, post: "asyncio.Task[str]", guard: BodyGuard) -> None:
        """The caller is gone: drop the POST if none of its body was written, otherwise see it through."""
        if guard.drop():
            post.cancel()
            self._context.background.keep(post)
            return
        self._handed_over = True
        self._operation.uncertain = True
        if self._accepted_as is not None:  # it came in this very instant, or is being written down
            self._operation.request_id, self._operation.submitted = self._accepted_as, True
        self._context.background.start(lambda: self._see_through(post))

    async def _see_through(self, post: "asyncio.Task[str]") -> None:
        """Wait for an abandoned POST; then abandon its request, or report that it is refused or uncertain.

        It gets 5 s from now, or from the stop of a call that was stopped: a later id would contradict its outcome.
        """
        loop, begun = self._context.loop, self._operation.stopped_at
        if begun is None or self._accepted_as is not None:  # the id is known, and needs time to be written down
            begun = loop.time()
        timer = loop.call_at(begun + SEEN_THROUGH, post.cancel)
        stopped: asyncio.CancelledError | None = None
        while not post.done():
            try:
                await asyncio.wait({post})
            except asyncio.CancelledError as error:  # the client closes: first report what is not known
                stopped = error
                post.cancel()
        timer.cancel()
        failure = None if post.cancelled() else post.exception()
        if self._accepted_as is not None:  # whether or not it could be written down
            self._note_accepted(self._accepted_as)
            abandon(self._operation, self._accepted_as, self._on_abandon)
            if failure is not None:
                raise failure
        elif isinstance(failure, FluxKleinError) and not isinstance(failure, SubmissionUncertainError):
            await self._not_accepted(failure)
        else:
            late = f"The submit was not answered within {SEEN_THROUGH:g} s"
            await self._uncertain(failure or SubmissionUncertainError(late))
        if stopped is not None:
            raise stopped
