"""From bytes to lines, however long they are: no more of a line than a bound is ever held. Pure over its stream."""

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

__all__ = ["LONGEST", "Line", "Readable", "lines"]

LONGEST: Final = 128 * 1024
"""Bytes of a line of a batch file, with its end. The csv module takes as much for a field; the longest prompt that the
model heeds in full is some fifty times shorter."""

_PIECE: Final = 64 * 1024  # bytes of a line that is skipped, at a time


class Readable(Protocol):
    """What lines are read from: any binary file, pipe or `io.BytesIO`."""

    def readline(self, size: int, /) -> bytes:
        """At most so many bytes, to the end of the line; none at the end. Returns as soon as a line is there."""
        ...


class Line(NamedTuple):
    """One line of a file.

    Attributes:
        number: Counted from 1.
        data: With its line end; of a line that is `cut` the beginning.
        cut: It is longer than the bound, and the rest of it was skipped.
        quotes: How many double quotes a line that is `cut` has; 0 for others, of which anybody can count them.
    """

    number: int
    data: bytes
    cut: bool = False
    quotes: int = 0


def lines(stream: Readable, longest: int = LONGEST) -> Iterator[Line]:
    """The lines of a stream, each as soon as it is there; they end at line feeds."""
    number = 0
    while data := stream.readline(longest + 1):
        number += 1
        if len(data) <= longest:
            yield Line(number, data)
            continue
        quotes = data.count(b'"')
        piece = data
        while piece and not piece.endswith(b"\n"):
            piece = stream.readline(_PIECE)
            quotes += piece.count(b'"')
        yield Line(number, data, cut=True, quotes=quotes)
