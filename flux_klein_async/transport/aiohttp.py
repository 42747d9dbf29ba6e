"""The only client-side import of aiohttp: send, stream, bound, and map every error.

Knows nothing of the API's meaning. Follows no redirect, keeps no cookie, reads no netrc, and counts silence on the
socket only: the wait for a free connection is not silence.
"""

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter

from flux_klein_async.api.credentials import Redactor
from flux_klein_async.api.messages import Kind, Request, Response
from flux_klein_async.errors import (
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    FluxKleinError,
    InvalidResponseError,
)
from flux_klein_async.options import Limits
from flux_klein_async.transport.base import BodyGuard

__all__ = ["AiohttpTransport", "map_error"]

_CONNECT_TIMEOUT = 10.0  # seconds for TCP and TLS together; ends in an error that says nothing was sent
_KEEP_ALIVE = 15.0  # seconds; shorter than servers keep theirs, so that a submit rarely meets a dying connection

# What each failure of aiohttp means: our class, and whether a byte of the request may have left (None: ask the
# body's guard). Found by walking the exception's classes; a test walks aiohttp's tree and fails on a new branch.
_Meaning = tuple[type[FluxKleinError], bool | None]
MEANINGS: dict[type[BaseException], _Meaning] = {
    # no connection was obtained
    aiohttp.ClientConnectorError: (APIConnectionError, False),
    aiohttp.ClientProxyConnectionError: (APIConnectionError, False),
    aiohttp.ClientConnectorDNSError: (APIConnectionError, False),
    aiohttp.ClientSSLError: (APIConnectionError, False),
    aiohttp.ClientHttpProxyError: (APIConnectionError, False),
    aiohttp.ServerFingerprintMismatch: (APIConnectionError, False),
    aiohttp.ConnectionTimeoutError: (APITimeoutError, False),
    # the connection broke or went silent
    aiohttp.ServerTimeoutError: (APITimeoutError, None),
    aiohttp.SocketTimeoutError: (APITimeoutError, None),
    aiohttp.ClientConnectionError: (APIConnectionError, None),
    aiohttp.ClientConnectionResetError: (APIConnectionError, None),
    aiohttp.ClientOSError: (APIConnectionError, None),
    aiohttp.ServerConnectionError: (APIConnectionError, None),
    aiohttp.ServerDisconnectedError: (APIConnectionError, None),
    aiohttp.ClientPayloadError: (APIConnectionError, None),
    # what came back is no HTTP
    aiohttp.ClientResponseError: (InvalidResponseError, None),
    aiohttp.ContentTypeError: (InvalidResponseError, None),
    aiohttp.WSServerHandshakeError: (InvalidResponseError, None),
    aiohttp.TooManyRedirects: (InvalidResponseError, None),
    aiohttp.RedirectClientError: (InvalidResponseError, None),
    aiohttp.InvalidUrlRedirectClientError: (InvalidResponseError, None),
    aiohttp.NonHttpUrlRedirectClientError: (InvalidResponseError, None),
    # what was asked cannot be sent
    aiohttp.InvalidURL: (ConfigurationError, False),
    aiohttp.NonHttpUrlClientError: (ConfigurationError, False),
    # outside of aiohttp's tree
    TimeoutError: (APITimeoutError, None),
    OSError: (APIConnectionError, None),
    aiohttp.ClientError: (APIConnectionError, None),  # what a later aiohttp may add
    RuntimeError: (ConfigurationError, None),  # "Session is closed"
    ValueError: (APIConnectionError, None),  # what the resolver or a parser chokes on
    TypeError: (APIConnectionError, None),
}
if hasattr(aiohttp, "UploadAbortedError"):  # added after our oldest supported aiohttp
    MEANINGS[aiohttp.UploadAbortedError] = (APIConnectionError, None)
_CAUGHT = (aiohttp.ClientError, OSError, RuntimeError, ValueError, TypeError)


def map_error(error: BaseException, redactor: Redactor, guard: BodyGuard | None) -> FluxKleinError:
    """The package's error for a failure of aiohttp; its type and text are kept, the exception is not.

    aiohttp's errors hold the request with its headers, so none of them may be chained.
    """
    meaning, sent = next(MEANINGS[cls] for cls in type(error).__mro__ if cls in MEANINGS)
    cause = redactor.text(f"{type(error).__name__}: {error}")[:500]
    if issubclass(meaning, APIConnectionError | APITimeoutError):
        return meaning(cause=cause, sent=(guard is None or guard.begun) if sent is None else sent)
    message = "The session cannot be used" if meaning is ConfigurationError else ""
    return meaning(message, cause=cause)


class _GuardedBody(aiohttp.BytesPayload):
    """A body that asks its guard at the very moment of writing: no hook of aiohttp tells this moment."""

    def __init__(self, body: bytes, guard: BodyGuard) -> None:
        super().__init__(body, content_type="application/json")
        self._guard = guard

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        if not self._guard.begin():
            raise asyncio.CancelledError  # given up before a byte was written
        await super().write_with_length(writer, content_length)


