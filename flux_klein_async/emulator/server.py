"""Answers as bytes.

Pure. Must not know when they are sent, nor what they mean.

The engine behind HTTP: bytes in, the engine's answer out as bytes, on a loopback port.

The only module that imports aiohttp.web. It uses aiohttp's parser and connection handling alone and writes
answers itself, since half of them are meant to be wrong. Must not decide what an answer says.
"""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Self, Unpack

from aiohttp import web

from flux_klein_async.emulator.engine import Action, BaseEmulator, Call, Engine, Options
from flux_klein_async.emulator.pictures import draw, film
from flux_klein_async.emulator.scripts import Answer, Cut, Drop, Endless, Garbage, Hang, Reply, Reset, Truncate
from flux_klein_async.emulator.service import Draw

__all__ = ["Closing", "Emulator", "HttpServer", "body_and_type", "encode_head", "encode_response"]


_encode = json.JSONEncoder(separators=(",", ":")).encode
# Such answers end with their head, whatever their headers say.
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


def body_and_type(body: Any) -> tuple[bytes, str]:
    """Write a body down: bytes and text as they are, everything else as JSON."""
    if isinstance(body, bytes):
        return body, "application/octet-stream"
    if isinstance(body, str):
        return body.encode(), "text/html; charset=utf-8"
    return _encode(body).encode(), "application/json"


