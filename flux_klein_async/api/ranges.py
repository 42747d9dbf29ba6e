"""How a broken transfer is continued: what is asked for, and whether an answer may be joined to what is here.

RFC 9110: 8.8 (validators), 13.1.5 (If-Range), 14 (ranges), 15.3.7 (206). When in doubt an answer is not joined: a file
begun again costs time, one of two versions costs the picture.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Body", "Part", "body_of", "range_headers"]

# A weak one (W/"...") says that two files look alike, not that their bytes are the same. Printable ASCII only: what
# else a server writes there could not be written back.
_STRONG = re.compile(r'"[\x21\x23-\x7e]{0,512}"')
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """What is here of a file: its first `size` bytes, of the version that `etag` names.

    Attributes:
        total: Bytes of the whole file, or None where that was not said.
    """

    size: int
    etag: str
    total: int | None


class Body(NamedTuple):
    """Where the bytes of an answer's body belong.

    Attributes:
        first: Their place in the file.
        end: The place after the last of them, or None where that was not said.
        total: Bytes of the whole file, or None where that was not said.
        etag: The version's name, where the transfer could be continued.
    """

    first: int
    end: int | None
    total: int | None
    etag: str | None


def range_headers(part: Part) -> Mapping[str, str]:
    """Headers that ask for what is missing: the rest of this version, or else another one from its beginning."""
    return {"Range": f"bytes={part.size}-", "If-Range": part.etag}


def body_of(status: int, headers: Mapping[str, str], part: Part | None) -> Body | None:
    """Read the head of a 200 or 206; `part` is what the rest was asked for.

    Returns:
        None where the body can be joined to nothing: it is a part that nobody asked for, or not the one, or maybe
        of another version.
    """
    # Of an encoded body the server counts other bytes than arrive here.
    encoded = headers.get("content-encoding", "identity").strip().lower() not in {"identity", ""}
    found = _STRONG.fullmatch(headers.get("etag", "").strip())
    etag = found[0] if found and not encoded else None
    length = None if encoded else _number(headers.get("content-length", ""))
    if status == 200:
        return Body(0, length, length, etag)
    place = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if part is None or etag != part.etag or place is None:
        return None
    first, last, total = map(int, place.groups())
    if first != part.size or not first <= last < total or part.total not in {None, total}:
        return None
    if length not in {None, last + 1 - first}:
        return None
    return Body(first, last + 1, total, etag)


def _number(text: str) -> int | None:
    return int(text) if _LENGTH.fullmatch(text.strip()) else None
