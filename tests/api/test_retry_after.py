"""How long the service asks to be left alone: obeyed where it makes sense, ignored where it does not."""

import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.api.retry_after import CAP, retry_after

SENT = "Sun, 06 Nov 1994 08:49:07 GMT"


@pytest.fixture
def _far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX+5")  # POSIX: five hours behind GMT, no summer time
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("007", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("120", 120.0),
        # capped
        ("121", CAP),
        ("3600", CAP),
        ("86400", CAP),
        # absurd
        ("86401", None),
        ("9" * 20, None),
        ("9" * 400, None),
        # negative
        ("-1", None),
        ("-0.5", None),
        # unreadable
        ("", None),
        (" ", None),
        (".", None),
        ("1.2.3", None),
        ("+5", None),
        ("1e3", None),
        ("1_0", None),
        ("0x10", None),
        ("5s", None),
        ("5, 6", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("soon", None),
        ("\u0663", None),
        ("\uff15", None),
        ("\u00b2", None),
    ],
)
def test_reads_seconds(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 30.0),
        ("Sun, 06 Nov 1994 09:49:37 +0100", 30.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 30.0),
        ("Sun, 06 Nov 1994 08:51:07 GMT", 120.0),
        ("Sun, 06 Nov 1994 20:49:07 GMT", CAP),
        (SENT, 0.0),
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
    assert retry_after({"retry-after": text, "date": SENT}) == seconds


@pytest.mark.parametrize("text", ["Sun, 06 Nov 1994 08:49:06 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_ignores_a_date_that_has_passed_when_the_answer_was_sent(text: str) -> None:
    assert retry_after({"retry-after": text, "date": SENT}) is None


@pytest.mark.usefixtures("_far_from_greenwich")
@pytest.mark.parametrize("text", ["Sun Nov  6 08:49:37 1994", "Sun, 06 Nov 1994 08:49:37"])
def test_reads_a_date_without_a_zone_as_gmt_wherever_it_runs(text: str) -> None:
    assert retry_after({"retry-after": text, "date": SENT}) == 30.0


@pytest.mark.parametrize("headers", [{}, {"date": "yesterday"}])
def test_reads_a_date_by_the_wall_clock_where_the_answer_has_none(headers: dict[str, str]) -> None:
    wish = formatdate(time.time() + 60, usegmt=True)
    assert retry_after({"retry-after": wish, **headers}) == pytest.approx(60, abs=5)


def test_ignores_a_date_that_has_passed_by_the_wall_clock() -> None:
    assert retry_after({"retry-after": SENT}) is None


@pytest.mark.parametrize("headers", [{}, {"date": SENT}, {"retry-afterwards": "5"}])
def test_without_the_header_there_is_no_wish(headers: dict[str, str]) -> None:
    assert retry_after(headers) is None


words = st.text() | st.text("0123456789.-+ :,GMTSunNov") | st.floats().map(str) | st.integers().map(str)
dates = st.integers(-(10**11), 10**12).flatmap(
    lambda seconds: st.sampled_from([f"{seconds}", *([formatdate(seconds, usegmt=True)] if _dated(seconds) else [])])
)


def _dated(seconds: int) -> bool:
    return -62_000_000_000 < seconds < 250_000_000_000


@given(words | dates, st.none() | words | dates)
def test_the_answer_is_always_none_or_at_most_the_cap(text: str, date: str | None) -> None:
    headers = {"retry-after": text} if date is None else {"retry-after": text, "date": date}
    seconds = retry_after(headers)
    assert seconds is None or 0 <= seconds <= CAP
