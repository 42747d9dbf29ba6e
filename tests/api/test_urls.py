"""Which URLs are built, and which are trusted. `tests/fuzz/test_names.py` tries any text."""

import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest
from yarl import URL

from flux_klein_async.api.urls import (
    ApiUrls,
    checked_model_id,
    checked_request_id,
    host_of,
    is_loopback,
    is_public,
    parsed,
    redirected,
    trusted_file_url,
)
from flux_klein_async.errors import ConfigurationError, InvalidInputError

OWN = "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("base_url", "prefix"),
    [
        (None, "https://model-api.runcomfy.net/v1"),
        ("https://model-api.runcomfy.net/", "https://model-api.runcomfy.net/v1"),
        ("https://model-api.runcomfy.net/v1/", "https://model-api.runcomfy.net/v1"),
        (" https://model-api-int.runcomfy.net \n", "https://model-api-int.runcomfy.net/v1"),
        ("HTTPS://H.Example:443", "https://h.example/v1"),
        ("https://h.example:8443", "https://h.example:8443/v1"),
        ("https://h.example/proxy", "https://h.example/proxy/v1"),
        ("https://h.example/proxy/v1/", "https://h.example/proxy/v1"),
        ("https://h.example/apiv1", "https://h.example/apiv1/v1"),
        ("https://10.0.0.1", "https://10.0.0.1/v1"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443/v1"),
        # plain http stays on this machine
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://127.1.2.3", "http://127.1.2.3/v1"),
        ("http://LOCALHOST/v1", "http://localhost/v1"),
        ("http://[::1]:8080", "http://[::1]:8080/v1"),
    ],
)
def test_urls_are_built_from_the_base_url(base_url: str | None, prefix: str) -> None:
    urls = ApiUrls(base_url)
    assert [urls.origin, urls.model("a/b"), urls.request("r-1", "status")] == [
        str(URL(prefix).origin()),
        f"{prefix}/models/a/b",
        f"{prefix}/requests/r-1/status",
    ]


def test_refuses_a_base_url_that_cannot_be_one() -> None:
    bad: list[Any] = [
        *("", " ", "h.example", "//h.example", "https://", "https:///v1", "ftp://h.example", "file:///etc/passwd"),
        *("https://[::1", "https://h.example:99999", "https://h.example:port", "https://h.example\\@evil.example"),
        *("https://user@h.example", "https://user:password@h.example", "https://:password@h.example"),
        *("https://h.example?token=x", "https://h.example#x", 5, b"https://h.example"),
        # hosts that are no host names
        *("https://h example", "https://h.example\0.evil.example", "https://h%2f.example"),
        "https://h.example\r\nX-Evil: 1",
    ]
    for base_url in bad:
        for allow_insecure in (False, True):
            with pytest.raises(ConfigurationError, match=r"^The base URL ") as caught:
                ApiUrls(base_url, allow_insecure=allow_insecure)
            assert "password" not in repr(caught.value)


