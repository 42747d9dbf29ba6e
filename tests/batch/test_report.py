"""What a report says of a manifest that nobody vouches for."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_klein_async import errors
from flux_klein_async.batch.manifest import json_line
from flux_klein_async.batch.report import STATES, Report, advice, percentile, rate, row
from flux_klein_async.errors import OF_EARLIER_RUN, FluxKleinError, InvalidInputError

TIMINGS = {"submit": 0.1, "queued": 0.2, "running": 0.5, "fetch": 0.05, "lag_max": 0.03, "polls": 3}


def record(index: int = 0, **facts: Any) -> dict[str, Any]:
    """A line of a manifest, of an item that is done."""
    fields = {"prompt": "a cat", "width": 64, "height": 96}
    known = {"index": index, "id": None, "input": fields, "request_id": f"r-{index + 1}"}
    ended = {"state": "completed", "urls": [], "files": [], "cost_usd": 0.01, "timings": TIMINGS, "error": None}
    return {**known, **ended, **facts}


def failed(kind: str, index: int = 0, charged: str = "no", message: str = "why") -> dict[str, Any]:
    error = {"type": kind, "message": message, "charged": charged, "retryable": False}
    return record(index, error=error, cost_usd=None, timings=None)


def write(folder: Path, *records: dict[str, Any] | str) -> None:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
    (folder / "manifest.jsonl").write_text("".join(f"{line}\n" for line in lines))


def file(folder: Path, path: object) -> dict[str, Any]:
    """What the page knows of a file that a manifest names so."""
    [found] = row(record(files=[{"path": path}]), os.path.realpath(folder))["files"]
    return dict(found)


def test_a_row_has_what_a_card_shows(tmp_path: Path) -> None:
    (tmp_path / "a cat?.png").write_bytes(b"1234")
    found = row(record(files=[{"path": "a cat?.png"}]), os.path.realpath(tmp_path))
    [shown] = found.pop("files")
    assert (shown["href"], shown["kind"], shown["bytes"], shown["note"]) == ("./a%20cat%3F.png", "picture", 4, None)
    assert found.pop("timings") == TIMINGS
    assert found == {
        "index": 0,
        "id": None,
        "state": "done",
        "prompt": "a cat",
        "size": [64, 96],
        "cost": 0.01,
        "request": "r-1",
        "seconds": pytest.approx(0.85),
        "error": None,
    }


@pytest.mark.parametrize(
    ("facts", "name", "expected"),
    [
        ({"input": {"image_urls": ["x"]}}, "prompt", '{"image_urls": ["x"]}'),
        ({"input": ["x"]}, "prompt", '["x"]'),
        ({"input": {"prompt": "a" * 5000}}, "prompt", "a" * 3997 + "..."),
        ({"input": {"prompt": "a", "width": True, "height": 64}}, "size", None),
        ({"id": "i" * 601}, "id", "i" * 597 + "..."),
        ({"request_id": 7}, "request", None),
        ({"cost_usd": float("nan")}, "cost", None),
        ({"cost_usd": float("inf")}, "cost", None),
        ({"cost_usd": "0.01"}, "cost", None),
        ({"cost_usd": True}, "cost", None),
        ({"cost_usd": -1}, "cost", None),
        ({"timings": "fast"}, "timings", None),
        ({"timings": {"polls": 0}}, "timings", None),  # recalled from a journal
        ({"timings": {**TIMINGS, "submit": None}}, "seconds", None),  # resumed: not seen from the start
        ({"timings": {**TIMINGS, "running": None}}, "seconds", pytest.approx(0.35)),
        ({"files": "x"}, "files", []),
        ({"error": "odd"}, "state", "failed"),
        ({"error": {"type": 3}}, "state", "failed"),
        ({"error": {"type": "WaitTimeoutError"}}, "state", "failed"),
        ({"error": {"type": "SubmissionUncertainError"}}, "state", "uncertain"),
        ({"error": {"type": "GenerationCancelledError"}}, "state", "cancelled"),
        ({"error": {"type": "FanOutHaltedError"}}, "state", "not submitted"),
        ({"error": {"type": "BudgetExceededError"}}, "state", "not submitted"),
    ],
)
def test_what_a_record_does_not_say_is_null(facts: dict[str, Any], name: str, expected: object) -> None:
    assert row(record(**facts), "/nowhere")[name] == expected


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["id", "input", "request_id", "files", "cost_usd", "timings", "error"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["path", "prompt", "width", "submit", "type", "charged"]), inner, max_size=4
                )
            ),
            max_leaves=8,
        ),
    )
)
def test_any_record_is_a_row_of_plain_data(facts: dict[str, Any]) -> None:
    found = row(record(**facts), "/nowhere")
    assert json.loads(json_line(found)) == found
    assert found["state"] in STATES
    assert all(file["href"] is None for file in found["files"])


def test_only_media_files_below_the_directory_are_linked(tmp_path: Path) -> None:
    folder, outside = tmp_path / "out", tmp_path / "secret.png"
    (folder / "sub").mkdir(parents=True)
    outside.write_bytes(b"x")
    for name in ("sub/a.png", "javascript:alert(1).png", "page.html", "clip.mp4", "tone.wav", "é.png"):
        (folder / name).write_bytes(b"x")
    (folder / "link.png").symlink_to(outside)
    (folder / "page.png").symlink_to(folder / "page.html")
    (folder / "folder.png").mkdir()
    linked = {
        "sub/a.png": ("./sub/a.png", "picture"),
        str(folder / "sub" / "a.png"): ("./sub/a.png", "picture"),
        "sub/../sub/a.png": ("./sub/a.png", "picture"),
        "javascript:alert(1).png": ("./javascript%3Aalert%281%29.png", "picture"),
        "clip.mp4": ("./clip.mp4", "video"),
        "tone.wav": ("./tone.wav", "audio"),
        "é.png": ("./%C3%A9.png", "picture"),
    }
    for path, expected in linked.items():
        found = file(folder, path)
        assert (found["href"], found["kind"]) == expected
    refused = {
        "The file is outside the directory of this report.": (
            "../secret.png",
            str(outside),
            "link.png",
            "",
            3,
            ".",
            "/",
        ),
        "The file is missing. Run the same command again to download it.": ("gone.png", "a\0b.png", "\ud800.png"),
        "This is no plain file.": ("folder.png",),
        "Browsers do not show files of this type.": ("page.html", "page.png"),
    }
    for note, paths in refused.items():
        for path in paths:
            found = file(folder, path)
            assert (found["href"], found["key"], found["note"]) == (None, None, note), path


def test_a_key_stands_for_one_content_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    first = file(tmp_path, "a.png")["key"]
    assert file(tmp_path, "a.png")["key"] == first
    (tmp_path / "a.png").write_bytes(b"another")
    assert file(tmp_path, "a.png")["key"] != first


def test_a_report_counts_the_last_end_of_each_item_in_the_order_of_the_input(tmp_path: Path) -> None:
    for number, at in enumerate((1000.0, 1002.0, 1004.0, 5000.0)):
        (tmp_path / f"{number}.png").write_bytes(b"x")
        os.utime(tmp_path / f"{number}.png", (at, at))
    slow = {**TIMINGS, "running": 9.5}
    write(
        tmp_path,
        record(3, files=[{"path": "3.png"}], timings=slow, cost_usd=None),
        "{torn",
        record(0, files=[{"path": "0.png"}]),
        failed("GenerationFailedError", 1),
        "[]",
        record(1, files=[{"path": "1.png"}, {"path": "2.png"}]),
        failed("SubmissionUncertainError", 2, "unknown"),
        failed("GenerationFailedError", 4, "yes"),
        failed("GenerationFailedError", 5, "yes", "another reason"),
    )
    with Report(tmp_path) as found:
        rows = list(found.rows())
        assert [shown["index"] for shown in rows] == [0, 1, 2, 3, 4, 5]
        assert found.ends == "002011"
        assert [STATES[int(end)] for end in found.ends] == [shown["state"] for shown in rows]
        assert found.counts == {"done": 3, "uncertain": 1, "failed": 2}
        assert [path.name for path in found.pictures.values()] == ["0.png", "1.png", "2.png", "3.png"]
        assert found.costs == (0.02, 2, 1, 3)
        assert found.unreadable == [2, 5]
        assert (found.seconds(0.5), found.seconds(0.95)) == (pytest.approx(0.85), pytest.approx(9.85))
        assert found.rate == 0.5  # one file of each item; the pause before the last does not count
        [first, second] = found.failures
        assert (first.kind, first.state, first.count, first.message) == ("GenerationFailedError", "failed", 2, "why")
        assert (second.kind, second.state, second.count) == ("SubmissionUncertainError", "uncertain", 1)


def test_what_was_spent_counts_every_request_of_an_item_once(tmp_path: Path) -> None:
    earlier = failed("GenerationFailedError", 1, "yes") | {"request_id": "earlier", "cost_usd": 0.02}
    unsaved = failed("DownloadError", 2, "yes") | {"cost_usd": 0.04}
    write(
        tmp_path, record(0), record(0, files=[{"path": "a.png"}]), earlier, record(1), unsaved, record(3, request_id=[])
    )
    with Report(tmp_path) as found:
        assert (found.costs, found.replaced) == ((pytest.approx(0.09), 5, 0, 0), 1)


def test_what_may_have_been_charged_stays_when_a_later_request_replaces_it(tmp_path: Path) -> None:
    uncertain = failed("SubmissionUncertainError", 0, "unknown") | {"request_id": None}
    lost, free = failed("GenerationFailedError", 1, "unknown"), failed("GenerationFailedError", 2)
    late = failed("WaitTimeoutError", 3, "unknown")
    write(tmp_path, uncertain, uncertain, lost, free, late, record(0), record(1, request_id="s"), record(2), record(3))
    with Report(tmp_path) as found:
        assert found.costs == (pytest.approx(0.04), 4, 0, 3), "two of the first item, one of the second"
    write(tmp_path, late, record(3, cost_usd=None), record(4, cost_usd=0), record(4, cost_usd=None))
    with Report(tmp_path) as found:
        assert found.costs == (0.0, 1, 1, 0)


@pytest.mark.parametrize(
    ("lines", "most"),
    [
        (["own", "of an earlier run", "of an earlier run"], 1),  # of another run at the same time, or a later one
        (["of an earlier run", "of an earlier run"], 1),  # the one that submitted it was killed
        (["of an earlier run", "own"], 2),  # submitted again
        (["own", "of an earlier run", "own"], 2),
    ],
)
@pytest.mark.parametrize("item_id", [None, "the id"])
def test_what_several_runs_say_of_one_uncertain_submit_counts_once(
    tmp_path: Path, lines: list[str], most: int, item_id: str | None
) -> None:
    said = {"own": "The submit may or may not have been accepted", "of an earlier run": f"{OF_EARLIER_RUN}: why"}
    ends = [failed("SubmissionUncertainError", 0, "unknown", said[line]) for line in lines]
    other = failed("SubmissionUncertainError", 1, "unknown", said["of an earlier run"]) | {"request_id": None}
    write(tmp_path, *[end | {"request_id": None, "id": item_id} for end in ends], other)
    with Report(tmp_path) as found:
        assert found.costs.unsettled == most + 1


def test_equal_and_enormous_indexes_keep_their_rows(tmp_path: Path) -> None:
    write(tmp_path, record(10**30), record(0, id="a"), record(0, id="b", request_id="b"), record(-(10**30)))
    with Report(tmp_path) as found:
        assert [shown["id"] for shown in found.rows()] == [None, "a", "b", None]


def test_a_directory_without_a_manifest_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone", Path("a\0b")):
        with pytest.raises(InvalidInputError, match=r"has no manifest\.jsonl; name the --output-dir"):
            Report(folder)
    (tmp_path / "manifest.jsonl").mkdir()
    with pytest.raises(errors.JournalError, match="cannot be used"):
        Report(tmp_path)


def test_an_empty_manifest_is_an_empty_report(tmp_path: Path) -> None:
    write(tmp_path)
    with Report(tmp_path) as found:
        assert (found.ends, found.rate, found.seconds(0.5), found.failures) == ("", None, None, [])


def test_every_error_has_advice() -> None:
    general = advice("FluxKleinError")
    assert advice("os") == advice("Charged") == advice("nothing") == general
    kinds = {
        name
        for name in errors.__all__
        if isinstance(found := getattr(errors, name), type) and issubclass(found, FluxKleinError)
    }
    passing = {"APIConnectionError", "APIStatusError", "APITimeoutError", "FluxKleinError", "InvalidResponseError"}
    passing |= {"RateLimitError", "ResultNotReadyError", "ServerError"}
    assert {kind for kind in kinds if advice(kind) == general} == passing
    assert "--retry-failed" in advice("GenerationFailedError", "no")
    assert "charged" in advice("GenerationFailedError", "yes")
    may_be_charged = {
        charged: "charged" in advice("GenerationCancelledError", charged) for charged in ("no", "yes", "unknown")
    }
    assert may_be_charged == {"no": False, "yes": True, "unknown": True}
    assert "Nothing was made" in advice("GenerationCancelledError", "no")


def test_percentiles_and_rates() -> None:
    assert (percentile([], 0.5), percentile([3.0], 0.95)) == (None, 3.0)
    assert percentile([float(number) for number in range(1, 101)], 0.95) == 95.0
    assert percentile([1.0, 2.0], 0.5) == 1.0
    assert (rate([]), rate([1.0]), rate([1.0, 1.0]), rate([0.0, 1000.0])) == (None, None, None, None)
    assert rate([3.0, 1.0, 2.0, 500.0, 501.0]) == 1.0
