"""What becomes of items that fail or are stopped."""

import json
import os
import signal
from pathlib import Path

import pytest

from flux_klein_async.cli import items
from flux_klein_async.cli.board import Board
from flux_klein_async.cli.items import Plan, Production
from flux_klein_async.cli.render import Screen
from flux_klein_async.emulator import Answer, Emulator, Generation, Hang, InProcessEmulator, Pass, Reply, error_reply
from tests.conftest import Connect
from tests.served import once

from .helpers import Command

GONE = error_reply(404, 404001)
SMALL = ("--width", "64", "--height", "64")


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("endpoint", "answer", "code", "kind"),
    [
        ("submit", error_reply(401, 401001), 77, "AuthenticationError"),
        ("submit", error_reply(403, 403001), 77, "PermissionDeniedError"),
        ("submit", error_reply(400, 400002), 77, "InsufficientBalanceError"),
        ("submit", error_reply(422, 422001), 65, "InputRejectedError"),
        ("submit", GONE, 65, "NotFoundError"),
        ("submit", error_reply(429, retry_after=100), 75, "RateLimitError"),
        ("submit", error_reply(500, 500001), 1, "SubmissionUncertainError"),
        ("submit", Generation(ends="failed", error="out of memory"), 1, "GenerationFailedError"),
        ("submit", Generation(ends="cancelled"), 1, "GenerationCancelledError"),
        ("submit", Generation(after=60), 75, "WaitTimeoutError"),
        ("result", error_reply(403, 403001), 77, "PermissionDeniedError"),
        ("file", GONE, 1, "DownloadError"),
    ],
)
def test_an_item_that_fails_gives_its_code_and_its_record(
    served: Emulator, flux_klein: Command, endpoint: str, answer: Answer, code: int, kind: str
) -> None:
    served.script(endpoint, *[answer] * 5)
    ran = flux_klein("generate", "x", "--json", "--timeout", "0.5", *SMALL)
    [record] = ran.records
    assert (ran.code, record["error"]["type"]) == (code, kind)
    assert record["error"]["message"] in ran.err
    assert record["files"] == []


def test_other_items_go_on_and_the_worst_decides(served: Emulator, flux_klein: Command) -> None:
    served.script("submit", None, Generation(ends="failed", error="bad \x1b[31m luck"), error_reply(422, 422001))
    ran = flux_klein("generate", "x", "--count", "5", *SMALL)
    assert ran.code == 65
    assert len(ran.out.splitlines()) == 3
    assert "bad \\x1b[31m luck" in ran.err
    assert "3 of 5 done in out, 2 failed" in ran.err


def test_a_file_that_cannot_be_saved_leaves_its_request_to_be_taken_up(served: Emulator, flux_klein: Command) -> None:
    served.script("file", GONE)
    ran = flux_klein("generate", "x", *SMALL)
    [line] = [line for line in ran.err.splitlines() if "flux-klein result" in line]
    again = flux_klein(*line.split()[1:])
    assert again.code == 0
    assert Path(again.out.strip()).is_file()


def test_what_dooms_every_submit_is_said_once_and_recorded_for_all(served: Emulator, flux_klein: Command) -> None:
    served.script("submit", *[error_reply(400, 400002)] * 50)
    ran = flux_klein("generate", "x", "--count", "50", "--concurrency", "4", "--json")
    assert ran.code == 77
    assert sorted(record["index"] for record in ran.records) == list(range(50))
    assert {record["error"]["charged"] for record in ran.records} == {"no"}
    assert served.calls["submit"] <= 4
    assert ran.err.count("No balance is left") == 2, "once, and once with the number of the others"
    assert "49 more: No balance" in ran.err


def test_pictures_under_way_are_kept_when_submits_are_doomed(served: Emulator, flux_klein: Command) -> None:
    served.script("submit", None, Pass(delay=0.01), *[error_reply(401, 401001)] * 50)
    ran = flux_klein("generate", "x", "--count", "20", "--concurrency", "3", *SMALL)
    assert ran.code == 77
    assert len(ran.out.splitlines()) == 2
    assert "2 of 20 done in out, 18 failed" in ran.err


async def test_saving_overlaps_with_generating(
    klein_emulator: InProcessEmulator, connect: Connect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    klein_emulator.script("file", Pass(delay=10))
    prompt = {"prompt": "x", "width": 64, "height": 64}
    plan = Plan(inputs=[prompt] * 2, concurrency=1, directory=tmp_path, as_json=True, take_up=None)
    assert await Production(connect(), Board(2), Screen(), plan).run() == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["index"] for record in records] == [1, 0], "the first one's file was slow; nobody waited for it"


def test_stopped_it_saves_what_is_finished_and_names_what_is_not(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "_GRACE", 1.0)
    served.script("submit", None, None, Generation(after=60), Generation(after=60), Hang())
    served.script("file", Hang())
    cancelled = {"status": "cancelled", "outcome": "cancelled"}
    served.script("cancel", None, Reply(200, cancelled))
    monkeypatch.setattr("flux_klein_async.operations.submit.SEEN_THROUGH", 0.1)

    def all_are_where_they_should_be() -> bool:
        polled_at = {record.request_id for record in served.records if record.endpoint == "status"}
        return len(polled_at) == 4 and served.calls["submit"] == 5 and served.calls["file"] == 2

    once(served, all_are_where_they_should_be, press_ctrl_c)
    ran = flux_klein("generate", "x", "--count", "5", "--json", *SMALL)
    assert ran.code == 130
    states = sorted((record["state"], bool(record["files"])) for record in ran.records)
    assert states == [("cancelled", False), ("completed", False), ("completed", True), ("in_progress", False)]
    assert "Stopped: 1 of 5 done, 1 cancelled before they ran.\n" in ran.err
    assert "1 more may or may not have been accepted, and may be charged.\n" in ran.err
    [lost] = [record for record in ran.records if record["error"] and record["state"] == "completed"]
    assert f"Finished, but not saved; take up again with:\n  flux-klein result {lost['request_id']} " in ran.err
    [running] = [record["request_id"] for record in ran.records if record["state"] == "in_progress"]
    assert f"charged in any case; take up again with:\n  flux-klein result {running} --output-dir out" in ran.err


def test_stopped_with_the_emulator_there_is_nothing_to_take_up(
    flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    def note(_: Board, event: object) -> None:
        if not told:
            press_ctrl_c()
        told.append(event)

    monkeypatch.setattr(Board, "note", note)
    ran = flux_klein("generate", "x", "--count", "3", "--emulator")
    assert ran.code == 130
    assert ran.err.endswith("Stopped: 0 of 3 done, 0 cancelled before they ran.\n")


def test_a_defect_while_saving_is_not_swallowed(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise LookupError

    monkeypatch.setattr(items, "result_record", broken)
    ran = flux_klein("generate", "x", "--json", *SMALL)
    assert ran.code == 1
    assert "Unexpected LookupError" in ran.err
