"""Pictures in a notebook, at any size: `show(outcomes, width=256)` as a cell's last line.

Paths from `download` show their pictures without this. The files become part of the notebook, so that they are still
there after the service deletes them. Needs no third party.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any, Final, NamedTuple

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.models import GenerationResult, Outcome, not_saved
from flux_klein_async.operations.files import WIDTH, figure
from flux_klein_async.paths import user_path
from flux_klein_async.text import cut

__all__ = ["Pictures", "show"]

_LONGEST: Final = 200  # characters of a prompt
_LONGEST_FACT: Final = 40
File = str | os.PathLike[str] | bytes  # a path, or the content of a file


class Pictures:
    """Files that a notebook shows as pictures with their prompts, failures as failures, everything else as names."""

    def __init__(self, files: "Iterable[_Shown]", width: int) -> None:
        self._files = tuple(files)
        self._width = width

    def __repr__(self) -> str:
        return f"Pictures({', '.join(file.name for file in self._files)})"

    def _repr_html_(self) -> str:
        return "".join(file.html(self._width) for file in self._files)


class _Shown(NamedTuple):
    """A file, or why there is none; of an outcome, with its prompt and the other fields of its input."""

    name: str
    content: bytes = b""
    prompt: str | None = None
    failure: str | None = None
    fields: Mapping[str, Any] = {}

    def html(self, width: int) -> str:
        label = self.name if self.prompt is None else self.prompt
        if self.failure is not None:
            return f'<p style="color: #c62828"><b>{escape(label)}</b>: {escape(self.failure)}</p>'
        shown = figure(label, self.content, width)
        if self.prompt is None or not shown.startswith(("<img", "<video")):
            return shown
        style = f"display: inline-block; margin: 0 8px 8px 0; width: {width}px; vertical-align: top"
        return f'<figure style="{style}">{shown}<figcaption>{escape(label)}</figcaption></figure>'


def show(files: Iterable[File | Iterable[File] | Outcome[Any]] | File | Outcome[Any], width: int = WIDTH) -> Pictures:
    """Show the files of `client.download(...)`, `client.download_bytes(...)` or outcomes.

    An outcome is labelled with its prompt; where several have the same, also with the fields in which they differ, such
    as `width=64`, else the name of the file, as an item without a prompt of its own is. One that failed shows its
    error.

    Args:
        files: One or many: paths, which are read now, contents, lists of them, or outcomes of a fan-out with a
            directory.
        width: The width of each, in pixels on the page.

    Raises:
        InvalidInputError: A value is neither a file nor an outcome.
        OSError: A file cannot be read.
    """
    # A result is iterable as well: pydantic gives its fields.
    is_one = isinstance(files, str | bytes | os.PathLike | Outcome | GenerationResult)
    many = [files] if is_one or not isinstance(files, Iterable) else files
    shown = [part for number, file in enumerate(many, 1) for part in _parts(file, number)]
    return Pictures(_told_apart(_told_apart(shown, _differing), _named), int(width))


def _told_apart(shown: list[_Shown], remark: Callable[[_Shown, list[_Shown]], str]) -> list[_Shown]:
    """The same, with a remark on each of those that have one prompt."""
    same = defaultdict[str | None, list[_Shown]](list)
    for part in shown:
        same[part.prompt].append(part)
    return [
        part
        if part.prompt is None or len(same[part.prompt]) == 1
        else part._replace(prompt=part.prompt + remark(part, same[part.prompt]))
        for part in shown
    ]


def _differing(part: _Shown, same: list[_Shown]) -> str:
    """The fields that are not equal in all."""
    own = part.fields.items()
    return "".join(f", {name}={value}" for name, value in own if any(each.fields.get(name) != value for each in same))


def _named(part: _Shown, _: list[_Shown]) -> str:
    return f", {part.name}"


def _parts(file: object, number: int) -> list[_Shown]:
    if isinstance(file, list | tuple):  # what one `download` gave
        return [part for each in file for part in _parts(each, number)]
    if not isinstance(file, Outcome):
        return [_Shown(*_read(file, number))]
    prompt, fields = _prompt(file), _fields(file.item)
    if file.error is not None:
        label = prompt or f"item {file.index}"
        return [_Shown(f"item {file.index} failed", prompt=label, failure=str(file.error), fields=fields)]
    if not file.paths:
        raise not_saved()
    return [_Shown(*_read(path, number), prompt=prompt or path.name, fields=fields) for path in file.paths]


def _fields(item: object) -> dict[str, Any]:
    """The short facts of an item besides its prompt."""
    facts = item if isinstance(item, Mapping) else getattr(item, "__dict__", {})
    return {
        name: fact if not isinstance(fact, str) else cut(fact, _LONGEST_FACT)
        for name, fact in facts.items()
        if name != "prompt" and isinstance(fact, str | int | float)
    }


def _prompt(outcome: Outcome[Any]) -> str | None:
    """The prompt of an item, as far as it is to be seen; None if it is not."""
    item = outcome.item
    prompt = item.get("prompt") if isinstance(item, Mapping) else getattr(item, "prompt", item)
    if not isinstance(prompt, str) or not prompt.strip():
        return None
    return cut(prompt, _LONGEST)


def _read(file: object, number: int) -> tuple[str, bytes]:
    if isinstance(file, bytes):
        return f"picture {number}", file
    if isinstance(file, str | os.PathLike):
        path = user_path(file)
        if path.is_dir():
            raise InvalidInputError(f"{path.name!r} is a directory; its pictures are Path(...).glob('*.png')")
        return path.name, path.read_bytes()
    raise InvalidInputError(
        f"show takes paths, bytes or outcomes, not {type(file).__name__}; "
        "client.download(result, directory) gives paths"
    )
