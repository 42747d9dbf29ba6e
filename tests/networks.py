"""What stands between a client and the service: TLS with a certificate authority of our own, and a CONNECT proxy.

All of it on loopback sockets, whatever the names in the addresses.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import trustme
from aiohttp.abc import AbstractResolver

from flux_klein_async.emulator import Engine
from flux_klein_async.emulator.server import HttpServer

API_HOST = "model-api.runcomfy.net"
FILE_HOST = "storage.runcomfy.com"
API = f"https://{API_HOST}"
FILES = f"https://{FILE_HOST}"


@cache
def authority() -> trustme.CA:
    """The throw-away CA of this run."""
    return trustme.CA()


def write_authority(directory: Path) -> str:
    """The CA as a file, for SSL_CERT_FILE."""
    path = directory / "ca.pem"
    authority().cert_pem.write_to_path(path)
    return str(path)


def server_context(*names: str) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    """A client's side of TLS that trusts the CA, for sessions to borrow."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


async def until(holds: Callable[[], Any]) -> None:
    """Let the loop run until something holds that no event tells; 10 s of waiting for it are a failure."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@asynccontextmanager
async def tls_service(engine: Engine, *names: str) -> AsyncIterator[int]:
    """The emulated service behind TLS; gives its port."""
    loop = asyncio.get_running_loop()
    engine.service.epoch = time.time() - loop.time()
    server = HttpServer(engine)
    listener = await loop.create_server(server.protocol, "127.0.0.1", 0, ssl=server_context(*names))
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await server.aclose()
        await listener.wait_closed()


def service() -> Engine:
    """The service under the names that it has in the world."""
    return Engine(profile="fixed:0.01", base_url=API, files_url=FILES)


Behaviour = Callable[["ConnectProxy", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ConnectProxy:
    """An HTTP proxy that makes tunnels, all to one port, and remembers what it was told and what it carried."""

    def __init__(self, upstream: int, *behaviours: Behaviour) -> None:
        self.heads: list[bytes] = []
        self.carried = bytearray()  # both ways
        self._upstream = upstream
        self._behaviours = list(behaviours)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.port = 0

    @property
    def targets(self) -> list[str]:
        """What was asked for, without the heads' other lines."""
        return [head.split(b" ")[1].decode() for head in self.heads]

    @property
    def seen(self) -> bytes:
        """Every byte that the proxy could read."""
        return b"".join(self.heads) + bytes(self.carried)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["ConnectProxy"]:
        """Listen until the block ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            behaviour = self._behaviours.pop(0) if self._behaviours else tunnel
            await behaviour(self, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One way of a tunnel."""
        while data := await reader.read(65_536):
            self.carried += data
            writer.write(data)
        writer.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the service."""
        return await asyncio.open_connection("127.0.0.1", self._upstream)


async def tunnel(proxy: ConnectProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What a proxy is for."""
    far_reader, far_writer = await proxy.connect()
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    try:
        await asyncio.gather(proxy.carry(reader, far_writer), proxy.carry(far_reader, writer))
    finally:
        far_writer.transport.abort()


def answering(data: bytes) -> Behaviour:
    """Says this, and no more."""

    async def answer(_proxy: ConnectProxy, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return answer


class Names(AbstractResolver):
    """A name server whose one answer changes; all of it is on this machine, on ports of its own."""

    def __init__(self, *ports: int) -> None:
        self.ports = list(ports)
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
        self.asked += 1
        return [
            {"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
            for port in self.ports
        ]

    async def close(self) -> None:
        """Hold nothing."""

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> Any:
        """The same for the loop's own resolver; uvloop asks it again for the address that it is to connect to."""
        if host == "127.0.0.1":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in self.ports]


def closed_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
