"""How long the service asks to wait: obeyed if it makes sense. `tests/fuzz/test_retry_after.py` tries any text."""

import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from flux_klein_async.api.responses import CAP, retry_after

SENT = "Sun, 06 Nov 1994 08:49:07 GMT"


@pytest.fixture
def _far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX+5")  # POSIX: five hours behind GMT, no summer time
        time.tzset()
        yield
    time.tzset()


def test_reads_seconds() -> None:
    read = {"0": 0, "7": 7, "007": 7, " 7 ": 7, "1.5": 1.5, "120": 120, "121": CAP, "3600": CAP, "86400": CAP}
    for text, seconds in read.items():
        assert retry_after({"retry-after": text}, 503) == seconds, text
    for text in (
        *("86401", "9" * 20, "9" * 400, "-1", "-0.5"),  # absurd or negative
        *("", " ", ".", "1.2.3", "+5", "1e3", "1_0", "0x10", "5s", "5, 6", "nan", "inf", "-inf", "soon"),
        *("\u0663", "\uff15", "\u00b2"),  # digits of other scripts
    ):
        assert retry_after({"retry-after": text}, 503) is None, text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 30.0),
        ("Sun, 06 Nov 1994 09:49:37 +0100", 30.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 30.0),
        ("Sun, 06 Nov 1994 08:51:07 GMT", 120.0),
        ("Sun, 06 Nov 1994 20:49:07 GMT", CAP),
        (SENT, 0.0),
        # already past
        ("Sun, 06 Nov 1994 08:49:06 GMT", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
        # more than a day is a mistake
        ("Tue, 08 Nov 1994 08:49:07 GMT", None),
        ("Fri, 06 Nov 2009 08:49:07 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        # unreadable
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 25:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37 +99999999", None),
        ("1994-11-06T08:49:37Z", None),
    ],
)
def test_reads_a_date_relative_to_the_answers_own(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text, "date": SENT}, 503) == seconds


@pytest.mark.usefixtures("_far_from_greenwich")
@pytest.mark.parametrize("text", ["Sun Nov  6 08:49:37 1994", "Sun, 06 Nov 1994 08:49:37"])
def test_reads_a_date_without_a_zone_as_gmt_in_any_time_zone(text: str) -> None:
    assert retry_after({"retry-after": text, "date": SENT}, 503) == 30.0


@pytest.mark.parametrize("headers", [{}, {"date": "yesterday"}])
def test_reads_a_date_by_the_wall_clock_if_the_answer_has_none(headers: dict[str, str]) -> None:
    in_a_minute = formatdate(time.time() + 60, usegmt=True)
    assert retry_after({"retry-after": in_a_minute, **headers}, 503) == pytest.approx(60, abs=5)
    assert retry_after({"retry-after": SENT, **headers}, 503) is None


@pytest.mark.parametrize("headers", [{}, {"date": SENT}, {"retry-afterwards": "5"}])
def test_is_none_without_the_header(headers: dict[str, str]) -> None:
    assert retry_after(headers, 429) is None


DATED = {"date": SENT}  # 784111747 s of unix time


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        *[({"retry-after-ms": text}, seconds) for text, seconds in (("1500", 1.5), ("0", 0.0), ("9999999", CAP))],
        *[({"retry-after-ms": text}, None) for text in ("-1", "86400001", "soon", "", "nan")],
        *[({"ratelimit-reset": text}, seconds) for text, seconds in (("7", 7.0), ("0", 0.0), ("3600", CAP))],
        *[({"ratelimit-reset": text, **DATED}, seconds) for text, seconds in (("784111777", 30.0), ("784190000", CAP))],
        # past, too far away, in milliseconds, several limits
        *[({"ratelimit-reset": text, **DATED}, None) for text in ("784111746", "784211747", "784111777000", "7, 9")],
        # Retry-After alone counts where it is there, whatever it says; then the milliseconds.
        ({"retry-after": "7", "retry-after-ms": "9000", "ratelimit-reset": "9"}, 7.0),
        ({"retry-after": "soon", "retry-after-ms": "9000", "ratelimit-reset": "9"}, None),
        ({"retry-after-ms": "9000", "ratelimit-reset": "7"}, 9.0),
    ],
)
def test_reads_two_other_headers_where_retry_after_is_not_there(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, 429) == seconds


def test_when_a_limit_is_reset_holds_nothing_but_what_the_limit_refused() -> None:
    assert {status: retry_after({"ratelimit-reset": "7"}, status) for status in (404, 429, 503)} == {
        404: None,
        429: 7.0,
        503: None,
    }
    assert retry_after({"retry-after-ms": "7000"}, 503) == 7.0
