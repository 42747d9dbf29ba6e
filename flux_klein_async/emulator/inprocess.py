"""The emulator without sockets: a real aiohttp session on one end, the server's own code on the other.

A `Pipe` joins the two in memory and behaves like TCP as far as a protocol can tell: bytes keep their order and arrive
after `latency` seconds, a full window pauses the writer, a paused reader fills the window, a close arrives after the
bytes, an abort instead of them. It works in virtual and in real time.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Self, Unpack

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.tracing import Trace

from flux_klein_async.emulator.engine import EmulatorOptions, Engine
from flux_klein_async.emulator.scripts import Drop, Hang, Pass, Refuse
from flux_klein_async.emulator.server import AsyncOnly, Closing, HttpServer

__all__ = ["InProcessEmulator", "Pipe", "join"]

_HIGH, _LOW = 65_536, 16_384  # asyncio's own marks for sockets


class _End(Enum):
    """How a connection ends."""

    CLOSED = auto()
    RESET = auto()


class Pipe(asyncio.Transport):
    """One end of a connection; `join` makes both."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, latency: float, extra: Mapping[str, Any]
    ) -> None:
        super().__init__(dict(extra))
        self.peer: Pipe
        self._loop = loop
        self._protocol = protocol
        self._latency = latency
        self._closing = False
        self._reading = True
        self._inbox: deque[bytes | _End] = deque()
        self._outbox: deque[tuple[float, bytes | _End]] = deque()
        self._delivery: asyncio.Handle | None = None
        self._unread = 0
        self._writing_paused = False

    def is_closing(self) -> bool:
        """Return whether this end has been closed, from either side."""
        return self._closing

    def pause_reading(self) -> None:
        """Keep incoming bytes back."""
        self._reading = False

    def resume_reading(self) -> None:
        """Hand over the bytes kept back and those to come."""
        if not self._reading:
            self._reading = True
            if self._inbox:
                self._loop.call_soon(self._read)

    def get_write_buffer_size(self) -> int:
        """Count the written bytes that the other protocol has not received."""
        return self._unread

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes."""
        if self._closing or not data:
            return
        self._unread += len(data)
        self._send(bytes(data))
        if self._unread > _HIGH and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def close(self) -> None:
        """Close this end now, and the other one once it has read what was sent."""
        if not self._closing:
            self._send(_End.CLOSED)
            self._lose(None)

    def abort(self) -> None:
        """Close both ends and drop the bytes under way."""
        if not self._closing:
            self._outbox.clear()
            if self._delivery is not None:
                self._delivery.cancel()
                self._delivery = None
            self._send(_End.RESET)
            self._lose(None)

    def _send(self, item: bytes | _End) -> None:
        self._outbox.append((self._loop.time() + self._latency, item))
        if self._delivery is None:
            self._schedule()

    def _schedule(self) -> None:
        # One timer, for the first item: timers set for the same instant may fire in any order.
        if self._latency:
            self._delivery = self._loop.call_at(self._outbox[0][0], self._deliver)
        else:
            self._delivery = self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._delivery = None
        due = self._outbox[0][0]
        while self._outbox and (not self._latency or self._outbox[0][0] <= due):
            self.peer._arrive(self._outbox.popleft()[1])  # noqa: SLF001  # the other half of this object
        if self._outbox and self._delivery is None:
            self._schedule()

    def _arrive(self, item: bytes | _End) -> None:
        if self._closing:
            # No reader is left. A reset reaches the writer even if it is paused and reads nothing.
            if isinstance(item, bytes):
                self._send(_End.RESET)
            return
        if item is _End.RESET:
            self._inbox.clear()
        self._inbox.append(item)
        if self._reading or item is _End.RESET:
            self._read()

    def _read(self) -> None:
        while self._inbox and not self._closing and (self._reading or self._inbox[0] is _End.RESET):
            item = self._inbox.popleft()
            if item is _End.RESET:
                self._lose(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
            elif item is _End.CLOSED:
                if not self._protocol.eof_received():
                    self.close()
            else:
                assert isinstance(item, bytes)  # noqa: S101  # nothing else is left
                self.peer._taken(len(item))  # noqa: SLF001  # the other half of this object
                self._protocol.data_received(item)

    def _taken(self, count: int) -> None:
        self._unread -= count
        if self._writing_paused and self._unread <= _LOW and not self._closing:
            self._writing_paused = False
            self._protocol.resume_writing()

    def _lose(self, error: Exception | None) -> None:
        self._closing = True
        self._inbox.clear()
        self._loop.call_soon(self._protocol.connection_lost, error)


def join(
    loop: asyncio.AbstractEventLoop,
    client: asyncio.Protocol,
    server: asyncio.Protocol,
    *,
    latency: float = 0.0,
    server_address: tuple[str, int] = ("127.0.0.1", 80),
) -> None:
    """Connect two protocols; each receives what the other writes `latency` seconds later."""
    client_address = ("127.0.0.1", 0)
    near = Pipe(loop, client, latency, {"peername": server_address, "sockname": client_address})
    far = Pipe(loop, server, latency, {"peername": client_address, "sockname": server_address})
    near.peer, far.peer = far, near
    server.connection_made(far)
    client.connection_made(near)


# 2026-01-01T00:00:00Z is instant 0, so that results name the same times in every run.
_EPOCH = 1_767_225_600.0


class InProcessEmulator(Engine, AsyncOnly):
    """The emulated service inside this process; takes `EmulatorOptions` besides `round_trip`.

    It answers for every host and port, over http and https alike. `round_trip` seconds lie between a request
    and its answer, half each way; a new connection costs as much again.
    """

    def __init__(self, *, round_trip: float = 0.0, **options: Unpack[EmulatorOptions]) -> None:
        super().__init__(base_url="https://emulator.invalid", epoch=_EPOCH, **options)
        self.round_trip = round_trip
        self._server: HttpServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: list[aiohttp.ClientSession] = []

    async def __aenter__(self) -> Self:
        """Return the emulator; it needs no opening."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close as `aclose()` does."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the sessions made here and every connection; the emulator can still be used."""
        # The server first: it tells a client in the middle of an answer that it ended; a closing session does not.
        server, self._server = self._server, None
        if server is not None and self._loop is asyncio.get_running_loop():
            await server.aclose()
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            await session.close()

    def connector(self, **options: Any) -> aiohttp.BaseConnector:
        """Make a connector whose connections all lead here; takes what `aiohttp.BaseConnector` takes."""
        return _Connector(self, **options)

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """Make a session whose connections all lead here; takes what `aiohttp.ClientSession` takes."""
        if "connector" not in options:
            options["connector"] = self.connector()
        session = aiohttp.ClientSession(**options)
        self._sessions = [other for other in self._sessions if not other.closed]
        self._sessions.append(session)
        return session

    def _protocol(self) -> asyncio.Protocol:
        """Make the server's end of a connection; the engine outlives a loop, its server does not."""
        loop = asyncio.get_running_loop()
        if self._server is None or self._loop is not loop:
            self._server, self._loop = HttpServer(self), loop
        return self._server.protocol()


class _Connector(aiohttp.BaseConnector):
    """Connects every address to the emulator."""

    def __init__(self, emulator: InProcessEmulator, **options: Any) -> None:
        super().__init__(**options)
        self._emulator = emulator

    def _cleanup(self) -> None:
        # aiohttp would check here for connections that have been idle for long, by the real clock, and set its
        # timer again. In virtual time that timer would fire for ever and hide every deadlock. An idle pipe costs
        # nothing, and aiohttp drops one that is idle for too long when it is about to use it.
        pass

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Trace],  # noqa: ARG002  # aiohttp's signature
        timeout: aiohttp.ClientTimeout,
    ) -> ResponseHandler:
        # aiohttp leaves this limit to the connector.
        async with asyncio.timeout(timeout.sock_connect):
            return await self._connect(req)

    async def _connect(self, req: ClientRequest) -> ResponseHandler:
        emulator = self._emulator
        answer = emulator.connect()
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
        server = Closing() if isinstance(answer, Drop) else emulator._protocol()  # noqa: SLF001
        join(self._loop, client, server, latency=emulator.round_trip / 2, server_address=address)
        return client
