"""Batch files: any bytes, in any pieces, give good or bad rows; what was written well is read back."""

import csv
import io
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.api.requests import encode_input
from flux_klein_async.batch.formats import FileFormat
from flux_klein_async.batch.rows import Row, read_rows
from flux_klein_async.models import TextToImageInput
from tests.batch.generated import Generated

from .strategies import bent, damaged, examples, monsters, written

Rows = list[Row]

# --- anything

tokens = st.sampled_from(
    [
        *(b"\n", b"\r\n", b"\r", b",", b'"', b'""', b" ", b"\t", b"\x00", b"\x1b", b"\x85", b"\xff", b"\xc2\x85"),
        *(b"prompt", b"width", b"height", b"id", b"prompt,id\n", b"prompt\n", b"a cat", b"512", b"64", b"steps"),
        *(b'{"prompt": "a"}', b'{"prompt": "a", "id": 7}', b'{"prompt": ', b"}", b"[", b"{", b":", b"null", b"NaN"),
        *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", "é🐆\u2028".encode()),
    ]
)
anyhow = st.lists(tokens, max_size=30).map(b"".join) | st.binary(max_size=60) | monsters
objects = bent().map(written) | damaged(bent().map(written))
files = anyhow | st.lists(anyhow | objects, max_size=5).map(b"\n".join) | anyhow.map(lambda data: b"prompt,id\n" + data)


def read(data: bytes, kind: FileFormat) -> Rows:
    return list(read_rows(io.BytesIO(data), kind))


def check(rows: Rows) -> None:
    """What holds for any file."""
    assert all(before.line < after.line for before, after in pairwise(rows))
    ids = [row.id for row in rows if row.id is not None]
    assert len(ids) == len(set(ids))
    for row in rows:
        if row.problem is not None:
            assert row.problem.isprintable()
            assert 0 < len(row.problem) < 600
        else:
            TextToImageInput(**row.fields)
            encode_input(row.fields)
            texts = row.fields["prompt"].translate({9: "", 10: "", 13: ""}) + (row.id or "")
            assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in texts)


@pytest.mark.parametrize("kind", FileFormat)
@given(data=files)
@examples(400)
def test_of_any_bytes_come_rows_good_or_bad(kind: FileFormat, data: bytes) -> None:
    check(read(data, kind))


@pytest.mark.parametrize("kind", FileFormat)
@given(pieces=st.lists(files, max_size=6))
@examples(100)
def test_it_makes_no_difference_in_what_pieces_they_come(kind: FileFormat, pieces: list[bytes]) -> None:
    whole = [piece for piece in pieces if piece]
    assert list(read_rows(Generated(whole), kind)) == read(b"".join(whole), kind)


# --- good files

visible = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff")
prompts = st.text(visible | st.sampled_from("\t\n\r,\"'"), min_size=1).filter(str.strip)
sizes = st.none() | st.integers(64, 2048)
named = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])
ids = st.none() | st.text(named, min_size=1, max_size=20).filter(str.strip)
good = st.fixed_dictionaries({"prompt": prompts, "width": sizes, "height": sizes, "id": ids})


@st.composite
def good_files(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of which no two have the same id."""
    rows = draw(st.lists(good, max_size=8))
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            row["id"] = None
        elif row["id"] is not None:
            seen.add(row["id"])
    return rows


def back(data: bytes, kind: FileFormat) -> list[dict[str, Any]]:
    nothing = dict.fromkeys(("prompt", "width", "height", "id"))
    return [{**nothing, **row.fields, "id": row.id} for row in read(data, kind) if row.problem is None]


ends = st.sampled_from(["\n", "\r\n"])
marks = st.sampled_from(["", "\ufeff"])


@given(rows=good_files(), ascii_only=st.booleans(), end=ends, mark=marks)
@examples(200)
def test_what_the_json_module_wrote_comes_back(rows, ascii_only: bool, end: str, mark: str) -> None:
    text = mark + "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows)
    assert back(text.encode(), FileFormat.JSONL) == rows


@given(
    rows=good_files(),
    columns=st.permutations(["prompt", "width", "height", "id"]),
    # Where lines end in LF, Python 3.11 leaves a carriage return in a cell unquoted if it may.
    form=st.sampled_from([(csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\n"), (csv.QUOTE_NONNUMERIC, "\n")]),
    mark=marks,
)
@examples(200)
def test_what_the_csv_module_wrote_comes_back(rows, columns, form: Any, mark: str) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, quoting=form[0], lineterminator=form[1])
    writer.writeheader()
    writer.writerows(rows)
    assert back((mark + out.getvalue()).encode(), FileFormat.CSV) == rows


@given(
    texts=st.lists(prompts.map(lambda text: text.replace("\n", " ").replace("\r", " ")).filter(str.strip), max_size=8)
)
@examples(100)
def test_what_was_written_line_by_line_comes_back(texts: list[str]) -> None:
    assert [row["prompt"] for row in back("\n".join(texts).encode(), FileFormat.TXT)] == texts


@given(rows=good_files(), cut=st.integers(0, 400), kind=st.sampled_from([FileFormat.JSONL, FileFormat.CSV]))
@examples(200)
def test_of_a_file_that_was_cut_off_all_rows_but_the_last_are_whole(rows, cut: int, kind: FileFormat) -> None:
    out = io.StringIO()
    if kind is FileFormat.CSV:
        writer = csv.DictWriter(out, ["id", "prompt", "width", "height"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    else:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    data = out.getvalue().encode()
    found = back(data[:cut], kind)
    if data[:cut].endswith(b","):  # of CSV: the last cell may be empty
        found = found[:-1]
    assert found == rows[: len(found)]
