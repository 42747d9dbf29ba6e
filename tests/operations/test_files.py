"""The first bytes tell a format, and a file that is not what was promised is refused.

A file is on disk whole, under a plain name, or not at all.
"""

import errno
import hashlib
import io
import itertools
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flux_klein_async.errors import DownloadError, InvalidInputError
from flux_klein_async.operations import files
from flux_klein_async.operations.files import (
    Arrival,
    Content,
    InMemory,
    PartFile,
    checked_names,
    is_promised,
    suffix_of,
)

URL = "https://x.runcomfy.net/f/a"  # promises nothing
EMPTY = "The file is empty"
PAGE = "A web page came in place of the file"
BROKEN_PROMISE = "A picture or video was promised, but the file has no known format"


def drawn(kind: str, side: int = 40, **options: object) -> bytes:
    picture = Image.effect_noise((side, side), 60).convert("RGB")
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def box(name: bytes, data: bytes = b"", *, size: int | None = None) -> bytes:
    return struct.pack(">I", 8 + len(data) if size is None else size) + name + data


def long_box(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I4sQ", 1, name, 16 + len(data)) + data


FTYP = box(b"ftyp", b"isom\0\0\2\0isomiso2")
FILM = FTYP + box(b"moov", bytes(90)) + long_box(b"mdat", bytes(500))
PICTURES = {
    ".png": drawn("PNG"),
    ".jpg": drawn("JPEG"),
    ".webp": drawn("WEBP"),
    ".gif": drawn("GIF"),
    ".mp4": FILM,
    ".avif": box(b"ftyp", b"avif\0\0\0\0mif1avif") + box(b"meta", bytes(30)) + box(b"mdat", bytes(100)),
    ".heic": box(b"ftyp", b"heic\0\0\0\0mif1heic") + box(b"mdat", bytes(100)),
    ".webm": b"\x1aE\xdf\xa3" + bytes(60),
}


def complaint(data: bytes, content_type: str | None = None, url: str = URL, pieces: int = 10**9) -> str | None:
    content = Content()
    for at in range(0, len(data), pieces):
        content.feed(data[at : at + pieces])
    return content.complaint({} if content_type is None else {"content-type": content_type}, url)


@pytest.mark.parametrize(
    ("start", "suffix"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ".png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", ".jpg"),
        (b"\xff\xd8\xff\xe1\0\x10Exif", ".jpg"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", ".webp"),
        (b"GIF89a", ".gif"),
        (b"GIF87a", ".gif"),
        (b"\0\0\0\x20ftypisom", ".mp4"),
        (b"\0\0\0\x20ftypavis", ".avif"),
        (b"\0\0\0\x20ftypheix", ".heic"),
        (b"\0\0\0\x20ftyphevc", ".heic"),
        (b"\0\0\0\x20ftypmif1", ".heic"),
        (b"\x1aE\xdf\xa3\x01", ".webm"),
        (b"", ".bin"),
        (b"\x89PNG", ".bin"),
        (b"\xff\xd8", ".bin"),
        (b"RIFF\x24\0\0\0WAVEfmt ", ".bin"),
        (b" \x89PNG\r\n\x1a\n", ".bin"),
        (b"<html>", ".bin"),
        *((data, suffix) for suffix, data in PICTURES.items()),
    ],
)
def test_the_first_bytes_call_for_a_suffix(start: bytes, suffix: str) -> None:
    assert suffix_of(start) == suffix


@given(st.binary())
def test_any_bytes_have_a_suffix(start: bytes) -> None:
    assert suffix_of(start).startswith(".")


@pytest.mark.parametrize("suffix", PICTURES)
@pytest.mark.parametrize("pieces", [1, 7, 16, 1000, 10**9])
@pytest.mark.parametrize("content_type", [None, "image/png", "video/mp4", "text/html", "application/octet-stream"])
def test_a_known_format_is_accepted_whatever_its_type_says(suffix: str, pieces: int, content_type: str | None) -> None:
    content = Content()
    for at in range(0, len(PICTURES[suffix]), pieces):
        content.feed(PICTURES[suffix][at : at + pieces])
    assert (content.suffix, content.size) == (suffix, len(PICTURES[suffix]))
    assert complaint(PICTURES[suffix], content_type, URL + ".gif", pieces) is None


@pytest.mark.parametrize(
    ("content_type", "url", "promised"),
    [
        ("image/png", URL, True),
        ("video/webm", URL, True),
        ("image/tiff", URL + ".png", False),  # the type speaks first
        ("model/gltf-binary", URL + ".png", False),
        ("audio/mpeg", URL + ".png", False),
        ("", URL + ".png#top.bin", True),
        ("application/octet-stream", URL + ".png", True),
        ("text/html", URL + ".JPEG", True),
        ("", URL + ".mp4?signature=a/b.bin#c.d", True),
        ("", URL + ".png/x", False),
        ("", URL + "/png", False),
        ("", URL + ".glb", False),
        ("", URL, False),
        ("application/json", URL + ".json", False),
    ],
)
def test_the_type_promises_or_else_the_suffix(content_type: str, url: str, promised: bool) -> None:
    assert is_promised(content_type, url) is promised


KNOWN = ["png", "jpeg", "jpg", "webp", "gif", "avif", "heic"]


@pytest.mark.parametrize("name", [*(f"image/{name}" for name in KNOWN), "video/mp4", "video/webm"])
def test_every_known_format_is_promised_by_its_type_and_by_its_suffix(name: str) -> None:
    assert is_promised(name, URL)
    assert is_promised("", f"{URL}.{name.partition('/')[2]}")


HTML = b"\xef\xbb\xbf \r\n<!DOCTYPE html><title>502</title>"


@pytest.mark.parametrize(
    ("data", "content_type", "url", "expected"),
    [
        (b"", "image/png", URL, EMPTY),
        (b"", None, URL, EMPTY),
        # promised, and not kept
        (b"what?", "image/png", URL, BROKEN_PROMISE),
        (b"what?", "Image/PNG; q=1", URL, BROKEN_PROMISE),
        (b"what?", "application/octet-stream", URL + ".webp", BROKEN_PROMISE),
        (b'{"error": 1}', "application/json", URL + ".png", BROKEN_PROMISE),
        # promised nothing: kept, since it was paid for
        (b"what?", None, URL, None),
        (b"what?", "application/octet-stream", URL, None),
        (b"II*\0", "image/tiff", URL + ".png", None),
        (b"glTF", "model/gltf-binary", URL + ".glb", None),
        (b"{}", "application/json", URL + ".json", None),
        (b"a < b", "text/plain", URL + ".txt", None),
        # a page
        (HTML, None, URL, PAGE),
        (HTML, "image/png", URL + ".png", PAGE),
        (HTML, "application/octet-stream", URL, PAGE),
        (b" \n<HTML lang=en>", "text/html", URL + ".png", PAGE),
        (b"busy", "text/html; charset=utf-8", URL, PAGE),
        (b"busy", "application/xhtml+xml", URL, PAGE),
        *((start + b" lang=en>", None, URL, PAGE) for start in (b"<html", b"<head", b"<body", b"<!doctype html")),
        (HTML, "text/html", URL + ".html", None),
        (HTML, None, URL + ".HTM", None),
        (b"<htmx", None, URL, None),
    ],
)
def test_a_promise_is_held_against_what_came(
    data: bytes, content_type: str | None, url: str, expected: str | None
) -> None:
    assert complaint(data, content_type, url) == expected


def test_what_is_kept_of_a_file_does_not_grow_with_it():
    content = Content()
    for size in (1000, 5000, 100_000):
        content.feed(bytes(size))
    assert sum(len(value) for value in vars(content).values() if isinstance(value, bytes)) == 1024


whole = st.sampled_from(sorted(PICTURES.values()))
anything = (
    st.binary(max_size=3000)
    | whole
    | st.tuples(whole, st.integers(0, 3000)).map(lambda found: found[0][: found[1]])
    | st.tuples(whole, st.binary(max_size=50)).map(lambda found: found[0][:16] + found[1])
    | st.lists(st.binary(max_size=20).map(lambda data: box(b"free", data))).map(lambda boxes: FTYP + b"".join(boxes))
)


@given(anything, st.lists(st.integers(0, 3000), max_size=8), st.sampled_from(["image/png", "", "text/html"]))
def test_the_pieces_make_no_difference_and_little_is_kept(data: bytes, cuts: list[int], content_type: str) -> None:
    content = Content()
    marks = [0, *sorted(cuts), 10**6]
    for start, end in itertools.pairwise(marks):
        content.feed(data[start:end])
    assert (content.suffix, content.size) == (suffix_of(data), len(data))
    assert content.complaint({"content-type": content_type}, URL) == complaint(data, content_type)
    kept = [value for value in vars(content).values() if isinstance(value, bytes)]
    assert sum(map(len, kept)) <= 1024


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a.png"],
        ["a", "b.png", "c d.png", ".hidden", "a..b"],
        ["h\u00e9.png", "\u2603.png", "\U0001f406"],
        ["x" * 255],
        ["\u00e9" * 127],
        ["com.png", "conned.png", "aux1", "lpt.txt", "com10"],
        ("a", "b"),
    ],
    ids=ascii,
)
def test_takes_plain_names_one_for_each_file(names: list[str]) -> None:
    assert checked_names(names, len(names)) == list(names)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "...",
        ". .",
        "a/b",
        "/a",
        "../a",
        "a\\b",
        "C:",
        "C:a",
        "a:stream",
        "a<b",
        "a>b",
        'a"b',
        "a|b",
        "a?b",
        "a*b",
        "a\0b",
        "a\nb",
        "a\x1fb",
        "a\x7fb",
        "con",
        "CON",
        "con.png",
        "Nul.tar.gz",
        "aux",
        "prn.txt",
        "com1",
        "COM\u00b9.png",
        "conin$",
        "CONOUT$",
        "LPT9.png",
        "x" * 256,
        "\u00e9" * 128,
        None,
        5,
        b"a.png",
        Path("a.png"),
    ],
    ids=ascii,
)
def test_refuses_what_is_more_than_a_plain_name(name: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^Not a plain file name: "):
        checked_names([name], 1)


def test_refuses_a_name_that_no_file_system_can_encode() -> None:
    with pytest.raises(InvalidInputError):
        checked_names(["\ud800.png"], 1)


@pytest.mark.parametrize(
    ("names", "count"), [([], 1), (["a"], 0), (["a"], 2), (["a", "b"], 1), ("ab", 2), ("a", 1), ("", 0)]
)
def test_refuses_too_few_and_too_many_names_and_a_bare_string(names: Any, count: int) -> None:
    with pytest.raises(InvalidInputError) as caught:
        checked_names(names, count)
    assert str(caught.value) == f"names must be a list of {count} file names, one for each file"


@pytest.mark.parametrize("names", [["a", "a"], ["a.png", "A.PNG"], ["stra\u00dfe", "STRASSE"]])
def test_refuses_the_same_name_twice(names: list[str]) -> None:
    with pytest.raises(InvalidInputError, match=r"^The same file name was given twice$"):
        checked_names(names, len(names))


@pytest.mark.parametrize("names", [["a", "a."], ["a", "a "], ["\u00e9", "e\u0301"]], ids=ascii)
def test_refuses_names_that_some_file_system_takes_for_the_same(names: list[str]) -> None:
    with pytest.raises(InvalidInputError):
        checked_names(names, len(names))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_name_is_refused_or_stays_in_its_folder(name: str) -> None:
    try:
        [kept] = checked_names([name], 1)
    except InvalidInputError:
        return
    assert (kept, Path("out") / kept, Path(kept).name) == (name, Path(f"out/{name}"), name)


WILD_NAMES = st.text(st.characters(exclude_categories=[])) | st.sampled_from(
    [
        "../../x",
        "..",
        "con",
        "a:b",
        "",
        "x" * 300,
        "a\0b",
        "a\nb",
        "/etc/x",
        "a/../../x",
        "\\\\host\\x",
        "a.png",
        "A.PNG",
    ]
)


@given(st.lists(WILD_NAMES, max_size=4))
def test_whatever_the_names_nothing_is_written_outside_the_directory(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "inner" / "out"
        try:
            checked = checked_names(names, len(names))
        except InvalidInputError:
            return
        saved = []
        for name in checked:
            part = PartFile(out, lambda _suffix, name=name: name)  # type: ignore[misc]
            part.write(name.encode())
            saved.append(part.commit(".png").path)
        assert saved == [out / name for name in names]
        assert [path.read_bytes() for path in saved] == [name.encode() for name in names]
        everything = {path for path in Path(folder).rglob("*") if path.is_file()}
        assert everything == set(saved)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def part_of(directory: Path, stem: str = "a") -> PartFile:
    return PartFile(directory, lambda suffix: stem + suffix)


def saved(directory: Path, data: bytes, stem: str = "a") -> Path:
    part = part_of(directory, stem)
    part.write(data)
    return part.commit(".png").path


def test_a_file_appears_under_its_name_when_it_is_complete(tmp_path: Path) -> None:
    part = part_of(tmp_path / "out" / "deeper")
    part.write(b"first ")
    part.write(b"second ")
    hidden = listing(tmp_path)
    part.write(b"last")
    final = part.commit(".png")
    assert (final.path, final.path.read_bytes()) == (tmp_path / "out/deeper/a.png", b"first second last")
    assert final.sha256 == hashlib.sha256(b"first second last").hexdigest()
    assert ([name.endswith(".part") for name in hidden], listing(tmp_path)) == (
        [False, False, True],
        ["out", "out/deeper", "out/deeper/a.png"],
    )


def test_a_file_begun_anew_has_nothing_of_what_was_there(tmp_path: Path) -> None:
    part = part_of(tmp_path)
    part.write(b"something longer")
    part.write(b" and more")
    part.restart()
    part.write(b"new")
    part.write(b"er")
    final = part.commit(".jpg")
    assert (final.path.read_bytes(), final.sha256) == (b"newer", hashlib.sha256(b"newer").hexdigest())


def test_bytes_in_memory_are_begun_anew_and_given_back() -> None:
    sink = InMemory()
    sink.write(b"something longer")
    sink.restart()
    sink.write(b"new")
    sink.write(b"er")
    assert sink.commit(".png") == b"newer"
    sink.discard()
    assert sink.commit(".png") == b""


def test_a_file_replaces_what_had_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old and longer")
    assert saved(tmp_path, b"new").read_bytes() == b"new"
    assert listing(tmp_path) == ["a.png"]


def test_a_link_with_the_name_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(elsewhere)
    (tmp_path / "out" / "b.png").symlink_to(tmp_path / "nowhere")
    paths = [saved(tmp_path / "out", b"new"), saved(tmp_path / "out", b"new", "b")]
    assert [(path.is_symlink(), path.read_bytes()) for path in paths] == [(False, b"new")] * 2
    assert (elsewhere.read_bytes(), listing(tmp_path)) == (b"mine", ["elsewhere", "out", "out/a.png", "out/b.png"])


def test_the_hidden_file_is_never_one_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda _count: "foreseen")
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / ".foreseen.part").symlink_to(tmp_path / "mine")
    part = part_of(tmp_path)
    with pytest.raises(DownloadError):
        part.write(b"new")
    part.discard()
    assert ((tmp_path / "mine").read_bytes(), listing(tmp_path)) == (b"mine", [".foreseen.part", "mine"])


