"""`flux-klein report`: a page from disk, of a batch whose prompts and whose service may be hostile."""

import html
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flux_klein_async.cli.page import write_report
from flux_klein_async.emulator import Emulator, error_reply
from flux_klein_async.errors import JournalError
from tests.batch.test_report import failed, record, write

from .helpers import Command

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\" \u2028 {{ 7 * 7 }} \ud800"


def facts(page: Path) -> dict[str, Any]:
    """What the page tells its script."""
    [found] = re.findall(r'<script type="application/json" id="facts">(.*)</script>', page.read_text("utf-8"))
    return dict(json.loads(found))


def rows(page: Path) -> list[dict[str, Any]]:
    """The rows in the scripts beside a page, as a browser reads them."""
    found = []
    for number, name in enumerate(facts(page)["chunks"]):
        text = (page.parent / "index_files" / name).read_text("ascii")
        assert text.startswith(f"fluxKleinRows({number}, [\n")
        found += json.loads(text.removeprefix(f"fluxKleinRows({number}, ").removesuffix(");\n"))
    return found


def beside(folder: Path) -> set[str]:
    return {path.name for path in (folder / "index_files").rglob("*") if path.is_file()}


def test_a_report_shows_every_item_and_hostile_text_stays_text(flux_klein: Command) -> None:
    folder = Path("out")
    folder.mkdir()
    Image.new("RGB", (90, 60)).save(folder / "a.png")
    write(
        folder,
        record(0, input={"prompt": HOSTILE}, files=[{"path": "a.png"}, {"path": "../prompts.txt"}]),
        failed("GenerationFailedError", 1, message=HOSTILE),
        "{torn",
    )
    ran = flux_klein("report", "out", "--contact-sheet")
    assert (ran.code, ran.out) == (0, "out/index.html\nout/contact-sheet.png\n")
    page = (folder / "index.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "<img" not in page
    assert HOSTILE.replace("\ud800", "?") in html.unescape(page)
    assert "Line 3 could not be read." in page
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) == {
        "data:,",
        "#items",
        *(f"index_files/{name}" for name in beside(folder) if name.startswith("report-")),
    }
    done, ended_badly = rows(folder / "index.html")
    assert done["prompt"] == HOSTILE
    picture, outside = done["files"]
    assert (picture["href"], picture["pixels"]) == ("./a.png", [90, 60])
    assert picture["preview"] in beside(folder)
    assert picture.keys().isdisjoint({"path", "key"})
    assert (outside["href"], outside["name"]) == (None, "prompts.txt")
    assert ended_badly["error"]["message"] == HOSTILE
    assert str(Path.cwd()) not in json.dumps([done, ended_badly]), "a page can be sent to others"
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.format == "PNG"


