"""Whether a kept connection may be used again: on real sockets, before the loop has heard of anything."""

import asyncio
import select
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.client_proto import ResponseHandler

from flux_klein_async.transport import aiohttp as aiohttp_transport
from flux_klein_async.transport.aiohttp import quiet
from tests.fakes import settle
from tests.networks import client_context, server_context

Ends = tuple[ResponseHandler, socket.socket]


@asynccontextmanager
async def joined() -> AsyncIterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(lambda: ResponseHandler(loop), sock=near)
    protocol.set_response_params(read_timeout=60)
    with far:
        yield protocol, far
    protocol.close()
    await settle()


@pytest_asyncio.fixture
async def ends() -> AsyncIterator[Ends]:
    """A protocol of aiohttp, and the bare socket at its other end."""
    async with joined() as both:
        yield both


async def test_a_quiet_peer_is_there(ends):
    assert await quiet(ends[0])


async def test_where_the_system_cannot_be_asked_the_loop_knows_best(ends, monkeypatch):
    protocol, far = ends
    monkeypatch.setattr(aiohttp_transport, "_POLL", None)
    assert await quiet(protocol)
    far.send(HEAD)
    await settle()
    assert not await quiet(protocol)
    protocol.transport.close()
    assert not await quiet(protocol)


def reset(far: socket.socket) -> None:
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()


HEAD = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 2\r\n\r\n"
UNASKED = {
    "closed": socket.socket.close,
    "reset": reset,
    "half closed": lambda far: far.shutdown(socket.SHUT_WR),
    "an answer": lambda far: far.send(HEAD + b"{}"),
    "two answers": lambda far: far.send((HEAD + b"{}") * 2),
    "an answer without its body": lambda far: far.send(HEAD),
    "half a head": lambda far: far.send(HEAD[:20]),
    "one byte": lambda far: far.send(b"H"),
    "no HTTP": lambda far: far.send(b"\0" * 40),
    "an empty line": lambda far: far.send(b"\r\n"),
    "another protocol": lambda far: far.send(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    ),
    "an answer and a close": lambda far: (far.send(HEAD + b"{}"), far.close()),
}


@pytest.mark.parametrize("turns", [0, 1, 2, 20])
@pytest.mark.parametrize("does", UNASKED)
async def test_a_peer_that_left_or_spoke_is_found_out_whether_or_not_the_loop_has_read_it(ends, does, turns):
    protocol, far = ends
    UNASKED[does](far)
    for _ in range(turns):
        await asyncio.sleep(0)
    assert not await quiet(protocol) or not hasattr(select, "poll")


async def test_more_than_the_loop_can_read_at_once_is_not_waited_for(ends):
    protocol, far = ends
    protocol.transport.pause_reading()
    far.send(b"H")
    assert not await quiet(protocol) or not hasattr(select, "poll")


async def test_a_session_ticket_of_tls_is_no_answer():
    """A server's tickets come after the handshake, so that the socket is readable while nothing was said."""
    loop = asyncio.get_running_loop()
    servers: list[Any] = []

    class Far(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            servers.append(transport)

    listener = await loop.create_server(Far, "127.0.0.1", 0, ssl=server_context("localhost"))
    address = listener.sockets[0].getsockname()
    factory = lambda: ResponseHandler(loop)  # noqa: E731
    _, protocol = await loop.create_connection(factory, *address, ssl=client_context(), server_hostname="localhost")
    protocol.set_response_params(read_timeout=60)
    assert await quiet(protocol)
    await settle()
    assert protocol.transport.get_extra_info("ssl_object").version() == "TLSv1.3"
    servers[0].write(HEAD + b"{}")
    assert not await quiet(protocol)
    protocol.abort()
    servers[0].abort()
    listener.close()
    await settle()


class Odd(asyncio.Transport):
    """A transport with a socket that is not like others."""

    def __init__(self, sock: Any) -> None:
        super().__init__({"socket": sock})

    def is_closing(self) -> bool:
        return False


def over(transport: Any) -> Any:
    return SimpleNamespace(transport=transport, should_close=False, _read_timeout_handle=None)


async def test_no_transport_is_gone():
    assert not await quiet(over(None))


async def test_in_memory_only_the_transport_itself_knows():
    assert await quiet(over(Odd(None)))


async def test_what_the_loop_is_about_to_tell_is_waited_for_where_only_the_loop_knows():
    protocol = over(Odd(None))
    asyncio.get_running_loop().call_soon(setattr, protocol, "should_close", True)
    assert not await quiet(protocol)


async def test_a_socket_that_was_taken_away_is_gone():
    with socket.socket() as taken:
        pass
    assert not await quiet(over(Odd(taken)))
