"""Which service a command talks to: the one helper that makes clients, and the emulator for a single run."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import FluxKleinError
from flux_klein_async.events import Event
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE
from flux_klein_async.options import Limits

__all__ = ["Address", "MissingExtraError", "build_client", "emulated", "require_pillow"]

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
) -> FluxKleinClient:
    """The client of every command.

    Raises:
        ConfigurationError: No token, or a bad base URL.
    """
    base_url, token = address
    limits = Limits() if concurrency is None else Limits(max_in_flight=concurrency)
    return FluxKleinClient(token, base_url=base_url, model=model, timeout=timeout, limits=limits, on_event=on_event)


@asynccontextmanager
async def emulated() -> AsyncIterator[Address]:
    """An emulated service on a loopback port for the length of the block.

    Raises:
        MissingExtraError: It cannot draw.
    """
    require_pillow()
    from flux_klein_async.emulator import Emulator  # noqa: PLC0415  # only this run needs the server

    # A seed of its own: ids name the files, and the next run's must not replace this one's.
    async with Emulator(seed=secrets.randbits(32)) as emulator:
        yield emulator.base_url, emulator.api_key


def require_pillow() -> None:
    """Find out before the first picture is asked for.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        import PIL  # noqa: PLC0415, F401
    except ImportError:
        raise MissingExtraError(
            "The emulator draws its placeholder pictures with Pillow: pip install 'flux_klein_async[emulator]'"
        ) from None
