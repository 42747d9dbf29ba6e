"""Through a real CONNECT proxy to a service behind real TLS: what is called through it, and what it gets to see."""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from flux_klein_async import (
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    FluxKleinClient,
    RetryPolicy,
)
from flux_klein_async.emulator import Emulator, Engine
from tests.fakes import Events, outcome
from tests.networks import (
    API,
    API_HOST,
    FILE_HOST,
    ConnectProxy,
    Names,
    answering,
    client_context,
    closed_port,
    server_context,
    service,
    silent,
    tls_service,
    tunnel,
    write_authority,
)

pytestmark = pytest.mark.slow

TOKEN = "emulator-token"
PASSWORD = "pass%20word-7"
BASIC = base64.b64encode(b"me:pass word-7")
SECRETS = (b"pass%20word-7", b"pass word-7", BASIC)
QUICK = RetryPolicy(initial=0.001, maximum=0.001)


@pytest_asyncio.fixture
async def engine() -> Engine:
    return service()


@pytest_asyncio.fixture
async def proxy(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[ConnectProxy]:
    """A proxy in front of the service, and an environment that names it, with a password, and the service's CA."""
    async with tls_service(engine, API_HOST, FILE_HOST) as port, ConnectProxy(port).running() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("SSL_CERT_FILE", write_authority(tmp_path))
        yield proxy


@pytest.fixture
def netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """A netrc that matches every host; its password."""
    path = tmp_path / "netrc"
    path.write_text("default login somebody password netrc-password\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    return b"netrc-password"


async def test_a_generation_and_its_file_come_through_the_proxy_which_reads_neither_token_nor_prompt(proxy, engine):
    events = Events()
    async with FluxKleinClient(TOKEN, base_url=API, on_event=events) as client:
        result = await client.generate("a snow leopard", width=64, height=64)
        [picture] = await client.download_bytes(result)
        shown = f"{client!r} {vars(client)} {events}"
    assert picture.startswith(b"\x89PNG")
    assert engine.service.accepted == 1
    assert set(proxy.targets) == {f"{API_HOST}:443", f"{FILE_HOST}:443"}
    assert all(b"Proxy-Authorization: Basic " + BASIC in head for head in proxy.heads)
    assert not any(word in proxy.seen for word in (TOKEN.encode(), b"Authorization: Bearer", b"leopard"))
    assert all("proxy-authorization" not in record.headers for record in engine.records)
    assert not any(secret.decode() in shown for secret in SECRETS)


async def test_a_proxy_may_itself_be_reached_over_tls(proxy, engine, monkeypatch):
    outer = await asyncio.start_server(proxy._serve, "127.0.0.1", 0, ssl=server_context("proxy.localhost", "localhost"))
    port = outer.sockets[0].getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"https://localhost:{port}")
    async with FluxKleinClient(TOKEN, base_url=API) as client:
        await client.submit("a cat")
    outer.close()
    await outer.wait_closed()
    assert (engine.service.accepted, proxy.targets) == (1, [f"{API_HOST}:443"])


REFUSALS = {
    "hangs up": answering(b""),
    "407": answering(b"HTTP/1.1 407 me:pass word-7 is wrong\r\nContent-Length: 0\r\n\r\n"),
    "403": answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nno way"),
    "502": answering(b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>" + BASIC),
    "no HTTP": answering(b"SSH-2.0-OpenSSH_9.2 " + BASIC + b"\r\n"),
    "a torn head": answering(b"HTTP/1.1 200 OK\r\nX: " + BASIC),
    "a header that is none": answering(b"HTTP/1.1 200 OK\r\n" + BASIC + b"\r\n\r\n"),
    "no TLS behind it": answering(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 400 Plain HTTP to a TLS port\r\n\r\n"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_proxy_that_makes_no_tunnel_was_sent_no_submit_and_costs_nothing(proxy, engine, case):
    attempts = QUICK.attempts
    proxy._behaviours = [REFUSALS[case]] * attempts
    events = Events()
    async with FluxKleinClient(TOKEN, base_url=API, retry=QUICK, on_event=events) as client:
        error = await outcome(client.submit("a cat"))
        assert (type(error), error.sent, error.charged, error.retryable) == (APIConnectionError, False, "no", True)
        shown = f"{error!r} {error} {vars(error)} {events} {error.__cause__!r} {error.__context__!r}"
        assert not any(secret.decode() in shown for secret in (*SECRETS, TOKEN.encode()))
        assert (len(proxy.heads), engine.service.accepted) == (attempts, 0)
        await client.submit("a cat")  # now it makes one
    assert engine.service.accepted == 1


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_submit_is_repeated_until_the_proxy_makes_a_tunnel(proxy, engine, case):
    proxy._behaviours = [REFUSALS[case], REFUSALS[case], tunnel]
    async with FluxKleinClient(TOKEN, base_url=API, retry=QUICK) as client:
        await client.submit("a cat")
    assert (len(proxy.heads), engine.service.accepted) == (3, 1)


async def test_a_proxy_that_refuses_connections_is_named_by_its_variable(monkeypatch):
    monkeypatch.setenv("https_proxy", f"me:{PASSWORD}@127.0.0.1:{closed_port()}")
    async with FluxKleinClient(TOKEN, base_url=API, retry=QUICK) as client:
        error = await outcome(client.submit("a cat"))
    assert (type(error), error.sent, error.charged, error.retryable) == (APIConnectionError, False, "no", True)
    assert "HTTPS_PROXY" in str(error)
    assert PASSWORD not in f"{error} {vars(error)}"


async def test_a_proxy_that_says_nothing_ends_with_the_deadline_and_costs_nothing(proxy, engine):
    proxy._behaviours = [silent]
    async with FluxKleinClient(TOKEN, base_url=API, timeout=0.2) as client:
        error = await outcome(client.submit("a cat"))
    assert (type(error), error.sent, error.charged) == (APITimeoutError, False, "no")
    assert (len(proxy.heads), engine.service.accepted) == (1, 0)


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", ""])
@pytest.mark.parametrize("plain", [True, False])
async def test_a_loopback_service_is_never_called_through_a_proxy(monkeypatch, tmp_path, plain, no_proxy):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    monkeypatch.setenv("SSL_CERT_FILE", write_authority(tmp_path))
    if plain:
        async with Emulator() as emulator, FluxKleinClient(TOKEN, base_url=emulator.base_url) as client:
            await client.submit("a cat")
        return
    async with (
        tls_service(service(), "127.0.0.1") as port,
        FluxKleinClient(TOKEN, base_url=f"https://127.0.0.1:{port}") as client,
    ):
        await client.submit("a cat")


async def test_plain_http_goes_straight_to_the_service_even_if_it_is_permitted_to_be_insecure(proxy, monkeypatch):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    address = f"http://service.test:{closed_port()}"
    asked = []

    async def resolve(host, *_, **__):
        asked.append(host)
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    async with FluxKleinClient(TOKEN, base_url=address, allow_insecure=True, retry=QUICK) as client:
        await outcome(client.submit("a cat"))
    assert (set(asked), proxy.heads) == ({"service.test"}, [])


@pytest.mark.parametrize("how", ["trust_env", "NO_PROXY"])
async def test_a_proxy_is_passed_by_where_it_was_said_so(proxy, monkeypatch, how):
    if how == "NO_PROXY":
        monkeypatch.setenv("NO_PROXY", "runcomfy.net")
    asked = []

    async def resolve(host, *_, **__):
        asked.append(host)
        raise OSError

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    async with FluxKleinClient(TOKEN, base_url=API, trust_env=how != "trust_env", retry=QUICK) as client:
        await outcome(client.submit("a cat"))
    assert (set(asked), proxy.heads) == ({API_HOST}, [])


async def test_the_environment_is_read_when_the_client_is_made_and_never_again(proxy, engine, monkeypatch):
    client = FluxKleinClient(TOKEN, base_url=API)
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.delenv("SSL_CERT_FILE")
    async with client:
        await client.submit("a cat")
    assert engine.service.accepted == 1


def test_a_proxy_of_a_kind_that_cannot_be_used_is_refused_when_the_client_is_made(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:1080")
    with pytest.raises(ConfigurationError, match="SOCKS") as caught:
        FluxKleinClient(TOKEN, base_url=API)
    assert "secret" not in str(caught.value)
    FluxKleinClient(TOKEN, base_url=API, trust_env=False)
    FluxKleinClient(TOKEN, base_url="http://127.0.0.1:1")


# --- netrc, and borrowed sessions


async def test_our_own_sessions_never_open_netrc(proxy, engine, monkeypatch, tmp_path, caplog):
    broken = tmp_path / "netrc"
    broken.write_text("this is no netrc\n")  # aiohttp warns of it where it polls
    monkeypatch.setenv("NETRC", str(broken))
    caplog.set_level(logging.DEBUG)
    async with FluxKleinClient(TOKEN, base_url=API) as client:
        await client.download_bytes(await client.generate("a cat", width=64, height=64))
    assert "netrc" not in caplog.text


@pytest.mark.parametrize("borrowed", [False, True])
async def test_no_password_of_netrc_reaches_the_service_or_a_file_host(proxy, engine, netrc, borrowed):
    connector = aiohttp.TCPConnector(ssl=client_context())
    session = aiohttp.ClientSession(trust_env=True, connector=connector) if borrowed else None
    async with FluxKleinClient(TOKEN, base_url=API, session=session) as client:
        await client.download_bytes(await client.generate("a cat", width=64, height=64))
        await client.get_model()
    await connector.close()
    if session is not None:
        await session.close()
    by_endpoint = {record.endpoint: record.headers.get("authorization") for record in engine.records}
    bearer = f"Bearer {TOKEN}"
    assert by_endpoint == {"submit": bearer, "status": bearer, "result": bearer, "model": bearer, "file": None}
    assert set(proxy.targets) == {f"{API_HOST}:443", f"{FILE_HOST}:443"}
    assert netrc not in proxy.seen
    assert base64.b64encode(b"somebody:" + netrc) not in proxy.seen


@pytest.mark.parametrize(
    ("no_proxy", "refused"), [("", True), ("other.example", True), ("127.0.0.1", False), ("*", False)]
)
async def test_a_borrowed_session_that_would_show_the_token_to_a_proxy_is_refused(monkeypatch, no_proxy, refused):
    heard = []

    async def listen(reader, writer):
        heard.append(await reader.read(10_000))
        writer.close()

    proxy = await asyncio.start_server(listen, "127.0.0.1", 0)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    monkeypatch.setenv("no_proxy", no_proxy)
    async with Emulator() as emulator, aiohttp.ClientSession(trust_env=True) as session:
        client = FluxKleinClient(TOKEN, base_url=emulator.base_url, session=session)
        error = await outcome(client.submit("a cat"))
        assert isinstance(error, ConfigurationError) is refused
        assert emulator.accepted == (not refused)
        await client.aclose()
    proxy.close()
    await proxy.wait_closed()
    assert heard == []


@pytest.mark.parametrize("trusting", [False, True])
async def test_calls_and_downloads_of_a_borrowed_session_go_where_its_own_trust_says(proxy, engine, trusting):
    ran = []

    async def noted(request, handler):
        ran.append(request.method)
        return await handler(request)

    connector = aiohttp.TCPConnector(ssl=client_context(), resolver=Names(proxy._upstream))
    session = aiohttp.ClientSession(trust_env=trusting, connector=connector, middlewares=[noted])
    # The client's own option is for sessions that it opens itself.
    async with session, FluxKleinClient(TOKEN, base_url=API, session=session, trust_env=not trusting) as client:
        [picture] = await client.download_bytes(await client.generate("a cat", width=64, height=64))
    assert picture
    assert set(proxy.targets) == ({f"{API_HOST}:443", f"{FILE_HOST}:443"} if trusting else set())
    assert ran.count("POST") == engine.service.accepted == 1  # what the session does with every request, it did
