"""How the end of an item is written as JSON, and the manifest: one line for each end.

The manifest is for the users of the pictures. The journal holds what must not be lost, and the next run writes from it
the lines that are missing here. Several processes can append to one file, since each line is one write. The last line
of an item counts, and no line hides a picture that another input made. The calls block: on an event loop, make them in
a thread.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self, TypeGuard

from flux_klein_async import errors
from flux_klein_async.api.requests import InputFile
from flux_klein_async.batch.rows import DiskMap, Row, lines
from flux_klein_async.errors import FluxKleinError, ItemClaimedError, JournalError
from flux_klein_async.models import GenerationResult, Outcome, RequestState, SavedFile, brief_url
from flux_klein_async.paths import user_path

__all__ = [
    "MANIFEST",
    "Manifest",
    "Record",
    "end_facts",
    "error_facts",
    "every_record",
    "file_facts",
    "json_line",
    "may_be_paid",
    "read_manifest",
    "recognised",
    "record",
    "result_facts",
    "unreached",
]

Record = dict[str, Any]
MANIFEST: Final = "manifest.jsonl"
"""Its name in the output directory."""


def json_line(record: Mapping[str, Any]) -> str:
    """One object on one line of printable ASCII."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False)


def record(outcome: Outcome[Row]) -> Record:
    """The record of an item's end, as `--json` prints it and a manifest holds it.

    `index`, `id`, `input` (a local file as file, size and sha256, null where it was not read), `request_id`, `state`,
    `urls`, `files` (path, sha256, size), `cost_usd`, `timings` (s), and `error` (null or type, message, charged,
    retryable).
    """
    row = outcome.item
    return {"index": row.number, "id": row.id, "input": _without_bytes(row.fields), **end_facts(outcome)}


def end_facts(outcome: Outcome[Any]) -> Record:
    """The end of an item without the item, as JSON."""
    error = outcome.error
    facts: Record = {"request_id": None, "state": None, "urls": [], "files": [], "cost_usd": None, "timings": None}
    if outcome.result is not None:
        facts |= result_facts(outcome.result)
    if error is not None:
        facts |= {"request_id": error.request_id, "state": _state_after(error), "cost_usd": outcome.cost_usd}
    facts["files"] = [file_facts(file) for file in outcome.files]
    return {**facts, "error": None if error is None else error_facts(error)}


