"""Downloads: only trusted hosts, all or nothing on disk, repeated where a transfer broke."""

import asyncio
from pathlib import Path

import pytest

from flux_klein_async import (
    ClientClosedError,
    DownloadError,
    GenerationOutput,
    GenerationResult,
    InvalidInputError,
    Limits,
    RequestState,
)
from flux_klein_async.emulator import (
    Endless,
    Garbage,
    Generation,
    Hang,
    Pass,
    Refuse,
    Reply,
    Reset,
    Truncate,
    error_reply,
)
from flux_klein_async.events import Downloaded
from flux_klein_async.flow import download
from tests.fakes import Events, now, outcome, settle, strays

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
OWN = "https://emulator.invalid/files/x.png"


def result_of(*urls: str) -> GenerationResult:
    return GenerationResult(
        request_id="some-id", state=RequestState.COMPLETED, output=GenerationOutput(images=urls), raw={}
    )


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*")) if directory.exists() else []


async def test_a_result_is_saved_under_its_request_id(klein_emulator, connect, tmp_path):
    events = Events()
    client = connect(on_event=events)
    result = await client.generate("a cat", width=64, height=64)
    paths = await client.download(result, tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / f"{result.request_id}.png"]
    assert [path.read_bytes() for path in paths] == await client.read(result)
    assert [event.paths for event in events.of(Downloaded)] == [(str(paths[0]),)]


async def test_several_files_are_numbered_and_their_suffix_is_their_content(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", Reply(200, PNG), Reply(200, b"\xff\xd8\xff" + bytes(50)), Reply(200, b"what?"))
    await connect().download(result_of(OWN, OWN + "?2", OWN + "?3"), str(tmp_path))
    assert listing(tmp_path) == ["some-id-1.png", "some-id-2.jpg", "some-id-3.bin"]


async def test_names_are_used_as_given(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", Reply(200, PNG), Reply(200, PNG))
    await connect().download(result_of(OWN, OWN + "?2"), tmp_path, names=["ein Bild.png", "画.png"])
    assert listing(tmp_path) == sorted(["ein Bild.png", "画.png"])


@pytest.mark.parametrize("names", ["a", [], ["a", "b"], ["../x"], ["a/b"], [".."], [""], ["x\x00"]])
async def test_names_that_are_more_than_a_name_are_refused_before_anything_is_fetched(
    klein_emulator, connect, tmp_path, names
):
    error = await outcome(connect().download(result_of(OWN), tmp_path, names=names))
    assert type(error) is InvalidInputError
    assert (klein_emulator.calls["file"], listing(tmp_path)) == (0, [])


async def test_a_large_file_is_written_in_pieces(klein_emulator, connect, tmp_path):
    big = PNG + bytes(5 * 1024 * 1024)
    klein_emulator.script("file", Reply(200, big))
    [path] = await connect().download(result_of(OWN), tmp_path)
    assert path.read_bytes() == big
    assert listing(tmp_path) == ["some-id.png"]


UNTRUSTED = [
    "http://files.runcomfy.net/x.png",
    "https://runcomfy.net.evil.example/x.png",
    "https://evil.example/#@runcomfy.net",
    "https://user@files.runcomfy.net/x.png",
    "https://10.0.0.1/x.png",
    "http://emulator.invalid/x.png",
    "https://emulator.invalid:8443/x.png",
]


@pytest.mark.parametrize("url", UNTRUSTED)
async def test_an_untrusted_address_is_never_asked(klein_emulator, connect, tmp_path, url):
    client = connect()
    direct = await outcome(client.download(result_of(url), tmp_path))
    klein_emulator.script("file", Reply(302, "", {"Location": url}))
    redirected = await outcome(client.download(result_of(OWN), tmp_path))
    for error in (direct, redirected):
        assert (type(error), error.charged, error.retryable) == (DownloadError, "yes", False)
    assert sum(klein_emulator.calls.values()) - klein_emulator.calls["connect"] == 1
    assert listing(tmp_path) == []


async def test_a_redirect_to_no_url_is_not_repeated(klein_emulator, connect, tmp_path):
    klein_emulator.script("file", Reply(302, "", {"Location": "http://[::1"}))
    error = await outcome(connect().download(result_of(OWN), tmp_path))
    assert (type(error), error.retryable, klein_emulator.calls["file"]) == (DownloadError, False, 1)


@pytest.mark.parametrize(("hops", "arrives"), [(5, True), (6, False)])
async def test_at_most_five_redirects_are_followed(klein_emulator, connect, tmp_path, hops, arrives):
    step = Reply(307, "", {"Location": "/files/y.png"})
    klein_emulator.script("file", *[step] * hops, Reply(200, PNG))
    found = await outcome(connect().download(result_of(OWN), tmp_path))
    assert isinstance(found, list if arrives else DownloadError)
    assert klein_emulator.calls["file"] == 6


BROKEN = [
    error_reply(500),
    error_reply(429, retry_after=3),
    Reset(),
    Truncate(body=PNG, missing=10),
    Garbage(),
    Reply(200, b""),
]


@pytest.mark.parametrize("answer", BROKEN, ids=repr)
async def test_a_transfer_that_broke_is_begun_again(klein_emulator, connect, tmp_path, answer):
    klein_emulator.script("file", answer, answer, Reply(200, PNG))
    [path] = await connect().download(result_of(OWN), tmp_path)
    assert path.read_bytes() == PNG
    assert listing(tmp_path) == ["some-id.png"]


@pytest.mark.parametrize("answer", BROKEN, ids=repr)
async def test_a_transfer_that_breaks_five_times_is_a_download_error_with_nothing_left(
    klein_emulator, connect, tmp_path, answer
):
    klein_emulator.script("file", *[answer] * 20)
    client = connect()
    error = await outcome(client.download(result_of(OWN), tmp_path))
    assert (type(error), error.charged, error.retryable, error.request_id) == (DownloadError, "yes", True, "some-id")
    await client.aclose()
    assert listing(tmp_path) == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 304, 302])
