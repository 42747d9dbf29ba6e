"""Local files of an input: checked before anything is sent, read off the loop, recognised by their content."""

import asyncio
import base64
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async import (
    APITimeoutError,
    AuthenticationError,
    GenerationResult,
    InputRejectedError,
    InvalidInputError,
    Limits,
    SqliteJournal,
    SubmissionUncertainError,
)
from flux_klein_async.api.messages import Kind
from flux_klein_async.api.requests import InputBody, encode_input
from flux_klein_async.emulator import Generation, Hang, Reply, Reset, Unasked, catalogue, endpoints, error_reply
from flux_klein_async.events import Failed
from flux_klein_async.journal.reader import JournalReader
from flux_klein_async.operations import inputs
from flux_klein_async.operations.inputs import check_files, digest_files, read_body
from tests.fakes import Events, outcome, png, settle, strays
from tests.operations.helpers import Book, give_up

EDIT = "blackforestlabs/flux-2/dev/edit"
MIB = 2**20
PNG = b"\x89PNG\r\n\x1a\n"
MP4 = b"\0\0\0\x18ftypisom"


def body_of(*paths: "os.PathLike[str]") -> InputBody:
    return encode_input({"image_urls": list(paths)})


def uris(body: bytes | str) -> list[tuple[str, bytes]]:
    """The media types and bytes of a body's files."""
    found = []
    for uri in json.loads(body)["image_urls"]:
        declared, _, data = uri.partition(";base64,")
        found.append((declared.removeprefix("data:"), base64.b64decode(data, validate=True)))
    return found


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
        (b"GIF89a", "image/gif"),
        (b"\0\0\0\x1cftypavif", "image/avif"),
        (b"\0\0\0\x18ftypheic", "image/heic"),
        (b"MM\0*", "image/tiff"),
        (b"BM\x8a\0", "image/bmp"),
        (b"RIFF\0\0\0\0AVI ", "video/x-msvideo"),
        (b"\xff\xf1", "audio/aac"),
        (b"\xff\xfa", "audio/mpeg"),
        (MP4, "video/mp4"),
        (b"\0\0\0\x14ftypqt  ", "video/quicktime"),
        (b"\x1aE\xdf\xa3", "video/webm"),
        (b"RIFF\0\0\0\0WAVE", "audio/wav"),
        (b"ID3\4", "audio/mpeg"),
        (b"\0\0\0\x20ftypM4A ", "audio/mp4"),
        (b"OggS", "audio/ogg"),
        (b"fLaC", "audio/flac"),
    ],
)
def test_the_type_is_found_from_the_bytes_and_not_from_the_name(tmp_path, content, media_type):
    (tmp_path / "a.txt").write_bytes(content)
    assert uris(read_body(body_of(tmp_path / "a.txt"), Limits())) == [(media_type, content)]


def test_files_of_any_size_are_sent_as_they_are_in_the_places_where_they_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_PIECE", 30)
    contents = [PNG + bytes(range(size)) for size in (0, 21, 22, 23, 51, 52, 99)]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "0")
    paths = [tmp_path / str(number) for number in range(len(contents))]
    found = read_body(encode_input({"image_urls": (*paths, tmp_path / "link"), "z": {"x": [[paths[1]]]}}), Limits())
    assert uris(found) == [("image/png", content) for content in (*contents, contents[0])]
    assert json.loads(found)["z"]["x"][0][0] == json.loads(found)["image_urls"][1]


def test_a_relative_path_begins_at_the_working_directory_and_is_kept_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(PNG)
    body = body_of(Path("a.png"))
    read_body(body, Limits())
    assert body.files[0][1].path == tmp_path / "a.png"


SMALL = Limits(max_picture_bytes=2 * MIB, max_input_file_bytes=3 * MIB, max_request_bytes=4 * MIB)


