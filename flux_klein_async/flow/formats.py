"""What the first bytes of a file say of its format. Pure; nothing is decoded."""

from collections.abc import Mapping

__all__ = ["Content", "is_promised", "suffix_of"]

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
