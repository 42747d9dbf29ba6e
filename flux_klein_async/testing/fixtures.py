"""The fixtures, where pytest-asyncio is there to run them."""

import inspect
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flux_klein_async import FluxKleinClient
    from flux_klein_async.emulator import InProcessEmulator

# The package itself is imported only when a fixture is used: a plugin is loaded into every run of pytest.

__all__ = ["klein_client", "klein_emulator"]


@pytest_asyncio.fixture
async def klein_emulator(request: pytest.FixtureRequest) -> "AsyncIterator[InProcessEmulator]":
    """The service, in process and in virtual time, with the published latency of FLUX.2 [klein] 4B."""
    from flux_klein_async.emulator import InProcessEmulator  # noqa: PLC0415

    test = request.node
    if inspect.iscoroutinefunction(getattr(test, "function", None)) and test.get_closest_marker("asyncio") is None:
        pytest.fail(
            'Nothing awaits this test: put asyncio_mode = "auto" under [tool.pytest.ini_options] in pyproject.toml, '
            "or mark it with @pytest.mark.asyncio",
            pytrace=False,
        )
    async with InProcessEmulator() as emulator:
        yield emulator


@pytest_asyncio.fixture
async def klein_client(klein_emulator: "InProcessEmulator") -> "AsyncIterator[FluxKleinClient]":
    """A client of `klein_emulator`, closed after the test."""
    from flux_klein_async import FluxKleinClient  # noqa: PLC0415

    options: dict[str, Any] = {"base_url": klein_emulator.base_url, "session": klein_emulator.session()}
    async with FluxKleinClient(klein_emulator.api_key, **options) as client:
        yield client