@pytest.mark.parametrize(
    ("base_url", "advice"),
    [
        ("localhost:8188", "; write http://localhost:8188"),
        (" 127.0.0.1:8188/v1\n", "; write http://127.0.0.1:8188"),
        ("[::1]:8188", "; write http://[::1]:8188"),
        ("model-api.runcomfy.net", "; write https://model-api.runcomfy.net"),
        ("proxy:8443", "; write https://proxy:8443"),
        ("user:password@api.runcomfy.net/?token=x", "; write https://api.runcomfy.net"),
        *((text, "") for text in ("", "h", "https:/api.runcomfy.net", "ftp://api.runcomfy.net", "localhost:port")),
    ],
)
def test_a_host_without_its_scheme_is_told_what_to_write(base_url: str, advice: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ApiUrls(base_url)
    assert str(caught.value) == f"The base URL must begin with https:// and name a host{advice}"


def test_plain_http_to_another_machine_must_be_allowed() -> None:
    for base_url in (
        *("http://h.example", "http://model-api.runcomfy.net", "http://10.0.0.1", "http://0.0.0.0:8080"),
        *("http://localhost.evil.example", "http://127.0.0.1.evil.example", "http://notlocalhost"),
        "http://[2001:db8::1]",
    ):
        with pytest.raises(ConfigurationError, match=r"^Plain http to .* would send the token in clear"):
            ApiUrls(base_url)
        assert ApiUrls(base_url, allow_insecure=True).origin == base_url


def test_takes_1_to_128_letters_digits_and_two_signs_as_a_request_id() -> None:
    for good in ("a", "A-Z_0-9", "0e3b2c1a-8c1d-4f6e-9b7a-1234567890ab", "x" * 128, "-", "_"):
        assert checked_request_id(good) == good
    bad: list[Any] = [
        *("", "x" * 129, "a/b", "..", "a.b", "a b", "a\n", "\na", "a?b", "a#b", "a%2fb", "é", "٣", "a\0"),
        *(None, 5, b"a", ["a"]),
    ]
    for request_id in bad:
        for check in (checked_request_id, lambda request_id: ApiUrls().request(request_id, "status")):
            with pytest.raises(InvalidInputError, match=r"^Not a request id: "):
                check(request_id)


def test_takes_names_joined_by_slashes_as_a_model_id() -> None:
    for good in ("blackforestlabs/flux-2-klein/4b/text-to-image", "model", "owner/v1.5_turbo-2", "a/b" * 85 + "c"):
        assert checked_model_id(good) == good
        assert ApiUrls().model(good) == f"https://model-api.runcomfy.net/v1/models/{good}"
    bad: list[Any] = [
        *("", "/", "/a", "a/", "a//b", ".", "..", "../requests", "a/../b", "a/..", "a/./b", ".a", "-a", "_a", "a b"),
        *("a?b", "a#b", "a%2e%2e", "a\\b", "a\n", "a\r\nb", "é", "a:b", "https://evil.example/a", "x" * 257),
        *(None, 5, b"a"),
    ]
    for model in bad:
        with pytest.raises(InvalidInputError, match=r"^Not a model id such as 'owner/model/variant': "):
            checked_model_id(model)


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("https://runcomfy.net/a.png", None),
        ("https://playgrounds-storage-public.runcomfy.net/a.png", None),
        ("https://a.b.runcomfy.com/a.png", None),
        ("https://X.RunComfy.NET/A.png", "https://x.runcomfy.net/A.png"),
        ("HTTPS://x.runcomfy.net/a.png", "https://x.runcomfy.net/a.png"),
        ("https://x.runcomfy.net:8443/a.png", None),
        ("https://x.runcomfy.net:443/a.png", "https://x.runcomfy.net/a.png"),
        ("https://x.runcomfy.net/a.png?signature=b%2Bc%3D&d=e", None),
        ("https://x.runcomfy.net/a.png#fragment", "https://x.runcomfy.net/a.png"),
        ("https://x.runcomfy.net/a%20b.png", None),
        # Signed as text: nothing of path and query is decoded, encoded or resolved.
        ("https://x.runcomfy.net/a%28b%29%7e%2F%2f%41/../c/./d//e;f=%27?X-Sig=%28%27%7E%2F+%20&b=&c&c=%2B", None),
        ("https://x.runcomfy.net/a(b)'!*~$&+,;=:@[]{}|^`\"<>", None),
        ("https://x.runcomfy.net?sig=%7E", "https://x.runcomfy.net/?sig=%7E"),
        ("https://X.runcomfy.net:443/%7Ea?b#c?d", "https://x.runcomfy.net/%7Ea?b"),
        # What no request line can carry.
        (
            "https://x.runcomfy.net/a b/\u00e9%7E?c=\u00fc d%28",
            "https://x.runcomfy.net/a%20b/%C3%A9%7E?c=%C3%BC%20d%28",
        ),
        ("http://127.0.0.1:8080/files/a.png", None),
        # Other names of this machine.
        ("http://localhost:8080/a.png", "http://127.0.0.1:8080/a.png"),
        ("http://[::1]:8080/a.png", "http://127.0.0.1:8080/a.png"),
    ],
)
def test_takes_files_from_trusted_hosts_and_its_own_origin(text: str, opened: str | None) -> None:
    assert trusted_file_url(text, OWN) == (opened or text)


