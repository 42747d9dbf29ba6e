"""FastAPI (and Starlette): one client for the app's life, visitors who hang up, honest answers, server-sent events.

app = FastAPI(lifespan=klein_lifespan())
answer_errors(app)

@app.post("/pictures")
async def picture(order: TextToImageInput, klein: Klein, request: Request) -> dict[str, str]:
    result = await while_connected(request, klein.generate(order))
    return {"url": result.image_url}
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.requests import HTTPConnection
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from flux_klein_async import ConfigurationError, FluxKleinClient, FluxKleinError, GenerationResult
from flux_klein_async.integrations.web import (
    HEADERS,
    KEEP_ALIVE_SECONDS,
    VISITOR_GONE,
    Run,
    VisitorGoneError,
    answer_to,
    result_facts,
    tell,
    until_gone,
)

__all__ = [
    "EventStream",
    "Klein",
    "VisitorGoneError",
    "answer_errors",
    "klein_lifespan",
    "klein_of",
    "while_connected",
]

T = TypeVar("T")
_log = logging.getLogger("flux_klein_async")
_STATE = "flux_klein_client"


def klein_lifespan(
    make: Callable[[], FluxKleinClient] = FluxKleinClient, *, drain: float | None = 30.0
) -> Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """What `FastAPI(lifespan=...)` takes: makes the client inside the running loop and closes it with a drain.

    An app with a lifespan of its own enters this one inside of it, and yields its state along with its own:
    `async with klein_lifespan()(app) as state: yield {**state, ...}`.

    Args:
        make: Makes the client, once for each process.
        drain: Seconds that calls under way are given at the end; None: until they end.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        client = make()
        try:
            yield {_STATE: client}
        finally:
            await client.aclose(drain=drain)

    return lifespan


def klein_of(connection: HTTPConnection) -> FluxKleinClient:
    """The app's client; what `Klein` depends on, and what a test overrides.

    Raises:
        ConfigurationError: The app did not start, or not with `klein_lifespan`.
    """
    client = getattr(connection.state, _STATE, None)
    if client is None:
        raise ConfigurationError(
            "This app has no client: give it lifespan=klein_lifespan(), and in tests enter `with TestClient(app)`"
        )
    return client  # type: ignore[no-any-return]  # a request's state holds anything


Klein = Annotated[FluxKleinClient, Depends(klein_of)]


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await work for a visitor, and cancel it when the visitor hangs up; the request's body stays readable.

    Raises:
        VisitorGoneError: The visitor hung up. `answer_errors` answers it.
    """
    return await until_gone(work, _gone(request))


async def _gone(request: Request) -> None:
    """Until the visitor has hung up. What is left of the body is read first: it stands before the end."""
    try:
        with suppress(RuntimeError):  # it was read as a stream, as forms are
            await request.body()
    except ClientDisconnect:
        return
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response of server-sent events: `status` at each change, then `result` or `error`.

    `return EventStream(lambda tell: klein.generate(order, on_status=tell))`. The work begins when the response does
    and is cancelled when the visitor hangs up. An error before the first event is an ordinary answer.

    Args:
        run: Starts the work, and passes on what it is given as `on_status`.
        keep_alive: Seconds without an event after which a comment is sent.
        facts: From the result to the JSON of the `result` event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        run: Run,
        *,
        keep_alive: float = KEEP_ALIVE_SECONDS,
        facts: Callable[[GenerationResult], Mapping[str, Any]] = result_facts,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._run = run
        self._keep_alive = keep_alive
        self._facts = facts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell the work as it happens."""
        request = Request(scope, receive)
        out = _Out(self, send)
        try:
            await until_gone(tell(self._run, out.write, keep_alive=self._keep_alive, facts=self._facts), _gone(request))
            await out.end()
        except FluxKleinError as error:
            await _answer(request, error)(scope, receive, send)
        except VisitorGoneError:
            if not out.begun:  # a middleware waits for an answer, whether or not anybody hears it
                with suppress(OSError):
                    await Response(status_code=VISITOR_GONE)(scope, receive, send)


class _Out:
    """The way out, opened with the first write: until then another answer can be given."""

    def __init__(self, response: Response, send: Send) -> None:
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        self._start: Message | None = start
        self._send = send

    @property
    def begun(self) -> bool:
        """Whether anything has left."""
        return self._start is None

    async def write(self, data: bytes) -> None:
        if (start := self._start) is not None:
            self._start = None
            await self._send(start)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        with suppress(OSError):  # the visitor has heard all there was
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def answer_errors(app: FastAPI) -> None:
    """Have the client's errors answered as docs/web.md says, and those trouble us put into the log."""

    async def failed(request: Request, error: Any) -> Response:
        return _answer(request, error)

    async def gone(_: Request, __: Any) -> Response:
        return Response(status_code=VISITOR_GONE)  # nobody hears it

    app.add_exception_handler(FluxKleinError, failed)
    app.add_exception_handler(VisitorGoneError, gone)


def _answer(request: Request, error: FluxKleinError) -> JSONResponse:
    answer = answer_to(error)
    if answer.status >= 500:
        _log.warning("%s %s answered with %d: %r", request.method, request.url.path, answer.status, error)
    return JSONResponse(answer.body, answer.status, dict(answer.headers))
