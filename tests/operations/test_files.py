"""A file is checked by its first bytes, and is on disk whole, under a plain name, or not at all."""

import base64
import errno
import hashlib
import io
import itertools
import math
import os
import pickle
import re
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
    InMemory,
    PartFile,
    SavedPaths,
    figure,
    part_files,
    problem_with,
    remove_files,
    suffix_of,
)
from flux_klein_async.operations.names import checked_names
from tests.fakes import png
from tests.operations.test_names import BAD_NAMES

URL = "https://x.runcomfy.net/f/a"  # promises nothing
EMPTY = "The file is empty"
PAGE = "A web page came in place of the file"
BROKEN_PROMISE = "A picture or video was promised, but the file has no known format"


def drawn(kind: str) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((40, 40), 60).convert("RGB").save(out, kind)
    return out.getvalue()


def box(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", 8 + len(data)) + name + data


FTYP = box(b"ftyp", b"isom\0\0\2\0isomiso2")
PICTURES = {
    ".png": drawn("PNG"),
    ".jpg": drawn("JPEG"),
    ".webp": drawn("WEBP"),
    ".gif": drawn("GIF"),
    ".mp4": FTYP + box(b"moov", bytes(90)) + box(b"mdat", bytes(500)),
    ".avif": box(b"ftyp", b"avif\0\0\0\0mif1avif") + box(b"meta", bytes(30)),
    ".heic": box(b"ftyp", b"heic\0\0\0\0mif1heic") + box(b"mdat", bytes(100)),
    ".webm": b"\x1aE\xdf\xa3" + bytes(60),
}


# --- what a file is


@pytest.mark.parametrize(
    ("start", "suffix"),
    [
        (b"\xff\xd8\xff\xe1\0\x10Exif", ".jpg"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", ".webp"),
        (b"GIF89a", ".gif"),
        (b"GIF87a", ".gif"),
        (b"\0\0\0\x20ftypisom", ".mp4"),
        (b"\0\0\0\x20ftypavis", ".avif"),
        (b"\0\0\0\x20ftypheix", ".heic"),
        (b"\0\0\0\x20ftyphevc", ".heic"),
        (b"\0\0\0\x20ftypmif1", ".heic"),
        (b"", ".bin"),
        (b"\x89PNG", ".bin"),
        (b"\xff\xd8", ".bin"),
        (b"RIFF\x24\0\0\0WAVEfmt ", ".wav"),
        (b"RIFF\x24\0\0\0AVI LIST", ".avi"),
        (b"ID3\x04\0\0", ".mp3"),
        (b"\xff\xfb\x90\x64", ".mp3"),
        (b"OggS\0\x02", ".ogg"),
        (b"fLaC\0\0", ".flac"),
        (b"\0\0\0\x20ftypM4A ", ".m4a"),
        (b"\0\0\0\x14ftypqt  ", ".mov"),
        (b" \x89PNG\r\n\x1a\n", ".bin"),
        (b"<html>", ".bin"),
        *((data, suffix) for suffix, data in PICTURES.items()),
    ],
)
def test_the_first_bytes_call_for_a_suffix(start: bytes, suffix: str) -> None:
    assert suffix_of(start) == suffix


def problem(start: bytes, content_type: str | None, url: str) -> str | None:
    return problem_with(start, {} if content_type is None else {"content-type": content_type}, url)


def test_a_known_format_is_accepted_whatever_its_type_and_url_say() -> None:
    for data in PICTURES.values():
        for content_type in (None, "image/png", "video/mp4", "text/html", "application/octet-stream"):
            assert problem(data[:1024], content_type, URL + ".gif") is None


HTML = b"\xef\xbb\xbf \r\n<!DOCTYPE html><title>502</title>"
KNOWN = ["image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif", "image/avif", "image/heic"]


@pytest.mark.parametrize(
    ("data", "content_type", "url", "expected"),
    [
        (b"", "image/png", URL, EMPTY),
        (b"", None, URL, EMPTY),
        # promised by the type, or else by the suffix
        *((b"what?", name, URL, BROKEN_PROMISE) for name in [*KNOWN, "video/mp4", "video/webm"]),
        *((b"what?", None, f"{URL}.{name[6:]}", BROKEN_PROMISE) for name in [*KNOWN, "video/mp4", "video/webm"]),
        (b"what?", "Image/PNG; q=1", URL, BROKEN_PROMISE),
        (b"what?", "application/octet-stream", URL + ".WEBP", BROKEN_PROMISE),
        (b"what?", None, URL + ".png#top.bin", BROKEN_PROMISE),
        (b"what?", None, URL + ".mp4?signature=a/b.bin#c.d", BROKEN_PROMISE),
        (b'{"error": 1}', "application/json", URL + ".png", BROKEN_PROMISE),
        # nothing was promised: kept, since it was paid for
        (b"what?", None, URL, None),
        (b"what?", None, URL + ".png/x", None),
        (b"what?", None, URL + "/png", None),
        (b"what?", "application/octet-stream", URL, None),
        (b"II*\0", "image/tiff", URL + ".png", None),  # the type speaks first
        (b"glTF", "model/gltf-binary", URL + ".png", None),
        (b"ID3", "audio/mpeg", URL + ".png", None),
        (b"ADTS", "audio/mp4", URL, None),
        (b"glTF", None, URL + ".glb", None),
        (b"{}", "application/json", URL + ".json", None),
        (b"a < b", "text/plain", URL + ".txt", None),
        # a web page
        (HTML, None, URL, PAGE),
        (HTML, "image/png", URL + ".png", PAGE),
        (HTML, None, URL + "/html", PAGE),
        (b" \n<HTML lang=en>", "text/html", URL + ".png", PAGE),
        (b"busy", "text/html; charset=utf-8", URL, PAGE),
        (b"busy", "application/xhtml+xml", URL, PAGE),
        *((start + b" lang=en>", None, URL, PAGE) for start in (b"<html", b"<head", b"<body", b"<!doctype html")),
        (HTML, "text/html", URL + ".html", None),
        (HTML, None, URL + ".HTM", None),
        (b"<htmx", None, URL, None),
    ],
)
def test_a_file_is_what_was_promised(data: bytes, content_type: str | None, url: str, expected: str | None) -> None:
    assert problem(data, content_type, url) == expected


WILD_NAMES = st.text(st.characters(exclude_categories=[])) | st.sampled_from(
    [name for name in BAD_NAMES if isinstance(name, str)] + ["../../x", "/etc/x", "\\\\host\\x", "a.png", "A.PNG"]
)


@given(st.lists(WILD_NAMES, max_size=4))
def test_whatever_the_names_nothing_is_written_outside_the_directory(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "inner" / "out"
        try:
            checked = checked_names(names, len(names))
        except InvalidInputError:
            return
        kept = [saved(out, name.encode() or b"?", name, exact=True) for name in checked]
        assert kept == [out / name for name in names]
        assert {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()} == {
            out / name: name.encode() for name in names
        }


# --- how it is saved


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def saved(directory: Path, data: bytes, stem: str = "a", *, exact: bool = False) -> Path:
    return PartFile(directory, stem, exact=exact).finish(data, {}, URL).path


def test_a_file_appears_under_its_name_when_it_is_complete(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "out" / "deeper", "a")
    part.restart()
    part.add(b"GIF89a")
    part.add(b"second ")
    hidden = listing(tmp_path)
    final = part.finish(b"last", {}, URL)
    assert (final.path, final.path.read_bytes()) == (tmp_path / "out/deeper/a.gif", b"GIF89asecond last")
    assert (final.sha256, final.size) == (hashlib.sha256(b"GIF89asecond last").hexdigest(), 17)
    assert [name.endswith(".part") for name in hidden] == [False, False, True]
    part.drop()  # a complete file stays
    assert listing(tmp_path) == ["out", "out/deeper", "out/deeper/a.gif"]


def numbered(directory: Path, data: bytes, first: int = 1, *, stem: str = "a", compared: float = 0) -> str:
    return PartFile(directory, stem, number=first, compared=compared).finish(data, {}, URL).path.name


@pytest.fixture(params=["with hard links", "without"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "this file system has no hard links")

    if request.param == "without":
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("file_system")
def test_a_numbered_file_gets_a_free_name_and_replaces_none(tmp_path: Path) -> None:
    data = [b"GIF8" + bytes([number]) for number in range(12)]
    assert [numbered(tmp_path, each) for each in data[:9]] == ["a.gif", *(f"a-{n}.gif" for n in range(2, 10))]
    (tmp_path / "a-4.gif").unlink()
    assert numbered(tmp_path, data[9], 2) == "a-4.gif"
    assert numbered(tmp_path, data[10], 4) == "a-10.gif"
    assert numbered(tmp_path, png(60)) == "a.png"
    given = {"c.PNG": png(60), "c.jpeg": b"\xff\xd8\xff", "c.bin": b"?", "c.gif.jpg": b"GIF8", "c.5": png(60)}
    names = ["c.PNG", "c.jpeg", "c.bin", "c.gif.jpg.gif", "c.5.png"]  # a suffix of the content is not written twice
    assert [numbered(tmp_path, data, stem=stem) for stem, data in given.items()] == names
    assert numbered(tmp_path, png(60), 2, stem="c.PNG") == "c-2.PNG"
    assert [(tmp_path / f"a-{n}.gif").read_bytes() for n in (2, 4, 10)] == [data[1], data[9], data[10]]
    assert len(listing(tmp_path)) == 17


@pytest.mark.usefixtures("file_system")
def test_a_name_that_is_taken_in_this_very_instant_is_left_to_its_taker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that ignores case, where another spelling has the name."""
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    (tmp_path / "a.gif").touch()
    assert numbered(tmp_path, b"GIF89a") == "a-2.gif"
    assert listing(tmp_path) == ["a-2.gif", "a.gif"]


def test_only_the_very_file_is_recognised_again(tmp_path: Path) -> None:
    (tmp_path / "a.gif").symlink_to("a-3.gif")
    (tmp_path / "a-2.gif").write_bytes(b"GIF87a")
    (tmp_path / "a-3.gif").write_bytes(b"GIF89a")
    assert numbered(tmp_path, b"GIF89a", compared=math.inf) == "a-3.gif"
    assert numbered(tmp_path, b"GIF89a", 3, compared=1) == "a-3.gif"
    assert numbered(tmp_path, b"GIF89a", compared=1) == "a-4.gif"
    assert numbered(tmp_path, b"GIF8??", compared=math.inf) == "a-5.gif"
    assert len(listing(tmp_path)) == 5


@pytest.mark.usefixtures("file_system")
def test_two_runs_that_save_the_same_file_at_the_same_instant_save_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    assert [numbered(tmp_path, b"GIF89a", compared=1) for _ in range(2)] == ["a.gif"] * 2
    assert numbered(tmp_path, b"GIF87a", compared=1) == "a-2.gif"
    assert listing(tmp_path) == ["a-2.gif", "a.gif"]


def test_unfinished_files_are_found_by_the_mark_of_their_run(tmp_path):
    mark, other = "0123456789ab-0123456789abcdef", "ba9876543210-0123456789abcdef"
    parts = [PartFile(tmp_path, "a", mark=whose) for whose in (mark, mark, other, "")]
    for part in parts:
        part.add(b"x")
    found = part_files(tmp_path)
    assert {whose: len(paths) for whose, paths in found.items()} == {mark: 2, other: 1}
    remove_files(found[mark])
    remove_files(found[mark])  # gone already
    assert list(part_files(tmp_path)) == [other]
    for part in parts:
        part.drop()
    assert part_files(tmp_path / "none") == {}


@pytest.mark.parametrize("make", [lambda folder: PartFile(folder, "a"), lambda _: InMemory()], ids=["disk", "memory"])
def test_a_restarted_file_has_nothing_of_what_was_there(tmp_path: Path, make: Any) -> None:
    file = make(tmp_path)
    file.add(b"<html>something longer")
    file.add(b" and more")
    file.restart()
    file.add(b"GIF89a")
    kept = file.finish(b"er", {}, URL)
    if isinstance(file, PartFile):
        assert (kept.sha256, kept.size) == (hashlib.sha256(b"GIF89aer").hexdigest(), 8)
        kept = kept.path.read_bytes()
    else:
        file.drop()
        assert file._data == b""  # the memory is given back
    assert kept == b"GIF89aer"


whole = st.sampled_from(sorted(PICTURES.values()))
anything = (
    st.binary(max_size=3000)
    | st.tuples(whole, st.integers(0, 3000)).map(lambda found: found[0][: found[1]])
    | st.tuples(whole, st.binary(max_size=50)).map(lambda found: found[0][:16] + found[1])
)


@given(anything, st.lists(st.integers(0, 3000), max_size=8), st.sampled_from(["image/png", "", "text/html"]))
def test_the_pieces_make_no_difference_and_little_is_kept_for_the_check(
    data: bytes, cuts: list[int], content_type: str
) -> None:
    file = InMemory()
    for start, end in itertools.pairwise([0, *sorted(cuts)]):
        file.add(data[start:end])
    headers = {"content-type": content_type}
    last = data[max(cuts, default=0) :]
    if (expected := problem_with(data[:1024], headers, URL)) is None:
        assert file.finish(last, headers, URL) == data
    else:
        with pytest.raises(DownloadError, match=f"^{expected}") as caught:
            file.finish(last, headers, URL)
        assert caught.value.retryable
    assert file._start == data[:1024]


def test_what_has_the_name_is_replaced_and_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_bytes(b"old and longer")
    (out / "b").symlink_to(tmp_path / "elsewhere")
    (out / "c").symlink_to(tmp_path / "nowhere")
    paths = [saved(out, b"new", name, exact=True) for name in "abc"]
    assert [(path.is_symlink(), path.read_bytes()) for path in paths] == [(False, b"new")] * 3
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
    assert listing(tmp_path) == ["elsewhere", "out", "out/a", "out/b", "out/c"]


def test_the_hidden_file_is_never_one_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda _count: "foreseen")
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / ".foreseen.part").symlink_to(tmp_path / "mine")
    part = PartFile(tmp_path, "a")
    with pytest.raises(DownloadError):
        part.add(b"new")
    part.drop()
    assert ((tmp_path / "mine").read_bytes(), listing(tmp_path)) == (b"mine", [".foreseen.part", "mine"])


def test_a_directory_that_is_a_link_is_the_users_choice(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert saved(tmp_path / "link", b"new") == tmp_path / "link" / "a.bin"
    assert (tmp_path / "real" / "a.bin").read_bytes() == b"new"


def test_an_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    part = PartFile(tmp_path, "a")
    part.add(b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    part.drop()
    part.drop()
    assert ((tmp_path / "a.bin").read_bytes(), listing(tmp_path)) == (b"old", ["a.bin"])


def test_nothing_is_made_before_the_first_bytes(tmp_path: Path) -> None:
    PartFile(tmp_path / "out", "a").drop()
    assert listing(tmp_path) == []


def test_a_file_has_its_name_only_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: synced.append((os.fstat(handle).st_size, listing(tmp_path))))
    saved(tmp_path, b"all of it")
    [(size, names)] = synced
    assert (size, [name.endswith(".part") for name in names]) == (9, [True])


# --- one thread at a time, and none after the end


def test_one_thread_works_on_a_file_at_a_time() -> None:
    used: list[str] = []

    class Watched(InMemory):
        def __getattribute__(self, name: str) -> Any:
            if name in ("_write", "_keep", "_clear"):
                used.append(name)
                assert self._lock.locked()
            return super().__getattribute__(name)

    file = Watched()
    file.add(b"so")
    file.finish(b"me", {}, URL)
    file.drop()
    assert used == ["_write", "_write", "_keep", "_clear"]


def test_a_job_that_comes_after_the_drop_writes_nothing(tmp_path: Path) -> None:
    part = PartFile(tmp_path, "a")
    part.add(b"some")
    part.drop()
    for late in (lambda: part.add(b"more"), lambda: part.finish(b"more", {}, URL)):
        with pytest.raises(DownloadError, match="abandoned"):
            late()
    assert listing(tmp_path) == []


def test_a_problem_keeps_a_file_from_its_name(tmp_path: Path) -> None:
    part = PartFile(tmp_path, "a")
    with pytest.raises(DownloadError, match=BROKEN_PROMISE):
        part.finish(b"some", {"content-type": "image/png"}, URL)
    part.drop()
    assert listing(tmp_path) == []


# --- trouble with the disk


def in_the_way(folder: Path) -> Path:
    (folder / "way").write_bytes(b"")
    return folder / "way"


def link(folder: Path, to: str) -> Path:
    (folder / "way").symlink_to(folder / to)
    return folder / "way"


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        (in_the_way, "a file stands where a directory should be"),
        (lambda folder: in_the_way(folder) / "deeper", "a file stands where a directory should be"),
        (lambda folder: link(folder, "nowhere"), "a file stands where a directory should be"),
        (lambda folder: link(folder, "way") / "deeper", "try another directory"),
        (lambda _folder: Path("/proc"), "the directory vanished, or cannot be made; make it, or choose another"),
        (lambda _folder: Path("/proc/new"), "the directory vanished, or cannot be made; make it, or choose another"),
        (lambda folder: folder / ("x" * 300), "the name is too long"),
        (lambda folder: folder / "a\0b", "try another directory"),
        (lambda folder: folder / "a\ud800b", "try another directory"),
    ],
    ids=range(9),
)
def test_a_place_where_nothing_can_be_written_is_a_download_error(tmp_path: Path, place: Any, advice: str) -> None:
    directory = place(tmp_path)
    before = listing(tmp_path)
    part = PartFile(directory, "a")
    with pytest.raises(DownloadError) as caught:
        part.add(b"some")
    part.drop()
    assert f"{str(directory)!r}: {advice}" in str(caught.value)
    assert (caught.value.retryable, caught.value.charged, listing(tmp_path)) == (False, "yes", before)


class Refusing(io.BytesIO):
    def __init__(self, code: int) -> None:
        self._code = code

    def write(self, _data: Any) -> int:
        raise OSError(self._code, "refused")


@pytest.mark.parametrize(
    ("codes", "advice"),
    [
        ([errno.ENOSPC, errno.EDQUOT], "make room"),
        ([errno.EFBIG], "ulimit -f"),
        ([errno.EROFS, errno.EACCES, errno.EPERM], "choose another directory"),
        ([errno.ENOENT], "the directory vanished"),
        ([errno.EEXIST, errno.ENOTDIR], "a file stands where"),
        ([errno.EISDIR, errno.ENOTEMPTY], "give another name"),
        ([errno.ENAMETOOLONG], "a shorter one"),
        ([errno.EMFILE, errno.ENFILE], "too many files are open"),
        ([errno.EIO], "try another directory"),
    ],
)
def test_an_error_of_the_system_says_what_to_do(tmp_path: Path, codes: list[int], advice: str) -> None:
    for code in codes:
        part = PartFile(tmp_path, "a")
        part._file = Refusing(code)
        with pytest.raises(DownloadError, match=advice) as caught:
            part.add(b"some")
        assert isinstance(caught.value.__cause__, OSError)


def test_a_full_disk_is_a_download_error_at_any_time_and_leaves_nothing(tmp_path: Path) -> None:
    """The kernel's own device for this stands in for the file."""
    for end in (lambda part: part.add(bytes(100_000)), lambda part: part.finish(b"x", {}, URL)):
        part = PartFile(tmp_path, "a")
        part._file = Path("/dev/full").open("wb")  # noqa: SIM115  # closed by the part
        with pytest.raises(DownloadError, match="make room, then try again"):
            end(part)
        part.drop()
    part = PartFile(tmp_path, "a")
    part._file = Path("/dev/full").open("wb")  # noqa: SIM115
    part.add(b"buffered: refused only when the file is closed")
    part.drop()
    assert listing(tmp_path) == []


def test_what_cannot_be_removed_is_a_download_error(tmp_path: Path) -> None:
    part = PartFile(tmp_path, "a")
    part.add(b"some")
    [hidden] = tmp_path.iterdir()
    hidden.unlink()
    (hidden / "in the way").mkdir(parents=True)
    with pytest.raises(DownloadError, match="cannot be saved"):
        part.drop()


def test_a_directory_with_the_files_name_stays_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()
    part = PartFile(tmp_path, "a")
    with pytest.raises(DownloadError, match=r"a directory has the name of the file; .*a\.bin"):
        part.finish(b"all", {}, URL)
    part.drop()
    assert listing(tmp_path) == ["a.bin"]


def test_a_directory_that_vanishes_before_the_file_is_complete_is_a_download_error(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "out", "a")
    part.add(b"all")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(DownloadError, match="the directory vanished"):
        part.finish(b"!", {}, URL)
    part.drop()
    assert listing(tmp_path) == []


# --- in a notebook


@pytest.mark.parametrize(
    ("content", "element", "kind"),
    [
        (png(), "img", "image/png"),
        (b"\xff\xd8\xff\xe0", "img", "image/jpeg"),
        (b"RIFF....WEBP", "img", "image/webp"),
        (b"GIF89a", "img", "image/gif"),
        (b"....ftypavif", "img", "image/avif"),
        (b"....ftypisom", "video", "video/mp4"),
        (b"\x1aE\xdf\xa3", "video", "video/webm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_format_is_shown_as_what_it_is_and_its_name_cannot_break_out(content, element, kind):
    page = figure('"><script>x.png', content, 100)
    assert page.startswith(f"<{element} ")
    assert f'src="data:{kind};base64,{base64.b64encode(content).decode()}"' in page
    assert ('width="100"' in page, "<script" in page) == (True, False)


def test_what_no_browser_knows_is_named_instead():
    assert figure("<x>", b"nonsense", 100) == "<p>&lt;x&gt;: no picture that a browser knows</p>"


async def test_downloaded_paths_are_a_list_that_a_notebook_shows_as_pictures(klein_client, tmp_path):
    paths = await klein_client.download(await klein_client.generate("a cat", width=64, height=64), tmp_path)
    assert paths == list(paths) == list(tmp_path.iterdir()) == pickle.loads(pickle.dumps(paths))
    assert repr(paths) == repr(list(paths))
    [data] = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', paths._repr_html_())
    assert base64.b64decode(data) == paths[0].read_bytes()


def test_a_file_that_has_gone_or_is_large_is_named_and_not_shown(tmp_path, monkeypatch):
    gone, large = tmp_path / "gone<.png", tmp_path / "large.png"
    large.write_bytes(png())
    monkeypatch.setattr(files, "_SHOWN_BYTES", len(png()))
    assert "<img" in SavedPaths([large])._repr_html_()
    monkeypatch.setattr(files, "_SHOWN_BYTES", len(png()) - 1)
    assert SavedPaths([gone, large])._repr_html_() == (
        f"<p>{tmp_path}/gone&lt;.png: cannot be read: No such file or directory</p>"
        f"<p>{large}: too large to show automatically</p>"
    )
