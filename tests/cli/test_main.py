"""The command line as a whole: what it refuses, its help, its completion, and what it prints of a defect."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flux_klein_async import __version__
from flux_klein_async.cli import generate
from flux_klein_async.cli.main import app
from flux_klein_async.emulator import Emulator
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE
from tests.fakes import without_remarks
from tests.pages import with_this_python
from tests.served import PATIENCE

from .helpers import Command

NINE = KLEIN_9B_TEXT_TO_IMAGE
# Arguments, exit code, and what the message says. Nothing is sent, and nothing is printed to standard output.
REFUSED: list[tuple[str | list[str], int, str]] = [
    ("genrate", 64, "No such command"),
    ("--nonsense", 64, "No such option"),
    (["\x1b[31m"], 64, "No such command"),
    ("generate", 64, "Missing argument"),
    ("generate --widht=512", 64, "No such option"),
    ("generate x --widht 512", 64, "--widht"),
    ("generate x y", 64, "unexpected extra argument"),
    ("generate x --count 0", 64, "--count"),
    (f"generate x --count {'9' * 20}", 64, "--count"),
    ("generate x --timeout 0", 64, "more than 0 seconds"),
    ("generate x --concurrency 0", 64, "--concurrency"),
    (["generate", "x", "--output-dir", __file__], 64, "nothing can be written"),
    ("generate x --width 63", 65, "width"),
    ("generate x --height 2049", 65, "height"),
    ("generate ' '", 65, "prompt"),
    ("generate -", 65, "UTF-8"),
    (["generate", "\udcff"], 65, "surrogates"),
    ("generate x --model ../x", 65, "model"),
    ("generate x --steps 8", 64, f"4b/text-to-image takes no steps; --model {NINE} does"),
    ("generate x --steps 8 --model emulator/any/text-to-video", 64, "text-to-video takes no steps"),
    (f"generate x --steps eight --model {NINE}", 64, "valid integer"),
    (f"generate x --steps 0 --model {NINE}", 65, "steps: "),
    (f"generate x --steps 101 --model {NINE}", 65, "steps: "),
    (f"generate ' ' --steps 8 --model {NINE}", 65, "prompt: the prompt is blank"),
    ("batch", 64, "Missing argument"),
    ("batch none.txt", 64, "cannot be read"),
    ("batch prompts.doc", 65, ".txt, .jsonl, .csv"),
    ("batch prompts.txt --format xml", 64, "xml"),
    (["batch", "prompts.txt", "--output-dir", __file__], 64, "nothing can be written"),
    ("batch prompts.txt --max-spend -1", 64, "--max-spend"),
    ("batch prompts.txt --concurrency 0", 64, "--concurrency"),
    ("batch prompts.txt --journal prompts.txt", 1, "prompts.txt"),
    ("models flux edit", 64, "unexpected extra argument"),
    ("models --emulator show x", 64, "unexpected extra argument"),
    ("models --nonsense", 64, "No such option"),
    (["models", "\udcff"], 65, "search must be text"),
    ("models show", 64, "Missing argument 'ID'"),
    ("models show a b", 64, "unexpected extra argument"),
    ("models show ../x", 65, "model id"),
    ("emulator --profile slow", 64, "--profile"),
    ("emulator --port 65536", 64, "--port"),
    ("emulator --workers -1", 64, "--workers"),
    ("emulator --seed x", 64, "--seed"),
    ("emulator extra", 64, "unexpected extra argument"),
    *[
        (["emulator", "--fault", fault], 64, "--fault")
        for fault in ("", "status:503", "status:503=2", "status:none=0.1", "connect:refuse=0.1")
    ],
    *[([verb, "../../\x1b[31m"], 65, "request id") for verb in ("status", "result", "cancel")],
    # Plain http to another machine would show the token.
    ("status abc --base-url http://example.com", 77, "https"),
]


def test_a_wrong_call_is_refused_with_a_message_before_anything_is_sent(served: Emulator, flux_klein: Command) -> None:
    Path("prompts.txt").write_text("a cat\na dog\n")
    for line, code, message in REFUSED:
        ran = flux_klein(*(shlex.split(line) if isinstance(line, str) else line), stdin=b"caf\xe9")
        assert (ran.code, ran.out) == (code, ""), line
        assert code != 64 or "Error: " in ran.err, line
        assert message in " ".join(ran.err.split()), line
        assert "\x1b" not in ran.err, line
    assert not served.records


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


def test_prints_its_version(flux_klein: Command) -> None:
    assert flux_klein("--version").out == f"flux-klein {__version__}\n"


def commands(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A command and all below it, with the words that call them."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


EVERY = dict(commands(typer.main.get_command(app)))
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


def test_ctrl_c_outside_a_loop_is_130(flux_klein: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "prepare", interrupted)
    ran = flux_klein("generate", "x")
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "")


def test_a_defect_is_a_sentence_without_values(flux_klein: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        token = "secret-token-of-the-test"
        raise LookupError(len(token))

    monkeypatch.setattr(generate, "prepare", broken)
    ran = flux_klein("generate", "x")
    assert ran.code == 1
    assert ran.err == "Unexpected LookupError; FLUX_KLEIN_DEBUG=1 shows where.\n"
    monkeypatch.setenv("FLUX_KLEIN_DEBUG", "1")
    assert "in broken" in flux_klein("generate", "x").err.replace('secret-token-of-the-test"', "")
