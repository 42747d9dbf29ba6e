"""A picture service on aiohttp.web: wait for a picture or follow its progress. A disconnect cancels the generation.

Serve it:   python -m aiohttp.web -H 127.0.0.1 -P 8000 aiohttp_app:create_app      (in this directory)
In two:     gunicorn --chdir examples "aiohttp_app:create_app()" -k aiohttp.GunicornWebWorker -w 2
Try it out: python examples/aiohttp_app.py      (serves itself on the emulator, requests two pictures, ends)
"""

import asyncio
import socket
from collections.abc import Callable

import aiohttp
from aiohttp import web

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import Emulator
from flux_klein_async.integrations.aiohttp_web import (
    client_context,
    error_middleware,
    get_client,
    run_until_disconnected,
    stream_progress,
)

routes = web.RouteTableDef()


@routes.post("/pictures")
async def create_picture(request: web.Request) -> web.Response:
    """Wait for one picture; the body is the prompt."""
    prompt = await request.text()
    result = await run_until_disconnected(request, get_client(request).generate(prompt))
    return web.json_response({"request_id": result.request_id, "url": result.image_url})


@routes.post("/pictures/events")
async def stream_picture(request: web.Request) -> web.StreamResponse:
    """Follow the progress of one picture."""
    prompt, client = await request.text(), get_client(request)
    return await stream_progress(request, lambda on_status: client.generate(prompt, on_status=on_status))


@routes.get("/requests/{request_id}/events")
async def stream_request(request: web.Request) -> web.StreamResponse:
    """Follow a request submitted earlier. A browser's EventSource can reconnect here without paying again."""
    request_id, client = request.match_info["request_id"], get_client(request)
    return await stream_progress(request, lambda on_status: client.wait_for_result(request_id, on_status=on_status))


@routes.delete("/requests/{request_id}")
async def cancel(request: web.Request) -> web.Response:
    """Cancel a request that is still queued."""
    outcome = await get_client(request).cancel(request.match_info["request_id"])
    return web.json_response({"cancelled": outcome.cancelled})


def create_app(
    _argv: list[str] | None = None, *, make: Callable[[], FluxKleinClient] = FluxKleinClient
) -> web.Application:
    """The app. `make` makes its client when the server starts."""
    app = web.Application(middlewares=[error_middleware])
    app.cleanup_ctx.append(client_context(make, drain=20))
    app.add_routes(routes)
    return app


async def main() -> None:
    """Serve on a free port, next to the emulator, and request two pictures."""
    async with Emulator() as service:
        app = create_app(make=lambda: FluxKleinClient(service.api_key, base_url=service.base_url))
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{listener.getsockname()[1]}") as session:
            for path in ("/pictures", "/pictures/events"):
                async with session.post(path, data="a snow leopard at dawn") as response:
                    print(response.status, await response.text())
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
