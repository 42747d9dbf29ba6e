"""What tests of the flows need besides the emulator: facts about the loop, and lists of events."""

import asyncio
import random
import struct
import zlib
from collections.abc import Awaitable
from typing import Any, TypeVar

from flux_klein_async.events import Event

E = TypeVar("E", bound=Event)
_SERVER = ("HttpServer", "RequestHandler", "Server.")


def png(size: int = 200) -> bytes:
    """A whole PNG of about so many bytes, which no compression would make smaller."""
    noise = random.Random(size).randbytes(size)
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"noIs", noise), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def now() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()


def strays() -> list[str]:
    """Tasks beside the current one that are not the emulator's own."""
    names = [
        repr(task.get_coro()) for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()
    ]
    return [name for name in names if not any(mark in name for mark in _SERVER)]


async def settle() -> None:
    """Let everything that is ready run, without time passing."""
    for _ in range(50):
        await asyncio.sleep(0)


async def outcome(call: Awaitable[Any]) -> Any:
    """What a call returned, or the exception that it raised."""
    try:
        return await call
    except Exception as error:
        return error


def without_remarks(stderr: str) -> str:
    """What a child process said, less what asyncio's debug mode says of slow steps: those are the machine's affair."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith("Executing <"))


class Events(list[Event]):
    """An `on_event` handler that keeps what it was given."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """Those of one class."""
        return [event for event in self if isinstance(event, kind)]