@pytest.mark.parametrize(
    "texts",
    {
        "a host that resembles a trusted one": (
            *("https://evil.example/a.png", "https://runcomfy.net.evil.example/a.png"),
            *("https://evilruncomfy.net/a.png", "https://runcomfy.netx/a.png", "https://runcomfy.org/a.png"),
            *("https://runcomfy/a.png", "https://net/a.png", "https://evil.example/runcomfy.net"),
            *("https://evil.example/#@runcomfy.net", "https://evil.example/?@runcomfy.net"),
            *("https://evil.example#@runcomfy.net/", "https://evil.example?@runcomfy.net/"),
            *("https://runcomfy.net./a.png", "https://runcomfy.net.evil.example./a.png"),
        ),
        "credentials": (
            *("https://runcomfy.net@evil.example/a.png", "https://runcomfy.net:443@evil.example/a.png"),
            *("https://user@x.runcomfy.net/a.png", "https://user:password@x.runcomfy.net/a.png"),
            *("https://:password@x.runcomfy.net/a.png", "http://user@127.0.0.1:8080/a.png"),
        ),
        "backslashes": (
            *("https://evil.example\\@runcomfy.net/a.png", "https://evil.example\\.runcomfy.net/a.png"),
            *(
                "https:\\\\x.runcomfy.net/a.png",
                "https://x.runcomfy.net\\a.png",
                "https://x.runcomfy.net/\\evil.example",
            ),
        ),
        "addresses": (
            *("https://127.0.0.1/a.png", "https://[::1]/a.png", "https://[::1].runcomfy.net/a.png"),
            *("https://169.254.169.254/latest/meta-data", "https://2130706433/a.png"),
        ),
        "what parsers drop": (
            *("https://x.runcomfy.net/a\n.png", "https://x.runcomfy.net/a\r\nX-Evil: 1", "https://x.run\tcomfy.net/a"),
            *(" https://x.runcomfy.net/a.png", "\x1fhttps://x.runcomfy.net/a.png", "https://x.runcomfy.net/\x7f"),
            "https://x.runcomfy.net/\udcff",
        ),
        "another scheme or port": (
            *("http://x.runcomfy.net/a.png", "ftp://x.runcomfy.net/a.png", "file://x.runcomfy.net/etc/passwd"),
            *("//x.runcomfy.net/a.png", "x.runcomfy.net/a.png", "https:x.runcomfy.net/a.png"),
            *("http://127.0.0.1/a.png", "http://127.0.0.1:8081/a.png", "https://127.0.0.1:8080/a.png"),
            *("http://localhost/a.png", "http://localhost:8081/a.png", "https://localhost:8080/a.png"),
            "http://localhost.evil.example:8080/a.png",
        ),
        "no URL": (
            *("", "data:image/png;base64,iVBORw0KGgo=", "https://x.runcomfy.net:99999/a.png"),
            *("https://[x.runcomfy.net/a.png", "https://x.runcomfy.net%2eevil.example/a.png"),
            *(None, 5, b"https://x.runcomfy.net/a.png", ["https://x.runcomfy.net/a.png"], {}),
        ),
        "a host that is no host name": (
            # getaddrinfo stops at the NUL, and evil.example is connected to
            *("https://evil.example\0.runcomfy.net/a.png", "https://127.0.0.1\0.runcomfy.net/a.png"),
            *("https://evil.example%00.runcomfy.net/a.png", "https://evil.example%2f.runcomfy.net/a.png"),
            *("https://evil.example%23.runcomfy.net/a.png", "https://evil.example .runcomfy.net/a.png"),
            *("https://evil.example;.runcomfy.net/a.png", "https://evil.example,.runcomfy.net/a.png"),
            *("https://.runcomfy.net/a.png", "https://a..runcomfy.net/a.png"),
        ),
    }.values(),
    ids=lambda texts: str(texts[0])[:40],
)
def test_takes_no_file_from_anywhere_else(texts: Any) -> None:
    assert [text for text in texts if trusted_file_url(text, OWN) is not None] == []


def test_takes_a_file_of_this_machine_by_the_name_of_the_base_url_alone():
    assert trusted_file_url("http://127.0.0.1:8188/a", "http://localhost:8188") == "http://localhost:8188/a"
    assert trusted_file_url("http://127.0.0.1:8188/a", "http://[::1]:8188") == "http://[::1]:8188/a"
    assert trusted_file_url("http://127.0.0.1:8188/a", "http://x.example:8188") is None
    assert trusted_file_url("http://localhost/a", "http://127.0.0.1") == "http://127.0.0.1/a"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://y.example/%7Ea/../b?c=%28#d", "https://y.example/%7Ea/../b?c=%28#d"),
        ("data:,x", "data:,x"),
        ("//y.example/%7Ea?b", "https://y.example/%7Ea?b"),
        ("/%7Ea/../b;c?d=%2F", "https://x.example/%7Ea/../b;c?d=%2F"),
        ("?d=%28", "https://x.example/one/two%2Fthree?d=%28"),
        ("#d", "https://x.example/one/two%2Fthree#d"),
        ("", "https://x.example/one/two%2Fthree"),
        ("%7Ea;?b=%28", "https://x.example/one/%7Ea;?b=%28"),
        ("./%7Ea", "https://x.example/one/%7Ea"),
        ("../%7Ea", "https://x.example/%7Ea"),
        ("../../.././%7Ea/../b", "https://x.example/%7Ea/../b"),
        ("..", "https://x.example/"),
        (".", "https://x.example/one/"),
        ("..a", "https://x.example/one/..a"),
        ("a/b:c", "https://x.example/one/a/b:c"),
    ],
)
def test_a_redirect_is_joined_without_rewriting(location, target):
    assert redirected("https://x.example/one/two%2Fthree?four=/five#six", location) == target


