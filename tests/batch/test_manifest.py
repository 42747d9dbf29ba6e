"""The manifest: one line for each end of an item, in the schema of `--json`."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flux_klein_async.batch.manifest import Manifest, json_line, read_manifest, record, unreached
from flux_klein_async.batch.rows import Row
from flux_klein_async.errors import (
    DownloadError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InvalidInputError,
    ItemClaimedError,
    JournalError,
    NotFoundError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.models import GenerationOutput, GenerationResult, Outcome, RequestState, SavedFile, Timings


@pytest.mark.parametrize("text", ["\x00\x1b\x7f\x85\x9b", "\u2028\u2029\u202e", "🐆 שלום", "\ud800", 'quote " \\ \n'])
def test_a_line_is_printable_ascii_and_reads_back(text: str) -> None:
    line = json_line({"input": text})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == {"input": text}


def test_what_json_has_no_number_for_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"cost_usd": float("nan")})


KEYS = ["index", "id", "input", "request_id", "state", "urls", "files", "cost_usd", "timings", "error"]


def result(request_id: str = "abc") -> GenerationResult:
    return GenerationResult(
        request_id=request_id,
        state=RequestState.COMPLETED,
        output=GenerationOutput(image="https://files.runcomfy.net/a.png"),
        cost_usd=0.01,
        timings=Timings(submit=0.1, polls=2),
    )


def row(index: int, item_id: str | None, prompt: str | None) -> Row:
    return Row(index + 1, {"prompt": prompt or f"p{index}", "width": 64}, item_id, index)


def done(
    index: int,
    *files: SavedFile,
    item_id: str | None = None,
    request_id: str | None = None,
    prompt: str | None = None,
) -> Outcome[Row]:
    found = result(request_id or f"abc{index}{item_id or ''}")
    return Outcome(index=index, item=row(index, item_id, prompt), result=found, files=files)


def failed(
    index: int, error: FluxKleinError | None = None, item_id: str | None = None, prompt: str | None = None
) -> Outcome[Row]:
    error = error or GenerationFailedError(request_id="abc", detail="out of memory")
    return Outcome(index=index, item=row(index, item_id, prompt), error=error)


def saved(path: Path) -> SavedFile:
    return SavedFile(path=path, sha256="0" * 64, size=3)


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def written(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- what a line says


def test_a_finished_item_has_its_input_its_result_and_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with Manifest(folder / "manifest.jsonl") as manifest, manifest:  # closed twice
        files = (saved(folder / "a.png"), saved(tmp_path / "b.png"))
        assert manifest.append(done(6, *files, item_id="seven", request_id="abc"))
    (line,) = written(folder / "manifest.jsonl")
    assert list(line) == KEYS
    assert line == {
        "index": 6,
        "id": "seven",
        "input": {"prompt": "p6", "width": 64},
        "request_id": "abc",
        "state": "completed",
        "urls": ["https://files.runcomfy.net/a.png"],
        "files": [
            {"path": "a.png", "sha256": "0" * 64, "size": 3},
            {"path": str(tmp_path / "b.png"), "sha256": "0" * 64, "size": 3},
        ],
        "cost_usd": 0.01,
        "timings": {"submit": 0.1, "queued": None, "running": None, "fetch": None, "lag_max": None, "polls": 2},
        "error": None,
    }


def test_paths_are_relative_to_the_manifest_wherever_the_process_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Manifest(Path("out/manifest.jsonl")) as manifest:
        manifest.append(done(0, saved(Path("out/a.png"))))
        monkeypatch.chdir("/")
        manifest.append(done(1, saved(tmp_path / "out" / "sub" / "a.png")))
    lines = written(tmp_path / "out" / "manifest.jsonl")
    assert [line["files"][0]["path"] for line in lines] == ["a.png", "sub/a.png"]


@pytest.mark.parametrize(
    ("error", "request_id", "state"),
    [
        (InvalidInputError("bad"), None, None),
        (SubmissionUncertainError("lost"), None, "unknown"),
        (GenerationFailedError(request_id="abc"), "abc", "failed"),
        (GenerationFailedError(request_id="abc", charged="yes", cost_usd=0.5), "abc", "completed"),  # without a file
        (GenerationCancelledError(request_id="abc"), "abc", "cancelled"),
        (WaitTimeoutError(request_id="abc", state="in_progress"), "abc", "in_progress"),
        (WaitTimeoutError(request_id="abc"), "abc", "unknown"),
        (DownloadError("disk full", request_id="abc", transient=True, cost_usd=0.5), "abc", "completed"),
        (NotFoundError(request_id="abc"), "abc", "unknown"),
    ],
)
def test_an_item_without_a_result_has_its_error(
    error: FluxKleinError, request_id: str | None, state: str | None
) -> None:
    line = json.loads(json_line(record(failed(0, error))))
    assert list(line) == KEYS
    assert (line["request_id"], line["state"]) == (request_id, state)
    facts = {"message": str(error), "charged": error.charged, "retryable": error.retryable}
    assert line["error"] == {"type": type(error).__name__, **facts}
    assert (line["urls"], line["files"], line["timings"]) == ([], [], None)
    assert line["cost_usd"] == getattr(error, "cost_usd", None)


def test_an_item_that_another_run_has_claimed_is_left_to_it(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m") as manifest:
        assert not manifest.append(failed(0, ItemClaimedError(request_id="abc")))
    assert written(tmp_path / "m") == []


# --- a run again


def test_each_end_that_differs_is_written_and_the_last_line_counts(tmp_path: Path) -> None:
    ends = [
        done(0),
        done(0, request_id="def"),
        done(0, saved(Path("/a.png"))),
        failed(0),
        replace(failed(0, SubmissionUncertainError(request_id="abc")), from_journal=True),
        failed(0, WaitTimeoutError(request_id="abc", state="in_queue")),
        failed(0, WaitTimeoutError(request_id="abc", state="in_progress")),
        failed(0, InvalidInputError("bad")),
        failed(0, JournalError("full")),
    ]
    path = tmp_path / "manifest.jsonl"
    for outcome in ends:
        with Manifest(path) as manifest:
            assert manifest.append(outcome)
            assert not manifest.append(outcome)
        with Manifest(path) as manifest:
            assert not manifest.append(outcome), "a later run"
    with Manifest(path) as manifest:
        assert not manifest.append(failed(0, JournalError("still full")))
    assert len(written(path)) == len(ends)
    assert list(read_manifest(path)) == written(path)[-1:]


def test_each_uncertain_submit_has_its_line(tmp_path: Path) -> None:
    """Each may be charged; the journal's answer about one is not another."""
    submit = failed(0, SubmissionUncertainError())
    for outcome, is_written in ((submit, True), (replace(submit, from_journal=True), False), (submit, True)):
        with Manifest(tmp_path / "m") as manifest:
            assert manifest.append(outcome) == is_written
    assert len(written(tmp_path / "m")) == 2


