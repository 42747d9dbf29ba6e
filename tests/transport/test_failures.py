"""Every failure of aiohttp has a meaning of ours; nothing of the request is kept."""

from collections.abc import Iterator

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from flux_klein_async import (
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    FluxKleinError,
    InvalidResponseError,
)
from flux_klein_async.api.credentials import Redactor
from flux_klein_async.transport.base import BodyGuard
from flux_klein_async.transport.failures import MEANINGS, map_error

TOKEN = "very-secret-token"
NOTHING_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.ClientHttpProxyError,
)


def walk(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    yield cls
    for below in cls.__subclasses__():
        yield from walk(below)


TREE = sorted(set(walk(aiohttp.ClientError)) - {aiohttp.ClientError}, key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_of_aiohttp_has_a_meaning_of_its_own_branch(cls):
    """Fails where a new aiohttp brings a branch that only the root's fallback would catch."""
    assert any(ancestor in MEANINGS for ancestor in cls.__mro__[: cls.__mro__.index(aiohttp.ClientError)])


def sample(cls: type[BaseException]) -> BaseException:
    """An instance that holds the request with its token, as aiohttp's own do."""
    headers = CIMultiDictProxy(CIMultiDict({"Authorization": f"Bearer {TOKEN}"}))
    info = RequestInfo(URL("https://api.invalid/"), "POST", headers)
    key = ConnectionKey("api.invalid", 443, True, True, None, None, None)
    if issubclass(cls, aiohttp.ClientResponseError):
        return cls(info, (), status=400, message=f"bad {TOKEN}", headers=CIMultiDict())
    if issubclass(cls, aiohttp.ClientSSLError):
        return cls(key, OSError(1, f"no {TOKEN}"))
    if issubclass(cls, aiohttp.client_exceptions.UnixClientConnectorError):
        return cls("/nowhere", key, OSError(1, "refused"))
    if issubclass(cls, aiohttp.ClientConnectorError):
        return cls(key, OSError(1, "refused"))
    if issubclass(cls, aiohttp.ServerFingerprintMismatch):
        return cls(b"a", b"b", "api.invalid", 443)
    return cls(f"about {TOKEN}")


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize(
    "cls",
    [*TREE, aiohttp.ClientError, OSError, TimeoutError, RuntimeError, ValueError, TypeError],
    ids=lambda cls: cls.__name__,
)
def test_a_mapped_error_is_ours_keeps_type_and_text_and_drops_the_request(cls, written):
    guard = BodyGuard()
    if written:
        guard.wrote()
    error = map_error(sample(cls), Redactor(TOKEN), guard)
    assert isinstance(error, FluxKleinError)
    assert (error.__cause__, error.__context__) == (None, None)
    assert cls.__name__ in str(error)
    assert ("session" in str(error)) is isinstance(error, ConfigurationError)
    assert TOKEN not in f"{error} {vars(error)}"
    if isinstance(error, APIConnectionError):
        assert error.sent is (written and not issubclass(cls, NOTHING_SENT))


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        (aiohttp.ClientConnectorError, APIConnectionError),
        (aiohttp.ClientConnectorCertificateError, APIConnectionError),
        (aiohttp.ServerDisconnectedError, APIConnectionError),
        (aiohttp.ClientPayloadError, APIConnectionError),
        (aiohttp.ConnectionTimeoutError, APITimeoutError),
        (aiohttp.SocketTimeoutError, APITimeoutError),
        (aiohttp.ClientResponseError, InvalidResponseError),
        (aiohttp.InvalidURL, ConfigurationError),
        (TimeoutError, APITimeoutError),
        (ConnectionResetError, APIConnectionError),
        (RuntimeError, ConfigurationError),
        (ValueError, APIConnectionError),
        (TypeError, APIConnectionError),
    ],
)
def test_what_an_error_means(cls, kind):
    assert type(map_error(sample(cls), Redactor(TOKEN), None)) is kind


@pytest.mark.parametrize(
    ("written", "kind", "sent"), [(False, APIConnectionError, False), (True, InvalidResponseError, None)]
)
def test_an_answer_to_a_submit_that_never_left_is_a_proxys(written, kind, sent):
    guard = BodyGuard()
    if written:
        guard.wrote()
    error = map_error(sample(aiohttp.ClientResponseError), Redactor(TOKEN), guard)
    assert (type(error), getattr(error, "sent", None)) == (kind, sent)


@pytest.mark.parametrize(
    ("cls", "advice"),
    [
        (aiohttp.ClientConnectorCertificateError, "SSL_CERT_FILE"),
        (aiohttp.ClientConnectorSSLError, "TLS"),
        (aiohttp.ClientProxyConnectionError, "HTTPS_PROXY"),
        (aiohttp.ClientHttpProxyError, "HTTPS_PROXY"),
    ],
)
def test_what_can_be_done_about_it_is_said(cls, advice):
    error = map_error(sample(cls), Redactor(TOKEN), None)
    assert isinstance(error, APIConnectionError)
    assert (error.sent, error.charged, error.retryable) == (False, "no", True)
    assert advice in str(error)
