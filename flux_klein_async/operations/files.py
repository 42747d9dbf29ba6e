"""What the first bytes of a file say of its format. Pure; nothing is decoded.

One file on its way to disk or memory: all of it under its name, or nothing. Blocking, for worker threads only.
"""

import errno
import hashlib
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Generic, Protocol, TypeVar

from flux_klein_async.errors import DownloadError, InvalidInputError
from flux_klein_async.models import SavedFile

__all__ = ["Arrival", "Content", "InMemory", "PartFile", "Sink", "checked_names", "is_promised", "suffix_of"]


_HEAD = 1024  # bytes; a page of HTML may begin with blanks and comments

# The first bytes of the formats that models deliver, and where in the file they stand.
_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (8, b"WEBP", ".webp"),
    (0, b"GIF8", ".gif"),
    (4, b"ftypavif", ".avif"),
    (4, b"ftypavis", ".avif"),
    (4, b"ftyphei", ".heic"),
    (4, b"ftyphev", ".heic"),
    (4, b"ftypmif1", ".heic"),
    (4, b"ftyp", ".mp4"),
    (0, b"\x1aE\xdf\xa3", ".webm"),
)
_TYPES = frozenset(
    {
        "image/png",
        "image/jpeg",
        "image/jpg",  # no registered name, and often seen
        "image/webp",
        "image/gif",
        "image/avif",
        "image/heic",
        "video/mp4",
        "video/webm",
    }
)
_SUFFIXES = frozenset({"png", "jpg", "jpeg", "webp", "gif", "avif", "heic", "mp4", "webm"})
# Of these a type says what the file is; others (octet-stream, text/html of a gateway) say nothing against the URL.
_TELLING = ("image/", "video/", "audio/", "model/")
_PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body")


def suffix_of(start: bytes) -> str:
    """The suffix that a file's first bytes call for; `.bin` where they are of no known format."""
    return next((suffix for at, mark, suffix in _SIGNATURES if start[at:].startswith(mark)), ".bin")


def is_promised(content_type: str, url: str) -> bool:
    """Whether a picture or film of a known format is what the type, or else the URL's suffix, promises."""
    if content_type.startswith(_TELLING):
        return content_type in _TYPES
    return _suffix_in(url) in _SUFFIXES


def _suffix_in(url: str) -> str:
    name = url.partition("#")[0].partition("?")[0].rpartition("/")[2]
    _, dot, suffix = name.rpartition(".")
    return suffix.lower() if dot else ""


