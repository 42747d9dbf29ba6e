"""Sends requests with aiohttp. Knows nothing of the API's meaning.

Follows no redirect, keeps no cookie, reads no netrc, and bounds every answer. Silence is counted on the socket only,
not while a call waits for a free connection.
"""

import asyncio
import errno
import select
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import cache, lru_cache
from typing import Any, TypeVar
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
from flux_klein_async.transport.failures import MEANINGS, map_error

__all__ = ["AiohttpTransport", "gone"]

T = TypeVar("T")

_CONNECT_TIMEOUT = 10.0  # seconds for TCP and TLS together; ends in an error that says that nothing was sent
_CONNECTED_WITHIN = 30.0  # seconds in all: aiohttp waits for a resolver and for a proxy's tunnel without limit
# Seconds that a connection may idle. Servers close theirs after 5 s (uvicorn, Node) or more. A submit on a connection
# that is being closed is uncertain, which costs more than a new handshake.
_KEEP_ALIVE = 4.0
_DRIBBLE = 2.0  # times its silence that a body may take in all: one that dribbles is never silent

_parsed = lru_cache(maxsize=4096)(URL)  # polls repeat their addresses; yarl itself remembers too few
_FAILURES = tuple(MEANINGS)

# Only Linux tells a closed peer from data to read (such as a TLS session ticket); the BSDs say "hung up". Windows has
# no poll(), so there the loop's own knowledge must do.
_POLL = getattr(select, "poll", None)
_GOODBYE = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


def gone(transport: asyncio.BaseTransport | None) -> bool:
    """Whether the peer has closed the connection, as the kernel knows before the loop has read it; about 2 us."""
    if transport is None or transport.is_closing():
        return True
    socket = transport.get_extra_info("socket")
    if socket is None or _POLL is None:  # a transport in memory
        return False
    if socket.fileno() < 0:
        return True
    poll = _POLL()
    poll.register(socket, _GOODBYE)
    return bool(poll.poll(0))


class _GuardedBody(aiohttp.BytesPayload):
    """A body that asks its guard just before it is written; no hook of aiohttp tells this moment."""

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
            # Not CancelledError: where tasks begin eagerly (Python 3.12), aiohttp does not handle it.
            raise ConnectionAbortedError(errno.ECONNABORTED, "The body was given up, or has been sent before")
        # This writes the headers too. A session's trace is awaited first: if the connection closes then, nothing left.
        self._guard.wrote()  # before it is true: a KeyboardInterrupt may cut the write short
        try:
            await stream.write(self._value, drain=False)
        except Exception:  # the connection was closed before it
            self._guard.wrote_nothing()
            raise
        await stream.drain()


class _Connector(aiohttp.TCPConnector):
    """The connections of a long-lived client. The time to obtain one is bounded as a whole."""

    async def _create_connection(self, *args: Any, **options: Any) -> Any:  # aiohttp's seam for connectors
        try:
            async with asyncio.timeout(_CONNECTED_WITHIN):
                return await super()._create_connection(*args, **options)
        except (aiohttp.ClientConnectorError, TimeoutError):
            self.clear_dns_cache()  # the service may have moved
            raise


