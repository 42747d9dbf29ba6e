"""aiohttp.web: one client for the app's life, visitors who hang up, honest answers, server-sent events.

app = web.Application(middlewares=[answer_errors])
app.cleanup_ctx.append(klein_context())

async def picture(request: web.Request) -> web.Response:
    result = await while_connected(request, klein_of(request).generate(await request.text()))
    return web.json_response({"url": result.image_url})
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from aiohttp import web

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
    "KLEIN",
    "VisitorGoneError",
    "answer_errors",
    "event_stream",
    "klein_context",
    "klein_of",
    "while_connected",
]

T = TypeVar("T")
_log = logging.getLogger("flux_klein_async")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

KLEIN: web.AppKey[FluxKleinClient] = web.AppKey("KLEIN", FluxKleinClient)
"""Where the app keeps its client; what a test sets instead of appending `klein_context`."""

_POLL_EVERY = 0.1  # seconds: aiohttp 3 tells nobody that a connection was lost, so that it has to be asked


def klein_context(
    make: Callable[[], FluxKleinClient] = FluxKleinClient, *, drain: float | None = 30.0
) -> Callable[[web.Application], AsyncIterator[None]]:
    """What `app.cleanup_ctx` takes: makes the client inside the running loop and closes it with a drain.

    Args:
        make: Makes the client, once for each process.
        drain: Seconds that calls under way are given at the end; None: until they end.
    """

    async def context(app: web.Application) -> AsyncIterator[None]:
        app[KLEIN] = client = make()
        yield
        await client.aclose(drain=drain)

    return context


def klein_of(request: web.Request) -> FluxKleinClient:
    """The client of the app, or of the app that this one is a part of.

    Raises:
        ConfigurationError: There is none.
    """
    client = request.config_dict.get(KLEIN)
    if client is None:
        raise ConfigurationError("This app has no client: append klein_context() to its cleanup_ctx")
    return client


async def while_connected(request: web.Request, work: Awaitable[T]) -> T:
    """Await work for a visitor, and cancel it when the visitor hangs up.

    That is seen within 0.1 s; a server that runs with `handler_cancellation=True` cancels the handler, and so
    the work, at once.

    Raises:
        VisitorGoneError: The visitor hung up. `answer_errors` answers it.
    """
    return await until_gone(work, _gone(request))


async def _gone(request: web.Request) -> None:
    while (transport := request.transport) is not None and not transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(_POLL_EVERY)


async def event_stream(
    request: web.Request,
    run: Run,
    *,
    keep_alive: float = KEEP_ALIVE_SECONDS,
    facts: Callable[[GenerationResult], Mapping[str, Any]] = result_facts,
) -> web.StreamResponse:
    """Answer with server-sent events: `status` at each change, then `result` or `error`.

    `return await event_stream(request, lambda tell: klein.generate(prompt, on_status=tell))`. The work is cancelled
    when the visitor hangs up.

    Args:
        request: What is answered.
        run: Starts the work, and passes on what it is given as `on_status`.
        keep_alive: Seconds without an event after which a comment is sent.
        facts: From the result to the JSON of the `result` event.

    Raises:
        FluxKleinError: Before the first event: an ordinary answer can still say it.
        VisitorGoneError: The visitor hung up.
    """
    response = web.StreamResponse(headers=HEADERS)

    async def write(data: bytes) -> None:
        if not response.prepared:
            await response.prepare(request)
        await response.write(data)

    await while_connected(request, tell(run, write, keep_alive=keep_alive, facts=facts))
    return response


@web.middleware
async def answer_errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Answer the client's errors as docs/web.md says, and put those that trouble us into the log.

    Raises:
        Exception: What is none of the client's errors.
    """
    try:
        return await handler(request)
    except VisitorGoneError:
        return web.Response(status=VISITOR_GONE)  # nobody hears it
    except FluxKleinError as error:
        answer = answer_to(error)
        if answer.status >= 500:
            _log.warning("%s %s answered with %d: %r", request.method, request.path, answer.status, error)
        return web.json_response(dict(answer.body), status=answer.status, headers=answer.headers)
