"""How long the service asks to be left alone: the `Retry-After` header (RFC 9110, 10.2.3).

The only place that reads a wall clock, and only where an HTTP date comes without the server's own `Date`.
"""

import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

__all__ = ["CAP", "retry_after"]

CAP = 120.0  # seconds; longer wishes are cut to this
_ABSURD = 86_400.0  # seconds; a wish for more than a day is a mistake and is ignored


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, at most `CAP`; None where the header is missing, unreadable, negative or absurd.

    Both forms are read: seconds and HTTP date. A date is measured against the answer's own `Date`, so that a
    server whose clock is years off still says what it means.
    """
    text = headers.get("retry-after")
    if text is None:
        return None
    seconds = _number(text)
    if seconds is None:
        seconds = _until(text, headers.get("date"))
    if seconds is None or not 0 <= seconds <= _ABSURD:
        return None
    return min(seconds, CAP)


def _number(text: str) -> float | None:
    text = text.strip()
    # float() also reads "nan", "1_0" and foreign digits: only what a header may hold counts.
    if not text.isascii() or not text.replace(".", "", 1).isdigit() or len(text) > 20:
        return None
    return float(text)


def _until(text: str, date: str | None) -> float | None:
    then = _timestamp(text)
    now = _timestamp(date) if date else None
    if then is None:
        return None
    return then - (now if now is not None else time.time())


def _timestamp(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text.strip())
        # The obsolete forms carry no zone; all of HTTP's dates are in GMT (RFC 9110, 5.6.7).
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return None
