"""A stranger's text on one line: what the service, a server or a file says, for logs, terminals and pipes. Pure."""

import unicodedata

__all__ = ["shown"]

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
