"""What each failure of the HTTP library means to us. Pure: its exceptions are known by the names of their classes."""

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

# What each failure means: our class, and whether a byte of the request may have left (None: ask the body's guard).
# Found by walking the exception's classes; a test walks aiohttp's tree and fails on a new branch.
_Meaning = tuple[type[FluxKleinError], bool | None]
MEANINGS: dict[str, _Meaning] = {
    # no connection was obtained
    "ClientConnectorError": (APIConnectionError, False),
    "ClientProxyConnectionError": (APIConnectionError, False),
    "ClientConnectorDNSError": (APIConnectionError, False),
    "ClientSSLError": (APIConnectionError, False),
    "ClientHttpProxyError": (APIConnectionError, False),
    "ServerFingerprintMismatch": (APIConnectionError, False),
    "ConnectionTimeoutError": (APITimeoutError, False),
    # the connection broke or went silent
    "ServerTimeoutError": (APITimeoutError, None),
    "SocketTimeoutError": (APITimeoutError, None),
    "ClientConnectionError": (APIConnectionError, None),
    "ClientConnectionResetError": (APIConnectionError, None),
    "ClientOSError": (APIConnectionError, None),
    "ServerConnectionError": (APIConnectionError, None),
    "ServerDisconnectedError": (APIConnectionError, None),
    "ClientPayloadError": (APIConnectionError, None),
    # what came back is no HTTP
    "ClientResponseError": (InvalidResponseError, None),
    "ContentTypeError": (InvalidResponseError, None),
    "WSServerHandshakeError": (InvalidResponseError, None),
    "TooManyRedirects": (InvalidResponseError, None),
    "RedirectClientError": (InvalidResponseError, None),
    "InvalidUrlRedirectClientError": (InvalidResponseError, None),
    "NonHttpUrlRedirectClientError": (InvalidResponseError, None),
    # what was asked cannot be sent
    "InvalidURL": (ConfigurationError, False),
    "NonHttpUrlClientError": (ConfigurationError, False),
    # outside of aiohttp's tree
    "TimeoutError": (APITimeoutError, None),
    "OSError": (APIConnectionError, None),
    "UploadAbortedError": (APIConnectionError, None),  # added after our oldest aiohttp
    "ClientError": (APIConnectionError, None),  # what a later aiohttp may add
    "RuntimeError": (ConfigurationError, None),  # "Session is closed"
    "ValueError": (APIConnectionError, None),  # what the resolver or a parser chokes on
    "TypeError": (APIConnectionError, None),
}
_ADVICE: dict[str, str] = {
    "ClientConnectorCertificateError": (
        "The certificate of the other end is not trusted here. Where TLS is inspected, let SSL_CERT_FILE name the "
        "inspector's CA; else see to this machine's clock and its CA certificates"
    ),
    "ClientConnectorSSLError": "The other end speaks no TLS that is acceptable here: see to address and proxy",
    "ClientProxyConnectionError": "The proxy cannot be reached: see to HTTPS_PROXY, or pass trust_env=False",
    "ClientHttpProxyError": (
        "The proxy makes no tunnel to the service: see to HTTPS_PROXY (407: with user and password), or let NO_PROXY "
        "name the service"
    ),
}


def map_error(error: BaseException, redactor: Redactor, guard: BodyGuard | None) -> FluxKleinError:
    """The package's error for a failure of aiohttp; its type and text are kept, the exception is not.

    aiohttp's errors hold the request with its headers, so none of them may be chained.
    """
    meaning, sent = next(MEANINGS[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in MEANINGS)
    if meaning is InvalidResponseError and guard is not None and not guard.written:
        meaning = APIConnectionError  # no answer to what was not sent: it is a proxy's to CONNECT
    cause = redactor.text(f"{type(error).__name__}: {error}")[:500]
    if issubclass(meaning, APIConnectionError | APITimeoutError):
        advice = _ADVICE.get(type(error).__name__, "")
        return meaning(advice, cause=cause, sent=(guard is None or guard.written) if sent is None else sent)
    message = "The session cannot be used" if meaning is ConfigurationError else ""
    return meaning(message, cause=cause)
