"""The pages keep to what is there: every test that they name exists, every link leads somewhere."""

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import flux_klein_async
from flux_klein_async import events
from flux_klein_async.cli.commands import PARTS, built

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


def functions(path: Path) -> set[str]:
    """The names of all functions in a file."""
    return set(re.findall(r"^ *(?:async )?def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def test_every_test_that_a_page_names_exists():
    named = {found for page in PAGES for found in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text("utf-8"))}
    defined = {path: functions(ROOT / path) for path in {path for path, _ in named}}
    assert len(named) > 50
    assert [f"{path}::{name}" for path, name in named if name not in defined[path]] == []


def test_every_rule_names_the_tests_that_hold_it():
    rules = re.split(r"^## (?=\d+\. )", GUARANTEES, flags=re.MULTILINE)[1:]
    assert [int(rule.partition(".")[0]) for rule in rules] == list(range(1, 12))
    assert all(rule.count("::test_") >= 3 for rule in rules)


def test_every_link_to_a_file_leads_somewhere():
    links = [
        (page, link)
        for page in PAGES
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    ]
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


REFERENCE = "".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/reference/*.md")))
MODULES = """emulator events integrations.aiohttp_web integrations.web integrations.fastapi integrations.logging
    integrations.notebook integrations.opentelemetry integrations.pillow testing"""
PUBLIC = {
    f"{module}:{name}"
    for module in ("flux_klein_async", *(f"flux_klein_async.{name}" for name in MODULES.split()))
    for name in importlib.import_module(module).__all__
    if not name.startswith("__")
}


def test_every_public_name_is_in_the_reference():
    names = {public.rpartition(":")[2] for public in PUBLIC}
    told = {
        name
        for match in re.findall(r"(?::: |\s)(?:[\w.]+\.)?(\w+)(?:\(\))?$|`(\w+)`", REFERENCE, re.MULTILINE)
        for name in match
    }
    assert names - told == set()


def test_every_command_is_in_the_reference():
    told = re.findall(r"^```{command-help} ([\w ]+)$", REFERENCE, re.MULTILINE)
    assert re.findall(r"^## flux-klein ([\w ]+)$", REFERENCE, re.MULTILINE) == told
    commands = set()
    for name in PARTS:
        command = built(name)
        below = getattr(command, "commands", {})
        commands |= {f"{name} {each}" for each in below}
        if not below or len(command.params) > 0:  # it does more than show its help
            commands.add(name)
    assert set(told) == commands


def described(path: str) -> tuple[object, str]:
    """What a directive names, and its docstring; only from its source where an extra is missing that no test has."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError:
        package = Path(flux_klein_async.__file__).parents[1]  # of the checkout or of an installed wheel
        tree = ast.parse(package.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
        [node] = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
        return None, ast.get_docstring(node) or ""
    return found, inspect.getdoc(found) or ""


def overview(page: str) -> Iterator[str]:
    """The names of a reference page, each with the first line of its docstring or help."""

    def line(name: str, text: str) -> str:
        return f"- `{name}`: {text.partition(chr(10))[0]}"

    for path, options in re.findall(r"^\.\. auto\w+:: ([\w.]+).*\n((?:   :.*\n)*)", page, re.MULTILINE):
        found, text = described(path)
        yield line(path.rpartition(".")[2], text)
        if inspect.isclass(found) and issubclass(found, BaseException):
            own = inspect.cleandoc(found.__doc__ or "").partition("\nAttributes:\n")[2].partition("\n\n")[0]
            facts = re.sub(r"\n {5,}", " ", own)
            for fact in re.findall(r"^ +(\w+): (.*)", facts, re.MULTILINE):
                yield "  " + line(*fact)
        if (members := re.search(r":members:(.*)", options)) is not None:
            for name in re.findall(r"\w+", members[1]) or [name for name in vars(found) if name[0] != "_"]:
                member = getattr(found, name)
                if inspect.isfunction(member) or isinstance(member, property):
                    yield "  " + line(name, inspect.getdoc(member) or "")
    for command in re.findall(r"^```{command-help} ([\w ]+)$", page, re.MULTILINE):
        name, _, below = command.partition(" ")
        yield line(f"flux-klein {command}", (built(name).commands[below] if below else built(name)).help)


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/reference/*.md")), ids=lambda path: path.stem)
def test_a_reference_page_lists_its_names_for_a_reader_without_sphinx(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    expected = list(overview(page))
    found = re.findall(r"^ *- `.+", page, re.MULTILINE)
    assert found == expected, "\n".join(expected)


def fields_of(cls: type) -> list[str]:
    """The fields that a class itself declares."""
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    elif issubclass(cls, BaseModel):
        names = list(cls.model_fields)
    else:
        names = list(getattr(cls, "_fields", ()))
    return [name for name in names if name in inspect.get_annotations(cls)]


def test_every_field_of_a_public_class_is_described():
    public = [getattr(importlib.import_module(module), name) for module, _, name in (p.partition(":") for p in PUBLIC)]
    records = {cls for cls in public if inspect.isclass(cls) and fields_of(cls)}
    assert {events.Finished, events.Downloaded} <= records
    assert [
        (cls.__name__, name)
        for cls in records
        for name in fields_of(cls)
        if not re.search(rf"^ +{name}: |`{name}`", inspect.getdoc(cls) or "", re.MULTILINE)
    ] == []
