"""Host names: what is one, what is this machine, what can be reached from anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from flux_klein_async.hosts import host_of, is_loopback, is_public, parsed


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
