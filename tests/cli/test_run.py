"""The driver of `generate` and `batch`: what it prints, writes and counts, and how it stops."""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from flux_klein_async import FluxKleinClient
from flux_klein_async.batch.manifest import Manifest, read_manifest
from flux_klein_async.batch.rows import Row
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen
from flux_klein_async.cli.run import Options, Run, Totals, check_writable
from flux_klein_async.cli.signals import Stop
from flux_klein_async.emulator import Emulator, Generation, Hang, Pass, Refuse, Reply, Reset, Rewrite, error_reply
from flux_klein_async.emulator.scripts import Answer
from flux_klein_async.errors import (
    FanOutHaltedError,
    GenerationCancelledError,
    GenerationFailedError,
    ItemClaimedError,
    NotFoundError,
    SubmissionUncertainError,
)
from flux_klein_async.events import Cancelled, Finished, Held, Polled, Retrying, StateChanged, Submitted
from flux_klein_async.journal.base import Claim
from flux_klein_async.journal.states import Action
from flux_klein_async.models import GenerationOutput, GenerationResult, Outcome, RequestState
from flux_klein_async.options import Limits
from tests.fakes import now

from .helpers import Command

SMALL = ("--width", "64", "--height", "64")
GONE = Reply(404, "")
OPTIONS: dict[str, Any] = dict.fromkeys(field.name for field in fields(Options))


# --- one item's end, through the command line


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


def test_a_generation_without_a_file_is_no_success(served: Emulator, flux_klein: Command) -> None:
    served.script("submit", Generation(output={}))
    ran = flux_klein("generate", "x", "--json", *SMALL)
    [record] = ran.records
    assert (ran.code, record["state"], record["files"]) == (1, "completed", [])
    assert (record["error"]["type"], record["error"]["charged"]) == ("GenerationFailedError", "yes")
    [line] = [line for line in ran.err.splitlines() if "flux-klein result" in line]
    assert record["request_id"] in line
    again = flux_klein(*line.split()[1:])
    assert (again.code, again.out) == (1, "")


def test_other_items_go_on_and_the_worst_decides(served: Emulator, flux_klein: Command) -> None:
    served.script("submit", None, Generation(ends="failed", error="bad \x1b[31m luck"), error_reply(422, 422001))
    ran = flux_klein("generate", "x", "--count", "5", *SMALL)
    assert ran.code == 65
    assert len(ran.out.splitlines()) == 3
    assert "bad \\x1b[31m luck" in ran.err
    assert "3 of 5 done in out, 2 failed (1 not charged); " in ran.err


def test_a_file_that_cannot_be_saved_says_how_to_resume_its_request(served: Emulator, flux_klein: Command) -> None:
    served.script("file", GONE)
    ran = flux_klein("generate", "x", *SMALL)
    [line] = [line for line in ran.err.splitlines() if "flux-klein result" in line]
    again = flux_klein(*line.split()[1:])
    assert again.code == 0
    assert Path(again.out.strip()).is_file()


def test_an_error_of_every_submit_is_printed_once(served: Emulator, flux_klein: Command) -> None:
    served.script("submit", None, Pass(delay=0.01), *[error_reply(400, 400002)] * 50)
    ran = flux_klein("generate", "x", "--count", "50", "--concurrency", "4", "--json", *SMALL)
    assert ran.code == 77
    assert {record["error"]["charged"] for record in ran.records if record["error"]} == {"no"}
    assert served.calls["submit"] <= 6
    assert "2 of 50 done in out, 48 not submitted" in ran.err, "pictures under way are kept"
    assert ran.err.count("No balance is left on the account") == 1
    assert "The rest was not submitted: No balance is left on the account" in ran.err
    ran = flux_klein("generate", "x", *SMALL)
    assert ran.err.splitlines()[1].startswith("Failed: No balance is left on the account")
    assert ran.err.splitlines()[2].startswith("0 of 1 done, 1 not submitted")


# --- a whole run, in virtual time


def rows(count: int) -> list[Row]:
    return [Row(n + 1, {"prompt": f"picture {n}", "width": 64, "height": 64}, number=n) for n in range(count)]


def bad(line: int) -> Row:
    return Row(line, {}, number=line - 1, problem="blank")


async def given(found: Iterable[Row]) -> AsyncIterator[Row]:
    for row in found:
        yield row


