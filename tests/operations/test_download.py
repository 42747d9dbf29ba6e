"""Downloads: from trusted hosts only, bounded, whole or not at all, from the beginning at each attempt."""

import asyncio
import base64
import gzip
import hashlib
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async import (
    APIConnectionError,
    ClientClosedError,
    ConfigurationError,
    DownloadError,
    GenerationOutput,
    GenerationResult,
    InvalidInputError,
    JournalError,
    Limits,
    RequestState,
)
from flux_klein_async.emulator import Cut, Endless, Garbage, Hang, Pass, Refuse, Reply, Reset, Truncate, error_reply
from flux_klein_async.events import Downloaded, Failed, Retrying
from flux_klein_async.journal.base import Entry
from flux_klein_async.journal.sqlite import SqliteJournal
from flux_klein_async.journal.states import EntryState
from flux_klein_async.operations import download
from flux_klein_async.operations.files import InMemory, PartFile, part_files
from tests.fakes import Events, now, outcome, png, settle, strays, without_remarks
from tests.operations.helpers import Book

PNG = png(60)
JPEG = b"\xff\xd8\xff" + bytes(50) + b"\xff\xd9"
OWN = "https://emulator.invalid/files/x.png"
ONE, TWO = png(300), png(301)  # two versions of one picture, of nearly the same length


def result_of(*urls: str, request_id: str = "some-id") -> GenerationResult:
    return GenerationResult(
        request_id=request_id, state=RequestState.COMPLETED, output=GenerationOutput(images=urls), raw={}
    )


