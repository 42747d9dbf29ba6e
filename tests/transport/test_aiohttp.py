"""Every body is bounded, every phase can be cancelled, every failure is ours, and the environment counts if trusted."""

import asyncio
import gzip
import random
import socket
import sys
import traceback
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar

import aiohttp
import pytest
from yarl import URL

from flux_klein_async import (
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    FluxKleinClient,
    InvalidResponseError,
    Limits,
    RetryPolicy,
    SubmissionUncertainError,
)
from flux_klein_async.api.credentials import Redactor
from flux_klein_async.api.messages import Kind, Request
from flux_klein_async.emulator import Cut, Endless, Garbage, Pass, Reply
from flux_klein_async.emulator.inprocess import join
from flux_klein_async.options import Environment
from flux_klein_async.transport import aiohttp as aiohttp_transport
from flux_klein_async.transport.aiohttp import (
    _DEAD_PEER,
    AiohttpTransport,
    _attentive_socket,
    _check_environment,
    _GuardedBody,
    _read_bounded,
    slept,
)
from flux_klein_async.transport.base import BodyGuard
from tests.fakes import now, outcome, settle, strays

TOKEN = "very-secret-token"


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


def stand_in(monkeypatch: pytest.MonkeyPatch, methods: dict[str, Any]) -> None:
    for name, method in methods.items():
        monkeypatch.setattr(asyncio.get_running_loop(), name, method)


@pytest.mark.usefixtures("klein_emulator")  # for its virtual time
@pytest.mark.parametrize("phase", PHASES)
async def test_a_call_given_up_while_connecting_sends_nothing_and_leaves_no_task(phase, monkeypatch):
    stand_in(monkeypatch, PHASES[phase])
    client = FluxKleinClient(TOKEN, base_url="https://api.invalid", timeout=7.5)
    task = asyncio.ensure_future(client.generate("a cat"))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 1.0
    error = await outcome(client.generate("a cat"))
    assert (isinstance(error, APITimeoutError), error.charged, now()) == (True, "no", 8.5)
    assert await client.aclose() == ()
    await settle()
    assert strays() == []


@pytest.mark.usefixtures("klein_emulator")
async def test_a_connection_that_takes_too_long_was_never_sent_anything(monkeypatch):
    asked: list[str] = []

    async def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        return await _local()

    stand_in(monkeypatch, PHASES["connect"] | {"getaddrinfo": look_up})
    async with FluxKleinClient(TOKEN, base_url="https://api.invalid", timeout=None) as client:
        error = await outcome(client.submit("a cat"))
    assert (type(error), error.sent, error.charged) == (APITimeoutError, False, "no")
    assert "ConnectionTimeoutError" in str(error)
    assert 50 <= now() <= 55  # five attempts of ten seconds, and the pauses between them
    assert asked == ["api.invalid"] * 5  # an address that did not answer is not believed any longer


class Silent(asyncio.Protocol):
    """A proxy that takes what it is told and never answers."""


async def _to_a_silent_proxy(factory: Any, *, sock: socket.socket, **_: Any) -> Any:
    sock.close()
    protocol = factory()
    join(asyncio.get_running_loop(), protocol, Silent())
    return protocol.transport, protocol


TUNNEL = {"getaddrinfo": _local, "sock_connect": lambda *_: _nothing(), "create_connection": _to_a_silent_proxy}


@pytest.mark.usefixtures("klein_emulator")
@pytest.mark.parametrize(("phase", "known"), [("DNS", True), ("CONNECT", True), ("CONNECT", False)])
async def test_what_aiohttp_waits_for_without_limit_is_given_up_and_was_never_sent_anything(phase, known, monkeypatch):
    monkeypatch.setattr("flux_klein_async.transport.aiohttp._KNOWN", known)
    stand_in(monkeypatch, TUNNEL if phase == "CONNECT" else PHASES[phase])
    if phase == "CONNECT":
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    async with FluxKleinClient(TOKEN, base_url="https://api.invalid", timeout=None) as client:
        error = await outcome(client.submit("a cat"))
    assert (type(error), error.sent, error.charged) == (APITimeoutError, False, "no")
    assert 150 <= now() <= 155  # five attempts of thirty seconds, and the pauses between them
    await settle()
    assert [task for task in strays() if "getaddrinfo" not in task and "resolve" not in task] == []


