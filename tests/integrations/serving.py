"""The same app on each web framework, under its real server, on sockets, in the test's own loop."""

import asyncio
import socket
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Route

from flux_klein_async import FixedPolling, FluxKleinClient
from flux_klein_async.emulator import Emulator
from flux_klein_async.integrations import aiohttp_web, fastapi
from tests.served import once


class _Server(uvicorn.Server):
    """Ends as soon as it is told to; its own loop finds out every tenth of a second."""

    async def main_loop(self):
        await self.on_tick(0)
        await self.told.wait()


class Asgi:
    """An ASGI app under uvicorn, at `url`."""

    def __init__(self, app, **options):
        self._server = _Server(uvicorn.Config(app, log_config=None, **options))
        self._server.told = asyncio.Event()

    async def __aenter__(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._serving = asyncio.create_task(self._server.serve([listener]))
        return self

    async def stop(self):
        self._server.told.set()
        await self._serving

    async def __aexit__(self, *_):
        await self.stop()


class AiohttpWeb:
    """An aiohttp.web app under its own server, at `url`."""

    def __init__(self, app, **options):
        self._runner = web.AppRunner(app, access_log=None, **options)

    async def __aenter__(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()
        return self

    async def stop(self):
        await self._runner.cleanup()

    async def __aexit__(self, *_):
        await self.stop()


class Framework:
    """An app with the same routes on each framework, and how it is served."""

    def app(self, make=None, **options):
        app = self.bare_app() if make is None else self.app_with_client(make, **options)
        for path, handler in {"/read": self._read, "/unread": self._unread, "/events": self._events}.items():
            self.route(app, path, handler)
        return app

    async def _generate(self, request, prompt):
        client = self.module.get_client(request)
        return (await self.module.run_until_disconnected(request, client.generate(prompt))).image_url

    async def _read(self, request):
        return self.json({"url": await self._generate(request, (await request.json())["prompt"])})

    async def _unread(self, request):
        """The body is read afterwards."""
        return self.json({"url": await self._generate(request, "x"), "body": await request.json()})

    async def _events(self, request):
        client, prompt = self.module.get_client(request), (await request.json())["prompt"]
        return await self.stream(request, lambda on_status: client.generate(prompt, on_status=on_status), keep_alive=60)


class OnFastAPI(Framework):
    module = fastapi
    json = JSONResponse

    def __init__(self, *, behind_middleware=False):
        self._behind_middleware = behind_middleware

    def bare_app(self, **options):
        app = FastAPI(**options)
        fastapi.add_error_handlers(app)
        if self._behind_middleware:

            async def through(request, call_next):
                return await call_next(request)

            app.add_middleware(BaseHTTPMiddleware, dispatch=through)
        return app

    def app_with_client(self, make, **options):
        return self.bare_app(lifespan=fastapi.client_lifespan(make, **options))

    def route(self, app, path, handler):
        app.router.routes.append(Route(path, handler, methods=["GET", "HEAD", "POST"]))

    async def stream(self, _, run, **options):
        return fastapi.ProgressResponse(run, **options)

    def serve(self, app, *, shutdown_timeout=None):
        return Asgi(app, timeout_graceful_shutdown=shutdown_timeout)


class OnAiohttp(Framework):
    module = aiohttp_web
    json = staticmethod(web.json_response)
    stream = staticmethod(aiohttp_web.stream_progress)

    def __init__(self, **server_options):
        self._server_options = server_options

    def bare_app(self):
        return web.Application(middlewares=[aiohttp_web.error_middleware])

    def app_with_client(self, make, **options):
        app = self.bare_app()
        app.cleanup_ctx.append(aiohttp_web.client_context(make, **options))
        return app

    def route(self, app, path, handler):
        app.router.add_route("*", path, handler)

    def serve(self, app, *, shutdown_timeout=60.0):
        return AiohttpWeb(app, shutdown_timeout=shutdown_timeout, **self._server_options)


def client_of(emulator, **options):
    """What makes the app's client."""
    options.setdefault("polling", FixedPolling(0.05))  # by default, the first poll comes after 0.37 s
    return lambda: FluxKleinClient(emulator.api_key, base_url=emulator.base_url, **options)


async def post(server, path, body=None):
    """Status, headers and text of the response to a POST."""
    async with (
        aiohttp.ClientSession(server.url) as session,
        session.post(path, json=body or {"prompt": "x"}) as response,
    ):
        return response.status, response.headers, await response.text()


async def accepted(emulator: Emulator, count: int, endpoint: str = "submit") -> None:
    """Wait, without polling, until an endpoint of the emulator was called so often."""
    if emulator.calls[endpoint] < count:
        reached = asyncio.Event()
        once(emulator, lambda: emulator.calls[endpoint] >= count, reached.set)
        async with asyncio.timeout(60):  # a test that would hang fails instead
            await reached.wait()


def release(emulator: Emulator, workers: int = 8) -> None:
    """Start the generations of an emulator that was made with `workers=0`."""
    queue, now = emulator.service.queue, asyncio.get_running_loop().time()
    queue._workers = workers
    while queue._order and len(queue._running) < workers:
        queue._start(queue._waiting.pop(queue._order.pop(0)), now)


def states(emulator: Emulator) -> list[str]:
    """The present state of every generation."""
    queue = emulator.service.queue
    queue.advance(asyncio.get_running_loop().time())
    return [job.state for job in queue.jobs.values()]


@asynccontextmanager
async def nothing_left_behind():
    """Check that every task started in the block has ended."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() - before == set()