def encode_head(
    status: int, headers: Mapping[str, str], content_type: str, length: int | None, wall: float, *, keep: bool
) -> bytes:
    """Write the status line and the headers; those given win. `length` None: the body comes in chunks."""
    lines = [
        f"HTTP/1.1 {status} {_phrase(status)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    given = {name.lower() for name in headers}
    if "content-type" not in given:
        lines.append(f"Content-Type: {content_type}")
    if length is None:
        lines.append("Transfer-Encoding: chunked")
    elif "content-length" not in given and "transfer-encoding" not in given:
        lines.append(f"Content-Length: {length}")
    if "date" not in given:
        lines.append(f"Date: {_date(int(wall))}")
    if not keep:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def encode_response(status: int, headers: Mapping[str, str], body: Any, wall: float, *, keep: bool) -> bytes:
    """Write a whole answer."""
    data, content_type = (b"", "text/plain") if status in _BODILESS else body_and_type(body)
    return encode_head(status, headers, content_type, len(data), wall, keep=keep) + data


@lru_cache(maxsize=256)
def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


@lru_cache(maxsize=16)
def _date(wall: int) -> str:
    return formatdate(wall, usegmt=True)


# asyncio's default of 100 turns away most of ten thousand clients that arrive together; the kernel caps it.
_BACKLOG = 16_384
_MAX_BODY = 16 * 2**20
_DRAIN_ABOVE = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_PICTURES_KEPT = 8


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
    """Hangs up as soon as somebody is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hang up."""
        transport.close()


class HttpServer:
    """Connections of one event loop to one engine; the instance makes their protocols."""

    def __init__(self, engine: Engine, *, round_trip: float = 0.0) -> None:
        self._engine = engine
        self._half_way = round_trip / 2
        self._loop = asyncio.get_running_loop()
        self._handling: set[asyncio.Task[Any]] = set()
        self._web = web.Server(
            self._handle,
            handler_cancellation=True,
            request_factory=self._make_request,
            access_log=None,
        )
        self._draw = lru_cache(_PICTURES_KEPT)(_draw)

    def protocol(self) -> asyncio.Protocol:
        """Make the server's end of a new connection."""
        return self._web()

    def listening(self) -> asyncio.Protocol:
        """Make the server's end of a connection that a kernel has accepted, after asking what becomes of it."""
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
            headers = {name.lower(): value for name, value in request.headers.items()}
            body = await _read(request, headers) if request.can_read_body else b""
            await self._travel()
            action = self._engine.handle(Call(request.method, request.raw_path, headers, body), self._loop.time())
            await self._travel()
            return await self._send(request, action)
        except ConnectionResetError:
            return _CLOSE  # the client has gone: aiohttp would log that as our mistake
        finally:
            self._handling.discard(task)

    async def _travel(self) -> None:
        if self._half_way:
            await asyncio.sleep(self._half_way)

    async def _send(self, request: web.BaseRequest, action: Action) -> web.StreamResponse:
        if not isinstance(action, Hang) and action.delay:
            await asyncio.sleep(action.delay)
        keep = request.keep_alive
        match action:
            case Reply(cut=Cut() as cut):
                await self._break_off(request, action, cut)
            case Reply(dribble=None):
                await self._write(request, self._whole(action, keep=keep))
                return _KEEP if keep else _CLOSE
            case Draw():
                data, content_type = await self._loop.run_in_executor(None, self._draw, action)
                headers = {"Content-Type": content_type, **action.headers}
                reply = Reply(200, data, headers, cut=action.cut, dribble=action.dribble)
                return await self._send(request, reply)
            case Reply():
                await self._dribble(request, action)
            case Reset():
                _reset(request)
            case Garbage():
                await self._write(request, action.data)
            case Truncate():
                head = self._head(action, len(action.body) + action.missing)
                await self._write(request, head + action.body)
            case Hang():
                await self._loop.create_future()
            case _:
                await self._flood(request, action)
        return _CLOSE

    def _whole(self, reply: Reply, *, keep: bool) -> bytes:
        return encode_response(reply.status, reply.headers, reply.body, self._wall(), keep=keep)

    def _head(self, action: Truncate | Endless, length: int | None) -> bytes:
        default = "application/octet-stream"
        return encode_head(action.status, action.headers, default, length, self._wall(), keep=False)

    def _wall(self) -> float:
        return self._engine.service.epoch + self._loop.time()

    async def _write(self, request: web.BaseRequest, data: bytes) -> None:
        _transport(request).write(data)
        if len(data) > _DRAIN_ABOVE:
            await request.writer.drain()

    async def _break_off(self, request: web.BaseRequest, reply: Reply, cut: Cut) -> None:
        whole = self._whole(reply, keep=False)
        await self._write(request, whole[: whole.index(b"\r\n\r\n") + 4 + cut.after])
        if cut.silent:
            await self._loop.create_future()

    async def _dribble(self, request: web.BaseRequest, reply: Reply) -> None:
        whole = self._whole(reply, keep=False)
        end = whole.index(b"\r\n\r\n") + 4
        await self._write(request, whole[:end])
        for at in range(end, len(whole)):
            await asyncio.sleep(reply.dribble or 0.0)
            await self._write(request, whole[at : at + 1])

    async def _flood(self, request: web.BaseRequest, action: Endless) -> None:
        await self._write(request, self._head(action, None))
        chunk = b"%x\r\n%b\r\n" % (len(action.chunk), action.chunk)
        while True:
            await self._write(request, chunk)
            await request.writer.drain()
            # A reader as fast as the writer would otherwise keep everybody else off the loop.
            await asyncio.sleep(0)


async def _read(request: web.BaseRequest, headers: dict[str, str]) -> bytes:
    if headers.get("expect", "").lower() == "100-continue":
        _transport(request).write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await request.read()


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError
    return transport


def _reset(request: web.BaseRequest) -> None:
    transport = _transport(request)
    # A socket closed without this says a polite FIN, which is no reset.
    if (sock := transport.get_extra_info("socket")) is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


def _draw(action: Draw) -> tuple[bytes, str]:
    if action.suffix == "mp4":
        data, content_type = film(action.prompt, request_id=action.request_id), "video/mp4"
    else:
        size = (action.width, action.height)
        data = draw(action.prompt, *size, seed=action.seed, request_id=action.request_id)
        content_type = "image/png"
    return data, content_type


class Emulator(BaseEmulator):
    """The emulated service on a loopback port, in real time; takes `Options` besides host and port.

    `async with Emulator() as emulator:` listens on `emulator.base_url` until the block ends. `round_trip` seconds lie
    between a request and its answer, half before it takes effect and half after.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, round_trip: float = 0.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        self.round_trip = round_trip
        for endpoint, answers in (options.get("script") or {}).items():
            self._check(endpoint, *answers)
        self._address = (host, port)
        self._running: tuple[asyncio.Server, HttpServer] | None = None

    async def __aenter__(self) -> Self:
        """Start to listen.

        Raises:
            OSError: the port is taken, or not ours to take.
        """
        loop = asyncio.get_running_loop()
        server = HttpServer(self.engine, round_trip=self.round_trip)
        host, port = self._address
        listener = await loop.create_server(server.listening, host, port, backlog=_BACKLOG)
        self._running = (listener, server)
        port = listener.sockets[0].getsockname()[1]
        self.engine.service.base_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.engine.service.epoch = time.time() - loop.time()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop listening and drop every connection."""
        if self._running is None:
            return
        (listener, server), self._running = self._running, None
        listener.close()
        await server.aclose()
        await listener.wait_closed()

    def script(self, endpoint: str, *answers: Answer | None) -> None:
        """As in process, but that a connection can only be dropped: the rest of `connect` is the kernel's here.

        Raises:
            ValueError: no such endpoint, or an answer that it cannot give.
        """
        self._check(endpoint, *answers)
        super().script(endpoint, *answers)

    def fault(self, endpoint: str, *answers: Answer, probability: float) -> None:
        """As in process, but that a connection can only be dropped: the rest of `connect` is the kernel's here.

        Raises:
            ValueError: no such endpoint, an answer that it cannot give, none at all, or no probability.
        """
        self._check(endpoint, *answers)
        super().fault(endpoint, *answers, probability=probability)

    def can_answer(self, endpoint: str, answer: Answer | None) -> bool:
        """Whether a port can do it: a connection can only be dropped, the rest of `connect` is the kernel's."""
        return endpoint != "connect" or answer is None or isinstance(answer, Drop)

    def _check(self, endpoint: str, *answers: Answer | None) -> None:
        if not all(self.can_answer(endpoint, answer) for answer in answers):
            raise ValueError("on a loopback port 'connect' can only be answered with Drop: use InProcessEmulator")
