"""What a server may write: JSON of every shape, damaged answers, headers, and the token in every spelling."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from flux_klein_async import emulator
from flux_klein_async.emulator import Answer, Generation, Reply

REQUEST_ID = "0e3b2c1a-8c1d-4f6e-9b7a-1234567890ab"
SAMPLES = Path(__file__).parent.parent / "samples"
# A usual one, and one of characters that JSON, URLs and patterns treat specially.
TOKENS = ("sk-klein-0123456789abcdef", 'q"u\\o/t%e+<d>.*&$()token')


def examples(count: int) -> settings:
    """This many examples in the profile `full`, and proportionally many in the others."""
    return settings(max_examples=max(1, count * settings.default.max_examples // 100))


# --- JSON

texts = st.text(max_size=40) | st.sampled_from(["", "completed", "in_queue", "cancelled", "failed", "\x00", "\u2028"])
numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([-1, 0, 1e308, 10**30, 10**400, 400002, 401001, 422001, 429, 503, 500001])
)
urls = st.sampled_from(
    [
        *(
            "https://x.runcomfy.net/a.png",
            "http://x.runcomfy.com/a.png",
            "//x.runcomfy.net/a.png",
            "file:///etc/passwd",
        ),
        *("https://playgrounds-storage-public.runcomfy.net/%41%2f..%2f?x=1#y", "https://user:pass@runcomfy.net/a.png"),
        *("https://runcomfy.net.evil.example/a.png", "https://emulator.invalid/a.png", "https://emulator.invalid:0/a"),
        *("https://[::1/a.png", "https://" + "a" * 300 + ".runcomfy.com/"),
    ]
)
scalars = st.none() | st.booleans() | numbers | texts | urls
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)
FIELDS = (
    *("request_id", "status", "outcome", "output", "image", "images", "videos", "queue_position", "instance_id"),
    *("error_code", "error_message", "message", "error", "detail", "cost", "created_at", "finished_at"),
    *("model_id", "display_name", "categories", "base_price_usd", "price_unit", "input_schema"),
)
STATES = (
    *("in_queue", "in_progress", "completed", "cancelled", "succeeded", "failed", "Pending", "COMPLETED", "unheard-of"),
)
VALID: tuple[dict[str, Any], ...] = (
    {"request_id": REQUEST_ID, "status_url": "x", "result_url": "x", "cancel_url": "x"},
    {"request_id": REQUEST_ID, "status": "in_queue", "queue_position": 3},
    {"request_id": REQUEST_ID, "status": "completed", "output": {"image": "https://x.runcomfy.net/a.png"}, "cost": 0.1},
    {"request_id": REQUEST_ID, "status": "failed", "error": "out of memory"},
    {"request_id": REQUEST_ID, "status": "cancelled", "outcome": "cancelled"},
    {"request_id": REQUEST_ID, "status": "in_progress", "outcome": "not_cancellable"},
    {"model_id": "a/b", "base_price_usd": 0.01, "categories": ["image"]},
    {"error_code": 400002, "error_message": "no balance", "detail": [{"loc": ["body"], "msg": "bad"}]},
)


@st.composite
def bent(draw: st.DrawFn) -> dict[str, Any]:
    """A valid answer with some of its fields replaced, dropped or added."""
    answer = dict(draw(st.sampled_from(VALID)))
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=4)):
        answer[name] = draw(st.sampled_from(STATES) | anything)
    for name in draw(st.lists(st.sampled_from(sorted(answer)), max_size=2)):
        answer.pop(name, None)
    return answer


def written(value: Any) -> bytes:
    """JSON as Python writes it, NaN and lone surrogates included."""
    return json.dumps(value).encode()


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with a piece cut out, doubled, or overwritten."""
    data = draw(whole)
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, len(data)))
    return data[:start] + draw(st.binary(max_size=4) | st.just(data[start:end] * 2) | st.just(b"")) + data[end:]


# Short enough to print a failing example; tests/api reads the long ones.
_samples = sorted(data for path in SAMPLES.glob("*/body") if len(data := path.read_bytes()) < 2000)
_monsters = [b"[" * 2000, b'{"a":' * 500, b"1" * 5000, b'"' + b"\\u0000" * 100 + b'"', b"\xff\xfe{\x00"]
# By number: Hypothesis would print all of them wherever it names the strategy.
sample_bodies = st.integers(0, len(_samples) - 1).map(_samples.__getitem__)
monsters = st.integers(0, len(_monsters) - 1).map(_monsters.__getitem__)
bodies = st.one_of(
    *(bent().map(written), anything.map(written), damaged(bent().map(written)), damaged(sample_bodies)),
    *(st.binary(max_size=200), monsters),
)

# --- heads

