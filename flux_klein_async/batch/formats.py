"""What a file of prompts is, by its name and its first bytes. Quick to import: the command line offers the formats."""

import re
from enum import StrEnum
from pathlib import PurePath
from typing import Final

from flux_klein_async.errors import InvalidInputError

__all__ = ["FileFormat", "foreign", "format_of", "mistaken"]

_NOT_UTF8: Final = "not UTF-8; convert it first: iconv -f UTF-16 -t UTF-8"
# What a file begins with that is no text in UTF-8, and what it is.
_SIGNATURES: Final = {
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"), _NOT_UTF8),  # UTF-16 and UTF-32
    b"\x1f\x8b": "compressed with gzip; unpack it first: gunzip -k FILE",
    b"PK\x03\x04": "an Excel workbook or another zip archive; save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save the sheet as CSV in UTF-8",
}
_ALSO: Final = {"tsv": "csv", "tab": "csv", "ndjson": "jsonl"}
# What files with other suffixes hold, and how to read them.
_OTHER_SUFFIXES: Final = {
    "json": "write an object on each line (jq -c '.[]' FILE > FILE.jsonl), or pass --format jsonl if it is so already",
    "gz": "unpack it first: gunzip -k FILE",
    **dict.fromkeys(("xlsx", "xls", "ods"), "save the sheet as CSV in UTF-8"),
    "parquet": "write it as JSON lines: DataFrame.to_json(orient='records', lines=True)",
}


class FileFormat(StrEnum):
    """How the lines of a file are read."""

    TXT = "txt"
    JSONL = "jsonl"
    CSV = "csv"


def format_of(file: str) -> FileFormat:
    """The format of a file, by the suffix of its name.

    Raises:
        InvalidInputError: It has another suffix.
    """
    suffix = PurePath(file).suffix.lower().removeprefix(".")
    suffix = _ALSO.get(suffix, suffix)
    if suffix not in set(FileFormat):
        known = ", ".join(f".{name}" for name in FileFormat)
        way = _OTHER_SUFFIXES.get(suffix, "pass --format")
        raise InvalidInputError(f"{PurePath(file).name!r:.80} does not end in {known}; {way}")
    return FileFormat(suffix)


def mistaken(line: str) -> str | None:
    """What a file taken for prompts is by its first line, if that is no prompt of a person; None if it may be one."""
    text = line.strip()
    if re.match(r'\[\s*($|[{"])', text):
        return (
            "a JSON array, which would be painted as it stands: write an object on each line (jq -c '.[]'), or pass "
            "--format txt if it is a prompt"
        )
    if text.startswith("{") and text.endswith("}") and '"prompt"' in text:
        return "a JSON object, which would be painted as it stands: pass --format jsonl, or txt if it is a prompt"
    if "prompt" in [cell.strip(' "').lower() for cell in re.split("[,;\t|]", text)]:
        return "a header, which would be painted as it stands: pass --format csv, or txt if it is a prompt"
    return None


def foreign(line: bytes) -> str | None:
    """What a file is whose first line is no text in UTF-8; None if it may be."""
    known = next((what for start, what in _SIGNATURES.items() if line.startswith(start)), None)
    return known or (_NOT_UTF8 if 4 * line.count(0) >= len(line) else None)
