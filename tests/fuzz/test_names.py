"""Ids, base URLs, the environment and the vendor's token file with any content: a value or a clear refusal."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from flux_klein_async import FluxKleinClient
from flux_klein_async.api.credentials import find_token
from flux_klein_async.api.urls import ApiUrls, checked_model_id, checked_request_id, is_loopback, trusted_file_url
from flux_klein_async.errors import ConfigurationError, InvalidInputError
from flux_klein_async.options import BASE_URL_VARIABLE, TOKEN_VARIABLES, from_environ

from .strategies import anything, damaged, examples, texts, urls, written

# What an environment variable or an argument can hold: any bytes but NUL; undecodable ones are lone surrogates.
arguments = st.binary(max_size=60).map(lambda data: os.fsdecode(data.replace(b"\x00", b"")))
anything_else = st.text() | arguments | urls | texts
ids = anything_else | st.from_regex(r"[A-Za-z0-9_./%-]{1,140}", fullmatch=True) | st.none() | st.integers()


def tried(call: Callable[[], Any], kind: type[Exception]) -> Any:
    """What a call returned, or its error of the one documented kind."""
    try:
        return call()
    except kind as error:
        return error


@examples(300)
@given(ids)
def test_an_id_stands_in_a_path_as_it_is_or_is_refused(value):
    api = ApiUrls("https://api.example/base")
    for make in (lambda: api.request(value, "status"), lambda: api.model(value)):
        url = tried(make, InvalidInputError)
        if isinstance(url, InvalidInputError):
            assert len(str(url)) < 1000
            continue
        assert str(URL(url)) == url, "what is opened is what was built"
        assert url.startswith("https://api.example/base/v1/")
        assert url.endswith((f"/requests/{value}/status", f"/models/{value}"))
        assert checked_request_id(value) if "/requests/" in url else checked_model_id(value)
        assert ".." not in URL(url).parts


hosts = st.sampled_from(
    [
        *("runcomfy.net", "x.RunComfy.NET", "runcomfy.net.", "runcomfy.net.evil.example", "evil.example"),
        *("evilruncomfy.net", "xn--runcomfy-.net", "\uff52uncomfy.net", "runcomfy\u3002net"),
        "evil.example#@runcomfy.net",
        *("127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "localhost"),
        *("localhost.evil.example", "runcomfy.net\\@evil.example"),
    ]
)
near = st.builds(
    "{}{}{}{}{}".format,
    st.just("https://")
    | st.sampled_from(["https://", "http://", "HTTPS://", "//", "", "ftp://", "https:/\\", " https://", "https:"]),
    st.just("") | st.sampled_from(["", "user@", "user:pass@", "@", "runcomfy.net@", "runcomfy.net:443@"]),
    hosts,
    st.just("") | st.sampled_from(["", ":443", ":0", ":99999", ":", ":x"]),
    st.sampled_from(["", "/", "/v1", "/v1/", "/a/../b", "?x=1", "#y", "/%2e%2e/", "/\\evil", "/\n"]),
)


@examples(500)
@given(near | anything_else | near.flatmap(lambda url: damaged(st.just(url.encode())).map(os.fsdecode)))
def test_a_base_url_is_opened_as_it_was_checked_or_is_refused(text):
    try:
        addresses = ApiUrls(text)
    except ConfigurationError:
        return
    url = URL(addresses.request("an-id", "status"))
    assert url.scheme == "https" or is_loopback(url.host or "")
    assert (url.user, url.password, url.fragment, url.query_string) == (None, None, "", "")
    assert url.path.endswith("/v1/requests/an-id/status")
    assert str(url.origin()) == addresses.origin


@examples(500)
@given(near)
def test_a_file_comes_from_a_trusted_host_or_not_at_all(text):
    opened = trusted_file_url(text, "https://own.example:8443")
    if opened is None:
        return
    url = URL(opened)
    host = (url.host or "").rstrip(".")
    assert url.scheme == "https"
    assert (url.user, url.password) == (None, None)
    assert host in {"runcomfy.net", "runcomfy.com"} or host.endswith((".runcomfy.net", ".runcomfy.com"))


variables = st.sampled_from([*TOKEN_VARIABLES, BASE_URL_VARIABLE])
environments = st.dictionaries(variables, arguments | near.map(lambda text: text.replace("\x00", "")), max_size=4)


@examples(300)
@given(environments)
def test_a_client_is_made_of_any_environment_or_refuses_it(environ):
    environment = from_environ(environ)
    values = [value.strip() for value in environ.values()]
    assert environment.token is None or environment.token in values
    token = tried(lambda: find_token(None, environment, wall_clock=lambda: 0.0), ConfigurationError)
    addresses = tried(lambda: ApiUrls(environment.base_url), ConfigurationError)
    for error in (token, addresses):
        if isinstance(error, ConfigurationError):
            assert not environment.token or environment.token not in str(error) or len(environment.token) < 6
            return
    assert token in values
    shown = repr(FluxKleinClient(token, base_url=addresses.origin, allow_insecure=True))
    assert len(token) < 6 or token in addresses.origin or token not in shown


entries = st.fixed_dictionaries(
    {}, optional={"access_token": texts | arguments | anything, "expires_at": anything | st.just(1e400)}
)
contents = entries.map(written) | damaged(entries.map(written)) | st.binary(max_size=100) | anything.map(written)
marked = st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"])


@examples(300)
@given(st.builds(bytes.__add__, marked, contents))
def test_a_token_file_gives_its_token_or_a_refusal_that_names_the_file(data):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "token.json").write_bytes(data)
        environment = from_environ({"RUNCOMFY_CONFIG_DIR": folder})
        token = tried(lambda: find_token(None, environment, wall_clock=lambda: 1e9), ConfigurationError)
    if isinstance(token, ConfigurationError):
        assert token.__cause__ is None
        assert "token" in str(token)
    else:
        assert token == json.loads(data)["access_token"].strip()
        assert token.isascii()
