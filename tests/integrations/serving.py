"""Apps under their real servers, on sockets, in the test's own loop; and an emulator whose queue waits for a word."""

import asyncio
import socket
from contextlib import asynccontextmanager

import uvicorn
from aiohttp import web

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import Emulator
from tests.served import once

__all__ = ["AiohttpWeb", "Asgi", "accepted", "client_of", "release", "states"]


class _Uvicorn(uvicorn.Server):
    """Says when it begins to shut down."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.closing = asyncio.Event()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.closing.set()
        await super().shutdown(sockets)


class Asgi:
    """An ASGI app under uvicorn. `url` is where; `closing` is set when it no longer takes visitors."""

    def __init__(self, app, **options):
        self._server = _Uvicorn(uvicorn.Config(app, log_config=None, **options))
        self.closing = self._server.closing

    async def __aenter__(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._serving = asyncio.create_task(self._server.serve([listener]))
        return self

    async def stop(self):
        self._server.should_exit = True
        await self._serving

    async def __aexit__(self, *_):
        await self.stop()


class AiohttpWeb:
    """The same for an aiohttp.web app."""

    def __init__(self, app, **options):
        self.closing = asyncio.Event()
        app.on_shutdown.append(self._tell)
        self._runner = web.AppRunner(app, access_log=None, **options)

    async def _tell(self, _):
        self.closing.set()

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


def client_of(emulator, **options):
    """What makes the app's client."""
    return lambda: FluxKleinClient(emulator.api_key, base_url=emulator.base_url, **options)


async def accepted(emulator: Emulator, count: int, endpoint: str = "submit") -> None:
    """Until the emulator has been asked so often; all of it event-driven."""
    if emulator.calls[endpoint] < count:
        reached = asyncio.Event()
        once(emulator, lambda: emulator.calls[endpoint] >= count, reached.set)
        async with asyncio.timeout(60):  # a test that would hang fails instead
            await reached.wait()


def release(emulator: Emulator, workers: int = 8) -> None:
    """Let the generations of an emulator that was made with `workers=0` begin."""
    queue, now = emulator.service.queue, asyncio.get_running_loop().time()
    queue._workers = workers
    while queue._order and len(queue._running) < workers:
        queue._start(queue._waiting.pop(queue._order.pop(0)), now)


def states(emulator: Emulator) -> list[str]:
    """Where every generation stands now."""
    queue = emulator.service.queue
    queue.advance(asyncio.get_running_loop().time())
    return [job.state for job in queue.jobs.values()]


@asynccontextmanager
async def nothing_left_behind():
    """What was started within the block has ended with it."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() - before == set()
