"""A server closes an idle connection during a submit: uncertain if and only if a byte of the body was written."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from flux_klein_async import FluxKleinClient, RequestHandle, RetryPolicy, SubmissionUncertainError
from flux_klein_async.emulator.inprocess import join
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
    """Answers the requests of one connection; counts the submits that arrive whole."""

    accepted = 0

    def __init__(self) -> None:
        self.received = b""
        self.written = b""  # by the client

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        if whole(self.received):
            Server.accepted += self.received.startswith(b"POST")
            self.transport.write(answer(self.received))
            self.received = b""


class Wire(aiohttp.BaseConnector):
    """Connects to a `Server` in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.servers: list[Server] = []

    def _cleanup(self) -> None:
        """No timers by the real clock in virtual time."""

    async def _create_connection(self, *_: Any) -> Any:
        client, server = self._factory(), Server()
        join(self._loop, client, server)
        write = client.transport.write

        def noted(data: bytes) -> None:
            server.written += data
            write(data)

        client.transport.write = noted
        self.servers.append(server)
        return client


@asynccontextmanager
async def wired(**options: Any) -> AsyncIterator[tuple[FluxKleinClient, Wire]]:
    """A client with one idle connection."""
    Server.accepted = 0
    wire = Wire()
    async with aiohttp.ClientSession(connector=wire, **options) as session:
        async with FluxKleinClient(TOKEN, base_url="https://api.invalid", session=session, retry=QUICK) as client:
            await client.get_model("m")
            yield client, wire
        await settle()
        assert strays() == []


def consistent(found: object, wire: Wire) -> None:
    """The rule: a submit whose body was written and not answered is uncertain; every other one is accepted once."""
    bodies = sum(MARK in server.written for server in wire.servers)
    if isinstance(found, SubmissionUncertainError):
        assert (bodies, Server.accepted <= 1, found.charged) == (1, True, "unknown")
    else:
        assert isinstance(found, RequestHandle), found
        assert (bodies, Server.accepted) == (1, 1)


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
            getattr(wire.servers[0].transport, how)()
            found = await outcome(submit)
            consistent(found, wire)
            kinds.append((type(found), len(wire.servers)))
    assert submit.done()
    # Early closes lead to a repeat on a new connection, later ones to an uncertain submit.
    assert {(RequestHandle, 2), (SubmissionUncertainError, 1)} <= set(kinds)
    assert kinds.index((SubmissionUncertainError, 1)) > kinds.index((RequestHandle, 2))


@pytest.mark.usefixtures("klein_emulator")
async def test_a_close_while_a_trace_is_awaited_before_the_write_is_not_uncertain():
    """The guard allowed the write by then, but nothing was written: the submit is repeated."""
    trace = aiohttp.TraceConfig()
    chunks = []

    async def before_the_write(_session: Any, _context: Any, parameters: Any) -> None:
        chunks.append(parameters.chunk)
        if len(chunks) == 1:
            wire.servers[0].transport.close()
            await settle()

    trace.on_request_chunk_sent.append(before_the_write)
    async with wired(trace_configs=[trace]) as (client, wire):
        consistent(await client.submit("a cat"), wire)
    assert (len(chunks), len(wire.servers)) == (2, 2)


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
    consistent(found, wire)


# --- on real sockets, where the kernel decides


@dataclass
class Accepted:
    """The server's side of one connection, read in steps."""

    sock: socket.socket
    received: bytes = b""

    async def read(self, enough: Callable[[bytes], bool], step: int = 65_536) -> None:
        while not enough(self.received):
            data = await asyncio.get_running_loop().sock_recv(self.sock, step)
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
    """A listening socket whose connections the test accepts."""

    def __init__(self, listener: socket.socket) -> None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # a large body does not fit
        listener.setblocking(False)
        self.listener = listener
        self.taken: list[Accepted] = []

    async def serve_one(self) -> Accepted:
        sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        self.taken.append(Accepted(sock))
        await self.taken[-1].serve()
        return self.taken[-1]


@asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[FluxKleinClient, Port, Accepted]]:
    """A client with one idle connection, and the server's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = Port(listener)
        session = aiohttp.ClientSession(**options) if options else None
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with FluxKleinClient(TOKEN, base_url=address, retry=QUICK, session=session) as client:
            serving = asyncio.ensure_future(port.serve_one())
            await client.get_model("m")
            yield client, port, await serving
        if session is not None:
            await session.close()
        for accepted in port.taken:
            accepted.sock.close()


LEAVE = {"closed": lambda far: far.sock.close(), "reset": Accepted.reset}


@pytest.mark.parametrize("how", LEAVE)
async def test_a_close_that_only_the_kernel_knows_is_noticed_before_the_body_is_written(how):
    """The server leaves after the connection was taken from the pool, and the loop has no chance to read that."""
    trace = aiohttp.TraceConfig()
    left = []

    async def leave(*_: Any) -> None:
        if not left:
            LEAVE[how](far)
            left.append(True)

    trace.on_connection_reuseconn.append(leave)
    async with connected(trace_configs=[trace]) as (client, port, far):
        serving = asyncio.ensure_future(port.serve_one())
        assert isinstance(await client.submit("a cat"), RequestHandle)
        await serving
    assert (left, far.received, len(port.taken)) == ([True], b"", 2)


@pytest.mark.parametrize("how", [*LEAVE, "stays"])
async def test_an_idle_connection_is_used_again_unless_it_was_closed(how):
    async with connected() as (client, port, far):
        if how in LEAVE:
            LEAVE[how](far)
        serving = asyncio.ensure_future(port.serve_one() if how in LEAVE else far.serve())
        assert isinstance(await client.submit("a cat"), RequestHandle)
        await serving
    assert len(port.taken) == (2 if how in LEAVE else 1)


MOMENTS: dict[str, Callable[[bytes], bool]] = {
    "the first byte of the headers": lambda data: len(data) >= 1,
    "the headers": lambda data: b"\r\n\r\n" in data,
    "the first byte of the body": lambda data: len(data.partition(b"\r\n\r\n")[2]) >= 1,
    "the whole body": whole,
}


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["small", "larger than the window"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", LEAVE)
async def test_a_server_that_leaves_while_it_reads_makes_the_submit_uncertain(how, moment, size):
    async with connected() as (client, port, far):
        submit = asyncio.ensure_future(client.submit({"prompt": "x" * size}))
        await far.read(MOMENTS[moment], step=65_536 if moment == "the whole body" else 1)
        LEAVE[how](far)
        error = await outcome(submit)
    assert isinstance(error, SubmissionUncertainError)
    assert error.charged == "unknown"
    assert len(port.taken) == 1  # it was not sent again
