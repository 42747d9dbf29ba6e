"""Every command on streams that are closed, broken or full, and the end of the process."""

import io
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from flux_klein_async.__main__ import main
from flux_klein_async.cli import output
from flux_klein_async.cli.commands import PARTS, built
from flux_klein_async.emulator import Emulator
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE
from tests.served import PATIENCE, in_thread

from .helpers import TOKEN

ROOT = Path(__file__).parent.parent.parent
# Every command: its arguments, its exit code where its output is read, and whether it prints to stdout.
COMMANDS: dict[str, tuple[str, int, bool]] = {
    "": ("", 64, False),
    "generate": ("generate x --width 64 --height 64", 0, True),
    "batch": ("batch prompts.txt --output-dir OUT", 0, True),
    "report": ("report made", 0, True),
    "status": ("status ID", 0, True),
    "result": ("result ID", 0, True),
    "cancel": ("cancel ID", 1, True),
    "models": ("models", 0, True),
    "models show": (f"models show {KLEIN_4B_TEXT_TO_IMAGE}", 0, True),
    "doctor": ("doctor", 0, True),
    "emulator": ("emulator --faults", 0, True),
    "journal": ("journal", 64, False),
    "journal list": ("journal list --journal made/journal.sqlite", 0, True),
    "journal show": ("journal show ID --journal made/journal.sqlite", 0, True),
    "journal check": ("journal check --journal made/journal.sqlite", 0, False),
    "journal export": ("journal export --journal made/journal.sqlite", 0, True),
    "journal prune": ("journal prune --dry-run --journal made/journal.sqlite", 0, True),
}
OTHERS = {
    "--version": ("--version", 0, True),
    "--help": ("--help", 0, True),
    "a mistake": ("status", 64, False),
    "an error": ("status no-such-id", 65, False),
    "a record of an error": ("status no-such-id --json", 65, True),
}
CASES = {**COMMANDS, **OTHERS}


def test_the_table_has_every_command() -> None:
    names = ["", *PARTS]
    names += [f"{group} {name}" for group in ("journal", "models") for name in built(group).commands]
    assert sorted(COMMANDS) == sorted(names)


class Made(NamedTuple):
    """A folder in which a batch of two prompts was made, and what a command needs to call the same emulator."""

    folder: Path
    environment: dict[str, str]
    request_id: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("made")
    (folder / "prompts.txt").write_text("a cat\na dog\n")
    with in_thread(Emulator(profile="fixed:0.01", api_key=TOKEN)) as emulator, pytest.MonkeyPatch.context() as patch:
        environment = {"RUNCOMFY_MODEL_API_BASE": emulator.base_url, "RUNCOMFY_API_TOKEN": emulator.api_key}
        for name, value in {**environment, "HOME": str(folder / "home")}.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        assert main(["batch", "prompts.txt", "--output-dir", "made", "--quiet"]) == 0
        patch.undo()
        yield Made(folder, environment, emulator.records[0].request_id or "")


@pytest.fixture
def arguments(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """The arguments of a case, in a copy of that folder."""
    monkeypatch.chdir(shutil.copytree(made.folder, tmp_path / "here"))
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)

    def of(name: str) -> list[str]:
        words = {"ID": made.request_id, "OUT": f"out-{time.monotonic_ns()}"}
        return [words.get(word, word) for word in CASES[name][0].split()]

    return of


