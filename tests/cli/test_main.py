import pytest

from flux_klein_async import __version__
from flux_klein_async.cli import generate

from .helpers import Command


def test_prints_its_version(flux_klein: Command) -> None:
    assert flux_klein("--version").out == f"flux-klein {__version__}\n"


def test_without_a_command_it_shows_its_help_and_64(flux_klein: Command) -> None:
    ran = flux_klein()
    assert (ran.code, ran.out) == (64, "")
    for command in ("generate", "status", "result", "cancel", "explain", "price", "doctor", "journal", "emulator"):
        assert f"\n  {command} " in ran.err


@pytest.mark.parametrize("command", ["generate", "result", "explain", "price", "doctor", "emulator"])
def test_help_has_examples(flux_klein: Command, command: str) -> None:
    ran = flux_klein(command, "--help")
    assert ran.code == 0
    assert f"    flux-klein {command} " in ran.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_given_a_script_that_completes(
    flux_klein: Command, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setenv("_FLUX_KLEIN_COMPLETE", f"source_{shell}")
    script = flux_klein()
    assert (script.code, script.err) == (0, "")
    assert f"_FLUX_KLEIN_COMPLETE=complete_{shell}" in script.out
    typed = {"COMP_WORDS": "flux-klein pr", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "flux-klein pr"}
    for name, value in {**typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_FLUX_KLEIN_COMPLETE", f"complete_{shell}")
    completed = flux_klein()
    assert (completed.code, completed.err) == (0, "")
    assert "price" in completed.out
    assert "generate" not in completed.out


@pytest.mark.parametrize("arguments", [["genrate"], ["--nonsense"], ["\x1b[31m"]])
def test_an_unknown_command_is_64(flux_klein: Command, arguments: list[str]) -> None:
    ran = flux_klein(*arguments)
    assert ran.code == 64
    assert "Error: No such" in ran.err
    assert "\x1b" not in ran.err


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
