"""What each exception of aiohttp means here, by class. Pure."""

import os
from pathlib import PurePath
from types import TracebackType

import aiohttp

from flux_klein_async.api.credentials import Redactor
from flux_klein_async.errors import (
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    FluxKleinError,
    InvalidResponseError,
)
from flux_klein_async.transport.base import BodyGuard

__all__ = ["MEANINGS", "map_error", "without_frames"]

# Our class for each of aiohttp's, and whether a byte of the body may have been written (None: the body's guard knows).
# The nearest class among an exception's bases counts. A test walks aiohttp's classes and fails on a new branch.
MEANINGS: dict[type[BaseException], tuple[type[FluxKleinError], bool | None]] = {
    # No connection was obtained.
    aiohttp.ClientConnectorError: (APIConnectionError, False),
    aiohttp.ClientHttpProxyError: (APIConnectionError, False),
    aiohttp.ServerFingerprintMismatch: (APIConnectionError, False),
    aiohttp.ConnectionTimeoutError: (APITimeoutError, False),
    # The connection broke or stayed silent.
    aiohttp.ServerTimeoutError: (APITimeoutError, None),
    aiohttp.ClientConnectionError: (APIConnectionError, None),
    aiohttp.ClientPayloadError: (APIConnectionError, None),
    # Our lowest version of aiohttp does not have this one.
    getattr(aiohttp.client_exceptions, "UploadAbortedError", aiohttp.ClientPayloadError): (APIConnectionError, None),
    # The answer is not HTTP.
    aiohttp.ClientResponseError: (InvalidResponseError, None),
    aiohttp.RedirectClientError: (InvalidResponseError, None),
    # The request cannot be sent.
    aiohttp.InvalidURL: (ConfigurationError, False),
    aiohttp.NonHttpUrlClientError: (ConfigurationError, False),
    # Not aiohttp's own.
    TimeoutError: (APITimeoutError, None),
    OSError: (APIConnectionError, None),
    RuntimeError: (ConfigurationError, None),  # "Session is closed"
    Exception: (ConfigurationError, None),  # from a borrowed session's traces and middlewares
    RecursionError: (APIConnectionError, None),  # a RuntimeError too, but of its caller's depth and not of the session
    ValueError: (APIConnectionError, None),  # from a resolver or a parser
    TypeError: (APIConnectionError, None),
    aiohttp.ClientError: (APIConnectionError, None),  # what a later aiohttp may add
}
_ADVICE: dict[type[BaseException], str] = {
    aiohttp.ClientConnectorCertificateError: (
        "The server's certificate is not trusted. If TLS is inspected, set SSL_CERT_FILE to the CA of the inspector; "
        "otherwise check the clock and the CA certificates of this machine"
    ),
    aiohttp.ClientConnectorSSLError: "The TLS handshake failed: check the base URL and the proxy",
    aiohttp.ClientProxyConnectionError: "The proxy cannot be reached: check HTTPS_PROXY, or name the host in NO_PROXY",
    aiohttp.ClientHttpProxyError: (
        "The proxy refuses a tunnel to the service: check HTTPS_PROXY (407: add user and password), or add the "
        "service to NO_PROXY"
    ),
}


def map_error(error: BaseException, redactor: Redactor, guard: BodyGuard | None) -> FluxKleinError:
    """The package's error for a failure of aiohttp: what it says, in words, and no reference to it.

    aiohttp's errors hold the request with its headers, so none of them is chained. Once a paid body was written, no
    error says that nothing was sent: a borrowed session's trace or middleware may raise anything after the answer.
    """
    meaning, sent = next(MEANINGS[cls] for cls in type(error).__mro__ if cls in MEANINGS)
    if guard is not None and guard.written:
        sent = True
        if meaning is ConfigurationError:
            meaning = APIConnectionError
    elif guard is not None and meaning is InvalidResponseError:
        meaning = APIConnectionError  # nothing was sent, so a proxy answered CONNECT
    cause = redactor.text(_in_words(error))[:500]
    if issubclass(meaning, APIConnectionError):
        sent = (guard is None or guard.written) if sent is None else sent
        return meaning(_ADVICE.get(type(error), ""), cause=cause, sent=sent)
    return meaning("The session cannot be used" if meaning is ConfigurationError else "", cause=cause)


def _in_words(error: BaseException) -> str:
    """What went wrong: where the network failed in the words of the system, else with the type that Python gives it."""
    where = ""
    system: OSError | None = error if type(error) is aiohttp.ClientOSError else None
    if isinstance(error, aiohttp.ClientConnectorError) and type(error) in _UNCONNECTED:
        where, system = f"cannot connect to {error.host}:{error.port}: ", error.os_error
    if system is None or not system.errno:
        return f"{type(error).__name__}: {error}"
    return where + (os.strerror(system.errno) if system.errno > 0 else str(system.strerror))  # a resolver's are below 0


_UNCONNECTED = (aiohttp.ClientConnectorError, aiohttp.ClientConnectorDNSError)
_WITH_SECRETS = (PurePath(aiohttp.__file__).parent, PurePath(__file__).parent)


def without_frames(error: BaseException) -> BaseException:
    """The same exception, and what it came from, without the frames of aiohttp and of the transport.

    Frames of the user's own hooks stay.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.__traceback__ = _users_own(each.__traceback__)
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions
        left += (each.__cause__, each.__context__)
    if not isinstance(error, Exception):
        error.__context__ = None  # whatever a cancellation interrupted
    return error


def _users_own(trace: TracebackType | None) -> TracebackType | None:
    frames = []
    while trace is not None:
        if not any(PurePath(trace.tb_frame.f_code.co_filename).is_relative_to(folder) for folder in _WITH_SECRETS):
            frames.append(trace)
        trace = trace.tb_next
    found = None
    for kept in reversed(frames):
        found = TracebackType(found, kept.tb_frame, kept.tb_lasti, kept.tb_lineno)
    return found