def test_other_items_are_other_items(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    outcomes = [done(0), done(1), done(0, item_id="a"), done(0, item_id="A"), done(0, item_id="index 0")]
    with Manifest(path) as manifest:
        assert all(manifest.append(outcome) for outcome in outcomes)
    assert list(read_manifest(path)) == written(path)


def test_an_item_is_known_by_its_id_wherever_it_moves(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    with Manifest(path) as manifest:
        assert manifest.append(done(0, item_id="a", request_id="abc", prompt="x"))
        assert not manifest.append(done(5, item_id="a", request_id="abc", prompt="x"))
        assert manifest.append(failed(7, item_id="a", prompt="x"))
    (found,) = read_manifest(path)
    assert (found["index"], found["state"]) == (7, "failed")


BAD = InvalidInputError("Line 1: bad")
SAME = {"item_id": "a", "prompt": "x", "request_id": "r"}


@pytest.mark.parametrize(
    ("outcomes", "stand"),
    [
        # A bad line, of which not even the id could be read, and what stands there once it is corrected.
        ([failed(0, BAD), done(0, item_id="a")], [1]),
        ([done(1, **SAME), failed(0, BAD), done(0, **SAME)], [2]),  # the line before was deleted
        ([failed(0, BAD), done(0, prompt="good")], [1]),
        ([failed(0, BAD), failed(0, item_id="a"), done(0, item_id="a")], [2]),
        # Two files of prompts in one directory.
        ([done(0, request_id="r"), done(0, prompt="other")], [0, 1]),
        ([done(0, item_id="a"), done(0, item_id="a", prompt="other", request_id="r")], [0, 1]),
        ([done(0), failed(0, prompt="other")], [0, 1]),
        ([failed(0), failed(0, BAD, prompt="other")], [1]),
        # A line before it was added, or the picture was made again.
        ([done(0, request_id="r", prompt="x"), done(1, request_id="r", prompt="x")], [1]),
        ([done(0, request_id="r"), done(0, request_id="s")], [1]),
    ],
)
def test_a_picture_stays_and_a_failure_does_not_outlive_its_line(
    tmp_path: Path, outcomes: list[Outcome[Row]], stand: list[int]
) -> None:
    path = tmp_path / "manifest.jsonl"
    with Manifest(path) as manifest:
        assert all(manifest.append(outcome) for outcome in outcomes)
    with Manifest(path) as manifest:
        assert not manifest.append(outcomes[-1])
    lines = written(path)
    assert list(read_manifest(path)) == [lines[number] for number in stand]


# --- torn and foreign lines

FOREIGN = [
    *(b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000, b"\x00", b'{"index": 0}', b"1" * 5000),
    b'{"index": true, "id": null, "input": 1, "request_id": 1, "state": 1, "files": 1, "error": 1}',
    b"x" * (5 << 20),  # longer than any line of a manifest
    b'{"index": 0, "id": 1, "input": 1, "request_id": 1, "state": 1, "files": 1, "error": 1}',
]


def test_rows_without_a_line_are_counted(tmp_path: Path) -> None:
    """Wherever in the file they stand; an equal row is another item, and so is another text under the same id."""
    with Manifest(tmp_path / "manifest.jsonl") as manifest:
        for outcome in (done(0), done(5, item_id="cat"), done(1, prompt="p0"), done(0)):
            manifest.append(outcome)
    rows = [row(3, None, "p0"), row(4, None, "p0"), row(5, None, "p0"), row(0, "cat", "p5"), row(0, "cat", "p6")]
    assert unreached(tmp_path / "manifest.jsonl", rows) == 2


@pytest.mark.parametrize(("before", "after", "state"), [(failed, done, "failed"), (done, failed, "completed")])
def test_what_is_appended_while_a_manifest_is_read_is_left_out(
    tmp_path: Path, before: Callable[[int], Outcome[Row]], after: Callable[[int], Outcome[Row]], state: str
) -> None:
    path = tmp_path / "manifest.jsonl"
    with Manifest(path) as manifest:
        manifest.append(done(0))
        manifest.append(before(1))
        records = read_manifest(tmp_path)  # the directory: that is what a user knows by its name
        first = next(records)
        manifest.append(after(1))
        manifest.append(done(2))
        assert [(known["index"], known["state"]) for known in (first, *records)] == [(0, "completed"), (1, state)]


def test_a_torn_line_is_closed_before_the_next_and_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    with Manifest(path) as manifest:
        manifest.append(done(0))
        manifest.append(done(1))
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[1])):
        path.write_bytes(whole[:-cut])
        with Manifest(path) as manifest:
            manifest.append(done(1))
            assert manifest.append(done(2))
        assert [line["index"] for line in read_manifest(path)] == [0, 1, 2], cut


