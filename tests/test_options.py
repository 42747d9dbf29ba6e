"""Settings are checked when they are made; the environment is read in a known order."""

import dataclasses
import math
from typing import Any

import pytest

from flux_klein_async.errors import ConfigurationError, InvalidInputError
from flux_klein_async.options import DEFAULT, Environment, Limits, RetryPolicy, checked_timeout, from_environ

NAN, INF, HUGE = math.nan, math.inf, 10**400

NO_COUNTS: list[Any] = [0, -1, 1.0, 1.5, True, "1", NAN, INF]
NO_HOSTS: list[Any] = [
    *("cdn.example.com", None, 5, {"a.example.com"}, ("cdn.example.com", "*.example.com"), (5,), (None,), ([],)),
    *[(host,) for host in ("", ".", "com", ".com", "localhost", "127.0.0.1", "10.0.0.1", "169.254.169.254", "[")],
    *[(f"cdn.example.com{more}",) for more in ("/", "/a", ":443", "?a", "#a", " ", "\\a", "\n", "\0", "@evil.net")],
    *[(host,) for host in ("https://cdn.example.com", "me@cdn.example.com", ".8.8.8.8", "a..example.com", "cdn.test")],
]
NO_SECONDS: list[Any] = [-0.1, NAN, INF, -INF, True, "1", 1j, HUGE]


@pytest.mark.parametrize(
    ("cls", "names", "good", "bad"),
    [
        (Limits, "max_in_flight max_connections max_json_bytes max_file_bytes", [1, 7], [*NO_COUNTS, None]),
        (Limits, "max_picture_bytes max_input_file_bytes max_request_bytes", [1, 7], [*NO_COUNTS, None]),
        (Limits, "polls_per_second submits_per_second", [0.5, 20, None], [*NO_SECONDS, 0, 0.0]),
        (Limits, "file_hosts", [(), ("cdn.example.com", ".example.org", "8.8.8.8")], NO_HOSTS),
        (Limits, "halt_after", [1, 7, None], NO_COUNTS),
        (RetryPolicy, "attempts", [1, 7], [*NO_COUNTS, None]),
        (RetryPolicy, "refused_submits", [1, 7, None], NO_COUNTS),
        (RetryPolicy, "initial multiplier maximum", [0, 0.5, 20], [*NO_SECONDS, None]),
    ],
)
def test_takes_settings_in_range_and_refuses_others_by_name(cls: type, names: str, good: Any, bad: Any) -> None:
    for name in names.split():
        assert [getattr(cls(**{name: value}), name) for value in good] == good
        for value in bad:
            with pytest.raises(ConfigurationError, match=rf"^{cls.__name__}\.{name} must be ") as caught:
                cls(**{name: value})
            assert name == "file_hosts" or f"not {value!r:.40}" in str(caught.value)


def test_has_the_defaults_that_the_documentation_promises() -> None:
    assert dataclasses.astuple(Limits()) == (
        *(64, 100, None, None, 8 * 2**20, 64 * 2**20, 6 * 2**20, 32 * 2**20, 64 * 2**20, (), 5),
    )
    assert dataclasses.astuple(RetryPolicy()) == (5, 0.1, 2.0, 5.0, None)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {}),
        (
            {"RUNCOMFY_API_TOKEN": "a", "RUNCOMFY_TOKEN": "b", "RUNCOMFY_API_KEY": "c"},
            {"token": "a", "token_variable": "RUNCOMFY_API_TOKEN"},
        ),
        ({"RUNCOMFY_TOKEN": "b", "RUNCOMFY_API_KEY": "c"}, {"token": "b", "token_variable": "RUNCOMFY_TOKEN"}),
        ({"RUNCOMFY_API_KEY": "c"}, {"token": "c", "token_variable": "RUNCOMFY_API_KEY"}),
        (
            {"RUNCOMFY_API_TOKEN": " \n", "RUNCOMFY_TOKEN": " b \n"},
            {"token": "b", "token_variable": "RUNCOMFY_TOKEN"},
        ),
        ({"RUNCOMFY_CONFIG_DIR": "/c", "XDG_CONFIG_HOME": "/x", "HOME": "/h"}, {"token_file": "/c/token.json"}),
        ({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}, {"token_file": "/x/runcomfy/token.json"}),
        ({"HOME": "/h", "USERPROFILE": "/u"}, {"token_file": "/h/.config/runcomfy/token.json"}),
        ({"USERPROFILE": "/u"}, {"token_file": "/u/.config/runcomfy/token.json"}),
        (
            {"RUNCOMFY_CONFIG_DIR": "", "XDG_CONFIG_HOME": "", "HOME": "/h"},
            {"token_file": "/h/.config/runcomfy/token.json"},
        ),
        ({"RUNCOMFY_MODEL_API_BASE": "https://h.example/v1"}, {"base_url": "https://h.example/v1"}),
        ({"RUNCOMFY_MODEL_API_BASE": ""}, {}),
        ({"HTTPS_PROXY": "http://a"}, {"proxy": "http://a"}),
        ({"https_proxy": " http://a "}, {"proxy": "http://a"}),
        ({"HTTPS_PROXY": "http://a", "https_proxy": "http://b"}, {"proxy": "http://b"}),
        ({"ALL_PROXY": "http://a"}, {"proxy": "http://a"}),
        ({"all_proxy": "http://a", "HTTPS_PROXY": "http://b"}, {"proxy": "http://b"}),
        ({"HTTPS_PROXY": "", "ALL_PROXY": "http://a"}, {}),
        ({"https_proxy": "", "HTTPS_PROXY": "http://a"}, {}),
        ({"HTTP_PROXY": "http://a", "http_proxy": "http://a"}, {}),
        ({"NO_PROXY": "a,b"}, {"no_proxy": "a,b"}),
        ({"NO_PROXY": "a", "no_proxy": "b"}, {"no_proxy": "b"}),
        ({"SSL_CERT_FILE": "/f", "SSL_CERT_DIR": "/d"}, {"ca_file": "/f", "ca_dir": "/d"}),
        ({"SSL_CERT_FILE": "", "SSL_CERT_DIR": ""}, {}),
    ],
    ids=str,
)
def test_reads_the_environment_in_order(environ: dict[str, str], expected: dict[str, Any]) -> None:
    assert from_environ(environ) == Environment(**expected)


def test_what_was_read_shows_no_secret() -> None:
    shown = repr(from_environ({"RUNCOMFY_TOKEN": "my-token", "HTTPS_PROXY": "http://me:secret@proxy"}))
    assert not any(secret in shown for secret in ("my-token", "secret"))


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(DEFAULT, 120.0), (None, None), (INF, None), (0, 0.0), (30, 30.0), (0.25, 0.25)],
)
def test_a_timeout_is_seconds_none_or_the_default(timeout: Any, seconds: float | None) -> None:
    assert checked_timeout(timeout, 120.0) == seconds


@pytest.mark.parametrize("timeout", [-1, -0.001, -INF, NAN, True, False, "30", b"30", 1j, [30], HUGE])
def test_refuses_a_timeout_that_is_no_number_of_seconds(timeout: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^timeout must be a number of seconds, 0 or more, or None"):
        checked_timeout(timeout, 120.0)


def test_the_default_shows_as_its_name() -> None:
    assert repr(DEFAULT) == "DEFAULT"