class Content:
    """The start and the size of a file, fed in pieces of any size; says what is wrong with it.

    Attributes:
        size: Bytes so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._head = b""

    @property
    def suffix(self) -> str:
        """The suffix that the content calls for, `.bin` for an unknown format."""
        return suffix_of(self._head)

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self.size += len(data)
        if len(self._head) < _HEAD:
            self._head += data[: _HEAD - len(self._head)]

    def complaint(self, headers: Mapping[str, str], url: str) -> str | None:
        """What is wrong with the file, as a sentence, or None.

        Args:
            headers: Of the answer that brought it.
            url: Where the service said the file is.
        """
        if not self.size:
            return "The file is empty"
        if self.suffix != ".bin":
            return None
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if self._is_page(content_type) and _suffix_in(url) not in {"html", "htm"}:
            return "A web page came in place of the file"
        if is_promised(content_type, url):
            return "A picture or video was promised, but the file has no known format"
        return None

    def _is_page(self, content_type: str) -> bool:
        start = self._head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        return content_type in _PAGE_TYPES or start.startswith(_PAGE_STARTS)


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# What some file system of our users' cannot hold, or reads as more than a name.
_BAD_CHARACTERS = re.compile(r'[\x00-\x1f\x7f/\\:<>"|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)
_LONGEST = 255  # bytes, on every common file system

_NO_ROOM = "the disk or the quota is full; make room, then download again"
_NO_RIGHT = "it may not be written to; choose another directory"
_IN_THE_WAY = "a file stands where a directory should be; choose another directory"
_ADVICE = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "it is larger than the file system or the limit of this process allows (see ulimit -f)",
    errno.EROFS: _NO_RIGHT,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.ENOENT: "the directory vanished, or cannot be made; make it again, then download again",
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: "a directory has the name of the file; move it, or give another name",
    errno.ENOTEMPTY: "a directory has the name of the file; move it, or give another name",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
    errno.EMFILE: "too many files are open (see ulimit -n); save fewer at once",
    errno.ENFILE: "too many files are open on this machine; save fewer at once",
}


def checked_names(names: Sequence[str], count: int) -> list[str]:
    """File names that a user gave, if each is one plain name and there is one for each file.

    Raises:
        InvalidInputError: Too few, too many, twice the same, or more than a name.
    """
    if isinstance(names, str) or len(names) != count:
        raise InvalidInputError(f"names must be a list of {count} file names, one for each file")
    for name in names:
        if not _plain(name):
            raise InvalidInputError(f"Not a plain file name: {str(name)[:80]!r}")
    # What one file system keeps apart is one file on another: case, and the ways to compose a letter.
    if len({unicodedata.normalize("NFC", name).casefold() for name in names}) != count:
        raise InvalidInputError("The same file name was given twice")
    return list(names)


def _plain(name: object) -> bool:
    if not isinstance(name, str) or _BAD_CHARACTERS.search(name) or _RESERVED.fullmatch(name):
        return False
    try:
        fits = 0 < len(name.encode()) <= _LONGEST
    except UnicodeEncodeError:
        return False
    return fits and name[-1] not in ". "  # some file systems drop these from the end


class Sink(Protocol[T_co]):
    """Where the bytes of one file go.

    Raises of all its calls: `DownloadError` that says what to do.
    """

    def restart(self) -> None:
        """Forget all bytes so far: the file comes again from its beginning."""
        ...

    def write(self, data: bytes) -> None:
        """Append bytes."""
        ...

    def commit(self, suffix: str) -> T_co:
        """The file is complete; its content calls for this suffix."""
        ...

    def discard(self) -> None:
        """Leave nothing behind, but for a file that is complete."""
        ...


class InMemory:
    """A file as bytes."""

    def __init__(self) -> None:
        self._data = bytearray()

    def restart(self) -> None:
        """Forget all bytes so far."""
        self._data.clear()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._data += data

    def commit(self, suffix: str) -> bytes:  # noqa: ARG002  # bytes have no name
        """The whole."""
        return bytes(self._data)

    def discard(self) -> None:
        """Give the memory back."""
        self._data.clear()


class PartFile:
    """A file that exists under a hidden name until it is complete."""

    def __init__(self, directory: Path, name: Callable[[str], str]) -> None:
        """`name` makes the file's name from the suffix that its content calls for."""
        self._directory = directory
        self._name = name
        # A name that nobody can foresee, so that no link can lie in wait there; opened only if it is new.
        self._path = directory / f".{secrets.token_hex(8)}.part"
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._size = 0

    def restart(self) -> None:
        """Forget all bytes so far."""
        with self._telling():
            self._hash, self._size = hashlib.sha256(), 0
            if self._file is not None:
                self._file.seek(0)
                self._file.truncate()

    def write(self, data: bytes) -> None:
        """Append bytes; the first ones make the directory and the file."""
        with self._telling():
            self._opened().write(data)
            self._hash.update(data)
            self._size += len(data)

    def commit(self, suffix: str) -> SavedFile:
        """Give the file its name; what had it is replaced, and a link of that name is not followed."""
        with self._telling():
            with self._opened() as file:
                file.flush()
                # Worth its milliseconds, on a thread that nobody waits for: without it a loss of power can leave a
                # file of the right name and no content, which a journal or a user takes for saved until the service
                # has deleted the original. The directory is not synced: a name that got lost is seen to be missing.
                os.fsync(file.fileno())
            final = self._directory / self._name(suffix)
            os.replace(self._path, final)  # noqa: PTH105  # atomic on one file system
            return SavedFile(path=final, sha256=self._hash.hexdigest(), size=self._size)

    def discard(self) -> None:
        """Remove the hidden file."""
        if self._file is None:
            return
        with suppress(OSError):  # a full disk may refuse the flush; the file goes anyway
            self._file.close()
        with self._telling():
            self._path.unlink(missing_ok=True)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb")
        return self._file

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte, or that cannot be encoded
            advice = _ADVICE.get(getattr(error, "errno", None) or 0, "try another directory")
            raise DownloadError(
                f"The file cannot be saved in {str(self._directory)!r}: {advice}",
                cause=f"{type(error).__name__}: {error}",
            ) from error


class Arrival(Generic[T]):
    """One file as its bytes arrive: checked, handed to its sink, in the end kept or rejected.

    Blocking, for worker threads. A job that already runs when the file is dropped may come after the drop; it finds
    that the file is no longer wanted.
    """

    def __init__(self, sink: Sink[T]) -> None:
        self._sink = sink
        self._content = Content()
        self._lock = Lock()
        self._restarting = False
        self._dropped = False

    def restart(self) -> None:
        """The next bytes are the first. Does not block: the sink hears of it in the thread."""
        self._restarting = True

    def add(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            DownloadError: They cannot be saved.
        """
        with self._lock:
            self._add(data)

    def finish(self, data: bytes, complaint: Callable[[Content], str | None]) -> T:
        """Take the last bytes and return what the sink makes of the file.

        Raises:
            DownloadError: There is a complaint, or the file cannot be saved.
        """
        with self._lock:
            self._add(data)
            if (sentence := complaint(self._content)) is not None:
                raise DownloadError(sentence, transient=True)
            return self._sink.commit(self._content.suffix)

    def drop(self) -> None:
        """Leave nothing behind.

        Raises:
            DownloadError: Something is left behind.
        """
        with self._lock:
            self._dropped = True
            self._sink.discard()

    def _add(self, data: bytes) -> None:
        if self._dropped:
            raise DownloadError("The download was abandoned")
        if self._restarting:
            self._restarting = False
            self._content = Content()
            self._sink.restart()
        self._content.feed(data)
        self._sink.write(data)
