"""Sends requests with aiohttp. Knows nothing of the API's meaning.

Follows no redirect, keeps no cookie, reads no netrc, and bounds every answer in size and in time. Silence is counted on
the socket only, not while a call waits for a free connection. A paid body leaves only on a connection that is open and
quiet, so that no answer from before is taken for its own.
"""

import asyncio
import errno
import math
import select
import socket
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from enum import Enum, auto
from functools import cache, lru_cache, partial
from typing import Any, Self, TypeVar
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict
from yarl import URL

from flux_klein_async.api.credentials import Redactor
from flux_klein_async.api.messages import Kind, Request, Response
from flux_klein_async.api.urls import host_of, is_loopback
from flux_klein_async.errors import ConfigurationError, FluxKleinError, InvalidResponseError
from flux_klein_async.options import Environment, Limits
from flux_klein_async.transport.base import BodyGuard
from flux_klein_async.transport.environment import Proxies, Proxy, named_authorities
from flux_klein_async.transport.failures import map_error, without_frames

__all__ = ["AiohttpTransport", "quiet", "slept"]

T = TypeVar("T")

_CONNECT_TIMEOUT = 10.0  # seconds for TCP and TLS together; ends in an error that says that nothing was sent
_CONNECTED_WITHIN = 30.0  # seconds in all: aiohttp waits for a resolver and for a proxy's tunnel without limit
# Seconds that a connection may idle. Servers close theirs after 5 s (uvicorn, Node) or more. A submit on a connection
# that is being closed is uncertain, which costs more than a new handshake.
_KEEP_ALIVE = 4.0
# Seconds after which aiohttp ends an idle connection on which something came; its timer shows `quiet` that it did.
_IDLE_SILENCE = 5.0
# Times its silence that an exchange may take in all, once it has a connection: a head or a body that dribbles, and a
# row of 1xx answers, are never silent.
_DRIBBLE = 2.0
# Bytes of a header field, and of a status line. aiohttp's own 8,190 lose the id of a submit that a gateway answers with
# long cookies or policies.
_FIELD = 65_536
_BOUNDS: Any = {"max_line_size": _FIELD, "max_field_size": _FIELD, "max_headers": 1_000}
_NO_TIMER = aiohttp.helpers.TimerNoop()
# The versions whose parts do what `_Request` and `_sent` expect of them. With others, requests go through
# `ClientSession.request`: slower, and as safe.
_KNOWN = aiohttp.__version__.startswith("3.14.")
_GZIP = b"\x1f\x8b"
_PIECE = 65_536  # bytes that are inflated before others may run
_WRITTEN = 262_144  # bytes of a body that are encrypted and written before others may run
# Bytes of a body that a connection takes in a second at the least; the time for them is no part of an exchange's limit.
_SLOWEST = 125_000

# Polls repeat their addresses, and yarl itself remembers too few. Encoded: a signed address is sent as it was given.
_parsed = lru_cache(maxsize=4096)(partial(URL, encoded=True))

# Only Linux tells a closed peer from data to read (such as a TLS session ticket); the BSDs say "hung up". Windows has
# no poll(), so there the loop's own knowledge must do.
_POLL = getattr(select, "poll", None)
_GOODBYE = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)
_DATA = getattr(select, "POLLIN", 0)
# A clock that runs on while the machine sleeps, as time.monotonic(), by which aiohttp counts idle time, does not on
# Linux and macOS. Windows has none, nor needs one.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
_NAP = 1.0  # seconds asleep after which a kept connection counts as lost
# A path that is dead (a VPN that changed, a NAT that forgot us) ends the connection after some 15 s instead of the 60 s
# that a submit may stay silent: TCP's own retransmissions get 15 s to be confirmed, and while we only wait, the peer's
# kernel is asked every 5 s. A peer that is there confirms both, however long its answer takes.
_DEAD_AFTER = 15  # seconds
_DEAD_PEER = (
    ("SOL_SOCKET", "SO_KEEPALIVE", 1),
    ("IPPROTO_TCP", "TCP_KEEPIDLE", 5),  # Linux, Windows
    ("IPPROTO_TCP", "TCP_KEEPALIVE", 5),  # macOS
    ("IPPROTO_TCP", "TCP_KEEPINTVL", 5),
    ("IPPROTO_TCP", "TCP_KEEPCNT", 2),
    ("IPPROTO_TCP", "TCP_USER_TIMEOUT", _DEAD_AFTER * 1000),  # Linux
)
_TURNS = 4  # of the loop, for it to read what may be a TLS session ticket; it needs one, uvloop and select() two


