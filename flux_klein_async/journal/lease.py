"""Who is alive: each run holds a lock on a small file beside its journal, which the system drops when the process ends.

A process that was killed is known to be gone at once, across containers on one kernel too, where process ids tell
nothing. A fork of the process shares the lock: the run counts as alive until both have ended.
"""

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["Lease", "is_alive"]


_RUN = re.compile(r"[0-9a-f]{16}")

if sys.platform == "win32":  # pragma: no cover  # held by the same tests there
    import msvcrt

    def _try_lock(handle: int, *, shared: bool) -> bool:  # noqa: ARG001  # this system's locks exclude each other always
        os.lseek(handle, 0, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _end(handle: int, remove: Callable[[], None]) -> None:
        os.close(handle)
        remove()  # fails, and nothing is lost, while anybody has the file open

else:
    import fcntl

    def _try_lock(handle: int, *, shared: bool) -> bool:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _end(handle: int, remove: Callable[[], None]) -> None:
        remove()  # under the lock: a run that begins in this very instant must notice
        os.close(handle)


class Lease:
    """A run's sign of life."""

    def __init__(self, journal: Path, run: str, handle: int) -> None:
        self.journal = journal
        self.run = run
        self._handle: int | None = handle

    @classmethod
    def take(cls, journal: Path) -> "Lease":
        """Begin a run.

        Raises:
            OSError: The directory is not there or not writable.
        """
        while True:
            run = secrets.token_hex(8)
            path = _lock_path(journal, run)
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            # Another process that removes leftovers may have removed this one just now.
            if _try_lock(handle, shared=False) and _is_still(path, handle):
                return cls(journal, run, handle)
            os.close(handle)

    def release(self) -> None:
        """End the run; once is enough."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _end(handle, lambda: _remove(_lock_path(self.journal, self.run)))

    def is_alive(self, run: str) -> bool:
        """Whether a run has not ended; what a dead one left behind is removed."""
        if run == self.run:
            return self._handle is not None
        return is_alive(self.journal, run)

    def sweep(self) -> None:
        """Remove what dead runs left behind."""
        name = self.journal.name
        for path in list(self.journal.parent.iterdir()):
            run = path.name[len(name) + 1 : -len(".lock")]
            if path.name == f"{name}-{run}.lock" and _RUN.fullmatch(run):
                is_alive(self.journal, run)


def _lock_path(journal: Path, run: str) -> Path:
    return journal.with_name(f"{journal.name}-{run}.lock")


def is_alive(journal: Path, run: str) -> bool:
    """Whether a run has not ended; what a dead one left behind is removed.

    Raises:
        OSError: That cannot be found out.
    """
    path = _lock_path(journal, run)
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's, or going away just now: whoever cannot know must not call it dead
        return True
    if not _try_lock(
        handle, shared=True
    ):  # shared, so that two processes that check at once do not take each other for the run
        os.close(handle)
        return True
    _end(handle, lambda: _clear(journal, run))
    return False


def _clear(journal: Path, run: str) -> None:
    """Remove all files of a dead run: a journal that it had begun to make, and last its lock."""
    for ending in (".new", ".new-journal", ".new-wal", ".new-shm", ".lock"):
        _remove(journal.with_name(f"{journal.name}-{run}{ending}"))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # it is gone already, or stays behind as a file that says nothing
        path.unlink()


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
