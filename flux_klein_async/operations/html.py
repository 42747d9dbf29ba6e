"""How files are shown in a notebook: pictures and films in the page itself, so that they stay when the page moves.

Reads a file only when a notebook asks to see it. Knows no notebook: they all look for `_repr_html_`.
"""

from base64 import b64encode
from html import escape
from pathlib import Path

from flux_klein_async.operations.files import suffix_of

__all__ = ["WIDTH", "SavedPaths", "figure", "remark"]


WIDTH = 384  # pixels on the page: three beside each other on a common screen
_LARGEST = 16 * 1024 * 1024  # bytes of what is shown unasked: a notebook keeps all that it shows

_FILMS = frozenset({".mp4", ".webm"})
_SHOWN = _FILMS | {".png", ".jpg", ".webp", ".gif", ".avif"}  # what browsers know


def figure(name: str, content: bytes, width: int) -> str:
    """A file as HTML; `width` is pixels on the page."""
    suffix, label = suffix_of(content), escape(name)
    if suffix not in _SHOWN:
        return remark(name, "no picture that a browser knows")
    kind = {".jpg": "jpeg"}.get(suffix, suffix[1:])
    data = b64encode(content).decode()
    if suffix in _FILMS:
        return f'<video controls width="{width}" title="{label}" src="data:video/{kind};base64,{data}"></video>'
    return f'<img width="{width}" title="{label}" alt="{label}" src="data:image/{kind};base64,{data}">'


def remark(name: str, why: str) -> str:
    """What stands in place of a file that is not shown."""
    return f"<p>{escape(name)}: {why}</p>"


class SavedPaths(list[Path]):
    """The paths of what was downloaded: a list like any other, which a notebook shows as the pictures themselves."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return "".join(map(_seen, self))


def _seen(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            return remark(str(path), "too large to be shown unasked")
        return figure(path.name, path.read_bytes(), WIDTH)
    except OSError as error:
        return remark(str(path), f"cannot be read: {error.strerror}")
