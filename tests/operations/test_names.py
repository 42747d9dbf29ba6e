"""Names of files: plain ones only, given or made of any text."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.operations.names import checked_names, checked_stem, looks_like_file, safe_stem, slug


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a", "b.png", "c d.png", ".hidden", "a..b"],
        ["h\u00e9.png", "\u2603.png", "\U0001f406"],
        ["x" * 255, "\u00e9" * 127],
        ["com.png", "conned.png", "aux1", "lpt.txt", "com10"],
        ("a", "b"),
    ],
    ids=ascii,
)
def test_takes_plain_names_one_for_each_file(names: list[str]) -> None:
    assert checked_names(names, len(names)) == list(names)


BAD_NAMES = [
    *["", " ", ".", "..", "...", ". .", "a.", "a ", "a/b", "/a", "../a", "a\\b", "C:", "C:a", "a:stream"],
    *["a<b", "a>b", 'a"b', "a|b", "a?b", "a*b", "a\0b", "a\nb", "a\x1fb", "a\x7fb"],
    *["con", "CON", "con.png", "Nul.tar.gz", "aux", "prn.txt", "com1", "COM\u00b9.png", "conin$", "CONOUT$"],
    *["LPT9.png", "x" * 256, "\u00e9" * 128, "\ud800.png", None, 5, b"a.png", Path("a.png")],
]


@pytest.mark.parametrize(
    ("names", "count", "message"),
    [
        *(([name], 1, "Not a plain file name: ") for name in BAD_NAMES),
        *((names, 2, "The same file name was given twice") for names in (["a", "a"], ["a.png", "A.PNG"])),
        *(
            (names, 2, "The same file name was given twice")
            for names in (["stra\u00dfe", "STRASSE"], ["\u00e9", "e\u0301"])
        ),
        *(
            (names, count, f"names must be a list of {count} file names, one for each file")
            for names, count in [([], 1), (["a"], 0), (["a"], 2), (["a", "b"], 1), ("ab", 2), ("a", 1), ("", 0)]
        ),
    ],
    ids=ascii,
)
def test_refuses_names_that_are_not_one_plain_name_for_each_file(names: Any, count: int, message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{message}"):
        checked_names(names, count)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("order:17", "'order:17' has the character ':', which some systems refuse; write one such as 'order_17'"),
        ("a/b", "'a/b' names a folder; write one such as 'a_b'"),
        ("..\\b", r"'..\\b' names a folder; write one such as '__b'"),
        ("aux.png", "'aux.png' is reserved on Windows; write one such as '_aux'"),
        ("", "'' is empty; write one such as 'cat.png'"),
        ("a ", "'a ' ends in a dot or a space, which some systems drop; write one such as 'a'"),
        ("x" * 256, f"'{'x' * 80}' has more than 255 bytes; write one such as '{'x' * 80}'"),
        ("\ud800a", r"'\ud800a' is no Unicode text; write one such as '_a'"),
        (7, "7 is no text: write str(...)"),
    ],
    ids=ascii,
)
def test_a_name_that_is_refused_is_told_why_and_what_to_write(name: Any, told: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        checked_names([name], 1)
    assert str(caught.value) == f"Not a plain file name: {told}"


def test_a_directory_looks_like_a_file_unless_it_is_there(tmp_path: Path) -> None:
    names = ("cat.PNG", "film.webm", "v1.5", "out")
    assert [looks_like_file(tmp_path / name) for name in names] == [True, True, False, False]
    (tmp_path / "cat.PNG").mkdir()
    assert not looks_like_file(tmp_path / "cat.PNG")


TEXTS = {
    "": ("", ""),
    "A snow leopard, at dawn!": ("A snow leopard, at dawn_", "a-snow-leopard-at-dawn"),
    "../../etc/passwd": ("__.._etc_passwd", "etc-passwd"),
    "..": ("", ""),
    "C:\\x\0y": ("C__x_y", "c-x-y"),
    "con": ("_con", "_con"),
    "COM1.txt": ("_COM1.txt", "com1-txt"),
    "cat.JPG": ("cat", "cat-jpg"),
    "cat.v2": ("cat.v2", "cat-v2"),
    "-rf *": ("_rf _", "rf"),
    ".hidden. ": ("_hidden", "hidden"),
    "a\u202eb\u200b": ("a_b_", "a-b"),
    "e\u0301t\u00e9 हिन्दी 雪豹": ("été हिन्दी 雪豹", "été-हिन्दी-雪豹"),
    "\u2603 \U0001f406": ("", ""),
    "word " * 40: (("word " * 40).strip(), "word-word-word-word-word-word-word-word"),
    "x" * 300: ("x" * 200, "x" * 40),
    "豹" * 100: ("豹" * 66, "豹" * 40),
}


def test_any_text_becomes_a_file_name_or_none() -> None:
    assert {text: (safe_stem(text), slug(text)) for text in TEXTS} == TEXTS


@given(st.text(max_size=300) | st.sampled_from(list(TEXTS)), st.sampled_from([safe_stem, slug]))
def test_a_name_made_of_any_text_is_plain_with_any_number_and_suffix(text: str, make: Any) -> None:
    stem = make(text)
    assert stem == "" or (checked_stem(stem) == stem and stem[0] not in "-. ")
    assert stem == "" or checked_names([f"{stem}-123456789.webp"], 1)
