"""One row of a batch file: what is posted for it, or what is wrong with it. Pure; knows no file format."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from flux_klein_async.models import TextToImageInput

__all__ = ["FIELDS", "BadRow", "Row", "checked", "named", "not_utf8", "unknown_fields"]

FIELDS: Final = ("prompt", "width", "height", "id")
"""What a row may hold."""

_LONGEST_ID: Final = 200  # characters
_IN_MESSAGE: Final = 60  # characters of a foreign text
_NAMED: Final = 5  # unknown fields in a message
# Tabs and line breaks may stand in a prompt. No prompt means the others, which terminals obey instead of showing them
# (ECMA-48); half a surrogate pair is no text at all.
_NOT_IN_PROMPTS: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_IN_IDS: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_C0: Final = (
    *("NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "TAB", "LF", "VT", "FF", "CR", "SO", "SI", "DLE"),
    *("DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US"),
)
_NAMES: Final = {**dict(enumerate(_C0)), 0x7F: "DEL", 0x85: "NEL", 0x9B: "CSI"}


class Row(NamedTuple):
    """A row that can be submitted.

    Attributes:
        line: Where it begins in its file, counted from 1.
        id: The user's own name for it, or None.
        fields: What is posted: `prompt`, and `width` and `height` where they were given.
    """

    line: int
    id: str | None
    fields: dict[str, Any]


class BadRow(NamedTuple):
    """A row that cannot be submitted.

    Attributes:
        problem: What is wrong with it, in a sentence that may hold the user's own text, as `repr` shows it.
        fatal: What comes behind it could not be read; it is the last.
    """

    line: int
    problem: str
    fatal: bool = False


def checked(line: int, given: Mapping[str, Any]) -> Row | BadRow:
    """A row of these fields, if they can be submitted; what is None was not given."""
    if unknown := unknown_fields("field", given):
        return BadRow(line, unknown)
    # In one order, whatever the file's: what is posted is by what a row without an id is known again.
    fields = {name: given[name] for name in FIELDS if given.get(name) is not None}
    row_id = fields.pop("id", None)
    if type(row_id) is int:
        row_id = str(row_id)
    problem = _id_problem(row_id) or _prompt_problem(fields.get("prompt")) or _input_problem(fields)
    return BadRow(line, problem) if problem else Row(line, row_id, fields)


def unknown_fields(word: str, names: Iterable[str]) -> str | None:
    """What is wrong with fields, or columns, of these names; None: nothing."""
    unknown = [named(name) for name in names if name not in FIELDS]
    if not unknown:
        return None
    listed = ", ".join(unknown[:_NAMED]) + (", ..." if len(unknown) > _NAMED else "")
    return f"unknown {word}{'' if len(unknown) == 1 else 's'} {listed}; known are {', '.join(FIELDS)}"


def named(text: str) -> str:
    """A foreign text as it may stand in a message."""
    return repr(text if len(text) <= _IN_MESSAGE else text[: _IN_MESSAGE - 3] + "...")


def not_utf8(byte: int) -> str:
    """What is wrong with text in which this byte cannot stand."""
    return (
        f"not UTF-8 (byte 0x{byte:02X}); if the file is Latin-1 or Windows-1252, "
        "convert it first: iconv -f WINDOWS-1252 -t UTF-8"
    )


def _id_problem(row_id: object) -> str | None:
    if row_id is None:
        return None
    if not isinstance(row_id, str):
        return "id: neither text nor a number"
    if not row_id.strip():
        return "id: blank; leave it out where a row has none"
    if len(row_id) > _LONGEST_ID:
        return f"id: longer than {_LONGEST_ID} characters"
    found = _NOT_IN_IDS.search(row_id)
    return f"id: {_character(found[0])} may not be in it" if found else None


def _prompt_problem(prompt: object) -> str | None:
    found = _NOT_IN_PROMPTS.search(prompt) if isinstance(prompt, str) else None
    return f"prompt: {_character(found[0])} may not be in it" if found else None


def _input_problem(fields: dict[str, Any]) -> str | None:
    try:
        TextToImageInput(**fields)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found)
    return None


def _character(character: str) -> str:
    number = ord(character)
    code = f"U+{number:04X}"
    if 0xD800 <= number <= 0xDFFF:
        return f"{code} (half of a surrogate pair)"
    if number > 0xFF:
        return f"{code} (a line break)"
    name = _NAMES.get(number)
    return f"the control character {code}" + (f" ({name})" if name else "")
