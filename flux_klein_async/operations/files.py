"""One file as its bytes arrive: checked by its content, then kept whole or not at all.

The first bytes tell the format; nothing is decoded. All of this blocks, so it runs in worker threads. The last part
shows saved files in a notebook.
"""

import errno
import hashlib
import os
import re
import secrets
import stat
import tempfile
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Generic, TypeVar

from flux_klein_async.api.outputs import url_suffix
from flux_klein_async.errors import DownloadError
from flux_klein_async.models import SavedFile
from flux_klein_async.operations.names import LONGEST, with_suffix

__all__ = [
    "MEDIA_TYPES",
    "START",
    "WIDTH",
    "FileBytes",
    "InMemory",
    "IncomingFile",
    "PartFile",
    "SavedPaths",
    "figure",
    "part_files",
    "problem_with",
    "remove_files",
    "suffix_of",
    "unwritable",
]

T = TypeVar("T")

START = 1024  # bytes; a web page may begin with blanks and comments

# The first bytes of the formats that models take and deliver, and where in the file they are. The first match counts
# (source: https://mimesniff.spec.whatwg.org, and the brands of https://mp4ra.org).
_SIGNATURES = (
    (0, (b"\x89PNG\r\n\x1a\n",), ".png"),
    (0, (b"\xff\xd8\xff",), ".jpg"),
    (8, (b"WEBP",), ".webp"),
    (0, (b"GIF8",), ".gif"),
    (0, (b"II*\0", b"MM\0*"), ".tif"),
    (0, (b"BM",), ".bmp"),
    (4, (b"ftypavif", b"ftypavis"), ".avif"),
    (4, (b"ftyphei", b"ftyphev", b"ftypmif1"), ".heic"),
    (4, (b"ftypqt",), ".mov"),
    (4, (b"ftypM4A",), ".m4a"),
    (4, (b"ftyp",), ".mp4"),
    (0, (b"\x1aE\xdf\xa3",), ".webm"),
    (8, (b"AVI ",), ".avi"),
    (8, (b"WAVE",), ".wav"),
    (0, (b"ID3", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3", b"\xff\xe2"), ".mp3"),
    (0, (b"\xff\xf1", b"\xff\xf9"), ".aac"),
    (0, (b"OggS",), ".ogg"),
    (0, (b"fLaC",), ".flac"),
)
# Formats that always begin with one of these. A TIFF or MOV may begin otherwise.
_PROMISED = frozenset({"png", "jpg", "jpeg", "webp", "gif", "avif", "heic", "mp4", "webm"})
_PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body")


MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".heic": "image/heic",
    ".tif": "image/tiff",
    ".bmp": "image/bmp",
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".avi": "video/x-msvideo",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".aac": "audio/aac",
    ".m4a": "audio/mp4",
    ".ogg": "audio/ogg",
    ".flac": "audio/flac",
}


def suffix_of(start: bytes) -> str:
    """The suffix for a file that begins with these bytes; `.bin` for an unknown format."""
    return next((suffix for at, marks, suffix in _SIGNATURES if start[at:].startswith(marks)), ".bin")


def problem_with(start: bytes, headers: Mapping[str, str], url: str) -> str | None:
    """What is wrong with a file that begins like this, came with these headers, and is named by this URL; or None."""
    if not start:
        return "The file is empty"
    if suffix_of(start) != ".bin":
        return None
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    suffix = url_suffix(url)
    page = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGE_STARTS)
    if (page or content_type in _PAGE_TYPES) and suffix not in {"html", "htm"}:
        return "A web page came in place of the file"
    kind, _, subtype = content_type.partition("/")
    if kind in {"image", "video", "audio", "model"}:
        promised = kind in {"image", "video"} and subtype in _PROMISED
    else:  # octet-stream, or text/html from a gateway: the URL says more
        promised = suffix in _PROMISED
    return "A picture or video was promised, but the file has no known format" if promised else None


