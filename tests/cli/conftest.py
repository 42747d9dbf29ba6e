"""Fixtures only: an emulator in a thread of its own, and the command line called in this process."""

import io
import sys
from collections.abc import Iterator

import pytest

from flux_klein_async.__main__ import main
from flux_klein_async.emulator import Emulator
from flux_klein_async.emulator.catalogue import MODELS
from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.policies import Observation
from tests.served import in_thread

from .helpers import Command, Ran


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store that knows the emulator's times: without it, the first poll of a command comes after 0.37 s."""
    path = tmp_path_factory.mktemp("learned") / "times.json"
    policy = AdaptivePolling(store=path)
    for model in MODELS:
        policy.observe(Observation(model, 1024 * 1024, 0.009, 0.011, None, 0.01, 1, 0.011))
    write = policy.unsaved()
    assert write is not None
    write()
    return path.read_bytes()


@pytest.fixture
def served(
    monkeypatch: pytest.MonkeyPatch, learned: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Emulator]:
    """An emulator on a loopback port that the environment names, with its token and its times."""
    store = tmp_path_factory.mktemp("store") / "times.json"
    store.write_bytes(learned)
    monkeypatch.setenv("FLUX_KLEIN_STORE", str(store))
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