class Bench:
    """A run with its surroundings."""

    def __init__(self, client: FluxKleinClient, folder: Path, totals: Totals, *, as_json: bool = False) -> None:
        self.client = client
        self.manifest = Manifest(folder / "manifest.jsonl")
        self.stop = Stop(asyncio.current_task())  # type: ignore[arg-type]
        self.totals = totals
        self.as_json = as_json

    async def run(self, found: list[Row] | AsyncIterator[Row], **options: Any) -> ExitCode:
        asked = {"concurrency": options.pop("concurrency", 4), "base_url": "http://127.0.0.1:9", "model": "a/b"}
        run = Run(
            client=self.client,
            totals=self.totals,
            screen=options.pop("screen", Screen()),
            stop=self.stop,
            options=Options(**{**OPTIONS, **asked, "no_download": True, "as_json": self.as_json}),
            **{"manifest": self.manifest, **options},
        )
        with self.manifest:
            return await run.generate(given(found) if isinstance(found, list) else found)


@pytest.fixture
def bench(klein_emulator, connect, tmp_path) -> Callable[..., Bench]:
    def make(**options: Any) -> Bench:
        totals = Totals()
        ours = {name: options.pop(name, None) for name in ("timeout", "journal", "limits")}
        return Bench(connect(on_event=totals.note, **ours), tmp_path, totals, **options)

    return make


async def test_every_row_is_printed_and_json_lines_and_the_manifest_have_one_schema(bench, capsys, tmp_path):
    it = bench(as_json=True)
    assert await it.run([*rows(1), bad(2), rows(3)[2]]) == ExitCode.BAD_INPUT
    out, err = capsys.readouterr()
    printed = [json.loads(line) for line in out.splitlines()]
    assert printed == list(read_manifest(tmp_path / "manifest.jsonl"))
    assert {record["index"]: record["error"] is None for record in printed} == {0: True, 1: False, 2: True}
    assert err.splitlines()[0] == "Line 2: blank"
    assert "2 of 3 done, 1 bad; $0.02 spent" in err.splitlines()[-1]


