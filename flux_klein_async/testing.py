"""The pytest plugin: the fixtures `klein_emulator` and `klein_client`, in virtual time and without sockets.

A test that uses `klein_emulator` (or anything built on it) runs on the virtual-time loop: minutes of waiting pass in
milliseconds, and `loop.time()` can be compared exactly. All other tests keep their loop.

pytest loads this module wherever the package is installed, with or without the extra `testing`, so it imports nothing
that may be missing or slow; the fixtures import the package when they are used.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flux_klein_async import FluxKleinClient
    from flux_klein_async.emulator import InProcessEmulator

__all__ = ["klein_client", "klein_emulator", "pytest_asyncio_loop_factories"]

_LoopFactory = Callable[[], asyncio.AbstractEventLoop]

if TYPE_CHECKING or find_spec("pytest_asyncio"):
    import pytest_asyncio

    @pytest_asyncio.fixture
    async def klein_emulator(request: pytest.FixtureRequest) -> "AsyncIterator[InProcessEmulator]":
        """The service, in process and in virtual time, with the published latency of FLUX.2 [klein] 4B.

        `@pytest.mark.klein_emulator(workers=2, ...)` gives its options, those of `InProcessEmulator`.
        """
        from flux_klein_async.emulator import InProcessEmulator  # noqa: PLC0415

        test = request.node
        if inspect.iscoroutinefunction(getattr(test, "function", None)) and test.get_closest_marker("asyncio") is None:
            pytest.fail(
                'pytest does not await this test: set asyncio_mode = "auto" under [tool.pytest.ini_options] in '
                "pyproject.toml, or mark the test with @pytest.mark.asyncio",
                pytrace=False,
            )
        marks = list(test.iter_markers("klein_emulator"))
        if any(mark.args for mark in marks):
            pytest.fail('@pytest.mark.klein_emulator takes names, as in (profile="fixed:9")', pytrace=False)
        options: Any = {name: value for mark in reversed(marks) for name, value in mark.kwargs.items()}  # nearest last
        async with InProcessEmulator(**options) as emulator:
            yield emulator

    @pytest_asyncio.fixture
    async def klein_client(klein_emulator: "InProcessEmulator") -> "AsyncIterator[FluxKleinClient]":
        """A client of `klein_emulator`, closed after the test."""
        from flux_klein_async import FluxKleinClient  # noqa: PLC0415

        options: dict[str, Any] = {"base_url": klein_emulator.base_url, "session": klein_emulator.session()}
        async with FluxKleinClient(klein_emulator.api_key, **options) as client:
            yield client

else:

    @pytest.fixture
    def klein_emulator() -> None:
        """Fails the test: the extra is missing."""
        pytest.fail("klein_emulator and klein_client need: pip install 'flux_klein_async[testing]'", pytrace=False)

    @pytest.fixture
    def klein_client(klein_emulator: None) -> None:
        """Fails the test: the extra is missing."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line("markers", "klein_emulator(profile=, workers=, ...): options of the fixture.")


@pytest.hookimpl(trylast=True, optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, _LoopFactory]:
    """Run the tests that use the emulator on the virtual-time loop; a project's own hook comes first."""
    if "klein_emulator" in getattr(item, "fixturenames", ()):
        from flux_klein_async.emulator import VirtualTimeLoop  # noqa: PLC0415

        return {"virtual": VirtualTimeLoop}
    return {"default": asyncio.new_event_loop}
