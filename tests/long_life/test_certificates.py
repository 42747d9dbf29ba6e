"""A certificate authority of one's own, over real TLS: trusted where it was named, else refused with advice."""

import ssl

import pytest

from flux_klein_async import APIConnectionError, ConfigurationError, FluxKleinClient, RetryPolicy
from flux_klein_async.emulator import Engine
from tests.fakes import outcome
from tests.networks import tls_service, write_authority

pytestmark = pytest.mark.slow

TOKEN = "emulator-token"
ONCE = RetryPolicy(attempts=1)


async def submitted(name: str, **options):
    engine = Engine(profile="fixed:0.01")
    async with tls_service(engine, name) as port:
        engine.service.base_url = f"https://127.0.0.1:{port}"
        async with FluxKleinClient(TOKEN, base_url=engine.service.base_url, retry=ONCE, **options) as client:
            found = await outcome(client.submit("a cat"))
            if not isinstance(found, Exception):
                [picture] = await client.download_bytes(await found.wait_for_result())  # files come over the same trust
                assert picture
    return found, engine.service.accepted


def refused(found: object) -> None:
    assert isinstance(found, APIConnectionError)
    assert (found.sent, found.charged, found.retryable) == (False, "no", True)
    assert "SSL_CERT_FILE" in str(found)
    assert "CERTIFICATE_VERIFY_FAILED" in str(found)


async def test_an_authority_that_nobody_named_is_refused_with_advice():
    found, accepted = await submitted("127.0.0.1")
    refused(found)
    assert accepted == 0


async def test_an_authority_that_the_environment_names_is_trusted_by_calls_and_downloads(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", write_authority(tmp_path))
    found, accepted = await submitted("127.0.0.1")
    assert not isinstance(found, Exception)
    assert accepted == 1


async def test_what_the_environment_names_is_not_trusted_where_it_is_not_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", write_authority(tmp_path))
    found, accepted = await submitted("127.0.0.1", trust_env=False)
    refused(found)
    assert accepted == 0


async def test_a_certificate_for_another_name_is_refused_even_from_a_trusted_authority(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", write_authority(tmp_path))
    found, accepted = await submitted("other.example")
    refused(found)
    assert accepted == 0


async def test_a_server_that_speaks_no_tls_is_refused_with_advice(live_emulator):
    address = live_emulator.base_url.replace("http:", "https:")
    async with FluxKleinClient(TOKEN, base_url=address, retry=ONCE) as client:
        error = await outcome(client.submit("a cat"))
    assert (type(error), error.sent, error.charged) == (APIConnectionError, False, "no")
    assert "TLS" in str(error)
    assert live_emulator.accepted == 0


def test_a_file_that_is_not_there_is_refused_when_the_client_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        FluxKleinClient(TOKEN)
    FluxKleinClient(TOKEN, trust_env=False)


def test_no_context_is_made_where_nothing_is_named(monkeypatch):
    monkeypatch.setattr(ssl, "create_default_context", None)
    FluxKleinClient(TOKEN)