class IncomingFile(ABC, Generic[T]):
    """One file as its bytes arrive. One thread works on it at a time.

    A cancelled download cannot stop a job in a thread. It calls `drop`, and a job that comes later raises.
    Every method raises `DownloadError` if the file cannot be saved, checked or removed.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._start = b""
        self._restarting = False
        self._dropped = False

    def restart(self) -> None:
        """The next bytes are the first. Does not block: adding them removes the old ones."""
        self._restarting = True

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        with self._lock:
            self._take(data)

    def finish(self, data: bytes, headers: Mapping[str, str], url: str) -> T:
        """Take the last bytes, check the content and keep the file."""
        with self._lock:
            self._take(data)
            if (problem := problem_with(self._start, headers, url)) is not None:
                raise DownloadError(problem, transient=True)
            return self._keep(suffix_of(self._start))

    def drop(self) -> None:
        """Remove what is not complete."""
        with self._lock:
            self._dropped = True
            self._clear()

    def _take(self, data: bytes) -> None:
        if self._dropped:
            raise DownloadError("The download was abandoned")
        if self._restarting:
            self._restarting = False
            self._start = b""
            self._clear()
        self._start += data[: START - len(self._start)]
        self._write(data)

    @abstractmethod
    def _write(self, data: bytes) -> None: ...

    @abstractmethod
    def _keep(self, suffix: str) -> T: ...

    @abstractmethod
    def _clear(self) -> None: ...


class InMemory(IncomingFile[bytes]):
    """A file as bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._data = bytearray()

    def _write(self, data: bytes) -> None:
        self._data += data

    def _keep(self, suffix: str) -> bytes:  # noqa: ARG002  # bytes have no name
        return bytes(self._data)

    def _clear(self) -> None:
        self._data.clear()


_NO_ROOM = "the disk or the quota is full; make room, then try again"
_NO_RIGHT = "it may not be written to; choose another directory"
_IN_THE_WAY = "a file stands where a directory should be; choose another directory"
_SAME_NAME = "a directory has the name of the file; move it, or give another name"
_ADVICE = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "it is larger than the file system or the limit of this process allows (see ulimit -f)",
    errno.EROFS: _NO_RIGHT,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.ENOENT: "the directory vanished, or cannot be made; make it, or choose another",
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _SAME_NAME,
    errno.ENOTEMPTY: _SAME_NAME,
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
    errno.EMFILE: "too many files are open (see ulimit -n); save fewer at once",
    errno.ENFILE: "too many files are open on this machine; save fewer at once",
}


_MARKED = re.compile(r"\.([0-9a-f]{12}-[0-9a-f]{16})-[0-9a-f]{16}\.part")


def part_files(directory: Path) -> dict[str, list[Path]]:
    """The hidden files of unfinished downloads in a directory, by the mark of the run that made them."""
    found: dict[str, list[Path]] = {}
    with suppress(OSError):  # the directory is not there yet, or is no directory
        for name in os.listdir(directory):  # noqa: PTH208  # names alone: there may be a million
            if (marked := _MARKED.fullmatch(name)) is not None:
                found.setdefault(marked[1], []).append(directory / name)
    return found


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files; what cannot be removed stays."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