async def test_waiting_for_a_free_connection_is_not_silence(klein_emulator, connect):
    session = klein_emulator.session(connector=klein_emulator.connector(limit=1))
    client = connect(session=session, timeout=600)
    klein_emulator.script("model", *[Pass(delay=9)] * 10)
    await asyncio.gather(*[client.get_model() for _ in range(10)])
    assert (now(), klein_emulator.calls["model"]) == (90.0, 10)


# --- bounds


def request(kind: Kind = Kind.READ, url: str = "https://emulator.invalid/v1/models/x", **headers: str) -> Request:
    return Request(kind=kind, method="GET", url=url, headers=headers, replayable=True, silence=5)


FILE = request(Kind.FILE, "https://emulator.invalid/files/x")


def made(session: Any = None, **options: Any) -> AiohttpTransport:
    return AiohttpTransport(**{"limits": Limits(), "redactor": Redactor(TOKEN), "session": session, **options})


class Answer:
    """An answer whose body comes in these pieces; only the next read tells its end."""

    status = 200
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [*pieces, b""]
        self.closed = False
        self.content = self

    def at_eof(self) -> bool:
        return not self.pieces

    async def readany(self) -> bytes:
        return self.pieces.pop(0)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("sizes", [(), (4,), (3, 1), (1, 1, 1, 1), (4, 1), (5,), (3, 1, 1), (1, 4), (1, 1, 1, 1, 1)])
async def test_a_body_is_read_whole_up_to_the_bound_and_refused_beyond_it(sizes):
    answer = Answer(*(b"x" * size for size in sizes))
    found = await outcome(_read_bounded(answer, 4))
    if sum(sizes) <= 4:
        assert (found, answer.closed) == (b"x" * sum(sizes), False)
    else:
        assert (type(found), found.status_code, answer.closed) == (InvalidResponseError, 200, True)


