"""Pictures in a notebook, at any size: `show(outcomes, width=256)` as a cell's last line.

Paths from `download` show their pictures without this. The files become part of the notebook, so that they are still
there after the service deletes them. Needs no third party.
"""

import os
from collections.abc import Iterable
from typing import Any

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.models import GenerationResult, Outcome
from flux_klein_async.operations.files import WIDTH, figure
from flux_klein_async.paths import user_path

__all__ = ["Pictures", "show"]

File = str | os.PathLike[str] | bytes  # a path, or the content of a file


class Pictures:
    """Files that a notebook shows as pictures, and everything else as names."""

    def __init__(self, files: Iterable[tuple[str, bytes]], width: int) -> None:
        self._files = tuple(files)
        self._width = width

    def __repr__(self) -> str:
        return f"Pictures({', '.join(name for name, _ in self._files)})"

    def _repr_html_(self) -> str:
        return "".join(figure(name, content, self._width) for name, content in self._files)


def show(files: Iterable[File | Outcome[Any]] | File | Outcome[Any], width: int = WIDTH) -> Pictures:
    """Show the files of `client.download(...)`, `client.download_bytes(...)` or outcomes.

    Args:
        files: One or many: paths, which are read now, contents, or outcomes of a fan-out with a directory.
        width: The width of each, in pixels on the page.

    Raises:
        InvalidInputError: A value is neither a file nor an outcome.
        OSError: A file cannot be read.
    """
    # A result is iterable as well: pydantic gives its fields.
    many = [files] if isinstance(files, str | bytes | os.PathLike | Outcome | GenerationResult) else files
    flat = (item for file in many for item in (file.paths if isinstance(file, Outcome) else [file]))
    return Pictures([_read(file, number) for number, file in enumerate(flat, 1)], int(width))


def _read(file: object, number: int) -> tuple[str, bytes]:
    if isinstance(file, bytes):
        return f"picture {number}", file
    if isinstance(file, str | os.PathLike):
        path = user_path(file)
        return path.name, path.read_bytes()
    raise InvalidInputError(f"show takes paths, bytes or outcomes, not {type(file).__name__}")
