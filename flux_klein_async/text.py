"""Text on one line: a stranger's, for logs, terminals and pipes, and what a `repr` shows. Pure."""

import unicodedata
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Any

__all__ = ["brief_repr", "clipped", "cut", "plain", "shortened", "shown"]

_MAX_TEXT = 300  # characters: an error's sentence, not a gateway's page
_MAX_ENTRIES = 10  # of a tuple
_TEXT = 40  # characters of a prompt, and of any other text, in a repr
_URL = 120  # characters of a URL: useless without its end, but signatures are long
_INT64 = 2**63  # telemetry protocols hold no larger integer
# Categories that move the cursor, break the line, reorder or hide the characters around them, or are no characters.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # they make up the letters of some languages, and emoji


def shown(text: str) -> str:
    """The text with everything escaped that a terminal or a reader of a log would obey instead of print.

    Escaped, not dropped: a token that such characters divide is not put together again.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _ESCAPED and character not in _JOINERS
        else character
        for character in text
    )


def clipped(text: str) -> str:
    """A text as `shown`, of at most 300 characters: it cannot forge a line of a log, and all of it can be encoded."""
    safe = shown(text[: _MAX_TEXT + 1])
    return safe if len(safe) <= _MAX_TEXT else safe[: _MAX_TEXT - 1] + "…"


def plain(value: object) -> str | bool | int | float | tuple[str, ...]:
    """A number or bounded text as it is; of any other value only the name of its type.

    A tag can be any object of the caller's, and its `repr` may hold secrets.
    """
    if isinstance(value, str):
        return clipped(str(value))
    if isinstance(value, float) or (isinstance(value, int) and -_INT64 <= value < _INT64):
        return value
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return tuple(clipped(item) for item in value[:_MAX_ENTRIES])
    return type(value).__name__


# --- in a repr


class _Bare(str):
    """Text shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def brief_repr(value: object, facts: Mapping[str, Any]) -> str:
    """The `repr` of any other object: the facts that are known, shortened."""
    told = (f"{name}={shortened(fact)!r}" for name, fact in facts.items() if fact not in (None, ()))
    return f"{type(value).__name__}({', '.join(told)})"


def shortened(value: Any) -> Any:
    """What a `repr` shows in place of a value."""
    if isinstance(value, Enum):
        return _Bare(value.value)
    if isinstance(value, datetime):
        return _Bare(value.isoformat())
    if isinstance(value, float):
        return float(f"{value:.6g}")  # more digits of seconds and dollars are noise
    if type(value).__module__.startswith("flux_klein_async."):  # also what was shortened before
        return value
    if isinstance(value, str):
        return cut(value, _URL if value.startswith(("https://", "http://")) and " " not in value else _TEXT)
    return _Bare(cut(repr(value), _URL))


def cut(text: str, length: int) -> str:
    """The text, of at most `length` characters."""
    return text if len(text) <= length else text[: length - 3] + "..."
