"""What a file's bytes say of its format, and whether it is all there. Pure.

Looks at bytes as they pass and keeps a bounded head and tail of them. It tells a file that was cut off from a whole
one, not a good picture from a bad one: that would take a decoder.
"""

from collections.abc import Callable, Mapping

__all__ = ["Inspection", "is_promised", "suffix_of"]

_START = 16  # bytes that tell a format
_HEAD = 1024  # of a page of HTML, blanks and comments may come first
_TAIL = 1024  # in which a JPEG must end; what some writers put after its end is short
# Of a file made of millions of tiny blocks no more are looked at: it keeps a worker busy and tells nothing.
_MOST_BLOCKS = 100_000

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
_MADE_OF_BOXES = frozenset({".avif", ".heic", ".mp4"})  # ISO 14496-12
_MADE_OF_BLOCKS = _MADE_OF_BOXES | {".png"}

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


class Inspection:
    """Is fed a file from its first byte on, in pieces of any size, and says in the end what is wrong with it.

    Attributes:
        size: Bytes seen so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._head = b""
        self._tail = b""
        self._blocks: _Blocks | None = None

    @property
    def suffix(self) -> str:
        """The suffix that the content calls for, `.bin` where nothing is known of it."""
        return suffix_of(self._head)

    def feed(self, data: bytes) -> None:
        """Look at the next bytes."""
        self.size += len(data)
        self._tail = (self._tail + data[-_TAIL:])[-_TAIL:]
        if self._blocks is not None:
            self._blocks.feed(data)
        known = len(self._head)
        if known < _HEAD:
            self._head += data[: _HEAD - known]
        if known < _START <= len(self._head):
            self._blocks = _blocks_of(self.suffix)
            if self._blocks is not None:
                self._blocks.feed(self._head[:known] + data)

    def complaint(self, headers: Mapping[str, str], url: str) -> str | None:
        """What speaks against the file, as a sentence; None if nothing does.

        Args:
            headers: Of the answer that brought it.
            url: Where the service said that it is.
        """
        if not self.size:
            return "The file is empty"
        suffix = self.suffix
        if suffix != ".bin":
            return (
                None if self._whole(suffix) else "The file is incomplete: its own format says that more belongs to it"
            )
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if self._is_page(content_type) and _suffix_in(url) not in {"html", "htm"}:
            return "A web page came in place of the file"
        if is_promised(content_type, url):
            return "What came is no picture or film of a known format, though one was promised"
        return None

    def _is_page(self, content_type: str) -> bool:
        start = self._head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        return content_type in _PAGE_TYPES or start.startswith(_PAGE_STARTS)

    def _whole(self, suffix: str) -> bool:
        if suffix == ".jpg":
            return b"\xff\xd9" in self._tail
        if suffix == ".webp":  # RIFF: the bytes that follow its own eight
            return int.from_bytes(self._head[4:8], "little") + 8 <= self.size
        if self._blocks is not None:
            return self._blocks.whole
        return suffix not in _MADE_OF_BLOCKS  # too short to have one


def _blocks_of(suffix: str) -> "_Blocks | None":
    if suffix == ".png":
        return _Blocks(_png_chunk, skip=8, needs_last=True)
    return _Blocks(_box) if suffix in _MADE_OF_BOXES else None


_Step = tuple[int, bool]  # bytes of the block after its header (or of the header still to come), and is it the last?


def _png_chunk(header: bytes) -> _Step | None:
    """PNG, 5.3: length of the data, type, data, four bytes of checksum."""
    return int.from_bytes(header[:4]) + 4, header[4:8] == b"IEND"


def _box(header: bytes) -> _Step | None:
    """ISO 14496-12, 4.2: length of the whole box, type; length 1 means a longer number after the type."""
    size = int.from_bytes(header[:4])
    if size == 1:
        return (int.from_bytes(header[8:]) - 16, False) if len(header) == 16 else None
    # 0 means "to the end of the file", whatever comes.
    return (0, True) if size == 0 else (size - 8, False)


class _Blocks:
    """Steps from block to block through a file in which each says its length before its data."""

    def __init__(self, read: Callable[[bytes], _Step | None], *, skip: int = 0, needs_last: bool = False) -> None:
        self._read = read
        self._skip = skip
        self._needs_last = needs_last
        self._header = b""
        self._want = 8
        self._count = 0
        self._last = False
        self._over = False  # what follows is not looked at

    @property
    def whole(self) -> bool:
        """Whether the bytes so far can be all."""
        return self._over or not (self._needs_last or self._skip or self._header)

    def feed(self, data: bytes) -> None:
        """Go on with the next bytes."""
        at, end = 0, len(data)
        while at < end and not self._over:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
                at += step
                self._over = self._last and not self._skip
                continue
            taken = data[at : at + self._want - len(self._header)]
            self._header += taken
            at += len(taken)
            if len(self._header) == self._want:
                self._enter()

    def _enter(self) -> None:
        step = self._read(self._header)
        if step is None:
            self._want = 16
            return
        self._skip, self._last = step
        self._want, self._header, self._count = 8, b"", self._count + 1
        # A block shorter than its header is damage, not a file cut short.
        self._over = self._skip < 0 or (self._last and not self._skip) or self._count == _MOST_BLOCKS
