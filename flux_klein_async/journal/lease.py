"""Tells which runs are alive: each holds a lock on a small file beside its journal until its process ends.

The system drops the lock of a killed process at once. Locks work across containers on one kernel too, where process ids
say nothing. A forked process shares the lock: the run counts as alive until both have ended.
"""

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["Lease", "is_alive", "is_same_file", "sweep"]

_RUN = re.compile(r"[0-9a-f]{16}")

if sys.platform == "win32":  # pragma: no cover  # the same tests run there
    import msvcrt

    def _try_lock(handle: int, *, shared: bool) -> bool:  # noqa: ARG001  # Windows has no shared lock
        os.lseek(handle, 0, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _close(handle: int, remove: Callable[[], None]) -> None:
        os.close(handle)  # an open file cannot be removed
        remove()

else:
    import fcntl

    def _try_lock(handle: int, *, shared: bool) -> bool:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _close(handle: int, remove: Callable[[], None]) -> None:
        remove()  # still locked, so that a run that begins with the same file notices
        os.close(handle)


class Lease:
    """The lock that shows that this run is alive."""

    def __init__(self, journal: Path, run: str, handle: int) -> None:
        self.run = run
        self._journal = journal
        self._handle: int | None = handle

    @classmethod
    def take(cls, journal: Path) -> "Lease":
        """Begin a run.

        Raises:
            OSError: The directory does not exist or cannot be written.
        """
        while True:
            run = secrets.token_hex(8)
            path = _lock_path(journal, run)
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            # A process that sweeps may lock or remove the file before it is locked here.
            if _try_lock(handle, shared=False) and is_same_file(path, os.fstat(handle)):
                return cls(journal, run, handle)
            os.close(handle)

    def release(self) -> None:
        """End the run. Later calls do nothing."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _close(handle, lambda: _remove(_lock_path(self._journal, self.run)))


def is_alive(journal: Path, run: str) -> bool:
    """Whether a run has not ended; removes what a dead run left behind.

    Raises:
        OSError: The lock cannot be read.
    """
    try:
        handle = os.open(_lock_path(journal, run), os.O_RDWR)
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's file: treat the run as alive
        return True
    if not _try_lock(handle, shared=True):  # shared: two processes that check at once both succeed
        os.close(handle)
        return True
    _close(handle, lambda: _clear(journal, run))
    return False


def sweep(journal: Path) -> None:
    """Remove what dead runs left behind."""
    for path in list(journal.parent.iterdir()):
        run = path.name[len(journal.name) + 1 : -len(".lock")]
        if _RUN.fullmatch(run) and path == _lock_path(journal, run):
            is_alive(journal, run)


def _lock_path(journal: Path, run: str) -> Path:
    return journal.with_name(f"{journal.name}-{run}.lock")


def _clear(journal: Path, run: str) -> None:
    """Remove the files of a dead run: a journal that it was making, and last its lock."""
    for ending in (".new", ".new-journal", ".new-wal", ".new-shm", ".lock"):
        _remove(journal.with_name(f"{journal.name}-{run}{ending}"))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # already gone, or left behind as a file without meaning
        path.unlink()


def is_same_file(path: Path, file: os.stat_result) -> bool:
    """Whether a path still names this file."""
    try:
        return os.path.samestat(path.stat(), file)
    except FileNotFoundError:
        return False
