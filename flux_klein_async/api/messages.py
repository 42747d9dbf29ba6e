"""Frozen requests and responses: what `api` and `transport` exchange."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import NamedTuple

__all__ = ["Kind", "Request", "Response"]


class Kind(StrEnum):
    """What a call is for. A `Retry-After` holds all calls of one kind."""

    SUBMIT = "submit"
    READ = "read"  # a poll, a status, a result, the catalogue
    CANCEL = "cancel"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request.

    Attributes:
        replayable: Whether sending it twice is harmless. A submit is not.
        silence: Seconds that the socket may stay silent before the call fails.
    """

    kind: Kind
    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)  # holds the token
    _: KW_ONLY
    replayable: bool
    silence: float
    body: bytes | memoryview | None = field(default=None, repr=False)


class Response(NamedTuple):
    """One HTTP response. The body of a streamed one is empty.

    A tuple: one is made for every call, and making a frozen dataclass takes three times as long.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