async def test_the_loop_is_not_held_by_an_answer_that_is_all_there():
    """As one is that a few compressed bytes have grown into."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    await _read_bounded(Answer(*[b"x"] * 20), 20)
    task.cancel()
    assert turns >= 19


BOMB = Reply(200, gzip.compress(b"[" * 50_000_000), {"Content-Encoding": "gzip"})


SMALL = Reply(200, gzip.compress(b"hello"), {"Content-Encoding": "gzip"})


@pytest.mark.parametrize("answer", [Endless(), Reply(200, b"x" * 100_001), BOMB], ids=["endless", "large", "gzip bomb"])
async def test_an_answer_beyond_the_bound_is_refused(klein_emulator, answer):
    klein_emulator.script("model", answer, *(Reply(200, b"x" * size) for size in (0, 1, 99_999, 100_000)), SMALL)
    transport = made(klein_emulator.session(), limits=Limits(max_json_bytes=100_000))
    found = await outcome(transport.send(request()))
    assert (type(found), "100000 bytes" in str(found)) == (InvalidResponseError, True)
    assert [len((await transport.send(request())).body) for _ in range(5)] == [0, 1, 99_999, 100_000, 5]


ID = b'{"request_id": "r-1"}'
ZIPPED = gzip.compress(ID)
LARGE = random.Random(1).randbytes(200_000)


def headless(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(data) + deflate.flush()


@pytest.mark.parametrize(
    ("encoding", "sent", "read"),
    [
        ("gzip", ZIPPED, ID),
        ("GZIP ", ZIPPED, ID),
        ("x-gzip", ZIPPED, ID),
        ("deflate", zlib.compress(ID), ID),
        ("deflate", headless(ID), ID),
        ("gzip", ZIPPED + bytes(512), ID),
        ("gzip", ZIPPED + b"\r\n", ID),
        ("deflate", zlib.compress(ID) + bytes(3), ID),
        ("gzip", gzip.compress(ID[:5]) + gzip.compress(ID[5:]) + bytes(8), ID),
        ("gzip", gzip.compress(LARGE) + bytes(100_000), LARGE),
        ("gzip", gzip.compress(b" " * 800_000), b" " * 800_000),
        ("gzip", ID, None),
        ("deflate", ID, None),
        ("identity", ID, ID),
        ("br", ID, ID),
        ("", ID, ID),
        ("gzip", b"", b""),
        ("gzip", ZIPPED[:-9], None),
        ("gzip", ZIPPED[:4], None),
        ("gzip", gzip.compress(LARGE)[:100_000], None),
        ("gzip", gzip.compress(LARGE)[:100_000] + bytes(100_000), None),
        ("gzip", ZIPPED + ZIPPED[:3] + b"broken", None),
    ],
    ids=count(),  # the bytes hold the time at which they were compressed
)
async def test_an_answer_is_read_however_it_was_compressed(klein_emulator, encoding, sent, read):
    klein_emulator.script("model", Reply(200, sent, {"Content-Encoding": encoding}))
    found = await outcome(made(klein_emulator.session()).send(request()))
    if read is None:
        assert (type(found), found.sent) == (APIConnectionError, True)
    else:
        assert found.body == read


@pytest.mark.parametrize("name", ["Set-Cookie", "Content-Security-Policy", "X"])
async def test_large_and_many_header_fields_do_not_lose_an_id(klein_emulator, connect, name):
    """Of a borrowed session too, whose own limits are lower."""
    fields = {f"{name}-{number}": "x" * 60 for number in range(200)} | {name: "x" * 65_000}
    klein_emulator.script("submit", Reply(200, ID, fields))
    assert (await connect().submit("a cat")).request_id == "r-1"
    assert klein_emulator.records[-1].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("most", "limit", "limit_per_host", "connections"), [(5, 10, 0, 5), (50, 10, 0, 10), (50, 10, 3, 3), (50, 0, 0, 50)]
)
async def test_as_many_calls_go_at_once_as_the_smallest_limit_allows(
    klein_emulator, most, limit, limit_per_host, connections
):
    session = klein_emulator.session(connector=klein_emulator.connector(limit=limit, limit_per_host=limit_per_host))
    limits = Limits(max_connections=most)
    assert (made(session, limits=limits).connections, made(limits=limits).connections) == (connections, most)


# --- failures


async def streamed(transport: AiohttpTransport, asked: Request = FILE, read: Any = len) -> None:
    try:
        async with transport.stream(asked) as (_, pieces):
            async for piece in pieces:
                read(piece)
    finally:
        await transport.aclose()


async def test_files_need_an_open_session(klein_emulator):
    session = klein_emulator.session()
    transport = made(session)
    await session.close()
    assert type(await outcome(streamed(transport))) is ConfigurationError


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (OSError("what a resolver may raise"), APIConnectionError),
        (TimeoutError("what a middleware may raise"), APITimeoutError),  # the one OSError that aiohttp lets through
        (ValueError("what a parser may raise"), APIConnectionError),
        (TypeError("what a parser may raise"), APIConnectionError),
        (RuntimeError("Session is closed"), ConfigurationError),
    ],
    ids=repr,
)
@pytest.mark.parametrize("way", ["send", "stream"])
async def test_whatever_the_library_raises_is_an_error_of_ours(klein_emulator, trouble, kind, way):
    async def stumble(*_: Any) -> Any:
        raise trouble

    transport = made(klein_emulator.session(middlewares=(stumble,)))
    error = await outcome(transport.send(request()) if way == "send" else streamed(transport, request()))
    assert (type(error), str(trouble) in str(error), error.__context__) == (kind, True, None)


async def test_a_stream_that_breaks_is_an_error_of_ours(klein_emulator):
    klein_emulator.script("file", Reply(200, b"x" * 100, cut=Cut(50)))
    error = await outcome(streamed(made(klein_emulator.session())))
    assert (type(error), error.__context__) == (APIConnectionError, None)


@pytest.mark.parametrize("trouble", [ValueError(), OSError(), RuntimeError(), TypeError(), TimeoutError()], ids=repr)
async def test_what_the_reader_of_a_stream_raises_passes_unchanged(klein_emulator, trouble):
    def fail(_: bytes) -> None:
        raise trouble

    klein_emulator.script("file", Reply(200, b"all"))
    assert await outcome(streamed(made(klein_emulator.session()), read=fail)) is trouble


@pytest.mark.parametrize("answer", [Garbage(), Reply(200, b"x" * 1001)], ids=["no HTTP", "too large"])
async def test_no_frame_of_an_error_holds_the_token(klein_emulator, answer):
    klein_emulator.script("model", answer)
    transport = made(klein_emulator.session(), limits=Limits(max_json_bytes=1000))
    error = await outcome(transport.send(request(Authorization=TOKEN)))
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    held = [value for frame in frames for value in frame.f_locals.values()]
    assert not any(isinstance(value, aiohttp.ClientResponse | aiohttp.ClientError) for value in held)
    assert (TOKEN in repr(held), type(error)) == (False, InvalidResponseError)


# --- an exchange that never ends, although it is never silent


def pieces(*parts: bytes) -> Iterator[bytes]:
    yield from parts
    while True:
        yield parts[-1]


HEAD = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "a head": (HEAD, b"X: y\r\n"),
    "a line of the head": (HEAD + b"X: ", b"y"),
    "empty lines before the head": (b"\r\n",),
    "1xx": (b"HTTP/1.1 100 Continue\r\n\r\n",),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",),
    "a body": (HEAD + b"Content-Length: 10000\r\n\r\n", b" "),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a chunk's extension": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;a=", b"b"),
    "trailers": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    "until it closes": (HEAD + b"\r\n", b" "),
}


class Dribble(asyncio.Protocol):
    """Answers every request with a piece a second, for ever."""

    def __init__(self, parts: tuple[bytes, ...]) -> None:
        self.parts = pieces(*parts)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, _: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(next(self.parts))
            asyncio.get_running_loop().call_later(1, self.data_received, b"")


@pytest.mark.usefixtures("klein_emulator")
@pytest.mark.parametrize("borrowed", [False, True], ids=["own session", "borrowed session"])
@pytest.mark.parametrize("what", ENDLESS)
async def test_an_exchange_that_dribbles_ends_although_nothing_else_bounds_it(monkeypatch, what, borrowed):
    async def dribbling(factory: Any, *, sock: socket.socket, **_: Any) -> Any:
        sock.close()
        protocol = factory()
        join(asyncio.get_running_loop(), protocol, Dribble(ENDLESS[what]))
        return protocol.transport, protocol

    async def lingering(sent: Any, handler: Any) -> Any:
        try:
            return await handler(sent)
        finally:  # the end that it is given comes once, however long it takes
            await settle()

    stand_in(monkeypatch, TUNNEL | {"create_connection": dribbling})
    session = aiohttp.ClientSession(middlewares=(lingering,)) if borrowed else None
    transport = made(session)
    began = now()
    error = await outcome(transport.send(request(url="http://api.invalid/")))
    assert (type(error), error.sent) == (APITimeoutError, True)
    head = what in {"a head", "a line of the head", "empty lines before the head", "1xx", "early hints"}
    assert now() - began == (5 if head and not borrowed else 10)  # once or twice the silence
    for kind in (Kind.SUBMIT, Kind.FILE) if head else ():  # of a body, which may be large, no silence is counted
        began = now()
        paid = replace(submit(), url="http://api.invalid/")
        file = request(Kind.FILE, "http://api.invalid/")
        error = await outcome(transport.send(paid, BodyGuard()) if kind is Kind.SUBMIT else streamed(transport, file))
        assert (type(error), now() - began) == (APITimeoutError, 10)
    await transport.aclose()
    if session is not None:
        await session.close()


# --- a borrowed session's own code, around a paid body


def submit(body: bytes = b"{}") -> Request:
    return Request(
        kind=Kind.SUBMIT,
        method="POST",
        url="https://emulator.invalid/v1/models/blackforestlabs/flux-2-klein/4b/text-to-image",
        headers={"Authorization": "Bearer emulator-token", "Content-Type": "application/json"},
        replayable=False,
        silence=5,
        body=body,
    )


@pytest.mark.parametrize("answer", [Pass(), Cut(0)], ids=["answered", "cut"])
async def test_a_middleware_that_replaces_the_body_makes_every_failure_ambiguous(klein_emulator, answer):
    async def replace(sent: Any, handler: Any) -> Any:
        await sent.update_body(b'{"prompt": "a dog"}')
        return await handler(sent)

    klein_emulator.script("submit", Reply(200, b"{}", cut=answer) if isinstance(answer, Cut) else answer)
    guard = BodyGuard()
    found = await outcome(made(klein_emulator.session(middlewares=(replace,))).send(submit(), guard))
    if isinstance(answer, Cut):
        assert (type(found), found.sent) == (APIConnectionError, True)
    else:
        assert klein_emulator.records[-1].body == b'{"prompt": "a dog"}'
    assert guard.written


async def test_a_middleware_may_answer_by_itself(klein_emulator):
    other = klein_emulator.session()

    async def elsewhere(sent: Any, _: Any) -> Any:
        return await other.get(sent.url)

    guard = BodyGuard()
    found = await made(klein_emulator.session(middlewares=(elsewhere,))).send(submit(), guard)
    assert (found.status, guard.written) == (401, False)


async def test_a_body_whose_task_was_cancelled_is_not_written_even_if_a_trace_swallows_that(klein_emulator):
    """aiohttp cancels the writer when an answer is complete, which may be one that came before the request."""
    trace = aiohttp.TraceConfig()

    async def swallow(*_: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    trace.on_request_chunk_sent.append(swallow)
    guard = BodyGuard()
    error = await outcome(made(klein_emulator.session(trace_configs=[trace])).send(submit(), guard))
    assert (type(error), error.sent, guard.written) == (APIConnectionError, False, False)
    assert [record for record in klein_emulator.records if record.endpoint == "submit"] == []


HOOKS = ("on_request_end", "on_request_headers_sent", "on_request_chunk_sent")
RAISED = [
    RuntimeError("a hook's"),
    KeyError("a hook's"),
    ConnectionRefusedError("of another service"),
    aiohttp.ServerFingerprintMismatch(b"a", b"b", "another.invalid", 443),
    aiohttp.InvalidURL("of another service"),
    ConfigurationError("of another client"),
]


@pytest.mark.parametrize("where", [*HOOKS, "middleware before", "middleware after"])
@pytest.mark.parametrize("trouble", RAISED, ids=lambda trouble: type(trouble).__name__)
async def test_what_a_hook_raises_around_a_submit_is_ambiguous_once_the_body_was_written(
    klein_emulator, connect, where, trouble
):
    async def fail(*_: Any) -> None:
        raise trouble

    async def middleware(sent: Any, handler: Any) -> Any:
        if where == "middleware before":
            raise trouble
        answer = await handler(sent)
        if where == "middleware after":
            raise trouble
        return answer

    trace = aiohttp.TraceConfig()
    if where in HOOKS:
        getattr(trace, where).append(fail)
    session = klein_emulator.session(trace_configs=[trace], middlewares=(middleware,))
    found = await outcome(connect(session=session, retry=RetryPolicy(attempts=2)).submit("a cat"))
    accepted = len([record for record in klein_emulator.records if record.endpoint == "submit"])
    late = where in {"on_request_end", "middleware after"}
    assert (accepted, isinstance(found, SubmissionUncertainError)) == (int(late), late)
    assert found.charged == ("unknown" if late else "no")


async def answering() -> tuple[asyncio.Server, list[asyncio.StreamWriter], Request]:
    """A server that answers every request with `{}`, its connections so far, and a request of it."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    asked = request(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    return server, writers, asked


