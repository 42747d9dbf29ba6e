"""One file's transfer: from trusted hosts only, bounded, from the beginning at each attempt."""

import gzip
import hashlib
import threading
from typing import Any

import pytest

from flux_klein_async import APIConnectionError, ConfigurationError, DownloadError, Limits
from flux_klein_async.emulator import (
    Cut,
    Endless,
    Garbage,
    Hang,
    Refuse,
    Reply,
    Reset,
    Truncate,
    error_reply,
)
from flux_klein_async.events import Retrying
from flux_klein_async.flow import download, files, formats, transfer
from tests.fakes import Events, now, outcome, png
from tests.flow.test_download import OWN, listing, result_of

PNG = png()
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
    assert await connect().read(result_of("HTTPS://Files.RunComfy.NET/files/x.png")) == [PNG]
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
    found = await outcome(connect().read(result_of(OWN)))
    assert found == [PNG] if followed else isinstance(found, DownloadError)


async def test_what_a_redirect_leads_to_is_what_is_blamed(klein_emulator, connect):
    away = "https://emulator.invalid/files/" + "y" * 400
    klein_emulator.script("file", Reply(302, "", {"Location": away + "?sig=secret"}), Reply(404, ""))
    error = await outcome(connect().read(result_of(OWN)))
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
    assert (await outcome(connect().read(result_of(OWN)))).url == blamed


async def test_each_attempt_begins_from_the_first_byte(klein_emulator, connect, monkeypatch):
    written: list[int] = []

    class Watched(files.InMemory):
        def restart(self) -> None:
            written.append(0)
            super().restart()

        def write(self, data: bytes) -> None:
            written.append(len(data))
            super().write(data)

    monkeypatch.setattr(download, "InMemory", Watched)
    monkeypatch.setattr(transfer, "_FLUSH", 10)
    klein_emulator.script("file", Reply(200, ONE, cut=Cut(60)), Reply(200, TWO))
    assert await connect().read(result_of(OWN)) == [TWO]
    assert written == [0, 60, 0, len(TWO), 0]


async def test_the_files_hosts_cookies_are_not_kept(klein_emulator, connect):
    klein_emulator.script("file", Reply(200, PNG, {"Set-Cookie": "visitor=7"}), Reply(200, PNG))
    client = connect()
    for _ in range(2):
        await client.read(result_of(OWN))
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
    error = await outcome(client.read(result_of(OWN)))
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
    assert await client.read(result_of(OWN)) == [PNG]


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


async def test_neither_hashing_nor_looking_nor_writing_is_done_on_the_loops_thread(
    klein_emulator, connect, tmp_path, monkeypatch
):
    monkeypatch.setattr(transfer, "_FLUSH", 50_000)
    done: dict[str, set[int]] = {}

    def watched(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def noting(*arguments: Any, **options: Any) -> Any:
            done.setdefault(name, set()).add(threading.get_ident())
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, noting)

    class Hash:
        def __init__(self) -> None:
            self._hash = original_hash()

        def update(self, data: bytes) -> None:
            done.setdefault("update", set()).add(threading.get_ident())
            self._hash.update(data)

        def hexdigest(self) -> str:
            return self._hash.hexdigest()

    original_hash = hashlib.sha256
    monkeypatch.setattr(files.hashlib, "sha256", Hash)
    for owner, name in (
        (files.PartFile, "write"),
        (files.PartFile, "discard"),
        (formats.Content, "feed"),
        (files.os, "fsync"),
        (files.os, "replace"),
    ):
        watched(owner, name)
    client = connect()
    klein_emulator.script("file", Reply(200, LARGE, cut=Cut(120_000)), None, Reply(200, LARGE))
    assert type(await outcome(client.download(result_of(OWN), tmp_path))) is DownloadError  # no such file any more
    await client.download(result_of(OWN), tmp_path)
    assert set(done) == {"write", "discard", "feed", "fsync", "replace", "update"}
    assert threading.get_ident() not in set().union(*done.values())
