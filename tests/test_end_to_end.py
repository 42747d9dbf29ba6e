"""The command line in processes of its own against the emulator: signals, pipes and full disks."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async.emulator import Emulator, Generation, Hang
from tests.fakes import without_remarks
from tests.served import PATIENCE, in_thread, once

pytestmark = pytest.mark.slow

FLUX_KLEIN = [sys.executable, "-m", "flux_klein_async"]
SMALL = ["--width", "64", "--height", "64"]
ON_ITS_WAY = re.compile(r"Stopped (before the submit was answered|when it had just been submitted \(request \S+\))$")


def environment_of(emulated: Emulator) -> dict[str, str]:
    return {**os.environ, "RUNCOMFY_MODEL_API_BASE": emulated.base_url, "RUNCOMFY_API_TOKEN": emulated.api_key}


def start(*arguments: str, emulated: Emulator | None = None, **options: Any) -> "subprocess.Popen[str]":
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([*FLUX_KLEIN, *arguments], env=emulated and environment_of(emulated), **options)


def test_ctrl_c_waits_for_what_runs_and_cancels_what_is_queued(tmp_path: Path) -> None:
    arguments = ["generate", "a leopard", "--count", "4", *SMALL, "--json"]
    all_known = threading.Event()
    with in_thread(Emulator(workers=1, api_key="token-of-the-test")) as emulated:
        emulated.script("submit", Generation(after=0.01), *[Generation(after=6.0)] * 3)

        def polled() -> int:
            return len({record.request_id for record in emulated.records if record.endpoint == "status"})

        once(emulated, lambda: polled() == 4, all_known.set)
        with start(*arguments, emulated=emulated, cwd=tmp_path) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert all_known.wait(PATIENCE)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, err
        records = [json.loads(line) for line in [first, *out.splitlines()]]
        assert sorted(record["state"] for record in records) == ["cancelled", "cancelled", "completed", "completed"]
        files = [file["path"] for record in records for file in record["files"]]
        assert [(tmp_path / file).is_file() for file in files] == [True, True]
        assert "Waiting for running generations (30 s). Press Ctrl-C again to quit now." in err
        assert "2 of 4 done in out, 2 cancelled" in err
        assert emulated.api_key not in out + err


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    """The first is pressed when the first poll has come; the second when a cancel has, which is never answered."""
    with in_thread(Emulator(workers=0)) as emulated:
        emulated.script("cancel", *[Hang()] * 40)
        with start("generate", "x", "--count", "40", emulated=emulated, cwd=tmp_path) as process:
            once(emulated, lambda: emulated.calls["status"] > 0, lambda: process.send_signal(signal.SIGINT))
            once(emulated, lambda: emulated.calls["cancel"] > 0, lambda: process.send_signal(signal.SIGINT))
            _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert " done" not in err.splitlines()[-1], "it did not wait for a summary"
    assert err.count("  flux-klein result ") > 0, "it says how to resume what it leaves"


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    """As `| head -1` does."""
    arguments = ["generate", "x", "--count", "500", "--concurrency", "5", "--emulator", "--width", "64", "--quiet"]
    with start(*arguments, cwd=tmp_path) as process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        process.stdout.close()
        assert process.stderr is not None
        first, *others = without_remarks(process.stderr.read()).splitlines()
        assert process.wait(PATIENCE) == 141
    assert (tmp_path / path).is_file()
    assert first == "Emulator: the pictures are placeholders, and nothing is charged."
    # A submit that was on its way is named: it may have been accepted.
    assert [line for line in others if not ON_ITS_WAY.search(line)] == []
    assert len(list((tmp_path / "out").iterdir())) < 500


def test_nobody_at_either_stream_is_no_traceback(tmp_path: Path) -> None:
    process = start("generate", "x", "--emulator", "--width", "64", cwd=tmp_path)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    assert process.wait(PATIENCE) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_the_results_still_names_what_was_paid_for() -> None:
    arguments = ["generate", "x", "--count", "3", *SMALL, "--no-download"]
    with (
        in_thread(Emulator(workers=1, profile="fixed:0.5")) as emulated,
        Path("/dev/full").open("w") as full,
        start(*arguments, emulated=emulated, stdout=full) as process,
    ):
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "Results cannot be written" in err
    assert "flux-klein result " in err


def batch_of(count: int, folder: Path) -> list[str]:
    """The command for a batch of so many small pictures."""
    rows = [json.dumps({"prompt": f"picture {number}", "width": 64, "height": 64}) for number in range(count)]
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    return ["batch", "prompts.jsonl", "--concurrency", "8", "--json"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_batch_waits_for_what_runs_and_the_next_run_does_the_rest(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = batch_of(30, tmp_path)
    with in_thread(Emulator(workers=2, profile="fixed:0.05")) as emulated:
        with start(*command, emulated=emulated, cwd=tmp_path) as process:
            once(emulated, lambda: emulated.calls["result"] > 4, lambda: process.send_signal(number))
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, err
        records = [json.loads(line) for line in out.splitlines()]
        cancelled = [record for record in records if record["state"] == "cancelled"]
        for error in (record["error"] for record in cancelled):
            assert (error["charged"] == "no") == (ON_ITS_WAY.search(error["message"]) is None)
        finished = [record for record in records if record["error"] is None]
        assert 4 < len(finished) < 30
        # What was on its way when the signal came says so: it may have been accepted, and the next run resumes it.
        on_its_way = [record for record in records if record["error"] and record["error"]["charged"] == "unknown"]
        assert len(emulated.completions) <= len(finished) + len(on_its_way), (
            "a running generation was neither waited for nor reported"
        )
        assert "Run the same command again to resume it." in err
        assert "Report: out/index.html" in err
        assert (tmp_path / "out" / "index.html").is_file()
        with start(*command, emulated=emulated, cwd=tmp_path) as process:
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        done = {record["input"]["prompt"]: record for record in map(json.loads, out.splitlines())}
        assert len(done) == 30
        assert all((tmp_path / record["files"][0]["path"]).is_file() for record in done.values())
        assert len(emulated.completions) == 30
        assert emulated.spent_usd == pytest.approx(0.30)


def test_a_batch_that_is_left_at_once_loses_nothing_but_what_it_calls_uncertain(tmp_path: Path) -> None:
    command = batch_of(20, tmp_path)
    with in_thread(Emulator(workers=2, profile="fixed:0.05")) as emulated:
        emulated.script("cancel", *[Hang()] * 40)
        with start(*command, emulated=emulated, cwd=tmp_path) as process:
            once(emulated, lambda: emulated.calls["result"] > 2, lambda: process.send_signal(signal.SIGINT))
            once(emulated, lambda: emulated.calls["cancel"] > 0, lambda: process.send_signal(signal.SIGINT))
            process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        with start(*command, emulated=emulated, cwd=tmp_path) as process:
            out, err = process.communicate(timeout=PATIENCE)
        records = [json.loads(line) for line in out.splitlines()]
        uncertain = [record for record in records if record["error"]]
        assert {record["error"]["type"] for record in uncertain} <= {"SubmissionUncertainError"}, err
        assert len(records) == 20
        assert 20 - len(uncertain) <= emulated.accepted <= 20
