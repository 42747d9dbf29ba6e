"""A picture service on aiohttp.web: wait for a picture, or watch it being made; who hangs up costs nothing more.

Serve it:   python -m aiohttp.web -H 127.0.0.1 -P 8000 aiohttp_app:create_app      (in this directory)
  in two:   gunicorn --chdir examples "aiohttp_app:create_app()" -k aiohttp.GunicornWebWorker -w 2
Try it out: python examples/aiohttp_app.py      (serves itself on the emulator, asks for two pictures, ends)
"""

import asyncio
import socket
from collections.abc import Callable

import aiohttp
from aiohttp import web

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import Emulator
from flux_klein_async.integrations.aiohttp_web import (
    answer_errors,
    event_stream,
    klein_context,
    klein_of,
    while_connected,
)

routes = web.RouteTableDef()


@routes.post("/pictures")
async def picture(request: web.Request) -> web.Response:
    """Wait for one picture; the body is a prompt."""
    prompt = await request.text()
    result = await while_connected(request, klein_of(request).generate(prompt))
    return web.json_response({"request_id": result.request_id, "url": result.image_url})


@routes.post("/pictures/events")
async def watched_picture(request: web.Request) -> web.StreamResponse:
    """Watch one picture being made."""
    prompt, klein = await request.text(), klein_of(request)
    return await event_stream(request, lambda tell: klein.generate(prompt, on_status=tell))


@routes.get("/requests/{request_id}/events")
async def events(request: web.Request) -> web.StreamResponse:
    """Watch a request that was submitted before. A browser's EventSource may reconnect here: that pays for nothing."""
    request_id, klein = request.match_info["request_id"], klein_of(request)
    return await event_stream(request, lambda tell: klein.wait_for_result(request_id, on_status=tell))


@routes.delete("/requests/{request_id}")
async def cancel(request: web.Request) -> web.Response:
    """Cancel a request that is still queued."""
    outcome = await klein_of(request).cancel(request.match_info["request_id"])
    return web.json_response({"cancelled": outcome.cancelled})


def create_app(
    _argv: list[str] | None = None, *, make: Callable[[], FluxKleinClient] = FluxKleinClient
) -> web.Application:
    """The app, whose client `make` makes when the server starts."""
    app = web.Application(middlewares=[answer_errors])
    app.cleanup_ctx.append(klein_context(make, drain=20))
    app.add_routes(routes)
    return app


async def visit(url: str) -> None:
    """Ask for two pictures, as a visitor would."""
    async with aiohttp.ClientSession(url) as visitor:
        async with visitor.post("/pictures", data="a snow leopard at dawn") as answer:
            print(answer.status, await answer.json())
        async with visitor.post("/pictures/events", data="a snow leopard at dawn") as answer:
            print(await answer.text())


async def main() -> None:
    """Serve on a free port, next to the emulator, for as long as the visit lasts."""
    async with Emulator() as service:
        app = create_app(make=lambda: FluxKleinClient(service.api_key, base_url=service.base_url))
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0))
        try:
            await web.SockSite(runner, listener).start()
            await visit(f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
