"""One generation told as it happens: status events, then the result or the error."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from flux_klein_async import FluxKleinError, GenerationResult, RequestStatus
from flux_klein_async.integrations.answers import answer_to, result_facts, status_facts
from flux_klein_async.integrations.frames import KEEP_ALIVE, error_frame, frame
from flux_klein_async.integrations.visitors import VisitorGoneError, ended

__all__ = ["KEEP_ALIVE_SECONDS", "Run", "Write", "tell"]

KEEP_ALIVE_SECONDS = 15.0  # as the standard advises its authors: "every 15 seconds or so"

Run = Callable[[Callable[[RequestStatus], object]], Awaitable[GenerationResult]]
"""Starts the work, which calls what it is given at each change: `lambda tell: client.generate(..., on_status=tell)`."""

Write = Callable[[bytes], Awaitable[object]]


async def tell(
    run: Run,
    write: Write,
    *,
    keep_alive: float = KEEP_ALIVE_SECONDS,
    facts: Callable[[GenerationResult], Any] = result_facts,
) -> None:
    """Run, and write each change as an event; `keep_alive` seconds without one are bridged with a comment.

    A reader who is slower than the changes gets the latest: nothing piles up.

    Raises:
        FluxKleinError: It ended so before anything was written: an ordinary answer can still say it.
        VisitorGoneError: Nothing can be written any more.
    """
    teller = _Teller(write)
    working = asyncio.ensure_future(run(teller.changed))
    working.add_done_callback(lambda _: teller.news.set())
    try:
        await teller.until(working, keep_alive)
        try:
            result = working.result()
        except FluxKleinError as error:
            if not teller.begun:
                raise
            await teller.say(error_frame(answer_to(error)))
        else:
            await teller.say(frame("result", facts(result)))
    finally:
        await ended(working)


class _Teller:
    """The latest change that was not yet told, and whether anything was told at all."""

    def __init__(self, write: Write) -> None:
        self.news = asyncio.Event()
        self.begun = False
        self._write = write
        self._untold: RequestStatus | None = None

    def changed(self, status: RequestStatus) -> None:
        self._untold = status
        self.news.set()

    async def until(self, working: "asyncio.Future[Any]", keep_alive: float) -> None:
        """Tell what changes until the work is done and its last change is told."""
        while self._untold is not None or not working.done():
            try:
                async with asyncio.timeout(keep_alive):
                    await self.news.wait()
            except TimeoutError:
                await self.say(KEEP_ALIVE)
                continue
            self.news.clear()
            if (status := self._untold) is not None:
                self._untold = None
                await self.say(frame("status", status_facts(status)))

    async def say(self, data: bytes) -> None:
        self.begun = True
        try:
            await self._write(data)
        except OSError as error:
            raise VisitorGoneError from error
