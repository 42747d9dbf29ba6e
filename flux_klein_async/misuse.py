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
    "refuse_fields",
    "refuse_unnamed",
    "slip",
]

NEEDS_ASYNCIO = "No asyncio event loop runs here: use asyncio.run(...), also in a thread beside trio or another loop"

C = TypeVar("C", bound=type)

_NEAR = 0.7  # of difflib's ratio: "widht" is near to "width", and "steps" to nothing
_SAVED = "One picture is saved by client.download(result, directory); generate_many and generate_all take directory="
# What other clients take here, by name, and what to write instead.
_ELSEWHERE = {
    "prompt": "The prompt is the first argument: generate('a snow leopard')",
    **dict.fromkeys(("directory", "output", "output_dir", "path"), _SAVED),
    **dict.fromkeys(("n", "num_images"), "A request makes one picture: generate_many and generate_all make many"),
    "size": "The sides are width= and height=, in pixels",
    **dict.fromkeys(("names", "name"), "The files of an item are named by to_name= of generate_many and generate_all"),
    "limit": "concurrency= of generate_many and generate_all bounds the items under way",
    **dict.fromkeys(
        ("resubmit_uncertain", "retry_failed"),
        "What an earlier run left is submitted again by the journal: SqliteJournal(path, resubmit_uncertain=True)",
    ),
}


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


def refuse_fields(
    method: Callable[..., object], known: Collection[str], given: Iterable[str], elsewhere: Mapping[str, str]
) -> None:
    """Say where a model's field goes that was given to a verb as an argument, such as `seed=`.

    `elsewhere`: what to write for the names that belong to another part of the package.

    Raises:
        TypeError: Not all that is given is known.
    """
    otherwise = (
        "FLUX.2 [klein] takes a prompt, a width and a height; the fields of another model go into the input: "
        "{{'prompt': ..., {name!r}: ...}}"
    )
    _refuse_unknown(method.__qualname__, known, given, {**_ELSEWHERE, **elsewhere}, otherwise)


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
                _refuse_unknown(cls.__name__, known, given, elsewhere, f"It takes {', '.join(known)}")
            return super(cls, made).__new__(made)

        cls.__new__ = staticmethod(new)
        return cls

    return explained


def _refuse_unknown(
    what: str, known: Collection[str], given: Iterable[str], elsewhere: Mapping[str, str], otherwise: str
) -> None:
    """Say what to write for an argument that is not known: `elsewhere`, the name it is near to, or `otherwise`.

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
            advice = f". {elsewhere.get(near) or otherwise.format(name=name)}"
        raise TypeError(f"{what}() has no argument {name!r}{advice}")


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

        def __await__(self) -> NoReturn:
            if isinstance(self, NotWith):
                raise TypeError(f"Use `async with`, not `await`, for a {type(self).__name__}")
            raise TypeError(f"Use `async for`, not `await`, over a {type(self).__name__}")
