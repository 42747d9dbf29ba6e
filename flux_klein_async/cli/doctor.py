"""`flux-klein doctor`: checks what a generation needs, and prints one line for each check with what to do."""

import asyncio
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import ssl
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from yarl import URL

from flux_klein_async import __version__, errors
from flux_klein_async.api.credentials import Redactor
from flux_klein_async.api.messages import Response
from flux_klein_async.api.requests import Api
from flux_klein_async.api.responses import http_date, read_model
from flux_klein_async.api.urls import ApiUrls
from flux_klein_async.cli import connect, signals
from flux_klein_async.cli.answers import per_unit
from flux_klein_async.cli.exit_codes import ExitCode, exit_code, worst
from flux_klein_async.cli.output import Screen, is_terminal
from flux_klein_async.errors import ConfigurationError, FluxKleinError
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE, ModelInfo
from flux_klein_async.options import BASE_URL_VARIABLE, Environment, Limits, from_environ
from flux_klein_async.transport.aiohttp import AiohttpTransport
from flux_klein_async.transport.environment import Proxies, named_authorities

__all__ = ["CHECKS", "Finding", "Level", "Machine", "doctor", "examine"]

_PATIENCE = 10.0  # seconds for each check
_SKEW = 60.0  # seconds between two clocks that are worth a warning
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)[^;]*?>=([0-9.]+)")  # as the package's own metadata writes them
_EXTRA = re.compile(r"""^([A-Za-z0-9._-]+).*extra == ['"](\w+)['"]""")
_NO_FEATURES = {"all", "dev", "docs"}  # extras that bring others, or tools for work on the package itself

# What to do about errors of the network, and about those of the API.
_ADVICE = {
    "DNS": "is the name right, and is there a network?",
    "TLS": "is there a network, and does SSL_CERT_FILE have to name your company's authority?",
}
_API_ADVICE: tuple[tuple[tuple[type[FluxKleinError], ...], str], ...] = (
    ((errors.AuthenticationError,), "create a new token"),
    ((errors.InsufficientBalanceError,), "add money to the account"),
    ((errors.PermissionDeniedError,), "is the account active, and does the token belong to it?"),
    ((errors.NotFoundError, errors.InvalidInputError, errors.InputRejectedError), "is this the API's address?"),
    ((errors.ServerError, errors.RateLimitError), "try later"),
    ((FluxKleinError,), "try later, and check for a proxy or firewall in between"),
)


class Level(StrEnum):
    """How a check went. Warnings and skipped checks leave the exit code as it is."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"
    SKIPPED = "-"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `code` is what it adds to the exit code."""

    name: str
    level: Level
    line: str
    code: ExitCode = ExitCode.OK


class _Unusual(Exception):  # noqa: N818  # not an error but a finding
    """The finding of a check that is not "ok"."""

    def __init__(self, level: Level, line: str) -> None:
        super().__init__(line)
        self.level = level


def _skipped(reason: str) -> _Unusual:
    return _Unusual(Level.SKIPPED, f"not checked: {reason}")


Check = Callable[["Machine"], Awaitable[str]]
CHECKS: list[tuple[str, Check]] = []
"""Name and function of each check, in order."""