def listing(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


# --- which hosts

UNTRUSTED = [
    "http://files.runcomfy.net/x.png",
    "https://runcomfy.net.evil.example/x.png",
    "https://evilruncomfy.net/x.png",
    "https://evil.example/#@runcomfy.net",
    "https://evil.example/?runcomfy.net",
    "https://runcomfy.net@evil.example/x.png",
    "https://user@files.runcomfy.net/x.png",
    "https://user:password@files.runcomfy.net/x.png",
    "https://evil.example\\@runcomfy.net/x.png",
    "https://files.runcomfy.net\\.evil.example/x.png",
    "https://10.0.0.1/x.png",
    "https://[::1]/x.png",
    "https://2130706433/x.png",
    "https://runcomfy.net./x.png",
    "https://RUNCOMFY.NET.EVIL.EXAMPLE/x.png",
    "https://evil.example\0.runcomfy.net/x.png",
    "https://evil.example%2f.runcomfy.net/x.png",
    "http://emulator.invalid/x.png",
    "https://emulator.invalid:8443/x.png",
    "https://emulator.invalid./x.png",
    "file:///etc/passwd",
    "//evil.example/x.png",
]


@pytest.mark.parametrize("url", UNTRUSTED)
async def test_an_untrusted_address_is_never_asked(klein_emulator, connect, tmp_path, url):
    client = connect()
    direct = await outcome(client.download(result_of(url), tmp_path))
    klein_emulator.script("file", Reply(302, "", {"Location": url.replace("\0", "%00")}))
    redirected = await outcome(client.download(result_of(OWN), tmp_path))
    for error in (direct, redirected):
        assert (type(error), error.charged, error.retryable) == (DownloadError, "yes", False)
        assert "not taken from" in str(error)
    assert sum(klein_emulator.calls.values()) - klein_emulator.calls["connect"] == 1
    assert listing(tmp_path) == []


async def test_bytes_say_what_they_are(klein_emulator, connect):
    klein_emulator.script("file", Reply(200, PNG), Reply(200, b"{}", {"Content-Type": "application/json"}))
    client = connect()
    for suffix, media_type in ((".png", "image/png"), (".bin", "application/octet-stream")):
        [file] = await client.download_bytes(result_of(OWN.replace(".png", ".json")))
        assert (file.suffix, file.media_type) == (suffix, media_type)


async def test_a_trusted_host_is_asked_in_whatever_case_it_is_written(klein_emulator, connect):
    klein_emulator.script("file", Reply(200, PNG))
    assert await connect().download_bytes(result_of("HTTPS://Files.RunComfy.NET/files/x.png")) == [PNG]
    assert klein_emulator.records[-1].headers["host"] == "files.runcomfy.net"


@pytest.mark.parametrize(
    ("hosts", "url", "asked"),
    [
        (("cdn.example.com",), "https://CDN.example.com/files/a.png", 1),
        (("cdn.example.com",), "https://a.cdn.example.com/files/a.png", 0),
        (("cdn.example.com",), "http://cdn.example.com/files/a.png", 0),
        (("cdn.example.com",), "https://evilcdn.example.com/files/a.png", 0),
        (("cdn.example.com",), "https://user@cdn.example.com/files/a.png", 0),
        ((".Example.com",), "https://example.com/files/a.png", 1),
        ((".example.com",), "https://a.b.example.com/files/a.png", 1),
        ((".example.com",), "https://evilexample.com/files/a.png", 0),
        ((".example.com",), "https://example.com.evil.net/files/a.png", 0),
        (("cdn.example.com",), "https://files.runcomfy.net/files/a.png", 1),
    ],
)
async def test_a_host_that_the_user_adds_is_asked_too_at_each_hop(klein_emulator, connect, hosts, url, asked):
    client = connect(limits=Limits(file_hosts=hosts))
    for first, hops in ((url, 0), (OWN, 1)):
        klein_emulator.calls.clear()
        script = [Reply(200, PNG)] if first == url else [Reply(302, "", {"Location": url}), Reply(200, PNG)]
        klein_emulator.script("file", *script[: asked + hops])
        found = await outcome(client.download_bytes(result_of(first)))
        assert found == [PNG] if asked else "not taken from" in str(found)
        assert klein_emulator.calls["file"] == asked + hops
    assert not any("authorization" in record.headers for record in klein_emulator.records)


async def test_the_files_hosts_cookies_are_not_kept(klein_emulator, connect):
    klein_emulator.script("file", Reply(200, PNG, {"Set-Cookie": "visitor=7"}), Reply(200, PNG))
    client = connect()
    for _ in range(2):
        await client.download_bytes(result_of(OWN))
    assert ["cookie" in record.headers for record in klein_emulator.records if record.endpoint == "file"] == [False] * 2


# --- redirects


@pytest.mark.parametrize(
    ("status", "followed"),
    [(300, False), (301, True), (302, True), (303, True), (304, False), (307, True), (308, True)],
)
async def test_a_redirect_is_what_the_standard_calls_one(klein_emulator, connect, status, followed):
    klein_emulator.script("file", Reply(status, "", {"Location": "/files/y.png"}), Reply(200, PNG))
    found = await outcome(connect().download_bytes(result_of(OWN)))
    assert found == [PNG] if followed else isinstance(found, DownloadError)


@pytest.mark.parametrize(("hops", "arrives"), [(5, True), (6, False)])
async def test_at_most_five_redirects_are_followed(klein_emulator, connect, tmp_path, hops, arrives):
    klein_emulator.script("file", *[Reply(307, "", {"Location": "/files/y.png"})] * hops, Reply(200, PNG))
    found = await outcome(connect().download(result_of(OWN), tmp_path))
    assert isinstance(found, list if arrives else DownloadError)
    assert klein_emulator.calls["file"] == 6


def to(location: str) -> Reply:
    return Reply(302, "", {"Location": location})


STEP, THERE = to("/files/y.png"), "https://emulator.invalid/files/y.png"
LONG = "https://emulator.invalid/files/" + "y" * 400


@pytest.mark.parametrize(
    ("answers", "blamed", "message"),
    [
        ([STEP, to("https://evil.example/x.png?sig=secret")], "https://evil.example/x.png", "not taken from"),
        ([to("https://evil.example/secret-token")], "https://evil.example/[token]", "not taken from"),
        ([to("http://[::1")], "http://[::1", "not taken from"),
        ([STEP, to("http://[::1")], "http://[::1", "not taken from"),
        ([STEP] * 6, THERE, "more than 5 redirects"),
        ([to(LONG + "?sig=secret"), Reply(404, "")], LONG[:300], "HTTP 404"),
    ],
)
async def test_an_error_says_where_a_redirect_went_wrong_and_shows_no_secret(
    klein_emulator, connect, answers, blamed, message
):
    klein_emulator.script("file", *answers)
    error = await outcome(connect("secret-token").download_bytes(result_of(OWN)))
    assert (type(error), error.url, error.retryable) == (DownloadError, blamed, False)
    assert (message in str(error), klein_emulator.calls["file"]) == (True, len(answers))
    assert "secret" not in f"{error.__dict__} {error}"


SIGNED = "/files/a%28b%29%7E%2Fc%41/../d(e)'*;f?X-Signature=%27%2f%2B+%20&b=&c"


async def test_a_signed_url_and_a_redirect_are_asked_for_as_they_are_written(connect):
    """On a socket, where the very bytes of the request line can be seen."""
    lines: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
        hop = SIGNED.replace("/files", "", 1) if len(lines) == 1 else SIGNED.replace("/files/", "", 1)
        head, body = (f"302 Found\r\nLocation: {hop}", b"") if len(lines) < 3 else ("200 OK", PNG)
        writer.write(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        origin = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        client = connect(base_url=origin, session=None)
        assert await client.download_bytes(result_of(origin + SIGNED)) == [PNG]
    paths = [SIGNED, SIGNED.replace("/files", "", 1), "/a%28b%29%7E%2Fc%41/../" + SIGNED.replace("/files/", "", 1)]
    assert lines == [f"GET {path} HTTP/1.1".encode() for path in paths]


# --- beginning again

BROKEN = [
    error_reply(500),
    error_reply(429, retry_after=3),
    Reset(),
    Hang(),
    Truncate(body=PNG, missing=10),
    Garbage(),
    Reply(200, b""),
    Reply(200, b"busy"),
    Reply(200, PNG, cut=Cut(0)),
    Reply(200, PNG, {"Content-Type": "image/png"}, cut=Cut(50)),
    Reply(200, PNG, cut=Cut(50, silent=True)),
    Reply(200, "<!doctype html><h1>502 Bad Gateway</h1>"),
]


@pytest.mark.parametrize("answer", BROKEN, ids=repr)
async def test_a_transfer_that_broke_is_begun_again(klein_emulator, connect, tmp_path, answer):
    klein_emulator.script("file", answer, answer, Reply(200, PNG))
    [path] = await connect().download(result_of(OWN), tmp_path)
    assert path.read_bytes() == PNG
    assert (listing(tmp_path), klein_emulator.calls["file"]) == (["some-id.png"], 3)
    assert not any("range" in record.headers for record in klein_emulator.records)


@pytest.mark.parametrize("answer", BROKEN, ids=repr)
async def test_a_transfer_that_breaks_five_times_is_a_download_error_with_nothing_left(
    klein_emulator, connect, tmp_path, answer
):
    events = Events()
    klein_emulator.script("file", *[answer] * 20)
    client = connect(timeout=None, on_event=events)
    error = await outcome(client.download(result_of(OWN + "?sig=secret"), tmp_path))
    assert (type(error), error.charged, error.retryable, error.request_id) == (DownloadError, "yes", True, "some-id")
    assert (error.url, len(events.of(Retrying)), listing(tmp_path)) == (OWN, 4, [])


async def test_each_attempt_begins_from_the_first_byte(klein_emulator, connect, monkeypatch):
    written: list[int] = []

    class Watched(InMemory):
        def _clear(self) -> None:
            written.append(0)
            super()._clear()

        def _write(self, data: bytes) -> None:
            written.append(len(data))
            super()._write(data)

    monkeypatch.setattr(download, "InMemory", Watched)
    monkeypatch.setattr(download, "_FLUSH", 10)
    klein_emulator.script("file", Reply(200, ONE, cut=Cut(60)), Reply(200, TWO))
    assert await connect().download_bytes(result_of(OWN)) == [TWO]
    assert written == [0, 60, 0, len(TWO), 0]  # at last the rest, which is nothing


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416, 304, 302, 204, 206])
async def test_a_file_that_is_refused_is_not_asked_for_again(klein_emulator, connect, tmp_path, status):
    klein_emulator.script("file", Reply(status, ""))
    error = await outcome(connect().download(result_of(OWN + "?sig=secret"), tmp_path))
    assert (type(error), error.status_code, error.retryable) == (DownloadError, status, False)
    assert "secret" not in str(error)
    assert (error.url, klein_emulator.calls["file"]) == (OWN, 1)


