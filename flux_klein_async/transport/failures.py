"""What each exception of aiohttp means to us, by class. Pure."""

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

__all__ = ["MEANINGS", "map_error"]

# Our class for each of theirs, and whether a byte of the request may have left (None: the guard of the body knows).
# The nearest class among an exception's bases counts; a test walks aiohttp's tree and fails on a new branch.
MEANINGS: dict[type[BaseException], tuple[type[FluxKleinError], bool | None]] = {
    # no connection was obtained
    aiohttp.ClientConnectorError: (APIConnectionError, False),
    aiohttp.ClientSSLError: (APIConnectionError, False),
    aiohttp.ClientHttpProxyError: (APIConnectionError, False),
    aiohttp.ServerFingerprintMismatch: (APIConnectionError, False),
    aiohttp.ConnectionTimeoutError: (APITimeoutError, False),
    # the connection broke or stayed silent
    aiohttp.ServerTimeoutError: (APITimeoutError, None),
    aiohttp.ClientConnectionError: (APIConnectionError, None),
    aiohttp.ClientPayloadError: (APIConnectionError, None),
    # added after our lowest version of aiohttp
    getattr(aiohttp.client_exceptions, "UploadAbortedError", aiohttp.ClientPayloadError): (APIConnectionError, None),
    # the answer is no HTTP
    aiohttp.ClientResponseError: (InvalidResponseError, None),
    aiohttp.TooManyRedirects: (InvalidResponseError, None),
    aiohttp.RedirectClientError: (InvalidResponseError, None),
    # the request cannot be sent
    aiohttp.InvalidURL: (ConfigurationError, False),
    aiohttp.NonHttpUrlClientError: (ConfigurationError, False),
    # outside of aiohttp's tree
    TimeoutError: (APITimeoutError, None),
    OSError: (APIConnectionError, None),
    RuntimeError: (ConfigurationError, None),  # "Session is closed"
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
    aiohttp.ClientProxyConnectionError: "The proxy cannot be reached: check HTTPS_PROXY, or pass trust_env=False",
    aiohttp.ClientHttpProxyError: (
        "The proxy refuses a tunnel to the service: check HTTPS_PROXY (407: add user and password), or add the "
        "service to NO_PROXY"
    ),
}


def map_error(error: BaseException, redactor: Redactor, guard: BodyGuard | None) -> FluxKleinError:
    """The package's error for a failure of aiohttp. It keeps the type and text, not the exception.

    aiohttp's errors hold the request with its headers, so none of them is chained.
    """
    meaning, sent = next(MEANINGS[cls] for cls in type(error).__mro__ if cls in MEANINGS)
    if meaning is InvalidResponseError and guard is not None and not guard.written:
        meaning = APIConnectionError  # nothing was sent: this answers a CONNECT, and comes from a proxy
    cause = redactor.text(f"{type(error).__name__}: {error}")[:500]
    if issubclass(meaning, APIConnectionError):
        advice = _ADVICE.get(type(error), "")
        return meaning(advice, cause=cause, sent=(guard is None or guard.written) if sent is None else sent)
    message = "The session cannot be used" if meaning is ConfigurationError else ""
    return meaning(message, cause=cause)