class AiohttpTransport:
    """Sends over one lazily opened session, or over a borrowed one, which it never closes.

    Files always go through a session of our own, with no default header, cookie or credential. It shares the connector,
    with its resolver and certificates. If a session is borrowed, its `trust_env` says whether the environment counts.
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
        """Refuse with `ConfigurationError` what would fail at every call; `origin` is the API's."""
        environment = environment or Environment()
        if session is not None:
            if not isinstance(session, aiohttp.ClientSession):
                raise ConfigurationError("session must be an aiohttp.ClientSession")
            if session.auth is not None or "Authorization" in session.headers:
                raise ConfigurationError("The session has credentials of its own; the token must be the only one")
            if session.closed:
                raise ConfigurationError("The session is closed")
            environment = environment if session.trust_env else Environment()
        self._limits = limits
        self._redactor = redactor
        self._borrowed = session
        self._proxies = Proxies(environment)
        self._certificates = named_authorities(environment) if session is None else None
        if session is None and origin is not None:
            self._proxies.of(origin)
        self._api = session
        self._files: aiohttp.ClientSession | None = None
        self._opened: list[aiohttp.ClientSession] = []  # by us, so that we close them

    @property
    def connections(self) -> int:
        """How many calls can be on the wire at once: our limit, or a borrowed session's if it is smaller."""
        connector = self._borrowed.connector if self._borrowed is not None else None
        theirs = (connector.limit, connector.limit_per_host) if connector is not None else ()
        return min([self._limits.max_connections, *(limit for limit in theirs if limit)])

    def _session(self, kind: Kind) -> aiohttp.ClientSession:
        if self._api is None:
            connector = _Connector(
                limit=self._limits.max_connections,
                keepalive_timeout=_KEEP_ALIVE,
                ttl_dns_cache=10,  # seconds: a long-lived process must follow a service that moves
                happy_eyeballs_delay=0.25,  # seconds, as RFC 8305 recommends
                ssl=True if self._certificates is None else self._certificates,
            )
            self._api = self._open(connector)
        if kind is not Kind.FILE:
            return self._api
        if self._files is None:
            if self._api.connector is None:
                raise ConfigurationError("The session is closed")
            self._files = self._open(self._api.connector, owner=False)
        return self._files

    def _open(self, connector: aiohttp.BaseConnector, *, owner: bool = True) -> aiohttp.ClientSession:
        # Never with trust_env: aiohttp would read netrc, whose credentials belong to other services.
        session = aiohttp.ClientSession(connector=connector, connector_owner=owner, cookie_jar=aiohttp.DummyCookieJar())
        self._opened.append(session)
        return session

    async def send(self, request: Request, guard: BodyGuard | None = None) -> Response:
        """Send one request and read its whole answer, at most `Limits.max_json_bytes` of it."""
        return await self._mapping(self._exchange(request, guard), guard)

    async def _exchange(self, request: Request, guard: BodyGuard | None) -> Response:
        guarded = request.body if request.body is None or guard is None else _GuardedBody(request.body, guard)
        async with await self._answer(request, guarded) as answer:
            body = await _read_bounded(answer, self._limits.max_json_bytes, _DRIBBLE * request.silence)
            headers: Mapping[str, str] = answer.headers
            if answer.status >= 400 or b"error_code" in body:  # an error keeps them
                headers = {name.lower(): self._redactor.text(value) for name, value in headers.items()}
            return Response(status=answer.status, headers=headers, body=self._redactor.body(body))

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[tuple[Response, AsyncIterator[bytes]]]:
        """Send one request; its head, and its body in pieces as they come."""
        async with (
            await self._mapping(self._answer(request, request.body)) as answer,
            aclosing(self._pieces(answer)) as pieces,
        ):
            yield Response(status=answer.status, headers=answer.headers, body=b""), pieces

    async def _pieces(self, answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        while piece := await self._mapping(answer.content.readany()):
            yield piece

    async def _answer(self, request: Request, data: Any) -> aiohttp.ClientResponse:
        session = self._session(request.kind)
        # A session that trusts the environment finds its proxy itself.
        proxy = self._proxies.of(request.url) if self._proxies and not session.trust_env else None
        return await session.request(
            request.method,
            _parsed(request.url),
            data=data,
            allow_redirects=False,
            raise_for_status=False,  # a borrowed session may have other defaults
            auto_decompress=True,
            timeout=_timeout(request.silence),
            proxy=proxy.url if proxy else None,
            proxy_headers=proxy.headers if proxy else None,
            **(_authorized_last(request, session) if session.trust_env else {"headers": request.headers}),
        )

    async def _mapping(self, call: Awaitable[T], guard: BodyGuard | None = None) -> T:
        """Await one of aiohttp's calls; its failure becomes one of ours, which refers to no request."""
        try:
            return await call
        except _FAILURES as error:
            failure = self._mapped(error, guard)
        except FluxKleinError as error:
            failure = error.with_traceback(None)  # its frames hold the request too
        raise failure  # outside of `except`: no context is kept

    def _mapped(self, failure: BaseException, guard: BodyGuard | None) -> FluxKleinError:
        error = map_error(failure, self._redactor, guard)
        for secret in self._proxies.secrets:
            error.cause = Redactor(secret, shortest=1).text(error.cause or "")
        return error

    async def aclose(self) -> None:
        """Close the sessions that this transport opened; a borrowed one stays open."""
        for session in reversed(self._opened):
            await session.close()

    def abandon(self) -> None:
        """Drop open sockets from a finalizer: the client itself gives the one warning."""
        for session in self._opened:
            connector, owner = session.connector, session.connector_owner
            session.detach()
            if owner and connector is not None:
                connector._close()  # noqa: SLF001  # close() is a coroutine, a finalizer has no loop


def _authorized_last(request: Request, session: aiohttp.ClientSession) -> dict[str, Any]:
    """Options with which a borrowed session that trusts the environment sends no password from netrc.

    aiohttp reads netrc before each request of such a session, where a `default` entry matches any host, and refuses a
    request that has an `Authorization` already. So a middleware sets our header last, in place of what was found.
    A session that would send the token through a proxy in clear is refused.
    """
    url = URL(request.url)
    if url.scheme == "http" and "http" in getproxies() and not proxy_bypass(url.host or ""):  # as aiohttp decides
        way = f"through HTTP_PROXY in clear: let NO_PROXY name {url.host}"
        raise ConfigurationError(f"The session's trust_env would send the token {way}")
    headers = CIMultiDict(request.headers)
    token = headers.pop("Authorization")

    async def authorized(sent: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        sent.headers["Authorization"] = token
        return await handler(sent)

    own = session._middlewares  # noqa: SLF001  # a request's own replace them
    return {"headers": headers, "middlewares": (*own, authorized)}


@cache
def _timeout(silence: float) -> aiohttp.ClientTimeout:
    """One object for each of the few values: making one costs as much as parsing an answer."""
    return aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT, sock_read=silence)


async def _read_bounded(answer: aiohttp.ClientResponse, limit: int, seconds: float) -> bytes:
    content = answer.content
    body = await content.readany()
    if not content.at_eof() and len(body) <= limit:
        pieces, size = [body], len(body)
        async with asyncio.timeout(seconds):
            while size <= limit and (piece := await content.readany()):
                pieces.append(piece)
                size += len(piece)
                await asyncio.sleep(0)  # reading inflates a piece that is there already: let others run
        body = b"".join(pieces)
    if len(body) > limit:
        answer.close()  # the connection is of no use either
        raise InvalidResponseError(f"The answer is larger than {limit} bytes", status_code=answer.status)
    return body
