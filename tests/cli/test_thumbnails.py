"""Thumbnails are made once, never over the bound of processes, and a broken picture costs its own only."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from flux_klein_async.cli.thumbnails import Thumbnail, make_thumbnails
from tests.served import PATIENCE


def pictures(folder: Path, count: int) -> dict[str, Path]:
    """So many pictures by their keys."""
    found = {}
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", (600, 300), (number, 0, 0)).save(path)
        found[f"{number:024x}"] = path
    return found


def test_a_thumbnail_is_made_once_and_a_broken_picture_says_why(tmp_path: Path) -> None:
    given, made = pictures(tmp_path, 2), []
    (tmp_path / "broken.png").write_bytes(b"broken")
    given["f" * 24] = tmp_path / "broken.png"
    folder, stop = tmp_path / "small", threading.Event()
    found = make_thumbnails(given, folder, stop=stop, on_progress=lambda *counts: made.append(counts))
    first = Thumbnail(f"{0:024x}.600x300.webp", (600, 300))
    assert found[f"{0:024x}"] == first
    assert found["f" * 24].note == "No preview can be made: UnidentifiedImageError."
    with Image.open(folder / str(first.name)) as small:
        assert (small.format, small.size) == ("WEBP", (448, 224))
    assert made == [(1, 3), (2, 3), (3, 3)]
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert make_thumbnails(given, folder, stop=stop) == found
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times, "made again, or left over"


def test_a_stop_leaves_the_rest_out(tmp_path: Path) -> None:
    stop = threading.Event()
    found = make_thumbnails(pictures(tmp_path, 3), tmp_path / "small", stop=stop, on_progress=lambda *_: stop.set())
    assert list(found) == [f"{0:024x}"]


@pytest.mark.slow
def test_many_are_made_by_two_processes_and_a_stop_ends_them(tmp_path: Path) -> None:
    given, stop = pictures(tmp_path, 60), threading.Event()
    found = make_thumbnails(given, tmp_path / "small", stop=stop, on_progress=lambda *_: stop.set())
    assert list(found) == [f"{0:024x}"]
    found = make_thumbnails(given, tmp_path / "small", stop=threading.Event())
    assert found.keys() == given.keys()
    assert all(made.name is not None for made in found.values())
    assert len(list((tmp_path / "small").iterdir())) == 60


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [signal.SIGINT, signal.SIGKILL])
def test_the_processes_end_with_the_command(tmp_path: Path, stopped: signal.Signals) -> None:
    lines = []
    for index, path in enumerate(pictures(tmp_path, 150).values()):
        facts = {
            "input": {"prompt": "a"},
            "request_id": f"r{index}",
            "state": "completed",
            "files": [{"path": path.name}],
        }
        lines.append(json.dumps({"index": index, "id": None, "error": None, **facts}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "flux_klein_async", "report", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        small = tmp_path / "index_files" / "thumbnails"
        while not (small.is_dir() and any(small.iterdir())):
            assert process.poll() is None, "it ended before its first thumbnail"
            time.sleep(0.01)
        if stopped == signal.SIGINT:
            os.killpg(process.pid, stopped)  # as a terminal does
        else:
            process.kill()
        out, err = process.communicate(timeout=PATIENCE)
    if stopped == signal.SIGINT:
        assert (process.returncode, out) == (130, f"{tmp_path}/index.html\n".encode())
        noted = rf"(\d+) of 150 pictures have no thumbnail: `flux-klein report {tmp_path}` makes \1\n"
        assert re.fullmatch(noted, err.decode())
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:  # until nothing of its session is left
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a process outlived the command")
