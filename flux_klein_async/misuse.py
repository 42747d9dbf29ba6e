"""Common mistakes of people new to asyncio, answered with what to write instead. Pure.

Type checkers do not see these methods: for them the mistake must stay an error.
"""

from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, NoReturn

__all__ = ["NotForLoop", "NotWith", "is_plain", "slip"]


def slip(value: object) -> str:
    """What a value is, for an error message; with advice where `await` was forgotten."""
    name = type(value).__name__
    if name != "coroutine":
        return name
    return f"a coroutine: write `await` before {getattr(value, '__qualname__', 'it')}(...)"


def is_plain(function: object) -> bool:
    """Whether a function does its work when it is called; a coroutine that nobody awaits does nothing."""
    return not (iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)))  # noqa: B004  # what it is, not whether it is there


class NotWith:
    """A base of classes that need `async with`."""

    if not TYPE_CHECKING:  # pragma: no branch

        def __enter__(self) -> NoReturn:
            raise TypeError(f"Use `async with`, not `with`, for a {type(self).__name__}")

        def __exit__(self, *_: object) -> None:
            """Never reached; Python needs it before it calls `__enter__`."""


class NotForLoop:
    """A base of classes that need `async for`."""

    if not TYPE_CHECKING:  # pragma: no branch

        def __iter__(self) -> NoReturn:
            raise TypeError(f"Use `async for`, not `for`, over a {type(self).__name__}")