def slept() -> float:
    """Seconds that this machine has slept, counted from any fixed moment."""
    return time.clock_gettime(_CLOCK) - time.monotonic() if _CLOCK is not None else 0.0


def _attentive_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket whose kernel notices a dead path."""
    family, kind, protocol, *_ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    _attend(made)
    return made


def _attend(sock: Any) -> None:
    for level, option, value in _DEAD_PEER:
        if hasattr(socket, option):
            with suppress(OSError, TypeError):  # a system may refuse the value, and uvloop's sockets any option
                sock.setsockopt(getattr(socket, level), getattr(socket, option), value)


class _Exchange:
    """One request under way, bounded in time from when it has a connection; before that, only if it has `to_connect`.

    It works like `asyncio.timeout`, whose two coroutines and timer would take a tenth of a call.

    Attributes:
        silent: How many seconds it may take until the head of its answer, if aiohttp does not count the silence.
        seconds: How many it may take in all: a head or a body that dribbles is never silent.
        ends: The instant at which it ends.
    """

    __slots__ = ("_all", "_cancelling", "_expired", "_task", "_to_connect", "ends", "request", "seconds", "silent")

    def __init__(self, request: Request, silent: float | None, to_connect: float | None, all_: "_SharedTimer") -> None:
        self.request = request
        self.seconds = _DRIBBLE * request.silence + len(request.body or b"") // _SLOWEST
        self.silent = silent
        self.ends = math.inf
        self._to_connect = to_connect
        self._all = all_
        self._expired = False

    def __enter__(self) -> Self:
        task: Any = asyncio.current_task()  # every verb runs in one
        self._task, self._cancelling = task, task.cancelling()
        self._all.under_way.add(self)
        if self._to_connect is not None:
            self._all.start(self, self._to_connect + self.seconds)
        return self

    def connected(self) -> None:
        """The time starts now."""
        self._all.start(self, self.seconds if self.silent is None else self.silent)

    def answered(self) -> None:
        """The head of the answer is there."""
        if self.silent is not None:
            self.ends += self.seconds - self.silent

    def expire(self) -> None:
        """End the exchange."""
        self._expired, self.ends = True, math.inf
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._all.end(self)
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError("No whole answer came in time") from error


class _SharedTimer:
    """All exchanges under way, with one timer, for the first of them that ends."""

    def __init__(self) -> None:
        self.under_way: set[_Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, exchange: _Exchange, seconds: float) -> None:
        """Let an exchange end in so many seconds."""
        loop = asyncio.get_running_loop()
        exchange.ends = loop.time() + seconds
        if self._timer is None or exchange.ends < self._timer.when():
            self._set(exchange.ends, loop)

    def end(self, exchange: _Exchange) -> None:
        """The exchange has ended."""
        self.under_way.remove(exchange)
        if not self.under_way and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(when, self._ring, when, loop)

    def _ring(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for exchange in self.under_way:
            if exchange.ends <= when:
                exchange.expire()
        first = min((exchange.ends for exchange in self.under_way), default=math.inf)
        if first < math.inf:
            self._set(first, loop)


class _Seen(Enum):
    """What the kernel knows of a connection before the loop has read it."""

    NOTHING = auto()
    DATA = auto()
    CLOSED = auto()
    UNKNOWN = auto()  # a transport in memory, or a system without poll(): only the loop knows


def _peek(protocol: Any) -> _Seen:
    """Ask the kernel; about 1 us."""
    transport = protocol.transport
    if transport is None or transport.is_closing():
        return _Seen.CLOSED
    try:
        poll = protocol.flux_klein_poll
    except AttributeError:
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() < 0:
            return _Seen.CLOSED
        poll = protocol.flux_klein_poll = None if sock is None or _POLL is None else _poll_of(sock)
    if poll is None:
        return _Seen.UNKNOWN
    found = poll(0)
    if not found:
        return _Seen.NOTHING
    return _Seen.CLOSED if found[0][1] & _GOODBYE else _Seen.DATA


def _poll_of(sock: Any) -> Any:
    """What asks the kernel about a socket."""
    poll = _POLL()  # type: ignore[misc]
    poll.register(sock, _DATA | _GOODBYE)
    return poll.poll


async def quiet(protocol: Any) -> bool:
    """Whether a connection between two requests is open, and nothing came that was not asked for.

    A server or proxy may write an answer while nobody asks, such as "408 Request Timeout" on an idle connection.
    aiohttp takes it for the answer to the next request.
    """
    for turn in range(_TURNS):
        # aiohttp's timer of silence runs from the first byte read: it shows half a head, which is nowhere else.
        if protocol.should_close or protocol._read_timeout_handle is not None:  # noqa: SLF001
            return False
        seen = _peek(protocol)
        if seen is _Seen.CLOSED:
            return False
        if seen is _Seen.NOTHING or (seen is _Seen.UNKNOWN and turn > 1):
            return True
        await asyncio.sleep(0)
    return False


class _GuardedBody(aiohttp.BytesPayload):
    """A body that asks its guard just before it is written; no hook of aiohttp tells this moment.

    Attributes:
        bypassed: A middleware of the session keeps this body from telling whether anything was sent.
        whole: The last of it is written, or will be in this very step of the loop.
    """

    def __init__(self, body: bytes | memoryview, guard: BodyGuard) -> None:
        super().__init__(b"", content_type="application/json")
        # Not through the constructor: it warns of bodies of more than 1 MiB, which `write_with_length` takes in pieces.
        self._value: bytes | memoryview = body  # type: ignore[assignment]
        self._size = len(body)
        self._guard = guard
        self.bypassed = self.whole = False

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, _content_length: int | None) -> None:
        stream: Any = writer  # its `protocol` and `drain` are younger than its abstract class
        trace, stream._on_chunk_sent = stream._on_chunk_sent, None  # noqa: SLF001  # aiohttp awaits it before it writes
        if trace is not None:
            await trace(self._value)
        if not await quiet(stream.protocol) or _cancelling():
            raise ConnectionResetError(errno.ECONNRESET, "The idle connection was closed, or something came on it")
        if not self._guard.begin():
            # Not CancelledError: where tasks begin eagerly (Python 3.12), aiohttp does not handle it.
            raise ConnectionAbortedError(errno.ECONNABORTED, "The body was given up, or has been sent before")
        self._guard.wrote()  # before it is true: a KeyboardInterrupt may cut the write short
        for start in range(0, len(self._value), _WRITTEN):
            piece = self._value[start : start + _WRITTEN]
            self.whole = start + len(piece) == len(self._value)
            await stream.write(piece, drain=False)  # the first with the headers, in this very step of the loop
            await stream.drain()

    def leaves_in(self, sent: aiohttp.ClientRequest) -> None:
        """No middleware follows. If one replaced the body, everything that follows is ambiguous."""
        self.bypassed = sent.body is not self
        if self.bypassed:
            self._guard.begin()
            self._guard.wrote()


def _cancelling() -> bool:
    """Whether this task goes on although it was cancelled, which a trace can do by swallowing the cancellation."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_new(protocol: Any) -> bool:
    """Whether a connection is seen for the first time; from then on it knows how long the machine had slept."""
    if hasattr(protocol, "flux_klein_slept"):
        return False
    protocol.flux_klein_slept = slept()
    return True


