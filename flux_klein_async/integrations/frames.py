"""Server-sent events as bytes (WHATWG HTML, "Server-sent events", the event stream format). Pure."""

import json
from collections.abc import Mapping
from typing import Any

from flux_klein_async.integrations.answers import ErrorAnswer

__all__ = ["HEADERS", "KEEP_ALIVE", "error_frame", "frame"]

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would otherwise collect the events until its buffer is full
}

KEEP_ALIVE = b": still here\n\n"
"""A comment: readers skip it, and whoever is between here and the reader sees that the connection lives."""


def frame(event: str, data: Mapping[str, Any]) -> bytes:
    """One event whose data is one line of JSON: a line break inside of it is escaped there."""
    return f"event: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def error_frame(answer: ErrorAnswer) -> bytes:
    """An error as an event: the status and the headers have left, so that it says itself what they would have said."""
    facts = {"status": answer.status, **answer.body}
    if (seconds := answer.headers.get("Retry-After")) is not None:
        facts["retry_after"] = int(seconds)
    return frame("error", facts)
