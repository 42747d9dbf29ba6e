"""A private certificate authority, over real TLS: trusted where it is configured, otherwise refused with advice."""

import pytest

from flux_klein_async import APIConnectionError, ConfigurationError, FluxKleinClient, RetryPolicy
from flux_klein_async.emulator import Engine
from tests.fakes import outcome
from tests.networks import tls_service, write_authority

pytestmark = pytest.mark.slow

TOKEN = "emulator-token"
ONCE = RetryPolicy(attempts=1)


@pytest.mark.parametrize(
    ("configured", "trust_env", "name", "trusted"),
    [
        (False, True, "127.0.0.1", False),
        (True, True, "127.0.0.1", True),
        (True, False, "127.0.0.1", False),
        (True, True, "other.example", False),
    ],
    ids=["not configured", "SSL_CERT_FILE", "trust_env=False", "a certificate for another name"],
)
async def test_calls_and_downloads_trust_the_authority_that_the_environment_names(
    configured, trust_env, name, trusted, monkeypatch, tmp_path
):
    if configured:
        monkeypatch.setenv("SSL_CERT_FILE", write_authority(tmp_path))
    engine = Engine(profile="fixed:0.01")
    async with tls_service(engine, name) as port:
        engine.service.base_url = f"https://127.0.0.1:{port}"
        options = {"base_url": engine.service.base_url, "retry": ONCE, "trust_env": trust_env}
        async with FluxKleinClient(TOKEN, **options) as client:
            found = await outcome(client.submit("a cat"))
            if trusted:
                [picture] = await client.download_bytes(await found.wait_for_result())
                assert picture
    assert engine.service.accepted == trusted
    if not trusted:
        assert isinstance(found, APIConnectionError)
        assert (found.sent, found.charged, found.retryable) == (False, "no", True)
        assert "SSL_CERT_FILE" in str(found)
        assert "CERTIFICATE_VERIFY_FAILED" in str(found)


async def test_a_server_without_tls_is_refused_with_advice(live_emulator):
    address = live_emulator.base_url.replace("http:", "https:")
    async with FluxKleinClient(TOKEN, base_url=address, retry=ONCE) as client:
        error = await outcome(client.submit("a cat"))
    assert (type(error), error.sent, error.charged) == (APIConnectionError, False, "no")
    assert "TLS" in str(error)
    assert live_emulator.accepted == 0


def test_a_missing_file_is_refused_when_the_client_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        FluxKleinClient(TOKEN)
    FluxKleinClient(TOKEN, trust_env=False)
