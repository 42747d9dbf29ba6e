"""Text from and for people: prompts in, safe lines out. Pure."""

import unicodedata
from decimal import Decimal

from flux_klein_async.errors import InvalidInputError

__all__ = ["decoded_prompt", "dollars", "duration", "shortened", "shown"]

# What moves a cursor, breaks a line, or is no character at all.
_RAW = {"Cc", "Cs", "Zl", "Zp"}
# Directional embeddings, overrides and isolates: a prompt may hold them, but shown beside other words they would
# reorder those too.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shown(text: str) -> str:
    """The text on one line, with everything escaped that a terminal would obey instead of show."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if character in _REORDERING or unicodedata.category(character) in _RAW
        else character
        for character in text
    )


def shortened(text: str, length: int) -> str:
    """The text as `shown`, cut to so many characters."""
    safe = shown(text[: length + 1])
    return safe if len(safe) <= length else safe[: length - 3] + "..."


def decoded_prompt(data: bytes) -> str:
    """A prompt read from a file or pipe: UTF-8, less the one line end that editors and `echo` add.

    Raises:
        InvalidInputError: It is no UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"The prompt on standard input is not UTF-8 (byte {error.start})") from None
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def dollars(amount: Decimal) -> str:
    """USD as money is written: two decimals, and more only where there is something in them."""
    amount = amount.normalize()
    exponent = amount.as_tuple().exponent
    fine = isinstance(exponent, int) and exponent < -2  # no int: not a number
    return f"${amount:f}" if fine else f"${amount:.2f}"


def duration(seconds: float) -> str:
    """Seconds as people read them: 4.1 s, 2:05, 1:00:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
