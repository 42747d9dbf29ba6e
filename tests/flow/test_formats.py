"""A file that is not whole, or not what was promised, is found out, whatever the pieces it comes in."""

import io
import itertools
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flux_klein_async.flow import formats
from flux_klein_async.flow.formats import Inspection, is_promised, suffix_of

URL = "https://x.runcomfy.net/f/a"  # promises nothing
EMPTY, INCOMPLETE = "The file is empty", "The file is incomplete: its own format says that more belongs to it"
PAGE = "A web page came in place of the file"
BROKEN_PROMISE = "What came is no picture or film of a known format, though one was promised"


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
    inspection = Inspection()
    for at in range(0, len(data), pieces):
        inspection.feed(data[at : at + pieces])
    return inspection.complaint({} if content_type is None else {"content-type": content_type}, url)


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
def test_a_whole_file_of_a_known_format_is_taken_whatever_it_was_called(
    suffix: str, pieces: int, content_type: str | None
) -> None:
    inspection = Inspection()
    for at in range(0, len(PICTURES[suffix]), pieces):
        inspection.feed(PICTURES[suffix][at : at + pieces])
    assert (inspection.suffix, inspection.size) == (suffix, len(PICTURES[suffix]))
    assert complaint(PICTURES[suffix], content_type, URL + ".gif", pieces) is None


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_no_beginning_of_a_png_or_webp_is_whole(suffix: str) -> None:
    data = PICTURES[suffix]
    assert {complaint(data[:size], "image/png") for size in range(12, len(data))} == {INCOMPLETE}


def test_no_beginning_of_a_jpeg_is_whole() -> None:
    data = PICTURES[".jpg"]
    assert data.endswith(b"\xff\xd9")
    assert {complaint(data[:size]) for size in range(3, len(data))} == {INCOMPLETE}


def test_a_film_is_whole_only_at_the_end_of_a_box() -> None:
    ends = [len(FTYP), len(FTYP) + 98, len(FILM)]
    assert [size for size in range(12, len(FILM) + 1) if complaint(FILM[:size]) is None] == ends


@pytest.mark.parametrize(
    "data",
    [
        PICTURES[".png"] + b"a comment of somebody's tool",
        PICTURES[".jpg"] + bytes(500),
        PICTURES[".webp"] + b"\0",
        FTYP + box(b"mdat", bytes(50), size=0),  # to the end of the file
        FTYP + bytes(50),  # filled up
        FTYP + box(b"mdat", bytes(50), size=5),  # damaged: nothing says where it ends
        FTYP + struct.pack(">I4sQ", 1, b"mdat", 3) + bytes(50),
    ],
    ids=range(7),
)
@pytest.mark.parametrize("pieces", [1, 9, 10**9])
def test_what_follows_the_end_or_cannot_be_followed_is_let_be(data: bytes, pieces: int) -> None:
    assert complaint(data, pieces=pieces) is None


@pytest.mark.parametrize(
    "data",
    [
        PICTURES[".jpg"][:-2] + bytes(5000),
        PICTURES[".jpg"] + bytes(5000),  # its end, or that of a small picture inside of it
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\x89PNG\r\n\x1a\n" + b"\xff" * 100,
        b"RIFF\xff\xff\xff\xffWEBP" + bytes(100),
        b"RIFF\0\0\0\1WEBP" + bytes(100),
        b"\0\0\0\x0cftypisom",
        FTYP + struct.pack(">I4sQ", 1, b"mdat", 2**60) + bytes(50),
        FTYP + box(b"mdat", size=2**31),
        FTYP + b"\0\0\0\1mdat\0\0",
    ],
    ids=range(11),
)
def test_what_lacks_its_end_is_incomplete(data: bytes) -> None:
    assert complaint(data) == complaint(data, pieces=3) == INCOMPLETE


def test_a_chunk_called_iend_inside_another_is_no_end() -> None:
    text = b"tEXtIEND\xaeB`\x82"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    assert complaint(PICTURES[".png"][:33] + chunk) == INCOMPLETE


def test_of_a_file_of_tiny_blocks_no_more_are_looked_at_than_is_useful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_MOST_BLOCKS", 4)
    assert complaint(FTYP + box(b"free") * 2 + box(b"mdat", size=99)) is None
    monkeypatch.setattr(formats, "_MOST_BLOCKS", 5)
    assert complaint(FTYP + box(b"free") * 2 + box(b"mdat", size=99)) == INCOMPLETE


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
    inspection = Inspection()
    for size in (1000, 5000, 100_000):
        inspection.feed(bytes(size))
    assert sum(len(value) for value in vars(inspection).values() if isinstance(value, bytes)) == 2048


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
    inspection = Inspection()
    marks = [0, *sorted(cuts), 10**6]
    for start, end in itertools.pairwise(marks):
        inspection.feed(data[start:end])
    assert (inspection.suffix, inspection.size) == (suffix_of(data), len(data))
    assert inspection.complaint({"content-type": content_type}, URL) == complaint(data, content_type)
    kept = [value for value in vars(inspection).values() if isinstance(value, bytes)]
    assert sum(map(len, kept)) <= 2048
