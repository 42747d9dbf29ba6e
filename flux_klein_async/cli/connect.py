"""Which service a command talks to: the one helper that makes clients, and the emulator for a single run."""

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from yarl import URL

from flux_klein_async.api.credentials import find_token
from flux_klein_async.api.urls import ApiUrls, host_of, is_loopback
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import FluxKleinError
from flux_klein_async.events import Event
from flux_klein_async.journal.base import Journal, SpendingLimit
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE
from flux_klein_async.options import Limits, from_environ
from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.policies import PollPolicy

__all__ = [
    "EMULATED_TOKEN",
    "STORE_VARIABLE",
    "Address",
    "MissingExtraError",
    "build_client",
    "emulated",
    "require_pillow",
    "store_path",
    "token_of",
]


STORE_VARIABLE = "FLUX_KLEIN_STORE"
EMULATED_TOKEN: Final = "emulator-token"  # noqa: S105  # nobody's secret
"""The emulator's, unless it is told another."""

Address = tuple[str | None, str | None]  # base URL and token; None: from the environment


class MissingExtraError(FluxKleinError):
    """Something that is not installed is needed."""


def build_client(
    address: Address,
    *,
    model: str = KLEIN_4B_TEXT_TO_IMAGE,
    timeout: float | None = 120.0,
    concurrency: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    store: Path | None = None,
    polling: PollPolicy | None = None,
    journal: Journal | None = None,
    budget: SpendingLimit | None = None,
) -> FluxKleinClient:
    """The client of every command; `store` keeps what it learns of how long generations take.

    Raises:
        ConfigurationError: No token, or a bad base URL.
    """
    base_url, token = address
    limits = Limits() if concurrency is None else Limits(max_in_flight=concurrency)
    return FluxKleinClient(
        token,
        base_url=base_url,
        model=model,
        timeout=timeout,
        limits=limits,
        on_event=on_event,
        polling=polling or AdaptivePolling(store=store),
        journal=journal,
        budget=budget,
    )


def token_of(address: Address) -> str:
    """The token of the client for this address.

    Raises:
        ConfigurationError: There is no token.
    """
    return find_token(address[1], from_environ(os.environ), wall_clock=time.time)


def store_path(environ: Mapping[str, str], base_url: str | None) -> Path | None:
    """The file that keeps what was learned of this service between runs, or None.

    Each service has its own file. A service on this machine is an emulator, whose times would mislead: it gets a file
    only if the variable names one.

    Raises:
        ConfigurationError: A bad base URL.
    """
    named = environ.get(STORE_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    url = URL(ApiUrls(from_environ(environ).base_url if base_url is None else base_url).origin)
    host = host_of(url)
    if host is None or is_loopback(host):
        return None
    service = host if url.is_default_port() else f"{host}-{url.port}"
    folder = _cache_folder(environ)
    # The colons of an IPv6 address would name a drive or a stream on Windows.
    return folder / f"polling-{service.replace(':', '_')}.json" if folder is not None else None


def _cache_folder(environ: Mapping[str, str]) -> Path | None:
    """By the XDG base directory specification, which ignores relative paths."""
    cache = environ.get("XDG_CACHE_HOME") or ""
    if not os.path.isabs(cache):  # noqa: PTH117  # of a string
        home = environ.get("HOME") or environ.get("USERPROFILE") or ""
        cache = f"{home}/.cache" if os.path.isabs(home) else ""  # noqa: PTH117
    return Path(cache) / "flux-klein" if cache else None


@asynccontextmanager
async def emulated() -> AsyncIterator[Address]:
    """An emulated service on a loopback port, inside the block.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    require_pillow()
    from flux_klein_async.emulator import Emulator  # noqa: PLC0415  # only this run needs the server

    # Its own seed: ids name the files, and the next run must not replace the files of this one.
    async with Emulator(seed=secrets.randbits(32), api_key=EMULATED_TOKEN) as emulator:
        yield emulator.base_url, emulator.api_key


def require_pillow() -> None:
    """Check that the emulator can draw, before the first picture is needed.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        import PIL  # noqa: PLC0415, F401
    except ImportError:
        raise MissingExtraError(
            "The emulator draws its placeholder pictures with Pillow: pip install 'flux_klein_async[emulator]'"
        ) from None
