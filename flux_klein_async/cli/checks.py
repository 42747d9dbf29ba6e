"""What `flux-klein doctor` checks: each check is a small function from what is known about this machine to a finding.

A check may raise what it likes: that is its finding, as `doctor` words it. Nothing is ordered and nothing is paid for:
the one API call reads a catalogue entry.
"""

import asyncio
import importlib.metadata
import os
import platform
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from yarl import URL

from flux_klein_async._version import USER_AGENT, __version__
from flux_klein_async.api.credentials import Redactor, find_token
from flux_klein_async.api.messages import Response
from flux_klein_async.api.requests import Api
from flux_klein_async.api.responses import read_model
from flux_klein_async.api.urls import ApiUrls
from flux_klein_async.cli.price import per_unit
from flux_klein_async.errors import ConfigurationError, FluxKleinError
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE
from flux_klein_async.options import BASE_URL_VARIABLE, Environment, Limits
from flux_klein_async.transport.aiohttp import AiohttpTransport
from flux_klein_async.transport.environment import Proxies, Proxy, named_authorities

__all__ = ["CHECKS", "CannotCheckError", "Check", "Level", "Machine"]

_SKEW = 60.0  # seconds between two clocks that are worth a warning
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)[^;]*?>=([0-9.]+)")  # as our own metadata writes them
_EXTRA = re.compile(r"""^([A-Za-z0-9._-]+).*extra == ['"](\w+)['"]""")
_SHOWN_EXTRAS = ("cli", "emulator", "testing")


