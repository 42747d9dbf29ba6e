"""What may be joined to bytes that are here: the rest of the same version, and nothing else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.api.ranges import Body, Part, body_of, range_headers

PART = Part(size=40, etag='"v1"', total=100)
UNKNOWN = Part(size=40, etag='"v1"', total=None)
REST = {"etag": '"v1"', "content-range": "bytes 40-99/100", "content-length": "60"}


def test_the_rest_is_asked_for_on_condition_that_the_version_is_the_same() -> None:
    assert range_headers(PART) == {"Range": "bytes=40-", "If-Range": '"v1"'}


@pytest.mark.parametrize("part", [None, PART])
@pytest.mark.parametrize(
    ("headers", "total", "etag"),
    [
        ({}, None, None),
        ({"content-length": "100", "etag": '"v2"'}, 100, '"v2"'),
        ({"content-length": " 100 ", "etag": ' "v2" ', "content-encoding": "identity"}, 100, '"v2"'),
        ({"content-length": "0", "etag": '""', "content-encoding": ""}, 0, '""'),
        # no strong validator
        ({"etag": 'W/"v2"'}, None, None),
        ({"etag": "v2"}, None, None),
        ({"etag": '"v"2"'}, None, None),
        ({"etag": '"v 2"'}, None, None),
        ({"etag": '"v2\udc80"'}, None, None),
        ({"etag": '"' + "x" * 600 + '"'}, None, None),
        ({"last-modified": "Thu, 01 Jan 2026 00:00:00 GMT"}, None, None),
        # other bytes are counted there than arrive here
        ({"content-length": "100", "etag": '"v2"', "content-encoding": "gzip"}, None, None),
        ({"content-length": "100", "etag": '"v2"', "content-encoding": " BR"}, None, None),
        # no length
        ({"content-length": "-1"}, None, None),
        ({"content-length": "1e3"}, None, None),
        ({"content-length": "9" * 5000}, None, None),
        ({"content-length": "٣"}, None, None),
    ],
)
def test_a_whole_file_begins_at_its_beginning_whatever_was_asked(
    part: Part | None, headers: dict[str, str], total: int | None, etag: str | None
) -> None:
    assert body_of(200, headers, part) == Body(0, total, total, etag)


@pytest.mark.parametrize("part", [PART, UNKNOWN])
@pytest.mark.parametrize(
    ("headers", "end"),
    [
        (REST, 100),
        ({**REST, "content-range": "BYTES 40-99/100"}, 100),
        ({"etag": '"v1"', "content-range": "bytes 40-99/100"}, 100),  # in chunks
        ({**REST, "content-range": "bytes 40-49/100", "content-length": "10"}, 50),  # less than asked: a step on
    ],
)
def test_the_rest_is_joined(part: Part, headers: dict[str, str], end: int) -> None:
    assert body_of(206, headers, part) == Body(40, end, 100, '"v1"')


@pytest.mark.parametrize(
    "changed",
    [
        {"etag": '"v2"'},
        {"etag": 'W/"v1"'},
        {"etag": ""},
        {"content-encoding": "gzip"},
        {"content-range": ""},
        {"content-range": "bytes 0-99/100"},
        {"content-range": "bytes 39-99/100"},
        {"content-range": "bytes 41-99/100"},
        {"content-range": "bytes 39-99/100", "content-length": "61"},
        {"content-range": "bytes 41-99/100", "content-length": "59"},
        {"content-range": "bytes 40-99/*"},
        {"content-range": "bytes */100"},
        {"content-range": "bytes 40-99/101"},
        {"content-range": "bytes 40-100/100"},
        {"content-range": "bytes 40-39/100"},
        {"content-range": "bytes 40-99"},
        {"content-range": "lines 40-99/100"},
        {"content-range": "bytes 40-99/100, bytes 0-1/100"},
        {"content-range": "bytes 40-" + "9" * 400 + "/100"},
        {"content-range": "bytes 40-49/100"},  # yet sixty bytes
        {"content-length": "59"},
        {"content-length": "61"},
    ],
)
def test_what_is_not_surely_the_rest_is_joined_to_nothing(changed: dict[str, str]) -> None:
    assert body_of(206, {**REST, **changed}, PART) is None


def test_a_part_that_nobody_asked_for_is_joined_to_nothing() -> None:
    assert body_of(206, REST, None) is None
    assert body_of(206, {**REST, "content-range": "bytes 0-99/100", "content-length": "100"}, None) is None


some = st.text() | st.integers().map(str) | st.sampled_from(['"v1"', "bytes 40-99/100", "100", "gzip"])


@given(
    st.sampled_from([200, 206]),
    st.dictionaries(st.sampled_from(["etag", "content-range", "content-length", "content-encoding"]), some),
    st.sampled_from([None, PART, UNKNOWN]),
)
def test_whatever_the_headers_only_the_same_version_is_joined_at_its_place(
    status: int, headers: dict[str, str], part: Any
) -> None:
    body = body_of(status, headers, part)
    if body is not None and body.first:
        assert (body.first, body.etag, headers["etag"].strip()) == (part.size, part.etag, part.etag)
