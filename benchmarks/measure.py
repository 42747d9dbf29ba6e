"""What a process holds, and what goes wrong in it where nobody awaits it."""

import asyncio
import ctypes
import gc
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["descriptors", "resident", "trouble"]


def resident() -> int:
    """Bytes of this process in memory (Linux only).

    What was freed and is kept by the C library for later is given back first: after an answer of 8 MiB it is tens of
    megabytes, now there and now not, and says nothing of what is held.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


@contextmanager
def trouble() -> Iterator[list[str]]:
    """Gather what goes wrong on the running loop: unhandled in a task, unraisable in a finalizer, or a warning."""
    seen: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: seen.append(f"unhandled: {context}"))
    hook, sys.unraisablehook = sys.unraisablehook, lambda what: seen.append(f"unraisable: {what.exc_value!r}")
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield seen
            gc.collect()
        seen.extend(f"warning: {what.category.__name__}: {what.message}" for what in warned)
    finally:
        sys.unraisablehook = hook
        loop.set_exception_handler(None)
