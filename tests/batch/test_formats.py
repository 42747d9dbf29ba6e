"""What a file of prompts is, by its name and its first bytes."""

import pytest

from flux_klein_async.batch.formats import FileFormat, foreign, format_of
from flux_klein_async.errors import InvalidInputError


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.txt", "txt"),
        ("b/A.CSV", "csv"),
        ("a.tsv", "csv"),
        ("a.ndjson", "jsonl"),
        ("a.doc", "'a.doc' does not end in .txt, .jsonl, .csv; pass --format"),
        ("a.json", "jq -c"),
        ("a", "pass --format"),
    ],
)
def test_the_suffix_is_the_format_or_the_way_to_one(name: str, found: str) -> None:
    try:
        assert format_of(name) is FileFormat(found)
    except InvalidInputError as error:
        assert found in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"a cat", None),
        (b"\xff\xfea\0", "not UTF-8"),
        (b"a\0b\0", "not UTF-8"),
        (b"\x1f\x8b\x08", "gunzip"),
        (b"PK\x03\x04", "an Excel workbook"),
    ],
)
def test_what_is_no_text_is_named_for_what_it_is(line: bytes, found: str | None) -> None:
    assert (foreign(line) is None) == (found is None)
    assert found is None or found in (foreign(line) or "")