def test_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    for foreign in FOREIGN:
        path.write_bytes(foreign + b"\n")
        with Manifest(path) as manifest:
            assert manifest.append(done(0))
        with path.open("ab") as file:
            file.write(foreign)
        with Manifest(path) as manifest:
            assert not manifest.append(done(0))
            assert manifest.append(done(1))
        assert [line["index"] for line in read_manifest(path)] == [0, 1], foreign[:80]


def test_an_id_that_is_no_text_is_read_all_the_same(tmp_path: Path) -> None:
    line = {"index": 0, "id": "\ud800", "input": {}, "request_id": None, "state": None, "files": [], "error": None}
    (tmp_path / "m").write_text(json.dumps(line) + "\n")
    assert list(read_manifest(tmp_path / "m")) == [line]


def test_the_longest_prompt_is_a_line_that_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    outcome = Outcome(index=0, item=Row(1, {"prompt": "\u2028" * 128 * 1024}), result=result())
    with Manifest(path) as manifest:
        manifest.append(outcome)
    with Manifest(path) as manifest:
        assert not manifest.append(outcome)


# --- several processes

WRITER = """
import sys
from flux_klein_async.batch.manifest import Manifest
from flux_klein_async.batch.rows import Row
from flux_klein_async.errors import GenerationCancelledError
from flux_klein_async.models import Outcome
path, first = sys.argv[1], int(sys.argv[2])
with Manifest(path) as manifest:
    for index in range(first, first + 200):
        row = Row(index + 1, {"prompt": str(index) * 5000}, number=index)
        error = GenerationCancelledError(request_id=f"r-{index}")
        manifest.append(Outcome(index=index, item=row, error=error))
"""


