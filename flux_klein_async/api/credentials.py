"""Where the token comes from, and how it is kept out of everything shown.

The vendor CLI's token file is read only if nothing else gives a token.
"""

import json
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from flux_klein_async.errors import ConfigurationError
from flux_klein_async.options import TOKEN_VARIABLES, Environment
from flux_klein_async.paths import user_path

__all__ = ["SHORTEST_SECRET", "Redactor", "Secret", "find_token"]

_QUOTES = ('"', "'", "`")
_REDACTED = b"[token]"
_MAX_FILE_BYTES = 64 * 1024
SHORTEST_SECRET = 6  # a shorter token is a placeholder; replacing it would damage ordinary words


def find_token(explicit: str | None, environment: Environment, *, wall_clock: Callable[[], float]) -> str:
    """The token: the one given, else the environment's, else the vendor CLI's file.

    Raises:
        ConfigurationError: There is none, or it cannot be one.
    """
    token, source = explicit, "api_key"
    if token is None:
        token, source = environment.token, environment.token_variable or "the environment"
    if token is None and environment.token_file is not None:
        path = user_path(environment.token_file)
        token, source = _from_file(path, wall_clock), str(path)
    if token is None:
        raise ConfigurationError(
            f"No token. Set {', '.join(TOKEN_VARIABLES[:-1])} or {TOKEN_VARIABLES[-1]}, pass api_key=..., or log in "
            "with the vendor's CLI (its token.json is read). To try things without a token, use the emulator."
        )
    if not isinstance(token, str):
        raise ConfigurationError(f"The token in {source} must be a string")
    token = token.strip()
    if token[:1] in _QUOTES and token[-1:] == token[:1]:
        raise ConfigurationError(f"The token in {source} is in quotes: give it without them")
    if token.lower().startswith("bearer "):
        raise ConfigurationError(f"The token in {source} begins with 'Bearer': give what comes after it")
    if not token or not all("!" <= character <= "~" for character in token):
        raise ConfigurationError(
            f"The token in {source} is empty or holds spaces or characters that no header can carry"
        )
    return token


def _from_file(path: Path, wall_clock: Callable[[], float]) -> str | None:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_FILE_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"Log in again with the vendor's CLI: the token file {path} cannot be read", cause=type(error).__name__
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("access_token"), str):
        raise ConfigurationError(f"Log in again with the vendor's CLI: the token file {path} holds no access_token")
    expires_at = content.get("expires_at")
    if isinstance(expires_at, int | float) and expires_at <= wall_clock():
        raise ConfigurationError(f"The token in {path} has expired; log in again with the vendor's CLI")
    return str(content["access_token"])


class Secret:
    """The token in a variable: a traceback that shows variables shows none of it."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "Secret()"


class Redactor:
    r"""Replaces the token wherever a server echoes it, before anything else sees the bytes.

    It knows every spelling of a character in JSON (`/`, `\/`, `\u002f`) and in URLs (`%2f`).
    """

    def __init__(self, token: str, *, shortest: int = SHORTEST_SECRET) -> None:
        self._token = token.encode()
        self._is_secret = len(token) >= shortest

    @cached_property
    def _spellings(self) -> re.Pattern[bytes]:
        """Made when it is first needed: to compile it takes longer than to make a client."""
        spelt = (rf"(?:\\?{re.escape(sign)}|(?:\\u00|%)(?i:{ord(sign):02x}))" for sign in self._token.decode())
        return re.compile("".join(spelt).encode())

    def text(self, text: str) -> str:
        """The same text without the token."""
        return self.body(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def body(self, body: bytes) -> bytes:
        """The same bytes without the token."""
        if not self._is_secret or not (b"\\" in body or b"%" in body or self._token in body):
            return body
        return self._spellings.sub(_REDACTED, body)