async def test_a_file_host_that_cannot_be_reached_is_a_download_error(klein_emulator, connect, tmp_path):
    klein_emulator.script("connect", *[Refuse()] * 10)
    error = await outcome(connect().download(result_of(OWN), tmp_path))
    assert (type(error), error.retryable, klein_emulator.calls["connect"]) == (DownloadError, True, 5)
    assert isinstance(error.__cause__, APIConnectionError)
    assert error.cause == str(error.__cause__)


async def test_a_closed_session_is_a_configuration_error(klein_emulator, connect):
    session = klein_emulator.session()
    client = connect(session=session)
    await session.close()
    error = await outcome(client.download_bytes(result_of(OWN)))
    assert (type(error), error.request_id, klein_emulator.calls["file"]) == (ConfigurationError, "some-id", 0)


# --- how large

LARGE = png(150_000)
TOO_LARGE = {
    "endless": Endless(chunk=b"x" * 65_536),
    "announced": Reply(200, LARGE),
    "announced and never sent": Reply(200, LARGE, cut=Cut(0, silent=True)),
    "unannounced": Reply(200, b"%x\r\n%b\r\n" % (len(LARGE), LARGE), {"Transfer-Encoding": "chunked"}),
    "a bomb": Reply(200, gzip.compress(bytes(10**7)), {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("answer", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_file_larger_than_the_bound_is_refused_and_not_asked_for_again(
    klein_emulator, connect, tmp_path, answer
):
    klein_emulator.script("file", answer, *[Reply(200, PNG)] * 5)
    error = await outcome(connect(limits=Limits(max_file_bytes=100_000)).download(result_of(OWN), tmp_path))
    assert (type(error), error.retryable) == (DownloadError, False)
    assert "larger than 100000 bytes" in str(error)
    assert (klein_emulator.calls["file"], listing(tmp_path)) == (1, [])
    assert now() <= 0.1


async def test_a_file_of_just_the_bound_is_taken(klein_emulator, connect):
    klein_emulator.script("file", Reply(200, PNG, cut=Cut(60)), Reply(200, PNG))
    client = connect(limits=Limits(max_file_bytes=len(PNG)))
    assert await client.download_bytes(result_of(OWN)) == [PNG]


# --- files inside the answer


def inline(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


async def test_a_file_inside_the_answer_is_decoded_saved_and_digested_like_a_file(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", Reply(200, PNG), Reply(200, PNG))
    events = Events()
    client = connect(on_event=events, limits=Limits(max_file_bytes=len(PNG)))
    result = result_of(OWN, inline(PNG), inline(JPEG, "image/webp"), "data:image/svg+xml,%3Csvg/%3E")
    contents = [PNG, PNG, JPEG, b"<svg/>"]
    assert await client.download_bytes(result) == contents
    paths = await client.download(result, tmp_path)
    assert [path.suffix for path in paths] == [".png", ".png", ".jpg", ".bin"]
    assert [path.read_bytes() for path in paths] == contents
    [told] = events.of(Downloaded)
    assert told.sha256 == tuple(hashlib.sha256(content).hexdigest() for content in contents)
    assert klein_emulator.calls["file"] == 2


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("data:image/png;base64,iVB*", "not valid base64"),
        (inline(PNG + b"x"), rf"larger than {len(PNG)} bytes \(in Python, Limits.max_file_bytes\)"),
        (inline(b""), "The file is empty"),
        (inline(b"<html>sign in", "image/png"), "A web page came in place of the file"),
        (inline(b"what?", "image/png"), "no known format"),
    ],
)
async def test_a_broken_file_inside_the_answer_is_a_download_error_that_does_not_repeat_it(
    connect, tmp_path, url, sentence
):
    events = Events()
    client = connect(on_event=events, limits=Limits(max_file_bytes=len(PNG)))
    for call in (client.download(result_of(url), tmp_path), client.download_bytes(result_of(url))):
        error = await outcome(call)
        assert (type(error), error.charged, error.retryable) == (DownloadError, "yes", False)
        assert re.search(sentence, str(error))
        assert re.fullmatch(r"data:image/png;base64,\.\.\. \([0-9]+ characters\)", error.url)
    assert (listing(tmp_path), events.of(Retrying), now()) == ([], [], 0.0)


# --- what it is called


@pytest.mark.parametrize(
    ("answers", "options", "expected"),
    [
        ([PNG], {}, ["some-id.png"]),
        ([PNG, JPEG, b"what?"], {}, ["some-id.png", "some-id-2.jpg", "some-id-3.bin"]),
        ([PNG], {"request_id": "nul"}, ["request-nul.png"]),  # no file name everywhere
        ([PNG, JPEG], {"names": ["ein Bild.PNG", "a.jpeg"]}, ["ein Bild.PNG", "a.jpeg"]),
        ([PNG, b"what?"], {"names": ["画", "notes.txt"]}, ["画.png", "notes.txt"]),
        ([Reply(200, JPEG, {"Content-Type": "image/png"})], {}, ["some-id.jpg"]),  # mislabelled
        ([Reply(200, gzip.compress(PNG), {"Content-Encoding": "gzip"})], {}, ["some-id.png"]),
        ([Reply(200, b"II+\0", {"Content-Type": "image/tiff"})], {}, ["some-id.bin"]),  # not promised: kept
    ],
)
async def test_files_are_named_by_id_number_and_content_or_as_given(
    klein_emulator, connect, tmp_path, answers, options, expected
):
    replies = [answer if isinstance(answer, Reply) else Reply(200, answer) for answer in answers]
    klein_emulator.script("file", *replies)
    promising = [OWN if reply.body != b"what?" else OWN.removesuffix(".png") for reply in replies]
    urls = [f"{url}?{number}" for number, url in enumerate(promising)]
    result = result_of(*urls, request_id=options.get("request_id", "some-id"))
    paths = await connect().download(result, str(tmp_path), names=options.get("names"))
    assert ([path.name for path in paths], listing(tmp_path)) == (expected, sorted(expected))


async def test_a_generated_picture_is_saved_and_read_alike(klein_emulator, connect, tmp_path):
    client = connect()
    result = await client.generate("a cat", width=64, height=64)
    paths = await client.download(result, tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / f"{result.request_id}.png"]
    assert [path.read_bytes() for path in paths] == await client.download_bytes(result)


@pytest.mark.parametrize(
    ("urls", "options"),
    [
        *(([OWN], {"names": names}) for names in ["a", [], ["a", "b"], ["../x"], ["/etc/x"], [""], ["con"]]),
        ([OWN, OWN + "?2"], {"names": ["a.png", "A.png"]}),
        *(([OWN], {"request_id": request_id}) for request_id in ["../../x", "a/b", "", "x" * 300]),
    ],
)
async def test_names_that_lead_elsewhere_are_refused_before_anything_is_fetched(
    klein_emulator, connect, tmp_path, urls, options
):
    result = result_of(*urls, request_id=options.get("request_id", "some-id"))
    error = await outcome(connect().download(result, tmp_path / "out", names=options.get("names")))
    assert (type(error), klein_emulator.calls["file"], listing(tmp_path)) == (InvalidInputError, 0, [])


async def test_a_name_with_the_suffix_of_another_format_is_refused_and_says_which(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", Reply(200, PNG))
    error = await outcome(connect().download(result_of(OWN), tmp_path, names=["cat.jpg"]))
    assert (type(error), error.retryable, listing(tmp_path)) == (DownloadError, False, [])
    assert "'cat.jpg' would hold a file of another format; name it 'cat.png'" in str(error)


async def test_what_was_saved_is_recorded_and_reported(klein_emulator, connect, tmp_path):
    written, events = [], Events()

    class Book:
        async def record(self, entry: Entry) -> None:
            facts = [(file.path, file.sha256, file.size) for file in entry.files]
            written.append((entry.state, entry.request_id, facts))

    klein_emulator.script("file", Reply(200, PNG), Reply(200, JPEG))
    client = connect(journal=Book(), on_event=events)
    paths = await client.download(result_of(OWN, OWN + "?2"), tmp_path, names=["a.png", "b.jpg"])
    digests = [hashlib.sha256(content).hexdigest() for content in (PNG, JPEG)]
    facts = list(zip([path.absolute() for path in paths], digests, [len(PNG), len(JPEG)], strict=True))
    assert written == [(EntryState.DOWNLOADED, "some-id", facts)]
    [told] = events.of(Downloaded)
    assert (told.request_id, told.paths, told.sha256) == ("some-id", tuple(map(str, paths)), tuple(digests))


class Illegible:
    """A journal that cannot be written."""

    async def record(self, entry: Entry) -> None:
        if entry.state is EntryState.DOWNLOADED:
            raise JournalError("The journal is full")


@pytest.mark.parametrize(
    ("verb", "answer", "kind"),
    [
        ("download", Reply(404), DownloadError),
        ("download", Hang(), DownloadError),
        ("download_bytes", Reply(404), DownloadError),
        ("download", None, JournalError),
    ],
)
async def test_a_failure_is_reported_with_the_verb(klein_emulator, connect, tmp_path, verb, answer, kind):
    events = Events()
    client = connect(on_event=events, journal=Illegible())
    result = await client.generate("a cat", width=64, height=64)
    klein_emulator.script("file", *[answer] * 9)
    begun = now()
    call = client.download_bytes if verb == "download_bytes" else lambda found: client.download(found, tmp_path)
    error = await outcome(call(result))
    assert (type(error), events.of(Downloaded)) == (kind, [])
    [told] = events.of(Failed)
    assert (told.verb, told.error_type, told.error) == (verb, kind.__name__, str(error))
    assert (told.request_id, told.seconds, told.model) == (result.request_id, now() - begun, None)


async def test_an_item_whose_files_fail_reports_them_under_its_index(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", Reply(404))
    events = Events()
    [item] = await connect(on_event=events).generate_all(["a cat"], directory=tmp_path)
    assert (type(item.error), item.error.cost_usd) == (DownloadError, 0.01)
    assert [(told.verb, told.tag, told.cost_usd) for told in events.of(Failed)] == [("download", 0, None)], "not twice"


# --- when it is given up


@pytest.mark.parametrize(
    ("timeout", "answer", "cause"),
    [
        (3.5, Hang(), "The deadline passed"),
        (3.5, Reply(200, PNG, dribble=0.5), "The deadline passed"),
        (40.0, Reply(200, PNG, cut=Cut(10, silent=True)), "The service did not answer in time"),  # repeated after 30 s
    ],
)
async def test_the_deadline_ends_a_download_exactly(klein_emulator, connect, tmp_path, timeout, answer, cause):
    client = connect(timeout=timeout)
    klein_emulator.script("file", *[answer] * 9)
    error = await outcome(client.download(result_of(OWN), tmp_path))
    assert (type(error), error.retryable, now()) == (DownloadError, True, timeout)
    assert str(error).startswith(f"A file could not be downloaded: {cause}")
    assert str(error).count("(request some-id)") == 1
    await client.aclose()
    assert listing(tmp_path) == []


async def test_a_hold_on_files_that_outlasts_the_deadline_raises_at_once(klein_emulator, connect, tmp_path):
    client = connect(timeout=5)
    klein_emulator.script("file", error_reply(503, retry_after=60))
    for _ in range(2):
        error = await outcome(client.download(result_of(OWN), tmp_path))
        assert (type(error), error.retryable, now()) == (DownloadError, True, 0.0)
    assert "The service wants no download for 60 s, after its HTTP 503" in str(error)
    assert klein_emulator.calls["file"] == 1


@pytest.mark.parametrize("answer", [Hang(), Reply(200, PNG, dribble=0.5), Pass(delay=9)])
async def test_a_cancelled_download_leaves_nothing(klein_emulator, connect, tmp_path, answer):
    client = connect()
    klein_emulator.script("file", answer)
    task = asyncio.ensure_future(client.download(result_of(OWN), tmp_path))
    await asyncio.sleep(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await client.aclose()
    assert (listing(tmp_path), strays()) == ([], [])


async def test_a_download_cancelled_under_a_disk_write_leaves_nothing(klein_emulator, connect, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_FLUSH", 10)
    client = connect()
    klein_emulator.script("file", Reply(200, PNG * 50, dribble=0.01))
    loop, begun = asyncio.get_running_loop(), []
    original = loop.run_in_executor

    def spy(executor, function, *arguments):
        begun.append(function)
        if len(begun) == 3:
            loop.call_soon(task.cancel)
        return original(executor, function, *arguments)

    monkeypatch.setattr(loop, "run_in_executor", spy)
    task = asyncio.ensure_future(client.download(result_of(OWN), tmp_path))
    with pytest.raises(asyncio.CancelledError):
        await task
    await client.aclose()
    assert listing(tmp_path) == []


LEFT = "{}-0123456789abcdef.part"


async def test_what_a_dead_run_of_the_same_journal_left_is_removed_and_nothing_else(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", Reply(200, PNG), Reply(200, PNG))
    folder, journals = tmp_path / "out", tmp_path / "journals"
    journals.mkdir()
    folder.mkdir()
    marks = []
    # Each with the same salt: a copy of a journal is another one.
    for name in ("mine.sqlite", "mine.sqlite", "copy.sqlite"):
        if name == "copy.sqlite":
            shutil.copy(journals / "mine.sqlite", journals / name)
        async with SqliteJournal(journals / name) as journal:
            marks.append(await journal.run_mark())
    dead, dead_too, of_the_copy = (f".{mark}" for mark in marks)
    async with SqliteJournal(journals / "mine.sqlite") as other, SqliteJournal(journals / "mine.sqlite") as journal:
        alive, own = [f".{await one.run_mark()}" for one in (other, journal)]
        kept = [LEFT.format(mark) for mark in (of_the_copy, alive, own, ".0123456789ab-0123456789abcdef", dead + "-x")]
        kept += [".0123456789abcdef.part", "mine.part", LEFT.format(dead[1:]), LEFT.format(dead) + ".bak"]
        for name in [LEFT.format(dead), LEFT.format(dead_too), *kept]:
            (folder / name).touch()
        (folder / LEFT.format(dead).replace("0123", "3210")).mkdir()  # no file: nobody knows what it is
        client = connect(journal=journal)
        await client.download(result_of(OWN), folder)
        found = set(listing(folder)) - {"some-id.png"}
        assert found == {*kept, LEFT.format(dead).replace("0123", "3210")}
        (folder / LEFT.format(dead)).touch()
        await client.download(result_of(OWN), folder)
        assert (folder / LEFT.format(dead)).exists(), "a directory is looked through once"
        await client.aclose()


async def test_an_unfinished_file_names_the_run_that_it_belongs_to(klein_emulator, connect, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_FLUSH", 10)
    async with SqliteJournal(tmp_path / "run.sqlite") as journal:
        client = connect(journal=journal)
        klein_emulator.script("file", Reply(200, PNG, cut=Cut(100, silent=True)))
        task = asyncio.ensure_future(client.download(result_of(OWN), tmp_path / "out"))
        await asyncio.sleep(5)
        assert list(part_files(tmp_path / "out")) == [await journal.run_mark()]
        task.cancel()
        await asyncio.wait({task})
        await client.aclose()
    assert listing(tmp_path / "out") == []


async def test_a_journal_that_cannot_tell_its_runs_holds_up_no_download(klein_emulator, connect, tmp_path, caplog):
    klein_emulator.script("file", Reply(200, PNG))

    class Silent:
        async def record(self, entry: Entry) -> None: ...

        async def run_mark(self) -> str:
            return "0123456789ab-0123456789abcdef"

        async def ended_runs(self, marks: Any) -> set[str]:
            raise OSError("gone")

    (tmp_path / ".0123456789ab-fedcba9876543210-0123456789abcdef.part").touch()
    client = connect(journal=Silent())
    assert await client.download(result_of(OWN), tmp_path) == [tmp_path / "some-id.png"]
    assert len(listing(tmp_path)) == 2
    assert "unfinished files of earlier runs raised; ignored" in caplog.text


async def half_of_a_download(emulator: Any, client: Any, directory: Path) -> "asyncio.Task[Any]":
    emulator.script("file", Reply(200, PNG, cut=Cut(100, silent=True)))
    task = asyncio.ensure_future(client.download(result_of(OWN), directory))
    await asyncio.sleep(5)
    assert [name.endswith(".part") for name in listing(directory)] == [True]
    task.cancel()
    await asyncio.wait({task})
    return task


async def test_closing_waits_for_what_is_being_removed(klein_emulator, connect, tmp_path, monkeypatch):
    may_go = threading.Event()

    class Slow(PartFile):
        def drop(self) -> None:
            assert may_go.wait(30)
            super().drop()

    monkeypatch.setattr(download, "PartFile", Slow)
    monkeypatch.setattr(download, "_FLUSH", 10)
    client = connect()
    await half_of_a_download(klein_emulator, client, tmp_path)
    closing = asyncio.ensure_future(client.aclose())
    await settle()
    assert not closing.done()
    may_go.set()
    await closing
    assert listing(tmp_path) == []


async def test_a_download_whose_loop_ends_leaves_nothing(klein_emulator, connect, tmp_path, monkeypatch):
    """A thread removes the file, and no task needs to live for that."""
    monkeypatch.setattr(download, "_FLUSH", 10)
    client = connect()
    await half_of_a_download(klein_emulator, client, tmp_path)
    client._context.threads.shutdown()  # as at the interpreter's end
    assert listing(tmp_path) == []


async def test_closing_ends_a_download(klein_emulator, connect, tmp_path):
    client = connect()
    klein_emulator.script("file", Hang())
    task = asyncio.ensure_future(outcome(client.download(result_of(OWN), tmp_path)))
    await settle()
    await client.aclose()
    error = await task
    assert (type(error), error.request_id) == (ClientClosedError, "some-id")


# --- threads


async def test_what_blocks_is_done_in_the_clients_own_threads(klein_emulator, connect, tmp_path, monkeypatch):
    done: set[tuple[str, str]] = set()

    class Watched(PartFile):
        def __getattribute__(self, name: str) -> Any:
            if name in ("_write", "_keep", "_clear"):
                done.add((name, threading.current_thread().name.rpartition("_")[0]))
            return super().__getattribute__(name)

    monkeypatch.setattr(download, "_FLUSH", 50_000)
    monkeypatch.setattr(download, "PartFile", Watched)
    client = connect()
    klein_emulator.script("file", Reply(200, LARGE, cut=Cut(120_000)), None, Reply(200, LARGE))
    assert type(await outcome(client.download(result_of(OWN), tmp_path))) is DownloadError  # no such file any more
    await client.download(result_of(OWN), tmp_path)
    assert done == {(name, "flux-klein-files") for name in ("_write", "_keep", "_clear")}


async def test_an_application_that_fills_the_loops_executor_holds_no_download(klein_emulator, connect, tmp_path):
    free, executor = threading.Event(), ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(executor)
    busy = executor.submit(free.wait, 30)
    klein_emulator.script("file", Reply(200, PNG))
    assert len(await connect().download(result_of(OWN), tmp_path)) == 1
    assert not busy.done()
    free.set()


@pytest.mark.parametrize("trouble", [ValueError("odd"), RuntimeError("odd"), MemoryError("odd")], ids=repr)
@pytest.mark.parametrize("name", ["add", "finish"])
async def test_a_failure_in_a_thread_is_a_download_error_and_the_file_not_asked_for_again(
    klein_emulator, connect, tmp_path, monkeypatch, trouble, name
):
    def fail(*_: Any) -> None:
        raise trouble

    monkeypatch.setattr(PartFile, name, fail)
    monkeypatch.setattr(download, "_FLUSH", 10)
    klein_emulator.script("file", *[Reply(200, PNG)] * 5)
    error = await outcome(connect().download(result_of(OWN), tmp_path))
    assert (type(error), error.retryable, error.request_id, error.url) == (DownloadError, False, "some-id", OWN)
    assert (f"{type(trouble).__name__}: odd" in str(error), error.__cause__) == (True, trouble)
    assert (klein_emulator.calls["file"], listing(tmp_path)) == (1, [])


async def test_a_journal_that_is_slow_holds_no_download_beyond_its_deadline(klein_emulator, connect, tmp_path):
    """The files are there, and the entry is written meanwhile."""
    book = Book(downloaded=4.0)
    client = connect(journal=book)
    result = await client.generate("a cat")
    began = now()
    paths = await client.download(result, tmp_path, timeout=2)
    assert (round(now() - began, 6), [path.exists() for path in paths], book.lines[-1]) == (2.0, [True], "completed")
    await client.aclose()
    assert (round(now() - began, 6), book.lines[-1]) == (4.0, "downloaded")


# --- trouble with the disk


@pytest.mark.parametrize("place", ["a file/deeper", "a\0b"], ids=ascii)
async def test_a_place_that_cannot_be_written_is_a_download_error_and_not_asked_for_again(
    klein_emulator, connect, tmp_path, place
):
    (tmp_path / "a file").write_text("mine")
    klein_emulator.script("file", *[Reply(200, PNG)] * 5)
    error = await outcome(connect().download(result_of(OWN), tmp_path / place))
    assert (type(error), error.charged, error.retryable) == (DownloadError, "yes", False)
    assert "cannot be saved in" in str(error)
    assert (error.request_id, error.url) == ("some-id", OWN)
    assert (klein_emulator.calls["file"], listing(tmp_path)) == (1, ["a file"])


@pytest.mark.parametrize("flush", [10, download._FLUSH])
async def test_a_directory_that_vanishes_while_a_transfer_is_broken_is_made_again(
    klein_emulator, connect, tmp_path, monkeypatch, flush
):
    monkeypatch.setattr(download, "_FLUSH", flush)
    out = tmp_path / "out"
    out.mkdir()
    vanish = Events()
    client = connect(on_event=lambda event: (vanish(event), shutil.rmtree(out)) if not vanish else None)
    klein_emulator.script("file", Reply(200, PNG, cut=Cut(100)), Reply(200, PNG))
    await client.download(result_of(OWN), out)
    assert (len(vanish.of(Retrying)), listing(tmp_path)) == (1, ["out", "out/some-id.png"])


IN_LITTLE_ROOM = """
import asyncio, pathlib, resource, sys
from flux_klein_async import DownloadError, FluxKleinClient
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop

async def main(out):
    async with InProcessEmulator() as emulator:
        session = emulator.session()
        async with FluxKleinClient(emulator.api_key, base_url=emulator.base_url, session=session) as client:
            result = await client.generate("a cat", width=256, height=256)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
            try:
                await client.download(result, out)
            except DownloadError as error:
                print(error, error.retryable, sorted(pathlib.Path(out).iterdir()), emulator.calls["file"], sep="|")
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            print(len(await client.download(result, out)))

with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
    runner.run(main(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_file_for_which_there_is_no_room_leaves_nothing_and_can_be_fetched_again(tmp_path):
    """The limit of the process on the size of a file stands in for a disk that is nearly full."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_LITTLE_ROOM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    first, second = ran.stdout.splitlines()
    sentence, retryable, left, calls = first.split("|")
    assert "the limit of this process allows" in sentence
    assert (retryable, left, calls, second, without_remarks(ran.stderr)) == ("False", "[]", "1", "1", "")
