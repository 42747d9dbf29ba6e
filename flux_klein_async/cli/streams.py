"""The standard streams of the process, from its start to its end: closed, broken, flushed.

Imports the standard library alone: the command line without its extra needs it too.
"""

import io
import os
import sys
import threading
import time
from contextlib import suppress
from typing import TextIO

__all__ = ["Nowhere", "leave", "open_closed", "to_nowhere"]

_PATIENCE = 0.2  # seconds for threads that are about to end


class Nowhere(io.TextIOBase):
    """Stands for a standard stream that was closed when the process started; what is written is dropped."""

    encoding = "utf-8"

    def write(self, text: str, /) -> int:
        """Drop the text."""
        return len(text)

    def writable(self) -> bool:
        """It takes everything."""
        return True


def open_closed() -> None:
    """Replace the standard streams that are closed.

    The next file that is opened takes the lowest free descriptor. If that is a standard one, whatever is printed or
    logged through it would be written into the file, which may be the journal. `sys.stdin` stays None: see `generate`.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _point_to_nowhere(number, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = Nowhere()
    if sys.stderr is None:
        sys.stderr = Nowhere()


def to_nowhere(stream: TextIO) -> None:
    """Point a broken stream at nothing; otherwise the interpreter complains when it flushes the stream at exit."""
    with suppress(OSError, ValueError):  # a stream without a file
        _point_to_nowhere(stream.fileno(), os.O_WRONLY)


def _point_to_nowhere(number: int, flags: int) -> None:
    nowhere = os.open(os.devnull, flags)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def leave(code: int) -> int:
    """Flush the streams; end the process if a thread hangs, otherwise return the code.

    The interpreter waits for every thread at exit. One that resolves a host name can take half a minute, and nobody
    waits for its answer any more. Journal and files are closed before this is called.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            to_nowhere(stream)
    until = time.monotonic() + _PATIENCE
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    waited_for = [thread for thread in others if not thread.daemon]
    for thread in waited_for:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in waited_for):
        os._exit(code)
    return code
