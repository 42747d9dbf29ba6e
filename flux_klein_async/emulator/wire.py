"""Answers as bytes.

Pure. Must not know when they are sent, nor what they mean.
"""

from __future__ import annotations

import json
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["body_and_type", "head", "response"]

_encode = json.JSONEncoder(separators=(",", ":")).encode
# Such answers end with their head, whatever their headers say.
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


def body_and_type(body: Any) -> tuple[bytes, str]:
    """Write a body down: bytes and text as they are, everything else as JSON."""
    if isinstance(body, bytes):
        return body, "application/octet-stream"
    if isinstance(body, str):
        return body.encode(), "text/html; charset=utf-8"
    return _encode(body).encode(), "application/json"


def head(
    status: int, headers: Mapping[str, str], content_type: str, length: int | None, wall: float, *, keep: bool
) -> bytes:
    """Write the status line and the headers; those given win. `length` None: the body comes in chunks."""
    lines = [
        f"HTTP/1.1 {status} {_phrase(status)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    given = {name.lower() for name in headers}
    if "content-type" not in given:
        lines.append(f"Content-Type: {content_type}")
    if length is None:
        lines.append("Transfer-Encoding: chunked")
    elif "content-length" not in given and "transfer-encoding" not in given:
        lines.append(f"Content-Length: {length}")
    if "date" not in given:
        lines.append(f"Date: {_date(int(wall))}")
    if not keep:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def response(status: int, headers: Mapping[str, str], body: Any, wall: float, *, keep: bool) -> bytes:
    """Write a whole answer."""
    data, content_type = (b"", "text/plain") if status in _BODILESS else body_and_type(body)
    return head(status, headers, content_type, len(data), wall, keep=keep) + data


@lru_cache(maxsize=256)
def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


@lru_cache(maxsize=16)
def _date(wall: int) -> str:
    return formatdate(wall, usegmt=True)