class AiohttpTransport:
    """Sends over one lazily opened session, or over a borrowed one, which it never closes.

    Files go through a session of our own in either case, with no default header, cookie or credential, over the
    same connector: its resolver and its certificates serve them too (a proxy set on the session itself does not).
    """

    def __init__(self, *, limits: Limits, redactor: Redactor, session: aiohttp.ClientSession | None = None) -> None:
        """Refuse a borrowed session that would add credentials of its own.

        Raises:
            ConfigurationError: The session has `auth`, an `Authorization` default, or is no session.
        """
        if session is not None:
            _check_borrowed(session)
        self._limits = limits
        self._redactor = redactor
        self._borrowed = session
        self._api: aiohttp.ClientSession | None = session
        self._files: aiohttp.ClientSession | None = None

    def _session(self, kind: Kind) -> aiohttp.ClientSession:
        if self._api is None:
            self._api = self._open(
                aiohttp.TCPConnector(limit=self._limits.max_connections, keepalive_timeout=_KEEP_ALIVE)
            )
        if kind is not Kind.FILE:
            return self._api
        if self._files is None:
            connector = self._api.connector
            if connector is None:
                raise ConfigurationError("The session is closed")
            self._files = self._open(connector, owner=False)
        return self._files

    def _open(self, connector: aiohttp.BaseConnector, *, owner: bool = True) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=connector, connector_owner=owner, cookie_jar=aiohttp.DummyCookieJar())

    def _request(self, request: Request, data: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._session(request.kind).request(
            request.method,
            request.url,
            data=data,
            headers=request.headers,
            allow_redirects=False,
            raise_for_status=False,  # a borrowed session may have other defaults
            auto_decompress=True,
            timeout=_timeout(request.silence),
        )

    async def send(self, request: Request, guard: BodyGuard | None = None) -> Response:
        """Send one request and read its whole answer, at most `Limits.max_json_bytes` of it."""
        failure: BaseException
        data: Any = request.body
        if guard is not None and request.body is not None:
            data = _GuardedBody(request.body, guard)
        try:
            async with self._request(request, data) as answer:
                body = await _read_bounded(answer, self._limits.max_json_bytes)
                return Response(status=answer.status, headers=answer.headers, body=self._redactor.body(body))
        except _CAUGHT as error:
            failure = error
        raise map_error(failure, self._redactor, guard)  # outside of `except`: no context is kept

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[tuple[Response, AsyncIterator[bytes]]]:
        """Send one request; its head, and its body in pieces as they come."""
        failure: BaseException
        try:
            async with self._request(request, request.body) as answer:
                head = Response(status=answer.status, headers=answer.headers, body=b"")
                yield head, _pieces(answer)
                return
        except _CAUGHT as error:
            failure = error
        raise map_error(failure, self._redactor, None)

    async def aclose(self) -> None:
        """Close the sessions that this transport opened; a borrowed one stays open."""
        if self._files is not None:
            await self._files.close()
        if self._api is not None and self._api is not self._borrowed:
            await self._api.close()

    def abandon(self) -> None:
        """Let go of open sockets from a finalizer: the client itself gives the one warning."""
        for session in (self._files, self._api if self._api is not self._borrowed else None):
            if session is None or session.closed:
                continue
            connector, owner = session.connector, session.connector_owner
            session.detach()
            if owner and connector is not None:
                with warnings.catch_warnings():  # of the transports: the client's own warning is enough
                    warnings.simplefilter("ignore", ResourceWarning)
                    connector._close()  # noqa: SLF001  # close() is a coroutine, a finalizer has no loop


def _check_borrowed(session: object) -> None:
    if not isinstance(session, aiohttp.ClientSession):
        raise ConfigurationError("session must be an aiohttp.ClientSession")
    if session.auth is not None or "Authorization" in session.headers:
        raise ConfigurationError("The session has credentials of its own; the token must be the only one")
    if session.closed:
        raise ConfigurationError("The session is closed")


@cache
def _timeout(silence: float) -> aiohttp.ClientTimeout:
    """One object for each of the few values: making one costs as much as parsing an answer."""
    return aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT, sock_read=silence)


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    while piece := await answer.content.readany():
        yield piece


async def _read_bounded(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    content = answer.content
    body = await content.readany()
    if not content.at_eof() and len(body) <= limit:
        pieces, size = [body], len(body)
        while size <= limit and (piece := await content.readany()):
            pieces.append(piece)
            size += len(piece)
        body = b"".join(pieces)
    if len(body) > limit:
        raise _too_large(answer, limit)
    return body


def _too_large(answer: aiohttp.ClientResponse, limit: int) -> InvalidResponseError:
    answer.close()  # the rest is not worth reading, nor the connection keeping
    return InvalidResponseError(f"The answer is larger than {limit} bytes", status_code=answer.status)