@pytest.mark.parametrize("turns", range(6))
async def test_a_call_that_is_given_up_while_its_connection_is_checked_leaves_nothing_open(turns):
    server, writers, asked = await answering()
    transport = made()
    await transport.send(asked)
    writers[0].write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    call = asyncio.ensure_future(transport.send(asked))
    for _ in range(turns):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert (await transport.send(asked)).status == 200
    connector = transport._session(Kind.READ).connector
    assert (len(writers) > 1, len(connector._acquired)) == (True, 0)
    await transport.aclose()
    server.close()
    await settle()


@pytest.mark.parametrize("borrowed", [False, True], ids=["own session", "borrowed session"])
async def test_a_connection_on_which_half_an_answer_came_while_it_was_idle_is_not_used_again(borrowed):
    server, writers, asked = await answering()
    session = aiohttp.ClientSession() if borrowed else None
    transport = made(session)
    await transport.send(asked)
    writers[0].write(b"HTTP/1.1 408 Request ")
    await settle()
    assert (await transport.send(asked)).status == 200
    assert len(writers) == 2
    await transport.aclose()
    if session is not None:
        await session.close()
    server.close()
    await settle()


@pytest.mark.parametrize("borrowed", [False, True], ids=["own session", "borrowed session"])
@pytest.mark.parametrize(("asleep", "connections"), [(0.0, 1), (0.5, 1), (2.0, 2), (90_000.0, 2)])
async def test_a_connection_from_before_the_machine_slept_is_not_used_again(monkeypatch, asleep, connections, borrowed):
    server, writers, asked = await answering()
    session = aiohttp.ClientSession() if borrowed else None
    transport = made(session)
    await asyncio.gather(*(transport.send(asked) for _ in range(3)))  # three connections: none of them is used again
    before = slept()
    monkeypatch.setattr(aiohttp_transport, "slept", lambda: before + asleep)
    for _ in range(3):
        await transport.send(asked)
    assert len(writers) == 2 + connections
    await transport.aclose()
    if session is not None:
        await session.close()
    server.close()
    await settle()


