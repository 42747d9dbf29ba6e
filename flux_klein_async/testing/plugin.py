"""The pytest plugin: `klein_emulator` and `klein_client`, in virtual time and without sockets.

Needs pytest-asyncio. A test that asks for `klein_emulator` (or anything built on it) runs on the virtual-time loop:
minutes of waiting pass in milliseconds, and `loop.time()` can be compared exactly. All other tests keep the loop that
they would have had.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from flux_klein_async import FluxKleinClient
    from flux_klein_async.emulator import InProcessEmulator

# The package itself is imported only when a fixture is used: a plugin is loaded into every run of pytest.

__all__ = ["klein_client", "klein_emulator"]

_LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@pytest.hookimpl(trylast=True, optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, _LoopFactory]:
    """Give the virtual-time loop to the tests that use the emulator; a project's own hook goes first."""
    if "klein_emulator" in getattr(item, "fixturenames", ()):
        from flux_klein_async.emulator import VirtualTimeLoop  # noqa: PLC0415

        return {"virtual": VirtualTimeLoop}
    return {"default": asyncio.new_event_loop}


@pytest_asyncio.fixture
async def klein_emulator() -> "AsyncIterator[InProcessEmulator]":
    """The service, in process and in virtual time, with the published latency of FLUX.2 [klein] 4B."""
    from flux_klein_async.emulator import InProcessEmulator  # noqa: PLC0415

    async with InProcessEmulator() as emulator:
        yield emulator


@pytest_asyncio.fixture
async def klein_client(klein_emulator: "InProcessEmulator") -> "AsyncIterator[FluxKleinClient]":
    """A client of `klein_emulator`, closed after the test."""
    from flux_klein_async import FluxKleinClient  # noqa: PLC0415

    options: dict[str, Any] = {"base_url": klein_emulator.base_url, "session": klein_emulator.session()}
    async with FluxKleinClient(klein_emulator.api_key, **options) as client:
        yield client