def sparse(path: Path, start: bytes, size: int) -> None:
    path.write_bytes(start)
    os.truncate(path, size)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("a snow leopard")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("HOME", "/nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    sparse(tmp_path / "large.png", PNG, 2 * MIB + 1)
    sparse(tmp_path / "large.mp4", MP4, 3 * MIB + 1)
    sparse(tmp_path / "most.mp4", MP4, 3 * MIB)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no\n.png", r"the file 'no\n.png' does not exist; a relative path begins at the working directory"),
        ("/no.png", "the file '/no.png' does not exist; name one that does"),
        ("https://x/a.png", "the file 'https:/x/a.png' does not exist; a URL is given as text, not as a path"),
        ("text/a.png", "the file 'text/a.png' does not exist; a relative path begins at the working directory"),
        ("~/a.png", "the file '/nowhere/a.png' does not exist; name one that does"),
        (
            "~no-one/a",
            "the file '~no-one/a' does not exist; a relative path begins at the working directory",
        ),
        ("~a\0b/a", r"the file '~a\x00b/a' has a name that no file can have"),
        ("folder", "the file 'folder' is a directory; name one of its files"),
        ("", "the file '.' is a directory; name one of its files"),
        ("empty", "the file 'empty' is empty; name one with content"),
        ("text", f"the file 'text' is of no known type; convert it to one of {inputs._KNOWN}"),
        ("pipe", "the file 'pipe' cannot be read: it is no plain file; save its content in one, and name that"),
        (
            "/dev/zero",
            "the file '/dev/zero' cannot be read: it is no plain file; save its content in one, and name that",
        ),
        ("loop", "the file 'loop' is a link that leads back to itself; name the file itself"),
        ("a\0b", r"the file 'a\x00b' has a name that no file can have"),
        ("\ud800", r"the file '\ud800' has a name that no file can have"),
        ("x" * 300, f"the file '...{'x' * 97}' has a name that is too long"),
        (
            "large.png",
            (
                "the file 'large.png' has 2,097,153 bytes, and a picture may have 2,097,152; make it smaller "
                "(in Python, Limits.max_picture_bytes)"
            ),
        ),
        (
            "large.mp4",
            (
                "the file 'large.mp4' has 3,145,729 bytes, and a file may have 3,145,728; make it smaller "
                "(in Python, Limits.max_input_file_bytes)"
            ),
        ),
        (
            "most.mp4",
            (
                "the file 'most.mp4' makes the request larger than 4,194,304 bytes; give fewer or smaller files "
                "(in Python, Limits.max_request_bytes)"
            ),
        ),
    ],
    ids=ascii,
)
def test_a_file_that_cannot_be_sent_is_refused_by_field_and_name(folder, path, problem):
    for job in (check_files, digest_files, read_body):
        body = encode_input({"prompt": Path("large.png"), "image_urls": [Path(path)]})
        with pytest.raises(InvalidInputError) as caught:
            job(InputBody(b'{"image_urls": [\0]}', body.files[1:]), SMALL)
        assert str(caught.value) == f"image_urls.0: {problem}"
        assert caught.value.fields == {"image_urls.0": problem}
        assert (caught.value.charged, caught.value.__cause__) == ("no", None)


def test_what_may_not_be_read_or_vanishes_while_it_is_opened_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(PNG)
    plain = (tmp_path / "a.png").stat()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(inputs.os, "stat", lambda _: plain)  # as it was a moment ago
    with pytest.raises(InvalidInputError, match="it is no plain file"):
        check_files(body_of(tmp_path / "pipe"), Limits())

    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inputs.os, "stat", refuse)
    with pytest.raises(InvalidInputError, match="may not be read; give yourself the right to, or name a copy"):
        check_files(body_of(tmp_path / "a.png"), Limits())


