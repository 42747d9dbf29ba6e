"""The service and the journal that the options of a command name."""

import os
import shlex
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import typer
from yarl import URL

from flux_klein_async.api.credentials import find_token
from flux_klein_async.api.urls import ApiUrls, host_of, is_loopback
from flux_klein_async.cli.output import Screen
from flux_klein_async.errors import (
    AuthenticationError,
    ConfigurationError,
    DownloadError,
    FluxKleinError,
    GenerationFailedError,
    InvalidInputError,
    JournalError,
    NotFoundError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.journal.reader import exists, locate
from flux_klein_async.journal.sql import Location
from flux_klein_async.journal.sqlite import SqliteLocation, connect
from flux_klein_async.journal.writer import EMULATED_TOKEN
from flux_klein_async.models import model_advice
from flux_klein_async.options import BASE_URL_VARIABLE, TOKEN_VARIABLES, Environment, from_environ
from flux_klein_async.paths import user_path

__all__ = [
    "EMULATED_SERVICE",
    "MissingExtraError",
    "advise",
    "connected",
    "emulated",
    "existing",
    "is_local",
    "is_of_model",
    "journal",
    "listing",
    "origin_of",
    "store_path",
    "token_of",
]

STORE_VARIABLE = "FLUX_KLEIN_STORE"
EMULATED_SERVICE: Final = "https://emulator.invalid"
"""The service that a journal knows --emulator by: each has a port of its own, and saves files that the next finds."""


class MissingExtraError(FluxKleinError):
    """The command needs something that is not installed."""


def journal(name: str) -> Location:
    """The place of a journal; a password in it would be shown to everyone who lists processes."""
    if not name:
        raise typer.BadParameter("the name is empty, as of a variable that is not set", param_hint="--journal")
    try:
        place = locate(name)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error), param_hint="--journal") from None
    if isinstance(place, SqliteLocation):
        try:
            connect(place.path).close()
        except JournalError as error:
            raise typer.BadParameter(str(error), param_hint="--journal") from None
        except (OSError, sqlite3.Error):  # there is no file yet; any other trouble is told when the journal is used
            pass
    if place.has_password:
        raise typer.BadParameter(
            "leave the password out: set PGPASSWORD or PGPASSFILE, or name a service (PGSERVICE)",
            param_hint="--journal",
        )
    return place


def existing(place: Location) -> Location:
    """The place, if there is a journal.

    Raises:
        InvalidInputError: There is none.
        JournalError: That cannot be told.
    """
    if not exists(place):
        raise InvalidInputError(f"There is no journal {place}: name one with --journal")
    return place


# --- the service


class Address(NamedTuple):
    """Where a service is, by default where the environment says, and the file that stores its durations."""

    base_url: str | None
    token: str
    store: Path | None

    def __repr__(self) -> str:
        return f"Address({self.base_url!r})"


@asynccontextmanager
async def connected(screen: Screen, base_url: str | None, *, emulator: bool) -> AsyncIterator[Address]:
    """The service that the options name; an emulated one runs as long as the block.

    Raises:
        ConfigurationError: No token.
        typer.BadParameter: A bad base URL.
        MissingExtraError: Pillow is not installed.
    """
    if not emulator:
        environment = from_environ(os.environ)
        try:
            ApiUrls(environment.base_url if base_url is None else base_url, allow_insecure=None)
        except ConfigurationError as error:
            hint = BASE_URL_VARIABLE if base_url is None else "--base-url"
            raise typer.BadParameter(str(error), param_hint=hint) from None
        yield Address(base_url, token_of(environment), store_path(os.environ, base_url))
        return
    async with emulated() as service:
        screen.note("Emulator: the pictures are placeholders, and nothing is charged.")
        yield service


