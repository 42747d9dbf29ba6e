"""`flux-klein doctor`: what a report of trouble would ask for first, one line each with what to do about it."""

import asyncio
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import typer

from flux_klein_async.api.credentials import Redactor
from flux_klein_async.cli import stopping
from flux_klein_async.cli.checks import CHECKS, CannotCheckError, Check, Level, Machine
from flux_klein_async.cli.exits import ExitCode, exit_code, worst
from flux_klein_async.cli.output import Screen, is_terminal
from flux_klein_async.cli.parameters import BaseUrl
from flux_klein_async.errors import (
    AuthenticationError,
    ConfigurationError,
    FluxKleinError,
    InputRejectedError,
    InsufficientBalanceError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
)
from flux_klein_async.options import from_environ

__all__ = ["Finding", "doctor", "examine"]

_PATIENCE = 10.0  # seconds for each check that asks somebody


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `code` is what it does to the exit code."""

    name: str
    level: Level
    line: str
    code: ExitCode = ExitCode.OK


# What to do about what is no error of this package's own: those say it themselves, but for the API's.
_ADVICE = {
    "DNS": "is the name right, and is there a network?",
    "TLS": "is there a network, and does SSL_CERT_FILE have to name your company's authority?",
}
_API_ADVICE: tuple[tuple[type[FluxKleinError], str], ...] = (
    (AuthenticationError, "make a new token"),
    (InsufficientBalanceError, "put money into the account"),
    (PermissionDeniedError, "is the account active, and the token its own?"),
    (NotFoundError, "is this the API's address?"),
    (InvalidInputError, "is this the API's address?"),
    (InputRejectedError, "is this the API's address?"),
    (ServerError, "try later"),
    (RateLimitError, "try later"),
    (FluxKleinError, "try later, and see whether a proxy or firewall stands in between"),
)


def _refused(name: str, error: FluxKleinError, machine: Machine) -> Finding:
    """One of our own errors, told once: a proxy that cannot be used is in the way of all that would use it."""
    if str(error) in machine.told:
        return Finding(name, Level.SKIPPED, "not checked, because of the problem above")
    machine.told.add(str(error))
    line = str(error)
    if name == "API" and not isinstance(error, ConfigurationError):
        line += f"; {next(advice for kind, advice in _API_ADVICE if isinstance(error, kind))}"
    return Finding(name, Level.BAD, line, exit_code(error))


async def _polled(name: str, check: Check, machine: Machine) -> Finding:
    """A check's finding, whatever it raises."""
    advice = _ADVICE.get(name, "try again")
    try:
        async with asyncio.timeout(_PATIENCE):
            level, line = await check(machine)
    except CannotCheckError as error:
        return Finding(name, Level.SKIPPED, f"not polled: {error}")
    except FluxKleinError as error:
        return _refused(name, error, machine)
    except TimeoutError:
        return Finding(name, Level.BAD, f"nothing within {_PATIENCE:.0f} s; {advice}", ExitCode.UNAVAILABLE)
    except OSError as error:
        return Finding(name, Level.BAD, f"{error.strerror or error}; {advice}", ExitCode.UNAVAILABLE)
    except Exception as error:  # noqa: BLE001  # a doctor who falls ill helps nobody
        return Finding(name, Level.BAD, f"{type(error).__name__}: {error}; please report this", ExitCode.OTHER)
    return Finding(name, level, line, ExitCode.OTHER if level is Level.BAD else ExitCode.OK)


async def examine(machine: Machine, tell: Callable[[Finding], None] = lambda _: None) -> list[Finding]:
    """Every check's finding, in order, told as they come. Raises nothing."""
    findings = []
    for name, check in CHECKS:
        finding = await _polled(name, check, machine)
        if machine.token is not None:  # whatever an answer or a path echoes
            finding = Finding(name, finding.level, Redactor(machine.token).text(finding.line), finding.code)
        findings.append(finding)
        tell(finding)
    return findings


def _shown(finding: Finding, width: int | None) -> list[str]:
    """The finding as it is printed: one line, which a terminal is given folded."""
    head = f"{finding.level.value:8}{finding.name:11}"
    text = " ".join(finding.line.split())
    if width is None:
        return [head + text]
    fold = textwrap.TextWrapper(
        width=max(width, 40), initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
    )
    return fold.wrap(text)


def doctor(
    base_url: BaseUrl = None,
) -> None:
    """Check what a generation needs: versions, token, network, price.

    Nothing is ordered. Each line says what to do where something is not well. The token is never shown.

    \b
    Examples:
      flux-klein doctor
      flux-klein doctor --base-url http://127.0.0.1:8000
      flux-klein doctor > report.txt

    \b
    Exit codes (the worst line decides; a warning does not count):
      0 all well    77 token, address or proxy of no use    69 the service cannot be reached    75 try later    1 other
    """  # noqa: D301  # \b: what follows is not to be wrapped
    screen = Screen()
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None

    def tell(finding: Finding) -> None:
        for line in _shown(finding, width):
            screen.out(line)

    async def body(stop: stopping.Stop) -> ExitCode:
        screen.when_reader_gone(lambda: stop.because(ExitCode.READER_GONE))
        machine = Machine(environment=from_environ(os.environ), base_url=base_url)
        return worst(finding.code for finding in await examine(machine, tell))

    raise typer.Exit(stopping.run(body))
