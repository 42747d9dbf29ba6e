"""Which event loop the tests without virtual time run on: asyncio's own, or the one that the environment asks for."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from pytest_asyncio import is_async_test

__all__ = ["LOOP_VARIABLE", "begin_tasks_eagerly", "chosen_loop", "on_chosen_loop"]

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


def on_chosen_loop(item: pytest.Item) -> bool:
    """Whether a test runs on the chosen loop: it is async and not in virtual time, or one in a thread serves it."""
    fixtures = getattr(item, "fixturenames", ())
    if is_async_test(item) and "klein_emulator" not in fixtures:
        return True
    return "served" in fixtures or not {"chosen_loop", "in_thread"}.isdisjoint(vars(getattr(item, "module", item)))


class _EagerTask(asyncio.tasks._PyTask):  # type: ignore[name-defined,misc]
    """Runs its first step at once, in the middle of the task that makes it, as Python 3.12's eager tasks do."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, loop: Any, **options: Any) -> None:
        super().__init__(coro, loop=loop, **options)
        if not loop.is_running():
            return
        first = loop._ready.pop()
        maker = asyncio.current_task(loop)
        if maker is not None:
            asyncio.tasks._leave_task(loop, maker)
        try:
            first._run()
        finally:
            if maker is not None:
                asyncio.tasks._enter_task(loop, maker)


def begin_tasks_eagerly() -> None:
    """Let each task of the running loop begin where it is made."""
    if sys.version_info >= (3, 12):
        factory: Any = asyncio.eager_task_factory
    elif not hasattr(asyncio.get_running_loop(), "_ready"):
        pytest.skip("before Python 3.12, no task of uvloop's begins eagerly")
    else:

        def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
            return _EagerTask(coro, loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(factory)
