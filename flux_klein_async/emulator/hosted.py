"""A hosted file's answer: the whole, the part that was asked for, or a refusal of the part.

Pure. Follows RFC 9110, 13.1.5 and 14, for one range of bytes; whoever asks for several gets the whole, as a server
may answer. Must not know where the file comes from.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from .answers import Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["etag_of", "hosted"]

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def etag_of(data: bytes) -> str:
    """Make a strong validator: the same for the same bytes alone."""
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def hosted(data: bytes, content_type: str, etag: str, asked: Mapping[str, str]) -> Reply:
    """Answer a GET; the names in `asked`, its headers, are in lower case."""
    headers = {"Content-Type": content_type, "ETag": etag, "Accept-Ranges": "bytes"}
    wanted = _RANGE.fullmatch(asked.get("range", ""))
    if wanted is None or wanted[0] == "bytes=-" or asked.get("if-range", etag) != etag:
        return Reply(200, data, headers)
    first, last = _bounds(wanted[1], wanted[2], len(data))
    if wanted[1] and wanted[2] and int(wanted[2]) < int(wanted[1]):
        return Reply(200, data, headers)  # no range at all, and so not there
    if first >= len(data):
        return Reply(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    return Reply(206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"})


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:  # the last so many bytes
        return (max(0, size - int(last)), size - 1) if int(last) else (size, size)
    return int(first), min(int(last), size - 1) if last else size - 1
