"""aiohttp.web: one client per app, cancellation on disconnect, error responses, server-sent events.

app = web.Application(middlewares=[error_middleware])
app.cleanup_ctx.append(client_context())

async def create_picture(request: web.Request) -> web.Response:
    prompt = await request.text()
    result = await run_until_disconnected(request, get_client(request).generate(prompt))
    return web.json_response({"url": result.image_url})
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from aiohttp import web

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
    "CLIENT_KEY",
    "DisconnectedError",
    "client_context",
    "error_middleware",
    "get_client",
    "run_until_disconnected",
    "stream_progress",
]

T = TypeVar("T")

CLIENT_KEY: web.AppKey[FluxKleinClient] = web.AppKey("CLIENT_KEY", FluxKleinClient)
"""The app's key for its client. A test can set it instead of appending `client_context`."""

_CHECK_SECONDS = 0.1  # aiohttp 3 does not signal a lost connection, so that it is checked


def client_context(
    make: Callable[[], FluxKleinClient] = FluxKleinClient, *, drain: float | None = 30.0
) -> Callable[[web.Application], AsyncIterator[None]]:
    """A context for `app.cleanup_ctx` that makes the client when the app starts and closes it when the app ends.

    Args:
        make: Makes the client, once in each process.
        drain: Seconds that running calls get at the end; None: until they end.

    Raises:
        ConfigurationError: The app was given the function itself.
    """
    if isinstance(make, web.Application):
        raise ConfigurationError("Call it: app.cleanup_ctx.append(client_context())")

    async def context(app: web.Application) -> AsyncIterator[None]:
        async with open_client(make, drain) as app[CLIENT_KEY]:
            yield

    return context


def get_client(request: web.Request) -> FluxKleinClient:
    """The client of the app, or of the app that contains it.

    Raises:
        ConfigurationError: The app has no client.
    """
    client = request.config_dict.get(CLIENT_KEY)
    if client is None:
        raise ConfigurationError("This app has no client: append client_context() to its cleanup_ctx")
    return client


async def run_until_disconnected(request: web.Request, work: Awaitable[T]) -> T:
    """Await work, and cancel it when the HTTP client disconnects.

    The connection is checked every 0.1 s. A server with `handler_cancellation=True` cancels the handler at once.

    Raises:
        DisconnectedError: The HTTP client disconnected. `error_middleware` handles it.
    """
    return await run_until(_disconnected(request), work)


async def _disconnected(request: web.Request) -> None:
    while (transport := request.transport) is not None and not transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(_CHECK_SECONDS)


async def stream_progress(
    request: web.Request,
    run: Run,
    *,
    keep_alive: float = KEEP_ALIVE_SECONDS,
    to_json: Callable[[GenerationResult], Mapping[str, Any]] = result_to_json,
) -> web.StreamResponse:
    """Respond with server-sent events: `status` at each change, then `result` or `error`.

    `return await stream_progress(request, lambda on_status: client.generate(prompt, on_status=on_status))`. The work is
    cancelled when the HTTP client disconnects. A HEAD request gets the headers, and starts no work.

    Args:
        request: The request to respond to.
        run: Starts the work with the given `on_status`.
        keep_alive: Seconds without an event after which a comment is sent.
        to_json: Makes the data of the `result` event.

    Raises:
        FluxKleinError: The work failed before anything was sent, so that an ordinary response is still possible.
        DisconnectedError: The HTTP client disconnected.
    """
    check_run(run)
    response = web.StreamResponse(headers=EVENT_HEADERS)
    if request.method == "HEAD":
        await response.prepare(request)
        return response

    async def write(data: bytes) -> None:
        if not response.prepared:
            await response.prepare(request)
        await response.write(data)

    await run_until_disconnected(request, write_progress(run, write, keep_alive=keep_alive, to_json=to_json))
    return response


@web.middleware
async def error_middleware(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn errors of `FluxKleinClient` into responses, as docs/web.md lists them, and log those from 500 on.

    Raises:
        Exception: Any other exception of the handler.
    """
    try:
        return await handler(request)
    except DisconnectedError:
        return web.Response(status=CLIENT_CLOSED_REQUEST)
    except FluxKleinError as error:
        response = logged_response(error, request.method, request.path)
        return web.json_response(response.body, status=response.status, headers=response.headers)