@asynccontextmanager
async def emulated() -> AsyncIterator[Address]:
    """An emulated service on a loopback port, inside the block; its durations are not stored."""
    require_pillow()
    from flux_klein_async.emulator import Emulator  # noqa: PLC0415  # only this run needs the server

    async with Emulator(api_key=EMULATED_TOKEN) as emulator:
        yield Address(emulator.base_url, emulator.api_key, None)


def require_pillow() -> None:
    """Raise `MissingExtraError` if the emulator cannot draw, before the first picture is needed."""
    try:
        import PIL  # noqa: PLC0415, F401
    except ImportError:
        raise MissingExtraError(
            "The emulator draws its placeholder pictures with Pillow: pip install 'flux_klein_async[emulator]'"
        ) from None


def token_of(environment: Environment, wall_clock: Callable[[], float] = time.time) -> str:
    """The token of the environment or of the vendor's file.

    Raises:
        ConfigurationError: There is none, or it cannot be one.
    """
    if environment.token is None and not user_path(environment.token_file or "").is_file():
        ways = f"Set {TOKEN_VARIABLES[0]} or log in with the vendor's CLI; to try without a token, pass --emulator"
        raise ConfigurationError(f"No token. {ways}")
    return find_token(None, environment, wall_clock=wall_clock)


def origin_of(base_url: str | None) -> str:
    """Scheme, host and port of the service, by default where the environment says."""
    return ApiUrls(from_environ(os.environ).base_url if base_url is None else base_url, allow_insecure=True).origin


def is_local(base_url: str | None) -> bool:
    """Whether the service is on this machine: it may be an emulator, which forgets its requests when it ends."""
    return is_loopback(host_of(URL(origin_of(base_url))) or "")


def store_path(environ: Mapping[str, str], base_url: str | None) -> Path | None:
    """The file that keeps what was learned of this service between runs, or None.

    Each service has its own file. A service on this machine is an emulator, whose times would mislead: it gets a file
    only if the variable names one.

    Raises:
        ConfigurationError: A bad base URL.
    """
    named = environ.get(STORE_VARIABLE)
    if named is not None:
        return user_path(named) if named else None
    url = URL(ApiUrls(from_environ(environ).base_url if base_url is None else base_url).origin)
    host = host_of(url)
    # By the XDG base directory specification, which ignores relative paths.
    cache, home = environ.get("XDG_CACHE_HOME") or "", environ.get("HOME") or environ.get("USERPROFILE") or ""
    folder = next((path for path in (cache, home and f"{home}/.cache") if os.path.isabs(path)), None)  # noqa: PTH117  # of text
    if host is None or is_loopback(host) or folder is None:
        return None
    service = host if url.is_default_port() else f"{host}-{url.port}"
    # The colons of an IPv6 address would name a drive or a stream on Windows.
    return Path(folder) / "flux-klein" / f"polling-{service.replace(':', '_')}.json"


def is_of_model(error: FluxKleinError | None) -> bool:
    """Whether the service found no such model; a request that is not found has an id."""
    return isinstance(error, NotFoundError) and error.request_id is None


def listing(model: str) -> str:
    """The command that finds the model that is meant by a word, or by a whole id."""
    word = f" {shlex.quote(model)}" if model and "/" not in model else ""
    return f"see `flux-klein models{word}`"


def advise(error: FluxKleinError | None, model: str = "") -> None:
    """Give an error the advice of the command line in place of Python's."""
    if error is not None and is_of_model(error):
        error.advice = model_advice(model, listing(model))
    elif isinstance(error, AuthenticationError):
        # Not the file's path: it has a user's name, and a manifest can be sent to others.
        source = from_environ(os.environ).token_variable or "the token.json of the vendor's CLI"
        error.advice = f"the token comes from {source}"
    elif isinstance(error, SubmissionUncertainError | GenerationFailedError | WaitTimeoutError):
        error.advice = None  # the option, or the command, is named where the error is printed, once
    elif isinstance(error, DownloadError):
        error.advice = error.advice or ""  # likewise
