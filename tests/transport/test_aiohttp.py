"""The shell around aiohttp: every failure is mapped, every body bounded, nothing of a request is kept."""

import asyncio
import gzip
import socket
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from flux_klein_async import (
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    FluxKleinClient,
    FluxKleinError,
    InvalidResponseError,
    Limits,
)
from flux_klein_async.api.credentials import Redactor
from flux_klein_async.api.messages import Kind, Request
from flux_klein_async.emulator import Endless, Pass, Refuse, Reply
from flux_klein_async.transport.aiohttp import MEANINGS, AiohttpTransport, map_error
from flux_klein_async.transport.base import BodyGuard
from tests.fakes import now, outcome, settle, strays

TOKEN = "very-secret-token"
NOTHING_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.ClientHttpProxyError,
)


def walk(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    yield cls
    for below in cls.__subclasses__():
        yield from walk(below)


TREE = sorted(set(walk(aiohttp.ClientError)) - {aiohttp.ClientError}, key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_of_aiohttp_has_a_meaning_of_its_own_branch(cls):
    """Fails where a new aiohttp brings a branch that only the root's fallback would catch."""
    assert any(ancestor in MEANINGS for ancestor in cls.__mro__[: cls.__mro__.index(aiohttp.ClientError)])


def sample(cls: type[BaseException]) -> BaseException:
    """An instance that holds the request with its token, as aiohttp's own do."""
    headers = CIMultiDictProxy(CIMultiDict({"Authorization": f"Bearer {TOKEN}"}))
    info = RequestInfo(URL("https://api.invalid/"), "POST", headers)
    key = ConnectionKey("api.invalid", 443, True, True, None, None, None)
    if issubclass(cls, aiohttp.ClientResponseError):
        return cls(info, (), status=400, message=f"bad {TOKEN}", headers=CIMultiDict())
    if issubclass(cls, aiohttp.ClientSSLError):
        return cls(key, OSError(1, f"no {TOKEN}"))
    if issubclass(cls, aiohttp.client_exceptions.UnixClientConnectorError):
        return cls("/nowhere", key, OSError(1, "refused"))
    if issubclass(cls, aiohttp.ClientConnectorError):
        return cls(key, OSError(1, "refused"))
    if issubclass(cls, aiohttp.ServerFingerprintMismatch):
        return cls(b"a", b"b", "api.invalid", 443)
    return cls(f"about {TOKEN}")


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "cls", [*TREE, aiohttp.ClientError, OSError, TimeoutError, RuntimeError], ids=lambda cls: cls.__name__
)
def test_a_mapped_error_is_ours_keeps_type_and_text_and_drops_the_request(cls, begun):
    guard = BodyGuard()
    if begun:
        guard.begin()
    error = map_error(sample(cls), Redactor(TOKEN), guard)
    assert isinstance(error, FluxKleinError)
    assert (error.__cause__, error.__context__) == (None, None)
    assert cls.__name__ in str(error)
    assert TOKEN not in f"{error} {vars(error)}"
    if isinstance(error, APIConnectionError | APITimeoutError):
        assert error.sent is (begun and not issubclass(cls, NOTHING_SENT))


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        (aiohttp.ClientConnectorError, APIConnectionError),
        (aiohttp.ClientConnectorCertificateError, APIConnectionError),
        (aiohttp.ServerDisconnectedError, APIConnectionError),
        (aiohttp.ClientPayloadError, APIConnectionError),
        (aiohttp.ConnectionTimeoutError, APITimeoutError),
        (aiohttp.SocketTimeoutError, APITimeoutError),
        (aiohttp.ClientResponseError, InvalidResponseError),
        (aiohttp.InvalidURL, ConfigurationError),
        (TimeoutError, APITimeoutError),
        (ConnectionResetError, APIConnectionError),
    ],
)
def test_what_an_error_means(cls, kind):
    assert type(map_error(sample(cls), Redactor(TOKEN), None)) is kind


# --- phases of a call, on the real connector


async def _hang(*_: Any, **__: Any) -> Any:
    await asyncio.get_running_loop().create_future()


async def _local(*_: Any, **__: Any) -> list[Any]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 9))]


async def _nothing() -> None:
    return None


async def _shake_hands_for_ever(*_: Any, sock: socket.socket, **__: Any) -> Any:
    with sock:
        await asyncio.get_running_loop().create_future()


PHASES = {
    "DNS": {"getaddrinfo": _hang},
    "connect": {"getaddrinfo": _local, "sock_connect": _hang},
    "TLS": {"getaddrinfo": _local, "sock_connect": lambda *_: _nothing(), "create_connection": _shake_hands_for_ever},
}


