"""`FluxKleinClient`: checks what it is given, wires the parts together, and leaves each verb to `operations`."""

import asyncio
import functools
import inspect
import os
import time
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from flux_klein_async.api.credentials import Redactor, Secret, find_token
from flux_klein_async.api.requests import Api
from flux_klein_async.api.urls import ApiUrls, checked_model_id, checked_request_id
from flux_klein_async.errors import ConfigurationError, InvalidInputError
from flux_klein_async.events import Event
from flux_klein_async.journal.base import AccountJournal, ItemJournal, Journal, NoBudget, SpendingLimit
from flux_klein_async.misuse import (
    NotWith,
    arguments_of,
    function_problem,
    named_arguments,
    refuse_unknown,
    refuse_unnamed,
    slip,
)
from flux_klein_async.models import (
    KLEIN_4B_TEXT_TO_IMAGE,
    CancelOutcome,
    GenerationResult,
    Input,
    ModelInfo,
    Outcome,
    RequestStatus,
)
from flux_klein_async.operations import calls, download
from flux_klein_async.operations.context import ClientContext, guarded
from flux_klein_async.operations.fanout import FanOut
from flux_klein_async.operations.files import FileBytes, SavedPaths
from flux_klein_async.operations.items import ItemRunner
from flux_klein_async.operations.names import looks_like_file
from flux_klein_async.operations.operation import Operation
from flux_klein_async.operations.submit import (
    AcceptedRequest,
    PreparedRequest,
    from_user,
    made_input,
    prepare,
    submit,
)
from flux_klein_async.operations.wait import Updates, wait
from flux_klein_async.options import DEFAULT, Limits, OnAbandon, RetryPolicy, Timeout, checked_timeout, from_environ
from flux_klein_async.paths import user_path
from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.policies import PollPolicy, SavedPolicy
from flux_klein_async.transport.aiohttp import AiohttpTransport
from flux_klein_async.transport.retry import Backoff
from flux_klein_async.transport.throttle import InProcessLimiter, Lanes, Limiter, SharedLimiter, Slot

if TYPE_CHECKING:
    import aiohttp