@contextmanager
def unread() -> Iterator[int]:
    """The writing end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_command_whose_output_nobody_reads_is_silent_and_141(
    arguments: Callable[[str], list[str]],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, code, prints = CASES[name]
    words = arguments(name)
    capsys.readouterr()
    with unread() as writer, os.fdopen(os.dup(writer), "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(words) == (141 if prints else code)
        output.to_nowhere(stream)
        monkeypatch.undo()
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "Unexpected" not in err


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["notes unread", "notes closed", "no streams"])
@pytest.mark.parametrize("name", CASES)
def test_without_a_reader_of_the_notes_or_any_streams_a_command_goes_on(
    arguments: Callable[[str], list[str]],
    name: str,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, code, prints = CASES[name]
    words = arguments(name)
    capsys.readouterr()
    with unread() as writer, os.fdopen(os.dup(writer), "w") as stream:
        for each in ("stdin", "stdout", "stderr") if broken == "no streams" else ("stderr",):
            monkeypatch.setattr(sys, each, stream if broken == "notes unread" else None)
        assert main(words) == code
        monkeypatch.undo()
    assert bool(capsys.readouterr().out) == (prints and broken != "no streams")


@pytest.mark.parametrize("line", ["generate -", "batch -"])
def test_a_prompt_from_a_closed_standard_input_is_refused(
    served: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(line.split()) == 64
    assert "standard input is closed" in capsys.readouterr().err
    assert served.calls["submit"] == 0


def test_addresses_that_nobody_could_read_are_not_paid_for(
    served: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["generate", "x", "--no-download"]) == 64
    assert "standard output is closed" in capsys.readouterr().err
    assert served.calls["submit"] == 0


def test_an_address_whose_reader_has_gone_is_told_with_the_command_that_fetches_it(
    served: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with unread() as writer, os.fdopen(os.dup(writer), "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["generate", "x", "--no-download"]) == 141
        monkeypatch.undo()
    assert f"Not printed: flux-klein result {served.records[-1].request_id}" in capsys.readouterr().err


def test_what_is_written_nowhere_is_dropped() -> None:
    nowhere = output.Nowhere()
    assert (nowhere.write("text"), nowhere.writable(), nowhere.isatty()) == (4, True, False)
    output.to_nowhere(nowhere)  # it has no file


# --- the end of the process


class LeavingError(Exception):
    """The process ended at once."""


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise LeavingError(code)

    monkeypatch.setattr(os, "_exit", leave)


@pytest.mark.usefixtures("at_once")
def test_a_process_without_threads_of_its_own_ends_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_PATIENCE", PATIENCE)  # a busy machine may keep the first thread from its end
    threading.Thread(target=time.sleep, args=(0.01,)).start()
    threading.Thread(target=time.sleep, args=(1.0,), daemon=True).start()
    assert output.leave(7) == 7


@pytest.mark.usefixtures("at_once")
def test_a_process_whose_thread_hangs_ends_at_once_with_its_code() -> None:
    released = threading.Event()
    threading.Thread(target=released.wait).start()
    try:
        with pytest.raises(LeavingError, match="7"):
            output.leave(7)
    finally:
        released.set()


def test_what_cannot_be_flushed_at_the_end_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with unread() as writer:
        stream = os.fdopen(os.dup(writer), "w")
        stream.write("text")
        monkeypatch.setattr(sys, "stdout", stream)
        assert output.leave(0) == 0
        stream.close()  # what is left goes nowhere
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        sys.stdout.close()
        assert output.leave(0) == 0
        monkeypatch.undo()


# --- real processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "closed"),
    [
        *((name, ">&- 2>&- <&-") for name in ("generate", "batch", "models", "emulator", "journal list")),
        *(("batch", closed) for closed in (">&-", "2>&-", "<&-", ">&- 2>&-")),
    ],
)
def test_a_process_started_without_standard_streams(
    arguments: Callable[[str], list[str]], name: str, closed: str
) -> None:
    """Every command goes on without them (above); here they are missing from the start."""
    words = arguments(name)
    line = [sys.executable, "-m", "flux_klein_async", *words]
    ran = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *line],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == CASES[name][1], ran.stderr
    assert b"Traceback" not in ran.stderr
    assert b"Exception ignored" not in ran.stderr
    if name == "batch":
        assert len(list(Path(words[-1]).glob("*.png"))) == 2
        journal = str(Path(words[-1], "journal.sqlite"))
        assert main(["journal", "check", "--journal", journal]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_the_next_file_does_not_get_the_descriptor_of_a_closed_stream(closed: str) -> None:
    script = "import os; from flux_klein_async.cli.output import open_closed; open_closed(); os._exit(os.open('/', 0))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", script]
    assert subprocess.run(line, check=False, timeout=PATIENCE, env=environment).returncode >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generate", "batch", "models", "doctor", "journal export", "--help", "a mistake"])
def test_a_process_whose_output_nobody_reads(arguments: Callable[[str], list[str]], name: str) -> None:
    _, code, prints = CASES[name]
    with unread() as writer:
        ran = subprocess.run(
            [sys.executable, "-m", "flux_klein_async", *arguments(name)],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
            timeout=PATIENCE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    assert ran.returncode == (141 if prints else code), ran.stderr
    assert b"Traceback" not in ran.stderr
    assert b"Exception ignored" not in ran.stderr