def test_a_directory_that_is_a_link_is_the_users_choice(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert saved(tmp_path / "link", b"new") == tmp_path / "link" / "a.png"
    assert (tmp_path / "real" / "a.png").read_bytes() == b"new"


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    part = part_of(tmp_path)
    part.write(b"new")
    assert (tmp_path / "a.png").read_bytes() == b"old"
    part.discard()
    assert ((tmp_path / "a.png").read_bytes(), listing(tmp_path)) == (b"old", ["a.png"])


def test_nothing_is_made_before_the_first_bytes(tmp_path: Path) -> None:
    part_of(tmp_path / "out").discard()
    assert listing(tmp_path) == []


def test_a_discarded_file_leaves_nothing(tmp_path: Path) -> None:
    part = part_of(tmp_path)
    part.write(b"some")
    part.discard()
    part.discard()
    assert listing(tmp_path) == []


def test_discarding_a_committed_file_leaves_it_alone(tmp_path: Path) -> None:
    part = part_of(tmp_path)
    part.write(b"all")
    part.commit(".png")
    part.discard()
    assert listing(tmp_path) == ["a.png"]


def test_files_of_one_folder_do_not_meet_while_they_are_written(tmp_path: Path) -> None:
    parts = [part_of(tmp_path, str(number)) for number in range(10)]
    for number, part in enumerate(parts):
        part.write(b"%d" % number)
    paths = [part.commit(".png").path for part in parts]
    assert [path.read_bytes() for path in paths] == [b"%d" % number for number in range(10)]


# --- trouble with the disk


def a_file_in_the_way(folder: Path) -> Path:
    (folder / "way").write_bytes(b"")
    return folder / "way"


def a_dangling_link(folder: Path) -> Path:
    (folder / "way").symlink_to(folder / "nowhere")
    return folder / "way"


def a_ring_of_links(folder: Path) -> Path:
    (folder / "way").symlink_to(folder / "way")
    return folder / "way" / "deeper"


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        (a_file_in_the_way, "a file stands where a directory should be"),
        (lambda folder: a_file_in_the_way(folder) / "deeper", "a file stands where a directory should be"),
        (a_dangling_link, "a file stands where a directory should be"),
        (a_ring_of_links, "try another directory"),
        (lambda _folder: Path("/proc"), "the directory vanished, or cannot be made"),
        (lambda _folder: Path("/proc/new"), "the directory vanished, or cannot be made"),
        (lambda folder: folder / ("x" * 300), "the name is too long"),
        (lambda folder: folder / "a\0b", "try another directory"),
        (lambda folder: folder / "a\ud800b", "try another directory"),
    ],
    ids=range(9),
)
def test_a_place_where_nothing_can_be_written_is_a_download_error(tmp_path: Path, place: Any, advice: str) -> None:
    directory = place(tmp_path)
    before = listing(tmp_path)
    part = part_of(directory)
    with pytest.raises(DownloadError) as caught:
        part.write(b"some")
    part.discard()
    assert f"{str(directory)!r}: {advice}" in str(caught.value)
    assert (caught.value.retryable, caught.value.charged, listing(tmp_path)) == (False, "yes", before)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        *[(code, "make room") for code in (errno.ENOSPC, errno.EDQUOT)],
        (errno.EFBIG, "ulimit -f"),
        *[(code, "choose another directory") for code in (errno.EROFS, errno.EACCES, errno.EPERM)],
        (errno.ENOENT, "the directory vanished"),
        *[(code, "a file stands where") for code in (errno.EEXIST, errno.ENOTDIR)],
        *[(code, "give another name") for code in (errno.EISDIR, errno.ENOTEMPTY)],
        (errno.ENAMETOOLONG, "a shorter one"),
        *[(code, "too many files are open") for code in (errno.EMFILE, errno.ENFILE)],
        (errno.EIO, "try another directory"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_what_can_be_done_about_a_refusal_of_the_system_is_said(tmp_path: Path, code: int, advice: str) -> None:
    class Refusing(io.BytesIO):
        def write(self, _data: Any) -> int:
            raise OSError(code, "refused")

    part = part_of(tmp_path)
    part._file = Refusing()
    with pytest.raises(DownloadError, match=advice) as caught:
        part.write(b"some")
    assert isinstance(caught.value.__cause__, OSError)


def test_what_a_full_disk_refuses_only_when_the_file_is_closed_keeps_nothing_back(tmp_path: Path) -> None:
    part = part_of(tmp_path)
    full(part)
    part.write(b"more")  # buffered
    part.discard()
    assert listing(tmp_path) == []


def test_a_file_has_its_name_only_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(
        files.os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_size, listing(tmp_path)))
    )
    saved(tmp_path, b"all of it")
    [(size, names)] = synced
    assert (size, [name.endswith(".part") for name in names]) == (9, [True])