def _without_bytes(value: Any) -> Any:
    """An input as JSON, with path, size and digest in place of each local file."""
    if isinstance(value, dict):
        return {name: _without_bytes(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_bytes(part) for part in value]
    return value.facts if isinstance(value, InputFile) else value


def result_facts(result: GenerationResult) -> Record:
    """A result, as JSON. A file that came inside the answer is named by its type and length alone."""
    urls = [brief_url(url) for url in result.urls]
    facts = {"request_id": result.request_id, "state": result.state.value, "urls": urls}
    return {**facts, "cost_usd": result.cost_usd, "timings": asdict(result.timings)}


def file_facts(file: SavedFile) -> Record:
    """A saved file, as JSON."""
    return {"path": str(file.path), "sha256": file.sha256, "size": file.size}


def error_facts(error: FluxKleinError) -> Record:
    """An error, as JSON."""
    kind = type(error).__name__
    return {"type": kind, "message": str(error), "charged": error.charged, "retryable": error.retryable}


_STATES: Final = {
    errors.GenerationFailedError: RequestState.FAILED,
    errors.GenerationCancelledError: RequestState.CANCELLED,
    errors.DownloadError: RequestState.COMPLETED,
    errors.SubmissionUncertainError: RequestState.UNKNOWN,
}


def _state_after(error: FluxKleinError) -> RequestState | None:
    """The state of the request, as far as the error shows it; None where there is no request."""
    if isinstance(error, errors.WaitTimeoutError):
        return RequestState.read(error.state)
    if isinstance(error, errors.GenerationFailedError) and error.charged == "yes":
        return RequestState.COMPLETED  # without a file
    unknown = None if error.request_id is None else RequestState.UNKNOWN
    return next((state for kind, state in _STATES.items() if isinstance(error, kind)), unknown)


_LONGEST: Final = 4 * 1024 * 1024  # bytes of a line: the longest prompt with each character escaped, and room
_ADVICE: Final = {
    (errno.ENOSPC, errno.EDQUOT): "the disk or the quota is full; make room and run the batch again",
    (errno.EFBIG,): "it is longer than the file system or the limit of this process allows (see ulimit -f)",
    (errno.EROFS, errno.EACCES, errno.EPERM): "it is not writable; choose another directory",
    (errno.EISDIR,): "a directory has its name; move it, or choose another directory",
    (errno.ELOOP,): "a link has its name, and links are not followed; move it, or choose another directory",
    (errno.ENXIO,): "it is not a plain file; move it, or choose another directory",
    (errno.EEXIST, errno.ENOTDIR): "a file has the name of its directory; choose another directory",
    (errno.ENOENT,): "it does not exist",
}


class Manifest:
    """Appends to a manifest; makes the file and its directory if they do not exist. A context manager.

    All calls raise `JournalError`, which says what to do.
    """

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        self.path = user_path(path)
        self._folder = self.path.parent.absolute()
        self._ends = DiskMap()  # from an item to the digest of its last end
        self._has_indexes = False  # items without an id
        with ExitStack() as undo:
            undo.callback(self._ends.close)
            with _advised(self.path):
                self._folder.mkdir(parents=True, exist_ok=True)
                # Unbuffered: one call is one write of the system.
                self._file = undo.enter_context(open(self.path, "ab+", buffering=0, opener=_opened))
            for _, known in _records(self.path):
                self._note(known)
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, outcome: Outcome[Row]) -> bool:
        """Write how an item ended, unless its last line says the same; True if it was written."""
        if isinstance(outcome.error, ItemClaimedError):
            return False  # the run that claimed the item writes its end, maybe before this
        ended = record(outcome)
        for file in ended["files"]:
            file["path"] = self._relative(Path(file["path"]))
        # A submit of this run may be charged beside the one before it, of which the same is known.
        is_new = isinstance(outcome.error, errors.SubmissionUncertainError) and not outcome.from_journal
        if self._ends.get(_item(ended)) == _end(ended) and not is_new and not self._is_stale(ended):
            return False
        with _advised(self.path):
            data = json_line(ended).encode() + b"\n"
            if _is_torn(self._file):
                data = b"\n" + data  # ends the torn line, which is passed over from now on
            if (self._file.write(data) or 0) < len(data):
                raise OSError(errno.ENOSPC, "the line was written in part")
        self._note(ended)
        return True

    def _note(self, known: Record) -> None:
        if self._is_stale(known):
            self._ends.put(_place(known), b"")
        self._has_indexes |= known["id"] is None
        self._ends.put(_item(known), _end(known))

    def _is_stale(self, known: Record) -> bool:
        """Whether the last line of its index is of an item without an id, such as one that could not be read."""
        return self._has_indexes and known["id"] is not None and bool(self._ends.get(_place(known)))

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        self._ends.close()
        self._file.close()

    def _relative(self, path: Path) -> str:
        """Relative to the manifest if it is below it, so that the folder can be moved as a whole."""
        full = path.absolute()
        return full.relative_to(self._folder).as_posix() if full.is_relative_to(self._folder) else str(full)


def read_manifest(
    path: "str | os.PathLike[str]", *, on_unreadable: Callable[[int], object] | None = None
) -> Iterator[Record]:
    """The last line of each item, in the order of the file; lines that are not of a manifest are passed over.

    An item is known by its id, else by its index. A picture is given too where a later line has its id or index with
    another input: two files of prompts may share a directory.

    Reads the file twice, in constant memory. What other processes append meanwhile is left out.

    Args:
        path: The manifest, or the directory with its `manifest.jsonl`.
        on_unreadable: Called with the number of each line that is passed over, from 1.

    Raises:
        JournalError: It cannot be read.
    """
    path = user_path(path)
    if path.is_dir():
        path /= MANIFEST
    with closing(DiskMap()) as last, closing(DiskMap()) as last_of_failed:
        any_failed = False
        for number, known in _records(path, on_unreadable):
            for key in _pictures(known):
                last.put(key, number)
            for key in {_item(known), _place(known)} if any_failed else ():
                if last_of_failed.get(key) is not None:
                    last_of_failed.put(key, number)
            if known["error"] is not None:
                last_of_failed.put(_item(known), number)
                any_failed = True
        for number, known in _records(path):
            counts = known["error"] is None or last_of_failed.get(_item(known)) == number
            if counts and all(last.get(key) == number for key in _pictures(known)):
                yield known