async def test_the_kernel_is_told_of_a_borrowed_sessions_connections_too():
    server, _, asked = await answering()
    async with aiohttp.ClientSession() as session:
        await made(session).send(asked)
        [[(protocol, _)]] = session.connector._conns.values()
        sock = protocol.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    server.close()
    await settle()


async def test_an_answer_that_comes_while_a_trace_holds_the_body_back_is_no_answer():
    """The trace also keeps aiohttp from ending the task that would write the body."""
    server, writers, asked = await answering()
    trace = aiohttp.TraceConfig()

    async def hold(*_: Any) -> None:
        writers[0].write(b"HTTP/1.1 422 X\r\nContent-Length: 2\r\n\r\n{}")
        await asyncio.sleep(0.05)

    trace.on_request_chunk_sent.append(hold)
    guard = BodyGuard()
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        transport = made(session)
        await transport.send(asked)
        error = await outcome(transport.send(replace(submit(), url=asked.url), guard))
        assert (type(error), error.sent, guard.written) == (APIConnectionError, False, False)
    server.close()
    await settle()


def test_the_time_asleep_does_not_run_while_the_machine_is_awake(monkeypatch):
    before = slept()
    assert slept() - before == pytest.approx(0, abs=0.5)
    monkeypatch.setattr(aiohttp_transport, "_CLOCK", None)
    assert slept() == slept() == 0.0


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_kernel_is_told_to_notice_a_dead_path_before_a_submits_silence_is_over(family):
    options = {
        option: (getattr(socket, level), value) for level, option, value in _DEAD_PEER if hasattr(socket, option)
    }
    with _attentive_socket((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("", 0))) as sock:
        for option, (level, value) in options.items():
            assert bool(sock.getsockopt(level, getattr(socket, option))) is True
            if sys.platform == "linux":
                assert sock.getsockopt(level, getattr(socket, option)) == value
    assert {"SO_KEEPALIVE", "TCP_USER_TIMEOUT"} <= options.keys() or sys.platform != "linux"


