"""The public surface: complete, documented, and usable by strict type checkers."""

import asyncio
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import aiohttp
import pytest

import flux_klein_async
from flux_klein_async import FluxKleinClient, FluxKleinError, RequestHandle

VERBS = """submit status result cancel wait_for_result generate generate_many generate_all handle updates get_model
    list_models download download_bytes aclose"""
SEAMS = "PollPolicy SavedPolicy Journal ItemJournal AccountJournal SpendingLimit Limiter SharedLimiter"
UNRESOLVED = {"aiohttp": aiohttp, "os": os, "Path": Path, "FluxKleinClient": FluxKleinClient}  # imported for checkers


def mentioned(hint: Any) -> Iterator[type]:
    """The package's own classes in an annotation."""
    if isinstance(hint, type) and hint.__module__.startswith("flux_klein_async."):
        yield hint
    for part in (get_origin(hint), *get_args(hint)):
        for inner in part if isinstance(part, list) else [part]:
            if inner is not None and inner is not hint:
                yield from mentioned(inner)


def used_by(cls: type) -> Iterator[type]:
    """The package's own classes in the annotations of a class and its public methods."""
    methods = [method for name, method in inspect.getmembers_static(cls) if not name.startswith("_")]
    if cls is FluxKleinClient:
        methods.append(cls.__init__)
    functions = [getattr(method, "fget", None) or getattr(method, "__func__", method) for method in methods]
    own = [each for each in functions if inspect.isfunction(each) and each.__module__.startswith("flux_klein_async.")]
    for annotated in (cls, *own):
        for hint in get_type_hints(annotated, localns=UNRESOLVED).values():
            yield from mentioned(hint)


def test_every_class_that_a_verb_or_a_seam_takes_or_returns_is_exported():
    found: set[type] = set()
    left = [FluxKleinClient, RequestHandle, *(getattr(flux_klein_async, name) for name in SEAMS.split())]
    while left:
        cls = left.pop()
        if cls not in found:
            found.add(cls)
            left += used_by(cls)
    assert {"FanOut", "Outcome", "ItemClaims", "Claim", "Action", "Reservation", "Kind"} <= {c.__name__ for c in found}
    assert [cls for cls in found if getattr(flux_klein_async, cls.__name__, None) is not cls] == []


def test_every_exported_name_exists_and_no_other_class_is_public():
    of_extras = {"PostgresJournal", "RedisLimiter"}  # once they are used
    public = {name for name in dir(flux_klein_async) if not name.startswith("_")} - of_extras
    classes = {name for name in public if inspect.isclass(getattr(flux_klein_async, name))}
    assert classes <= set(flux_klein_async.__all__)
    assert all(hasattr(flux_klein_async, name) for name in flux_klein_async.__all__)


def test_the_modules_with_vocabulary_are_attributes():
    import_lazily = vars(flux_klein_async)["__getattr__"]
    assert [import_lazily(name).__name__ for name in ("errors", "events")] == [
        "flux_klein_async.errors",
        "flux_klein_async.events",
    ]


def test_every_error_is_exported():
    def walk(cls: type[BaseException]) -> set[type[BaseException]]:
        return {cls}.union(*map(walk, cls.__subclasses__()))

    own = {cls.__name__ for cls in walk(FluxKleinError) if cls.__module__ == "flux_klein_async.errors"}
    assert len(own) > 20
    assert own <= set(flux_klein_async.__all__)


@pytest.mark.parametrize("name", VERBS.split())
def test_every_verb_is_documented_with_what_it_raises(name):
    verb = getattr(FluxKleinClient, name)
    text = inspect.getdoc(verb) or ""
    assert text
    if asyncio.iscoroutinefunction(verb) and name != "aclose":
        assert "Raises:" in text


@pytest.mark.parametrize("name", ["status", "result", "cancel", "wait_for_result", "updates"])
def test_a_handle_has_the_clients_verbs_without_the_request(name):
    def names(owner: type) -> list[str]:
        return [p for p in inspect.signature(getattr(owner, name)).parameters if p != "request"]

    assert names(RequestHandle) == names(FluxKleinClient)


def test_generate_all_takes_what_generate_many_takes():
    def parameters(verb: Any) -> list[tuple[str, Any]]:
        return [(name, each.default) for name, each in inspect.signature(verb).parameters.items()]

    assert parameters(FluxKleinClient.generate_all) == parameters(FluxKleinClient.generate_many)


def test_the_map_in_the_package_docstring_names_every_folder():
    text = flux_klein_async.__doc__ or ""
    package = Path(flux_klein_async.__file__).parent
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(re.findall(r"\b(\w+)/", text)) == folders
