"""Tells which runs are alive: each holds a lock on a small file beside its journal until its process ends.

The system drops the lock of a killed process at once. Locks work across containers on one kernel too, where process ids
say nothing. A forked process would share the lock and keep a dead run alive, so it closes its copy at once.
"""

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Final

__all__ = ["Lease", "is_alive", "is_same_file", "sweep"]

_RUN = re.compile(r"[0-9a-f]{16}")
_held: Final[set[int]] = set()  # the open locks of this process's runs
_changing = Lock()  # no fork comes between opening a lock and noting it

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
            fcntl.lockf(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)  # as SQLite will
            fcntl.lockf(handle, fcntl.LOCK_UN)
        except (BlockingIOError, PermissionError):  # locks of both kinds are one on some file systems
            pass
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _close(handle: int, remove: Callable[[], None]) -> None:
        remove()  # still locked, so that a run that begins with the same file notices
        os.close(handle)

    def _forked() -> None:  # pragma: no cover  # as a forked process
        """In a forked process: the runs are its parent's. Closing a copy of a lock leaves the lock."""
        for handle in _held:
            with contextlib.suppress(OSError):  # a daemon closes every descriptor that it finds, these too
                os.close(handle)
        _held.clear()
        _changing.release()

    os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_forked)


class Lease:
    """The lock that shows that this run is alive."""

    def __init__(self, journal: Path, run: str, handle: int) -> None:
        self.run = run
        self._journal = journal
        self._handle: int | None = handle
        self._process = os.getpid()

    @classmethod
    def take(cls, journal: Path) -> "Lease":
        """Begin a run.

        Raises:
            OSError: The directory does not exist or cannot be written.
        """
        while True:
            run = secrets.token_hex(8)
            path = _lock_path(journal, run)
            with _changing:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
                try:
                    # A process that sweeps may lock or remove the file before it is locked here.
                    taken = _try_lock(handle, shared=False) and is_same_file(path, os.fstat(handle))
                except OSError:
                    _close(handle, lambda: _remove(path))  # noqa: B023  # called here
                    raise
                if taken:
                    _held.add(handle)
                    return cls(journal, run, handle)
                os.close(handle)

    def release(self) -> None:
        """End the run. Later calls do nothing, and so does a forked process's."""
        if self._handle is None or self._process != os.getpid():
            return
        with _changing:
            handle, self._handle = self._handle, None
            _held.discard(handle)
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
    try:
        ended = _try_lock(handle, shared=True)  # shared: two processes that check at once both succeed
    except OSError:
        os.close(handle)
        raise
    if not ended:
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
