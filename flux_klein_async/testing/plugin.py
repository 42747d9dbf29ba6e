"""The pytest plugin: `klein_emulator` and `klein_client`, in virtual time and without sockets.

A test that asks for `klein_emulator` (or anything built on it) runs on the virtual-time loop: minutes of waiting pass
in milliseconds, and `loop.time()` can be compared exactly. All other tests keep the loop that they would have had.

pytest loads this into every run of every project in whose environment the package is, with or without the extra
`testing`: nothing may be imported here that could be missing, or that takes time.
"""

import asyncio
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import pytest

__all__ = ["pytest_asyncio_loop_factories", "pytest_plugins"]

_LoopFactory = Callable[[], asyncio.AbstractEventLoop]

pytest_plugins = ["flux_klein_async.testing." + ("fixtures" if find_spec("pytest_asyncio") else "unequipped")]


@pytest.hookimpl(trylast=True, optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, _LoopFactory]:
    """Give the virtual-time loop to the tests that use the emulator; a project's own hook goes first."""
    if "klein_emulator" in getattr(item, "fixturenames", ()):
        from flux_klein_async.emulator import VirtualTimeLoop  # noqa: PLC0415

        return {"virtual": VirtualTimeLoop}
    return {"default": asyncio.new_event_loop}