class Slow(Manifest):
    """A manifest on a slow disk: a line takes until `release` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.begun, self.release, self.written = asyncio.Event(), threading.Event(), 0
        self._loop = asyncio.get_running_loop()

    def append(self, outcome: Outcome[Row]) -> bool:
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self.release.wait(30)
        self.written += super().append(outcome)
        return True


async def test_a_line_that_was_begun_is_written_to_its_end_however_slow_the_disk(bench, tmp_path):
    it = bench()
    with Slow(tmp_path / "slow.jsonl") as slow:
        running = asyncio.ensure_future(it.run(rows(2), manifest=slow))
        await slow.begun.wait()
        running.cancel()
        await asyncio.sleep(0)
        assert (running.done(), slow.written) == (False, 0)
        slow.release.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert slow.written == 1


@pytest.mark.parametrize(
    ("first", "prices", "told"),
    [
        (4, [], "up to $0.05 may have been charged for 5 requests of unknown cost"),
        (0, [], "up to $0.05 may have been charged for 5 requests of unknown cost"),
        (0, [Hang()] * 9, "an unknown amount may have been charged for 5 requests of unknown cost"),
        (0, [error_reply(404, 404001)], "an unknown amount may have been charged for 5 requests of unknown cost"),
    ],
    ids=["by the cost of the others", "by the catalogue", "without an answer", "without an entry"],
)
async def test_a_storm_of_uncertain_submits_is_halted_and_the_summary_says_what_may_have_been_spent(
    bench, klein_emulator, capsys, first, prices, told
):
    klein_emulator.script("submit", *[None] * first, *[Reset(accepted=True, delay=5.0)] * 300)
    klein_emulator.script("model", *prices)
    it = bench(limits=Limits(max_in_flight=1))
    assert await it.run(rows(300)) == ExitCode.OTHER
    assert klein_emulator.accepted == first + 5
    err = capsys.readouterr().err
    [summary] = [line for line in err.splitlines() if "done" in line]
    assert summary.startswith(f"{first} done, 5 uncertain; ${first / 100:.2f} spent, ")
    assert summary.endswith(f"; {told}")
    assert "The rest was not submitted: 5 submits in a row ended uncertain; nothing more is submitted, and up to" in err
    assert len([line for line in err.splitlines() if line.startswith("Line ")]) == 5


@pytest.mark.parametrize(
    ("endpoint", "answer", "charged"),
    [
        ("submit", Generation(output={}, cost=0.0125), False),
        ("submit", Generation(ends="failed"), True),
        ("submit", Generation(after=9.0), True),  # it runs on after the deadline
        ("result", Rewrite({"cost": None}), True),
        ("submit", Generation(ends="cancelled"), False),
        ("submit", error_reply(422), False),
    ],
    ids=["without a file", "failed", "left running", "without a cost", "cancelled", "refused"],
)
async def test_the_summary_says_what_may_have_been_charged_beyond_the_known_costs(
    bench, klein_emulator, capsys, endpoint, answer, charged
):
    klein_emulator.script(endpoint, *[answer] * 3)
    await bench(timeout=5.0).run(rows(3))
    [summary] = [line for line in capsys.readouterr().err.splitlines() if " done" in line]
    assert f"; ${'0.0375' if getattr(answer, 'cost', None) else '0.00'} spent" in summary
    assert summary.endswith("; up to $0.03 may have been charged for 3 requests of unknown cost") == charged
    assert ("may have been charged" in summary) == charged


async def test_one_uncertain_submit_is_told_as_one(bench, klein_emulator, capsys):
    klein_emulator.script("submit", Reset(accepted=True))
    assert await bench().run(rows(1)) == ExitCode.OTHER
    assert "; up to $0.01 may have been charged for 1 request of unknown cost\n" in capsys.readouterr().err


async def test_a_batch_names_twenty_failures_and_counts_the_others(bench, klein_emulator, capsys):
    klein_emulator.script("submit", *[error_reply(422, 422001, "no cats")] * 30)
    it = bench()
    assert await it.run(rows(30)) == ExitCode.BAD_INPUT
    err = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in err[:20]] == [f"Line {number}" for number in range(1, 21)]
    assert err[20] == f"10 more: see {it.manifest.path}"


@pytest.mark.parametrize(("answers", "tried"), [([], 5), ([Reply(422, "", {"Connection": "close"})], 30)])
async def test_a_service_that_was_never_reached_ends_the_run(bench, klein_emulator, capsys, answers, tried):
    klein_emulator.script("submit", *answers)
    klein_emulator.script("connect", *[Pass()] * len(answers), *[Refuse()] * 500)
    it = bench()
    assert await it.run(rows(30), concurrency=1) == ExitCode.UNAVAILABLE
    err = capsys.readouterr().err
    said = (
        "The service cannot be reached at http://127.0.0.1:9: check the network, --base-url or the proxy; nothing was"
    )
    assert err.count(said) == (tried == 5)
    assert len(list(read_manifest(it.manifest.path))) == tried
    assert ("4 more: see " in err, "0 done, 5 failed (not charged)" in err) == (tried == 5, tried == 5)
    assert ("29 lines failed for now, at no charge: run the same command again." in err) == (tried == 30)


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (error_reply(400, 400002), "The rest was not submitted: No balance"),
        (error_reply(401), "Nothing was submitted: "),
    ],
)
async def test_what_is_on_its_way_may_be_submitted_yet(bench, klein_emulator, capsys, refusal, told):
    """A balance may have been enough for it; a token is as wrong for it."""
    klein_emulator.script("submit", Pass(delay=1.0), *[refusal] * 9)
    await bench().run(rows(9))
    assert told in capsys.readouterr().err


async def test_in_an_outage_a_row_is_tried_each_five_seconds(bench, klein_emulator):
    klein_emulator.script("submit", None, Reply(422, "", {"Connection": "close"}))
    klein_emulator.script("connect", Pass(), *[Refuse()] * 60)
    it, begun = bench(), now()
    await it.run(rows(30), concurrency=1)
    assert it.totals.ends == {"done": 17, "failed": 13}
    assert 12 * 5.0 < now() - begun < 12 * 8.0


async def test_rows_go_on_as_soon_as_an_outage_is_over(bench):
    it, begun = bench(), now()
    it.totals.generations, it.totals.failing_since = 1, begun - 3.0
    asyncio.get_running_loop().call_later(1.0, setattr, it.totals, "failing_since", None)
    await it.run(rows(1))
    assert 1.0 < now() - begun < 2.5


async def test_a_service_that_refuses_every_submit_ends_the_run(bench, klein_emulator, capsys):
    klein_emulator.script("submit", *[error_reply(503, retry_after=1)] * 500)
    assert await bench(timeout=10.0).run(rows(30), concurrency=1) == ExitCode.UNAVAILABLE
    err = capsys.readouterr().err
    assert "The service refuses every submit (HTTP 503); nothing was submitted" in err
    assert "0 done, 5 failed (not charged)" in err


async def test_where_nothing_or_all_was_submitted_no_rest_is_told_of(bench, klein_emulator, capsys):
    klein_emulator.script("submit", *[Reset(accepted=True)] * 5, error_reply(401, 401001))
    assert await bench().run(rows(5)) == ExitCode.OTHER
    assert "not submitted" not in capsys.readouterr().err
    assert await bench().run(rows(5), concurrency=1) == ExitCode.NO_ACCESS
    assert "Nothing was submitted: The token is missing" in capsys.readouterr().err


async def test_an_unknown_model_ends_the_run(bench, klein_emulator, capsys):
    klein_emulator.script("submit", *[error_reply(404)] * 30)
    assert await bench().run(rows(30), manifest=None, concurrency=1) == ExitCode.BAD_INPUT
    assert klein_emulator.calls["submit"] == 5
    assert "The other rows name the same model; nothing was submitted" in capsys.readouterr().err


async def test_without_a_manifest_equal_failures_are_printed_once(bench, klein_emulator, capsys):
    klein_emulator.script("submit", *[error_reply(422, 422001, "no cats")] * 30)
    await bench().run(rows(30), manifest=None)
    sentence = "The service refused the input [HTTP 422, code 422001]: no cats"
    assert capsys.readouterr().err.splitlines()[:2] == [f"Line 1: {sentence}", f"29 more: {sentence}"]


async def test_without_a_manifest_every_paid_request_is_named_with_the_command_that_resumes_it(bench, capsys):
    """Thirty generations time out, more than are reported otherwise: nothing else remembers their ids."""
    it = bench(timeout=0.05)
    code = await it.run(rows(30), manifest=None, resume="flux-klein result {}".format)
    assert code == ExitCode.TRY_LATER
    named = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  flux-klein result ")]
    assert len(set(named)) == 30


class OthersJournal:
    """A journal in which another run has claimed every item."""

    async def record(self, entry: object) -> None:
        raise AssertionError

    def items(self) -> "OthersJournal":
        return self

    async def claim(self, model: str, body: bytes, item_id: str | None) -> Claim:
        return Claim(item="x", action=Action.CLAIMED)

    def release(self, claim: Claim) -> None:
        """Nothing was claimed."""


async def test_rows_that_another_run_has_claimed_are_counted_and_not_reported_one_by_one(bench, klein_emulator, capsys):
    it = bench(journal=OthersJournal())
    assert await it.run(rows(3), screen=Screen(quiet=True)) == ExitCode.TRY_LATER
    assert (it.totals.ends["claimed by another run"], klein_emulator.accepted) == (3, 0)
    err = capsys.readouterr().err
    assert err == "3 lines are claimed by another run. Run the same command again when it has ended.\n"


class SlowJournal(OthersJournal):
    """A journal that takes 50 s to recall an item; it does not know "picture 2" and those that follow."""

    async def record(self, entry: object) -> None:
        """What was written is not read again."""

    async def claim(self, model: str, body: bytes, item_id: str | None) -> Claim:
        if json.loads(body)["prompt"] > "picture 1":
            return Claim(item="x", action=Action.SUBMIT)
        await asyncio.sleep(50.0)
        return Claim(item="x", action=Action.RECALL, request_id=json.loads(body)["prompt"][-1], answer=RECALLED)


RECALLED = b'{"status": "completed", "output": {"image": "https://files.runcomfy.net/a.png"}}'


async def test_the_rate_is_of_what_was_generated_over_the_time_that_took(bench, klein_emulator, capsys):
    klein_emulator.script("submit", *[Generation(after=9.5)] * 4)

    async def found() -> AsyncIterator[Row]:
        for row in rows(6):
            if row.number == 2:
                await asyncio.sleep(50.0)  # until the others are recalled
            yield row

    it = bench(journal=SlowJournal())
    assert await it.run(found()) == ExitCode.OK
    assert (now() // 10, it.totals.recalling) == (5, 50.0)
    assert "6 of 6 done, 2 done before; $0.04 spent, 0.4 a second" in capsys.readouterr().err


async def test_told_to_stop_it_waits_for_running_generations_for_thirty_seconds(bench, klein_emulator, capsys):
    """One generation takes three seconds, the other an hour; the third is queued."""
    klein_emulator.script("submit", Generation(after=3.0), Generation(after=3600.0))
    it = bench()
    asyncio.get_running_loop().call_later(1, it.stop.because, ExitCode.INTERRUPTED)
    assert await it.run(rows(2), resume="flux-klein result {}".format) == ExitCode.INTERRUPTED
    assert now() == 31.0
    assert (it.totals.done, len(it.totals.requests), klein_emulator.accepted) == (1, 1, 2)
    err = capsys.readouterr().err
    assert "Waiting for running generations (30 s). Press Ctrl-C again to quit now.\n" in err
    [(left, _)] = it.totals.requests.values()
    assert err.endswith(f"Still queued or running, and may be charged; resume with:\n  flux-klein result {left}\n")


@pytest.mark.parametrize("journal", [False, True])
async def test_a_second_signal_says_how_to_resume_what_still_runs_and_ends_the_process(
    bench, klein_emulator, capsys, monkeypatch, journal
):
    """One generation takes three seconds, the other an hour."""
    klein_emulator.script("submit", Generation(after=3.0), Generation(after=3600.0))
    it, left = bench(), []
    monkeypatch.setattr(os, "_exit", lambda code: left.append((now(), code, capsys.readouterr().err)))
    for seconds in (1, 5):
        asyncio.get_running_loop().call_later(seconds, it.stop.signalled, signal.SIGINT)
    running = asyncio.ensure_future(it.run(rows(2), resume=None if journal else "flux-klein result {}".format))
    await asyncio.sleep(6)
    [(request_id, _)] = it.totals.requests.values()
    [(at, code, err)] = left
    assert (at, code) == (5.0, 130)
    [summary] = [line for line in err.splitlines() if "left running" in line]
    assert summary.startswith("1 of 2 done, 1 left running; $0.01 spent, ")
    assert summary.endswith("5.0 s; up to $0.01 may have been charged for 1 request of unknown cost")
    resume = "Run the same command again to resume it.\n"
    assert err.endswith(resume if journal else f"may be charged; resume with:\n  flux-klein result {request_id}\n")
    assert await running == ExitCode.INTERRUPTED


async def test_a_second_signal_counts_submits_that_are_on_their_way_as_uncertain(
    bench, klein_emulator, capsys, monkeypatch
):
    klein_emulator.script("submit", None, *[Hang(accepted=True)] * 2)
    it, left = bench(), []
    monkeypatch.setattr(os, "_exit", lambda _: left.append(capsys.readouterr().err))
    for seconds in (2, 3):
        asyncio.get_running_loop().call_later(seconds, it.stop.signalled, signal.SIGINT)
    running = asyncio.ensure_future(it.run(rows(3)))
    await asyncio.sleep(4)
    [summary] = [line for line in left[0].splitlines() if "uncertain;" in line]
    assert summary.startswith("1 of 3 done, 2 uncertain; $0.01 spent, ")
    assert summary.endswith("; up to $0.02 may have been charged for 2 requests of unknown cost")
    await running


async def test_a_request_that_was_cancelled_is_not_left_to_resume(bench, klein_emulator, capsys):
    klein_emulator.script("submit", Generation(after=3600.0))
    it = bench()
    cancelled = Cancelled(at=0.0, request_id="cancelled", tag=7, cancelled=True)
    for event in (Submitted(at=0.0, seconds=0.0, request_id="cancelled", tag=7), cancelled):
        it.totals.note(event)
    asyncio.get_running_loop().call_later(1, it.stop.because, ExitCode.INTERRUPTED)
    await it.run(rows(1), resume="flux-klein result {}".format)
    assert "flux-klein result cancelled" not in capsys.readouterr().err


MAY_BE_CHARGED = "may have been charged for 1 request of unknown cost"


@pytest.mark.parametrize(
    ("answer", "ends", "charged", "left"),
    [
        (Generation(delay=2.0, after=3.0), "1 of 1 done; $0.01 spent", None, False),
        (Generation(delay=2.0, after=60.0), "0 of 1 done, 1 left running; $0.00 spent", None, True),
        (Generation(delay=7.0), "0 of 1 done, 1 uncertain; $0.00 spent", "unknown", False),
        (Reply(429, {}, delay=2.0), "0 of 1 done, 1 not submitted; $0.00 spent", "no", False),
    ],
    ids=["runs", "runs for a minute", "is not answered", "is refused for now"],
)
async def test_the_figures_of_a_submit_on_its_way_when_told_to_stop_add_up(
    bench, klein_emulator, capsys, answer, ends, charged, left
):
    """Its POST has 5 s to be answered; then it ends as every request that the stop finds."""
    klein_emulator.script("submit", answer)
    it = bench()
    asyncio.get_running_loop().call_later(1, it.stop.because, ExitCode.INTERRUPTED)
    assert await it.run(rows(1), resume="flux-klein result {}".format) == ExitCode.INTERRUPTED
    err = capsys.readouterr().err
    assert ends in err
    assert (MAY_BE_CHARGED in err) == (charged == "unknown" or left)
    named = [record.request_id for record in klein_emulator.asked("submit") if left]
    assert [line.split()[-1] for line in err.splitlines() if line.startswith("  flux-klein result")][-1:] == named
    errors = [record["error"]["charged"] for record in read_manifest(it.manifest.path) if record["error"]]
    assert errors == [charged] * (charged == "unknown")


async def test_items_without_a_turn_are_not_submitted_and_neither_reported_nor_written(bench, klein_emulator, capsys):
    klein_emulator.script("submit", Generation(after=3.0))
    it = bench(limits=Limits(max_in_flight=1))
    asyncio.get_running_loop().call_later(1, it.stop.because, ExitCode.INTERRUPTED)
    assert await it.run(rows(4)) == ExitCode.INTERRUPTED
    assert it.totals.ends == {"done": 1, "not submitted": 3}
    assert "Line" not in capsys.readouterr().err
    assert len(list(read_manifest(it.manifest.path))) == 1


async def test_told_to_stop_it_ends_as_soon_as_all_have_ended(bench, klein_emulator):
    klein_emulator.script("submit", *[Generation(after=3.0)] * 4)
    it = bench()
    asyncio.get_running_loop().call_later(1, it.stop.because, ExitCode.TERMINATED)
    assert await it.run(rows(100)) == ExitCode.TERMINATED
    assert 3 <= now() < 5
    assert (it.totals.done, klein_emulator.accepted) == (4, 4)


async def test_a_stop_before_the_first_submit_submits_nothing(bench, klein_emulator):
    it = bench()
    it.stop.gently(lambda: None)
    it.stop.because(ExitCode.INTERRUPTED)
    assert await it.run(rows(10)) == ExitCode.INTERRUPTED
    assert klein_emulator.accepted == 0


async def test_results_that_cannot_be_printed_are_named_with_the_command_that_fetches_them(bench, capsys, monkeypatch):
    def full(_: str) -> int:
        raise OSError(28, "No space left on device")

    it = bench()
    monkeypatch.setattr(sys.stdout, "write", full)
    screen = Screen(on_reader_gone=it.stop.because)
    assert await it.run(rows(1), manifest=None, screen=screen, resume="flux-klein result {}".format) == 1
    monkeypatch.undo()
    err = capsys.readouterr().err
    assert "Not printed: flux-klein result " in err
    assert "Waiting" not in err


async def test_an_error_of_the_rows_themselves_passes(bench):
    async def broken() -> AsyncIterator[Row]:
        yield rows(1)[0]
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await bench().run(broken())


# --- the totals


def test_the_totals_follow_the_events() -> None:
    totals = Totals(total=9)
    seen = []
    one, two = {"request_id": "r", "tag": 1}, {"request_id": "s", "tag": 2}
    for event in (
        Submitted(at=0.0, seconds=0.0, **one),
        Submitted(at=0.0, seconds=0.0, **two),
        StateChanged(at=0.0, state=RequestState.IN_PROGRESS, queue_position=None, **one),
        Polled(at=0.0, poll=1, state=None, **one),
        Cancelled(at=0.0, cancelled=False, **two),
        Cancelled(at=0.0, cancelled=None, **two),
        Finished(at=0.0, seconds=1.0, polls=1, lag_max=0.0, cost_usd=None, **one),
        Finished(at=0.0, seconds=1.0, polls=1, lag_max=0.0, cost_usd=None, request_id="x", tag=7),
        Submitted(at=0.0, seconds=0.0, request_id="y", tag="no index"),
    ):
        totals.note(event)
        seen.append((totals.queued, totals.running))
    assert seen == [(1, 0), (2, 0), (1, 1), (1, 1), (0, 2), (0, 2), (0, 1), (0, 1), (0, 1)]
    assert (totals.polls, totals.generations, totals.saving) == (1, 3, 1)


def test_the_totals_know_that_the_service_is_slow() -> None:
    totals = Totals()
    refused = {"attempt": 2, "seconds": 0.1, "error": "503"}
    assert totals.slowed_for(5.0) is None
    totals.note(Retrying(at=3.0, kind="file", **refused))
    assert totals.slowed_for(5.0) is None
    totals.note(Retrying(at=5.0, kind="submit", **refused))
    totals.note(Held(at=9.0, kind="submit", seconds=30.0))
    assert [totals.slowed_for(at) for at in (9.0, 40.0, 49.0, 49.1)] == [4.0, 35.0, 44.0, None]
    assert totals.held_until == 39.0
    totals.note(Held(at=60.0, kind="read", seconds=1.0))
    assert (totals.slowed_for(61.0), totals.held_until) == (1.0, 61.0)


WORKED = {"done", "uncertain", "cancelled", "failed"}


def test_every_end_is_counted_once() -> None:
    completed = {"request_id": "r", "state": RequestState.COMPLETED, "output": GenerationOutput(), "cost_usd": 0.5}
    result = GenerationResult(**completed)
    for facts, end, possibly_charged in (
        ({"result": result}, "done", 0),
        ({"result": result, "from_journal": True}, "done before", 0),  # an earlier run paid for it
        ({"error": GenerationFailedError(), "from_journal": True}, "failed before", 0),
        ({"error": GenerationFailedError(request_id="r"), "from_journal": True}, "failed before", 0),
        ({"error": SubmissionUncertainError(), "from_journal": True}, "uncertain", 0),
        ({"error": SubmissionUncertainError()}, "uncertain", 1),
        ({"error": ItemClaimedError()}, "claimed by another run", 0),
        ({"error": GenerationCancelledError(request_id="r", charged="no")}, "cancelled", 0),
        ({"error": GenerationCancelledError(charged="no")}, "not submitted", 0),
        ({"error": FanOutHaltedError()}, "not submitted", 0),
        ({"error": GenerationFailedError()}, "failed", 0),
        ({"error": NotFoundError()}, "failed", 0),
    ):
        totals = Totals()
        totals.end(Outcome(index=0, item="x", **facts))
        assert (totals.ends, totals.done) == ({end: 1}, "result" in facts)
        assert totals.possibly_charged == possibly_charged
        assert totals.worked == (end in WORKED and "from_journal" not in facts)


@pytest.mark.parametrize("id_first", [True, False])
def test_an_uncertain_submit_whose_id_comes_late_is_one_request_that_is_left(id_first: bool) -> None:
    totals, submitted = Totals(), Submitted(at=0.0, seconds=0.0, request_id="r", tag=0)
    if id_first:
        totals.note(submitted)
    totals.end(Outcome(index=0, item="x", error=SubmissionUncertainError()))
    if not id_first:
        totals.note(submitted)
    assert (totals.left, totals.possibly_charged, totals.ends["uncertain"]) == (["r"], 1, 1)
    totals.note(Cancelled(at=0.0, cancelled=True, request_id="r", tag=0))
    assert (totals.left, totals.possibly_charged) == ([], 0)


def test_the_cost_of_a_run_is_that_of_its_own_submits() -> None:
    totals, one, two = Totals(), {"request_id": "r", "tag": 1}, {"request_id": "s", "tag": 2}
    facts = {"at": 0.0, "seconds": 1.0, "polls": 1, "lag_max": 0.0}
    totals.note(Submitted(at=0.0, seconds=0.0, **one))
    assert (totals.cost_usd, totals.possibly_charged) == (0.0, 1)
    for event in (Finished(cost_usd=0.5, **facts, **one), Finished(cost_usd=9.0, **facts, **two)):
        totals.note(event)
    assert (totals.cost_usd, totals.highest_usd, totals.possibly_charged) == (0.5, 0.5, 0)


# --- options are checked before anything is paid for


def test_a_directory_that_can_be_made_is_writable_and_not_made_yet(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for path in (
        Path("/proc/x"),
        tmp_path / "file",
        tmp_path / "file" / "x",
        tmp_path / ("x" * 300),
        Path("a", "x" * 300),
        Path(*["x" * 200] * 100),
    ):
        with pytest.raises(typer.BadParameter, match="nothing can be written"):
            check_writable(path)
