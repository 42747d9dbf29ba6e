"""Which event loop the tests without virtual time run on: asyncio's own, or the one that the environment asks for."""

import asyncio
import os
from collections.abc import Callable

import pytest

__all__ = ["LOOP_VARIABLE", "chosen_loop"]

LOOP_VARIABLE = "FLUX_KLEIN_TEST_LOOP"


def chosen_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a loop of the kind that `FLUX_KLEIN_TEST_LOOP` names."""
    name = os.environ.get(LOOP_VARIABLE) or "asyncio"
    if name == "asyncio":
        return asyncio.new_event_loop
    if name != "uvloop":
        raise pytest.UsageError(f"{LOOP_VARIABLE} is asyncio or uvloop, not {name!r}")
    import uvloop

    return uvloop.new_event_loop
