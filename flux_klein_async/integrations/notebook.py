"""Pictures in a notebook, as large and as many as wanted: `show(outcomes, width=256)` as a cell's last line.

What `download` gives is shown by itself, and a result knows only URLs, which are deleted after 7 days: what is shown is
put into the notebook, so that it is still there when the notebook is opened elsewhere. Needs no third party.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.models import GenerationResult, Outcome
from flux_klein_async.operations.files import WIDTH, figure

__all__ = ["Pictures", "show"]


class Pictures:
    """Files as a notebook shows them; anywhere else, their names."""

    def __init__(self, files: Iterable[tuple[str, bytes]], width: int) -> None:
        self._files = tuple(files)
        self._width = width

    def __repr__(self) -> str:
        return f"Pictures({', '.join(name for name, _ in self._files)})"

    def _repr_html_(self) -> str:
        return "".join(figure(name, content, self._width) for name, content in self._files)


File = str | os.PathLike[str] | bytes  # a path, or what is in one


def show(files: Iterable[File | Outcome[Any]] | File | Outcome[Any], width: int = WIDTH) -> Pictures:
    """The files of `client.download(...)`, `client.download_bytes(...)` or outcomes, shown where a cell ends with this.

    Args:
        files: Paths, which are read now, contents, or outcomes of a fan-out that has a directory; one or many.
        width: Pixels on the page, for each.

    Raises:
        InvalidInputError: What was given is no file.
        OSError: A file cannot be read.
    """
    # A result can be walked through as well: its fields.
    many = [files] if isinstance(files, str | bytes | os.PathLike | Outcome | GenerationResult) else files
    return Pictures([_named(file, number) for number, file in enumerate(_flat(many), 1)], int(width))


def _flat(files: Iterable[object]) -> Iterator[object]:
    """An outcome stands for its files; one that has none, for none."""
    for file in files:
        if isinstance(file, Outcome):
            yield from file.paths
        else:
            yield file


def _named(file: object, number: int) -> tuple[str, bytes]:
    if isinstance(file, bytes):
        return f"picture {number}", file
    if isinstance(file, str | os.PathLike):
        path = Path(file)
        return path.name, path.read_bytes()
    raise InvalidInputError(f"show takes paths or bytes, as download and read give them, not {type(file).__name__}")
