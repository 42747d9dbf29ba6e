"""The public surface: complete, sorted, documented, and usable by strict type checkers."""

import asyncio
import inspect
import re
from pathlib import Path

import pytest

import flux_klein_async
from flux_klein_async import FluxKleinClient, FluxKleinError, RequestHandle

VERBS = [
    "submit",
    "status",
    "result",
    "cancel",
    "wait_for_result",
    "generate",
    "generate_many",
    "generate_all",
    "handle",
    "updates",
    "get_model",
    "download",
    "download_bytes",
    "aclose",
]


def test_every_exported_name_exists_and_no_other_class_is_public():
    public = {name for name in dir(flux_klein_async) if not name.startswith("_")}
    classes = {name for name in public if inspect.isclass(getattr(flux_klein_async, name))}
    assert classes <= set(flux_klein_async.__all__)
    assert all(hasattr(flux_klein_async, name) for name in flux_klein_async.__all__)


def test_every_error_is_exported():
    def walk(cls: type[BaseException]) -> set[str]:
        below = set().union(*[walk(sub) for sub in cls.__subclasses__()])
        own = cls.__module__ == "flux_klein_async.errors" and not cls.__name__.startswith("_")
        return below | ({cls.__name__} if own else set())

    assert walk(FluxKleinError) <= set(flux_klein_async.__all__)


@pytest.mark.parametrize("name", VERBS)
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
    many = inspect.signature(FluxKleinClient.generate_many).parameters
    assert list(many) == list(inspect.signature(FluxKleinClient.generate_all).parameters)
    assert [many[name].default for name in many] == [
        parameter.default for parameter in inspect.signature(FluxKleinClient.generate_all).parameters.values()
    ]


def test_the_map_in_the_package_docstring_names_every_folder():
    text = flux_klein_async.__doc__ or ""
    package = Path(flux_klein_async.__file__).parent
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(re.findall(r"\b(\w+)/", text)) == folders
