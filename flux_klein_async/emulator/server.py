"""The engine behind HTTP: bytes in, its answer out as bytes; `Emulator` serves it on a loopback port.

Uses aiohttp's parser and connection handling, but writes answers itself, since half of them are wrong on purpose. What
an answer says is the engine's affair.
"""

import asyncio
import gzip
import json
import random
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack

from aiohttp import web

from flux_klein_async.emulator import pictures
from flux_klein_async.emulator.endpoints import Placeholder
from flux_klein_async.emulator.engine import Action, EmulatorOptions, Engine
from flux_klein_async.emulator.scripts import Answer, Drop, Endless, Garbage, Hang, Reply, Reset, Truncate, Unasked

__all__ = ["SERVER", "AsyncOnly", "Closing", "Emulator", "HttpServer", "encode_head", "encode_response"]

SERVER = "flux-klein-emulator"

# --- answers as bytes

_encode = json.JSONEncoder(separators=(",", ":")).encode
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_BYTES = "application/octet-stream"


def encode_head(
    status: int, headers: Mapping[str, str], content_type: str, length: int | None, wall: float, *, keep: bool
) -> bytes:
    """Write the status line and the headers; those given win. `length` None: the body comes in chunks."""
    lines = [
        f"HTTP/1.1 {status} {_PHRASES.get(status, 'Unknown')}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    given = {name.lower() for name in headers}
    if "content-type" not in given:
        lines.append(f"Content-Type: {content_type}")
    if length is None:
        lines.append("Transfer-Encoding: chunked")
    elif "content-length" not in given and "transfer-encoding" not in given:
        lines.append(f"Content-Length: {length}")
    if "server" not in given:
        lines.append(f"Server: {SERVER}")
    if "date" not in given:
        lines.append(f"Date: {_date(int(wall))}")
    if not keep:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def encode_response(
    status: int, headers: Mapping[str, str], body: Any, wall: float, *, keep: bool, zeros: int | None = None
) -> bytes:
    """Write a whole answer: bytes and text as they are, any other body as JSON.

    `zeros`: the body is compressed, and so many zero bytes follow it.
    """
    if status in _BODILESS:
        data, content_type = b"", "text/plain"
    elif isinstance(body, bytes):
        data, content_type = body, _BYTES
    elif isinstance(body, str):
        data, content_type = body.encode(), "text/html; charset=utf-8"
    else:
        data, content_type = _encode(body).encode(), "application/json"
    if zeros is not None:
        data, headers = gzip.compress(data, mtime=0) + bytes(zeros), {**headers, "Content-Encoding": "gzip"}
    return encode_head(status, headers, content_type, len(data), wall, keep=keep) + data


@lru_cache(maxsize=16)
def _date(wall: int) -> str:
    return formatdate(wall, usegmt=True)


def _draw(file: Placeholder) -> tuple[bytes, str]:
    if file.suffix == "mp4":
        return pictures.video(file.prompt, request_id=file.request_id), "video/mp4"
    if file.suffix == "wav":
        return pictures.silence(), "audio/wav"
    drawn = pictures.draw(file.prompt, file.width, file.height, seed=file.seed, request_id=file.request_id)
    return drawn, "image/png"


# --- connections

# asyncio's default of 100 refuses most of ten thousand clients that arrive together; the kernel caps it.
_BACKLOG = 16_384
_MAX_BODY = 96 * 2**20  # the service refuses less than that
_DRAIN_ABOVE = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_PICTURES_KEPT = 8
_ACCEPT_TURNS = 3  # of the loop, in which asyncio makes a connection of a socket that it has taken


class _Sent(web.StreamResponse):
    """Tells aiohttp that the answer has been written already."""

    def __init__(self, *, keep: bool) -> None:
        super().__init__()
        self._keep_alive = keep

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send nothing."""

    async def write_eof(self, data: Any = b"") -> None:
        """Send nothing."""


_KEEP = _Sent(keep=True)
_CLOSE = _Sent(keep=False)


class Closing(asyncio.Protocol):
    """Closes the connection as soon as it is made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()


class HttpServer:
    """Connects one event loop to one engine: makes the protocols of its connections."""

    def __init__(self, engine: Engine, *, round_trip: float = 0.0) -> None:
        self._engine = engine
        self._half_way = round_trip / 2
        self._loop = asyncio.get_running_loop()
        self._handling: set[asyncio.Task[Any]] = set()
        self._web = web.Server(
            self._handle, handler_cancellation=True, request_factory=self._make_request, access_log=None
        )
        self._draw = lru_cache(_PICTURES_KEPT)(_draw)
        # By connection, the bytes that leave when the head of its next request arrives.
        self._with_head: dict[asyncio.Transport, bytes] = {}

    def protocol(self) -> asyncio.Protocol:
        """Make the server's end of a new connection."""
        return self._web()

    def listening(self) -> asyncio.Protocol:
        """Make the server's end of a connection that the kernel has accepted, as the engine decides."""
        return Closing() if isinstance(self._engine.connect(), Drop) else self.protocol()

    async def aclose(self) -> None:
        """End every handler, hanging ones too, and close every connection."""
        self._web.pre_shutdown()
        handling = list(self._handling)
        for task in handling:
            task.cancel()
        await asyncio.gather(*handling, return_exceptions=True)
        await self._web.shutdown(timeout=1.0)

    def _make_request(  # aiohttp's signature
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=_MAX_BODY)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # aiohttp runs each handler in one
        self._handling.add(task)
        try:
            if early := self._with_head.pop(_transport(request), b""):
                await _write(request, early)
            headers = {name.lower(): value for name, value in request.headers.items()}
            body = await _read(request, headers) if request.can_read_body else b""
            await self._travel()
            action = self._engine.handle(request.method, request.raw_path, headers, body, self._loop.time())
            await self._travel()
            return await self._send(request, action)
        except ConnectionResetError:
            return _CLOSE  # the client has gone: aiohttp would log that as an error of the server
        finally:
            self._handling.discard(task)

    async def _travel(self) -> None:
        if self._half_way:
            await asyncio.sleep(self._half_way)

    async def _send(self, request: web.BaseRequest, action: Action) -> web.StreamResponse:
        if not isinstance(action, Hang) and action.delay:
            await asyncio.sleep(action.delay)
        match action:
            case Hang():
                await self._loop.create_future()
            case Reply():
                return await self._reply(request, action)
            case Reset():
                _reset(request)
            case Garbage():
                await _write(request, action.data)
            case Truncate():
                head = self._head(action, len(action.body) + action.missing)
                await _write(request, head + action.body)
            case _:
                await self._flood(request, action)
        return _CLOSE

    async def _reply(self, request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
        body, headers, cut = reply.body, reply.headers, reply.cut
        if isinstance(body, Placeholder):
            body, content_type = await self._loop.run_in_executor(None, self._draw, body)
            headers = {"Content-Type": content_type, **headers}
        paces = (reply.head_dribble, reply.dribble)
        keep = request.keep_alive and cut is None and paces == (None, None)
        zeros = reply.gzip if "gzip" in request.headers.get("Accept-Encoding", "") else None
        whole = encode_response(reply.status, headers, body, self._wall(), keep=keep, zeros=zeros)
        start = whole.index(b"\r\n\r\n") + 4
        if cut is not None:
            await _write(request, whole[: start + cut.after])
            if cut.silent:
                await self._loop.create_future()
            return _CLOSE
        parts = [(whole, None)] if paces == (None, None) else zip((whole[:start], whole[start:]), paces, strict=True)
        for part, pace in parts:
            for piece in [part] if pace is None else map(int.to_bytes, part):
                if pace is not None:
                    await asyncio.sleep(pace)
                await _write(request, piece)
        if keep and reply.unasked is not None:
            self._follow(request, reply.unasked, whole)
        return _KEEP if keep else _CLOSE

    def _follow(self, request: web.BaseRequest, unasked: Unasked, whole: bytes) -> None:
        reply = unasked.reply
        if reply is not None:
            whole = encode_response(reply.status, reply.headers, reply.body, self._wall(), keep=True)
        transport = _transport(request)
        if unasked.with_head:
            self._with_head = {each: early for each, early in self._with_head.items() if not each.is_closing()}
            self._with_head[transport] = whole
        else:
            self._loop.call_later(unasked.after, transport.write, whole)  # a closed one drops it

    def _head(self, action: Truncate | Endless, length: int | None) -> bytes:
        return encode_head(action.status, action.headers, _BYTES, length, self._wall(), keep=False)

    def _wall(self) -> float:
        return self._engine.service.epoch + self._loop.time()

    async def _flood(self, request: web.BaseRequest, action: Endless) -> None:
        chunk = action.chunk
        if action.raw is None:
            await _write(request, self._head(action, None))
            chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
        else:
            await _write(request, action.raw)
        while True:
            await _write(request, chunk)
            await request.writer.drain()
            # A reader as fast as the writer would otherwise keep every other task off the loop.
            await asyncio.sleep(action.every)


async def _read(request: web.BaseRequest, headers: dict[str, str]) -> bytes:
    if headers.get("expect", "").lower() == "100-continue":
        _transport(request).write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await request.read()


async def _write(request: web.BaseRequest, data: bytes) -> None:
    _transport(request).write(data)
    if len(data) > _DRAIN_ABOVE:
        await request.writer.drain()


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError
    return transport


def _reset(request: web.BaseRequest) -> None:
    transport = _transport(request)
    # Without this, closing a socket sends a FIN instead of a reset.
    if (sock := transport.get_extra_info("socket")) is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


# --- the port


class AsyncOnly:
    """A base of emulators: `with` says what to write instead."""

    if not TYPE_CHECKING:  # pragma: no branch  # for type checkers the mistake stays an error

        def __enter__(self) -> NoReturn:
            name = type(self).__name__
            raise TypeError(f"Use `async with`, not `with`: async with {name}() as emulator")

        def __exit__(self, *_: object) -> None:
            """Never reached; Python needs it before it calls `__enter__`."""


class Emulator(Engine, AsyncOnly):
    """The emulated service on a loopback port, in real time; takes `EmulatorOptions` besides its own.

    `async with Emulator() as emulator:` listens on `emulator.base_url` until the block ends. `round_trip` seconds lie
    between a request and its answer, half before it takes effect and half after. Of `connect`, only `Drop` can be
    scripted: the kernel does the rest. Its request ids are random, whatever the `seed`: they name files and journal
    entries, and the next emulator must not repeat those of this one. Without a `seed` it takes a random one.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, round_trip: float = 0.0, **options: Unpack[EmulatorOptions]
    ) -> None:
        options.setdefault("seed", secrets.randbits(32))
        super().__init__(**options)
        self.service.ids = random.Random()
        self.round_trip = round_trip
        self._address = (host, port)
        self._running: tuple[asyncio.Server, HttpServer] | None = None

    async def __aenter__(self) -> Self:
        """Start to listen.

        Raises:
            OSError: The port is taken, or you may not use it.
            RuntimeError: No asyncio event loop runs here.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("The emulator needs an asyncio event loop: use asyncio.run(...)") from None
        server = HttpServer(self, round_trip=self.round_trip)
        host, port = self._address
        listener = await loop.create_server(server.listening, host, port, backlog=_BACKLOG)
        self._running = (listener, server)
        port = listener.sockets[0].getsockname()[1]
        self.service.base_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.service.epoch = time.time() - loop.time()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop listening and close every connection."""
        if self._running is None:
            return
        (listener, server), self._running = self._running, None
        try:
            await _stop_accepting(listener)
        finally:
            listener.close()
            await server.aclose()
        await listener.wait_closed()

    def can_answer(self, endpoint: str, answer: Answer | None) -> bool:
        """Whether a port is able to do this: it can only drop a connection."""
        return endpoint != "connect" or answer is None or isinstance(answer, Drop)


async def _stop_accepting(listener: asyncio.Server) -> None:
    """Take no more sockets from the kernel, and wait until those that were taken are connections that can be closed.

    A server that is closed earlier would lose them: asyncio makes no connection for it any more, and leaves the sockets
    open.
    """
    loop = listener.get_loop()
    with suppress(NotImplementedError):  # Windows
        for sock in listener.sockets:
            loop.remove_reader(sock.fileno())
    for _ in range(_ACCEPT_TURNS):
        await asyncio.sleep(0)
