"""One file on its way to disk: all of it under its name, or nothing. Blocking, for worker threads only."""

import os
import re
import secrets
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from flux_klein_async.errors import InvalidInputError

__all__ = ["PartFile", "checked_names", "suffix_of"]

# What some file system of our users' cannot hold, or reads as more than a name.
_BAD_CHARACTERS = re.compile(r'[\x00-\x1f\x7f/\\:<>"|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LONGEST = 255  # bytes, on every common file system

# The first bytes of the formats that models deliver, and where in the file they stand.
_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (8, b"WEBP", ".webp"),
    (0, b"GIF8", ".gif"),
    (4, b"ftypavif", ".avif"),
    (4, b"ftypheic", ".heic"),
    (4, b"ftyp", ".mp4"),
    (0, b"\x1aE\xdf\xa3", ".webm"),
)


def suffix_of(start: bytes) -> str:
    """The suffix that a file's first bytes call for; `.bin` where they are of no known format."""
    return next((suffix for at, mark, suffix in _SIGNATURES if start[at:].startswith(mark)), ".bin")


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


class PartFile:
    """A file that exists under a hidden name until it is complete."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / f".{secrets.token_hex(8)}.part"
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        """Append; the directory and the file are made with the first bytes."""
        self._opened().write(data)

    def commit(self, data: bytes, name: str) -> Path:
        """Append the last bytes and give the file its name, replacing what had it."""
        with self._opened() as file:
            file.write(data)
        final = self._directory / name
        os.replace(self._path, final)  # noqa: PTH105  # atomic on one file system
        return final

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb")
        return self._file

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._file is not None:
            with suppress(OSError):  # a full disk may refuse the flush; the file goes anyway
                self._file.close()
            self._path.unlink(missing_ok=True)
