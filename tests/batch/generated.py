"""Streams that are larger than any memory, made as they are read."""

from collections.abc import Iterable, Iterator


class Generated:
    """Pieces, of which no more than one is in memory."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces: Iterator[bytes] = iter(pieces)
        self._rest = b""

    def readline(self, size: int = -1, /) -> bytes:
        found = bytearray()
        while len(found) < size:
            if not self._rest:
                self._rest = next(self._pieces, b"")
                if not self._rest:
                    break
            end = self._rest.find(b"\n", 0, size - len(found)) + 1
            taken = end or min(len(self._rest), size - len(found))
            found += self._rest[:taken]
            self._rest = self._rest[taken:]
            if end:
                break
        return bytes(found)
