"""Local files of an input: checked by their content, and put into the body of a submit as data URIs.

Each file is read in pieces, once for a body, and once before that where a journal has to recognise the item. All of it
blocks, so it runs in worker threads; between two pieces, which take less than a millisecond, the event loop runs.
"""

import errno
import hashlib
import io
import os
import stat
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

from flux_klein_async.api.requests import InputBody, InputFile
from flux_klein_async.errors import InvalidInputError
from flux_klein_async.operations.files import MEDIA_TYPES, suffix_of
from flux_klein_async.options import Limits
from flux_klein_async.paths import user_path
from flux_klein_async.text import shown

__all__ = ["check_files", "digest_files", "read_body"]

_PIECE: Final = 192 * 1024  # bytes; divisible by 3, so that the pieces in base64 add up to the whole
_LONGEST_PATH: Final = 100  # characters of a path in a message
_KNOWN: Final = ", ".join(suffix[1:].upper() for suffix in MEDIA_TYPES)
_PROBLEMS: Final = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "does not exist",
    errno.EISDIR: "is a directory; name one of its files",
    errno.ELOOP: "is a link that leads back to itself; name the file itself",
    errno.ENAMETOOLONG: "has a name that is too long",
    errno.EACCES: "may not be read; give yourself the right to, or name a copy",
    errno.EPERM: "may not be read; give yourself the right to, or name a copy",
}


def check_files(body: InputBody, limits: Limits) -> None:
    """Check what can be known of each file without reading it to its end.

    Raises:
        InvalidInputError: One cannot be sent.
    """
    _take(body, limits, lambda *_: None)


def digest_files(body: InputBody, limits: Limits) -> None:
    """Read each file to its end, and note its size and digest.

    Raises:
        InvalidInputError: One cannot be sent.
    """
    _take(body, limits, lambda found, _: found.read(lambda _: None))


def read_body(body: InputBody, limits: Limits) -> bytes:
    """Read each file, and return the JSON with all of them as data URIs.

    Raises:
        InvalidInputError: One cannot be sent.
    """
    first, *rest = body.template.split(b"\0")
    written = io.BytesIO()  # gives its bytes without copying them
    written.write(first)

    def write(found: "_Found", number: int) -> None:
        written.write(found.prefix)
        found.read(lambda piece: written.write(b64encode(piece)))
        written.write(b'"' + rest[number])

    _take(body, limits, write)
    return written.getvalue()


def _take(body: InputBody, limits: Limits, use: Callable[["_Found", int], None]) -> None:
    """Open the files one after the other; `use` gets each with its number."""
    size = len(body.template) - len(body.files)
    for number, (name, file) in enumerate(body.files):
        file.path = user_path(file.path)
        with _explained(name, file), open(file.path, "rb", opener=_opened) as stream:  # Path.open takes no opener
            found = _Found.of(name, file, stream, limits)
            size += len(found.prefix) + -(-found.size // 3) * 4 + 1
            if size > limits.max_request_bytes:
                found.refuse(
                    f"makes the request larger than {limits.max_request_bytes:,} bytes; "
                    "give fewer or smaller files (in Python, Limits.max_request_bytes)"
                )
            use(found, number)


class _Found(NamedTuple):
    """An open file that may be sent, as far as its first piece tells."""

    name: str
    file: InputFile
    stream: BinaryIO
    before: os.stat_result
    start: bytes
    media_type: str

    @classmethod
    def of(cls, name: str, file: InputFile, stream: BinaryIO, limits: Limits) -> "_Found":
        """Read the first piece."""
        start = stream.read(_PIECE)
        media_type = MEDIA_TYPES.get(suffix_of(start), "")
        found = cls(name, file, stream, os.fstat(stream.fileno()), start, media_type)
        if not start:
            found.refuse("is empty; name one with content")
        if not media_type:
            found.refuse(f"is of no known type; convert it to one of {_KNOWN}")
        is_picture = media_type.startswith("image/")
        option = "max_picture_bytes" if is_picture else "max_input_file_bytes"
        most = getattr(limits, option)
        if found.size > most:
            what = "a picture" if is_picture else "a file"
            found.refuse(
                f"has {found.size:,} bytes, and {what} may have {most:,}; make it smaller (in Python, Limits.{option})"
            )
        return found

    @property
    def size(self) -> int:
        return self.before.st_size

    @property
    def prefix(self) -> bytes:
        return f'"data:{self.media_type};base64,'.encode()

    def read(self, use: Callable[[bytes], Any]) -> None:
        """Give each piece to `use`, and note what was read, if the file stays as it is meanwhile."""
        digest, size, piece = hashlib.sha256(), 0, self.start
        while piece and size <= self.size:
            digest.update(piece)
            use(piece)
            size += len(piece)
            piece = self.stream.read(_PIECE)
        after = os.fstat(self.stream.fileno())
        same = size == self.size and (after.st_size, after.st_mtime_ns) == (self.size, self.before.st_mtime_ns)
        if not same or self.file.sha256 not in {None, digest.hexdigest()}:
            self.refuse("changed while it was used; name a copy that stays as it is")
        self.file.path = self.file.path.absolute()
        self.file.size, self.file.sha256 = size, digest.hexdigest()

    def refuse(self, problem: str) -> NoReturn:
        raise _refusal(self.name, self.file, problem)


def _refusal(name: str, file: InputFile, problem: str) -> InvalidInputError:
    name, path = shown(name[-_LONGEST_PATH:]), str(file.path)
    path = path if len(path) <= _LONGEST_PATH else f"...{path[3 - _LONGEST_PATH :]}"
    sentence = f"the file {path!r} {problem}"
    return InvalidInputError(f"{name}: {sentence}", fields={name: sentence})


@contextmanager
def _explained(name: str, file: InputFile) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = _PROBLEMS.get(error.errno or 0, f"cannot be read: {error.strerror or type(error).__name__}")
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            problem += _where(file)
        raise _refusal(name, file, problem) from None
    except InvalidInputError:
        raise
    except ValueError:  # a NUL byte, or what the file system's encoding does not have
        raise _refusal(name, file, "has a name that no file can have") from None


def _where(file: InputFile) -> str:
    if {"https:", "http:"} & set(file.path.parts):
        return "; a URL is given as text, not as a path"
    if file.path.is_absolute():
        return "; name one that does"
    return "; a relative path begins at the working directory"


def _opened(path: str, flags: int) -> int:
    """Open a plain file, or what a link to one points to; never a pipe or a device, which may block or act."""
    if stat.S_ISDIR(mode := os.stat(path).st_mode):  # noqa: PTH116  # a path as open() has it
        raise IsADirectoryError(errno.EISDIR, "")
    if stat.S_ISREG(mode):
        # Not blocking, where another thing has taken its place by now (Windows has no such flag).
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise OSError(errno.ENXIO, "it is no plain file; save its content in one, and name that")
