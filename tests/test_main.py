import os
import signal
import subprocess
import sys
from typing import NoReturn

import pytest

from flux_klein_async import __main__, __version__


def test_python_m_works_the_same() -> None:
    command = [sys.executable, "-m", "flux_klein_async", "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == f"flux-klein {__version__}\n"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_one_sentence(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.startswith("flux_klein_async.cli") or name.partition(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert __main__.main(["--version"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "pip install 'flux_klein_async[cli]'" in err


def test_another_missing_module_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flux_klein_async.cli.commands", None)
    with pytest.raises(ModuleNotFoundError):
        __main__.main(["--version"])


def test_ctrl_c_before_anything_began_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    from flux_klein_async.cli import commands

    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run", interrupted)
    assert __main__.main([]) == 130


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [("generate", signal.SIGINT, 130), ("batch", signal.SIGTERM, 143), ("batch", signal.SIGHUP, 129)],
)
def test_a_signal_during_the_imports_says_that_nothing_was_submitted(
    command: str,
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from flux_klein_async.cli import commands

    def left(code: int) -> NoReturn:
        raise SystemExit(code)

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(os, "_exit", left)
    monkeypatch.setattr(sys, "argv", ["flux-klein", command])
    monkeypatch.setattr(commands, "run", lambda _: signal.raise_signal(number))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    try:
        with pytest.raises(SystemExit) as caught:
            __main__.main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert caught.value.code == code
    assert capfd.readouterr().err == "Nothing was submitted.\n"
