"""A real CONNECT proxy before a service with real TLS: which calls go through it, and what it can read."""

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
    """A proxy with a password before the service, and an environment that names both the proxy and the service's CA."""
    async with tls_service(engine, API_HOST, FILE_HOST) as port, ConnectProxy(port).running() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("SSL_CERT_FILE", write_authority(tmp_path))
        yield proxy


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
async def test_without_a_tunnel_no_submit_was_sent_and_it_is_repeated(proxy, engine, case):
    attempts, events = QUICK.attempts, Events()
    proxy._behaviours = [REFUSALS[case]] * attempts
    async with FluxKleinClient(TOKEN, base_url=API, retry=QUICK, on_event=events) as client:
        error = await outcome(client.submit("a cat"))
        assert (type(error), error.sent, error.charged, error.retryable) == (APIConnectionError, False, "no", True)
        shown = f"{error!r} {error} {vars(error)} {events} {error.__cause__!r} {error.__context__!r}"
        assert not any(secret.decode() in shown for secret in (*SECRETS, TOKEN.encode()))
        assert (len(proxy.heads), engine.service.accepted) == (attempts, 0)
        proxy._behaviours = [REFUSALS[case], REFUSALS[case], tunnel]
        await client.submit("a cat")
    assert (len(proxy.heads), engine.service.accepted) == (attempts + 3, 1)


async def test_a_proxy_that_refuses_connections_is_named_by_its_variable(monkeypatch):
    monkeypatch.setenv("https_proxy", f"me:{PASSWORD}@127.0.0.1:{closed_port()}")
    async with FluxKleinClient(TOKEN, base_url=API, retry=QUICK) as client:
        error = await outcome(client.submit("a cat"))
    assert (type(error), error.sent, error.charged, error.retryable) == (APIConnectionError, False, "no", True)
    assert "HTTPS_PROXY" in str(error)
    assert PASSWORD not in f"{error} {vars(error)}"


@pytest.mark.parametrize("plain", [True, False])
async def test_a_loopback_service_is_called_without_a_proxy(monkeypatch, tmp_path, plain):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("SSL_CERT_FILE", write_authority(tmp_path))
    async with Emulator() as emulator, tls_service(service(), "127.0.0.1") as port:
        address = emulator.base_url if plain else f"https://127.0.0.1:{port}"
        async with FluxKleinClient(TOKEN, base_url=address) as client:
            await client.submit("a cat")


@pytest.mark.parametrize("why", ["plain http", "trust_env", "NO_PROXY"])
async def test_no_proxy_is_used_for_plain_http_or_where_it_is_switched_off(proxy, monkeypatch, why):
    address = API
    if why == "plain http":
        address = f"http://service.test:{closed_port()}"
        for name in ("HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    elif why == "NO_PROXY":
        monkeypatch.setenv("NO_PROXY", "runcomfy.net")
    resolved = []

    async def resolve(host, *_, **__):
        resolved.append(host)
        raise OSError

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    options = {"base_url": address, "allow_insecure": True, "trust_env": why != "trust_env", "retry": QUICK}
    async with FluxKleinClient(TOKEN, **options) as client:
        await outcome(client.submit("a cat"))
    assert (set(resolved), proxy.heads) == ({address.split("/")[2].split(":")[0]}, [])


async def test_the_environment_is_read_when_the_client_is_made_and_never_again(proxy, engine, monkeypatch):
    client = FluxKleinClient(TOKEN, base_url=API)
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.delenv("SSL_CERT_FILE")
    async with client:
        await client.submit("a cat")
    assert engine.service.accepted == 1


def test_a_kind_of_proxy_that_is_not_supported_is_refused_when_the_client_is_made(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:1080")
    with pytest.raises(ConfigurationError, match="SOCKS") as caught:
        FluxKleinClient(TOKEN, base_url=API)
    assert "secret" not in str(caught.value)
    FluxKleinClient(TOKEN, base_url=API, trust_env=False)
    FluxKleinClient(TOKEN, base_url="http://127.0.0.1:1")


# --- netrc, and borrowed sessions


async def test_our_own_sessions_never_open_netrc(proxy, engine, monkeypatch, tmp_path, caplog):
    broken = tmp_path / "netrc"
    broken.write_text("not a netrc\n")  # aiohttp logs a warning if it reads it
    monkeypatch.setenv("NETRC", str(broken))
    caplog.set_level(logging.DEBUG)
    async with FluxKleinClient(TOKEN, base_url=API) as client:
        await client.download_bytes(await client.generate("a cat", width=64, height=64))
    assert "netrc" not in caplog.text


async def test_no_password_of_netrc_reaches_the_service_or_a_file_host(proxy, engine, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password netrc-password\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    connector = aiohttp.TCPConnector(ssl=client_context())
    session = aiohttp.ClientSession(trust_env=True, connector=connector)
    async with session, FluxKleinClient(TOKEN, base_url=API, session=session) as client:
        await client.download_bytes(await client.generate("a cat", width=64, height=64))
        await client.get_model()
    by_endpoint = {record.endpoint: record.headers.get("authorization") for record in engine.records}
    bearer = f"Bearer {TOKEN}"
    assert by_endpoint == {"submit": bearer, "status": bearer, "result": bearer, "model": bearer, "file": None}
    assert set(proxy.targets) == {f"{API_HOST}:443", f"{FILE_HOST}:443"}
    assert b"netrc-password" not in proxy.seen
    assert base64.b64encode(b"somebody:netrc-password") not in proxy.seen


@pytest.mark.parametrize(("no_proxy", "refused"), [("", True), ("127.0.0.1", False)])
async def test_a_borrowed_session_that_would_show_the_token_to_a_proxy_is_refused(
    proxy, monkeypatch, no_proxy, refused
):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("no_proxy", no_proxy)
    async with (
        Emulator() as emulator,
        aiohttp.ClientSession(trust_env=True) as session,
        FluxKleinClient(TOKEN, base_url=emulator.base_url, session=session) as client,
    ):
        error = await outcome(client.submit("a cat"))
    assert (isinstance(error, ConfigurationError), emulator.accepted, proxy.heads) == (refused, not refused, [])


@pytest.mark.parametrize("trusting", [False, True])
async def test_a_borrowed_sessions_own_trust_env_decides_for_calls_and_downloads(proxy, engine, trusting):
    ran = []

    async def noted(request, handler):
        ran.append(request.method)
        return await handler(request)

    connector = aiohttp.TCPConnector(ssl=client_context(), resolver=Names(proxy._upstream))
    session = aiohttp.ClientSession(trust_env=trusting, connector=connector, middlewares=[noted])
    # The client's own option applies only to sessions that it opens itself.
    async with session, FluxKleinClient(TOKEN, base_url=API, session=session, trust_env=not trusting) as client:
        [picture] = await client.download_bytes(await client.generate("a cat", width=64, height=64))
    assert picture
    assert set(proxy.targets) == ({f"{API_HOST}:443", f"{FILE_HOST}:443"} if trusting else set())
    assert ran.count("POST") == engine.service.accepted == 1  # the session's middlewares ran