@pytest.mark.parametrize(
    ("broken", "stopped", "noted"),
    [
        (0, False, []),
        (0, True, ["3 of 3 pictures have no thumbnail: `flux-klein report 'my out'` makes 3"]),
        (1, False, ["1 of 3 pictures have no thumbnail: 1 cannot have one (No preview can be made: ...)"]),
    ],
)
def test_a_report_says_how_many_thumbnails_are_missing(
    flux_klein: Command, broken: int, stopped: bool, noted: list[str]
) -> None:
    folder, stop, notes = Path("my out"), threading.Event(), list[str]()
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (90, 60), (number, 0, 0)).save(folder / f"{number}.png")
    for number in range(broken):
        (folder / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    write(folder, *(record(number, files=[{"path": f"{number}.png"}]) for number in range(3)))
    if stopped:
        stop.set()
    write_report(folder, stop=stop, note=notes.append)
    assert [re.sub(r"made: \w+", "made: ...", note) for note in notes] == noted
    if not stopped:
        assert flux_klein("report", str(folder)).err.splitlines() == notes


@pytest.mark.parametrize("resumed", [False, True])
def test_the_page_of_a_batch_says_how_many_rows_were_not_reached(
    flux_klein: Command, served: Emulator, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    """Rows that were not submitted: also after a second run whose money ended earlier than that of the first."""
    monkeypatch.setattr("flux_klein_async.cli.batch.CHECKED_FIRST", 5)
    lines = [json.dumps({"prompt": f"picture {number}", "width": 64, "height": 64}) for number in range(9)] + ["{"]
    Path("prompts.jsonl").write_text("\n".join(lines))
    batch = ("batch", "prompts.jsonl", "--concurrency", "1", "--max-spend", "0.04")
    if resumed:
        flux_klein(*batch)
        assert "and 4 rows of the input not reached" in Path("out/index.html").read_text()
        Path("prompts.jsonl").write_text("\n".join([lines[0], lines[8], *lines[1:8], lines[9]]))
    flux_klein(*batch)
    page = Path("out/index.html").read_text()
    assert "<p>6 items, and 4 rows of the input not reached" in page
    assert re.search(r"<dt>Not submitted</dt>\s*<dd>5</dd>", page)  # as the terminal counts them
    assert "the budget allows no more: see below" in page
    flux_klein("report", "out")
    assert "items; rows that no run reached are not among them" in Path("out/index.html").read_text()
    flux_klein("batch", "prompts.jsonl")
    assert "reached" not in Path("out/index.html").read_text()


def test_a_page_without_the_number_of_rows_that_were_not_reached_says_that_there_may_be_some(
    flux_klein: Command, served: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows came through a pipe, or the file cannot be read a second time."""
    monkeypatch.setattr("flux_klein_async.cli.batch.CHECKED_FIRST", 3)
    many = "".join(f"picture {number}\n" for number in range(9)).encode()
    batch = ("--width", "64", "--height", "64", "--concurrency", "1")
    flux_klein("batch", "-", "--max-spend", "0.04", *batch, stdin=many)
    assert "rows that no run reached are not among them" in Path("out/index.html").read_text()
    Path("prompts.txt").write_bytes(many)
    monkeypatch.setattr("flux_klein_async.cli.batch.unreached", no_room)
    flux_klein("batch", "prompts.txt", "--max-spend", "0.06", *batch)
    assert "rows that no run reached are not among them" in Path("out/index.html").read_text()


def no_room(*_: object) -> int:
    raise JournalError("There is no room for temporary files")


def test_rows_are_in_scripts_of_a_thousand(flux_klein: Command) -> None:
    write(Path(), *(record(number) if number % 2 else failed("DownloadError", number) for number in range(2001)))
    assert flux_klein("report", ".").code == 0
    page = Path("index.html")
    assert (len(facts(page)["chunks"]), facts(page)["ends"]) == (3, "10" * 1000 + "1")
    assert [row["index"] for row in rows(page)] == list(range(2001))


def test_a_report_again_replaces_the_page_and_keeps_what_a_reader_may_have_open(flux_klein: Command) -> None:
    write(Path(), record(0))
    assert flux_klein("report", ".").code == 0
    first = beside(Path())
    assert flux_klein("report", ".").code == 0
    assert beside(Path()) == first, "the same content has the same name"
    write(Path(), record(0), record(1))
    flux_klein("report", ".")
    second = beside(Path())
    assert first < second
    for name in first:
        os.utime(Path("index_files", name), (0, 0))
    flux_klein("report", ".")
    assert second - beside(Path()) == {name for name in first if name.startswith("rows-")}


def test_a_report_that_cannot_be_written_leaves_what_is_there(flux_klein: Command) -> None:
    ran = flux_klein("report", ".")
    assert (ran.code, ran.out) == (65, "")
    assert "has no manifest.jsonl; name the --output-dir of a `flux-klein batch`" in ran.err
    write(Path(), record(0))
    Path("index.html").write_text("<h1>My own page</h1>")
    ran = flux_klein("report", ".")
    assert (ran.code, ran.out) == (65, "")
    assert "is no report; move it" in ran.err
    assert Path("index.html").read_text() == "<h1>My own page</h1>"
    Path("index.html").unlink()
    Path("index_files").write_text("in the way")
    ran = flux_klein("report", ".")
    assert (ran.code, Path("index.html").exists()) == (65, False)
    assert "The report cannot be written to '.': Not a directory" in ran.err


def test_a_batch_writes_a_report_if_a_picture_was_saved_or_it_is_asked_to(
    served: Emulator, flux_klein: Command
) -> None:
    cases = [
        ("", False, True),
        ("--no-report", False, False),
        ("--no-download", False, False),
        ("--no-download --report", False, True),
        ("", True, False),
        ("--report", True, True),
    ]
    Path("prompts.jsonl").write_text('{"prompt": "a cat", "width": 64, "height": 64}')
    for number, (options, fails, made) in enumerate(cases):
        if fails:
            served.script("submit", error_reply(422, 422001))
        ran = flux_klein("batch", "prompts.jsonl", "--output-dir", str(number), *options.split())
        page = Path(str(number), "index.html")
        assert ran.code == (65 if fails else 0), options
        assert (f"Report: {page}" in ran.err, page.exists()) == (made, made), options
        if made:
            assert [(row["prompt"], row["state"]) for row in rows(page)] == [("a cat", "failed" if fails else "done")]


def test_a_batch_does_not_fail_with_its_report(served: Emulator, flux_klein: Command) -> None:
    Path("prompts.txt").write_text("a cat\n")
    Path("out").mkdir()
    Path("out/index.html").write_text("<h1>My own page</h1>")
    ran = flux_klein("batch", "prompts.txt", "--quiet")
    assert ran.code == 0
    assert ran.err.startswith("No report: 'out/index.html' is no report; move it")
