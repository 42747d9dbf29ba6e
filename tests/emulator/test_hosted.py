import pytest
from flux_klein_async.emulator.hosted import etag_of, hosted

DATA = b"0123456789"
ETAG = etag_of(DATA)


def ask(**headers):
    return hosted(DATA, "image/png", ETAG, {name.replace("_", "-"): value for name, value in headers.items()})


def test_a_file_comes_whole_with_a_strong_validator():
    reply = ask()
    assert (reply.status, reply.body, reply.headers["Accept-Ranges"]) == (200, DATA, "bytes")
    assert reply.headers["Content-Type"] == "image/png"
    assert reply.headers["ETag"] == ETAG
    assert (ETAG[0], etag_of(bytes(DATA)), etag_of(DATA + b"!") == ETAG) == ('"', ETAG, False)


@pytest.mark.parametrize(
    ("wanted", "part", "said"),
    [
        ("bytes=0-", b"0123456789", "bytes 0-9/10"),
        ("bytes=4-", b"456789", "bytes 4-9/10"),
        ("bytes=9-", b"9", "bytes 9-9/10"),
        ("bytes=2-3", b"23", "bytes 2-3/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
    ],
)
@pytest.mark.parametrize("condition", [{}, {"if_range": ETAG}])
def test_a_part_comes_with_its_place(wanted, part, said, condition):
    reply = ask(range=wanted, **condition)
    assert (reply.status, reply.body, reply.headers["Content-Range"]) == (206, part, said)
    assert reply.headers["ETag"] == ETAG


@pytest.mark.parametrize("wanted", ["bytes=10-", "bytes=99-", "bytes=10-20", "bytes=-0"])
def test_a_part_past_the_end_is_refused(wanted):
    reply = ask(range=wanted)
    assert (reply.status, reply.body, reply.headers["Content-Range"]) == (416, b"", "bytes */10")


@pytest.mark.parametrize(
    "asked",
    [
        {"range": "bytes=4-", "if_range": '"another"'},
        {"range": "bytes=4-", "if_range": f"W/{ETAG}"},
        {"range": "bytes=4-", "if_range": "Thu, 01 Jan 2026 00:00:00 GMT"},
        {"range": "bytes=99-", "if_range": '"another"'},
        {"range": "bytes=-"},
        {"range": "bytes=5-4"},
        {"range": "bytes=0-1,4-5"},
        {"range": "lines=1-2"},
        {"range": "bytes=x-"},
        {"range": "bytes=" + "9" * 30 + "-"},
        {"range": ""},
    ],
)
def test_another_version_or_no_range_gets_the_whole(asked):
    assert ask(**asked) == ask()
