"""The catalogue of faults: everything that a service of this kind can do wrong, by name.

Pure data over `scripts`. A name is what the command line takes (`--fault status:503=0.05`) and what a script gets
with `fault("503")`.
"""

import base64
import gzip
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from flux_klein_async.emulator.scripts import (
    Answer,
    Cut,
    Drop,
    Endless,
    Garbage,
    Generation,
    Hang,
    Pass,
    Refuse,
    Reply,
    Reset,
    Rewrite,
    Truncate,
    Unasked,
    error_reply,
)

__all__ = ["FAULTS", "UNTOLD", "Fault", "check_place", "fault", "faults_at", "parse_fault"]

_JSON = ("submit", "status", "result", "cancel", "model", "models", "categories")
_HTTP = (*_JSON, "file")
_EFFECTS = ("submit", "cancel")  # what they did stays done when the answer is lost

_DATE, _DATE_AFTER = "Thu, 01 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:03 GMT"
_UNIX_AFTER = "1767225603"  # the same as _DATE_AFTER
_YEARS_AWAY = "Tue, 01 Jan 2199 00:00:00 GMT"
_HTML = "<!doctype html><title>Bad gateway</title><h1>Something went wrong</h1>"
_BOMB_MIB = 80  # inflated: above every bound of a client
_BOMB_CRC = 0x2A8B86F7
_TINY = base64.b64decode(  # a PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x40\x00\x00\x00\x40\x08\x02\x00\x00\x00"


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry of the catalogue: `answer` does what `meaning` says at any of the `endpoints`.

    `name` is what `fault()` and `--fault` take.
    """

    name: str
    meaning: str
    endpoints: tuple[str, ...]
    answer: Answer


# --- refusals: every status and code of docs/wire.md, "Errors"

# HTTP statuses, and error codes, whose first three digits are their status.
_REFUSALS = (
    *(400, 400001, 402, 400002, 401, 401001, 400004, 403, 403001, 403003, 404, 404001),
    *(408, 422, 422001, 429, 500, 500001, 502, 503, 504),
)
# Codes that also come with status 400, and with 200.
_WITH_400 = (401001, 403001, 404001, 422001, 500001)
_WITH_200 = (400002, 400004, *_WITH_400)
_FROM_GATEWAYS = (502, 504)
_SISTERS = (10001, 10002, 10003)
# What some services of this kind send in place of Retry-After.
_OTHER_HEADERS = (("retry-after-ms", "3000"), ("RateLimit-Reset", "3"), ("RateLimit-Reset", _UNIX_AFTER))
_BLOCKED = "<!doctype html><title>Blocked</title><h1>Request blocked</h1><p>Ray 8f2a</p>"


def _refusals() -> Iterator[Fault]:
    after, date = {"Retry-After": "3"}, {"Retry-After": _DATE_AFTER, "Date": _DATE}
    for number in _REFUSALS:
        status, code = (number, None) if number < 1000 else (number // 1000, number)
        body: Any = _HTML if status in _FROM_GATEWAYS else error_reply(status, code).body
        says = f"HTTP {status}" + (f" with error_code {code}" if code else "")
        says += ", a gateway's HTML" if status in _FROM_GATEWAYS else ""
        yield Fault(f"{number}", says, _HTTP, Reply(status, body))
        yield Fault(f"{number}+after", f"{says}, Retry-After in seconds", _HTTP, Reply(status, body, after))
        yield Fault(f"{number}+date", f"{says}, Retry-After as a date", _HTTP, Reply(status, body, date))
    for status, codes in ((400, _WITH_400), (200, _WITH_200)):
        for code in codes:
            says = f"HTTP {status} with error_code {code}"
            yield Fault(f"{code}@{status}", says, _JSON, error_reply(status, code))
    for status in (200, 400, 403):
        for code in _SISTERS:
            says = f"HTTP {status} with error_code {code}, an account or deployment switched off"
            yield Fault(f"{code}@{status}", says, ("submit",), error_reply(status, code))
    yield Fault("firewall", "HTTP 403, a firewall's HTML", _HTTP, Reply(403, _BLOCKED))
    milliseconds, reset, unix = ({name: value} for name, value in _OTHER_HEADERS)
    for status, name, says, headers in (
        (429, "ms", "retry-after-ms", milliseconds),
        (429, "reset", "RateLimit-Reset in seconds", reset),
        (429, "unix", "RateLimit-Reset as the unix time", {**unix, "Date": _DATE}),
        (503, "ms", "retry-after-ms", milliseconds),
        (503, "reset", "RateLimit-Reset in seconds", reset),
    ):
        yield Fault(f"{status}+{name}", f"HTTP {status}, {says}", _HTTP, replace(error_reply(status), headers=headers))


# --- the wire

_BROKEN: tuple[tuple[str, str, Reset | Hang | Garbage | Truncate | Endless | Reply], ...] = (
    ("reset", "the connection is reset instead of an answer", Reset()),
    ("hang", "no answer ever, on an open connection", Hang()),
    ("no-http", "bytes that are not HTTP", Garbage()),
    ("truncated", "a body shorter than its Content-Length", Truncate()),
    ("endless", "a body without end", Endless()),
    ("html", "HTTP 200 with a page of HTML", Reply(200, _HTML)),
)
_HEADS = {
    "header-no-colon": ("a header without a colon", "Content-Type application/json\r\nContent-Length: 2"),
    "header-too-long": ("a header of 100,000 bytes", f"X-Noise: {'x' * 100_000}\r\nContent-Length: 2"),
    "length-no-number": ("a Content-Length that is not a number", "Content-Length: many"),
    "length-twice": ("two different Content-Lengths", "Content-Length: 2\r\nContent-Length: 3"),
}


_CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
_BEFORE_SUBMITS = ("submit", "model")  # calls after which the next one on a connection is a submit
_STRAYS: Mapping[str, tuple[str, Reply | None]] = {
    "stray-429": ("a 429 that nobody asked for", error_reply(429)),
    "stray-422": ("a 422 that nobody asked for", error_reply(422, 422001)),
    "stray-401": ("a 401 that nobody asked for", error_reply(401, 400004)),
    "stray-200": ("the id of another submit", Reply(200, {"request_id": "somebody-elses"})),
    "stray-again": ("the same once more", None),
}


def _wire() -> Iterator[Fault]:
    yield Fault("refuse", "the connection is refused", ("connect",), Refuse())
    yield Fault("no-connection", "the connection is never made", ("connect",), Hang())
    yield Fault("slow-connection", "the connection takes 5 s", ("connect",), Pass(5.0))
    yield Fault("drop", "the connection is accepted and closed at once", ("connect",), Drop())
    yield Fault("slow", "the answer comes 7 s late", _HTTP, Pass(7.0))
    for name, meaning, answer in _BROKEN:
        yield Fault(name, meaning, _HTTP, answer)
    for name, meaning, answer in (*_BROKEN, ("500", "HTTP 500", error_reply(500))):
        took_effect = replace(answer, accepted=True)
        yield Fault(f"{name}+accepted", f"the call took effect; {meaning}", _EFFECTS, took_effect)
    yield Fault("drip", "the right answer, a byte every 100 ms", _HTTP, Rewrite(dribble=0.1))
    slow = Rewrite(dribble=0.3, head_dribble=0.3)
    yield Fault("slow-head", "the right answer, from its head on a byte every 300 ms", _HTTP, slow)
    only_1xx = Endless(b"HTTP/1.1 102 Processing\r\n\r\n", every=0.5, raw=b"")
    yield Fault("only-1xx", "HTTP 102 every 500 ms, and no answer", _HTTP, only_1xx)
    extension = Endless(b"x", every=0.1, raw=_CHUNKED + b"2;x=")
    yield Fault("slow-extension", "the extension of a chunk, a byte every 100 ms", _HTTP, extension)
    for size in (9, 60):
        noise = Rewrite(headers={"X-Noise": "x" * size * 1_000})
        yield Fault(f"header-{size}k", f"the right answer with a header of {size},000 bytes", _HTTP, noise)
    yield Fault("gzip-zeros", "the right answer, compressed, and zero bytes behind it", _JSON, Rewrite(gzip=512))
    for name, (meaning, stray) in _STRAYS.items():
        yield Fault(name, f"the right answer, and behind it {meaning}", _BEFORE_SUBMITS, Unasked(stray))
        says = f"the right answer, and with the head of the next request {meaning}"
        yield Fault(f"{name}+head", says, _BEFORE_SUBMITS, Unasked(stray, with_head=True))
    own, other = {"Location": "/v1/elsewhere"}, {"Location": "https://elsewhere.example/x"}
    yield Fault("redirect", "a redirect to the same origin", _HTTP, Reply(307, "", own))
    yield Fault("redirect-away", "a redirect to another origin", _HTTP, Reply(307, "", other))
    for name, (meaning, head) in _HEADS.items():
        yield Fault(name, meaning, _HTTP, Garbage(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n{{}}".encode()))
    overlong = Reply(200, '{"status": "completed"}', {"Content-Length": "5"})
    yield Fault("overlong", "a body longer than its Content-Length", _HTTP, overlong)
    plain = _json("{}", **{"Content-Encoding": "gzip"})
    yield Fault("no-gzip", "plain bytes that are declared to be gzip", _HTTP, plain)
    yield Fault("gzip-bomb", "a small body that inflates to 80 MiB", _HTTP, _gzip_bomb())
    away = Rewrite(headers={"Date": _YEARS_AWAY})
    yield Fault("date-away", "the right answer, dated in the year 2199", _HTTP, away)


def _json(body: str | bytes, **headers: str) -> Reply:
    data = body.encode() if isinstance(body, str) else body
    return Reply(200, data, {"Content-Type": "application/json", **headers})


def _gzip_bomb() -> Reply:
    deflate = zlib.compressobj(wbits=-15)
    mebibyte = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    trailer = struct.pack("<BBII", 3, 0, _BOMB_CRC, _BOMB_MIB * 2**20)
    return _json(gzip.compress(b"", mtime=0)[:10] + mebibyte * _BOMB_MIB + trailer, **{"Content-Encoding": "gzip"})


# --- bodies: each contains everything that a careless reader could want, and one thing that is not JSON

_WANTED = (
    '{"request_id": "a-careless-reader", "status": "completed", "outcome": "cancelled", "model_id": "a/b", '
    '"output": {"image": "https://files.runcomfy.net/files/x.png"}, "noise": '
)
_BODIES = {
    "nan": ("a NaN in the JSON", _WANTED + "NaN}"),
    "huge-digits": ("a number of 5,000 digits in the JSON", _WANTED + "1" * 5_000 + "}"),
    "surrogate": ("half a surrogate pair in the JSON", _WANTED + r'"\ud800"' + "}"),
    "deep": ("JSON nested 200,000 levels deep", _WANTED + "[" * 200_000 + "]" * 200_000 + "}"),
    "cut-json": ("JSON that stops in the middle", _WANTED + '"'),
    "empty": ("HTTP 200 with an empty body", ""),
    "json-null": ("HTTP 200 with null", "null"),
    "json-list": ("HTTP 200 with a list", "[]"),
    "json-bare": ("HTTP 200 with an empty object", "{}"),
}

# --- well-formed answers with odd content

_INLINE = f"data:image/png;base64,{base64.b64encode(_TINY).decode()}"
_LINKS = {
    "status_url": "https://model-api.runcomfy.net/v1/requests/x/status",
    "page": "https://www.runcomfy.com/library",
    "input": {"image_url": "https://somebody.example/in.png"},
}
_OUTPUTS: Mapping[str, tuple[str, Any]] = {
    "out-empty": ("empty", {}),
    "out-filtered": ("without a file: all pictures were filtered", {"images": [], "filtered": 2}),
    "out-missing": ("two pictures of four", {"images": ["{file}?1", None, "", "{file}?4"]}),
    "out-counted": ("a picture, and a count of those filtered", {"images": ["{file}"], "filtered": 3}),
    "out-inline": ("a data URI", {"image": _INLINE}),
    "out-no-scheme": ("a URL without its scheme", {"image": "{place}"}),
    "out-capitals": ("a URL whose scheme is in capitals", {"image": "{FILE}"}),
    "out-audio": ("a file named audio", {"audio": "{file}"}),
    "out-url": ("a file named url", {"url": "{file}"}),
    "out-path": ("a file named path", {"path": "{file}"}),
    "out-text": ("a bare URL", "{file}"),
    "out-list": ("a list of URLs", ["{file}?1", "{file}?2"]),
    "out-nested": ("deep inside other objects", {"data": {"files": [{"kind": "picture", "href": "{file}"}]}}),
    "out-inline-bad": ("a data URI that is not base64", {"image": "data:image/png;base64,iVBO*w0K"}),
    "out-links": ("a file among links that are none", {"picture": "{file}", **_LINKS}),
    "out-http": ("a URL of plain http", {"image": "http://files.runcomfy.net/x.png"}),
    "out-prose": ("text, as of a language model", {"text": "A leopard. See https://www.runcomfy.com for more."}),
    "out-words": ("not a URL", {"image": "not a url"}),
}
_FIELDS: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
    ("submit", "no-id", "accepted, without a request id", {"request_id": None}),
    ("submit", "bad-id", "accepted, with a malformed request id", {"request_id": "../../x"}),
    ("status", "no-status", "a status without its state", {"status": None}),
    ("status", "unknown-state", "an undocumented state", {"status": "on_fire"}),
    ("status", "gone-back", "queued again, after it ran or ended", {"status": "in_queue", "queue_position": 7}),
    ("status", "done-too-soon", "completed before the result is there", {"status": "completed"}),
    ("status", "failed-too-soon", "failed, while the generation goes on", {"status": "failed"}),
    ("status", "odd-position", "a negative queue position", {"status": "in_queue", "queue_position": -5}),
    ("result", "no-output", "completed, without an output", {"output": None}),
    ("result", "bare-output", "the output is a bare list", {"output": ["https://files.runcomfy.net/files/x.png"]}),
    ("result", "odd-cost", "a negative cost", {"cost": -1}),
    ("result", "cost-huge", "a cost of almost a billion dollars", {"cost": 999_999_999.0}),
    ("result", "cost-in-nano", "a cost in billionths of a dollar", {"cost": 10_000_000}),
    (
        "result",
        "no-zone",
        "times without a zone",
        dict.fromkeys(("created_at", "finished_at"), "2026-01-01T00:00:01"),
    ),
    *(("result", name, f"the output is {meaning}", {"output": output}) for name, (meaning, output) in _OUTPUTS.items()),
    ("result", "ended-in-2199", "finished in the year 2199", {"finished_at": "2199-01-01T00:00:00Z"}),
    ("result", "ended-first", "finished before it was created", {"finished_at": "1999-01-01T00:00:00Z"}),
    ("cancel", "no-outcome", "a cancel without its outcome", {"status": "in_queue", "outcome": None}),
    ("model", "no-price", "a catalogue entry without a price", {"base_price_usd": None}),
    ("model", "odd-price", "a negative price", {"base_price_usd": -1}),
    ("models", "total-high", "a total of a million models", {"total": 1_000_000}),
    ("models", "total-low", "a total of one model", {"total": 1}),
    ("models", "no-total", "a page without the total", {"total": None}),
    ("models", "page-empty", "an empty page", {"models": []}),
    ("models", "page-again", "the same page at every offset", {"models": [{"model_id": "a/b"}]}),
    ("models", "page-no-list", "a page that is not a list", {"models": {"model_id": "a/b"}}),
    ("models", "page-no-ids", "a page of entries without ids", {"models": [None, 7, {"model_id": 7}]}),
)
_CAPITALS = {word: word.upper() for word in ("in_queue", "in_progress", "completed", "failed", "cancelled")}
_OBSERVED = {"in_queue": "pending", "in_progress": "processing", "completed": "succeeded", "cancelled": "canceled"}
_FOUR = Generation(cost=0.04, output={"images": [f"{{file}}?{number}" for number in range(1, 5)]})
_BAD_ENDS, _GOOD_ENDS = ("TIMED_OUT", "expired", "rejected", "error"), ("SUCCESS", "done")


def _failing(word: str) -> Generation:
    return Generation(ends="failed", error="it took too long", words={"failed": word})


def _completing(word: str) -> Generation:
    return Generation(words={"completed": word})


_GENERATIONS = (
    ("fails", "the generation fails", Generation(ends="failed", error="the model ran out of memory")),
    ("is-cancelled", "the generation is cancelled by the service", Generation(ends="cancelled")),
    ("never-ends", "the generation never ends", Generation(after=1e9)),
    ("upper-case", "its states are written in capitals", Generation(words=_CAPITALS)),
    ("other-words", "its states have the names that vendor clients know", Generation(words=_OBSERVED)),
    ("odd-word", "an unknown state while it runs", Generation(words={"in_progress": "warming_up"})),
    ("result-late", "the result comes 3 s after the state", Generation(result_lag=3.0)),
    ("result-never", "the result never comes", Generation(result_lag=1e9)),
    ("costs-more", "4 pictures, and 4 times the price", _FOUR),
    ("same-id", "accepted, with the id of the submit before it", Generation(same_id=True)),
    ("signed-file", "its file's address is signed to the byte", Generation(signed="direct")),
    ("signed-redirect", "a redirect leads to its file's signed address", Generation(signed="redirect")),
    *((f"says-{word}", f"it fails, and the state is {word!r} beside an error", _failing(word)) for word in _BAD_ENDS),
    *((f"says-{word}", f"it completes, and the state is {word!r}", _completing(word)) for word in _GOOD_ENDS),
    ("early-404", "a result asked for too early is 404", Generation(early_result=error_reply(404, 404001))),
)
_IS_PNG = {"Content-Type": "image/png"}
_SIGN_IN = "<!doctype html><title>Sign in</title><h1>Please sign in</h1>"
_FILES: tuple[tuple[str, str, Answer], ...] = (
    ("cut", "the transfer breaks after 100 bytes", Cut(100)),
    ("picture-empty", "a picture of no bytes", Reply(200, b"", _IS_PNG)),
    ("picture-short", "half a picture, with a matching Content-Length", Reply(200, _PNG, _IS_PNG)),
    ("picture-mislabelled", "a PNG that is declared to be WebP", Rewrite(headers={"Content-Type": "image/webp"})),
    ("picture-text", "a page of text that is declared to be a PNG", Reply(200, _SIGN_IN, _IS_PNG)),
    ("picture-endless", "a picture without end", Endless(_PNG * 1_500, headers=_IS_PNG)),
)


def _contents() -> Iterator[Fault]:
    for name, (meaning, body) in _BODIES.items():
        yield Fault(name, meaning, _JSON, _json(body))
    for endpoint, name, meaning, fields in _FIELDS:
        yield Fault(name, meaning, (endpoint,), Rewrite(fields))
    another = Rewrite({"request_id": "somebody-elses"})
    yield Fault("other-id", "the answer to another request", ("status", "result", "cancel"), another)
    said = {"status": "cancelled", "outcome": "cancelled"}
    yield Fault("only-said", "it says cancelled, and goes on", ("cancel",), Reply(200, said))
    late = {"status": "in_progress", "outcome": "not_cancellable"}
    yield Fault("too-late", "not cancellable: it has just begun", ("cancel",), Reply(200, late))
    for name, meaning, generation in _GENERATIONS:
        yield Fault(name, meaning, ("submit",), generation)
    for name, meaning, answer in _FILES:
        yield Fault(name, meaning, ("file",), answer)


# --- the catalogue

FAULTS: Mapping[str, Fault] = {entry.name: entry for entry in (*_refusals(), *_wire(), *_contents())}


# Not in storms, since no client can always tell: an answer that comes just after its request was written looks like its
# own, and so does an id whose first owner never heard of it.
UNTOLD = ("same-id", *(name for name, entry in FAULTS.items() if isinstance(entry.answer, Unasked)))


def fault(name: str) -> Answer:
    """Return the answer of the fault with this name.

    Raises:
        ValueError: There is no such fault; the message names the most similar one.
    """
    if name not in FAULTS:
        near = get_close_matches(str(name)[:40], FAULTS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"no fault {name!r:.40}{hint} `flux-klein emulator --faults` lists all of them")
    return FAULTS[name].answer


def faults_at(endpoint: str, without: Collection[str] = ()) -> list[Answer]:
    """List every fault of the catalogue that can happen at this endpoint, in its order, `without` those named."""
    return [entry.answer for name, entry in FAULTS.items() if endpoint in entry.endpoints and name not in without]


def check_place(endpoint: str, answer: Answer | None) -> None:
    """Refuse a fault of the catalogue at an endpoint where it does nothing.

    Raises:
        ValueError: The message says where it happens.
    """
    for entry in FAULTS.values():
        if entry.answer is answer and endpoint not in entry.endpoints:
            raise ValueError(f"the fault {entry.name!r} happens to {', '.join(entry.endpoints)}, not to {endpoint!r}")


def parse_fault(text: str) -> list[tuple[str, Answer, float]]:
    """Read `ENDPOINT:FAULT=PROBABILITY`; the endpoint `any` stands for all at which the fault can happen.

    Raises:
        ValueError: The text has another form, or the fault cannot happen there; the message says which.
    """
    what, equals, chance = text.partition("=")
    endpoint, colon, name = what.strip().partition(":")
    if not (equals and colon):
        raise ValueError(
            f"a fault is written ENDPOINT:FAULT=PROBABILITY, such as status:503=0.05, not {text!r:.80}; "
            "`flux-klein emulator --faults` lists the names"
        )
    try:
        probability = float(chance)
    except ValueError:
        probability = -1.0
    if not 0 <= probability <= 1:
        raise ValueError(f"a probability lies between 0 and 1, not at {chance!r:.40}")
    answer, places = fault(name), FAULTS[name].endpoints
    if endpoint not in {"any", *places}:
        raise ValueError(f"{name} happens to {', '.join(places)}, not to {endpoint!r:.40}")
    return [(place, answer, probability) for place in places if endpoint in {"any", place}]
