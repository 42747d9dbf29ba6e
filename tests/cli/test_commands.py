"""The commands that there are: help, completion, and what they load."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from flux_klein_async import __version__
from flux_klein_async.cli.commands import PARTS, _positive, app, built
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE
from tests.fakes import without_remarks
from tests.pages import with_this_python
from tests.served import PATIENCE

from .helpers import Command


def test_prints_its_version(flux_klein: Command) -> None:
    assert flux_klein("--version").out == f"flux-klein {__version__}\n"


def commands(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A command and all below it, with the words that call them."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


EVERY = {(): typer.main.get_command(app)}
for name in PARTS:
    EVERY |= dict(commands(built(name), name))
GROUPS = [path for path, command in EVERY.items() if hasattr(command, "commands")]
BARE = [path for path in GROUPS if path != ("models",)]  # it lists models by itself


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_help_has_examples_of_what_there_is(flux_klein: Command, path: tuple[str, ...]) -> None:
    ran = flux_klein(*path, "--help")
    assert (ran.code, ran.err) == (0, "")
    examples = re.findall(r"^ +(?:[\w -]+ \| )?(flux-klein .+)$", ran.out.replace("\\\n", ""), re.MULTILINE)
    assert any(example.startswith(" ".join(("flux-klein", *path))) for example in examples)
    for words in map(shlex.split, examples):
        called = max((known for known in EVERY if tuple(words[1 : 1 + len(known)]) == known), key=len)
        assert called, words
        given = itertools.takewhile(lambda word: word != "--", words)
        assert {word for word in given if word.startswith("--")} <= options(EVERY[called])


@pytest.mark.parametrize("path", BARE)
def test_without_a_command_a_group_shows_its_help_and_64(flux_klein: Command, path: tuple[str, ...]) -> None:
    ran = flux_klein(*path)
    assert (ran.code, ran.out) == (64, "")
    assert all(f"\n  {command} " in ran.err for command in EVERY[path].commands)


@pytest.mark.parametrize("path", GROUPS)
def test_a_list_of_commands_says_whole_sentences_on_80_columns(
    flux_klein: Command, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = flux_klein(*path, "--help").out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(listed) == len(EVERY[path].commands)
    assert [line for line in listed if len(line) > 80 or not line.endswith(".") or line.endswith("..")] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_given_a_script_that_completes(
    flux_klein: Command, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setenv("_FLUX_KLEIN_COMPLETE", f"source_{shell}")
    script = flux_klein()
    assert (script.code, script.err) == (0, "")
    assert f"_FLUX_KLEIN_COMPLETE=complete_{shell}" in script.out
    typed = {"COMP_WORDS": "flux-klein mo", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "flux-klein mo"}
    for name, value in {**typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_FLUX_KLEIN_COMPLETE", f"complete_{shell}")
    completed = flux_klein()
    assert (completed.code, completed.err) == (0, "")
    assert "models" in completed.out
    assert "generate" not in completed.out


TYPED = {
    "flux-klein mo": "models",
    "flux-klein models s": "show",
    "flux-klein models flux --cat": "--category",
    "flux-klein journal ex": "export",
    "flux-klein generate --out": "--output-dir",
    "flux-klein generate --model ": f"{KLEIN_4B_TEXT_TO_IMAGE} {KLEIN_9B_TEXT_TO_IMAGE}",
    "flux-klein models show blackforestlabs/flux-2-klein/9": KLEIN_9B_TEXT_TO_IMAGE,
    "flux-klein batch --format j": "jsonl",
    "flux-klein journal list --state sub": "submitting submitted",
}


_COMPLETE = """
COMP_WORDS=({words}); COMP_CWORD={last}; _flux_klein_completion flux-klein; echo "${{COMPREPLY[*]}}"
"""


@pytest.mark.slow
def test_bash_completes_what_is_typed(flux_klein: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bash itself, with the lines that are for its start-up file, calls the installed command."""
    monkeypatch.setenv("_FLUX_KLEIN_COMPLETE", "source_bash")
    script = flux_klein().out
    monkeypatch.delenv("_FLUX_KLEIN_COMPLETE")
    monkeypatch.setenv("PATH", with_this_python(os.environ["PATH"]))
    for typed in TYPED:
        words = [repr(word) for word in typed.split(" ")]
        script += _COMPLETE.format(words=" ".join(words), last=len(words) - 1)
    bash = shutil.which("bash")
    assert bash is not None
    ran = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (ran.returncode, without_remarks(ran.stderr)) == (0, "")
    assert dict(zip(TYPED, ran.stdout.splitlines(), strict=True)) == TYPED


def test_seconds_are_positive() -> None:
    assert [_positive(seconds) for seconds in (0.001, 1.0, float("inf"))] == [0.001, 1.0, float("inf")]
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(typer.BadParameter):
            _positive(seconds)


_RUN = """
import contextlib, io, json, os, sys
import typer, rich
known = set(sys.modules)
from flux_klein_async.__main__ import main

def ran(*words):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(words) == 0
    return out.getvalue()

helps, typed = json.loads(sys.argv[1])
told = [ran(*words, "--help")[:5] for words in helps]
os.environ["_FLUX_KLEIN_COMPLETE"] = "complete_bash"
offered = {}
for line in typed:
    os.environ |= {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    offered[line] = " ".join(ran().split())
print(json.dumps([told, offered, sorted(set(sys.modules) - known)]))
"""


def test_help_and_completion_load_neither_pydantic_nor_aiohttp_nor_asyncio() -> None:
    """What they load besides typer decides what they take. What a completion offers is right all the same."""
    command = [sys.executable, "-c", _RUN, json.dumps([list(EVERY), list(TYPED)])]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    told, offered, modules = json.loads(ran.stdout)
    assert told == ["Usage"] * len(EVERY)
    assert offered == TYPED
    assert {"pydantic", "aiohttp", "asyncio", "logging", "yarl", "sqlite3", "rich.console"} & set(modules) == set()
