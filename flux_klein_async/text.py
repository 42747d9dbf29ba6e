"""A stranger's text on one line: what the service, a server or a file says, for logs, terminals and pipes. Pure."""

import unicodedata

__all__ = ["clipped", "cut", "plain", "shown"]

_MAX_TEXT = 300  # characters: an error's sentence, not a gateway's page
_MAX_ENTRIES = 10  # of a tuple
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


def cut(text: str, length: int) -> str:
    """The text, or so much of it that the whole, with "..." for the rest, has this length."""
    return text if len(text) <= length else text[: length - 3] + "..."


def clipped(text: str, length: int = _MAX_TEXT) -> str:
    """A text as `shown`, and cut: it cannot forge a line of a log, and all of it can be encoded."""
    return cut(shown(text[: length + 1]), length)


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