def _check(name: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        CHECKS.append((name, check))
        return check

    return add


@dataclass(kw_only=True)
class Machine:
    """What is checked; a check leaves here what later checks need.

    Attributes:
        base_url: The address, from the option `base_url_option`; None: from the environment.
    """

    environment: Environment
    base_url: str | None
    base_url_option: str = "--base-url"
    wall_clock: Callable[[], float] = time.time
    token: str | None = field(default=None, repr=False)
    urls: ApiUrls | None = None
    answer: Response | None = None
    model: ModelInfo | None = None
    answered_at: float = 0.0

    @property
    def origin(self) -> URL:
        """The API's address."""
        if self.urls is None:
            raise _skipped("the base URL is not usable")
        return URL(self.urls.origin)

    @property
    def proxy(self) -> str | None:
        """The proxy for the API, without its credentials."""
        proxy = Proxies(self.environment).of(str(self.origin))
        return None if proxy is None else str(proxy.url)

    # Each check returns its line if all is well.

    @_check("python")
    async def _python(self) -> str:
        return f"{platform.python_version()} ({platform.python_implementation()}, {platform.system()})"

    @_check("packages")
    async def _packages(self) -> str:
        found, old = [f"flux_klein_async {__version__}"], []
        for line in _requires():
            if "extra ==" in line or (match := _REQUIREMENT.match(line)) is None:
                continue
            name, least = match.groups()
            version = importlib.metadata.version(name)
            found.append(f"{name} {version}")
            if _numbers(version) < _numbers(least):
                old.append(f"'{name}>={least}'")
        line = ", ".join(found)
        if old:
            raise _Unusual(Level.BAD, f"{line}: too old; pip install -U {' '.join(old)}")
        return line

    @_check("extras")
    async def _extras(self) -> str:
        needed = [match.groups() for line in _requires() if (match := _EXTRA.match(line))]
        extras = dict.fromkeys(extra for _, extra in needed if extra not in _NO_FEATURES)
        missing = {extra: None for name, extra in needed if extra in extras and not _installed(name)}
        line = ", ".join(extra for extra in extras if extra not in missing) or "none"
        install = f"; not installed: {', '.join(missing)} (pip install 'flux_klein_async[NAME]')"
        return line + (install if missing else "")

    @_check("token")
    async def _token(self) -> str:
        self.token = connect.token_of(self.environment, self.wall_clock)
        return f"from {self.environment.token_variable or self.environment.token_file}"

    @_check("token file")
    async def _token_file(self) -> str:
        path = self.environment.token_file
        try:
            mode = os.stat(path or "").st_mode & 0o777  # noqa: PTH116  # one small call
        except OSError:
            return f"none at {path}, where the vendor's CLI writes it" if path else "none"
        if os.name == "posix" and mode & 0o077:
            raise _Unusual(Level.WARNING, f"others can read {path} (mode {mode:o}): chmod 600 {path}")
        return f"{path}, readable by you alone"

    @_check("base URL")
    async def _base_url(self) -> str:
        given, from_variable = self.base_url, self.environment.base_url
        source = "default" if from_variable is None else BASE_URL_VARIABLE
        source = source if given is None else self.base_url_option
        try:
            self.urls = ApiUrls(from_variable if given is None else given)
        except ConfigurationError as error:
            raise ConfigurationError(f"{error} (it comes from {source})") from None
        return f"{self.urls.origin} ({source})"

    @_check("proxy")
    async def _proxy(self) -> str:
        return "none for this address" if self.proxy is None else f"{self.proxy} (from the environment)"

    @_check("DNS")
    async def _dns(self) -> str:
        host, port = self.origin.host or "", self.origin.port
        if self.proxy is not None:
            raise _skipped("the proxy resolves names")
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if addresses == [host]:
            return f"{host} is an address"
        more = f" and {len(addresses) - 2} more" if len(addresses) > 2 else ""
        return f"{host} is {', '.join(addresses[:2])}{more}"

    @_check("TLS")
    async def _tls(self) -> str:
        origin = self.origin
        if origin.scheme != "https":
            raise _skipped("plain http, to this machine only")
        context = named_authorities(self.environment) or ssl.create_default_context()
        trusted = self.environment.ca_file or self.environment.ca_dir or "the system's authorities"
        if self.proxy is not None:
            raise _skipped(f"inside the proxy's tunnel; trusted: {trusted}")
        try:
            _, writer = await asyncio.open_connection(origin.host, origin.port, ssl=context)
        except socket.gaierror:
            raise _skipped("the host has no address") from None
        try:
            tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
            return f"{tls.version()}, certificate of {_issuer(tls)}; trusted: {trusted}"
        finally:
            writer.transport.abort()

    @_check("API")
    async def _api(self) -> str:
        if self.token is None or self.urls is None:
            raise _skipped("there is no token or no address")
        redactor, origin = Redactor(self.token), self.urls.origin
        transport = AiohttpTransport(limits=Limits(), redactor=redactor, environment=self.environment, origin=origin)
        clock = asyncio.get_running_loop().time
        try:
            begun = clock()
            self.answer = await transport.send(Api(self.urls, self.token).model(KLEIN_4B_TEXT_TO_IMAGE))
            seconds = clock() - begun
            self.answered_at = self.wall_clock() - seconds / 2
        finally:
            await transport.aclose()
        self.model = read_model(self.answer)  # raises if the service refused
        return f"answers in {seconds * 1000:.0f} ms"

    @_check("clock")
    async def _clock(self) -> str:
        if self.answer is None:
            raise _skipped("there is no answer to compare with")
        if (date := http_date(self.answer.headers.get("date", ""))) is None:
            raise _skipped("the service's answer has no date")
        ahead = self.answered_at - date
        if abs(ahead) > _SKEW:
            side = "ahead of" if ahead > 0 else "behind"
            line = f"{abs(ahead):.0f} s {side} the service's: synchronise this machine's clock (NTP)"
            raise _Unusual(Level.WARNING, line)
        return "agrees with the service's to a few seconds"

    @_check("price")
    async def _price(self) -> str:
        if self.model is None:
            raise _skipped("there is no catalogue entry to read it from")
        line = f"{self.model.model_id}: {per_unit(self.model)}"
        if self.model.base_price_usd is None or self.model.price_unit is None:
            raise _Unusual(Level.WARNING, f"{line}; ask the service before you generate many")
        return line


def _requires() -> list[str]:
    return importlib.metadata.requires("flux_klein_async") or []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def _installed(name: str) -> bool:
    return next(iter(importlib.metadata.distributions(name=name)), None) is not None


def _issuer(tls: ssl.SSLObject) -> str:
    certificate: Any = tls.getpeercert()  # its issuer: a tuple of names, each a tuple of (key, value)
    names = {key: value for name in certificate.get("issuer", ()) for key, value in name}
    return str(names.get("organizationName") or names.get("commonName") or "an unnamed issuer")


async def examine(machine: Machine, on_finding: Callable[[Finding], None] = lambda _: None) -> list[Finding]:
    """Run every check in order; `on_finding` receives each finding at once. Raises nothing."""
    findings: list[Finding] = []
    reported: set[str] = set()
    for name, check in CHECKS:
        finding = await _checked(name, check, machine, reported)
        if machine.token is not None:  # an answer or a path may repeat it
            finding = replace(finding, line=Redactor(machine.token).text(finding.line))
        findings.append(finding)
        on_finding(finding)
    return findings


async def _checked(name: str, check: Check, machine: Machine, reported: set[str]) -> Finding:
    """Run one check; any exception becomes its finding. An error that stops several checks is reported once."""
    advice = _ADVICE.get(name, "try again")
    level, code = Level.BAD, ExitCode.UNAVAILABLE
    try:
        async with asyncio.timeout(_PATIENCE):
            level, line, code = Level.OK, await check(machine), ExitCode.OK
    except _Unusual as found:
        level, line, code = found.level, str(found), ExitCode.OTHER if found.level is Level.BAD else ExitCode.OK
    except FluxKleinError as error:
        connect.advise(error)
        line, code = str(error), exit_code(error)
        if line in reported:
            return Finding(name, Level.SKIPPED, "not checked: fix what is bad above first")
        reported.add(line)
        if name == "API" and not isinstance(error, ConfigurationError):
            line += f"; {next(advice for kinds, advice in _API_ADVICE if isinstance(error, kinds))}"
    except TimeoutError:
        line = f"nothing within {_PATIENCE:.0f} s; {advice}"
    except OSError as error:
        line = f"{error.strerror or error}; {advice}"
    except Exception as error:  # noqa: BLE001  # one broken check must not hide the others
        line, code = f"{type(error).__name__}: {error}; please report this", ExitCode.OTHER
    return Finding(name, level, line, code)


def _lines(finding: Finding, width: int | None) -> list[str]:
    """The finding as it is printed: one line, folded for a terminal."""
    head = f"{finding.level.value:8}{finding.name:11}"
    text = " ".join(finding.line.split())
    if width is None:
        return [head + text]
    return textwrap.wrap(
        text, max(width, 40), initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
    )


def doctor(*, emulator: bool, base_url: str | None) -> ExitCode:
    """Print a line for each check."""
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None

    async def body(screen: Screen, _stop: signals.Stop) -> ExitCode:
        def show(finding: Finding) -> None:
            for line in _lines(finding, width):
                screen.out(line)

        machine = Machine(environment=from_environ(os.environ), base_url=base_url)
        if not emulator:
            return worst(finding.code for finding in await examine(machine, show))
        async with connect.emulated() as service:
            machine.environment = replace(machine.environment, token=service.token, token_variable="--emulator")  # noqa: S106  # a name
            machine.base_url, machine.base_url_option = service.base_url, "--emulator"
            return worst(finding.code for finding in await examine(machine, show))

    return signals.run(body)
