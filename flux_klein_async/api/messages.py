"""What crosses the seam between the protocol and the wire: frozen requests and responses.

Knows neither the API's meaning nor aiohttp.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

__all__ = ["Kind", "Request", "Response"]


class Kind(StrEnum):
    """What a call is for; the service's wish for patience holds all calls of one kind."""

    SUBMIT = "submit"
    READ = "read"
    CANCEL = "cancel"
    FILE = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request.

    Attributes:
        replayable: Whether sending it twice is harmless. A submit is not.
        silence: Seconds that the socket may stay silent before the call is given up.
    """

    kind: Kind
    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)  # holds the token
    body: bytes | None = field(default=None, repr=False)
    replayable: bool
    silence: float


class Response(NamedTuple):
    """One HTTP response, read in full. Headers are looked up by their names in lower case.

    A tuple, since it is made for every call and a frozen dataclass takes three times as long to make.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
