"""Pictures in a notebook: `show(paths)` as a cell's last line. Needs no third party, and no kernel to be tested.

`download` gives a plain list of paths, and a result knows only URLs, which are deleted after 7 days: what is shown is
put into the notebook itself, so that it is still there when the notebook is opened elsewhere.
"""

import os
from base64 import b64encode
from collections.abc import Iterable
from html import escape
from pathlib import Path

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.flow.formats import suffix_of

__all__ = ["Pictures", "show"]

File = str | os.PathLike[str] | bytes  # a path, or what is in one

_FILMS = frozenset({".mp4", ".webm"})
_SHOWN = _FILMS | {".png", ".jpg", ".webp", ".gif", ".avif"}  # what browsers know


class Pictures:
    """Files as a notebook shows them; anywhere else, their names."""

    def __init__(self, files: Iterable[tuple[str, bytes]], width: int) -> None:
        self._files = tuple(files)
        self._width = width

    def __repr__(self) -> str:
        return f"Pictures({', '.join(name for name, _ in self._files)})"

    def _repr_html_(self) -> str:
        return "".join(self._figure(name, content) for name, content in self._files)

    def _figure(self, name: str, content: bytes) -> str:
        suffix, label = suffix_of(content), escape(name)
        if suffix not in _SHOWN:
            return f"<p>{label}: no picture that a browser knows</p>"
        kind = {".jpg": "jpeg"}.get(suffix, suffix[1:])
        data = b64encode(content).decode()
        if suffix in _FILMS:
            return (
                f'<video controls width="{self._width}" title="{label}" src="data:video/{kind};base64,{data}"></video>'
            )
        return f'<img width="{self._width}" title="{label}" alt="{label}" src="data:image/{kind};base64,{data}">'


def show(
    files: Iterable[str | os.PathLike[str] | bytes] | str | os.PathLike[str] | bytes, width: int = 384
) -> Pictures:
    """The files of `client.download(result, ...)` or `client.read(result)`, shown where a cell ends with this.

    Args:
        files: Paths, which are read now, or contents; one or many.
        width: Pixels on the page, for each.

    Raises:
        InvalidInputError: What was given is no file.
        OSError: A file cannot be read.
    """
    many = [files] if isinstance(files, str | bytes | os.PathLike) else files
    return Pictures([_named(file, number) for number, file in enumerate(many, 1)], int(width))


def _named(file: object, number: int) -> tuple[str, bytes]:
    if isinstance(file, bytes):
        return f"picture {number}", file
    if isinstance(file, str | os.PathLike):
        path = Path(file)
        return path.name, path.read_bytes()
    raise InvalidInputError(f"show takes paths or bytes, as download and read give them, not {type(file).__name__}")
