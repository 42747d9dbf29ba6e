"""What a crash reporter collects from an exception: the variables of every frame, with what is in them."""

import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["shown_by"]

_TESTS = str(Path(__file__).parent)  # a caller's own frames are the caller's affair


def shown_by(error: BaseException, secret: str) -> list[str]:
    """Where the secret is in the tracebacks of an error, its causes and its contexts: function and variable."""
    return [
        f"{frame.f_code.co_filename}:{frame.f_code.co_name}: {name}"
        for each in _chain(error, set())
        for frame, _ in traceback.walk_tb(each.__traceback__)
        if not frame.f_code.co_filename.startswith(_TESTS)
        for name, value in list(frame.f_locals.items())
        if any(secret in text for text in _texts(value, 5))
    ]


def _chain(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    if error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
            yield from _chain(other, seen)


def _texts(value: Any, depth: int) -> Iterator[str]:
    """The repr of a variable, and of everything in its containers; as reporters do, without looking into objects."""
    yield repr(value)  # one that fails is a fault too
    if isinstance(value, BaseException):
        yield from map(repr, vars(value).values())
    if not depth:
        return
    items: Any = ()
    if isinstance(value, Mapping):
        items = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        items = list(value)
    for item in items:
        yield from _texts(item, depth - 1)
