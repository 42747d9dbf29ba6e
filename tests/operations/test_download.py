"""Downloads: from trusted hosts only, bounded, whole or not at all, from the beginning at each attempt."""

import asyncio
import gzip
import hashlib
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
from flux_klein_async.journal.base import Entry, EntryState
from flux_klein_async.operations import download, files
from flux_klein_async.operations.files import PartFile
from tests.fakes import Events, now, outcome, png, settle, strays, without_remarks

PNG = png(60)
OWN = "https://emulator.invalid/files/x.png"
ONE, TWO = png(300), png(301)  # two versions of one picture, of nearly the same length


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
        assert "not taken from this address" in str(error)
    assert sum(klein_emulator.calls.values()) - klein_emulator.calls["connect"] == 1
    assert listing(tmp_path) == []


async def test_a_trusted_host_is_asked_in_whatever_case_it_is_written(klein_emulator, connect):
    klein_emulator.script("file", Reply(200, PNG))
    assert await connect().download_bytes(result_of("HTTPS://Files.RunComfy.NET/files/x.png")) == [PNG]
    assert klein_emulator.records[-1].headers["host"] == "files.runcomfy.net"


async def test_a_redirect_that_echoes_the_token_is_not_shown(klein_emulator, connect, tmp_path):
    client = connect("secret-token-of-the-test")
    klein_emulator.script("file", Reply(302, "", {"Location": "https://evil.example/secret-token-of-the-test"}))
    error = await outcome(client.download(result_of(OWN), tmp_path))
    assert (type(error), error.url) == (DownloadError, "https://evil.example/[token]")
    assert "secret-token" not in repr(error.__dict__) + str(error)