@pytest.mark.slow
def test_several_processes_append_to_one_manifest(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, str(first)]) for first in (0, 200, 400)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert sorted(line["index"] for line in read_manifest(path)) == list(range(600))
    assert len([line for line in path.read_bytes().splitlines() if line]) == 600


# --- obstacles


def link(path: Path) -> None:
    (path.parent / "elsewhere").touch()
    path.symlink_to(path.parent / "elsewhere")


def no_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


@pytest.mark.parametrize(
    ("obstacle", "advice"),
    [
        (link, "a link has its name, and links are not followed; move it, or choose another directory"),
        (Path.mkdir, "a directory has its name; move it, or choose another directory"),
        (os.mkfifo, "it is not a plain file; move it, or choose another directory"),
        (no_folder, "a file has the name of its directory; choose another directory"),
    ],
)
def test_an_obstacle_is_named_with_what_to_do(tmp_path: Path, obstacle, advice: str) -> None:
    path = tmp_path / "out" / "manifest.jsonl"
    path.parent.mkdir()
    obstacle(path)
    with pytest.raises(JournalError) as caught:
        Manifest(path)
    assert f"The manifest {str(path)!r} cannot be used: {advice}" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        *[(code, "is not writable; choose another directory") for code in (errno.EROFS, errno.EACCES, errno.EPERM)],
        *[(code, "is full; make room and run the batch again") for code in (errno.ENOSPC, errno.EDQUOT)],
        (errno.ENOENT, "it does not exist"),
        (errno.EIO, "used: choose another directory: OSError: "),
    ],
)
def test_an_error_of_the_system_is_reported_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)  # root may do everything, and has no disk to fill
    with pytest.raises(JournalError, match=advice) as caught:
        Manifest(tmp_path / "manifest.jsonl")
    assert caught.value.charged == "no"


def test_an_impossible_name_is_refused(tmp_path: Path) -> None:
    for name in ("a\x00b", "x" * 300):
        with pytest.raises(JournalError, match="choose another directory"):
            Manifest(tmp_path / name)


def test_reading_follows_no_link_and_makes_no_file(tmp_path: Path) -> None:
    link(tmp_path / "link")
    for name, advice in (("link", "links are not followed"), ("none", "it does not exist")):
        with pytest.raises(JournalError, match=advice):
            list(read_manifest(tmp_path / name))


def test_a_full_disk_is_reported_and_the_next_run_writes_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Manifest(path) as manifest:
            manifest.append(done(0))
            room = path.stat().st_size + 100
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            with pytest.raises(JournalError, match=r"the disk or the quota is full; make room and run the batch again"):
                manifest.append(done(1))  # in part
            with pytest.raises(JournalError, match="ulimit -f"):
                manifest.append(done(1))  # not at all
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert path.stat().st_size == room
            assert manifest.append(done(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [line["index"] for line in read_manifest(path)] == [0, 1]


def test_a_manifest_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    count = descriptors()
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "f")
    for name in ("d", "f"):
        with pytest.raises(JournalError):
            Manifest(tmp_path / name)
    assert descriptors() == count
