"""The shell around aiohttp: every body bounded, every phase cancellable, the environment heeded where it is trusted."""

import asyncio
import gzip
import socket
from base64 import b64encode
from typing import Any

import pytest

from flux_klein_async import (
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    FluxKleinClient,
    InvalidResponseError,
    Limits,
)
from flux_klein_async.api.credentials import Redactor
from flux_klein_async.api.messages import Kind, Request
from flux_klein_async.emulator import Endless, Pass, Refuse, Reply
from flux_klein_async.emulator.inprocess import join
from flux_klein_async.options import Environment
from flux_klein_async.transport.aiohttp import AiohttpTransport, _GuardedBody, _authorized_last, _read_bounded
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
    asked: list[str] = []

    async def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        return await _local()

    loop = asyncio.get_running_loop()
    for name, stand_in in (PHASES["connect"] | {"getaddrinfo": look_up}).items():
        monkeypatch.setattr(loop, name, stand_in)
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
@pytest.mark.parametrize("phase", ["DNS", "CONNECT"])
async def test_what_aiohttp_waits_for_without_limit_is_given_up_and_was_never_sent_anything(phase, monkeypatch):
    loop = asyncio.get_running_loop()
    for name, stand_in in (TUNNEL if phase == "CONNECT" else PHASES[phase]).items():
        monkeypatch.setattr(loop, name, stand_in)
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


class Answer:
    """An answer whose body comes in these pieces, and whose end only the next reading tells."""

    status = 200

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


@pytest.mark.parametrize("pieces", [(4, 1), (5,), (3, 1, 1), (1, 4), (1, 1, 1, 1, 1)])
async def test_what_exceeds_the_bound_by_its_last_piece_is_refused_and_not_cut(pieces):
    answer = Answer(*(b"x" * size for size in pieces))
    with pytest.raises(InvalidResponseError) as caught:
        await _read_bounded(answer, 4, 1.0)
    assert (caught.value.status_code, answer.closed) == (200, True)


@pytest.mark.parametrize("pieces", [(), (4,), (3, 1), (1, 1, 1, 1)])
async def test_what_just_fits_is_read_whole_in_whatever_pieces(pieces):
    answer = Answer(*(b"x" * size for size in pieces))
    assert await _read_bounded(answer, 4, 1.0) == b"x" * sum(pieces)
    assert not answer.closed