__all__ = ["FluxKleinClient", "RequestHandle"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_OnStatus = Callable[[RequestStatus], object]


# Arguments that a client or a verb does not have, and what to write instead.
_ELSEWHERE = {
    **{name: f"Write FluxKleinClient(limits=Limits({name}=...))" for name in Limits.__dataclass_fields__},
    **{name: f"Write FluxKleinClient(retry=RetryPolicy({name}=...))" for name in RetryPolicy.__dataclass_fields__},
    **dict.fromkeys(("max_retries", "retries"), "Write FluxKleinClient(retry=RetryPolicy(attempts=...))"),
    **dict.fromkeys(("concurrency", "max_concurrency"), "Write FluxKleinClient(limits=Limits(max_in_flight=...))"),
    **dict.fromkeys(("token", "key", "api_token", "access_token"), "Write FluxKleinClient(api_key=...)"),
    "max_usd": "Write FluxKleinClient(budget=Budget(max_usd))",
    **{
        name: f"The journal submits what an earlier run left, and you pay again: SqliteJournal(path, {name}=True)"
        for name in ("retry_failed", "resubmit_uncertain")
    },
    **{
        name: f"Write client.generate(..., {name}=...)"
        for name in ("width", "height", "on_abandon", "on_status", "tag")
    },
    **{name: f"Write client.generate_many(..., {name}=...)" for name in ("ordered", "to_id", "to_input", "to_name")},
    **dict.fromkeys(
        ("directory", "output", "output_dir", "path"),
        "One picture is saved by client.download(result, directory); generate_many and generate_all take directory=",
    ),
    **dict.fromkeys(
        ("names", "name", "filename"),
        "Files are named by names=['cat.png'] of download, and by to_name= of generate_many and generate_all",
    ),
    **dict.fromkeys(("progress", "on_progress"), "Write FluxKleinClient(on_event=...), or count the outcomes"),
    "prompt": "The prompt is the first argument: generate('a snow leopard')",
    **dict.fromkeys(("n", "num_images"), "A request makes one picture: generate_many and generate_all make many"),
    "size": "The sides are width= and height=, in pixels",
}

# Of the verbs that take many items.
_ELSEWHERE_MANY = {
    **dict.fromkeys(("key", "id", "ids", "to_key"), "An item's stable id is to_id=lambda item: ..."),
    **dict.fromkeys(("max_concurrency", "workers"), "How many items are worked on at a time is concurrency="),
    "return_exceptions": "No item's error is raised: each is in outcome.error",
}

_OF_THE_INPUT = (
    "FLUX.2 [klein] takes a prompt, a width and a height; the fields of another model go into the input: "
    "{{'prompt': ..., {name!r}: ...}}"
)


def _explained(method: F) -> F:
    """A verb whose TypeError for an argument that it does not have, such as `seed=`, says where that goes."""
    if TYPE_CHECKING:
        return method
    known = arguments_of(method)

    def check(arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not named.keys() <= known:
            parts = {name: f"Write FluxKleinClient({name}=...)" for name in arguments_of(FluxKleinClient.__init__)}
            otherwise = _OF_THE_INPUT if "width" in known else ""
            many = _ELSEWHERE_MANY if "to_id" in known else {}
            refuse_unknown(method.__qualname__, known, named, {**parts, **_ELSEWHERE, **many}, otherwise)
        if len(arguments) > 2:  # the client and the input
            refuse_unnamed(method.__qualname__, method, len(arguments) - 1)

    if inspect.iscoroutinefunction(method):

        async def called(*arguments: Any, **named: Any) -> Any:
            check(arguments, named)
            return await method(*arguments, **named)

    else:

        def called(*arguments: Any, **named: Any) -> Any:
            check(arguments, named)
            return method(*arguments, **named)

    return functools.wraps(method)(called)


class RequestHandle:
    """An accepted request, submitted by this client or by another process.

    Passive: dropping it leaves the request as it is. `request_id` is all you need to resume the request, while the
    service keeps it (7 days).
    """

    __slots__ = ("_accepted", "_client")

    def __init__(self, client: "FluxKleinClient", request_id: str) -> None:
        self._client = client
        self._accepted = AcceptedRequest(request_id=_id_of(request_id))

    @property
    def request_id(self) -> str:
        """The service's id of this request."""
        return self._accepted.request_id

    def __repr__(self) -> str:
        return f"RequestHandle({self.request_id!r})" if hasattr(self, "_accepted") else "<RequestHandle not made>"

    async def status(self, *, timeout: Timeout = DEFAULT) -> RequestStatus:
        """As `FluxKleinClient.status`.

        Raises:
            FluxKleinError: As there.
        """
        return await self._client.status(self, timeout=timeout)

    async def result(self, *, timeout: Timeout = DEFAULT) -> GenerationResult:
        """As `FluxKleinClient.result`.

        Raises:
            FluxKleinError: As there.
        """
        return await self._client.result(self, timeout=timeout)

    async def cancel(self, *, timeout: Timeout = DEFAULT) -> CancelOutcome:
        """As `FluxKleinClient.cancel`.

        Raises:
            FluxKleinError: As there.
        """
        return await self._client.cancel(self, timeout=timeout)

    async def wait_for_result(
        self, *, timeout: Timeout = DEFAULT, on_abandon: OnAbandon = "leave", on_status: _OnStatus | None = None
    ) -> GenerationResult:
        """As `FluxKleinClient.wait_for_result`.

        Raises:
            FluxKleinError: As there.
        """
        return await self._client.wait_for_result(self, timeout=timeout, on_abandon=on_abandon, on_status=on_status)

    def updates(self, *, timeout: Timeout = DEFAULT) -> AsyncIterator[RequestStatus]:
        """As `FluxKleinClient.updates`."""
        return self._client.updates(self, timeout=timeout)


@named_arguments(_ELSEWHERE)
class FluxKleinClient(NotWith):
    """An asyncio client of RunComfy's Model API, made for FLUX.2 [klein] 4B text to image.

    One client belongs to one event loop, opens its HTTP session at the first call, and serves any number of tasks.

    Args:
        api_key: The token. None: RUNCOMFY_API_TOKEN, RUNCOMFY_TOKEN, RUNCOMFY_API_KEY, then the vendor CLI's file.
        base_url: None: RUNCOMFY_MODEL_API_BASE, then the service's own.
        model: The model that `submit` and `generate*` run by default.
        timeout: Seconds for each call as a whole (120); None is no limit. `DEFAULT` in a call means this value.
        limits: How much at once, and how large; `RedisLimiter(url)`, for all processes of an
            account; or your own `Limiter`. None: `Limits()`.
        polling: When to poll; None: `AdaptivePolling()`, which learns how long generations take.
        retry: How calls are repeated where that is safe; None: `RetryPolicy()`.
        session: A session to borrow. It is never closed, and may have no credentials. Its connections get the same
            checks as our own, and socket options that notice a dead path; a sleep of the machine is noticed on a
            connection that this client has used before. How connections are made is the session's affair: the call has
            30 s, and the time of its answer, to obtain one.
        journal: Where requests are recorded (`SqliteJournal`, `PostgresJournal`); None: nowhere. The client does not
            close it.
        budget: What bounds the spending (`Budget`); None: nothing.
        on_event: A plain function that receives each `Event`; if it raises, that is logged and ignored.
        allow_insecure: Allow plain http to another machine, which sends the token in clear.
        trust_env: Take the proxy for https (HTTPS_PROXY, ALL_PROXY, NO_PROXY) and the certificate authorities
            (SSL_CERT_FILE, SSL_CERT_DIR) from the environment, once, now. Plain http and loopback hosts never go
            through a proxy, and netrc is never used. A borrowed session's own `trust_env` counts instead.
        poll_endpoint: What a wait polls. "result" saves a round trip if the service answers it before the end with the
            state; if it does not, the client falls back to "status". Early results tell no queue position, which
            makes polls in a long queue less exact.

    Raises:
        ConfigurationError: No token, a bad base URL, an unusable session, proxy or certificate file.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        model: str = KLEIN_4B_TEXT_TO_IMAGE,
        timeout: float | None = 120.0,
        limits: Limits | Limiter | None = None,
        polling: PollPolicy | None = None,
        retry: RetryPolicy | None = None,
        session: "aiohttp.ClientSession | None" = None,
        journal: Journal | None = None,
        budget: SpendingLimit | None = None,
        on_event: Callable[[Event], None] | None = None,
        allow_insecure: bool = False,
        # True, as in pip, curl, requests and httpx: a proxy that is set for all of them must work here too.
        trust_env: bool = True,
        poll_endpoint: Literal["status", "result"] = "status",
    ) -> None:
        environment = from_environ(os.environ)
        try:
            secret = Secret(find_token(api_key, environment, wall_clock=time.time))
        except ConfigurationError as error:
            raise error.with_traceback(None) from None  # the frames hold what was found
        finally:
            del api_key  # whatever raises from here on, no variable shows the token
        if limits is None or isinstance(limits, Limits):
            settings = limits or Limits()
            limiter: Limiter = InProcessLimiter(settings)
        else:
            settings = limits.limits if isinstance(limits, SharedLimiter) else Limits()
            limiter = guarded(limits, "The limiter")
        addresses = ApiUrls(
            environment.base_url if base_url is None else base_url,
            allow_insecure=allow_insecure,
            file_hosts=settings.file_hosts,
        )
        retry = retry or RetryPolicy()
        self._model = checked_model_id(model)
        self._timeout = checked_timeout(timeout, None)
        self._max_in_flight = settings.max_in_flight
        self._halt_after = settings.halt_after
        if poll_endpoint not in ("status", "result"):  # a tuple: unhashable values are refused too
            raise ConfigurationError('poll_endpoint must be "status" or "result"')
        if not isinstance(retry, RetryPolicy):
            raise ConfigurationError("retry must be a RetryPolicy, such as RetryPolicy(attempts=3)")
        _check_parts(limits=limits, polling=polling, journal=journal, budget=budget)
        if (problem := function_problem(on_event, "a function of one event, such as print")) is not None:
            raise ConfigurationError(f"on_event {problem}")
        policy = polling or AdaptivePolling()
        redactor = Redactor(secret.text)
        transport = AiohttpTransport(
            limits=settings,
            redactor=redactor,
            session=session,
            environment=environment if trust_env or session is not None else None,
            origin=addresses.origin,
        )
        self._context = ClientContext(
            api=Api(addresses, secret.text),
            transport=transport,
            lanes=Lanes(transport.connections),
            redact=redactor.text,
            polls_result=poll_endpoint == "result",
            limiter=limiter,
            shared=limits if isinstance(limits, SharedLimiter) else None,
            polling=policy,
            learning=policy if isinstance(policy, SavedPolicy) else None,
            retry=retry,
            journal=journal.for_account(secret.text, addresses.service)
            if isinstance(journal, AccountJournal)
            else journal,
            budget=NoBudget() if budget is None else guarded(budget, "The budget"),
            on_event=on_event,
            backoff=Backoff(retry),
            max_file_bytes=settings.max_file_bytes,
            limits=settings,
        )
        self._closing: asyncio.Task[tuple[str, ...]] | None = None

    def __repr__(self) -> str:
        if not hasattr(self, "_context"):
            return "<FluxKleinClient not made>"
        state = "closed" if self._context.closing else "open"
        return f"<FluxKleinClient {self._context.api.urls.origin} {state}>"

    # --- one request

    @_explained
    async def submit(
        self,
        input: Input,  # noqa: A002
        *,
        model: str | None = None,
        width: int | None = None,
        height: int | None = None,
        timeout: Timeout = DEFAULT,
        tag: object = None,
    ) -> RequestHandle:
        """Submit one input: one accepted POST at most, and it costs money.

        Args:
            input: A prompt, a typed input, or a Mapping that is sent as it is. A `pathlib.Path` as a value of a Mapping
                or in a list is a local file: its bytes, read in a thread, are sent (`Limits` says how many).
            model: The model's id; None: the client's model (a typed input of another model names its own).
            width: Pixels, 64 to 2048; None: the model's default (1024).
            height: Pixels, 64 to 2048; None: likewise.
            timeout: Seconds for the submit with its repeats; None is no limit, `DEFAULT` the client's.
            tag: Any object; the events of this call carry it.

        Returns:
            The accepted request. Keep its `request_id`: it is all you need to resume the request.

        Raises:
            InvalidInputError: Refused here; nothing was sent.
            APIStatusError: Refused by the service.
            SubmissionUncertainError: It may or may not have been accepted.
            APIConnectionError: Nothing was sent (`APITimeoutError` is one of its kinds).
            BudgetExceededError, JournalError: Nothing was sent; or the id is in the `JournalError`.
        """
        prepared = self._prepared(input, model, width, height)
        operation = self._operation(timeout, tag=tag)
        with operation.reporting("submit", prepared.model), operation:
            accepted = await submit(operation, prepared, on_abandon="cancel")
        handle = RequestHandle(self, accepted.request_id)
        handle._accepted = accepted  # noqa: SLF001  # its model, and when it was accepted
        return handle

    async def status(self, request: str | RequestHandle, *, timeout: Timeout = DEFAULT) -> RequestStatus:
        """Ask once where a request stands.

        Raises:
            APIStatusError, APIConnectionError, InvalidResponseError: After the last attempt.
        """
        request_id = _id_of(request)
        with self._operation(timeout, request_id=request_id) as operation:
            return await calls.status(operation, request_id)

    async def result(self, request: str | RequestHandle, *, timeout: Timeout = DEFAULT) -> GenerationResult:
        """Fetch the result of a request that has ended, as the service has it.

        One that completed without a file is returned too: its `urls` is empty, and `raw` is what the service says.
        Budget and journal learn its cost and its end.

        Raises:
            ResultNotReadyError: It has not ended.
            GenerationFailedError, GenerationCancelledError: It ended so.
            JournalError: The end could not be written.
            APIStatusError, APIConnectionError, InvalidResponseError: After the last attempt.
        """
        accepted = self._accepted(request)
        with self._operation(timeout, request_id=accepted.request_id) as operation:
            return await calls.result(operation, accepted.request_id, accepted.asked)

    async def cancel(self, request: str | RequestHandle, *, timeout: Timeout = DEFAULT) -> CancelOutcome:
        """Cancel a queued request; a running one continues and is charged.

        Raises:
            APIStatusError, APIConnectionError: After the last attempt.
            InvalidResponseError: The answer does not say whether it was cancelled.
        """
        request_id = _id_of(request)
        with self._operation(timeout, request_id=request_id) as operation:
            return await calls.cancel(operation, request_id)

    async def wait_for_result(
        self,
        request: str | RequestHandle,
        *,
        timeout: Timeout = DEFAULT,
        on_abandon: OnAbandon = "leave",
        on_status: _OnStatus | None = None,
    ) -> GenerationResult:
        """Poll until a request ends, then fetch its result.

        Args:
            request: The request, or its id.
            timeout: Seconds for polling and fetching together.
            on_abandon: When the deadline passes or the task is cancelled: "cancel" asks the service to cancel,
                "leave" sends nothing.
            on_status: A plain function that receives each change of state or queue position that a poll sees (the
                default policy polls when a result is likely; `FixedPolling` steadily). If it raises, the call ends with
                that exception, and the request is treated as `on_abandon` says.

        Raises:
            WaitTimeoutError: The deadline passed; the request can be resumed.
            GenerationFailedError, GenerationCancelledError: It ended so; or it completed, and is charged ("yes"),
                without a file; or for 10 s status and result held an error beside a state that nobody documented.
            APIStatusError: The service refused every poll for 10 s.
            NotFoundError: Likewise, or until an earlier deadline if it never knew the request, nor this client.
            ResultNotReadyError: "completed", yet for 10 s the result said "not yet".
        """
        accepted = self._accepted(request)
        _check_options(on_abandon, on_status=on_status)
        operation = self._operation(timeout, request_id=accepted.request_id, waits=True)
        with operation.reporting("wait_for_result", accepted.model), operation:
            return await wait(operation, accepted, on_abandon=on_abandon, on_status=on_status)

    @_explained
    async def generate(
        self,
        input: Input,  # noqa: A002
        *,
        model: str | None = None,
        width: int | None = None,
        height: int | None = None,
        timeout: Timeout = DEFAULT,
        on_abandon: OnAbandon = "cancel",
        on_status: _OnStatus | None = None,
        tag: object = None,
    ) -> GenerationResult:
        """Submit one input and wait for its result, in one of the `max_in_flight` slots.

        Args:
            input: A prompt, a typed input, or a Mapping that is sent as it is. A `pathlib.Path` as a value of a Mapping
                or in a list is a local file: its bytes, read in a thread, are sent (`Limits` says how many).
            model: The model's id; None: the client's model (a typed input of another model names its own).
            width: Pixels, 64 to 2048; None: the model's default (1024).
            height: Pixels, 64 to 2048; None: likewise.
            timeout: Seconds for the slot, the submit, the wait, repeats and the fetch together.
            on_abandon: When the deadline passes or the task is cancelled: "cancel" asks the service to cancel,
                "leave" sends nothing.
            on_status: A plain function that receives each change of state or queue position that a poll sees (the
                default policy polls when a result is likely; `FixedPolling` steadily). If it raises, the call ends with
                that exception, and the request is treated as `on_abandon` says.
            tag: Any object; the events of this generation carry it.

        Raises:
            InvalidInputError: Refused here; nothing was sent.
            SubmissionUncertainError: The submit may or may not have been accepted.
            FluxKleinError: As `submit` and `wait_for_result`.
        """
        prepared = self._prepared(input, model, width, height)
        _check_options(on_abandon, on_status=on_status)
        operation = self._operation(timeout, tag=tag, waits=True)
        # Reporting outside: it reports the error that the operation makes of a cancellation.
        with operation.reporting("generate", prepared.model), operation:
            async with Slot(self._context.limiter) as operation.slot:
                accepted = await submit(operation, prepared, on_abandon=on_abandon)
                return await wait(operation, accepted, on_abandon=on_abandon, on_status=on_status)

    def handle(self, request_id: str) -> RequestHandle:
        """Resume a request that was submitted earlier, by any process.

        Raises:
            InvalidInputError: It is no request id.
        """
        handle = RequestHandle(self, request_id)
        self._context.known_ids.take(handle.request_id)  # no later submit can be it
        return handle

    def updates(self, request: str | RequestHandle, *, timeout: Timeout = DEFAULT) -> AsyncIterator[RequestStatus]:
        """Iterate over the changes of state or queue position; the final `RequestStatus` comes last.

        The iterator raises what `wait_for_result` raises, except for a documented end of the generation.
        """
        return Updates(self._context, self._accepted(request), checked_timeout(timeout, self._timeout))

    # --- many

    @_explained
    def generate_many(
        self,
        items: Iterable[T] | AsyncIterable[T],
        *,
        model: str | None = None,
        width: int | None = None,
        height: int | None = None,
        concurrency: int | None = None,
        ordered: bool = False,
        to_input: Callable[[T], Input] | None = None,
        to_id: Callable[[T], str | int | None] | None = None,
        timeout: Timeout = DEFAULT,
        on_abandon: OnAbandon = "cancel",
        directory: str | os.PathLike[str] | None = None,
        to_name: Callable[[T], str | int] | None = None,
    ) -> FanOut[T]:
        """Generate for many items: an async context manager that gives an async iterator of `Outcome`.

        Args:
            items: Inputs, or anything that `to_input` turns into inputs; read only as there is room.
            model: The model's id; None: the client's model.
            width: Pixels, 64 to 2048, of items that are prompts or typed inputs.
            height: Pixels, 64 to 2048, likewise.
            concurrency: Items under way at once, downloads included; the client's `max_in_flight` bounds the
                generations among them. None: `max_in_flight`, with `directory` twice that.
            ordered: Give outcomes in the order of the items instead of as they finish.
            to_input: Maps an item to its input.
            to_id: Maps an item to the stable id that a journal uses to recognise it. None: by its content (as JSON, in
                whatever order its keys are), and by how often the same content came before it. Without a journal it
                has no effect, which is logged once.
            timeout: Seconds for each item, from when it has its slot, without the time in which it waits for a slot
                again after a refusal, for its submit's turn, or before its first submit for the end of a `Retry-After`.
                After its own refusal that counts (at most 120 s). With `directory`, as many again for the files.
            on_abandon: What to do with an item's request when the fan-out is left or its deadline passes.
            directory: Where each item's files are saved, while other items generate. If they cannot be saved, the
                outcome is a `DownloadError` with the id to fetch the result again. If nothing can be written there,
                nothing is submitted (`ConfigurationError`).
            to_name: Maps an item to the name of its files, one plain file name; the suffix is that of the content, and
                not written twice. Several files, and files whose
                name is taken, get `-2`, `-3`; none is replaced. None: the request id.

        Raises:
            InvalidInputError: `items` is one input instead of many, or an option is invalid.
            ConfigurationError, AuthenticationError, PermissionDeniedError, InsufficientBalanceError,
                BudgetExceededError, JournalError: From the iterator, after the outcomes of the items under way: every
                further submit would fail the same way.
            FanOutHaltedError: Likewise: too many in a row may have been charged for nothing (`Limits.halt_after`).
        """
        _check_options(on_abandon, to_input=to_input, to_id=to_id, to_name=to_name)
        if to_name is not None and directory is None:
            raise InvalidInputError("to_name names files, and none is saved: write directory= too")
        seconds = checked_timeout(timeout, self._timeout)
        if concurrency is None:
            concurrency = self._max_in_flight * (1 if directory is None else 2)
        if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
            raise InvalidInputError(
                f"concurrency must be a whole number of at least 1, or None, not {concurrency!r:.40}"
            )
        unused = None if isinstance(self._context.journal, ItemJournal) else to_id

        def prepared(item: T) -> PreparedRequest:
            if unused is not None and from_user("to_id", unused, item) is not None:
                self._context.warn_once(
                    "to_id has no effect without a journal that recognises items, such as SqliteJournal(path)"
                )
            return self._prepared(made_input(item, to_input), model, width, height)

        runner = ItemRunner(
            self._context,
            prepared,
            to_id,
            to_name,
            timeout=seconds,
            on_abandon=on_abandon,
            directory=None if directory is None else _checked_directory(directory, "to_name="),
            halt_after=self._halt_after,
        )
        return FanOut(
            items,
            runner.make,
            concurrency=concurrency,
            ordered=ordered,
            on_stop=runner.stop,
            halted_by=runner.halted_by,
            unanswered=runner.unanswered,
        )

    @_explained
    async def generate_all(
        self,
        items: Iterable[T] | AsyncIterable[T],
        *,
        model: str | None = None,
        width: int | None = None,
        height: int | None = None,
        concurrency: int | None = None,
        ordered: bool = False,
        to_input: Callable[[T], Input] | None = None,
        to_id: Callable[[T], str | int | None] | None = None,
        timeout: Timeout = DEFAULT,
        on_abandon: OnAbandon = "cancel",
        directory: str | os.PathLike[str] | None = None,
        to_name: Callable[[T], str | int] | None = None,
    ) -> list[Outcome[T]]:
        """Generate for many items, as `generate_many` does, and return the outcomes in the order of the items.

        Raises:
            InvalidInputError: As `generate_many`. An item's own error is its outcome; an error that dooms every
                further submit is the outcome of every item that was not submitted. With a journal, what an earlier run
                submitted is waited for all the same, where only the money is at its end.
        """
        fan_out = self.generate_many(
            items,
            model=model,
            width=width,
            height=height,
            concurrency=concurrency,
            ordered=ordered,
            to_input=to_input,
            to_id=to_id,
            timeout=timeout,
            on_abandon=on_abandon,
            directory=directory,
            to_name=to_name,
        )
        return await fan_out.all()

    # --- files and catalogue

    async def get_model(self, model: str | None = None, *, timeout: Timeout = DEFAULT) -> ModelInfo:
        """A model's catalogue entry, with its price; None: the client's model.

        Raises:
            NotFoundError: There is no such model.
            FluxKleinError: As `status`.
        """
        model = checked_model_id(model or self._model)
        with self._operation(timeout) as operation:
            return await calls.get_model(operation, model)

    def list_models(self, *, search: str | None = None, category: str | None = None) -> AsyncIterator[ModelInfo]:
        """Iterate over the catalogue: `async for model in client.list_models(search="flux edit")`.

        Pages are fetched as they are needed, each within the client's timeout. Most entries come without their
        `input_schema`, which `get_model` has. The iterator raises what `get_model` raises, and `InvalidResponseError`
        where the pages contradict themselves or do not end; each model comes once.

        Args:
            search: What the service searches for in ids and names; None: everything.
            category: A category such as `text-to-image` (`ModelInfo.categories`); None: all of them.

        Raises:
            InvalidInputError: `search` or `category` is no text.
        """
        return calls.ModelList(self._context, self._timeout, search, category)

    @_explained
    async def download(
        self,
        result: GenerationResult,
        directory: str | os.PathLike[str],
        *,
        names: Sequence[str] | None = None,
        timeout: Timeout = DEFAULT,
    ) -> list[Path]:
        """Save every file of a result in a directory, which is made if it does not exist.

        In a notebook, the returned list shows itself as the pictures.

        Args:
            result: What to save.
            directory: Where to save. Nothing is written outside of it, no matter what the URLs say.
            names: A plain file name for each file, with the suffix of its content or none; a file of that name is
                replaced. None: the request id and a suffix by content.
            timeout: Seconds for all files together; None is no limit.

        Raises:
            DownloadError: A file could not be downloaded or saved, or its name has the suffix of another format;
                nothing of it is left behind.
            InvalidInputError: `names` are not plain file names, one for each file; or `directory` looks like a file.
        """
        operation = self._operation(timeout, request_id=_checked_result(result).request_id)
        place = _checked_directory(directory, "names=[...]")
        return SavedPaths(file.path for file in await download.save(operation, result, place, names))

    @_explained
    async def download_bytes(self, result: GenerationResult, *, timeout: Timeout = DEFAULT) -> list[FileBytes]:
        """Every file of a result, in memory: bytes with a `media_type` and a `suffix`, by their content.

        Raises:
            DownloadError: A file could not be downloaded.
            InvalidInputError: It is no result.
        """
        operation = self._operation(timeout, request_id=_checked_result(result).request_id)
        return await download.read(operation, result)

    # --- closing

    async def aclose(self, *, drain: float | None = 0.0) -> tuple[str, ...]:
        """Close the client; closing again gives the same answer.

        Args:
            drain: Seconds to wait for calls under way (None: until they end); then they end with
                `ClientClosedError`. Closing takes at most 5 s more.

        Returns:
            The ids of requests that may still run with nobody waiting for them.
        """
        if self._closing is None:
            seconds = checked_timeout(drain, None, "drain")
            self._context.bind()
            self._context.closing = True
            self._closing = asyncio.ensure_future(self._context.aclose(seconds))
        return await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        self._context.bind()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        context: ClientContext | None = getattr(self, "_context", None)  # None: the constructor raised
        if context is not None and context.opened and not context.closing:
            warnings.warn(
                f"Unclosed {self!r}: use `async with` or await aclose()", ResourceWarning, stacklevel=2, source=self
            )
            context.transport.abandon()

    # --- inside

    def _prepared(self, input: Any, model: str | None, width: int | None, height: int | None) -> PreparedRequest:  # noqa: A002
        return prepare(input, model=model, width=width, height=height, default_model=self._model)

    def _operation(
        self, timeout: Timeout, *, request_id: str | None = None, tag: object = None, waits: bool = False
    ) -> Operation:
        seconds = checked_timeout(timeout, self._timeout)
        return Operation(self._context, seconds, request_id=request_id, tag=tag, waits=waits)

    def _accepted(self, request: str | RequestHandle) -> AcceptedRequest:
        if isinstance(request, RequestHandle):
            return request._accepted  # noqa: SLF001
        return AcceptedRequest(request_id=_id_of(request))


def _id_of(request: str | RequestHandle) -> str:
    if isinstance(request, RequestHandle):
        return request.request_id
    if isinstance(request, str):
        return checked_request_id(request)
    raise InvalidInputError(f"Not a request id: a request is an id or a RequestHandle, not {slip(request)}")


def _checked_result(result: object) -> GenerationResult:
    if isinstance(result, GenerationResult):
        return result
    advice = {RequestHandle: "; wait for its result first", Outcome: "; pass its .result"}.get(type(result), "")
    raise InvalidInputError(f"Files belong to a GenerationResult, not to {slip(result)}{advice}")


def _checked_directory(directory: object, names: str) -> Path:
    if not isinstance(directory, str | os.PathLike):
        raise InvalidInputError(f"directory must be a path, such as 'out', not {slip(directory)}")
    path = user_path(directory)
    if looks_like_file(path):
        raise InvalidInputError(
            f"directory: {str(path)!r:.80} looks like a file; write its directory, and name files with {names}"
        )
    return path


# For each function that a verb takes: which, if it is given something else.
_FUNCTIONS = {
    "on_status": "a function of one RequestStatus, such as print",
    "to_input": "a function from an item to its input, such as lambda row: row['prompt']",
    "to_id": "a function from an item to its id, such as lambda row: row['id']",
    "to_name": "a function from an item to the name of its files, such as lambda row: str(row['id'])",
}


def _check_options(on_abandon: object, **functions: object) -> None:
    if on_abandon not in ("cancel", "leave"):
        raise InvalidInputError(f'on_abandon must be "cancel" or "leave", not {on_abandon!r:.40}')
    for name, function in functions.items():
        if (problem := function_problem(function, _FUNCTIONS[name])) is not None:
            raise InvalidInputError(f"{name} {problem}")


# For each part of a client: the methods that it must have, and what to write instead of something else.
_PARTS = {
    "limits": (
        "acquire release hold held_until admit refused served poll_price turn over",
        "Limits(max_in_flight=...)",
    ),
    "polling": ("next_poll observe", "FixedPolling(seconds)"),
    "journal": ("record", "SqliteJournal(path)"),
    "budget": ("reserve release accepted settle", "Budget(max_usd)"),
}


def _check_parts(**parts: object) -> None:
    for name, part in parts.items():
        methods, advice = _PARTS[name]
        missing = [method for method in methods.split() if not callable(getattr(part, method, None))]
        wrong = "is a class" if isinstance(part, type) else f"has no {missing[0]}" if missing else ""
        if part is not None and not isinstance(part, Limits) and wrong:
            raise ConfigurationError(f"{name} cannot be {part!r:.60}, which {wrong}: write {advice}")
