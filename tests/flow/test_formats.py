"""The first bytes tell a format, and a file that is not what was promised is refused."""

import io
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flux_klein_async.flow.formats import Content, is_promised, suffix_of

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
