"""Which addresses are built, and which are trusted."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from flux_klein_async.api.urls import (
    ApiUrls,
    checked_model_id,
    checked_request_id,
    host_of,
    is_loopback,
    is_public,
    parsed,
    trusted_file_url,
)
from flux_klein_async.errors import ConfigurationError, InvalidInputError

OWN = "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("base_url", "prefix"),
    [
        (None, "https://model-api.runcomfy.net/v1"),
        ("https://model-api.runcomfy.net", "https://model-api.runcomfy.net/v1"),
        ("https://model-api.runcomfy.net/", "https://model-api.runcomfy.net/v1"),
        ("https://model-api.runcomfy.net/v1", "https://model-api.runcomfy.net/v1"),
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
        ("http://localhost:8080/", "http://localhost:8080/v1"),
        ("http://LOCALHOST/v1", "http://localhost/v1"),
        ("http://[::1]:8080", "http://[::1]:8080/v1"),
    ],
)
def test_addresses_are_built_from_the_base_url(base_url: str | None, prefix: str) -> None:
    addresses = ApiUrls(base_url)
    assert [addresses.origin, addresses.model("a/b"), addresses.request("r-1", "status")] == [
        str(URL(prefix).origin()),
        f"{prefix}/models/a/b",
        f"{prefix}/requests/r-1/status",
    ]


BAD_BASE_URLS: list[Any] = [
    "",
    " ",
    "h.example",
    "//h.example",
    "https://",
    "https:///v1",
    "ftp://h.example",
    "file:///etc/passwd",
    "https://[::1",
    "https://h.example:99999",
    "https://h.example:port",
    "https://user@h.example",
    "https://user:password@h.example",
    "https://:password@h.example",
    "https://h.example?token=x",
    "https://h.example#x",
    "https://h.example\\@evil.example",
    5,
    b"https://h.example",
]


@pytest.mark.parametrize("allow_insecure", [False, True])
@pytest.mark.parametrize("base_url", BAD_BASE_URLS)
def test_refuses_a_base_url_that_cannot_be_one(base_url: Any, allow_insecure: bool) -> None:
    with pytest.raises(ConfigurationError, match=r"^The base URL "):
        ApiUrls(base_url, allow_insecure=allow_insecure)


@pytest.mark.parametrize(
    "base_url",
    ["https://h example", "https://h.example\0.evil.example", "https://h%2f.example", "https://h.example\r\nX-Evil: 1"],
)
def test_refuses_a_base_url_whose_host_is_no_host_name(base_url: str) -> None:
    with pytest.raises(ConfigurationError):
        ApiUrls(base_url)


@pytest.mark.parametrize(
    "base_url",
    [
        "http://h.example",
        "http://model-api.runcomfy.net",
        "http://10.0.0.1",
        "http://0.0.0.0:8080",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://notlocalhost",
        "http://[2001:db8::1]",
    ],
)
def test_plain_http_to_another_machine_must_be_allowed(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^Plain http to .* would send the token in clear"):
        ApiUrls(base_url)
    assert ApiUrls(base_url, allow_insecure=True).origin == base_url


def test_the_refusal_of_a_base_url_does_not_repeat_its_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ApiUrls("https://user:s3cr3t@h.example")
    assert "s3cr3t" not in repr(caught.value)


@given(st.text())
def test_a_base_url_is_taken_or_refused_whatever_the_text(text: str) -> None:
    for base_url in (text, "https://" + text):
        try:
            assert ApiUrls(base_url).origin.startswith(("https://", "http://"))
        except ConfigurationError:
            continue


@pytest.mark.parametrize("request_id", ["a", "A-Z_0-9", "0e3b2c1a-8c1d-4f6e-9b7a-1234567890ab", "x" * 128, "-", "_"])
def test_takes_a_request_id(request_id: str) -> None:
    assert checked_request_id(request_id) == request_id


@pytest.mark.parametrize(
    "request_id",
    [
        "",
        "x" * 129,
        "a/b",
        "..",
        "a.b",
        "a b",
        "a\n",
        "\na",
        "a?b",
        "a#b",
        "a%2fb",
        "é",
        "٣",
        "a\0",
        None,
        5,
        b"a",
        ["a"],
    ],
)
def test_refuses_what_is_no_request_id(request_id: object) -> None:
    with pytest.raises(InvalidInputError, match=r"^Not a request id: "):
        checked_request_id(request_id)
    with pytest.raises(InvalidInputError):
        ApiUrls().request(request_id, "status")  # type: ignore[arg-type]  # what callers may hand over


@pytest.mark.parametrize(
    "model",
    [
        "blackforestlabs/flux-2-klein/4b/text-to-image",
        "blackforestlabs/flux-2-klein/9b/text-to-image",
        "model",
        "owner/v1.5_turbo-2",
        "a/b" * 85 + "c",
    ],
)
def test_takes_a_model_id_with_slashes(model: str) -> None:
    assert (checked_model_id(model), ApiUrls().model(model)) == (
        model,
        f"https://model-api.runcomfy.net/v1/models/{model}",
    )


@pytest.mark.parametrize(
    "model",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "../requests",
        "a/../b",
        "a/..",
        "a/./b",
        ".a",
        "-a",
        "_a",
        "a b",
        "a?b",
        "a#b",
        "a%2e%2e",
        "a\\b",
        "a\n",
        "a\r\nb",
        "é",
        "a:b",
        "https://evil.example/a",
        "x" * 257,
        None,
        5,
        b"a",
    ],
)
def test_refuses_what_is_no_model_id(model: object) -> None:
    with pytest.raises(InvalidInputError, match=r"^Not a model id such as 'owner/model/variant': "):
        checked_model_id(model)


@given(st.text() | st.from_regex(r"[A-Za-z0-9_./-]{1,140}", fullmatch=True))
def test_an_id_never_leaves_its_place_in_the_path(text: str) -> None:
    addresses = ApiUrls("https://h.example")
    builders: dict[str, Any] = {
        "/v1/models/": addresses.model,
        "/v1/requests/": lambda request_id: addresses.request(request_id, "status"),
    }
    for start, build in builders.items():
        try:
            url = URL(build(text))
        except InvalidInputError:
            continue
        assert (url.host, url.path.startswith(start + text), url.query_string) == ("h.example", True, "")


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("https://runcomfy.net/a.png", "https://runcomfy.net/a.png"),
        ("https://playgrounds-storage-public.runcomfy.net/a.png", None),
        ("https://a.b.runcomfy.com/a.png", None),
        ("https://X.RunComfy.NET/A.png", "https://x.runcomfy.net/A.png"),
        ("HTTPS://x.runcomfy.net/a.png", "https://x.runcomfy.net/a.png"),
        ("https://x.runcomfy.net:8443/a.png", None),
        ("https://x.runcomfy.net:443/a.png", "https://x.runcomfy.net/a.png"),
        ("https://x.runcomfy.net/a.png?signature=b%2Bc%3D&d=e", None),
        ("https://x.runcomfy.net/a.png#fragment", "https://x.runcomfy.net/a.png"),
        ("https://x.runcomfy.net/a%20b.png", None),
        ("http://127.0.0.1:8080/files/a.png", None),
    ],
)
def test_takes_files_from_trusted_hosts_and_its_own_origin(text: str, opened: str | None) -> None:
    assert trusted_file_url(text, OWN) == (opened or text)


@pytest.mark.parametrize(
    "text",
    [
        # another host that polls trusted
        "https://evil.example/a.png",
        "https://runcomfy.net.evil.example/a.png",
        "https://evilruncomfy.net/a.png",
        "https://runcomfy.netx/a.png",
        "https://runcomfy.org/a.png",
        "https://runcomfy/a.png",
        "https://net/a.png",
        "https://evil.example/runcomfy.net",
        "https://evil.example/#@runcomfy.net",
        "https://evil.example/?@runcomfy.net",
        "https://evil.example#@runcomfy.net/",
        "https://evil.example?@runcomfy.net/",
        # user info
        "https://runcomfy.net@evil.example/a.png",
        "https://runcomfy.net:443@evil.example/a.png",
        "https://user@x.runcomfy.net/a.png",
        "https://user:password@x.runcomfy.net/a.png",
        "https://:password@x.runcomfy.net/a.png",
        "http://user@127.0.0.1:8080/a.png",
        # backslashes
        "https://evil.example\\@runcomfy.net/a.png",
        "https://evil.example\\.runcomfy.net/a.png",
        "https:\\\\x.runcomfy.net/a.png",
        "https://x.runcomfy.net\\a.png",
        "https://x.runcomfy.net/\\evil.example",
        # IP literals
        "https://127.0.0.1/a.png",
        "https://[::1]/a.png",
        "https://[::1].runcomfy.net/a.png",
        "https://169.254.169.254/latest/meta-data",
        "https://2130706433/a.png",
        # trailing dots
        "https://runcomfy.net./a.png",
        "https://runcomfy.net.evil.example./a.png",
        # another scheme, another port of its own machine
        "http://x.runcomfy.net/a.png",
        "ftp://x.runcomfy.net/a.png",
        "file://x.runcomfy.net/etc/passwd",
        "//x.runcomfy.net/a.png",
        "x.runcomfy.net/a.png",
        "https:x.runcomfy.net/a.png",
        "http://127.0.0.1/a.png",
        "http://127.0.0.1:8081/a.png",
        "https://127.0.0.1:8080/a.png",
        "http://localhost:8080/a.png",
        # no URL
        "",
        "data:image/png;base64,iVBORw0KGgo=",
        "https://x.runcomfy.net:99999/a.png",
        "https://[x.runcomfy.net/a.png",
        "https://x.runcomfy.net%2eevil.example/a.png",
    ],
)
def test_takes_no_file_from_anywhere_else(text: str) -> None:
    assert trusted_file_url(text, OWN) is None


@pytest.mark.parametrize(
    "text",
    [
        "https://evil.example\0.runcomfy.net/a.png",  # getaddrinfo stops at the NUL: evil.example is connected to
        "https://127.0.0.1\0.runcomfy.net/a.png",
        "https://evil.example%00.runcomfy.net/a.png",
        "https://evil.example%2f.runcomfy.net/a.png",
        "https://evil.example%23.runcomfy.net/a.png",
        "https://evil.example .runcomfy.net/a.png",
        "https://evil.example;.runcomfy.net/a.png",
        "https://evil.example,.runcomfy.net/a.png",
        "https://.runcomfy.net/a.png",
        "https://a..runcomfy.net/a.png",
    ],
)
def test_takes_no_file_from_a_host_that_is_no_host_name(text: str) -> None:
    assert trusted_file_url(text, OWN) is None


@pytest.mark.parametrize("value", [None, 5, b"https://x.runcomfy.net/a.png", ["https://x.runcomfy.net/a.png"], {}])
def test_what_is_no_text_is_no_address(value: Any) -> None:
    assert trusted_file_url(value, OWN) is None


@given(
    st.text()
    | st.tuples(
        st.sampled_from(["https://", "http://", "HTTPS://", "//", "https:"]),
        st.text(max_size=30),
        st.sampled_from(["runcomfy.net", ".runcomfy.com", "@runcomfy.net", "/runcomfy.net", "127.0.0.1:8080", ""]),
        st.sampled_from(["", ".", ":443", ":x", "/", "\\", "?", "#", "@evil.example"]),
        st.text(max_size=30),
    ).map("".join)
)
def test_whatever_the_text_only_trusted_origins_are_opened(text: str) -> None:
    opened = trusted_file_url(text, OWN)
    if opened is None:
        return
    url = URL(opened)
    assert url.user is None
    assert url.password is None
    host = url.host or ""
    assert str(url.origin()) == OWN or (url.scheme == "https" and host.endswith(("runcomfy.net", "runcomfy.com")))
    assert (trusted_file_url(opened, OWN), str(url)) == (opened, opened)


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


@pytest.mark.parametrize(
    ("host", "loopback", "public"),
    [
        ("localhost", True, False),
        ("127.0.0.1", True, False),
        ("127.9.9.9", True, False),
        ("::1", True, False),
        ("example.com", False, True),
        ("1.1.1.1", False, True),
        ("2606:4700::1111", False, True),
        ("10.0.0.1", False, False),
        ("224.0.0.1", False, False),
        ("64:ff9b::7f00:1", False, False),
        ("2002:7f00:1::", False, False),
        ("::ffff:127.0.0.1", True, False),
        ("intranet", False, False),
        ("printer.local", False, False),
        ("a.0x7f", False, False),
        ("a.1", False, False),
    ],
)
def test_what_is_loopback_and_what_is_public(host, loopback, public):
    assert (is_loopback(host), is_public(host)) == (loopback, public)


@given(st.text())
def test_no_text_is_both(host):
    assert not (is_loopback(host) and is_public(host))


@pytest.mark.parametrize("text", ["0://[]@", "https://user[]@/x", "https://[::1", "https://a\\b"])
def test_a_text_that_is_no_url_is_a_value_error(text):
    with pytest.raises(ValueError, match="URL"):
        parsed(text)