def every_record(path: "str | os.PathLike[str]") -> Iterator[Record]:
    """Every line, also those that later ones replace.

    Raises:
        JournalError: It cannot be read.
    """
    for _, known in _records(user_path(path)):
        yield known


def unreached(path: "str | os.PathLike[str]", rows: Iterable[Row]) -> int:
    """How many rows have no line: neither one with their id and input nor, without an id, one with their input.

    Raises:
        JournalError: The manifest cannot be read.
    """
    missing = 0
    with closing(DiskMap()) as lines_of:  # from an item with its input to how many lines it has
        for record in read_manifest(path):
            item = recognised(record["id"], record["input"]) + recognised(None, record["input"])
            lines_of.put(item, int(lines_of.get(item) or 0) + 1)
        for row in rows:
            item = recognised(row.id, row.fields) + recognised(None, row.fields)
            count = int(lines_of.get(item) or 0)
            lines_of.put(item, max(0, count - 1))
            missing += not count
    return missing


def may_be_paid(record: Record) -> bool:
    """Whether a request was or may have been accepted for the item."""
    error = record["error"]
    kind, charged = (error.get("type"), error.get("charged")) if isinstance(error, dict) else (None, None)
    uncertain = kind == errors.SubmissionUncertainError.__name__
    return error is None or uncertain or (charged != "no" and record["request_id"] is not None)


def recognised(item_id: str | None, given: object) -> bytes:
    """What recognises an item in every file of prompts: its id, else its input, with local files by their path."""
    return _digest(f"id {item_id}" if item_id is not None else json.dumps(_by_path(given), sort_keys=True))


def _records(
    path: "str | os.PathLike[str]", on_unreadable: Callable[[int], object] | None = None
) -> Iterator[tuple[int, Record]]:
    """The lines of a manifest, with their numbers."""
    with _advised(path), open(path, "rb", opener=_opened) as file:  # Path.open takes no opener
        for number, line in lines(file, _LONGEST):
            try:
                known = json.loads(line)
            except (ValueError, RecursionError):  # also of a line that was cut
                known = None
            if _is_record(known):
                yield number, known
            elif on_unreadable is not None:
                on_unreadable(number)


def _is_record(found: object) -> TypeGuard[Record]:
    return (
        isinstance(found, dict)
        and type(found.get("index")) is int
        and isinstance(found.get("id"), str | None)
        and found.keys() >= {"input", "request_id", "state", "files", "error"}
    )


def _item(record: Record) -> bytes:
    """The item of a record: its id, else its index."""
    return _place(record) if record["id"] is None else _digest(f"id {record['id']}")


def _place(record: Record) -> bytes:
    return _digest(f"index {record['index']}")


def _pictures(record: Record) -> list[bytes]:
    """What a later line has in common with a record that it replaces, even one with a picture."""
    same = [_item(record) + recognised(None, record["input"])]
    if record["request_id"] is not None:  # the item may have moved within its file, or its local files elsewhere
        same.append(_digest(f"request {record['request_id']}"))
    return same


def _by_path(value: Any) -> Any:
    """An input as JSON, with local files by their path alone: they are not always read."""
    if isinstance(value, InputFile) or (isinstance(value, dict) and value.keys() == {"file", "size", "sha256"}):
        return str(value.path) if isinstance(value, InputFile) else value["file"]
    if isinstance(value, dict):
        return {name: _by_path(part) for name, part in value.items()}
    return [_by_path(part) for part in value] if isinstance(value, list) else value


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _end(record: Record) -> bytes:
    """What makes one end of an item differ from another."""
    error = record["error"]
    kind = error.get("type") if isinstance(error, dict) else None
    facts = [record["request_id"], record["state"], record["files"], kind]
    return hashlib.sha256(json.dumps(facts).encode()).digest()


def _opened(path: str, flags: int) -> int:
    """Open a plain file; never what a link points to, or what would block."""
    # Windows has neither flag. The rights, less the umask: a manifest holds no secret.
    file = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.ENXIO, "not a plain file")
    return file


def _is_torn(file: FileIO) -> bool:
    """Whether the last line has no end: its writer was killed, or the disk was full."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


@contextmanager
def _advised(path: "str | os.PathLike[str]") -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        code = getattr(error, "errno", None)
        advice = next((text for codes, text in _ADVICE.items() if code in codes), "choose another directory")
        raise JournalError(
            f"The manifest {str(path)!r} cannot be used: {advice}", cause=f"{type(error).__name__}: {error}"
        ) from error
