"""The server closes an idle connection under a submit: uncertain if and only if a byte of the body was written."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
import pytest

from flux_klein_async import FluxKleinClient, RequestHandle, RetryPolicy, SubmissionUncertainError
from flux_klein_async.emulator.inprocess import join
from flux_klein_async.transport.aiohttp import gone
from tests.fakes import outcome, settle, strays

pytestmark = pytest.mark.slow

TOKEN = "very-secret-token"
MARK = b'"prompt"'  # of a submit's body
QUICK = RetryPolicy(initial=0.001, maximum=0.001)


def answer(request: bytes) -> bytes:
    """A model's catalogue entry, or an accepted submit."""
    submit = request.startswith(b"POST")
    body = json.dumps({"request_id": "r-1"} if submit else {"model_id": "m"}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def whole(data: bytes) -> bool:
    """Whether a request has arrived to its last byte."""
    head, end, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end) and len(body) >= (int(lengths[0].split(b":")[1]) if lengths else 0)


# --- in memory, at every step of the loop


class Server(asyncio.Protocol):
    """Answers one request after the other; counts the submits that reached it whole."""

    accepted = 0
    leaves_on: bytes | None = None  # leave on sight of these bytes, without an answer

    def __init__(self) -> None:
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.leaves_on is not None and self.leaves_on in self.received:
            self.transport.abort()
        elif whole(self.received):
            Server.accepted += self.received.startswith(b"POST")
            self.transport.write(answer(self.received))
            self.received = b""


@dataclass
class Connection:
    """What a test knows of one connection."""

    server: Server
    written: list[bytes] = field(default_factory=list)  # by the client


class Wire(aiohttp.BaseConnector):
    """Connects to `Server` in memory and keeps what the client's end was given to write."""

    def __init__(self) -> None:
        super().__init__()
        self.connections: list[Connection] = []

    def _cleanup(self) -> None:
        """No timers by the real clock in virtual time."""

    async def _create_connection(self, *_: Any) -> Any:
        client, connection = self._factory(), Connection(Server())
        join(self._loop, client, connection.server)
        write = client.transport.write

        def noted(data: bytes) -> None:
            connection.written.append(bytes(data))
            write(data)

        client.transport.write = noted
        self.connections.append(connection)
        return client


@asynccontextmanager
async def wired(**options: Any) -> AsyncIterator[tuple[FluxKleinClient, Wire]]:
    """A client with one idle connection."""
    Server.accepted, Server.leaves_on = 0, None
    wire = Wire()
    async with aiohttp.ClientSession(connector=wire, **options) as session:
        async with FluxKleinClient(TOKEN, base_url="https://api.invalid", session=session, retry=QUICK) as client:
            await client.get_model("m")
            yield client, wire
        await settle()
        assert strays() == []


def bodies(wire: Wire) -> int:
    return sum(MARK in b"".join(connection.written) for connection in wire.connections)


def consistent(found: object, wire: Wire) -> None:
    """The rule: an uncertain submit is one whose body was written and not answered; all else is accepted once."""
    if isinstance(found, SubmissionUncertainError):
        assert (bodies(wire), Server.accepted <= 1, found.charged) == (1, True, "unknown")
    else:
        assert isinstance(found, RequestHandle), found
        assert (bodies(wire), Server.accepted) == (1, 1)


@pytest.mark.usefixtures("klein_emulator")
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_connection_that_closed_while_idle_is_not_used(how):
    async with wired() as (client, wire):
        getattr(wire.connections[0].server.transport, how)()
        await settle()
        consistent(await client.submit("a cat"), wire)
    assert [bool(connection.written) for connection in wire.connections] == [True, True]
    assert MARK not in b"".join(wire.connections[0].written)


@pytest.mark.usefixtures("klein_emulator")
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_whenever_it_closes_a_submit_is_uncertain_only_if_its_body_was_written(how):
    """Closes at each step of the loop from the call of `submit` to its end, one run a step."""
    kinds = []
    for step in range(60):
        async with wired() as (client, wire):
            submit = asyncio.ensure_future(client.submit("a cat"))
            for _ in range(step):
                await asyncio.sleep(0)
            if submit.done():
                await submit
                break
            getattr(wire.connections[0].server.transport, how)()
            found = await outcome(submit)
            consistent(found, wire)
            kinds.append((type(found), len(wire.connections)))
    assert submit.done()
    # Each of the three was met: repeated on a new connection, lost, and accepted before the close.
    assert {(RequestHandle, 2), (SubmissionUncertainError, 1)} <= set(kinds)
    assert kinds.index((SubmissionUncertainError, 1)) > kinds.index((RequestHandle, 2))


@pytest.mark.usefixtures("klein_emulator")
@pytest.mark.parametrize("seen", [b"POST", b"\r\n\r\n", MARK], ids=["headers", "end of headers", "body"])
async def test_headers_leave_together_with_the_body_so_that_a_close_after_them_is_uncertain(seen):
    async with wired() as (client, wire):
        Server.leaves_on = seen
        found = await outcome(client.submit("a cat"))
        assert isinstance(found, SubmissionUncertainError)
        consistent(found, wire)
    [submit] = [data for data in wire.connections[0].written if b"POST" in data]
    assert submit.count(MARK) == 1
    assert len(wire.connections) == 1


@pytest.mark.usefixtures("klein_emulator")
async def test_a_body_too_large_for_the_window_has_been_written_while_its_rest_waits():
    async with wired() as (client, wire):
        far = wire.connections[0].server.transport
        far.pause_reading()
        submit = asyncio.ensure_future(client.submit({"prompt": "x" * 500_000}))
        await settle()
        assert (bodies(wire), submit.done()) == (1, False)
        far.abort()
        found = await outcome(submit)
        assert isinstance(found, SubmissionUncertainError)
        consistent(found, wire)


