"""The `Retry-After` header (RFC 9110, 10.2.3).

The wall clock is read only if the header is an HTTP date and the answer has no `Date`.
"""

import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

__all__ = ["CAP", "retry_after"]

CAP = 120.0  # seconds; longer values are cut to this
_ABSURD = 86_400.0  # seconds; more than a day is a mistake and is ignored


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, at most `CAP`; None if the header is missing, unreadable, negative or absurd.

    A date is measured against the answer's own `Date`, so the server's clock need not be right.
    """
    text = headers.get("retry-after", "").strip()
    # float() alone would also read "nan", "1_0" and foreign digits.
    if text.isascii() and text.replace(".", "", 1).isdigit() and len(text) <= 20:
        seconds = float(text)
    elif (then := _timestamp(text)) is not None:
        now = _timestamp(headers.get("date", ""))
        seconds = then - (time.time() if now is None else now)
    else:
        return None
    return min(seconds, CAP) if 0 <= seconds <= _ABSURD else None


def _timestamp(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text.strip())
        # The obsolete forms have no zone; all dates of HTTP are in GMT (RFC 9110, 5.6.7).
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return None