def unwritable(directory: Path) -> str | None:
    """Why no file can be saved in a directory, found out by making one near it; None if it can.

    Leaves nothing behind. A directory that is not there yet is not made: its nearest ancestor is tried.
    """
    try:
        if any(len(os.fsencode(part)) > LONGEST for part in directory.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with suppress(FileNotFoundError):
            directory.lstat()  # says if the path as a whole is too long
        # `lexists`: a link that leads nowhere is in the way.
        there = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
        with tempfile.TemporaryDirectory(prefix=".flux-klein-", dir=there) as made:
            Path(made, "try").write_bytes(b"?")
    except (OSError, ValueError) as error:
        return f"{_advice(error)} ({error.strerror if isinstance(error, OSError) else error})"
    return None


def _advice(error: Exception) -> str:
    return _ADVICE.get(getattr(error, "errno", None) or 0, "try another directory")


class PartFile(IncomingFile[SavedFile]):
    """A file with a hidden name in its directory until it is complete."""

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        exact: bool = False,
        number: int | None = None,
        compared: float = 0,
        mark: str = "",
    ) -> None:
        """`name` gets the suffix that the content calls for, unless it has it; `mark` tells whose file it is.

        An `exact` name may not have the suffix of another format. Without `number` a file of the same name is replaced.
        With it none is: the file gets the first free of `name`, `name-2`, `name-3`... from this number on. `compared`:
        how many of these names are first tried for a file with the same content, which another run saved, and which
        then is the file.
        """
        super().__init__()
        self._directory = directory
        self._name = name
        self._exact = exact
        self._number = number
        self._compared = compared
        hidden = f".{mark}{'-' if mark else ''}{secrets.token_hex(8)}.part"  # nobody can guess it and put a link there
        self._hidden = directory / hidden
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()

    def _write(self, data: bytes) -> None:
        with self._explained():
            self._opened().write(data)
        self._hash.update(data)

    def _keep(self, suffix: str) -> SavedFile:
        stem, suffix = with_suffix(self._name, suffix, exact=self._exact)
        final = self._directory / (stem + suffix)
        with self._explained():
            with self._opened() as file:
                file.flush()
                # Without this, a loss of power can leave the name and no content, which a journal takes for saved.
                # The directory is not synced: a lost name is noticed, and the file is downloaded again.
                os.fsync(file.fileno())
                size = file.tell()
            if self._number is None:
                os.replace(self._hidden, final)  # noqa: PTH105  # atomic; replaces a link and does not follow it
            else:
                final = self._placed(self._number, stem, suffix, size)
                self._hidden.unlink(missing_ok=True)
        return SavedFile(path=final, sha256=self._hash.hexdigest(), size=size)

    def _placed(self, first: int, stem: str, suffix: str, size: int) -> Path:
        """Give the file its number; another's file stays as it is."""

        def path(number: int) -> Path:
            return self._directory / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}"

        number = first
        while number - first < self._compared and os.path.lexists(there := path(number)):
            if self._is_at(there, size):
                return there
            number += 1
        # A directory may hold thousands of the name: from a free number on, search for the lowest.
        taken, free = first - 1, first
        while os.path.lexists(path(free)):
            taken, free = free, 2 * free
        while free - taken > 1:
            middle = (taken + free) // 2
            taken, free = (middle, free) if os.path.lexists(path(middle)) else (taken, middle)
        while not self._claimed(path(free)):  # others work here too
            if self._compared and self._is_at(path(free), size):
                break
            free += 1
        return path(free)

    def _claimed(self, path: Path) -> bool:
        """Move the file to a name that no other file has; False if one has it, in any case of letters."""
        try:
            os.link(self._hidden, path)  # fails if the name is taken, in one step
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links; a crash in between leaves an empty file
            try:
                path.open("xb").close()
            except FileExistsError:
                return False
            os.replace(self._hidden, path)  # noqa: PTH105
        return True

    def _is_at(self, path: Path, size: int) -> bool:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == self._hash.digest()

    def _clear(self) -> None:
        if self._file is None:
            return
        with suppress(OSError):  # a full disk may refuse the flush
            self._file.close()
        with self._explained():
            self._hidden.unlink(missing_ok=True)
        self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file, self._hash = self._hidden.open("xb"), hashlib.sha256()
        return self._file

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte, or that cannot be encoded
            raise DownloadError(
                f"The file cannot be saved in {str(self._directory)!r}: {_advice(error)}",
                cause=f"{type(error).__name__}: {error}",
            ) from error


WIDTH = 384  # pixels on the page: three beside each other on a common screen
_SHOWN_BYTES = 16 * 1024 * 1024  # a notebook keeps all that it shows
_FILMS = frozenset({".mp4", ".webm"})
_SHOWN = _FILMS | {".png", ".jpg", ".webp", ".gif", ".avif"}  # what browsers know


def figure(name: str, content: bytes, width: int) -> str:
    """A file as HTML that holds the whole of it: a notebook still shows it when it is opened elsewhere."""
    suffix, label = suffix_of(content), escape(name)
    if suffix not in _SHOWN:
        return _remark(name, "no picture that a browser knows")
    kind = {".jpg": "jpeg"}.get(suffix, suffix[1:])
    data = b64encode(content).decode()
    if suffix in _FILMS:
        return f'<video controls width="{width}" title="{label}" src="data:video/{kind};base64,{data}"></video>'
    return f'<img width="{width}" title="{label}" alt="{label}" src="data:image/{kind};base64,{data}">'


class FileBytes(bytes):
    """The content of a file, which knows what it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<FileBytes {self.media_type}, {len(self):,} bytes>"

    __str__ = __repr__  # bytes have one of their own

    @property
    def suffix(self) -> str:
        """The suffix for a file of this content, such as `.png`; `.bin` for an unknown format."""
        return suffix_of(self[:START])

    @property
    def media_type(self) -> str:
        """Its media type, such as `image/png`; `application/octet-stream` for an unknown format."""
        return MEDIA_TYPES.get(self.suffix, "application/octet-stream")


class SavedPaths(list[Path]):
    """The paths of downloaded files: a list that a notebook shows as the pictures."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return "".join(map(_shown, self))


def _shown(path: Path) -> str:
    try:
        if path.stat().st_size > _SHOWN_BYTES:
            return _remark(str(path), "too large to show automatically")
        return figure(path.name, path.read_bytes(), WIDTH)
    except OSError as error:
        return _remark(str(path), f"cannot be read: {error.strerror}")


def _remark(name: str, why: str) -> str:
    return f"<p>{escape(name)}: {why}</p>"
