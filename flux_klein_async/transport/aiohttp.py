"""Whether the other end of a connection has gone, as far as the kernel knows: asked before a paid body leaves.

The loop hears of a server's goodbye only when it comes round to reading it. Between that and the moment of writing lies
whatever else the loop had to do; the kernel knew all along.

The only client-side import of aiohttp: send, stream, and bound.

Knows nothing of the API's meaning. Follows no redirect, keeps no cookie, reads no netrc, and counts silence on the
socket only: the wait for a free connection is not silence.
"""

import asyncio
import errno
import select
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache, lru_cache
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict
from yarl import URL

from flux_klein_async.api.credentials import Redactor
from flux_klein_async.api.messages import Kind, Request, Response
from flux_klein_async.errors import ConfigurationError, FluxKleinError, InvalidResponseError
from flux_klein_async.options import Environment, Limits
from flux_klein_async.transport.base import BodyGuard
from flux_klein_async.transport.environment import Proxies, named_authorities
from flux_klein_async.transport.failures import map_error

__all__ = ["AiohttpTransport", "gone"]


# That the peer has closed its writing half is told apart from data to be read (a TLS session ticket, say) on Linux
# alone; the BSDs say "hung up" for it. Windows has no poll(): there the loop's own knowledge must do.
_POLL = getattr(select, "poll", None)
_GOODBYE = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


def gone(transport: asyncio.BaseTransport | None) -> bool:
    """Whether what is written now can reach nobody; about 2 us."""
    if transport is None or transport.is_closing():
        return True
    socket = transport.get_extra_info("socket")
    if socket is None or _POLL is None:  # a transport in memory
        return False
    descriptor = socket.fileno()
    if descriptor < 0:
        return True
    poll = _POLL()
    poll.register(descriptor, _GOODBYE)
    return bool(poll.poll(0))


_CONNECT_TIMEOUT = 10.0  # seconds for TCP and TLS together; ends in an error that says nothing was sent
# Seconds until there is a connection at all: the name looked up, every address tried, a proxy's tunnel made. aiohttp
# itself waits for a resolver and for a proxy's answer to CONNECT without limit.
_CONNECTED_WITHIN = 30.0
# Seconds that a connection may idle. Servers close theirs after 5 s (uvicorn, Node), 60 s (load balancers) or 75 s
# (nginx); a submit that meets its connection in the round trip before that is uncertain, and uncertain costs more than
# a new handshake.
_KEEP_ALIVE = 4.0
# Seconds that an address looked up is believed: a process that lives for months must follow a service that moves.
# An address that refuses is forgotten at once.
_DNS_BELIEVED = 10
# Times its silence that a body may take in all: one that dribbles is never silent, and would hold a poll for ever.
_DRIBBLE = 2.0
_NEXT_ADDRESS_AFTER = 0.25  # seconds, the delay that RFC 8305 (happy eyeballs) recommends

_CAUGHT = (aiohttp.ClientError, OSError, RuntimeError, ValueError, TypeError)


class _GuardedBody(aiohttp.BytesPayload):
    """A body that asks its guard at the very moment of writing: no hook of aiohttp tells this moment."""

    def __init__(self, body: bytes, guard: BodyGuard) -> None:
        super().__init__(body, content_type="application/json")
        self._guard = guard

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, _content_length: int | None) -> None:
        stream: Any = writer  # its `transport` and `drain` are younger than its abstract class
        if gone(stream.transport):
            raise ConnectionResetError(errno.ECONNRESET, "The server had closed the idle connection")
        if not self._guard.begin():
            # No CancelledError: where tasks begin eagerly (Python 3.12), aiohttp would stumble over it.
            raise ConnectionAbortedError(errno.ECONNABORTED, "The body was given up, or has been sent before")
        # Headers and body leave in one write, or neither does. A session's trace is awaited before it: where the
        # connection closes meanwhile, the body was begun but not written.
        await stream.write(self._value, drain=False)
        self._guard.wrote()
        await stream.drain()


