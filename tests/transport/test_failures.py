"""Every failure of aiohttp has a meaning of ours; nothing of the request is kept."""

import errno
import socket
import traceback
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
from flux_klein_async.transport.failures import MEANINGS, map_error, without_frames

TOKEN = "very-secret-token"
NOTHING_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.ClientHttpProxyError,
)

BUILT_IN = (
    OSError,
    RecursionError,
    TimeoutError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    ZeroDivisionError,
    Exception,
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
    key = ConnectionKey("api.invalid", 443, True, True, None, None, None)
    trouble = OSError(1, f"no {TOKEN}")
    for parent, arguments in (
        (aiohttp.ClientResponseError, (RequestInfo(URL("https://api.invalid/"), "POST", headers), ())),
        (aiohttp.client_exceptions.UnixClientConnectorError, ("/nowhere", key, trouble)),
        (aiohttp.ClientConnectorError, (key, trouble)),
        (aiohttp.ServerFingerprintMismatch, (b"a", b"b", "api.invalid", 443)),
    ):
        if issubclass(cls, parent):
            return cls(*arguments)
    return cls(f"about {TOKEN}")


def unconnected(trouble: OSError) -> BaseException:
    return aiohttp.ClientConnectorError(ConnectionKey("a.b", 1, True, True, None, None, None), trouble)


def guard(written: bool) -> BodyGuard:
    found = BodyGuard()
    if written:
        found.wrote()
    return found


@pytest.mark.parametrize("cls", NOTHING_SENT)
def test_without_a_connection_nothing_was_sent_whatever_the_request(cls):
    assert map_error(sample(cls), Redactor(TOKEN), None).sent is False


@pytest.mark.parametrize("cls", [*TREE, *BUILT_IN], ids=lambda cls: cls.__name__)
def test_no_error_after_a_paid_body_was_written_says_that_nothing_was_sent(cls):
    """A trace or a middleware may call something else after the answer, and fail with any error there is."""
    error = map_error(sample(cls), Redactor(TOKEN), guard(written=True))
    assert getattr(error, "sent", True) is True
    assert not isinstance(error, ConfigurationError)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize(
    "cls",
    [*TREE, aiohttp.ClientError, *BUILT_IN],
    ids=lambda cls: cls.__name__,
)
def test_a_mapped_error_is_ours_keeps_type_and_text_and_drops_the_request(cls, written):
    error = map_error(sample(cls), Redactor(TOKEN), guard(written))
    assert isinstance(error, FluxKleinError)
    assert (error.__cause__, error.__context__) == (None, None)
    in_words = cls in {aiohttp.ClientConnectorError, aiohttp.ClientConnectorDNSError}
    assert ("cannot connect to api.invalid:443: Operation not permitted" if in_words else cls.__name__) in str(error)
    assert ("session" in str(error)) is isinstance(error, ConfigurationError)
    assert TOKEN not in f"{error} {vars(error)}"
    if isinstance(error, APIConnectionError):
        assert error.sent is written


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), "Connection reset by peer"),
        (
            unconnected(OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)")),
            "cannot connect to a.b:1: Connection refused",
        ),
        (unconnected(socket.gaierror(-2, "Name not known")), "cannot connect to a.b:1: Name not known"),
    ],
)
def test_a_failure_of_the_network_is_told_in_the_words_of_the_system(error, words):
    assert str(map_error(error, Redactor(TOKEN), None)) == f"The connection to the service failed: {words}"


@pytest.mark.parametrize(
    ("cls", "kind", "advice"),
    [
        (aiohttp.ClientConnectorError, APIConnectionError, ""),
        (aiohttp.ClientConnectorCertificateError, APIConnectionError, "SSL_CERT_FILE"),
        (aiohttp.ClientConnectorSSLError, APIConnectionError, "TLS"),
        (aiohttp.ClientProxyConnectionError, APIConnectionError, "HTTPS_PROXY"),
        (aiohttp.ClientHttpProxyError, APIConnectionError, "HTTPS_PROXY"),
        (aiohttp.ServerDisconnectedError, APIConnectionError, ""),
        (aiohttp.ClientPayloadError, APIConnectionError, ""),
        (aiohttp.ConnectionTimeoutError, APITimeoutError, ""),
        (aiohttp.SocketTimeoutError, APITimeoutError, ""),
        (aiohttp.ClientResponseError, InvalidResponseError, ""),
        (aiohttp.TooManyRedirects, InvalidResponseError, ""),
        (aiohttp.InvalidURL, ConfigurationError, ""),
        (TimeoutError, APITimeoutError, ""),
        (ConnectionResetError, APIConnectionError, ""),
        (RuntimeError, ConfigurationError, ""),
        (RecursionError, APIConnectionError, ""),
        (ValueError, APIConnectionError, ""),
        (TypeError, APIConnectionError, ""),
    ],
)
def test_what_an_error_means_and_what_to_do(cls, kind, advice):
    error = map_error(sample(cls), Redactor(TOKEN), None)
    assert (type(error), advice in str(error)) == (kind, True)
    if advice:
        assert (error.sent, error.charged, error.retryable) == (False, "no", True)


@pytest.mark.parametrize(
    ("written", "kind", "sent"), [(False, APIConnectionError, False), (True, InvalidResponseError, None)]
)
def test_an_answer_to_a_submit_that_never_left_is_a_proxys(written, kind, sent):
    error = map_error(sample(aiohttp.ClientResponseError), Redactor(TOKEN), guard(written))
    assert (type(error), getattr(error, "sent", None)) == (kind, sent)


def frames(error: BaseException) -> list[str]:
    return [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]


def test_what_passes_keeps_the_users_frames_and_loses_those_of_aiohttp_in_all_that_it_came_from():
    def hook() -> None:
        try:
            aiohttp.ClientTimeout(connect=1, unknown=2)  # type: ignore[call-arg]
            aiohttp.CookieJar().load("/nowhere")
        except TypeError as cause:
            try:
                aiohttp.BasicAuth.decode("nothing")
            except ValueError as one:
                try:
                    aiohttp.BasicAuth.decode("nothing at all")
                except ValueError as two:
                    cause.__context__ = cause  # a circle
                    raise BaseExceptionGroup("both", [one, two]) from cause

    with pytest.raises(BaseExceptionGroup) as caught:
        hook()
    error = caught.value
    assert [frames(each)[-1] for each in error.exceptions] == ["decode", "decode"]
    assert without_frames(error) is error
    assert frames(error)[-1] == "hook"
    assert [frames(each) for each in (*error.exceptions, error.__cause__)] == [["hook"]] * 3


def test_a_cancellation_loses_what_it_interrupted():
    with pytest.raises(KeyboardInterrupt) as caught:
        raise KeyboardInterrupt
    caught.value.__context__ = LookupError()
    assert without_frames(caught.value).__context__ is None
