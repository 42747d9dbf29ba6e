"""FastAPI and Starlette: one client per app, cancellation on disconnect, error responses, server-sent events.

app = FastAPI(lifespan=client_lifespan())
add_error_handlers(app)

@app.post("/pictures")
async def create_picture(body: TextToImageInput, client: ClientDep, request: Request) -> dict[str, str]:
    result = await run_until_disconnected(request, client.generate(body))
    return {"url": result.image_url}
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.requests import HTTPConnection
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from flux_klein_async import ConfigurationError, FluxKleinClient, FluxKleinError, GenerationResult
from flux_klein_async.integrations.web import (
    CLIENT_CLOSED_REQUEST,
    EVENT_HEADERS,
    KEEP_ALIVE_SECONDS,
    DisconnectedError,
    Run,
    check_run,
    logged_response,
    open_client,
    result_to_json,
    run_until,
    write_progress,
)

__all__ = [
    "ClientDep",
    "DisconnectedError",
    "ProgressResponse",
    "add_error_handlers",
    "client_lifespan",
    "get_client",
    "run_until_disconnected",
]

T = TypeVar("T")
_STATE = "flux_klein_client"


def client_lifespan(
    make: Callable[[], FluxKleinClient] = FluxKleinClient, *, drain: float | None = 30.0
) -> Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """A lifespan for `FastAPI(lifespan=...)` that makes the client at the start and closes it at the end.

    If your app has a lifespan of its own, enter this one inside it and yield both states:
    `async with client_lifespan()(app) as state: yield {**state, ...}`.

    Args:
        make: Makes the client, once in each process.
        drain: Seconds that running calls get at the end; None: until they end.

    Raises:
        ConfigurationError: The app was given the function itself.
    """
    if isinstance(make, FastAPI):
        raise ConfigurationError("Call it: FastAPI(lifespan=client_lifespan())")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with open_client(make, drain) as client:
            yield {_STATE: client}

    return lifespan


def get_client(connection: HTTPConnection) -> FluxKleinClient:
    """The app's client. `ClientDep` depends on it, and a test can override it.

    Raises:
        ConfigurationError: The app was not started, or has no `client_lifespan`.
    """
    client: FluxKleinClient | None = getattr(connection.state, _STATE, None)
    if client is None:
        raise ConfigurationError(
            "This app has no client: give it lifespan=client_lifespan(), and in tests enter `with TestClient(app)`"
        )
    return client


ClientDep = Annotated[FluxKleinClient, Depends(get_client)]


async def run_until_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Await work, and cancel it when the HTTP client disconnects. The request's body stays readable.

    Raises:
        DisconnectedError: The HTTP client disconnected. `add_error_handlers` handles it.
    """
    return await run_until(_disconnected(request), work)


async def _disconnected(request: Request) -> None:
    try:
        with suppress(RuntimeError):  # the body was read as a stream, as forms are
            await request.body()  # what is left of it comes before the disconnect
    except ClientDisconnect:
        return
    while (await request.receive())["type"] != "http.disconnect":
        pass


class ProgressResponse(Response):
    """A response of server-sent events: `status` at each change, then `result` or `error`.

    `return ProgressResponse(lambda on_status: client.generate(body, on_status=on_status))`. The work starts with the
    response and is cancelled when the HTTP client disconnects. An error before anything was sent, an
    event or a comment, is an ordinary response. A HEAD request gets the headers, and starts no work.

    Args:
        run: Starts the work with the given `on_status`.
        keep_alive: Seconds without an event after which a comment is sent.
        to_json: Makes the data of the `result` event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        run: Run,
        *,
        keep_alive: float = KEEP_ALIVE_SECONDS,
        to_json: Callable[[GenerationResult], Mapping[str, Any]] = result_to_json,
    ) -> None:
        check_run(run)
        super().__init__(headers=EVENT_HEADERS)
        del self.headers["content-length"]
        self._run = run
        self._keep_alive = keep_alive
        self._to_json = to_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the work and send its events."""
        if scope.get("method") == "HEAD":
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": b""})
            return
        request = Request(scope, receive)
        started = False

        async def write(data: bytes, *, more: bool = True) -> None:
            nonlocal started
            if not started:
                started = True
                start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                await send(start)
            await send({"type": "http.response.body", "body": data, "more_body": more})

        progress = write_progress(self._run, write, keep_alive=self._keep_alive, to_json=self._to_json)
        try:
            await run_until(_disconnected(request), progress)
            with suppress(OSError):  # all events were sent before
                await write(b"", more=False)
        except (FluxKleinError, DisconnectedError) as error:
            if not started:
                response = await _respond(request, error)
                with suppress(OSError):  # nobody receives it after a disconnect, but a middleware waits for it
                    await response(scope, receive, send)


def add_error_handlers(app: FastAPI) -> None:
    """Turn errors of `FluxKleinClient` into responses, as docs/web.md lists them, and log those from 500 on."""
    app.add_exception_handler(FluxKleinError, _respond)
    app.add_exception_handler(DisconnectedError, _respond)


async def _respond(request: Request, error: Any) -> Response:
    if isinstance(error, DisconnectedError):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    response = logged_response(error, request.method, request.url.path)
    return JSONResponse(response.body, response.status, dict(response.headers))