class _Connector(aiohttp.TCPConnector):
    """The connections of a client that lives for months; what obtaining one may take is bounded as a whole."""

    def __init__(self, limits: Limits, certificates: ssl.SSLContext | None) -> None:
        super().__init__(
            limit=limits.max_connections,
            keepalive_timeout=_KEEP_ALIVE,
            ttl_dns_cache=_DNS_BELIEVED,
            happy_eyeballs_delay=_NEXT_ADDRESS_AFTER,
            ssl=True if certificates is None else certificates,
        )

    async def _create_connection(self, *args: Any, **options: Any) -> Any:  # aiohttp's seam for connectors
        try:
            async with asyncio.timeout(_CONNECTED_WITHIN):
                return await super()._create_connection(*args, **options)
        except (aiohttp.ClientConnectorError, TimeoutError):
            self.clear_dns_cache()  # the service may have moved: ask again
            raise


class AiohttpTransport:
    """Sends over one lazily opened session, or over a borrowed one, which it never closes.

    Files go through a session of our own in either case, with no default header, cookie or credential, over the
    same connector: its resolver and its certificates serve them too (a proxy set on the session itself does not).
    Where the environment is trusted, our own sessions take their proxy from it; a borrowed session's `trust_env` says
    whether it is.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        redactor: Redactor,
        session: aiohttp.ClientSession | None = None,
        environment: Environment | None = None,
        origin: str | None = None,
    ) -> None:
        """Refuse what would fail at every call; `origin` is the API's.

        Raises:
            ConfigurationError: The session has `auth`, an `Authorization` default, or is no session; the
                certificates or the proxy that the environment names cannot be used.
        """
        environment = environment or Environment()
        if session is not None:
            _check_borrowed(session)
            environment = environment if session.trust_env else Environment()
        self._limits = limits
        self._redactor = redactor
        self._borrowed = session
        self._proxies = Proxies(environment)
        self._certificates = named_authorities(environment) if session is None else None
        if session is None and origin is not None:
            self._proxies.of(origin)
        self._api: aiohttp.ClientSession | None = session
        self._files: aiohttp.ClientSession | None = None

    @property
    def connections(self) -> int:
        """How many calls can be on the wire at once: ours, or fewer where a borrowed session has fewer."""
        connector = self._borrowed.connector if self._borrowed is not None else None
        theirs = (connector.limit, connector.limit_per_host) if connector is not None else ()
        return min([self._limits.max_connections, *(limit for limit in theirs if limit)])

    def _session(self, kind: Kind) -> aiohttp.ClientSession:
        if self._api is None:
            self._api = self._open(_Connector(self._limits, self._certificates))
        if kind is not Kind.FILE:
            return self._api
        if self._files is None:
            connector = self._api.connector
            if connector is None:
                raise ConfigurationError("The session is closed")
            self._files = self._open(connector, owner=False)
        return self._files

    def _open(self, connector: aiohttp.BaseConnector, *, owner: bool = True) -> aiohttp.ClientSession:
        # Never with trust_env: it would have aiohttp read netrc, whose credentials no host here is meant to see.
        return aiohttp.ClientSession(connector=connector, connector_owner=owner, cookie_jar=aiohttp.DummyCookieJar())

    def _request(self, request: Request, data: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        session = self._session(request.kind)
        options: dict[str, Any] = {"headers": request.headers}
        if session.trust_env:
            options = _kept_from_environment(request, session)
        elif self._proxies and (proxy := self._proxies.of(request.url)):  # never a borrowed session's affair: see above
            options.update(proxy=proxy.url, proxy_headers=proxy.headers)
        return session.request(
            request.method,
            _parsed(request.url),
            data=data,
            allow_redirects=False,
            raise_for_status=False,  # a borrowed session may have other defaults
            auto_decompress=True,
            timeout=_timeout(request.silence),
            **options,
        )

    async def send(self, request: Request, guard: BodyGuard | None = None) -> Response:
        """Send one request and read its whole answer, at most `Limits.max_json_bytes` of it."""
        failure: BaseException
        data: Any = request.body
        if guard is not None and request.body is not None:
            data = _GuardedBody(request.body, guard)
        try:
            async with self._request(request, data) as answer:
                body = await _read_bounded(answer, self._limits.max_json_bytes, _DRIBBLE * request.silence)
                headers: Mapping[str, str] = answer.headers
                if answer.status >= 400 or b"error_code" in body:  # an error keeps them
                    headers = {name.lower(): self._redactor.text(value) for name, value in headers.items()}
                return Response(status=answer.status, headers=headers, body=self._redactor.body(body))
        except _CAUGHT as error:
            failure = error
        raise self._mapped(failure, guard)  # outside of `except`: no context is kept

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
        raise self._mapped(failure, None)

    def _mapped(self, failure: BaseException, guard: BodyGuard | None) -> FluxKleinError:
        error = map_error(failure, self._redactor, guard)
        for secret in self._proxies.secrets:  # a proxy may answer with what it was sent
            error.cause = Redactor(secret, shortest=1).text(error.cause or "")
        return error

    async def aclose(self) -> None:
        """Close the sessions that this transport opened; a borrowed one stays open."""
        if self._files is not None:
            await self._files.close()
        if self._api is not None and self._api is not self._borrowed:
            await self._api.close()

    def abandon(self) -> None:
        """Let go of open sockets from a finalizer: the client itself gives the one warning."""
        for session in (self._files, self._api if self._api is not self._borrowed else None):
            if session is None:
                continue
            connector, owner = session.connector, session.connector_owner
            session.detach()
            if owner and connector is not None:
                connector._close()  # noqa: SLF001  # close() is a coroutine, a finalizer has no loop


def _check_borrowed(session: object) -> None:
    if not isinstance(session, aiohttp.ClientSession):
        raise ConfigurationError("session must be an aiohttp.ClientSession")
    if session.auth is not None or "Authorization" in session.headers:
        raise ConfigurationError("The session has credentials of its own; the token must be the only one")
    if session.closed:
        raise ConfigurationError("The session is closed")


def _kept_from_environment(request: Request, session: aiohttp.ClientSession) -> dict[str, Any]:
    """What keeps a borrowed session that trusts the environment from giving passwords away, the token among them.

    aiohttp looks into netrc before each request of such a session, and refuses one that has an `Authorization` already;
    a `default` entry matches any host. So our header comes in last, in place of whatever was found.

    Raises:
        ConfigurationError: The session would send the token through a proxy in clear.
    """
    url = URL(request.url)
    if url.scheme == "http" and "http" in getproxies() and not proxy_bypass(url.host or ""):  # as aiohttp decides
        raise ConfigurationError(
            f"The session's trust_env would send the token through HTTP_PROXY in clear: let NO_PROXY name {url.host}"
        )
    headers = CIMultiDict(request.headers)
    token = headers.pop("Authorization")

    async def authorized(sent: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        sent.headers["Authorization"] = token
        return await handler(sent)

    own = session._middlewares  # noqa: SLF001  # those of a request replace the session's, and nothing else tells them
    return {"headers": headers, "middlewares": (*own, authorized)}


@lru_cache(maxsize=4096)
def _parsed(url: str) -> URL:
    """Polls ask for the same address again and again; yarl itself remembers too few for thousands that wait."""
    return URL(url)


@cache
def _timeout(silence: float) -> aiohttp.ClientTimeout:
    """One object for each of the few values: making one costs as much as parsing an answer."""
    return aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT, sock_read=silence)


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    while piece := await answer.content.readany():
        yield piece


async def _read_bounded(answer: aiohttp.ClientResponse, limit: int, seconds: float) -> bytes:
    content = answer.content
    body = await content.readany()
    if not content.at_eof() and len(body) <= limit:
        async with asyncio.timeout(seconds):
            body = await _the_rest(content, body, limit)
    if len(body) > limit:
        raise _too_large(answer, limit)
    return body


async def _the_rest(content: aiohttp.StreamReader, body: bytes, limit: int) -> bytes:
    pieces, size = [body], len(body)
    while size <= limit and (piece := await content.readany()):
        pieces.append(piece)
        size += len(piece)
        await asyncio.sleep(0)  # a piece that is there already is inflated by the reading, and none waits for the loop
    return b"".join(pieces)


def _too_large(answer: aiohttp.ClientResponse, limit: int) -> InvalidResponseError:
    answer.close()  # the rest is not worth reading, nor the connection keeping
    return InvalidResponseError(f"The answer is larger than {limit} bytes", status_code=answer.status)
