"""Whether the other end has gone, before the loop has heard of it: on real sockets, without letting the loop run."""

import asyncio
import select
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from flux_klein_async.transport import aiohttp as aiohttp_transport
from flux_klein_async.transport.aiohttp import gone

Ends = tuple[asyncio.Transport, socket.socket]


@pytest_asyncio.fixture
async def ends() -> AsyncIterator[Ends]:
    """A transport of the loop, and the bare socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=near)
    with far:
        yield transport, far
    transport.close()


def test_no_transport_is_gone():
    assert gone(None)


async def test_a_quiet_peer_is_there(ends):
    assert not gone(ends[0])


async def test_where_the_system_cannot_be_asked_the_loop_knows_best(ends, monkeypatch):
    monkeypatch.setattr(aiohttp_transport, "_POLL", None)
    ends[1].close()
    assert not gone(ends[0])
    ends[0].close()
    assert gone(ends[0])


async def test_a_closed_transport_is_gone(ends):
    ends[0].close()
    assert gone(ends[0])


def reset(far: socket.socket) -> None:
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()


@pytest.mark.parametrize(
    "leave",
    [socket.socket.close, reset, lambda far: far.shutdown(socket.SHUT_WR)],
    ids=["closed", "reset", "half closed"],
)
async def test_a_peer_that_left_is_gone_before_the_loop_has_read_it(ends, leave):
    transport, far = ends
    leave(far)
    assert (transport.is_closing(), gone(transport)) == (False, hasattr(select, "poll"))


async def test_something_to_read_is_no_goodbye(ends):
    transport, far = ends
    far.send(b"a TLS session ticket")
    assert not gone(transport)


class Odd(asyncio.Transport):
    """A transport with a socket that is not like others."""

    def __init__(self, sock: Any) -> None:
        super().__init__({"socket": sock})

    def is_closing(self) -> bool:
        return False


def test_in_memory_only_the_transport_itself_knows():
    assert not gone(Odd(None))


def test_a_socket_that_was_taken_away_is_gone():
    with socket.socket() as taken:
        pass
    assert gone(Odd(taken))