class Level(StrEnum):
    """How it stands. A warning and what could not be polled leave the exit code as it is."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"
    SKIPPED = "-"


@dataclass(slots=True, kw_only=True)
class Machine:
    """What the checks use; those that find something out leave it here for those that follow.

    Attributes:
        told: What was said to be wrong already; once is enough.
    """

    environment: Environment
    base_url: str | None
    wall_clock: Callable[[], float] = time.time
    token: str | None = None
    addresses: ApiUrls | None = None
    answer: Response | None = None
    answered_at: float = 0.0
    told: set[str] = field(default_factory=set)

    @property
    def origin(self) -> URL:
        """Where the API is."""
        if self.addresses is None:
            raise CannotCheckError("the base URL is not usable")
        return URL(self.addresses.origin)

    @property
    def proxy(self) -> Proxy | None:
        """What the API is called through."""
        return Proxies(self.environment).of(str(self.origin))


class CannotCheckError(Exception):
    """What a check needs is not there, which another check has told already."""


_Found = tuple[Level, str]
Check = Callable[[Machine], Awaitable[_Found]]


async def _python(_: Machine) -> _Found:
    return Level.OK, f"{platform.python_version()} ({platform.python_implementation()}, {platform.system()})"


async def _packages(_: Machine) -> _Found:
    found = [f"flux_klein_async {__version__}"]
    old = []
    for name, least in _requirements():
        version = importlib.metadata.version(name)
        found.append(f"{name} {version}")
        if _numbers(version) < _numbers(least):
            old.append(f"'{name}>={least}'")
    if old:
        return Level.BAD, f"{', '.join(found)}: too old; pip install -U {' '.join(old)}"
    return Level.OK, ", ".join(found)


def _requirements() -> Iterator[tuple[str, str]]:
    """What the package itself needs, and from which version on."""
    for line in importlib.metadata.requires("flux_klein_async") or ():
        if "extra ==" not in line and (match := _REQUIREMENT.match(line)):
            yield match[1], match[2]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


async def _extras(_: Machine) -> _Found:
    missing = dict.fromkeys(
        match[2]
        for line in importlib.metadata.requires("flux_klein_async") or ()
        if (match := _EXTRA.match(line)) and match[2] in _SHOWN_EXTRAS and not _installed(match[1])
    )
    present = [name for name in _SHOWN_EXTRAS if name not in missing]
    line = ", ".join(present) or "none"
    if missing:
        line += f"; for {', '.join(missing)}: pip install 'flux_klein_async[{','.join(missing)}]'"
    return Level.OK, line


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


async def _token(machine: Machine) -> _Found:
    machine.token = find_token(None, machine.environment, wall_clock=machine.wall_clock)
    return Level.OK, f"from {machine.environment.token_variable or machine.environment.token_file}"


async def _token_file(machine: Machine) -> _Found:
    path = machine.environment.token_file
    mode = _mode(path)
    if mode is None:
        return Level.OK, "none"
    if os.name == "posix" and mode & 0o077:
        return Level.WARNING, f"others can read {path} (mode {mode & 0o777:o}): chmod 600 {path}"
    return Level.OK, f"{path}, for you alone"


def _mode(path: str | None) -> int | None:
    try:
        return Path(path).stat().st_mode if path is not None else None
    except OSError:
        return None


async def _base_url(machine: Machine) -> _Found:
    given, set_ = machine.base_url, machine.environment.base_url
    source = "--base-url" if given is not None else BASE_URL_VARIABLE if set_ is not None else "the service's own"
    try:
        machine.addresses = ApiUrls(set_ if given is None else given)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} (it comes from {source})") from None
    return Level.OK, f"{machine.addresses.origin} ({source})"


async def _proxy(machine: Machine) -> _Found:
    proxy = machine.proxy
    return Level.OK, "none for this address" if proxy is None else f"{proxy.url} (from the environment)"


async def _dns(machine: Machine) -> _Found:
    host, port = machine.origin.host or "", machine.origin.port
    if machine.proxy is not None:
        raise CannotCheckError("names are looked up by the proxy")
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if addresses == [host]:
        return Level.OK, f"{host} is an address already"
    more = f" and {len(addresses) - 2} more" if len(addresses) > 2 else ""
    return Level.OK, f"{host} is {', '.join(addresses[:2])}{more}"


async def _tls(machine: Machine) -> _Found:
    origin = machine.origin
    if origin.scheme != "https":
        raise CannotCheckError("plain http, to this machine only")
    context = named_authorities(machine.environment) or ssl.create_default_context()
    trusted = machine.environment.ca_file or machine.environment.ca_dir or "the system's authorities"
    if machine.proxy is not None:
        raise CannotCheckError(f"inside the proxy's tunnel; trusted: {trusted}")
    try:
        _, writer = await asyncio.open_connection(origin.host, origin.port, ssl=context)
    except socket.gaierror:
        raise CannotCheckError("the host has no address") from None
    try:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        return Level.OK, f"{tls.version()}, certificate of {_issuer(tls)}; trusted: {trusted}"
    finally:
        writer.transport.abort()


def _issuer(tls: ssl.SSLObject) -> str:
    """Who vouches for the other side, as its certificate names them."""
    certificate: Any = tls.getpeercert()  # its issuer: a tuple of names, each a tuple of (key, value)
    names = {key: value for name in certificate.get("issuer", ()) for key, value in name}
    return str(names.get("organizationName") or names.get("commonName") or "somebody unnamed")


async def _api(machine: Machine) -> _Found:
    if machine.token is None or machine.addresses is None:
        raise CannotCheckError("there is no token or no address to ask with")
    redactor = Redactor(machine.token)
    transport = AiohttpTransport(
        limits=Limits(), redactor=redactor, environment=machine.environment, origin=machine.addresses.origin
    )
    clock = asyncio.get_running_loop().time
    try:
        begun = clock()
        request = Api(machine.addresses, machine.token, USER_AGENT).model(KLEIN_4B_TEXT_TO_IMAGE)
        machine.answer = await transport.send(request)
        took = clock() - begun
        machine.answered_at = machine.wall_clock() - took / 2
    finally:
        await transport.aclose()
    read_model(machine.answer)  # raises what the service refused with
    return Level.OK, f"answers in {took * 1000:.0f} ms"


async def _clock(machine: Machine) -> _Found:
    if machine.answer is None:
        raise CannotCheckError("no answer to compare with")
    try:
        moment = parsedate_to_datetime(machine.answer.headers.get("date", ""))
        theirs = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        raise CannotCheckError("the service's answer has no date") from None
    ahead = machine.answered_at - theirs
    if abs(ahead) > _SKEW:
        side = "ahead of" if ahead > 0 else "behind"
        return Level.WARNING, f"{abs(ahead):.0f} s {side} the service's: let this machine's time be set by NTP"
    return Level.OK, "agrees with the service's to a few seconds"


async def _price(machine: Machine) -> _Found:
    if machine.answer is None:
        raise CannotCheckError("no answer to read it from")
    try:
        info = read_model(machine.answer)
    except FluxKleinError:
        raise CannotCheckError("no catalogue entry to read it from") from None
    known = info.base_price_usd is not None and info.price_unit is not None
    advice = "" if known else "; ask the service before ordering many"
    return Level.OK if known else Level.WARNING, f"{info.model_id}: {per_unit(info)}{advice}"


CHECKS: tuple[tuple[str, Check], ...] = (
    ("python", _python),
    ("packages", _packages),
    ("extras", _extras),
    ("token", _token),
    ("token file", _token_file),
    ("base URL", _base_url),
    ("proxy", _proxy),
    ("DNS", _dns),
    ("TLS", _tls),
    ("API", _api),
    ("clock", _clock),
    ("price", _price),
)