def test_an_option_that_a_system_refuses_is_left_out(monkeypatch):
    monkeypatch.setattr(
        aiohttp_transport,
        "_DEAD_PEER",
        (("SOL_SOCKET", "SO_KEEPALIVE", -1), ("IPPROTO_TCP", "TCP_KEEPCNT", -1), ("IPPROTO_TCP", "TCP_OF_LATER", 1)),
    )
    with _attentive_socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("", 0))) as sock:
        assert sock.fileno() >= 0


# --- sessions, own and borrowed


async def test_a_session_that_trusts_the_environment_sends_what_any_other_sends(klein_emulator, connect):
    for trust_env in (False, True):
        await connect(session=klein_emulator.session(trust_env=trust_env)).get_model()
    first, second = (record.headers for record in klein_emulator.records if record.endpoint == "model")
    assert {**first} == {**second}


async def test_a_session_that_does_not_trust_the_environment_decides_for_the_files_too(klein_emulator):
    transport = made(klein_emulator.session(), environment=Environment(proxy="gopher://user:secret@proxy.invalid"))
    klein_emulator.script("file", Reply(200, b"all"))
    await streamed(transport)


@pytest.mark.parametrize("end", ["aclose", "abandon"])
async def test_a_borrowed_session_stays_open_at_the_end_and_in_a_finalizer(klein_emulator, end):
    session = klein_emulator.session()
    transport = made(session)
    klein_emulator.script("file", Reply(200, b"all"))
    async with transport.stream(FILE):
        pass
    if (ended := getattr(transport, end)()) is not None:
        await ended
    assert (session.closed, session.connector.closed, transport._files.closed) == (False, False, True)