async def test_a_file_that_is_refused_is_not_asked_for_again(klein_emulator, connect, tmp_path, status):
    klein_emulator.script("file", Reply(status, ""))
    error = await outcome(connect().download(result_of(OWN + "?sig=secret"), tmp_path))
    assert (type(error), error.status_code, error.retryable) == (DownloadError, status, False)
    assert "secret" not in str(error)
    assert "secret" not in (error.url or "")
    assert klein_emulator.calls["file"] == 1


async def test_a_file_host_that_cannot_be_reached_is_a_download_error(klein_emulator, connect, tmp_path):
    klein_emulator.script("connect", *[Refuse()] * 10)
    error = await outcome(connect().download(result_of(OWN), tmp_path))
    assert (type(error), error.retryable, klein_emulator.calls["connect"]) == (DownloadError, True, 5)


@pytest.mark.parametrize("answer", [Endless(chunk=b"x" * 65_536), Reply(200, b"x" * 200_000)])
async def test_a_file_larger_than_the_bound_is_a_download_error(klein_emulator, connect, tmp_path, answer):
    klein_emulator.script("file", *[answer] * 9)
    client = connect(limits=Limits(max_file_bytes=100_000))
    error = await outcome(client.download(result_of(OWN), tmp_path))
    assert type(error) is DownloadError
    assert "100000 bytes" in str(error)
    await client.aclose()
    assert listing(tmp_path) == []


@pytest.mark.parametrize("answer", [Hang(), Reply(200, PNG, dribble=0.5)])
async def test_the_deadline_ends_a_download_exactly(klein_emulator, connect, tmp_path, answer):
    client = connect(timeout=3.5)
    klein_emulator.script("file", *[answer] * 9)
    error = await outcome(client.download(result_of(OWN), tmp_path))
    assert (type(error), error.retryable, now()) == (DownloadError, True, 3.5)
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


async def test_closing_ends_a_download(klein_emulator, connect, tmp_path):
    client = connect()
    klein_emulator.script("file", Hang())
    task = asyncio.ensure_future(outcome(client.download(result_of(OWN), tmp_path)))
    await settle()
    await client.aclose()
    error = await task
    assert (type(error), error.request_id) == (ClientClosedError, "some-id")


async def test_a_directory_that_cannot_be_written_is_a_download_error(klein_emulator, connect, tmp_path):
    blocked = tmp_path / "a file, not a directory"
    blocked.write_text("")
    klein_emulator.script("submit", Generation(after=0.1))
    client = connect()
    error = await outcome(client.download(await client.generate("a cat", width=64, height=64), blocked))
    assert (type(error), error.charged, error.retryable) == (DownloadError, "yes", False)
    assert klein_emulator.calls["file"] == 1
