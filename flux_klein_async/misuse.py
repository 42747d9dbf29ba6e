"""Common mistakes of people new to asyncio, answered with what to write instead. Pure.

Type checkers do not see these methods: for them the mistake must stay an error.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, KeysView, Mapping
from difflib import get_close_matches
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

__all__ = [
    "NEEDS_ASYNCIO",
    "NotForLoop",
    "NotWith",
    "arguments_of",
    "function_problem",
    "named_arguments",
    "refuse_unknown",
    "refuse_unnamed",
    "slip",
]

NEEDS_ASYNCIO = "No asyncio event loop runs here: use asyncio.run(...), also in a thread beside trio or another loop"

C = TypeVar("C", bound=type)

_NEAR = 0.74  # of difflib's ratio: "outdir" is near to "output_dir", and "version" is not near to "session"


def slip(value: object) -> str:
    """What a value is, for an error message; with advice where `await` was forgotten."""
    name = type(value).__name__
    if name != "coroutine":
        return name
    return f"a coroutine: write `await` before {getattr(value, '__qualname__', 'it')}(...)"


def function_problem(function: object, advice: str) -> str | None:
    """Why this cannot be called where a function is optional, such as "takes a function of one event, not str"."""
    if function is None:
        return None
    if iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004  # what it is, not whether it is there
        return "must be a plain function, not `async def`: it is called, not awaited"
    return None if callable(function) else f"takes {advice}, not {slip(function)}"


@functools.cache
def arguments_of(method: Callable[..., Any]) -> KeysView[str]:
    """The names that a method takes, in their order, without `self`."""
    return dict.fromkeys(list(inspect.signature(method).parameters)[1:]).keys()


@functools.cache
def _only_named(method: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(method).parameters.values()
    return tuple(f"{each.name}=" for each in parameters if each.kind is each.KEYWORD_ONLY)


def refuse_unnamed(what: str, method: Callable[..., Any], count: int) -> None:
    """Say which arguments go by name, where `count` of them were given without one.

    Raises:
        TypeError: The method takes fewer so.
    """
    named = _only_named(method)
    if named and count > len(arguments_of(method)) - len(named):
        raise TypeError(f"{what}() takes these arguments by name: {', '.join(named)}")


def named_arguments(elsewhere: Mapping[str, str]) -> Callable[[C], C]:
    """A class whose TypeError for an argument that it does not have says what to write instead.

    A subclass with an `__init__` of its own takes what it wants.
    """

    def explained(cls: Any) -> Any:
        init = cls.__init__

        @functools.wraps(init)  # for its signature
        def new(made: Any, *arguments: object, **named: object) -> object:
            count, given = len(arguments), tuple(named)
            del arguments, named  # no variable shows a token that is given by a wrong name
            if made.__init__ is init:
                refuse_unnamed(cls.__name__, init, count)
                known = arguments_of(init)
                refuse_unknown(cls.__name__, known, given, elsewhere)
            return super(cls, made).__new__(made)

        cls.__new__ = staticmethod(new)
        return cls

    return explained


def refuse_unknown(
    what: str, known: Collection[str], given: Iterable[str], elsewhere: Mapping[str, str], otherwise: str = ""
) -> None:
    """Say what to write for an argument that is not known: `elsewhere`, the name it is near to, or `otherwise`.

    `elsewhere` holds the names that belong to another part of the package; by default, `known` is listed.

    Raises:
        TypeError: Not all that is given is known.
    """
    for name in given:
        if name in known:
            continue
        near = name if name in elsewhere else "".join(get_close_matches(name, [*known, *elsewhere], 1, _NEAR))
        if near in known:
            advice = f"; did you mean {near}=?"
        else:
            advice = f". {elsewhere.get(near) or otherwise.format(name=name) or 'It takes ' + ', '.join(known)}"
        raise TypeError(f"{what}() has no argument {name!r}{advice}")


class NotWith:
    """A base of classes that need `async with`."""

    if not TYPE_CHECKING:  # pragma: no branch

        def __enter__(self) -> NoReturn:
            raise TypeError(f"Use `async with`, not `with`, for a {type(self).__name__}")

        def __exit__(self, *_: object) -> None:
            """Never reached; Python needs it before it calls `__enter__`."""

        def close(self) -> NoReturn:
            """Say how to close it."""
            verb = ", or `await aclose()`" if hasattr(self, "aclose") else ""
            raise TypeError(f"Use `async with`{verb}, not `close()`, for a {type(self).__name__}")


class NotForLoop:
    """A base of classes that need `async for`."""

    if not TYPE_CHECKING:  # pragma: no branch

        def __iter__(self) -> NoReturn:
            raise TypeError(f"Use `async for`, not `for`, over a {type(self).__name__}")

        def __await__(self) -> NoReturn:
            if isinstance(self, NotWith):
                raise TypeError(f"Use `async with`, not `await`, for a {type(self).__name__}")
            raise TypeError(f"Use `async for`, not `await`, over a {type(self).__name__}")