async def test_a_body_is_guarded_whichever_way_it_is_asked_to_write_itself():
    written = []

    class Quiet(asyncio.Transport):
        def is_closing(self) -> bool:
            return False

    class Stream:
        protocol: Any = SimpleNamespace(transport=Quiet(), should_close=False, _read_timeout_handle=None)
        _on_chunk_sent = None

        async def write(self, data: bytes, **_: Any) -> None:
            written.append(data)

        async def drain(self) -> None:
            """At once."""

    class Closed(Stream):
        protocol = SimpleNamespace(transport=None, should_close=False, _read_timeout_handle=None)

    guard = BodyGuard()
    body = _GuardedBody(b"paid", guard)
    assert isinstance(await outcome(body.write(Closed())), ConnectionResetError)
    await body.write(Stream())
    for way in (body.write, lambda stream: body.write_with_length(stream, 4)):
        assert isinstance(await outcome(way(Stream())), ConnectionAbortedError)
    assert (written, guard.written) == ([b"paid"], True)


async def test_a_large_body_goes_in_pieces_for_which_the_exchange_gets_time(klein_emulator):
    body, sizes = memoryview(bytes(range(256)) * 4_000), []
    stream = SimpleNamespace(
        protocol=SimpleNamespace(transport=None, should_close=False, _read_timeout_handle=None), _on_chunk_sent=None
    )
    stream.protocol.transport = SimpleNamespace(is_closing=lambda: False, get_extra_info=lambda _: None)

    async def write(data: Any, **_: Any) -> None:
        sizes.append(len(data))

    async def drain() -> None:
        await asyncio.sleep(1)

    stream.write, stream.drain = write, drain
    await _GuardedBody(body, BodyGuard()).write(stream)
    assert (sizes, now()) == ([262_144] * 3 + [237_568], 4.0)
    transport = AiohttpTransport(limits=Limits(), redactor=Redactor("x" * 20))
    for content, seconds in ((body, 8), (b"{}", 0), (None, 0)):
        request = Request(Kind.SUBMIT, "POST", "https://h.example", {}, replayable=False, silence=60, body=content)
        assert transport._bounded(request).seconds == 120 + seconds


async def test_a_borrowed_session_reads_the_environment_itself(klein_emulator):
    environment = Environment(proxy="gopher://p.example", ca_file="/nowhere", ca_dir="/nowhere")
    options = {"environment": environment, "origin": "https://a.example"}
    transport = made(klein_emulator.session(trust_env=True), **options)
    assert (await transport.send(request(Authorization=TOKEN))).status == 401
    with pytest.raises(ConfigurationError):
        made(**options)


def basic(user_and_password: str) -> str:
    return b64encode(user_and_password.encode()).decode()


