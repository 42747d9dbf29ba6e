"""The emulator without sockets: a real aiohttp session on one end, the same server code on the other.

Works in virtual time as in real time, on whichever loop uses it. Must not answer anything itself.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, Self, Unpack

import aiohttp

from .answers import Drop, Hang, Pass, Refuse
from .base import BaseEmulator, Options
from .pipes import join
from .server import Closing, HttpServer

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.tracing import Trace

__all__ = ["InProcessEmulator"]

# 2026-01-01T00:00:00Z: virtual time starts at 0 there, so that results name the same instants in every run.
_EPOCH = 1_767_225_600.0


class InProcessEmulator(BaseEmulator):
    """The emulated service inside this process; takes `Options` besides `round_trip`.

    It answers for every host and port, over http and https alike. `round_trip` seconds lie between a request
    and its answer, half each way; a new connection costs as much again.
    """

    def __init__(self, *, round_trip: float = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.engine.service.base_url = "https://emulator.invalid"
        self.engine.service.epoch = _EPOCH
        self.round_trip = round_trip
        self._server: HttpServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: list[aiohttp.ClientSession] = []

    async def __aenter__(self) -> Self:
        """Need not be called: the emulator begins with its first connection."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close as `aclose()` does."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the sessions made here and every connection; the emulator can be used again."""
        # The server first: whoever is reading an answer hears that it ended. A session that closes does not tell.
        server, self._server = self._server, None
        if server is not None and self._loop is asyncio.get_running_loop():
            await server.aclose()
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            await session.close()

    def connector(self, **options: Any) -> aiohttp.BaseConnector:
        """Make a connector whose every connection ends here; takes what `aiohttp.BaseConnector` takes."""
        return _Connector(self, **options)

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """Make a session whose every connection ends here; takes what `aiohttp.ClientSession` takes."""
        if "connector" not in options:
            options["connector"] = self.connector()
        session = aiohttp.ClientSession(**options)
        self._sessions = [other for other in self._sessions if not other.closed]
        self._sessions.append(session)
        return session

    def server(self) -> HttpServer:
        """Find the server for the running loop; the engine outlives a loop, its connections do not."""
        loop = asyncio.get_running_loop()
        if self._server is None or self._loop is not loop:
            self._server = HttpServer(self.engine)
            self._loop = loop
        return self._server


class _Connector(aiohttp.BaseConnector):
    """Connects to the emulator whatever the address."""

    def __init__(self, emulator: InProcessEmulator, **options: Any) -> None:
        super().__init__(**options)
        self._emulator = emulator

    def _cleanup(self) -> None:
        # aiohttp would look here for connections that have been idle for long, by the real clock, and set its
        # timer again. In virtual time that timer would go off for ever and hide every deadlock behind it. An
        # idle pipe costs nothing; one idle for too long is still dropped when it is about to be used again.
        pass

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Trace],  # noqa: ARG002  # aiohttp's signature
        timeout: aiohttp.ClientTimeout,
    ) -> ResponseHandler:
        # aiohttp leaves this one limit to the connector.
        async with asyncio.timeout(timeout.sock_connect):
            return await self._connect(req)

    async def _connect(self, req: ClientRequest) -> ResponseHandler:
        emulator = self._emulator
        answer = emulator.engine.connect()
        if isinstance(answer, Refuse):
            error = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            raise aiohttp.ClientConnectorError(req.connection_key, error)
        if isinstance(answer, Hang):
            await self._loop.create_future()
        delay = emulator.round_trip + (answer.delay if isinstance(answer, Pass) else 0.0)
        if delay:
            await asyncio.sleep(delay)
        client = self._factory()
        address = (req.url.raw_host or "", req.url.port or 0)
        server = Closing() if isinstance(answer, Drop) else emulator.server().protocol()
        join(self._loop, client, server, latency=emulator.round_trip / 2, server_address=address)
        return client
