"""Certificate authorities: those that the environment names are trusted, and a name that leads nowhere is refused."""

import contextlib
import os
import ssl
from pathlib import Path

import pytest
import trustme

from flux_klein_async import ConfigurationError
from flux_klein_async.options import Environment
from flux_klein_async.transport.certificates import named_authorities


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


def test_nothing_named_is_nothing_made():
    assert named_authorities(Environment()) is None


@pytest.mark.parametrize("both", [False, True])
def test_a_file_is_trusted_and_the_usual_checks_stay(authority, both):
    context = named_authorities(Environment(ca_file=str(authority), ca_dir=str(authority.parent) if both else None))
    assert any("trustme" in str(found["subject"]) for found in context.get_ca_certs())
    assert (context.check_hostname, context.verify_mode.name) == (True, "CERT_REQUIRED")


def test_clients_share_what_was_read_until_the_file_is_another(tmp_path):
    path = tmp_path / "ca.pem"
    environment = Environment(ca_file=str(path))
    trustme.CA().cert_pem.write_to_path(path)
    first, again = named_authorities(environment), named_authorities(environment)
    trustme.CA(key_type=trustme.KeyType.RSA).cert_pem.write_to_path(path)
    assert again is first
    assert named_authorities(environment) is not first
    path.unlink()
    with pytest.raises(ConfigurationError):
        named_authorities(environment)


def test_one_directory_of_several_is_enough(authority):
    directories = os.pathsep.join(["/nowhere", str(authority.parent)])
    assert named_authorities(Environment(ca_dir=directories)) is not None


def test_every_directory_that_is_one_is_read(tmp_path, monkeypatch):
    read = []

    class Context:
        def set_alpn_protocols(self, _protocols: list[str]) -> None:
            """Any."""

        def load_verify_locations(self, **places: str) -> None:
            read.append(places)

    monkeypatch.setattr(ssl, "create_default_context", Context)
    named = [tmp_path / "one", tmp_path / "two"]
    for directory in named:
        directory.mkdir()
    named_authorities(Environment(ca_dir=os.pathsep.join(["/nowhere", *map(str, named)])))
    assert read == [{"capath": str(directory)} for directory in named]


def test_plain_http_1_is_offered_to_servers_that_would_take_silence_for_more(authority):
    """A handshake in memory, with a server that would rather speak HTTP/2."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer = trustme.CA()
    issuer.issue_cert("x.example").configure_cert(server_side)
    server_side.set_alpn_protocols(["h2", "http/1.1"])
    client_side = named_authorities(Environment(ca_file=str(authority)))
    issuer.configure_trust(client_side)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client_side.wrap_bio(to_client, to_server, server_hostname="x.example"),
        server_side.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert [end.selected_alpn_protocol() for end in ends] == ["http/1.1"] * 2


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_without_certificates_is_refused_by_name(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"SSL_CERT_FILE names .*ca\.pem") as caught:
        named_authorities(Environment(ca_file=str(path)))
    assert caught.value.cause


def test_a_directory_that_is_none_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="SSL_CERT_DIR names /nowhere"):
        named_authorities(Environment(ca_dir="/nowhere"))