async def test_a_redirect_to_no_url_is_not_repeated(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", Reply(302, "", {"Location": "http://[::1"}))
    error = await outcome(connect().download(result_of(OWN), tmp_path))
    assert (type(error), error.retryable, klein_emulator.calls["file"]) == (DownloadError, False, 1)
    assert "redirects to no URL" in str(error)


@pytest.mark.parametrize(
    ("status", "followed"),
    [(300, False), (301, True), (302, True), (303, True), (304, False), (307, True), (308, True)],
)
async def test_a_redirect_is_what_the_standard_calls_one(klein_emulator, connect, status, followed):
    klein_emulator.script("file", Reply(status, "", {"Location": "/files/y.png"}), Reply(200, PNG))
    found = await outcome(connect().download_bytes(result_of(OWN)))
    assert found == [PNG] if followed else isinstance(found, DownloadError)


async def test_what_a_redirect_leads_to_is_what_is_blamed(klein_emulator, connect):
    away = "https://emulator.invalid/files/" + "y" * 400
    klein_emulator.script("file", Reply(302, "", {"Location": away + "?sig=secret"}), Reply(404, ""))
    error = await outcome(connect().download_bytes(result_of(OWN)))
    assert (error.status_code, error.url) == (404, away[:300])


STEP = Reply(302, "", {"Location": "/files/y.png"})


@pytest.mark.parametrize(
    ("answers", "blamed"),
    [
        ([STEP, Reply(302, "", {"Location": "https://evil.example/x.png?sig=secret"})], "https://evil.example/x.png"),
        ([STEP, Reply(302, "", {"Location": "http://[::1"})], "https://emulator.invalid/files/y.png"),
        ([STEP] * 6, "https://emulator.invalid/files/y.png"),
    ],
    ids=["untrusted", "no URL", "too many"],
)
async def test_where_a_redirect_went_wrong_is_said(klein_emulator, connect, answers, blamed):
    klein_emulator.script("file", *answers)
    assert (await outcome(connect().download_bytes(result_of(OWN)))).url == blamed


async def test_each_attempt_begins_from_the_first_byte(klein_emulator, connect, monkeypatch):
    written: list[int] = []

    class Watched(files.InMemory):
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
    assert written == [0, 60, 0, len(TWO), 0]  # the last: what came after the last flush, nothing


async def test_the_files_hosts_cookies_are_not_kept(klein_emulator, connect):
    klein_emulator.script("file", Reply(200, PNG, {"Set-Cookie": "visitor=7"}), Reply(200, PNG))
    client = connect()
    for _ in range(2):
        await client.download_bytes(result_of(OWN))
    assert ["cookie" in record.headers for record in klein_emulator.records if record.endpoint == "file"] == [False] * 2


@pytest.mark.parametrize(("hops", "arrives"), [(5, True), (6, False)])
async def test_at_most_five_redirects_are_followed(klein_emulator, connect, tmp_path, hops, arrives):
    step = Reply(307, "", {"Location": "/files/y.png"})
    klein_emulator.script("file", *[step] * hops, Reply(200, PNG))
    found = await outcome(connect().download(result_of(OWN), tmp_path))
    assert isinstance(found, list if arrives else DownloadError)
    assert klein_emulator.calls["file"] == 6


# --- beginning again

BROKEN = [
    error_reply(500),
    error_reply(429, retry_after=3),
    Reset(),
    Hang(),
    Truncate(body=PNG, missing=10),
    Garbage(),
    Reply(200, b""),
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


async def test_a_session_that_its_owner_has_closed_is_no_trouble_of_the_files(klein_emulator, connect):
    session = klein_emulator.session()
    client = connect(session=session)
    await session.close()
    error = await outcome(client.download_bytes(result_of(OWN)))
    assert (type(error), error.request_id, klein_emulator.calls["file"]) == (ConfigurationError, "some-id", 0)


async def test_the_deadline_bounds_repeats_too(klein_emulator, connect, tmp_path):
    client = connect(timeout=40)
    result = await client.generate("a cat", width=64, height=64)
    klein_emulator.script("file", *[Cut(10, silent=True)] * 9)
    begun = now()
    error = await outcome(client.download(result, tmp_path))
    assert (type(error), error.retryable, now()) == (DownloadError, True, begun + 40)
    await client.aclose()
    assert listing(tmp_path) == []


# --- how large

CHUNKED_FILE = {"Transfer-Encoding": "chunked"}
LARGE = png(150_000)
TOO_LARGE = {
    "endless": [Endless(chunk=b"x" * 65_536)],
    "announced": [Reply(200, LARGE)],
    "announced and never sent": [Reply(200, LARGE, cut=Cut(0, silent=True))],
    "unannounced": [Reply(200, b"%x\r\n%b\r\n" % (len(LARGE), LARGE), CHUNKED_FILE)],
    "a bomb": [Reply(200, gzip.compress(bytes(10**7)), {"Content-Encoding": "gzip"})],
}


@pytest.mark.parametrize("answers", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_file_larger_than_the_bound_is_refused_and_not_asked_for_again(
    klein_emulator, connect, tmp_path, answers
):
    klein_emulator.script("file", *answers, *[Reply(200, PNG)] * 5)
    client = connect(limits=Limits(max_file_bytes=100_000))
    error = await outcome(client.download(result_of(OWN), tmp_path))
    assert (type(error), error.retryable) == (DownloadError, False)
    assert "larger than 100000 bytes" in str(error)
    assert (klein_emulator.calls["file"], listing(tmp_path)) == (len(answers), [])
    assert now() <= 0.1


async def test_a_file_of_just_the_bound_is_taken(klein_emulator, connect):
    klein_emulator.script("file", Reply(200, PNG, cut=Cut(60)), Reply(200, PNG))
    client = connect(limits=Limits(max_file_bytes=len(PNG)))
    assert await client.download_bytes(result_of(OWN)) == [PNG]


# --- what it is

JPEG = b"\xff\xd8\xff" + bytes(50) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("url", "answer", "name"),
    [
        (OWN, Reply(200, JPEG, {"Content-Type": "image/png"}), "some-id.jpg"),  # mislabelled
        (OWN, Reply(200, gzip.compress(PNG), {"Content-Encoding": "gzip"}), "some-id.png"),
        (OWN.replace(".png", ".glb"), Reply(200, b"glTF"), "some-id.bin"),
        (OWN, Reply(200, b"II*\0", {"Content-Type": "image/tiff"}), "some-id.bin"),
    ],
)
async def test_the_content_names_the_file_and_what_promised_nothing_is_kept(
    klein_emulator, connect, tmp_path, url, answer, name
):
    klein_emulator.script("file", answer)
    await connect().download(result_of(url), tmp_path)
    assert listing(tmp_path) == [name]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (Reply(200, b""), "The file is empty"),
        (Reply(200, b"<html>busy</html>"), "A web page came in place of the file"),
        (Reply(200, b"busy"), "has no known format"),
    ],
)
async def test_what_is_not_the_picture_is_asked_for_again_from_its_beginning(
    klein_emulator, connect, tmp_path, answer, sentence
):
    events = Events()
    klein_emulator.script("file", answer, Reply(200, PNG))
    [path] = await connect(on_event=events).download(result_of(OWN), tmp_path)
    assert (path.read_bytes(), klein_emulator.calls["file"], listing(tmp_path)) == (PNG, 2, ["some-id.png"])
    assert [sentence in event.error for event in events.of(Retrying)] == [True]


