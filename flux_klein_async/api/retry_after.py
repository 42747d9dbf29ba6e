"""How long the service asks to wait: `Retry-After` (RFC 9110, 10.2.3), or where it is not there, two others.

`retry-after-ms` (milliseconds; seen at services of this kind) says the same. `RateLimit-Reset` (seconds, by the drafts
of the RateLimit header fields; or the unix time in seconds, as some services write it) comes with any answer: it counts
only at a 429. The wall clock is read only if a header is an instant and the answer has no `Date`.
"""

import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

__all__ = ["CAP", "retry_after"]

CAP = 120.0  # seconds; longer values are cut to this
_ABSURD = 86_400.0  # seconds; more than a day is a mistake and is ignored


def retry_after(headers: Mapping[str, str], status: int) -> float | None:
    """Seconds to wait, at most `CAP`; None if no header asks for it, or it is unreadable, negative or absurd.

    An instant is measured against the answer's own `Date`, so the server's clock need not be right.
    """
    if "retry-after" in headers:
        text = headers["retry-after"].strip()
        seconds = _number(text)
        if seconds is None and (then := _timestamp(text)) is not None:
            seconds = then - _now(headers)
    elif "retry-after-ms" in headers:
        milliseconds = _number(headers["retry-after-ms"])
        seconds = None if milliseconds is None else milliseconds / 1000
    else:
        seconds = _number(headers.get("ratelimit-reset", "")) if status == 429 else None
        if seconds is not None and seconds > _ABSURD:  # no duration, but the unix time
            seconds -= _now(headers)
    return min(seconds, CAP) if seconds is not None and 0 <= seconds <= _ABSURD else None


def _number(text: str) -> float | None:
    text = text.strip()
    # float() alone would also read "nan", "1_0" and foreign digits.
    return float(text) if text.isascii() and text.replace(".", "", 1).isdigit() and len(text) <= 20 else None


def _now(headers: Mapping[str, str]) -> float:
    """The wall clock's time, by the answer's own `Date` if it has one."""
    now = _timestamp(headers.get("date", ""))
    return time.time() if now is None else now


def _timestamp(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text.strip())
        # The obsolete forms have no zone; all dates of HTTP are in GMT (RFC 9110, 5.6.7).
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return None
