"""The rows of a file for an event loop: a thread reads them, so neither a slow pipe nor a slow disk blocks the loop."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Self

from flux_klein_async.batch.rows import Ahead, BadRow, Row

__all__ = ["RowStream"]


_AHEAD = 256  # rows read before they are wanted


class RowStream:
    """An async iterator of the rows; `first_bad` tells of the first thousand before any is given out.

    Attributes:
        count: Rows given out so far.
        total: Rows in all, where those are known at once: fewer than a thousand. Else None.

    The thread is a daemon: a process that is told to end does not wait for the next line of a terminal.
    """

    def __init__(self, rows: Iterable[Row | BadRow], over: Callable[[], object] = lambda: None) -> None:
        """Begin to read; belongs to the running loop. `over` is called in the thread, when it reads no more."""
        self.count = 0
        self.total: int | None = None
        self._rows = rows
        self._over = over
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._bad: asyncio.Future[list[BadRow]] = self._loop.create_future()
        self._read: deque[Row | BadRow | Exception | None] = deque()
        self._room = threading.Semaphore(_AHEAD)
        self._news = asyncio.Event()
        self._waiting = False
        threading.Thread(target=self._work, name="batch file", daemon=True).start()

    async def first_bad(self) -> list[BadRow]:
        """Which of the first thousand rows are bad, once all of those were read.

        Raises:
            FluxKleinError, OSError: They could not be read.
        """
        return await self._bad

    def close(self) -> None:
        """Read no more. A thread that waits for the next line of a pipe ends when that comes."""
        self._closed = True
        self._room.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Row | BadRow:
        while not self._read:
            self._news.clear()
            self._waiting = True
            if self._read:  # it came between the two
                break
            await self._news.wait()
        found = self._read[0]
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise StopAsyncIteration
        self._read.popleft()
        self._room.release()
        self.count += 1
        return found

    # --- in the thread

    def _work(self) -> None:
        last: Exception | None = None
        try:
            ahead = Ahead(self._rows)
            self.total = ahead.total
            self._tell(self._bad.set_result, ahead.bad)
            for row in ahead:
                self._room.acquire()
                if self._closed:
                    break
                self._put(row)
        except Exception as error:  # noqa: BLE001  # whatever it is: it is raised on the loop
            self._tell(self._fail, error)
            last = error
        finally:
            self._over()
        self._put(last)

    def _put(self, found: Row | BadRow | Exception | None) -> None:
        self._read.append(found)
        if self._waiting:
            self._waiting = False
            self._tell(self._news.set)

    def _fail(self, error: Exception) -> None:
        if not self._bad.done():
            self._bad.set_exception(error)

    def _tell(self, callback: Callable[..., object], *values: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(callback, *values)
