"""The names of saved files: plain ones, given or made of a text, with the suffix of their content."""

import re
import unicodedata
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Final

from flux_klein_async.errors import DownloadError, InvalidInputError

__all__ = [
    "LONGEST",
    "checked_names",
    "checked_stem",
    "default_names",
    "looks_like_file",
    "safe_stem",
    "slug",
    "with_suffix",
]

# Some file systems cannot store these, or read them as more than a name.
_BAD_CHARACTERS: Final = re.compile(r'[\x00-\x1f\x7f/\\:<>"|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)
LONGEST: Final = 255  # bytes, on every common file system
_LONGEST_STEM: Final = 200  # bytes; a number and a suffix come behind it
_LONGEST_SLUG: Final = 40  # characters
_SUFFIXES: Final = frozenset(  # of the formats that models deliver, and a few more
    {"png", "jpg", "jpeg", "webp", "gif", "avif", "heic", "tif", "tiff", "bmp", "mp4", "webm", "mov", "avi"}
)
_SAME: Final = {"jpeg": "jpg", "tiff": "tif"}


def looks_like_file(directory: Path) -> bool:
    """Whether a directory has the name of a picture or video, and does not exist: a file was meant."""
    return directory.suffix[1:].lower() in _SUFFIXES and not directory.is_dir()


def checked_names(names: Sequence[str], count: int) -> list[str]:
    """The names, if each is one plain file name and there is one for each of `count` files.

    Raises:
        InvalidInputError: Too few, too many, the same name twice, or more than a name.
    """
    if isinstance(names, str) or not isinstance(names, Sized) or len(names) != count:
        raise InvalidInputError(f"names must be a list of {count} file names, one for each file")
    for name in names:
        if problem := _problem(name):
            if not isinstance(name, str):
                raise InvalidInputError(f"Not a plain file name: {name!r:.80} {problem}")
            instead = safe_stem(name[:LONGEST])[:80] or "cat.png"
            raise InvalidInputError(f"Not a plain file name: {name[:80]!r} {problem}; write one such as {instead!r}")
    # Some file systems ignore case, and the ways to compose a letter.
    if len({unicodedata.normalize("NFC", name).casefold() for name in names}) != count:
        raise InvalidInputError("The same file name was given twice")
    return list(names)


def _problem(name: object) -> str | None:
    """Why this is no plain file name on every common system, or None if it is one."""
    if not isinstance(name, str):
        return "is no text: write str(...)"
    if bad := _BAD_CHARACTERS.search(name):
        return "names a folder" if bad[0] in "/\\" else f"has the character {bad[0]!r}, which some systems refuse"
    if _RESERVED.fullmatch(name):
        return "is reserved on Windows"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "is no Unicode text"
    if not 0 < length <= LONGEST:
        return f"has more than {LONGEST} bytes" if length else "is empty"
    return "ends in a dot or a space, which some systems drop" if name[-1] in ". " else None


def checked_stem(name: object) -> str:
    """The name of files without number and suffix, as `to_name` gave it, if it is one plain file name.

    Raises:
        InvalidInputError: It is not, or there is no room for a suffix.
    """
    try:
        [stem] = checked_names([name], 1)  # type: ignore[list-item]
    except InvalidInputError as error:
        raise InvalidInputError(f"to_name: {error}") from None
    if len(stem.encode()) > _LONGEST_STEM:
        raise InvalidInputError(f"to_name: A file name of more than {_LONGEST_STEM} bytes: {stem[:80]!r}")
    return stem


def safe_stem(text: str) -> str:
    """A file name, without number and suffix, made of any text; empty if nothing is left of it.

    A suffix of a picture is dropped: the content decides about it.
    """
    text = unicodedata.normalize("NFC", text)
    stem, dot, suffix = text.rpartition(".")
    text = stem if dot and suffix.lower() in _SUFFIXES else text
    # Letters, marks, digits and a little more. A leading dot would hide the file; commands read a leading dash.
    kept = "".join(
        each if each in " -_.,+=@()" or unicodedata.category(each)[0] in "LMN" else "_" for each in text
    ).strip()
    return _fitting(re.sub(r"^[-. ]+", "_", kept)) if any(map(str.isalnum, kept)) else ""


def slug(text: str) -> str:
    """The first words of a text as a file name, such as `a-snow-leopard`; empty if there are none."""
    text = unicodedata.normalize("NFKC", text[: 4 * _LONGEST_SLUG]).lower()
    words = "".join(each if unicodedata.category(each)[0] in "LMN" else " " for each in text).split()
    kept = ""
    for word in words:
        longer = f"{kept}-{word}" if kept else word
        if len(longer) > _LONGEST_SLUG:
            break
        kept = longer
    return _fitting(kept or "".join(words[:1])[:_LONGEST_SLUG])


def _fitting(stem: str) -> str:
    """A name that is short enough, ends as a name may, and is not reserved."""
    stem = stem.encode()[:_LONGEST_STEM].decode(errors="ignore").rstrip(". ")
    return f"_{stem}" if _RESERVED.fullmatch(stem) else stem


def default_names(request_id: str, count: int) -> list[str]:
    """The names of the files of a request: its id, and a number from the second on."""
    numbers = ["", *(f"-{number}" for number in range(2, count + 1))]
    try:
        return checked_names([request_id + number for number in numbers], count)
    except InvalidInputError:  # some file systems reserve a name such as "nul"; a path is refused again
        if not request_id:
            raise
        return checked_names([f"request-{request_id}{number}" for number in numbers], count)


def with_suffix(name: str, suffix: str, *, exact: bool) -> tuple[str, str]:
    """A name without its suffix, and the suffix of its content: as the name has it, if it does.

    Raises:
        DownloadError: An exact name has the suffix of another format.
    """
    stem, dot, given = name.rpartition(".")
    known = given.lower() if dot else ""
    if suffix == f".{_SAME.get(known, known)}":
        return stem, f".{given}"
    if not exact:
        return name, suffix
    if suffix == ".bin":
        return name, ""
    if known in _SUFFIXES:
        raise DownloadError(f"names: {name[:80]!r} would hold a file of another format; name it {stem[:80] + suffix!r}")
    return name, suffix
