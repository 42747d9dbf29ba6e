"""The pages keep to what is there: every test that they name exists, every link leads somewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


def functions(path: Path) -> set[str]:
    """The names of all functions in a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page):
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        assert name in functions(ROOT / path), f"{path}::{name}"


def test_every_rule_names_the_tests_that_hold_it():
    rules = re.split(r"^## (?=\d+\. )", GUARANTEES, flags=re.MULTILINE)[1:]
    assert [int(rule.partition(".")[0]) for rule in rules] == list(range(1, 11))
    assert all(rule.count("::test_") >= 3 for rule in rules)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
