"""The manifest of a batch, and how the end of an item is written as JSON.

A manifest has one JSON object a line for each end of an item. It is for the users of the pictures: what must not be
lost is in the journal, from which the next run writes the lines that are missing here. Lines are appended, each by one
write, so several processes can share a file. Of an item that ended more than once the last line counts. Blocking: on
a loop, call it in a thread.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
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

__all__ = [
    "Manifest",
    "Record",
    "error_facts",
    "file_facts",
    "json_line",
    "read_manifest",
    "record",
    "result_facts",
    "state_after",
]


Record = dict[str, Any]


def json_line(record: Mapping[str, Any]) -> str:
    """One object on one line of printable ASCII."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False)


def record(outcome: Outcome[Row]) -> Record:
    """How an item ended: what `--json` prints and a manifest holds.

    `index`, `id`, `input`, `request_id`, `state`, `urls`, `files` (path, sha256, size), `cost_usd`, `timings` (s),
    and `error` (null or type, message, charged, retryable).
    """
    row, result, error = outcome.item, outcome.result, outcome.error
    known: Record = {"request_id": None, "state": None, "urls": [], "cost_usd": None, "timings": None}
    if result is not None:
        known = result_facts(result)
    elif error is not None:
        state = state_after(error)
        known |= {"request_id": error.request_id, "state": state.value if state else None}
    return {
        "index": row.number,
        "id": row.id,
        "input": row.fields,
        "request_id": known["request_id"],
        "state": known["state"],
        "urls": known["urls"],
        "files": [file_facts(file) for file in outcome.files],
        "cost_usd": known["cost_usd"],
        "timings": known["timings"],
        "error": None if error is None else error_facts(error),
    }


def result_facts(result: GenerationResult) -> Record:
    """A result, as JSON."""
    return {
        "request_id": result.request_id,
        "state": result.state.value,
        "urls": result.urls,
        "cost_usd": result.cost_usd,
        "timings": asdict(result.timings),
    }


def file_facts(file: SavedFile) -> Record:
    """A saved file, as JSON."""
    return {"path": str(file.path), "sha256": file.sha256, "size": file.size}


def error_facts(error: FluxKleinError) -> Record:
    """An error, as JSON."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "charged": error.charged,
        "retryable": error.retryable,
    }


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

    Raises of all its calls: `JournalError` that says what to do.
    """

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        self.path = Path(path)
        self._folder = self.path.parent.absolute()
        self._seen = Seen()
        with ExitStack() as undo:
            undo.callback(self._seen.close)
            with _telling(self.path):
                self._folder.mkdir(parents=True, exist_ok=True)
                # Unbuffered: one call is one write of the system's.
                self._file = undo.enter_context(open(self.path, "ab+", buffering=0, opener=_opened))
            for _, known in _records(self.path):
                self._seen.add(_key(known), _print(known))
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, outcome: Outcome[Row]) -> bool:
        """Write how an item ended, unless the same is there; True if it was written.

        For items that had their turn: what an earlier run wrote of the others still holds.
        """
        if isinstance(outcome.error, ItemClaimedError):
            return False  # the run that has the item writes its end, maybe before this
        ended = record(outcome)
        for file in ended["files"]:
            file["path"] = self._shown(Path(file["path"]))
        key, digest = _key(ended), _print(ended)
        if self._seen.get(key) == digest:
            return False
        self._write(json_line(ended))
        self._seen.add(key, digest)
        return True

    def close(self) -> None:
        """Close the file; the manifest is of no use any more."""
        self._seen.close()
        self._file.close()

    def _write(self, line: str) -> None:
        """One write a line: the system puts it at the end of the file as a whole, whoever else writes to it."""
        with _telling(self.path):
            data = line.encode() + b"\n"
            if _torn(self._file):
                data = b"\n" + data  # what is left of a line stays by itself, and is no line
            if (self._file.write(data) or 0) < len(data):
                raise OSError(errno.ENOSPC, "the line was written in part")

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
        for number, known in _records(path):
            last.add(_key(known), number)
        for number, known in _records(path):
            if last.get(_key(known)) == number:
                yield known


def _records(path: "str | os.PathLike[str]") -> Iterator[tuple[int, Record]]:
    """The lines of a manifest, with their numbers."""
    with _telling(path), open(path, "rb", opener=_opened) as file:  # Path.open takes no opener
        for line in lines(file, _LONGEST):
            try:
                known = None if line.cut else json.loads(line.data)
            except (ValueError, RecursionError):
                continue
            if _is_ours(known):
                yield line.number, known


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
