"""What the end of an item has to tell, as JSON: for `--json` and for the manifest. Pure.

The manifest of a batch: a file with a JSON object a line, one for each end of an item.

It is for whoever uses the pictures; what must not be lost is in the journal, from which a run again writes what is
missing here. Lines are only ever appended, each whole by one write, so that several processes can share a file. Of an
item that ended more than once the last line counts. Blocking: on a loop, call it in a thread.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeGuard

from flux_klein_async.batch.rows import Row, Seen, lines
from flux_klein_async.errors import (
    DownloadError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    ItemClaimedError,
    JournalError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.models import GenerationResult, Outcome, RequestState, SavedFile

__all__ = ["Manifest", "Record", "error_facts", "json_line", "read_manifest", "state_after", "stopped_facts"]


Record = dict[str, Any]


def json_line(record: Mapping[str, Any]) -> str:
    """One object on one line of printable ASCII."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False)


def error_facts(error: FluxKleinError, *, submitted: bool = True) -> Record:
    """What went wrong; an item that was never submitted cannot be charged, whatever ended the others."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "charged": error.charged if submitted else "no",
        "retryable": error.retryable,
    }


def stopped_facts(state: RequestState) -> Record:
    """The same for an item that was under way when the command was told to stop."""
    charged = {RequestState.CANCELLED: "no", RequestState.COMPLETED: "yes"}.get(state, "unknown")
    return {"type": "Interrupted", "message": "The command was stopped", "charged": charged, "retryable": False}


def state_after(error: FluxKleinError) -> RequestState | None:
    """Where the request stands as far as its error tells; None where there is no request."""
    if isinstance(error, GenerationFailedError):
        return RequestState.FAILED
    if isinstance(error, GenerationCancelledError):
        return RequestState.CANCELLED
    if isinstance(error, DownloadError):
        return RequestState.COMPLETED
    if isinstance(error, WaitTimeoutError):
        return RequestState.read(error.state)
    known = error.request_id is not None or isinstance(error, SubmissionUncertainError)
    return RequestState.UNKNOWN if known else None


_LONGEST: Final = 4 * 1024 * 1024  # bytes of a line: a prompt of the longest row with each character escaped, and room
_RIGHTS: Final = 0o666  # less the umask: it holds no secret
_NO_ROOM: Final = "the disk or the quota is full; make room and run again, which writes what is missing"
_NO_RIGHT: Final = "it may not be written to; choose another directory"
_NO_FOLDER: Final = "a file stands where its directory should be; choose another directory"
_ADVICE: Final = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "it is longer than the file system or the limit of this process allows (see ulimit -f)",
    errno.EROFS: _NO_RIGHT,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EISDIR: "a directory has its name; move it, or choose another directory",
    errno.ELOOP: "a link has its name, and links are not followed; remove it, or choose another directory",
    errno.ENXIO: "it is no plain file; remove it, or choose another directory",
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.ENOENT: "it is not there",
}


class Manifest:
    """Appends to a manifest; makes the file, and its directory, if there is none.

    Args:
        now: The time, for `written_at`.

    Raises of all its calls: `JournalError` that says what to do.
    """

    def __init__(self, path: "str | os.PathLike[str]", *, now: Callable[[], datetime] | None = None) -> None:
        self.path = Path(path)
        self._folder = self.path.parent.absolute()
        self._now = now or _now
        self._seen = Seen()
        with ExitStack() as undo:
            undo.callback(self._seen.close)
            with _telling(self.path):
                self._folder.mkdir(parents=True, exist_ok=True)
                # Unbuffered: one call is one write of the system's.
                self._file = undo.enter_context(open(self.path, "ab+", buffering=0, opener=_opened))
            for _, record in _records(self.path):
                self._seen.add(_key(record), _print(record))
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, outcome: Outcome[Row]) -> bool:
        """Write down how an item ended, unless the same is there; True if it was written.

        For items that had their turn: what was written of others in an earlier run still holds.
        """
        if outcome.result is not None:
            return self._append(outcome.index, outcome.item, self._finished(outcome.result, outcome.files))
        assert outcome.error is not None  # noqa: S101  # exactly one of the two is set
        error = outcome.error
        if isinstance(error, ItemClaimedError):
            return False  # whoever has it writes its end down, maybe before this
        facts = _unfinished(error.request_id, state_after(error), error_facts(error))
        return self._append(outcome.index, outcome.item, facts)

    def append_stopped(self, index: int, row: Row, request_id: str, state: RequestState) -> bool:
        """The same for an item that was under way when the run was told to stop."""
        return self._append(index, row, _unfinished(request_id, state, stopped_facts(state)))

    def close(self) -> None:
        """Close the file; the manifest is of no use any more."""
        self._seen.close()
        self._file.close()

    def _append(self, index: int, row: Row, facts: Record) -> bool:
        record = {"index": index, "line": row.line, "id": row.id, "input": row.fields, **facts}
        key, found = _key(record), _print(record)
        if self._seen.get(key) == found:
            return False
        self._write(json_line({**record, "written_at": self._now().isoformat()}))
        self._seen.add(key, found)
        return True

    def _write(self, line: str) -> None:
        """One write a line: the system puts it at the end of the file as a whole, whoever else writes to it."""
        with _telling(self.path):
            data = line.encode() + b"\n"
            if _torn(self._file):
                data = b"\n" + data  # what is left of a line stays by itself, and is no line
            if (self._file.write(data) or 0) < len(data):
                raise OSError(errno.ENOSPC, "the line was written in part")

    def _finished(self, result: GenerationResult, files: tuple[SavedFile, ...]) -> Record:
        return {
            "request_id": result.request_id,
            "state": result.state.value,
            "urls": result.urls,
            "files": [{"path": self._shown(file.path), "sha256": file.sha256, "size": file.size} for file in files],
            "cost_usd": result.cost_usd,
            "created_at": result.created_at and result.created_at.isoformat(),
            "finished_at": result.finished_at and result.finished_at.isoformat(),
            "times": asdict(result.timings),
            "error": None,
        }

    def _shown(self, path: Path) -> str:
        """Relative to the manifest where it is beside it, so that the folder can be moved as a whole."""
        full = path.absolute()
        return full.relative_to(self._folder).as_posix() if full.is_relative_to(self._folder) else str(full)


def read_manifest(path: "str | os.PathLike[str]") -> Iterator[Record]:
    """The last line of each item, in the order of the file; what is no line of a manifest is passed over.

    Reads the file twice, in constant memory.

    Raises:
        JournalError: It cannot be read.
    """
    with closing(Seen()) as last:
        for number, record in _records(path):
            last.add(_key(record), number)
        for number, record in _records(path):
            if last.get(_key(record)) == number:
                yield record


def _unfinished(request_id: str | None, state: RequestState | None, error: Record) -> Record:
    return {
        "request_id": request_id,
        "state": state.value if state else None,
        "urls": [],
        "files": [],
        "cost_usd": None,
        "created_at": None,
        "finished_at": None,
        "times": None,
        "error": error,
    }


def _records(path: "str | os.PathLike[str]") -> Iterator[tuple[int, Record]]:
    """The lines of a manifest, with their numbers."""
    with _telling(path), open(path, "rb", opener=_opened) as file:  # Path.open takes no opener
        for line in lines(file, _LONGEST):
            try:
                record = None if line.cut else json.loads(line.data)
            except (ValueError, RecursionError):
                continue
            if _is_ours(record):
                yield line.number, record


def _is_ours(record: object) -> TypeGuard[Record]:
    return (
        isinstance(record, dict)
        and type(record.get("index")) is int
        and isinstance(record.get("id"), str | None)
        and record.keys() >= {"input", "request_id", "state", "files", "error"}
    )


def _key(record: Record) -> bytes:
    """Which item it is: known by its id, else by its place."""
    item_id = record["id"]
    name = f"index {record['index']}" if item_id is None else f"id {item_id}"
    return hashlib.sha256(name.encode(errors="surrogatepass")).digest()


def _print(record: Record) -> bytes:
    """What became of it, as far as that makes a line worth writing."""
    error = record["error"]
    kind = error.get("type") if isinstance(error, dict) else None
    told = [record["request_id"], record["state"], record["files"], kind]
    return hashlib.sha256(json.dumps(told).encode()).digest()


def _opened(path: str, flags: int) -> int:
    """Opens a plain file, and nothing that a link points to or that would block."""
    # Windows has neither.
    file = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), _RIGHTS)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.ENXIO, "no plain file")
    return file


def _torn(file: FileIO) -> bool:
    """Whether the last line has no end: whoever wrote it was killed, or had no room."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


@contextmanager
def _telling(path: "str | os.PathLike[str]") -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        advice = _ADVICE.get(getattr(error, "errno", None) or 0, "choose another directory")
        raise JournalError(
            f"The manifest {str(path)!r} cannot be used: {advice}", cause=f"{type(error).__name__}: {error}"
        ) from error


def _now() -> datetime:
    return datetime.now(UTC)
