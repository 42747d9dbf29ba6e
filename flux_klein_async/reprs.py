"""How values are shown in a `repr`: what is known of them, on one line, and short. Pure."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import Enum
from typing import Any

from pydantic import BaseModel

__all__ = ["Brief", "brief", "known"]

_TEXT = 40  # characters of a prompt, and of any other text of a user's
_ADDRESS = 120  # characters of a URL: it is of no use without its end, but signatures are long


class _Bare(str):
    """Text that is shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Brief(BaseModel):
    """A model whose `repr` leaves out what is not known, and shortens what is long."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        return ((name, brief(value)) for name, value in super().__repr_args__() if not _unknown(value))


def known(value: object, facts: Mapping[str, Any]) -> str:
    """The `repr` of anything else, from its facts."""
    shown = (f"{name}={brief(fact)!r}" for name, fact in facts.items() if not _unknown(fact))
    return f"{type(value).__name__}({', '.join(shown)})"


def _unknown(value: object) -> bool:
    return value is None or value == ()


def brief(value: Any) -> Any:
    """What to show in place of a value."""
    if isinstance(value, Enum):
        return _Bare(value.value)
    if isinstance(value, datetime):
        return _Bare(value.isoformat())
    if isinstance(value, float):
        return float(f"{value:.6g}")  # seconds and dollars: what is behind that is the clock's own noise
    if isinstance(value, str):
        return _cut(value, _ADDRESS if value.startswith(("https://", "http://")) and " " not in value else _TEXT)
    if type(value).__module__.startswith("flux_klein_async."):  # each is short by itself
        return value
    return _Bare(_cut(repr(value), _ADDRESS))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