async def test_the_loop_is_not_held_by_an_answer_that_is_all_there():
    """As one is that a few compressed bytes have grown into."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    await _read_bounded(Answer(*[b"x"] * 20), 20, 1.0)
    task.cancel()
    assert turns >= 19


async def test_a_session_that_trusts_the_environment_sends_what_any_other_sends(klein_emulator, connect):
    for trust_env in (False, True):
        await connect(session=klein_emulator.session(trust_env=trust_env)).get_model()
    first, second = (record.headers for record in klein_emulator.records if record.endpoint == "model")
    assert {**first} == {**second}


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


@pytest.mark.parametrize(
    ("most", "limit", "limit_per_host", "connections"), [(5, 10, 0, 5), (50, 10, 0, 10), (50, 10, 3, 3), (50, 0, 0, 50)]
)
async def test_as_many_calls_go_at_once_as_the_smallest_limit_allows(
    klein_emulator, most, limit, limit_per_host, connections
):
    session = klein_emulator.session(connector=klein_emulator.connector(limit=limit, limit_per_host=limit_per_host))
    borrowed = AiohttpTransport(limits=Limits(max_connections=most), redactor=Redactor(TOKEN), session=session)
    own = AiohttpTransport(limits=Limits(max_connections=most), redactor=Redactor(TOKEN))
    assert (borrowed.connections, own.connections) == (connections, most)


async def test_a_session_that_does_not_trust_the_environment_decides_for_the_files_too(klein_emulator):
    environment = Environment(proxy="gopher://user:secret@proxy.invalid")
    transport = AiohttpTransport(
        limits=Limits(), redactor=Redactor(TOKEN), session=klein_emulator.session(), environment=environment
    )
    klein_emulator.script("file", Reply(200, b"all"))
    file = Request(
        kind=Kind.FILE, method="GET", url="https://emulator.invalid/files/x", headers={}, replayable=True, silence=5
    )
    async with transport.stream(file) as (head, _):
        assert head.status == 200
    await transport.aclose()


async def test_what_was_borrowed_stays_open_at_the_end_and_in_a_finalizer(klein_emulator):
    session = klein_emulator.session()
    file = Request(
        kind=Kind.FILE, method="GET", url="https://emulator.invalid/files/x", headers={}, replayable=True, silence=5
    )
    for end in ("aclose", "abandon"):
        transport = AiohttpTransport(limits=Limits(), redactor=Redactor(TOKEN), session=session)
        klein_emulator.script("file", Reply(200, b"all"))
        async with transport.stream(file):
            pass
        ended = getattr(transport, end)()
        if ended is not None:
            await ended
        assert (session.closed, session.connector.closed) == (False, False)
        assert transport._files.closed


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

    session = klein_emulator.session(middlewares=(stumble,))
    transport = AiohttpTransport(limits=Limits(), redactor=Redactor(TOKEN), session=session)

    async def call() -> None:
        if way == "send":
            await transport.send(request())
        else:
            async with transport.stream(request()):
                pass

    error = await outcome(call())
    assert (type(error), str(trouble) in str(error), error.__context__) == (kind, True, None)


async def test_a_body_is_guarded_whichever_way_it_is_asked_to_write_itself():
    written = []

    class Quiet(asyncio.Transport):
        def is_closing(self) -> bool:
            return False

    class Stream:
        transport = Quiet()

        async def write(self, data: bytes, **_: Any) -> None:
            written.append(data)

        async def drain(self) -> None:
            """At once."""

    guard = BodyGuard()
    body = _GuardedBody(b"paid", guard)
    await body.write(Stream())
    for way in (body.write, lambda stream: body.write_with_length(stream, 4)):
        assert isinstance(await outcome(way(Stream())), ConnectionAbortedError)
    assert (written, guard.written) == ([b"paid"], True)


async def test_what_the_environment_names_wrongly_is_no_affair_of_a_session_that_reads_it_itself(klein_emulator):
    environment = Environment(proxy="gopher://p.example", ca_file="/nowhere", ca_dir="/nowhere")
    session = klein_emulator.session(trust_env=True)
    wanted = {
        "limits": Limits(),
        "redactor": Redactor(TOKEN),
        "environment": environment,
        "origin": "https://a.example",
    }
    assert AiohttpTransport(session=session, **wanted).connections
    with pytest.raises(ConfigurationError):
        AiohttpTransport(**wanted)


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
    environment = Environment(proxy=f"http://{credentials}@p.example")
    transport = AiohttpTransport(limits=Limits(), redactor=Redactor(TOKEN), environment=environment)
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
async def test_no_proxy_is_told_the_token_in_clear(klein_emulator, monkeypatch, url, environment, refused):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    asked = Request(kind=Kind.READ, method="GET", url=url, headers=headers, replayable=True, silence=5)
    session = klein_emulator.session(trust_env=True)
    if refused:
        with pytest.raises(ConfigurationError, match=r"NO_PROXY name api\.example"):
            _authorized_last(asked, session)
    else:
        assert "Authorization" not in _authorized_last(asked, session)["headers"]


async def test_a_finalizer_after_the_end_finds_nothing_to_let_go():
    transport = AiohttpTransport(limits=Limits(), redactor=Redactor(TOKEN))
    sessions = [transport._session(kind) for kind in (Kind.READ, Kind.FILE)]
    await transport.aclose()
    transport.abandon()
    assert all(session.closed for session in sessions)


def test_abandoning_what_was_never_opened_does_nothing():
    AiohttpTransport(limits=Limits(), redactor=Redactor(TOKEN)).abandon()


async def test_our_own_connections_are_made_for_a_process_that_lives_for_months():
    transport = AiohttpTransport(limits=Limits(max_connections=7), redactor=Redactor(TOKEN))
    connector = transport._session(Kind.READ).connector
    assert connector.limit == 7
    assert connector._keepalive_timeout < 5  # before uvicorn and Node close theirs
    assert connector._cached_hosts._ttl <= 60
    assert connector._happy_eyeballs_delay == 0.25
    assert not transport._session(Kind.FILE).trust_env
    await transport.aclose()
