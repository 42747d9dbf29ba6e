"""How a command line ends: without a token, an extra or a hand that interrupts it, and with a defect."""

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async.cli import answers, generate, run
from flux_klein_async.emulator import Emulator

from .helpers import Command


@pytest.mark.parametrize(
    "line", ["generate x", "batch prompts.txt", "status abc", "result abc", "cancel abc", "models"]
)
def test_without_a_token_a_command_ends_with_77_names_the_variable_and_makes_nothing(
    flux_klein: Command, line: str
) -> None:
    Path("prompts.txt").write_text("a cat\n")
    ran = flux_klein(*line.split())
    assert (ran.code, ran.out) == (77, "")
    assert "RUNCOMFY_API_TOKEN" in ran.err
    assert [path.name for path in Path().iterdir()] == ["prompts.txt"]


@pytest.mark.parametrize("line", ["generate x --emulator", "batch prompts.txt --emulator", "emulator"])
def test_without_pillow_the_emulator_says_what_to_install(
    flux_klein: Command, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    Path("prompts.txt").write_text("a cat\n")
    monkeypatch.setitem(sys.modules, "PIL", None)
    ran = flux_klein(*line.split())
    assert (ran.code, ran.out) == (1, "")
    assert "pip install 'flux_klein_async[emulator]'" in ran.err


def test_ctrl_c_outside_a_loop_is_130(flux_klein: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "prepare", interrupted)
    ran = flux_klein("generate", "x")
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "")


@pytest.mark.parametrize(("verb", "module"), [("generate", run), ("batch", run), ("result", answers)])
def test_the_hosts_that_are_named_may_have_the_files(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch, verb: str, module: Any
) -> None:
    Path("prompts.txt").write_text("a cat\n")
    made = []

    def limits(**given: Any) -> None:
        made.append(given["file_hosts"])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "Limits", limits)
    flux_klein(verb, "prompts.txt", "--file-host", "cdn.example.net", "--file-host", ".example.com")
    assert made == [("cdn.example.net", ".example.com")]


@pytest.mark.parametrize(
    ("defect", "said"),
    [(LookupError("a value"), "LookupError"), (OSError(28, "No space", "a value"), "OSError: No space")],
    ids=("any", "system"),
)
def test_a_defect_is_a_sentence_without_values(
    flux_klein: Command, monkeypatch: pytest.MonkeyPatch, defect: Exception, said: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        token = "secret-token-of-the-test"
        raise defect if token else LookupError

    monkeypatch.setattr(generate, "prepare", broken)
    ran = flux_klein("generate", "x")
    assert ran.code == 1
    assert ran.err == f"Unexpected {said}; FLUX_KLEIN_DEBUG=1 shows where.\n"
    monkeypatch.setenv("FLUX_KLEIN_DEBUG", "1")
    monkeypatch.delattr(sys, "tracebacklimit", raising=False)  # asyncio's debug mode is tested with one
    assert "in broken" in flux_klein("generate", "x").err.replace('secret-token-of-the-test"', "")


def test_the_debug_variable_logs_every_event_with_its_time(
    flux_klein: Command, served: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's
    monkeypatch.setenv("FLUX_KLEIN_DEBUG", "1")
    err = flux_klein("generate", "x").err
    assert [f" {name} " in err for name in ("INFO submitted", "DEBUG polled", "INFO finished")] == [True] * 3
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO submitted ", err, re.MULTILINE)