@pytest.mark.usefixtures("klein_emulator")
async def test_a_close_while_a_trace_is_awaited_before_the_write_is_not_uncertain():
    """The guard has been asked by then, yet nothing left: it is told so."""
    trace = aiohttp.TraceConfig()
    chunks = []

    async def before_the_write(_session: Any, _context: Any, parameters: Any) -> None:
        chunks.append(parameters.chunk)
        if len(chunks) == 1:
            wire.connections[0].server.transport.close()
            await settle()

    trace.on_request_chunk_sent.append(before_the_write)
    async with wired(trace_configs=[trace]) as (client, wire):
        found = await client.submit("a cat")
        consistent(found, wire)
    assert (len(chunks), len(wire.connections)) == (2, 2)


@pytest.mark.usefixtures("klein_emulator")
async def test_a_middleware_that_sends_again_does_not_pay_twice():
    async def twice(request: Any, handler: Any) -> Any:
        first = await handler(request)
        if request.method == "POST":
            first.close()
            return await handler(request)
        return first

    async with wired(middlewares=[twice]) as (client, wire):
        found = await outcome(client.submit("a cat"))
    assert isinstance(found, SubmissionUncertainError)
    assert (bodies(wire), Server.accepted) == (1, 1)


# --- on real sockets, where the kernel decides


@dataclass
class Accepted:
    """The server's side of one connection, read byte by byte as the test wants."""

    sock: socket.socket
    received: bytes = b""

    async def read(self, enough: Callable[[bytes], bool], step: int = 65_536) -> None:
        loop = asyncio.get_running_loop()
        while not enough(self.received):
            data = await loop.sock_recv(self.sock, step)
            assert data
            self.received += data

    async def serve(self) -> None:
        """Answer one request."""
        await self.read(whole)
        await asyncio.get_running_loop().sock_sendall(self.sock, answer(self.received))
        self.received = b""

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Port:
    """A listening socket; connections are taken as the test wants."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # a large body does not fit
        self.listener.setblocking(False)
        self.taken: list[Accepted] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    async def take(self) -> Accepted:
        sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        self.taken.append(Accepted(sock))
        return self.taken[-1]

    async def serve_one(self) -> Accepted:
        taken = await self.take()
        await taken.serve()
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        for accepted in self.taken:
            accepted.sock.close()


@asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[FluxKleinClient, Port, Accepted]]:
    """A client with one idle connection, and the server's end of it."""
    with Port() as port:
        session = aiohttp.ClientSession(**options) if options else None
        client = FluxKleinClient(TOKEN, base_url=port.base_url, retry=QUICK, session=session)
        async with client:
            serving = asyncio.ensure_future(port.serve_one())
            await client.get_model("m")
            yield client, port, await serving
        if session is not None:
            await session.close()


LEAVE = {"closed": lambda far: far.sock.close(), "reset": Accepted.reset}


@pytest.mark.parametrize("how", LEAVE)
async def test_a_goodbye_that_only_the_kernel_has_heard_is_heard_before_the_body_leaves(how):
    """The server leaves after the connection was taken from the pool; the loop has no chance to read that."""
    trace = aiohttp.TraceConfig()
    known = []

    async def leave(*_: Any) -> None:
        if not known:
            LEAVE[how](far)
            known.append(True)

    trace.on_connection_reuseconn.append(leave)
    async with connected(trace_configs=[trace]) as (client, port, far):
        serving = asyncio.ensure_future(port.serve_one())
        assert isinstance(await client.submit("a cat"), RequestHandle)
        again = await serving
    assert known == [True]
    assert (far.received, len(port.taken)) == (b"", 2)
    assert again.received == b""  # answered


@pytest.mark.parametrize("how", LEAVE)
async def test_a_goodbye_that_the_loop_has_heard_costs_no_attempt(how):
    async with connected() as (client, port, far):
        LEAVE[how](far)
        serving = asyncio.ensure_future(port.serve_one())
        assert isinstance(await client.submit("a cat"), RequestHandle)
        await serving
    assert len(port.taken) == 2


MOMENTS: dict[str, Callable[[bytes], bool]] = {
    "the first byte of the headers": lambda data: len(data) >= 1,
    "the headers": lambda data: b"\r\n\r\n" in data,
    "the first byte of the body": lambda data: len(data.partition(b"\r\n\r\n")[2]) >= 1,
    "the whole body": whole,
}


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["small", "large"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", LEAVE)
async def test_a_server_that_leaves_while_it_reads_leaves_an_uncertain_submit_behind(how, moment, size):
    async with connected() as (client, port, far):
        submit = asyncio.ensure_future(client.submit({"prompt": "x" * size}))
        await far.read(MOMENTS[moment], step=65_536 if moment == "the whole body" else 1)
        LEAVE[how](far)
        error = await outcome(submit)
    assert isinstance(error, SubmissionUncertainError)
    assert error.charged == "unknown"
    assert len(port.taken) == 1  # and was not sent again


async def test_a_quiet_idle_connection_is_used_again():
    async with connected() as (client, port, far):
        serving = asyncio.ensure_future(far.serve())
        assert isinstance(await client.submit("a cat"), RequestHandle)
        await serving
        assert not gone(None if far is None else _transport(client))
    assert len(port.taken) == 1


def _transport(client: FluxKleinClient) -> asyncio.BaseTransport:
    [[(protocol, _)]] = client._context.transport._api.connector._conns.values()
    return protocol.transport
