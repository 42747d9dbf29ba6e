"""An emulator on a port, in a thread of its own, for tests that block; and a way to act on what it is asked."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flux_klein_async.emulator import Emulator, Record

from .loops import chosen_loop

__all__ = ["PATIENCE", "in_thread", "once"]

PATIENCE = 180.0  # seconds: on the busiest machine, a process or a thread that takes longer hangs


@contextmanager
def in_thread(emulator: Emulator) -> Iterator[Emulator]:
    """Serve for the length of the block."""
    loop, ready, over = chosen_loop()(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with emulator:
            ready.set()
            await over.wait()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=work, daemon=True)  # it is joined below; nothing else is to wait for it
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        yield emulator
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(PATIENCE)
        assert not thread.is_alive()


class _Watched(deque[Record]):
    """The emulator's records, with eyes on them."""

    def __init__(self, records: deque[Record]) -> None:
        super().__init__(records, records.maxlen)
        self.waiting: list[tuple[Callable[[], bool], Callable[[], object]]] = []

    def append(self, record: Record) -> None:
        super().append(record)
        due = [watch for watch in self.waiting if watch[0]()]
        self.waiting = [watch for watch in self.waiting if watch not in due]
        for _, act in due:
            act()


def once(emulator: Emulator, happened: Callable[[], bool], act: Callable[[], object]) -> None:
    """Act, once, as soon as a call has made something true; in the emulator's own thread."""
    if not isinstance(emulator.records, _Watched):
        emulator.records = _Watched(emulator.records)
    assert isinstance(emulator.records, _Watched)
    emulator.records.waiting.append((happened, act))
