"""A file is on disk whole, under a plain name, or not at all."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.flow.files import PartFile, checked_names, suffix_of


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
        (b"\x1aE\xdf\xa3\x01", ".webm"),
        (b"", ".bin"),
        (b"\x89PNG", ".bin"),
        (b"\xff\xd8", ".bin"),
        (b"RIFF\x24\0\0\0WAVEfmt ", ".bin"),
        (b" \x89PNG\r\n\x1a\n", ".bin"),
        (b"<html>", ".bin"),
    ],
)
def test_the_first_bytes_call_for_a_suffix(start: bytes, suffix: str) -> None:
    assert suffix_of(start) == suffix


@given(st.binary())
def test_any_bytes_have_a_suffix(start: bytes) -> None:
    assert suffix_of(start).startswith(".")


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


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_appears_under_its_name_when_it_is_complete(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "out" / "deeper")
    part.write(b"first ")
    part.write(b"second ")
    hidden = listing(tmp_path)
    final = part.commit(b"last", "a.png")
    assert (final, final.read_bytes()) == (tmp_path / "out/deeper/a.png", b"first second last")
    assert ([name.endswith(".part") for name in hidden], listing(tmp_path)) == (
        [False, False, True],
        ["out", "out/deeper", "out/deeper/a.png"],
    )


def test_a_small_file_is_committed_at_once(tmp_path: Path) -> None:
    assert PartFile(tmp_path).commit(b"all", "a.png").read_bytes() == b"all"
    assert listing(tmp_path) == ["a.png"]


def test_a_file_replaces_what_had_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old and longer")
    PartFile(tmp_path).commit(b"new", "a.png")
    assert ((tmp_path / "a.png").read_bytes(), listing(tmp_path)) == (b"new", ["a.png"])


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    part = PartFile(tmp_path)
    part.write(b"new")
    assert (tmp_path / "a.png").read_bytes() == b"old"
    part.discard()
    assert ((tmp_path / "a.png").read_bytes(), listing(tmp_path)) == (b"old", ["a.png"])


def test_nothing_is_made_before_the_first_bytes(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "out")
    part.discard()
    assert listing(tmp_path) == []


def test_a_discarded_file_leaves_nothing(tmp_path: Path) -> None:
    part = PartFile(tmp_path)
    part.write(b"some")
    part.discard()
    part.discard()
    assert listing(tmp_path) == []


def test_discarding_a_committed_file_leaves_it_alone(tmp_path: Path) -> None:
    part = PartFile(tmp_path)
    part.commit(b"all", "a.png")
    part.discard()
    assert listing(tmp_path) == ["a.png"]


def test_a_file_that_cannot_get_its_name_leaves_nothing_when_discarded(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    part = PartFile(tmp_path)
    with pytest.raises(OSError, match=r"a\.png"):
        part.commit(b"all", "a.png")
    part.discard()
    assert listing(tmp_path) == ["a.png"]


def test_files_of_one_folder_do_not_meet_while_they_are_written(tmp_path: Path) -> None:
    parts = [PartFile(tmp_path) for _ in range(10)]
    for number, part in enumerate(parts):
        part.write(b"%d" % number)
    paths = [part.commit(b"!", f"{number}.png") for number, part in enumerate(parts)]
    assert [path.read_bytes() for path in paths] == [b"%d!" % number for number in range(10)]