# --- where the work is done


async def test_nothing_that_blocks_is_done_on_the_loops_thread_or_in_its_executor(
    klein_emulator, connect, tmp_path, monkeypatch
):
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
    free, loop = threading.Event(), asyncio.get_running_loop()
    executor = ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    busy = executor.submit(free.wait, 30)
    klein_emulator.script("file", Reply(200, PNG))
    assert len(await connect().download(result_of(OWN), tmp_path)) == 1
    assert not busy.done()
    free.set()


@pytest.mark.parametrize("trouble", [ValueError("a"), RuntimeError("a"), MemoryError("a"), KeyError("a")], ids=repr)
@pytest.mark.parametrize("name", ["add", "finish"])
async def test_a_failure_in_a_thread_is_a_download_error_and_not_asked_for_again(
    klein_emulator, connect, tmp_path, monkeypatch, trouble, name
):
    def fail(*_: Any) -> None:
        raise trouble

    monkeypatch.setattr(PartFile, name, fail)
    monkeypatch.setattr(download, "_FLUSH", 10)
    klein_emulator.script("file", *[Reply(200, PNG)] * 5)
    error = await outcome(connect().download(result_of(OWN), tmp_path))
    assert (type(error), error.retryable, error.request_id, error.url) == (DownloadError, False, "some-id", OWN)
    assert (repr(trouble)[:-2] in repr(error).replace(": '", "('").replace(": ", "('"), error.__cause__) == (
        True,
        trouble,
    )
    assert (klein_emulator.calls["file"], listing(tmp_path)) == (1, [])


async def test_where_no_thread_can_start_a_download_is_an_error(klein_emulator, connect, tmp_path):
    client = connect()
    client._context.threads.shutdown()
    klein_emulator.script("file", Reply(200, PNG))
    error = await outcome(client.download(result_of(OWN), tmp_path))
    assert (type(error), "thread that saves files" in str(error), listing(tmp_path)) == (DownloadError, True, [])


def result_of(*urls: str) -> GenerationResult:
    return GenerationResult(
        request_id="some-id", state=RequestState.COMPLETED, output=GenerationOutput(images=urls), raw={}
    )