async def _is_good(protocol: Any) -> bool:
    """Whether a connection that was used before is as good as new.

    One on which something came while it was idle, or that is older than the machine's last sleep, is not: it is closed,
    and another taken. Nothing was sent on it.
    """
    return slept() - protocol.flux_klein_slept < _NAP and await quiet(protocol)


class _Connector(aiohttp.TCPConnector):
    """The connections of a long-lived client. The time to obtain one is bounded as a whole."""

    def __init__(self, **options: Any) -> None:
        super().__init__(socket_factory=_attentive_socket, **options)

    async def _create_connection(self, *args: Any, **options: Any) -> Any:  # aiohttp's seam for connectors
        try:
            async with asyncio.timeout(_CONNECTED_WITHIN):
                return await super()._create_connection(*args, **options)
        except (aiohttp.ClientConnectorError, TimeoutError):
            self.clear_dns_cache()  # the service may have moved
            raise

    def _release(self, key: Any, protocol: Any, **options: Any) -> None:  # likewise
        protocol.read_timeout = _IDLE_SILENCE
        super()._release(key, protocol, **options)


class _Request(aiohttp.ClientRequest):
    """A request that has all its headers, and neither cookies, credentials in its address, traces nor compression.

    aiohttp's own constructor, which looks for each of them, takes as long as parsing the answer.
    """

    def __init__(self, request: Request, session: Any, data: Any, proxy: Proxy | None) -> None:
        self.url = self.original_url = url = _parsed(request.url)
        self.method = request.method
        self.headers = CIMultiDict(Host=url.host_port_subcomponent or "")
        self.headers.extend(request.headers)
        self.version = aiohttp.HttpVersion11
        self.loop = asyncio.get_running_loop()
        self.response_class = aiohttp.ClientResponse
        self.chunked = self.compress = self.length = self.server_hostname = None
        self._session = session
        self._timer = _NO_TIMER
        self._ssl = True  # as the connector says
        self._traces = []
        self.update_proxy(*(None, None, None) if proxy is None else (proxy.url, None, proxy.headers))
        if type(data) is _GuardedBody:  # a payload is of an abstract class, which isinstance asks at length
            self._body = data
            self.headers["Content-Length"] = str(data.size)
        elif self.method != "GET":
            self.update_body_from_data(data)

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        """Write the request; aiohttp would make a task for each body, which only a large one needs."""
        body, protocol = self._body, conn.protocol
        if protocol.writing_paused or (body is not None and (body.size or 0) > _WRITTEN):
            return await super().send(conn)
        writer = aiohttp.http.StreamWriter(protocol, self.loop)
        target = str(self.url) if self.proxy and not self.is_ssl() else self.url.raw_path_qs
        await writer.write_headers(f"{self.method} {target} HTTP/1.1", self.headers)
        if body is None:
            writer.set_eof()
        else:
            await body.write_with_length(writer, None)
            await writer.write_eof()
        protocol.start_timeout()
        return aiohttp.ClientResponse(
            self.method,
            self.url,
            writer=None,
            continue100=None,
            timer=_NO_TIMER,
            request_info=self.request_info,
            traces=self._traces,
            loop=self.loop,
            session=self._session,
            stream_writer=writer,
        )


