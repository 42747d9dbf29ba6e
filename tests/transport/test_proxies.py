"""What the environment's variables mean: which addresses go through a proxy, and what never shows."""

import base64

import pytest

from flux_klein_async import ConfigurationError
from flux_klein_async.options import Environment
from flux_klein_async.transport.proxies import Proxies

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


@pytest.mark.parametrize(
    "address",
    [
        "http://model-api.runcomfy.net/v1",
        "http://10.0.0.5/v1",
        "http://127.0.0.1:8000/v1",
        "https://127.0.0.1:8000/v1",
        "https://127.9.9.9/v1",
        "https://[::1]/v1",
        "https://[::ffff:127.0.0.1]/v1",
        "https://localhost/v1",
        "https://LOCALHOST/v1",
        "https:///nothing",
    ],
)
def test_neither_plain_http_nor_this_machine_goes_through_a_proxy(address):
    assert found("http://p.example:3128", address=address) is None


def test_without_a_proxy_there_is_none():
    assert found(None) is None
    assert not Proxies(Environment())


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("*", "a.example", True),
        ("a.example", "a.example", True),
        ("A.Example", "a.EXAMPLE", True),
        ("a.example.", "a.example", True),
        ("b.example,a.example", "a.example", True),
        ("a.example , b.example,", "a.example", True),
        ("a.example b.example", "b.example", True),
        ("a.example", "a.example.", True),
        ("example", "a.example", True),
        (".example", "a.example", True),
        ("ample", "a.example", False),
        ("b.a.example", "a.example", False),
        ("x, a.example ,y", "a.example", True),
        ("x a.example", "a.example", True),
        ("a.example:443", "a.example", True),
        ("a.example:8443", "a.example", False),
        ("a.example:8443", "a.example:8443", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3/8", "10.9.9.9", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.30", False),
        ("10.1.2.3:443", "10.1.2.3", True),
        ("2001:db8::/32", "[2001:db8::1]", True),
        ("[2001:db8::1]", "[2001:db8::1]", True),
        ("2001:db8::/32", "10.1.2.3", False),
        ("10.0.0.0/8", "a.example", False),
        ("", "a.example", False),
        (",", "a.example", False),
        (".", "a.example", False),
        (":443", "a.example", False),
    ],
)
def test_no_proxy_names_hosts_domains_ports_and_networks(no_proxy, host, direct):
    assert (found("http://p.example", no_proxy, f"https://{host}/v1") is None) is direct