@pytest.mark.parametrize(
    "url", ["https://x.example", "https://x.example?a=/b", "https://x.example/", "https://x.example/a"]
)
def test_a_redirect_from_the_root_stays_below_it(url):
    assert [redirected(url, location) for location in ("b", "../b", "/b")] == ["https://x.example/b"] * 3


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Example.COM/x", "example.com"),
        ("https://bücher.example", "xn--bcher-kva.example"),
        ("https://a_b-c.example", "a_b-c.example"),
        ("https://127.0.0.1:8080", "127.0.0.1"),
        ("https://[::1]", "::1"),
        ("https://localhost", "localhost"),
        ("https://-a.example", None),
        ("https://a..example", None),
        ("https://a example", None),
        ("https://a%2f.example", None),
        ("https://" + "a" * 64 + ".example", None),
        ("https://" + "a." * 130 + "example", None),
        ("/no/host", None),
    ],
)
def test_a_host_is_a_name_or_an_address(url, host):
    assert host_of(URL(url)) == host


def test_what_is_loopback_and_what_is_public():
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert (is_loopback(host), is_public(host)) == (True, False), host
    for host in ("example.com", "1.1.1.1", "2606:4700::1111"):
        assert (is_loopback(host), is_public(host)) == (False, True), host
    for host in (
        *("10.0.0.1", "224.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:a00:1"),
        *("intranet", "printer.local", "a.test", "a.onion", "a.0x7f", "a.1"),
    ):
        assert (is_loopback(host), is_public(host)) == (False, False), host


# By IANA's registries. Python's releases disagree about some of them.
NOT_PUBLIC = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *("224.0.0.0/4", "240.0.0.0/4"),
    *("::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1", "fc00::/7", "fe80::/10"),
    *("fec0::/10", "ff00::/8", "5f00::/16", "100::/64", "64:ff9b:1::/48"),
]
PUBLIC = [
    *("1.0.0.0/8", "8.0.0.0/8", "11.0.0.0/8", "100.128.0.0/9", "172.32.0.0/11", "192.0.1.0/24", "192.1.0.0/16"),
    *("198.20.0.0/14", "223.0.0.0/8", "2001:200::/23", "2003::/16", "2400::/12", "2606:4700::/32", "2a00::/12"),
]


def test_an_address_is_public_by_the_registries_whatever_pythons_release_says():
    for networks, public in ((NOT_PUBLIC, False), (PUBLIC, True)):
        for network in map(ipaddress.ip_network, networks):
            for address in (network[0], network[1], network[network.num_addresses // 2], network[-2], network[-1]):
                mapped = [f"::ffff:{address}"] if address.version == 4 else []
                for host in (str(address), *mapped):
                    assert is_public(host) is public, host


IPV4 = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "192.0.0.8",
    "192.168.1.1",
    "255.255.255.255",
]


def spellings(text: str) -> Iterator[str]:
    """The IPv6 addresses that lead to an IPv4 address."""
    number = int(ipaddress.ip_address(text))
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    yield from (f"::{text}", f"::{high}:{low}")  # IPv4-compatible
    yield from (f"::ffff:{text}", f"::ffff:{high}:{low}", f"0:0:0:0:0:FFFF:{text}")  # mapped
    yield from (f"::ffff:0:{text}", f"::ffff:0:{high}:{low}")  # translated, RFC 2765
    yield from (f"64:ff9b::{text}", f"64:ff9b:1::{text}", f"64:ff9b:1:{high}:{low[:-2] or 0}:{low[-2:]}::")  # NAT64
    yield from (f"2002:{high}:{low}::", f"2002:{high}:{low}::1")  # 6to4
    yield f"2001:0:{high}:{low}::f7f7:f7f7"  # Teredo: the server, and the client, inverted
    yield f"2001:0:808:808:0:0:{number >> 16 ^ 0xFFFF:x}:{number & 0xFFFF ^ 0xFFFF:x}"


@pytest.mark.parametrize("text", IPV4)
def test_no_spelling_of_a_private_address_is_public(text):
    for host in (text, *spellings(text)):
        assert not is_public(host), host


def test_a_zone_makes_an_address_local():
    assert not is_public("2606:4700::1111%eth0")


@pytest.mark.parametrize("text", ["0://[]@", "https://user[]@/x", "https://[::1", "https://a\\b"])
def test_a_text_that_is_no_url_is_a_value_error(text):
    with pytest.raises(ValueError, match="URL"):
        parsed(text)