@pytest.mark.parametrize("change", [b"longer", b"", b"same"], ids=["grows", "shrinks", "is written again"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, change):
    monkeypatch.setattr(inputs, "_PIECE", 8)
    path = tmp_path / "a.png"
    path.write_bytes(PNG + bytes(1 << 16))

    def write(_: bytes) -> None:
        os.truncate(path, 1 << 15 if not change else 1 << 16 if change == b"same" else 1 << 20)
        os.utime(path, ns=(0, 0))

    with pytest.raises(InvalidInputError, match="changed while it was used; name a copy that stays as it is"):
        inputs._take(body_of(path), Limits(), lambda found, _: found.read(write))


def test_a_file_that_changes_after_it_was_recognised_is_not_sent(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG + b"one")
    body = body_of(tmp_path / "a.png")
    digest_files(body, Limits())
    (tmp_path / "a.png").write_bytes(PNG + b"two")
    with pytest.raises(InvalidInputError, match="changed while it was used"):
        read_body(body, Limits())


# --- in a call


@pytest.fixture
def sent(connect, monkeypatch):
    """A client's way to see the requests that it hands to its transport."""

    def watch(client: Any) -> list[Any]:
        requests: list[Any] = []
        transport = client._context.transport
        send = transport.send

        async def seen(request: Any, guard: Any = None) -> Any:
            if request.kind is Kind.SUBMIT:
                requests.append(request)
                assert len(request.body) > 0
            return await send(request, guard)

        monkeypatch.setattr(transport, "send", seen)
        return requests

    return watch


def released(requests: list[Any]) -> bool:
    """Whether nothing keeps the bodies alive, not even the frames of an error's traceback."""
    try:
        return not any(len(request.body) for request in requests)
    except ValueError:
        return True


async def test_a_large_file_is_read_once_however_often_it_is_posted_and_not_kept_while_it_generates(
    klein_emulator, connect, sent, tmp_path, monkeypatch
):
    content = png(3 * MIB)
    (tmp_path / "a.png").write_bytes(content)
    book, opened, open_ = Book(), [], inputs._opened
    monkeypatch.setattr(inputs, "_opened", lambda path, flags: opened.append(str(path)) or open_(path, flags))
    client = connect(journal=book)
    requests, seen, refusals = sent(client), [], catalogue.refusals
    klein_emulator.script("submit", error_reply(429, retry_after=1), Generation(after=30))
    monkeypatch.setattr(endpoints, "refusals", lambda model, given, *rest: seen.append(given) or refusals(model, given))
    task = asyncio.ensure_future(
        client.generate({"prompt": "x", "image_urls": [tmp_path / "a.png"]}, model=EDIT, tag="a tag")
    )
    await asyncio.sleep(15)
    assert (len(requests), released(requests), task.done()) == (2, True, False)
    assert (await task).image_url
    assert [uris(json.dumps(given)) for given in seen] == [[("image/png", content)]]
    assert opened == [str(tmp_path / "a.png")]
    intent = book.entries[0].body
    assert json.loads(intent)["image_urls"] == [
        {"file": str(tmp_path / "a.png"), "size": len(content), "sha256": inputs.hashlib.sha256(content).hexdigest()}
    ]


async def test_a_file_that_cannot_be_sent_costs_nothing_and_writes_nothing(klein_emulator, connect, tmp_path):
    book, events = Book(), Events()
    client = connect(journal=book, budget=book, on_event=events)
    for call in (client.generate, client.submit):
        with pytest.raises(InvalidInputError, match="does not exist"):
            await call({"prompt": "x", "image_urls": [tmp_path / "a.png"]}, model=EDIT)
    assert ([event.error_type for event in events.of(Failed)], book.lines) == (["InvalidInputError"] * 2, [])
    assert klein_emulator.calls == {}


async def test_one_file_where_the_service_wants_a_list_says_so(connect, tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(InputRejectedError, match=r"; image_urls: put the value into a list$"):
        await connect().generate({"prompt": "x", "image_urls": tmp_path / "a.png"}, model=EDIT)


async def test_a_bound_that_was_raised_leaves_the_refusal_to_the_service(klein_emulator, connect, tmp_path):
    sparse(tmp_path / "a.png", PNG, 6 * MIB + 1)
    edit = {"prompt": "x", "image_urls": [tmp_path / "a.png"]}
    with pytest.raises(InvalidInputError, match="has 6,291,457 bytes, and a picture may have 6,291,456"):
        await connect().generate(edit, model=EDIT)
    with pytest.raises(InputRejectedError, match="larger than 6 MiB") as caught:
        await connect(limits=Limits(max_picture_bytes=7 * MIB)).generate(edit, model=EDIT)
    assert (caught.value.charged, len(str(caught.value)) < 500, klein_emulator.accepted) == ("no", True, 0)


@pytest.mark.parametrize("journal", [False, True])
async def test_a_read_that_is_abandoned_sends_nothing(klein_emulator, connect, tmp_path, journal):
    (tmp_path / "a.png").write_bytes(PNG)
    edit = {"prompt": "x", "image_urls": [tmp_path / "a.png"]}
    async with SqliteJournal(tmp_path / "journal.sqlite") as store:
        client = connect(journal=store if journal else None)
        slow = threading.Event()
        try:
            jobs = [client._context.threads.submit(slow.wait, 5) for _ in range(4)]
            task = asyncio.ensure_future(client.generate_all([edit], model=EDIT))
            await settle()
            await give_up(task)
            [outcome] = await client.generate_all([edit], model=EDIT, timeout=0)
            assert not any(job.done() for job in jobs)
        finally:
            slow.set()
        assert (type(outcome.error), outcome.error.charged) == (APITimeoutError, "no")
        await client.aclose()
    assert (klein_emulator.calls["submit"], strays()) == (0, [])


@pytest.mark.parametrize(
    ("stray", "kind", "accepted"),
    [
        (Reply(200, {"request_id": "somebody-elses"}), SubmissionUncertainError, 0),
        (Reply(422, {"request_id": "somebody-elses"}), InputRejectedError, 0),
        (Reply(422, "x" * 300_000), InputRejectedError, 0),
        (error_reply(401, 400004), AuthenticationError, 0),
        (error_reply(500), SubmissionUncertainError, 0),
        (error_reply(429), GenerationResult, 1),  # refused, and so repeated
    ],
)
async def test_what_comes_before_a_large_body_is_written_is_no_id_and_the_rest_never_leaves(
    klein_emulator, connect, tmp_path, stray, kind, accepted
):
    (tmp_path / "in.png").write_bytes(png(600_000))
    client = connect()
    await client.get_model(EDIT)  # or the first submit would read it
    klein_emulator.script("model", Unasked(stray, with_head=True))
    await client.get_model()
    found = await outcome(client.generate({"prompt": "night", "image_urls": [tmp_path / "in.png"]}, model=EDIT))
    assert (type(found), klein_emulator.accepted) == (kind, accepted)


async def test_an_error_keeps_no_body(klein_emulator, connect, sent, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    edit = {"prompt": "x", "image_urls": [tmp_path / "a.png"]}
    client = connect()
    requests = sent(client)
    klein_emulator.script("submit", error_reply(422), Reset(), Hang())
    rejected, lost, late = [await client.generate_all([edit], model=EDIT, timeout=9) for _ in range(3)]
    assert [type(outcome.error) for [outcome] in (rejected, lost, late)] == [
        InputRejectedError,
        SubmissionUncertainError,
        SubmissionUncertainError,
    ]
    assert len(requests[-1].body) > 0  # that POST runs on for a while
    await client.aclose()
    assert released(requests)
    (tmp_path / "a.png").unlink()
    [[missing]] = [await connect().generate_all([edit], model=EDIT)]
    assert "flux_klein_async/operations/inputs.py" not in "".join(_files_of(missing.error))


def _files_of(error: BaseException) -> list[str]:
    """The files of a traceback's frames: those that read hold pieces of what they read."""
    found, traceback = [], error.__traceback__
    while traceback is not None:
        found.append(traceback.tb_frame.f_code.co_filename)
        traceback = traceback.tb_next
    return found


async def test_an_item_is_recognised_by_what_its_files_hold(klein_emulator, connect, tmp_path):
    old, moved, other = tmp_path / "old.png", tmp_path / "moved.png", tmp_path / "other.png"
    content = png(5_000)
    old.write_bytes(content)
    other.write_bytes(PNG + b"another")

    async def run(*paths: Any, prompt: str = "x") -> list[Any]:
        async with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            client = connect(journal=journal)
            outcomes = await client.generate_all([{"image_urls": [*paths], "prompt": prompt}], model=EDIT)
            await client.aclose()
        return [(outcome.error, outcome.from_journal) for outcome in outcomes]

    assert await run(old, other) == [(None, False)]
    old.rename(moved)
    assert await run(moved, other) == [(None, True)]
    assert await run(other, moved) == [(None, False)]  # the order is part of the input
    assert await run(moved, other, prompt="y") == [(None, False)]
    moved.write_bytes(content + b"!")
    assert await run(moved, other) == [(None, False)]
    assert klein_emulator.accepted == 4
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("journal.sqlite*"))
    assert base64.b64encode(content)[:40] not in kept
    with JournalReader(tmp_path / "journal.sqlite") as reader:
        [first, *_] = reader.requests(oldest_first=True)
    assert [file["file"] for file in first.input["image_urls"]] == [str(old), str(other)]