def listing(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


async def test_a_result_is_saved_under_its_request_id(klein_emulator, connect, tmp_path):
    events = Events()
    client = connect(on_event=events)
    result = await client.generate("a cat", width=64, height=64)
    paths = await client.download(result, tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / f"{result.request_id}.png"]
    assert [path.read_bytes() for path in paths] == await client.download_bytes(result)
    assert [event.paths for event in events.of(Downloaded)] == [(str(paths[0]),)]


async def test_several_files_are_numbered_and_their_suffix_is_their_content(klein_emulator, connect, tmp_path):
    contents = [PNG, b"\xff\xd8\xff" + bytes(50) + b"\xff\xd9", b"what?"]
    klein_emulator.script("file", *[Reply(200, content) for content in contents])
    events = Events()
    client = connect(on_event=events)
    paths = await client.download(result_of(OWN, OWN + "?2", OWN.replace(".png", "")), str(tmp_path))
    assert listing(tmp_path) == ["some-id-1.png", "some-id-2.jpg", "some-id-3.bin"]
    assert [path.read_bytes() for path in paths] == contents
    [told] = events.of(Downloaded)
    assert told.request_id == "some-id"
    assert told.paths == tuple(map(str, paths))
    assert told.sha256 == tuple(hashlib.sha256(content).hexdigest() for content in contents)


async def test_an_id_that_is_no_file_name_everywhere_is_saved_under_one_that_is(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", Reply(200, PNG))
    result = result_of(OWN).model_copy(update={"request_id": "nul"})
    assert [path.name for path in await connect().download(result, tmp_path)] == ["request-nul.png"]


async def test_two_files_are_numbered_and_one_is_not(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", *[Reply(200, PNG)] * 3)
    client = connect()
    await client.download(result_of(OWN), tmp_path)
    await client.download(result_of(OWN, OWN + "?2"), tmp_path)
    assert listing(tmp_path) == ["some-id-1.png", "some-id-2.png", "some-id.png"]


async def test_what_was_saved_is_written_down(klein_emulator, connect, tmp_path):
    written = []

    class Book:
        async def record(self, entry: Entry) -> None:
            files = [(file.path, file.sha256, file.size) for file in entry.files]
            written.append((entry.state, entry.request_id, files))

    klein_emulator.script("file", Reply(200, PNG), Reply(200, PNG))
    paths = await connect(journal=Book()).download(result_of(OWN, OWN + "?2"), tmp_path, names=["a.png", "b.png"])
    facts = [(path.absolute(), hashlib.sha256(PNG).hexdigest(), len(PNG)) for path in paths]
    assert written == [(EntryState.DOWNLOADED, "some-id", facts)]


async def test_names_are_used_as_given(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", Reply(200, PNG), Reply(200, PNG))
    await connect().download(result_of(OWN, OWN + "?2"), tmp_path, names=["ein Bild.png", "画.png"])
    assert listing(tmp_path) == sorted(["ein Bild.png", "画.png"])


BAD_NAMES = [
    "a",
    [],
    ["a", "b"],
    ["../x"],
    ["../../x"],
    ["/etc/x"],
    ["a/b"],
    ["a\\b"],
    [".."],
    [""],
    ["con"],
    ["a:b"],
    ["x" * 300],
    ["x\x00"],
    ["x\n"],
    ["\x1b[31m"],
]


@pytest.mark.parametrize("names", BAD_NAMES, ids=ascii)
async def test_names_that_are_more_than_a_name_are_refused_before_anything_is_fetched(
    klein_emulator, connect, tmp_path, names
):
    error = await outcome(connect().download(result_of(OWN), tmp_path, names=names))
    assert type(error) is InvalidInputError
    assert (klein_emulator.calls["file"], listing(tmp_path)) == (0, [])


async def test_the_same_name_twice_is_refused_before_anything_is_fetched(klein_emulator, connect, tmp_path):
    error = await outcome(connect().download(result_of(OWN, OWN + "?2"), tmp_path, names=["a.png", "A.png"]))
    assert (type(error), klein_emulator.calls["file"]) == (InvalidInputError, 0)


@pytest.mark.parametrize("request_id", ["../../x", "a/b", "", "x" * 300])
async def test_a_result_of_the_users_own_making_leads_nowhere_else(klein_emulator, connect, tmp_path, request_id):
    result = result_of(OWN).model_copy(update={"request_id": request_id})
    error = await outcome(connect().download(result, tmp_path / "out"))
    assert (type(error), klein_emulator.calls["file"], listing(tmp_path)) == (InvalidInputError, 0, [])


async def test_a_large_file_is_written_in_pieces(klein_emulator, connect, tmp_path):
    big = png(5 * 1024 * 1024)
    klein_emulator.script("file", Reply(200, big))
    [path] = await connect().download(result_of(OWN), tmp_path)
    assert path.read_bytes() == big
    assert listing(tmp_path) == ["some-id.png"]


@pytest.mark.parametrize("answer", [Hang(), Reply(200, PNG, dribble=0.5)])
async def test_the_deadline_ends_a_download_exactly(klein_emulator, connect, tmp_path, answer):
    client = connect(timeout=3.5)
    klein_emulator.script("file", *[answer] * 9)
    error = await outcome(client.download(result_of(OWN), tmp_path))
    assert (type(error), error.retryable, now()) == (DownloadError, True, 3.5)
    assert str(error) == "A file could not be downloaded: The deadline passed (request some-id)"
    await client.aclose()
    assert listing(tmp_path) == []


async def test_a_hold_on_files_that_outlasts_the_deadline_raises_at_once(klein_emulator, connect, tmp_path):
    client = connect(timeout=5)
    klein_emulator.script("file", error_reply(429, retry_after=60))
    for _ in range(2):
        error = await outcome(client.download(result_of(OWN), tmp_path))
        assert (type(error), error.retryable, now()) == (DownloadError, True, 0.0)
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


async def test_closing_waits_for_what_is_being_removed(klein_emulator, connect, tmp_path, monkeypatch):
    may_go = threading.Event()

    class Slow(PartFile):
        def drop(self) -> None:
            assert may_go.wait(30)
            super().drop()

    monkeypatch.setattr(download, "PartFile", Slow)
    monkeypatch.setattr(download, "_FLUSH", 10)
    client = connect()
    klein_emulator.script("file", Reply(200, PNG, cut=Cut(100, silent=True)))
    task = asyncio.ensure_future(client.download(result_of(OWN), tmp_path))
    await asyncio.sleep(3)
    task.cancel()
    await asyncio.wait({task})
    closing = asyncio.ensure_future(client.aclose())
    await settle()
    assert not closing.done()
    may_go.set()
    await closing
    assert listing(tmp_path) == []


async def test_closing_ends_a_download(klein_emulator, connect, tmp_path):
    client = connect()
    klein_emulator.script("file", Hang())
    task = asyncio.ensure_future(outcome(client.download(result_of(OWN), tmp_path)))
    await settle()
    await client.aclose()
    error = await task
    assert (type(error), error.request_id) == (ClientClosedError, "some-id")


async def test_a_download_whose_loop_ends_leaves_nothing(klein_emulator, connect, tmp_path, monkeypatch):
    """A thread removes it, and no task needs to live for that."""
    monkeypatch.setattr(download, "_FLUSH", 10)
    client = connect()
    klein_emulator.script("file", Reply(200, PNG, cut=Cut(100, silent=True)))
    task = asyncio.ensure_future(client.download(result_of(OWN), tmp_path))
    await asyncio.sleep(5)
    assert [name.endswith(".part") for name in listing(tmp_path)] == [True]
    task.cancel()
    await asyncio.wait({task})
    client._context.threads.shutdown()  # as at the interpreter's end
    assert listing(tmp_path) == []


# --- trouble with the disk


@pytest.mark.parametrize("place", ["a file", "a file/deeper", "/proc/new", "x" * 300, "a\0b"], ids=ascii)
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


async def test_a_directory_with_the_name_of_the_file_is_left_alone(klein_emulator, connect, tmp_path):
    (tmp_path / "some-id.png").mkdir()
    klein_emulator.script("file", Reply(200, PNG))
    error = await outcome(connect().download(result_of(OWN), tmp_path))
    assert "a directory has the name of the file" in str(error)
    assert (type(error), error.retryable, listing(tmp_path)) == (DownloadError, False, ["some-id.png"])


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


class Illegible:
    """A journal that cannot be written."""

    async def record(self, entry: Entry) -> None:
        if entry.state is EntryState.DOWNLOADED:
            raise JournalError("The journal is full")


@pytest.mark.parametrize(
    ("verb", "answer", "kind"),
    [
        ("download", Reply(404), DownloadError),
        ("download_bytes", Reply(404), DownloadError),
        ("download", None, JournalError),
    ],
)
async def test_what_came_to_nothing_is_told_with_the_verb(klein_emulator, connect, tmp_path, verb, answer, kind):
    events = Events()
    client = connect(on_event=events, journal=Illegible())
    result = await client.generate("a cat", width=64, height=64)
    klein_emulator.script("file", answer)
    begun = now()
    error = await outcome(
        client.download_bytes(result) if verb == "download_bytes" else client.download(result, tmp_path)
    )
    assert type(error) is kind
    assert events.of(Downloaded) == []
    [told] = events.of(Failed)
    assert (told.verb, told.error_type, told.error) == (verb, kind.__name__, str(error))
    assert (told.request_id, told.seconds, told.model) == (result.request_id, now() - begun, None)


async def test_an_item_whose_files_cannot_be_had_tells_of_these_under_its_index(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", Reply(404))
    events = Events()
    [item] = await connect(on_event=events).generate_all(["a cat"], directory=tmp_path)
    assert type(item.error) is DownloadError
    assert [(told.verb, told.tag) for told in events.of(Failed)] == [("download", 0)]


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


def test_a_file_for_which_there_is_no_room_leaves_nothing_and_can_be_fetched_again(tmp_path):
    """The limit of the process on the size of a file stands in for a disk that is nearly full."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_LITTLE_ROOM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    first, second = ran.stdout.splitlines()
    sentence, retryable, left, calls = first.split("|")
    assert "the limit of this process allows" in sentence
    assert (retryable, left, calls, second, without_remarks(ran.stderr)) == ("False", "[]", "1", "1", "")