class _Stale(Exception):  # noqa: N818  # never leaves this module
    """A borrowed session's connection that is not as good as new."""


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
            _check_proxy(session, origin)
            environment = environment if session.trust_env else Environment()
        self._limits = limits
        self._redactor = redactor
        self._borrowed = session
        self._directly = session is None and _KNOWN
        self._proxies = Proxies(environment)
        self._has_proxies = bool(self._proxies)
        self._certificates = named_authorities(environment) if session is None else None
        if session is None and origin is not None:
            self._proxies.of(origin)
        self._under_way = _SharedTimer()
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
            self._api = self._open(connector, auto_decompress=False)
        if kind is not Kind.FILE:
            return self._api
        if self._files is None:
            if self._api.connector is None:
                raise ConfigurationError("The session is closed")
            self._files = self._open(self._api.connector, connector_owner=False)
        return self._files

    def _open(self, connector: aiohttp.BaseConnector, **options: Any) -> aiohttp.ClientSession:
        # Never with trust_env: aiohttp would read netrc, whose credentials belong to other services. Never with default
        # headers: aiohttp gives them to a proxy too.
        session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), **_BOUNDS, **options)
        self._opened.append(session)
        return session

    async def send(self, request: Request, guard: BodyGuard | None = None) -> Response:
        """Send one request and read its whole answer, at most `Limits.max_json_bytes` of it."""
        try:
            return await self._send_and_read(request, guard)
        except BaseException as error:  # noqa: BLE001  # raised again, outside of `except`: no context is kept
            failure = self._failure(error, guard)
        try:
            raise failure
        finally:
            del failure

    async def _send_and_read(self, request: Request, guard: BodyGuard | None) -> Response:
        guarded = None if request.body is None or guard is None else _GuardedBody(request.body, guard)
        # One timer serves all reads under way; aiohttp would set two for each.
        silent = request.silence if request.kind is Kind.READ and self._directly else None
        with self._bounded(request, silent) as exchange:
            answer = await self._request(exchange, guarded or request.body)
            exchange.answered()
            try:
                if guarded is not None and guard is not None and not guarded.whole and not guarded.bypassed:
                    return self._early(answer, guard)
                return self._response(answer, await _read_bounded(answer, self._limits.max_json_bytes))
            except BaseException:
                answer.close()
                raise

    def _response(self, answer: aiohttp.ClientResponse, body: bytes) -> Response:
        headers: Mapping[str, str] = answer.headers
        if answer.status >= 400 or b"error_code" in body:  # an error keeps them
            headers = {name.lower(): self._redactor.text(value) for name, value in headers.items()}
        return Response(status=answer.status, headers=headers, body=self._redactor.body(body))

    def _early(self, answer: aiohttp.ClientResponse, guard: BodyGuard) -> Response:
        """An answer that came before the whole body was written, the rest of which now never is.

        It is no answer to this request, unless it refuses it: a gateway need not read a large body for that.
        """
        guard.drop()
        said = answer.content.read_nowait() if answer.content.is_eof() else b""
        _close(answer)
        if guard.written and 400 <= answer.status < 500:
            return self._response(answer, b"" if b"request_id" in said else said)  # an id would be another submit's
        raise ConnectionResetError(errno.ECONNRESET, "An answer came before the request was sent")

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[tuple[Response, AsyncIterator[bytes]]]:
        """Send one request; its head, and its body in pieces as they come."""
        async with (
            await self._mapping(self._head(request)) as answer,
            aclosing(self._pieces(answer)) as pieces,
        ):
            yield Response(status=answer.status, headers=answer.headers, body=b""), pieces

    async def _pieces(self, answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        while piece := await self._mapping(answer.content.readany()):
            yield piece

    async def _head(self, request: Request) -> aiohttp.ClientResponse:
        with self._bounded(request) as exchange:
            return await self._request(exchange, request.body)

    def _bounded(self, request: Request, silent: float | None = None) -> _Exchange:
        """Bound an exchange as a whole, from when it has a connection; our own connector bounds the time until then."""
        return _Exchange(request, silent, None if self._borrowed is None else _CONNECTED_WITHIN, self._under_way)

    def _request(self, exchange: _Exchange, data: Any) -> Awaitable[aiohttp.ClientResponse]:
        request = exchange.request
        session = self._session(request.kind)
        # A session that trusts the environment finds its proxy itself.
        proxy = self._proxies.of(request.url) if self._has_proxies and not session.trust_env else None
        if self._directly:
            return _sent(exchange, session, _Request(request, session, data, proxy))
        options = self._borrowing(exchange, session, data)
        if proxy is not None:
            options.update(proxy=proxy.url, proxy_headers=proxy.headers)
        return session.request(
            request.method,
            _parsed(request.url),
            data=data,
            allow_redirects=False,
            timeout=_timeout(request.silence if exchange.silent is None else None),
            **options,
        )

    def _borrowing(self, exchange: _Exchange, session: aiohttp.ClientSession, data: Any) -> dict[str, Any]:
        """Options that make a request over what was borrowed as safe as one over our own connections.

        A last middleware does what our own connector does (it is the only seam that a connector of another's has), and
        keeps netrc out: aiohttp reads it before each request of a session that trusts the environment, where a
        `default` entry matches any host, and refuses a request that has an `Authorization` already. So our header is
        set last, in place of what was found.
        """
        request = exchange.request
        headers = CIMultiDict(request.headers)
        token = None
        if session.trust_env:
            _check_environment(request)
            token = headers.pop("Authorization")
        own = session._middlewares  # noqa: SLF001  # a request's own replace them
        guarded = data if isinstance(data, _GuardedBody) else None
        if guarded is not None and own:
            guarded.bypassed = True  # until the last one is reached

        async def last(sent: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            if token is not None:
                sent.headers["Authorization"] = token
            if guarded is not None:
                guarded.leaves_in(sent)
            patched: Any = sent
            send = sent.send

            async def send_if_good(connection: Any) -> aiohttp.ClientResponse:
                await _begin(connection, exchange)
                return await send(connection)

            patched.send = send_if_good  # the only sign that there is a connection
            while True:
                with suppress(_Stale):  # aiohttp has closed it
                    return await handler(sent)

        ours = {} if session is not self._borrowed else {"raise_for_status": False, "auto_decompress": False, **_BOUNDS}
        return {"headers": headers, "middlewares": (*own, last), **ours}

    async def _mapping(self, call: Awaitable[T]) -> T:
        """Await one of aiohttp's calls; its failure becomes one of ours."""
        try:
            return await call
        except BaseException as error:  # noqa: BLE001  # raised again, outside of `except`: no context is kept
            failure = self._failure(error, None)
        try:
            raise failure
        finally:
            del failure

    def _failure(self, error: BaseException, guard: BodyGuard | None) -> BaseException:
        """What to raise for a failure; it refers to no request.

        What passes, such as a cancellation, passes without the frames of the call: their variables hold the token, and
        crash reporters collect them.
        """
        written = guard is not None and guard.written
        if isinstance(error, InvalidResponseError) or (isinstance(error, FluxKleinError) and not written):
            return error.with_traceback(None)
        # Once it is written, an error of ours is from a trace or a middleware; others are whatever these raise.
        return self._mapped(error, guard) if isinstance(error, Exception) else without_frames(error)

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


async def _sent(exchange: _Exchange, session: Any, request: _Request) -> aiohttp.ClientResponse:
    """The head of the answer to a request, sent as `ClientSession.request` sends it.

    That takes twice as long: it has cookies, credentials, redirects, a total time, traces and repeats.
    """
    if session.closed:
        raise RuntimeError("Session is closed")
    timeout = _timeout(exchange.request.silence if exchange.silent is None else None)
    connection = await _connected(exchange, session.connector, request, timeout)
    try:
        connection.protocol.set_response_params(
            timer=_NO_TIMER,
            read_until_eof=True,
            auto_decompress=session.auto_decompress,
            read_timeout=timeout.sock_read,
            **_BOUNDS,
        )
        answer = await request.send(connection)
        try:
            return await answer.start(connection)
        except BaseException:
            answer.close()
            raise
    except BaseException:
        connection.close()
        raise


async def _connected(exchange: _Exchange, connector: Any, request: _Request, timeout: aiohttp.ClientTimeout) -> Any:
    """A connection that is as good as new; the time of the exchange starts when it has it."""
    while True:
        try:
            connection = await connector.connect(request, [], timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"No connection to {request.url.host} came in time") from error
        try:
            if _is_new(connection.protocol) or await _is_good(connection.protocol):
                exchange.connected()
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()


async def _begin(connection: Any, exchange: _Exchange) -> None:
    """A borrowed session has a connection: the time of the exchange starts, if it is as good as new."""
    exchange.connected()
    if _is_new(connection.protocol):
        if (sock := connection.transport.get_extra_info("socket")) is not None:
            _attend(sock)
    elif not await _is_good(connection.protocol):
        raise _Stale


def _check_proxy(session: aiohttp.ClientSession, origin: str | None) -> None:
    """Refuse a borrowed session whose own proxy would be told the token: a tunnel is made for https alone.

    Between programs of this machine nothing is told to anybody.
    """
    proxy = session._default_proxy  # noqa: SLF001  # no public name
    if proxy is None or origin is None or origin.startswith("https:"):
        return
    if not all(is_loopback(host_of(URL(url)) or "") for url in (origin, proxy)):
        raise ConfigurationError(
            "The session's proxy would send the token in clear: use https, or a session without it"
        )


def _close(answer: aiohttp.ClientResponse) -> None:
    """Close the connection of an answer, even if it is back in the pool already."""
    protocol: Any = answer._protocol  # noqa: SLF001  # `answer.connection` is None by then
    answer.close()
    protocol.close()


def _check_environment(request: Request) -> None:
    """Refuse a session that trusts the environment and would send the token through a proxy in clear."""
    url = URL(request.url)
    if url.scheme == "http" and "http" in getproxies() and not proxy_bypass(url.host or ""):  # as aiohttp decides
        way = f"through HTTP_PROXY in clear: let NO_PROXY name {url.host}"
        raise ConfigurationError(f"The session's trust_env would send the token {way}")


@cache
def _timeout(silence: float | None) -> aiohttp.ClientTimeout:
    """One object for each of the few values: making one costs as much as parsing an answer."""
    return aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT, sock_read=silence)


async def _read_bounded(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    content = answer.content
    body = await content.readany()
    if not content.at_eof() and len(body) <= limit:
        pieces, size = [body], len(body)
        while size <= limit and (piece := await content.readany()):
            pieces.append(piece)
            size += len(piece)
            await asyncio.sleep(0)
        body = b"".join(pieces)
    if 0 < len(body) <= limit and (encoding := answer.headers.get("Content-Encoding")):
        body = await _inflated(body, encoding.strip().lower(), limit)
    if len(body) > limit:
        answer.close()  # the connection is of no use either
        raise InvalidResponseError(f"The answer is larger than {limit} bytes", status_code=answer.status)
    return body


async def _inflated(body: bytes, encoding: str, limit: int) -> bytes:
    """A body without its encoding; at least one byte more than `limit` if it is larger.

    More tolerant than aiohttp, since an id may be in it: padding behind the end is ignored, as curl and gzip do.
    """
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        return body  # nothing else was asked for
    headless = encoding == "deflate" and body[0] & 15 != 8  # as some servers understand "deflate"
    decoder = zlib.decompressobj(wbits=-15 if headless else 47)  # 47: gzip or zlib, as the first bytes say
    pieces: list[bytes] = []
    size, rest = 0, body
    while size <= limit:
        try:
            piece = decoder.decompress(rest, _PIECE)
        except zlib.error as error:
            raise aiohttp.ClientPayloadError(f"The body cannot be inflated: {error}") from None
        pieces.append(piece)
        size += len(piece)
        if decoder.eof:
            rest = decoder.unused_data
            if not rest.startswith(_GZIP):
                break
            decoder = zlib.decompressobj(wbits=47)  # one more member
        elif not piece:
            raise aiohttp.ClientPayloadError("The compressed body is not complete")
        else:
            rest = decoder.unconsumed_tail
        await asyncio.sleep(0)
    return b"".join(pieces)