PLAIN = (200, 200, 200, 200, 201, 202, 204, 301, 302, 400, 401, 402, 403, 404, 408, 409, 422, 429, 500, 502, 503, 504)
statuses = st.sampled_from(PLAIN) | st.sampled_from([429, 503]) | st.integers(100, 999)
words = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30)
times = st.sampled_from(
    [
        *("0", "1", "5", "119.5", "1e3", "-1", "NaN", "inf", "99999999999999999999", "1_0", "٣", "", " 7 ", "3600"),
        *("Thu, 01 Jan 2026 00:00:30 GMT", "Thu, 01 Jan 2026 00:00:00 GMT", "Sun, 06 Nov 1994 08:49:37 GMT"),
        *("Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 01 Jan 0001 00:00:00 +2359", "Thu, 32 Foo 2026 99:99:99 GMT"),
        *("Thursday, 01-Jan-26 00:00:30 GMT", "Thu Jan  1 00:00:30 2026", "Thu, 01 Jan 2026 00:00:30 +99999999999"),
    ]
)
HEADERS = ("Retry-After", "Date", "Location", "Content-Type", "Content-Encoding", "Content-Length", "Set-Cookie", "X-A")
headers = st.dictionaries(
    st.sampled_from(HEADERS), words | times | urls | st.sampled_from(["gzip", "br", "0", "chunked"]), max_size=3
)

# --- the token, as a server may echo it


@st.composite
def spelt(draw: st.DrawFn, token: str) -> str:
    """The token as a JSON string may spell it, without the quotes."""
    pieces = []
    for sign in token:
        plain = f"\\{sign}" if sign in '"\\' else sign
        ways = [plain, plain, f"\\u{ord(sign):04x}", f"\\u{ord(sign):04X}", *(["\\/"] if sign == "/" else [])]
        pieces.append(draw(st.sampled_from(ways)))
    return "".join(pieces)


@st.composite
def echoes(draw: st.DrawFn, token: str) -> bytes:
    """An answer that holds the token in a place where an error would show it."""
    inside = draw(spelt(token))
    percent = "".join(f"%{ord(sign):02X}" for sign in token)
    return draw(
        st.sampled_from(
            [
                f'{{"error_message": "bad token {inside}"}}'.encode(),
                f'{{"error_code": 401001, "detail": [{{"msg": "{inside}"}}]}}'.encode(),
                f'{{"status": "{inside}"}}'.encode(),
                f'{{"request_id": "{REQUEST_ID}", "status": "failed", "error": {{"why": "{inside}"}}}}'.encode(),
                f'{{"status": "completed", "output": "https://x.runcomfy.example/{inside}/a"}}'.encode(),
                f'{{"status": "completed", "output": "https://x.runcomfy.example/{percent}/a"}}'.encode(),
                f"<h1>{token}</h1>".encode(),
                f"<h1>{token}</h1>".encode("utf-16"),
                "\x00".join(token).encode(),
                "\u200b".join(token).encode(),
            ]
        )
    )


# --- what the emulator does instead of its normal answer

delays = st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.5, 4.9, 31.0, 200.0])


def _fair(reply: Reply) -> Reply:
    """The same, except that no accepted submit is answered with a refusal: no client could tell."""
    try:
        body = json.loads(reply.body)
    except (ValueError, RecursionError):
        body = None
    coded = isinstance(body, dict) and body.get("error_code") is not None
    refused = coded or reply.status == 503 or (400 <= reply.status < 500 and reply.status != 408)
    endless = len(reply.body) > 300  # a byte at a time, for hours
    return replace(reply, accepted=reply.accepted and not refused, dribble=None if endless else reply.dribble)


def replies(token: str) -> st.SearchStrategy[Reply]:
    """Complete HTTP answers."""
    return st.builds(
        Reply,
        status=statuses,
        body=bodies | echoes(token),
        headers=headers | st.just({"X-Echo": token, "Location": f"https://x.runcomfy.example/{token}"}),
        delay=delays,
        accepted=st.booleans(),
        dribble=st.sampled_from([None, None, None, None, 0.01, 2.0]),
    ).map(_fair)


def echoing_replies(token: str) -> st.SearchStrategy[Reply]:
    """The same, with the token in each body."""
    pairs = st.tuples(replies(token), echoes(token))
    return pairs.map(lambda pair: _fair(replace(pair[0], body=pair[1])))


def answers(token: str) -> st.SearchStrategy[Answer | None]:
    """Anything that an endpoint may do; mostly replies."""
    reply, flags = replies(token), {"accepted": st.booleans(), "delay": delays}
    head = echoes(token).map(lambda echo: b"HTTP/1.1 200 OK\r\nX: " + echo + b"\r\n\r\n")
    starts = st.sampled_from([b" " * 500, b'{"a":"' * 500])
    return st.one_of(
        *(st.none(), reply, reply, reply, st.builds(emulator.Pass, delays), st.builds(emulator.Hang, st.booleans())),
        st.builds(emulator.Reset, **flags),
        st.builds(emulator.Garbage, st.binary(max_size=60) | echoes(token) | head, **flags),
        st.builds(emulator.Truncate, bodies, st.integers(1, 99), **flags),
        st.builds(emulator.Endless, starts, **flags),
    )


fates = st.builds(
    Generation,
    ends=st.sampled_from(["completed", "completed", "failed", "cancelled"]),
    after=st.sampled_from([None, 0.0, 1.0, 40.0, 1e6]),
    error=anything,
    output=st.none() | anything | urls | bent().map(lambda answer: answer.get("output")),
    result_lag=st.sampled_from([0.0, 0.0, 3.0, 60.0]),
    words=st.dictionaries(st.sampled_from(["in_queue", "in_progress", "completed"]), texts, max_size=2),
    delay=delays,
)
connections = st.none() | st.builds(emulator.Refuse) | st.builds(emulator.Hang) | st.builds(emulator.Pass, delays)