def test_what_cannot_be_removed_is_a_download_error(tmp_path: Path) -> None:
    part = part_of(tmp_path)
    part.write(b"some")
    [hidden] = tmp_path.iterdir()
    hidden.unlink()
    (hidden / "in the way").mkdir(parents=True)
    with pytest.raises(DownloadError, match="cannot be saved"):
        part.discard()


def test_a_directory_with_the_files_name_stays_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    part = part_of(tmp_path)
    part.write(b"all")
    with pytest.raises(DownloadError, match=r"a directory has the name of the file; .*a\.png"):
        part.commit(".png")
    part.discard()
    assert listing(tmp_path) == ["a.png"]


def test_a_directory_that_vanishes_before_the_file_has_its_name_is_a_download_error(tmp_path: Path) -> None:
    part = part_of(tmp_path / "out")
    part.write(b"all")
    shutil.rmtree(tmp_path / "out")
    part.write(b"!")
    with pytest.raises(DownloadError, match="the directory vanished"):
        part.commit(".png")
    part.discard()
    assert listing(tmp_path) == []


def full(part: PartFile) -> None:
    """As if the disk had become full: the kernel's own device for that stands in for the file."""
    part._file = Path("/dev/full").open("wb")  # noqa: SIM115  # closed by the part


def test_a_full_disk_is_a_download_error_at_the_write_and_at_the_end(tmp_path: Path) -> None:
    for end in (lambda part: part.write(bytes(100_000)), lambda part: (part.write(b"x"), part.commit(".png"))):
        part = part_of(tmp_path)
        full(part)
        with pytest.raises(DownloadError, match="make room, then download again"):
            end(part)
        part.discard()
    assert listing(tmp_path) == []