@pytest.mark.usefixtures("klein_emulator")  # for its virtual time
@pytest.mark.parametrize("phase", PHASES)
async def test_a_call_cancelled_while_connecting_sends_nothing_and_leaves_no_task(phase, monkeypatch):
    loop = asyncio.get_running_loop()
    for name, stand_in in PHASES[phase].items():
        monkeypatch.setattr(loop, name, stand_in)
    client = FluxKleinClient(TOKEN, base_url="https://api.invalid")
    task = asyncio.ensure_future(client.generate("a cat"))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 1.0
    assert await client.aclose() == ()
    await settle()
    assert strays() == []


@pytest.mark.usefixtures("klein_emulator")
@pytest.mark.parametrize("phase", PHASES)
async def test_a_deadline_while_connecting_is_exact_and_costs_nothing(phase, monkeypatch):
    loop = asyncio.get_running_loop()
    for name, stand_in in PHASES[phase].items():
        monkeypatch.setattr(loop, name, stand_in)
    async with FluxKleinClient(TOKEN, base_url="https://api.invalid", timeout=7.5) as client:
        error = await outcome(client.generate("a cat"))
    assert (isinstance(error, APITimeoutError), error.charged, now()) == (True, "no", 7.5)


@pytest.mark.usefixtures("klein_emulator")
async def test_a_connection_that_takes_too_long_was_never_sent_anything(monkeypatch):
    loop = asyncio.get_running_loop()
    for name, stand_in in PHASES["connect"].items():
        monkeypatch.setattr(loop, name, stand_in)
    async with FluxKleinClient(TOKEN, base_url="https://api.invalid", timeout=None) as client:
        error = await outcome(client.submit("a cat"))
    assert (type(error), error.sent, error.charged) == (APITimeoutError, False, "no")
    assert "ConnectionTimeoutError" in str(error)
    assert 50 <= now() <= 55  # five attempts of ten seconds, and the pauses between them


async def test_waiting_for_a_free_connection_is_not_silence(klein_emulator, connect):
    session = klein_emulator.session(connector=klein_emulator.connector(limit=1))
    client = connect(session=session, timeout=600)
    klein_emulator.script("model", *[Pass(delay=9)] * 10)
    await asyncio.gather(*[client.model() for _ in range(10)])
    assert (now(), klein_emulator.calls["model"]) == (90.0, 10)


# --- bounds


def request() -> Request:
    return Request(
        kind=Kind.READ, method="GET", url="https://emulator.invalid/v1/models/x", headers={}, replayable=True, silence=5
    )


async def send(emulator: Any, answer: Any, limit: int) -> Any:
    emulator.script("model", answer)
    transport = AiohttpTransport(
        limits=Limits(max_json_bytes=limit), redactor=Redactor(TOKEN), session=emulator.session()
    )
    found = await outcome(transport.send(request()))
    await transport.aclose()
    return found


BOMB = Reply(200, gzip.compress(b"[" * 50_000_000), {"Content-Encoding": "gzip"})


@pytest.mark.parametrize("answer", [Endless(), Reply(200, b"x" * 100_001), BOMB], ids=["endless", "large", "gzip bomb"])
async def test_an_answer_beyond_the_bound_is_refused(klein_emulator, answer):
    found = await send(klein_emulator, answer, 100_000)
    assert type(found) is InvalidResponseError
    assert "100000 bytes" in str(found)


@pytest.mark.parametrize("size", [0, 1, 99_999, 100_000])
async def test_an_answer_within_the_bound_is_read_whole(klein_emulator, size):
    found = await send(klein_emulator, Reply(200, b"x" * size), 100_000)
    assert len(found.body) == size


async def test_a_compressed_answer_is_read(klein_emulator):
    found = await send(klein_emulator, Reply(200, gzip.compress(b"hello"), {"Content-Encoding": "gzip"}), 1000)
    assert found.body == b"hello"


async def test_a_refused_connection_is_mapped(klein_emulator):
    klein_emulator.script("connect", Refuse())
    found = await send(klein_emulator, None, 1000)
    assert (type(found), found.sent) == (APIConnectionError, False)


async def test_files_need_an_open_session(klein_emulator):
    session = klein_emulator.session()
    transport = AiohttpTransport(limits=Limits(), redactor=Redactor(TOKEN), session=session)
    await session.close()
    file = Request(kind=Kind.FILE, method="GET", url="https://x.invalid", headers={}, replayable=True, silence=5)
    with pytest.raises(ConfigurationError):
        async with transport.stream(file):
            pass


def test_abandoning_what_was_never_opened_does_nothing():
    AiohttpTransport(limits=Limits(), redactor=Redactor(TOKEN)).abandon()
