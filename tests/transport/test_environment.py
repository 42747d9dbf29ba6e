"""What the environment's variables mean: which authorities are trusted, which addresses go through a proxy."""

import base64
import contextlib
import os
import ssl
from pathlib import Path

import pytest
import trustme

from flux_klein_async import ConfigurationError
from flux_klein_async.options import Environment
from flux_klein_async.transport.environment import Proxies, named_authorities


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


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


def test_a_directory_that_is_none_is_refused_by_name_and_without_a_name_there_is_no_context():
    with pytest.raises(ConfigurationError, match="SSL_CERT_DIR names /nowhere"):
        named_authorities(Environment(ca_dir="/nowhere"))
    assert named_authorities(Environment()) is None


API = "https://model-api.runcomfy.net/v1/models"


def found(proxy: str | None, no_proxy: str = "", address: str = API) -> str | None:
    chosen = Proxies(Environment(proxy=proxy, no_proxy=no_proxy)).of(address)
    return None if chosen is None else str(chosen.url)


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128"),
        ("proxy.example:3128", "http://proxy.example:3128"),
        ("proxy.example", "http://proxy.example"),
        ("https://proxy.example", "https://proxy.example"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://user:word@proxy.example:3128/path?query#part", "http://proxy.example:3128"),
    ],
)
def test_a_proxy_is_an_address_without_credentials(value, url):
    assert found(value) == url


@pytest.mark.parametrize(
    ("value", "user_and_password"),
    [
        ("http://me:secret@p.example", "me:secret"),
        ("me:secret@p.example:1", "me:secret"),
        ("http://m%40e:s%3Aecret%20@p.example", "m@e:s:ecret "),
        ("http://me@p.example", "me:"),
        ("http://:secret@p.example", ":secret"),
        ("http://mé:é@p.example", "mé:é"),
    ],
)
def test_credentials_become_a_header_for_the_proxy_and_show_nowhere(value, user_and_password):
    proxies = Proxies(Environment(proxy=value))
    proxy = proxies.of(API)
    scheme, basic = proxy.headers["Proxy-Authorization"].split(" ")
    assert (scheme, base64.b64decode(basic).decode()) == ("Basic", user_and_password)
    shown = f"{proxy!r} {proxy} {proxies!r} {proxy.url}"
    assert not any(secret in shown for secret in (*proxies.secrets, "secret"))
    assert basic in proxies.secrets


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("socks5://me:secret@p.example:1080", "socks5"),
        ("socks5h://p.example", "SOCKS"),
        ("ftp://p.example", "ftp"),
        ("http://", "no host"),
        ("http://me:secret@p .example", "no host"),
        ("http://p.example:99999", "no URL"),
        ("http://me:secret@[p", "no URL"),
        ("http://me:secret@p.example:port", "no URL"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_where_it_would_be_used_and_shows_no_credentials(value, why):
    proxies = Proxies(Environment(proxy=value))
    assert bool(proxies)
    assert proxies.secrets == ()
    assert proxies.of("https://localhost/v1") is None
    with pytest.raises(ConfigurationError, match=why) as caught:
        proxies.of(API)
    assert "secret" not in f"{caught.value} {vars(caught.value)}"
    assert caught.value.__cause__ is None


def test_neither_plain_http_nor_this_machine_goes_through_a_proxy():
    hosts = ["127.0.0.1:8000", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "localhost", "LOCALHOST", "/nothing"]
    for address in [f"https://{host}/v1" for host in hosts] + ["http://10.0.0.5/v1", API.replace("https", "http")]:
        assert found("http://p.example:3128", address=address) is None, address


def test_without_a_proxy_there_is_none():
    assert (found(None), bool(Proxies(Environment()))) == (None, False)


@pytest.mark.parametrize(
    ("no_proxy", "direct", "proxied"),
    [
        ("*", ["a.example"], []),
        ("a.example", ["a.example", "a.EXAMPLE", "a.example.", "b.a.example"], ["c.example", "ba.example"]),
        ("A.Example", ["a.example"], []),
        ("a.example.", ["a.example"], []),
        ("b.example,a.example", ["a.example", "b.example"], []),
        (" a.example , b.example,", ["a.example", "b.example"], []),
        ("a.example b.example", ["a.example", "b.example"], []),
        ("example", ["a.example"], []),
        (".example", ["a.example"], []),
        ("ample", [], ["a.example"]),
        ("b.a.example", [], ["a.example"]),
        ("a.example:443", ["a.example"], ["a.example:8443"]),
        ("a.example:8443", ["a.example:8443"], ["a.example"]),
        ("10.0.0.0/8", ["10.1.2.3"], ["11.1.2.3", "a.example"]),
        ("10.1.2.3/8", ["10.9.9.9"], []),
        ("10.1.2.3", ["10.1.2.3"], ["10.1.2.30"]),
        ("10.1.2.3:443", ["10.1.2.3"], []),
        ("2001:db8::/32", ["[2001:db8::1]"], ["10.1.2.3"]),
        ("[2001:db8::1]", ["[2001:db8::1]"], []),
        *((nothing, [], ["a.example"]) for nothing in ("", ",", ".", ":443")),
    ],
)
def test_no_proxy_names_hosts_domains_ports_and_networks(no_proxy, direct, proxied):
    for host in direct + proxied:
        assert (found("http://p.example", no_proxy, f"https://{host}/v1") is None) is (host in direct), host