# --- one file as its bytes come in


def test_its_sink_is_used_by_one_thread_at_a_time() -> None:
    used: list[str] = []

    class Watched(InMemory):
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_"):
                used.append(name)
                assert arrival._lock.locked()
            return super().__getattribute__(name)

    arrival = Arrival(Watched())
    arrival.add(b"so")
    arrival.finish(b"me", lambda _seen: None)
    arrival.drop()
    assert used == ["write", "write", "commit", "discard"]


def test_a_file_that_was_dropped_is_not_begun_again_by_a_job_that_comes_late(tmp_path: Path) -> None:
    arrival = Arrival(part_of(tmp_path))
    arrival.add(b"some")
    arrival.drop()
    with pytest.raises(DownloadError, match="abandoned"):
        arrival.add(b"more")
    with pytest.raises(DownloadError, match="abandoned"):
        arrival.finish(b"more", lambda _seen: None)
    assert listing(tmp_path) == []


def test_a_complaint_keeps_a_file_from_its_name(tmp_path: Path) -> None:
    arrival = Arrival(part_of(tmp_path))
    with pytest.raises(DownloadError, match="it has 4 bytes") as caught:
        arrival.finish(b"some", lambda seen: f"it has {seen.size} bytes")
    assert caught.value.retryable
    arrival.drop()
    assert listing(tmp_path) == []


def test_a_file_begun_anew_is_polled_anew(tmp_path: Path) -> None:
    arrival = Arrival(part_of(tmp_path))
    arrival.add(b"<html>")
    arrival.restart()
    arrival.add(b"GIF89a")
    assert arrival.finish(b"...", lambda seen: None if seen.size == 9 else "?").path == tmp_path / "a.gif"
