"""Work that is done for a visitor, and given up when the visitor goes."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

__all__ = ["VisitorGoneError", "ended", "until_gone"]

T = TypeVar("T")


class VisitorGoneError(Exception):
    """The visitor hung up; what was done for the visitor has been given up."""


async def until_gone(work: Awaitable[T], gone: Awaitable[object]) -> T:
    """Await `work` while watching for `gone`, both in tasks that have ended when this returns.

    Raises:
        VisitorGoneError: `gone` came first; `work` was cancelled.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(gone)
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        watching.result()  # a watcher that broke is no visitor who left
        raise VisitorGoneError
    finally:
        await ended(working, watching)


async def ended(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel what still runs and wait for its end; what it ends in is nobody's affair any more."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved: asyncio would else complain of it