@pytest.mark.parametrize(
    ("credentials", "echo", "shown"),
    [
        ("user:hush-hush-hush", "hush-hush-hush", "[token]"),
        ("user:hush-hush-hush", "http://user:hush-hush-hush@p.example", "http://[token]@p.example"),
        ("user:p%40ssword", "p@ssword or p%40ssword or p%40sswor%64", "[token] or [token] or [token]"),
        ("user:p%C3%A4ssword", "pässword or p%C3%A4ssword", "[token] or [token]"),
        ("us%40er:a%40b", "us@er:a@b or us%40er:a%40b", "[token] or [token]"),
        ("user:pw", f"Basic {basic('user:pw')}", "Basic [token]"),
        ("user:pw", "http://user:pw@p.example", "http://[token]@p.example"),
        ("user:pw", "user and pw in ordinary words", "user and pw in ordinary words"),
        ("u:p", f"u:p or {basic('u:p')}", "[token] or [token]"),
        ("user:", f"user, user: or {basic('user:')}", "user, user: or [token]"),
        ("key-of-the-proxy", f"key-of-the-proxy or {basic('key-of-the-proxy:')}", "[token] or [token]"),
        (":pass-word", "pass-word", "[token]"),
    ],
)
def test_what_a_proxy_echoes_is_kept_without_its_secrets(credentials, echo, shown):
    transport = made(environment=Environment(proxy=f"http://{credentials}@p.example"))
    error = transport._mapped(OSError(f"said {echo} and {TOKEN} aloud"), None)
    assert error.cause == f"OSError: said {shown} and [token] aloud"


@pytest.mark.parametrize(
    ("url", "environment", "refused"),
    [
        ("http://api.example/v1", {"HTTP_PROXY": "http://p.example"}, True),
        ("http://api.example/v1", {"HTTP_PROXY": "http://p.example", "NO_PROXY": "api.example"}, False),
        ("http://api.example/v1", {"HTTPS_PROXY": "http://p.example"}, False),
        ("http://api.example/v1", {}, False),
        ("https://api.example/v1", {"HTTP_PROXY": "http://p.example", "HTTPS_PROXY": "http://p.example"}, False),
    ],
)
def test_no_proxy_is_told_the_token_in_clear(monkeypatch, url, environment, refused):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(ConfigurationError, match=r"NO_PROXY name api\.example"):
            _check_environment(request(url=url))
    else:
        _check_environment(request(url=url))


@pytest.mark.parametrize(
    ("base_url", "proxy", "refused"),
    [
        ("http://api.example", "http://p.example:3128", True),
        ("http://api.example", "http://127.0.0.1:3128", True),
        ("http://10.0.0.1", URL("https://user:password@p.example"), True),
        ("http://127.0.0.1:8000", "http://p.example:3128", True),
        ("http://localhost:8000", URL("http://[::1]:3128"), False),
        ("https://api.example", "http://p.example:3128", False),
        ("https://127.0.0.1:8000", "http://p.example:3128", False),
        ("http://api.example", None, False),
    ],
)
async def test_no_proxy_of_a_borrowed_session_is_told_the_token_in_clear(klein_emulator, base_url, proxy, refused):
    """Not even if plain http is allowed: that is about the service, and a proxy is another party."""
    for trust_env in (False, True):
        session = klein_emulator.session(proxy=proxy, trust_env=trust_env)
        if refused:
            with pytest.raises(ConfigurationError, match="would send the token in clear") as caught:
                FluxKleinClient(TOKEN, base_url=base_url, session=session, allow_insecure=True)
            assert "password" not in repr(caught.value)
        else:
            await FluxKleinClient(TOKEN, base_url=base_url, session=session, allow_insecure=True).aclose()


async def test_a_finalizer_finds_nothing_to_drop_before_the_first_call_and_after_the_end():
    transport = made()
    transport.abandon()
    sessions = [transport._session(kind) for kind in (Kind.READ, Kind.FILE)]
    await transport.aclose()
    transport.abandon()
    assert all(session.closed for session in sessions)


async def test_our_own_connections_are_made_for_a_long_lived_process():
    transport = made(limits=Limits(max_connections=7))
    connector = transport._session(Kind.READ).connector
    assert connector.limit == 7
    assert connector._keepalive_timeout < 5  # before uvicorn and Node close theirs
    assert connector._cached_hosts._ttl <= 60
    assert connector._happy_eyeballs_delay == 0.25
    assert not transport._session(Kind.FILE).trust_env
    await transport.aclose()


async def test_a_transport_that_is_closed_sends_nothing():
    transport = made()
    await outcome(transport.send(request(url="http://127.0.0.1:9/")))
    await transport.aclose()
    error = await outcome(transport.send(request(url="http://127.0.0.1:9/")))
    assert (type(error), "Session is closed" in str(error)) == (ConfigurationError, True)
