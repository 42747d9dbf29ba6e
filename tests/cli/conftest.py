"""Fixtures only: an emulator in a thread of its own, and the command line called in this process."""

import io
import sys
from collections.abc import Iterator

import pytest

from flux_klein_async.__main__ import main
from flux_klein_async.emulator import Emulator
from tests.served import in_thread

from .helpers import Command, Ran


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """An emulator on a loopback port that the environment names, with its token."""
    with in_thread(Emulator(profile="fixed:0.01", api_key="secret-token-of-the-test")) as emulator:
        monkeypatch.setenv("RUNCOMFY_MODEL_API_BASE", emulator.base_url)
        monkeypatch.setenv("RUNCOMFY_API_TOKEN", emulator.api_key)
        yield emulator


@pytest.fixture
def flux_klein(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Command:
    """The command line in this process, in an empty directory; the token may stand in nothing that it prints."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist sets it

    def run(*arguments: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main(arguments)
        out, err = capsys.readouterr()
        assert "secret-token-of-the-test" not in out + err
        return Ran(code, out, err)

    return run
