"""Placeholder pictures: real files of the asked size, different for each prompt, seed and request."""

import io
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from flux_klein_async.emulator import pictures
from flux_klein_async.emulator.pictures import draw, video


def open_picture(data):
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


@pytest.mark.parametrize(
    ("size", "prompt"),
    [
        ((64, 64), "a snow leopard"),
        ((512, 512), "x" * 5000),
        ((2048, 64), "雪山 🐆 \ud800\n\0"),
        ((64, 2048), ""),
        ((65, 127), "雪山 🐆 \ud800\n\0"),
    ],
)
def test_a_picture_is_a_png_of_exactly_the_asked_size_with_white_letters(size, prompt):
    picture = open_picture(draw(prompt, *size, seed=1, request_id="r"))
    assert (picture.format, picture.size, picture.mode) == ("PNG", size, "RGB")
    brightest = picture.convert("L").point(lambda value: 255 if value > 240 else 0)
    left, top, right, bottom = brightest.getbbox()
    assert right - left > 30
    assert bottom - top >= 6
    assert 0 <= left < right <= size[0]


@pytest.mark.parametrize("other", [("b", 1, "r"), ("a", 2, "r"), ("a", 1, "s")], ids=["prompt", "seed", "request"])
def test_pictures_differ_visibly(other):
    def pixels(prompt, seed, request_id):
        picture = open_picture(draw(prompt, 128, 128, seed=seed, request_id=request_id))
        return picture.resize((16, 16)).tobytes()

    one, two = pixels("a", 1, "r"), pixels(*other)
    difference = sum(abs(left - right) for left, right in zip(one, two, strict=True)) / len(one)
    assert difference > 8
    assert pixels("a", 1, "r") == one


@pytest.mark.parametrize(
    ("size", "texts"),
    [
        ((64, 64), ["PLACE", "HOLDER", "64 x 64", "a snow", "leopard"]),
        ((1024, 768), ["PLACEHOLDER", "1024 x 768", "a snow leopard"]),
        ((2048, 64), ["PLACEHOLDER  2048 x 64  a snow leopard"]),
    ],
)
def test_the_face_says_what_it_is_its_size_and_its_prompt(size, texts):
    assert [text for _, text in pictures._lines("a snow\n leopard", *size)] == texts


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [("né", "ne"), ("wait…", "wait..."), ("雪", r"\u96ea"), ("🐆", r"\U0001f406"), ("\ud800", r"\ud800")],
)
def test_letters_that_the_font_lacks_are_spelled_out(prompt, shown):
    assert pictures._lines(prompt, 2048, 64)[0][1] == f"PLACEHOLDER  2048 x 64  {shown}"


def test_a_long_prompt_is_cut():
    assert pictures._lines("word " * 100, 512, 512)[-1][1].endswith("...")


def test_without_pillow_the_emulator_can_be_imported_and_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    again = ModuleType("again")
    source = Path(pictures.__file__).read_text(encoding="utf-8")
    exec(compile(source, pictures.__file__, "exec"), again.__dict__)
    with pytest.raises(RuntimeError, match=r"pip install 'flux_klein_async\[emulator\]'"):
        again.draw("x", 64, 64, seed=0, request_id="r")


def test_a_video_is_made_of_mp4_boxes_and_says_what_it_is():
    data, names = video("a snow leopard \ud800", request_id="r"), []
    while data:
        size, name = struct.unpack(">I4s", data[:8])
        names.append(name)
        last, data = data[8:size], data[size:]
    assert names == [b"ftyp", b"free"]
    assert last == b"PLACEHOLDER r a snow leopard ?"
