"""`flux-klein batch`: a picture for every line, and nothing is paid for twice however a run ended."""

import asyncio
import base64
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async.batch.formats import FileFormat
from flux_klein_async.batch.manifest import read_manifest
from flux_klein_async.cli import connect
from flux_klein_async.cli.batch import _count
from flux_klein_async.emulator import Emulator, Generation, Hang, Reply, Rewrite, error_reply, fault
from flux_klein_async.journal.base import Entry
from flux_klein_async.journal.sqlite import SqliteJournal
from flux_klein_async.journal.states import EntryState
from flux_klein_async.journal.writer import EMULATED_TOKEN
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE
from tests.fakes import png
from tests.served import once

from .helpers import Command

ARGUMENTS = ("batch", "prompts.jsonl", "--quiet", "--no-report")


def prompts(count: int, *others: dict[str, Any]) -> None:
    """`prompts.jsonl` with so many small pictures, then the others."""
    rows = [{"prompt": f"picture {number}", "width": 64, "height": 64} for number in range(count)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, *others])
    Path("prompts.jsonl").write_text(text, encoding="utf-8")


def manifest() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]


def pictures() -> set[str]:
    return {path.name for path in Path("out").glob("*.png")}


def test_every_line_becomes_a_picture_and_a_line_of_the_manifest(served: Emulator, flux_klein: Command) -> None:
    Path("prompts.csv").write_text('id,prompt,width,height\ncat,"a cat, asleep",64,96\ndog,a dog,128,64\n')
    ran = flux_klein("batch", "prompts.csv")
    assert ran.code == 0
    assert {Path(line).name for line in ran.out.splitlines()} == pictures()
    assert len(pictures()) == 2
    cat, dog = sorted(manifest(), key=lambda line: line["index"])
    assert (cat["id"], cat["index"], cat["input"]) == ("cat", 0, {"prompt": "a cat, asleep", "width": 64, "height": 96})
    assert (dog["state"], dog["error"], dog["cost_usd"]) == ("completed", None, 0.01)
    assert {line["files"][0]["path"] for line in (cat, dog)} == pictures()
    assert "2 of 2 done in out; $0.02 spent" in ran.err
    assert "polls each" in ran.err


def test_options_fill_in_what_a_line_does_not_say(served: Emulator, flux_klein: Command) -> None:
    nine = "blackforestlabs/flux-2-klein/9b/text-to-image"
    Path("prompts.jsonl").write_text('{"prompt": "a cat", "height": 96}\n{"prompt": "a dog", "width": 128}\n')
    sizes = ("--width", "64", "--height", "80", "--steps", "8")
    assert flux_klein(*ARGUMENTS, "--model", nine, *sizes).code == 0
    assert [line["input"] for line in sorted(manifest(), key=lambda line: line["index"])] == [
        {"prompt": "a cat", "height": 96, "width": 64, "steps": 8},
        {"prompt": "a dog", "width": 128, "height": 80, "steps": 8},
    ]


HOSTILE = {"a/b": "a_b", "../../x": "__.._x", "a_b": "a_b-2", "NUL": "_NUL", "cat.jpg": "cat", "\U0001f406": "0005-six"}


@pytest.mark.parametrize("names", ["id", "index", "request"])
def test_files_are_named_by_id_index_or_request(served: Emulator, flux_klein: Command, names: str) -> None:
    """Never outside the directory, never over another's file; the next run recognises its own."""
    words = ("one", "two", "three", "four", "five", "six")
    rows = [{"id": key, "prompt": f"{word}!"} for key, word in zip(HOSTILE, words, strict=True)]
    rows.append({"prompt": "A snow leopard"})
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = (*ARGUMENTS, "--names", names, "--width", "64", "--height", "64", "--concurrency", "1")
    first = flux_klein(*arguments)
    by_index = [f"{number:04d}-{word}" for number, word in enumerate(words)]
    stems = {"id": [*HOSTILE.values()], "index": by_index, "request": served.completions}[names]
    last = [] if names == "request" else ["0006-a-snow-leopard"]
    assert pictures() == {f"{stem}.png" for stem in [*stems, *last]}
    assert flux_klein(*arguments).out == first.out
    Path("out/manifest.jsonl").unlink()
    assert flux_klein(*arguments, "--journal", "other.sqlite").code == 0  # a run that knows nothing of the first
    assert len(pictures()) == 14
    assert {path.name for path in Path().iterdir()} == {"out", "other.sqlite", "prompts.jsonl"}


def test_a_tilde_in_an_option_is_the_home_directory(
    served: Emulator, flux_klein: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "prompts.txt").write_text("a cat\n")
    small = ("--width", "64", "--height", "64", "--quiet")
    made = flux_klein("batch", "~/prompts.txt", "--output-dir=~/many", "--journal=~/run.sqlite", "--json", *small)
    flux_klein("generate", "x", "--output-dir=~/few", *small)
    flux_klein("result", made.records[0]["request_id"], "--output-dir=~/one")
    assert flux_klein("journal", "check", "--journal=~/run.sqlite").code == 0
    assert {path.name for path in home.iterdir() if path.is_dir()} == {"few", "many", "one"}
    assert [path.name for path in Path().iterdir() if "~" in path.name] == []


def test_the_same_command_again_submits_nothing_that_is_done(served: Emulator, flux_klein: Command) -> None:
    prompts(8)
    first = flux_klein(*ARGUMENTS)
    again = flux_klein("batch", "prompts.jsonl")
    assert (first.code, again.code, served.accepted) == (0, 0, 8)
    assert sorted(again.out.splitlines()) == sorted(first.out.splitlines())
    assert "8 of 8 done in out, 8 done before; $0.00 spent" in again.err
    assert len(manifest()) == 8


EDIT = "blackforestlabs/flux-2/dev/edit"


def test_a_batch_of_edits_is_recognised_by_what_its_files_hold(served: Emulator, flux_klein: Command) -> None:
    """Run, moved as a whole, one file changed, one missing: each item is paid for once."""
    folder = Path("edits")
    (folder / "refs").mkdir(parents=True)
    for name in "abc":
        (folder / "refs" / f"{name}.png").write_bytes(png(300 + ord(name)))
    rows = [{"prompt": "@home", "seed": 1, "image_urls": [{"file": f"refs/{name}.png"}]} for name in "abc"]
    rows[0]["image_urls"] = {"file": "refs/a.png"}  # the catalogue says that it is a list
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*options: str) -> Any:
        return flux_klein("batch", str(folder / "edits.jsonl"), "--model", EDIT, *options)

    assert "3 to submit" in run("--dry-run").out
    assert (run().code, served.accepted) == (0, 3)
    shown = [line["input"]["image_urls"][0] for line in sorted(manifest(), key=lambda line: line["index"])]
    assert [(Path(each["file"]).parts[-2:], each["size"]) for each in shown] == [
        (("refs", f"{name}.png"), (folder / "refs" / f"{name}.png").stat().st_size) for name in "abc"
    ]
    assert {json.loads(record.body)["prompt"] for record in served.records if record.endpoint == "submit"} == {"@home"}
    folder = folder.rename("moved")
    assert "0 to submit, 3 done before" in run("--dry-run").out
    ran = run()
    assert (ran.code, served.accepted) == (0, 3)
    assert "Submitting up to 3 of 3, at $0.025 each: up to $0.075 in all" in ran.err  # the files are not read for it
    (folder / "refs" / "b.png").write_bytes(png(999))
    assert (run().code, served.accepted) == (0, 4)
    (folder / "refs" / "c.png").unlink()
    ran = run()
    assert (ran.code, served.accepted) == (65, 4)
    assert "Line 3: image_urls.0: the file " in ran.err
    assert "Nothing was submitted." in ran.err
    kept = b"".join(path.read_bytes() for path in [*Path("out").glob("journal*"), Path("out/manifest.jsonl")])
    assert b"base64" not in kept


def test_a_dry_run_tells_of_a_file_that_cannot_be_recognised(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.png").write_bytes(png())
    prompts(0, {"prompt": "x", "image_urls": [{"file": "a.png"}]})
    assert flux_klein(*ARGUMENTS, "--model", EDIT).code == 0
    monkeypatch.setattr("flux_klein_async.batch.rows.check_files", lambda *_: Path("a.png").unlink())
    ran = flux_klein(*ARGUMENTS, "--model", EDIT, "--dry-run")
    assert (ran.code, "Line 1: image_urls.0: the file " in ran.err) == (65, True)


def test_missing_files_are_downloaded_again(served: Emulator, flux_klein: Command) -> None:
    prompts(3)
    flux_klein(*ARGUMENTS)
    before = pictures()
    for name in sorted(before)[:2]:
        Path("out", name).unlink()
    assert flux_klein(*ARGUMENTS).code == 0
    assert (pictures(), served.accepted) == (before, 3)


def test_a_file_that_grew_is_resumed(served: Emulator, flux_klein: Command) -> None:
    prompts(3)
    flux_klein(*ARGUMENTS)
    prompts(5)
    ran = flux_klein(*ARGUMENTS, "--json")
    assert (ran.code, served.accepted, len(ran.records)) == (0, 5, 5)
    assert ran.records[0].keys() == manifest()[0].keys()


def test_equal_prompts_are_as_many_pictures(served: Emulator, flux_klein: Command) -> None:
    Path("prompts.txt").write_text("a cat\na cat\n\na cat\n")
    assert flux_klein("batch", "prompts.txt", "--quiet").code == 0
    assert flux_klein("batch", "prompts.txt", "--quiet").code == 0
    assert (served.accepted, len(pictures())) == (3, 3)


BAD = {"prompt": " ", "width": 64}


def test_bad_lines_among_the_first_thousand_stop_everything_before_it_begins(
    served: Emulator, flux_klein: Command
) -> None:
    prompts(970, *[BAD] * 30)
    ran = flux_klein(*ARGUMENTS)
    assert (ran.code, ran.out, ran.err.count("Line "), served.accepted) == (65, "", 20, 0)
    assert "Line 971: prompt: " in ran.err
    assert ran.err.endswith("10 more.\nNothing was submitted. --dry-run checks the lines after the first 1,000 too.\n")
    Path("prompts.jsonl").write_text('{"prompt": "x", "image_urls": ["https://a.example.com/b.png"], "sed": 3}')
    ran = flux_klein(*ARGUMENTS, "--model", EDIT)  # bad by the catalogue
    assert (ran.code, ran.err.count("Line "), served.accepted) == (65, 1, 0)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("first", "options", "more"), [(1000, [], "30 more.\n"), (1000, ["--dry-run"], ""), (2, [], "30 more: see out/")]
)
def test_another_encoding_is_told_once(
    first: int, options: list[str], more: str, served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of Windows-1252 has it on every line that is not English."""
    monkeypatch.setattr("flux_klein_async.cli.batch.CHECKED_FIRST", first)
    prompts(2)
    with Path("prompts.jsonl").open("ab") as file:
        file.writelines(b'{"prompt": "caf%c"}\n' % byte for byte in [0xE9, *[0xFC] * 30])
    ran = flux_klein(*ARGUMENTS, *options)
    assert (ran.code, ran.err.count("UTF-8 (")) == (65, 1)
    assert "Line 3: not UTF-8 (byte 0xE9); if the file is Latin-1 or Windows-1252, convert it first: iconv" in ran.err
    assert more in ran.err


def test_ctrl_c_before_the_first_submit_says_that_nothing_was_submitted(served: Emulator, flux_klein: Command) -> None:
    prompts(1)
    served.script("model", Hang())  # the price
    once(served, lambda: bool(served.records), lambda: os.kill(os.getpid(), signal.SIGINT))
    ran = flux_klein("batch", "prompts.jsonl")
    assert (ran.code, ran.out, ran.err, served.accepted) == (130, "", "Nothing was submitted.\n", 0)


@pytest.mark.parametrize("first", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_later_bad_line_is_reported_and_the_others_are_made(
    first: int, served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later than the first 1,000; or than fewer, which does not take as long."""
    if first != 1000:
        monkeypatch.setattr("flux_klein_async.cli.batch.CHECKED_FIRST", first)
    bad = {"id": "b", "prompt": "too small", "width": 1}
    prompts(first + 1, BAD, bad, {"prompt": "the last", "width": 64, "height": 64})
    ran = flux_klein("batch", "prompts.jsonl", "--no-download", "--json", "--report")
    assert (ran.code, served.accepted, len(ran.records)) == (65, first + 2, first + 4)
    assert f"Line {first + 2}: prompt: " in ran.err
    assert {line["index"] for line in manifest()} == {*range(first + 4)}
    text, small = (line for line in manifest() if line["error"])
    assert [line for line in ran.records if line["error"]] == [text, small]
    assert (text["index"], text["id"], small["id"], small["input"]) == (first + 1, None, "b", {"prompt": "too small"})
    message = f"Line {first + 3}: width: 1 is less than 64"
    assert small["error"] == {"type": "InvalidInputError", "message": message, "charged": "no", "retryable": False}
    assert any(message in part.read_text() for part in Path("out/index_files").glob("*.js"))
    prompts(first + 1, {"prompt": "mended"}, bad | {"width": 64})
    assert flux_klein(*ARGUMENTS, "--no-download").code == 0
    assert [line["error"] for line in read_manifest("out/manifest.jsonl")] == [None] * (first + 4)


def test_what_a_file_and_what_the_catalogue_tells_of_bad_lines_is_told_together(
    served: Emulator, flux_klein: Command
) -> None:
    row = {"prompt": "x", "image_urls": "https://x.example/a.png"}
    prompts(0, row | {"sed": 3}, row | {"image_urls": {"file": "gone.png"}})
    ran = flux_klein("batch", "prompts.jsonl", "--model", EDIT)
    assert (ran.code, served.accepted) == (65, 0)
    assert [line.partition(":")[0] for line in ran.err.splitlines()] == ["Line 1", "Line 2", "Nothing was submitted."]


def test_a_later_line_with_a_field_that_the_catalogue_does_not_list_is_bad(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flux_klein_async.cli.batch.CHECKED_FIRST", 1)
    row = {"prompt": "x", "image_urls": "https://x.example/a.png"}
    prompts(0, row, row | {"id": "b", "sed": 3}, row | {"seed": 3}, {"prompt": "x", "id": "c"})
    ran = flux_klein("batch", "prompts.jsonl", "--model", EDIT, "--no-download")
    assert (ran.code, served.accepted) == (65, 2)
    assert ", at $0.025 each: $0.05 in all; no --max-spend; 2 bad" in ran.err
    assert "Line 2 (b): sed: the catalogue lists no such field of this model (did you mean seed?)" in ran.err
    assert "Line 4 (c): image_urls: is missing" in ran.err
    [bad, _] = [line for line in manifest() if line["error"]]
    assert (bad["id"], bad["input"], bad["error"]["charged"]) == ("b", {"prompt": "x"}, "no")


@pytest.mark.parametrize(
    ("journal", "code"),
    [("prompts.jsonl", 64), (".", 64), ("", 64), ("missing/run.sqlite", 64), ("postgresql://127.0.0.1:1/x", 1)],
)
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_journal_that_cannot_be_used_is_refused_before_anything_is_made(
    served: Emulator, flux_klein: Command, journal: str, code: int, options: tuple[str, ...]
) -> None:
    prompts(2)
    ran = flux_klein(*ARGUMENTS, "--journal", journal, *options)
    assert (ran.code, ran.out, served.accepted) == (code, "", 0)
    assert [path.name for path in Path().iterdir()] == ["prompts.jsonl"]


def test_an_uncertain_submit_is_reported_and_never_resubmitted_unasked(served: Emulator, flux_klein: Command) -> None:
    prompts(2)
    served.lose_submit()

    def ran(*options: str) -> tuple[int, int, int]:
        result = flux_klein("batch", "prompts.jsonl", "--json", *options)
        written = [path.read_text() for path in Path("out").rglob("*.*") if path.suffix in {".jsonl", ".html", ".js"}]
        assert (len(written) > 3, "resubmit_uncertain" in "".join([result.err, result.out, *written])) == (True, False)
        said = [result.err.count(text) for text in ("on the site", "--resubmit-uncertain submits it again")]
        assert said in ([0, 0], [1, 1])
        return result.code, served.accepted, bool(said[0])

    assert ran() == (1, 2, True)
    assert [line["error"]["type"] for line in manifest() if line["error"]] == ["SubmissionUncertainError"]
    assert ran() == (1, 2, True)
    assert ran("--resubmit-uncertain") == (0, 3, False)
    assert ran() == (0, 3, False)


def test_a_generation_without_a_file_is_asked_for_again_by_the_next_run_and_not_submitted(
    served: Emulator, flux_klein: Command
) -> None:
    prompts(2)
    served.script("result", *[Rewrite({"output": {}, "error": "filtered"})] * 2)
    first = flux_klein(*ARGUMENTS, "--concurrency", "1")
    lines = manifest()
    assert (first.code, {line["state"] for line in lines}) == (1, {"completed"})
    assert {(line["error"]["charged"], line["error"]["retryable"]) for line in lines} == {("yes", False)}
    assert "do not submit again: filtered" in first.err
    assert "--retry-failed" not in first.err
    again = flux_klein(*ARGUMENTS, "--retry-failed")
    assert (again.code, served.accepted, len(pictures())) == (0, 2, 2)
    assert [line["error"] for line in manifest()[2:]] == [None, None]


def test_one_that_still_has_no_file_is_paid_for_again_on_request(served: Emulator, flux_klein: Command) -> None:
    prompts(1)
    served.script("result", *[Rewrite({"output": {"images": [], "filtered": 1}})] * 3)
    for options, accepted in (([], 1), ([], 1), (["--retry-failed"], 2)):
        ran = flux_klein(*ARGUMENTS, *options)
        assert (ran.code, served.accepted) == (int(accepted == 1), accepted)
        assert ("the output is {'images': [], 'filtered': 1}" in ran.err) == (accepted == 1)
    assert [line["error"] and line["error"]["charged"] for line in manifest()] == ["yes", None]
    assert len(pictures()) == 1


def test_a_file_inside_the_answer_is_saved_and_its_bytes_are_printed_nowhere(
    served: Emulator, flux_klein: Command
) -> None:
    prompts(1)
    inline = fault("out-inline").fields["output"]["image"]
    served.script("result", *[Rewrite({"output": {"images": [inline, None]}})] * 4)
    ran = flux_klein(*ARGUMENTS, "--json")
    [line] = ran.records
    [file] = line["files"]
    data = base64.b64decode(inline.partition(",")[2])
    assert (Path(file["path"]).read_bytes(), file["sha256"]) == (data, hashlib.sha256(data).hexdigest())
    brief = f"data:image/png;base64,... ({len(inline) - 22} characters)"
    assert (line["urls"], manifest()[0]["urls"]) == ([brief], [brief])
    assert f"Line 1: 1 file is missing, 1 is there (request {line['request_id']})" in ran.err
    for arguments in (["generate", "x", "--no-download"], ["result", line["request_id"]]):
        ran = flux_klein(*arguments)
        assert (ran.code, ran.out) == (0, f"{brief}\n")
        assert "1 file is missing, 1 is there" in ran.err


def test_a_failure_is_submitted_again_on_request_and_a_refusal_always(served: Emulator, flux_klein: Command) -> None:
    prompts(3)
    served.script("submit", error_reply(422, 422001, "no cats"))
    served.fail_prompt("picture 1")
    assert (flux_klein(*ARGUMENTS, "--concurrency", "1").code, served.accepted) == (65, 2)
    ran = flux_klein(*ARGUMENTS)
    assert (ran.code, served.accepted) == (1, 3)
    assert "Line 2: " in ran.err
    assert (flux_klein(*ARGUMENTS, "--retry-failed").code, served.accepted) == (1, 4)


def test_an_error_of_every_submit_ends_the_run_and_the_next_one_resumes_it(
    served: Emulator, flux_klein: Command
) -> None:
    prompts(20)
    served.script("submit", None, None, error_reply(402, 400002, "no balance"))
    ran = flux_klein(*ARGUMENTS, "--concurrency", "1")
    assert (ran.code, served.accepted) == (77, 2)
    assert "The rest was not submitted: " in ran.err
    assert (flux_klein(*ARGUMENTS).code, served.accepted) == (0, 20)


def test_a_wrong_token_is_told_before_anything_is_announced(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNCOMFY_API_TOKEN", "wrong-token-1234")
    prompts(20)
    for options in ([], ["--model", EDIT]):
        ran = flux_klein("batch", "prompts.jsonl", *options)
        assert (ran.code, served.calls["submit"], "Submitting" in ran.err) == (77, 0, False)
        assert ran.err.count("HTTP 401") == 1


def test_files_that_get_a_number_since_others_have_their_names_are_counted(
    served: Emulator, flux_klein: Command
) -> None:
    Path("out").mkdir()
    Path("out/a.png").touch()
    prompts(0, {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "x"})
    numbered = "1 item has files with a number behind the name (-2): other files had it, and none is replaced."
    assert flux_klein("batch", "prompts.jsonl").err.count(numbered) == 1
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["a-2.png", "a.png", "b.png"]
    assert "behind the name" not in flux_klein("batch", "prompts.jsonl").err


def test_max_spend_limits_all_runs_together(served: Emulator, flux_klein: Command) -> None:
    prompts(8)
    for accepted in (3, 3):
        ran = flux_klein(*ARGUMENTS, "--max-spend", "0.035")
        assert (ran.code, served.accepted) == (1, accepted)
    for bound, left in (("0.035", "0.005"), ("0.01", "0.00")):
        ran = flux_klein(*ARGUMENTS, "--max-spend", bound)
        [line] = [line for line in ran.err.splitlines() if "is left" in line]
        said = f"The rest was not submitted: The next generation may cost $0.01, and ${left} of ${bound} is left; "
        said += "the same command with a higher --max-spend goes on"
        assert line == f"{said} (it counts all runs on the journal, $0.03 before this one)"
    assert (flux_klein(*ARGUMENTS, "--max-spend", "0.05").code, served.accepted) == (1, 5)
    assert (flux_klein(*ARGUMENTS).code, served.accepted) == (0, 8)


def test_a_bound_counts_what_earlier_runs_without_one_may_have_paid_from_the_first_line_on(
    served: Emulator, flux_klein: Command
) -> None:
    prompts(4)
    for number in (0, 1, 2):
        served.fail_prompt(f"picture {number}")
    assert flux_klein(*ARGUMENTS).code == 1
    prompts(8)
    bound = "--max-spend $0.06, $0.04 spent before ($0.03 of it for requests of unknown cost)"
    ran = flux_klein(*ARGUMENTS, "--max-spend", "0.06", "--dry-run")
    assert ran.out.splitlines()[2] == f"Bound: {bound}: enough for 2 of 4; the money ends before line 7"
    ran = flux_klein("batch", "prompts.jsonl", "--max-spend", "0.06")
    assert f"{bound}, which is enough for 2" in ran.err
    assert "$0.00 of $0.06 is left" in ran.err
    assert "(it counts all runs on the journal, $0.04 before this one)" in ran.err
    assert served.accepted == 6


def test_what_an_emulator_at_another_address_made_is_made_again(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flux_klein_async.cli.batch.EMULATED_TOKEN", served.api_key)
    prompts(1)
    served.lose_submit()
    assert flux_klein(*ARGUMENTS, "--journal", "of-another.sqlite").code == 1
    ran = flux_klein(*ARGUMENTS)
    assert (ran.code, "made again, which costs nothing" in ran.err) == (0, True)


def test_a_model_without_a_price_for_an_output_is_not_started_with_max_spend(
    served: Emulator, flux_klein: Command
) -> None:
    prompts(2)
    ran = flux_klein(*ARGUMENTS, "--max-spend", "100", "--model", "emulator/any/text-to-video")
    assert (ran.code, served.accepted) == (1, 0)
    assert "at an unknown price; without --max-spend it is submitted, whatever it costs\n" in ran.err


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts(8)
    learned = flux_klein(*ARGUMENTS, "--dry-run").out.splitlines()[2]
    assert learned.endswith(" with 64 at a time, as earlier runs took; saving is extra")
    monkeypatch.delenv("FLUX_KLEIN_STORE")
    ran = flux_klein(*ARGUMENTS, "--dry-run")
    assert ran.code == 0
    assert ran.out.splitlines()[:2] == ["8 to submit", "Cost: $0.08 (8 x $0.01)"]
    published = "Time: about 0.1 s with 64 at a time, by the published times, without a queue; saving is extra"
    assert ran.out.splitlines()[2] == published
    assert (served.accepted, [*Path().iterdir()]) == (0, [Path("prompts.jsonl")])


def test_a_dry_run_knows_what_was_done_before_and_changes_nothing(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLUX_KLEIN_STORE")
    prompts(3)
    served.fail_prompt("picture 0")
    served.script_prompt("picture 1", error_reply(500, message="no luck", accepted=True))
    flux_klein(*ARGUMENTS)
    prompts(4, {"prompt": "wide", "width": 9999})
    for _ in range(2):
        ran = flux_klein(*ARGUMENTS, "--dry-run", "--json")
        assert ran.code == 65
    prompts(4)
    for _ in range(2):
        ran = flux_klein(*ARGUMENTS, "--dry-run", "--json")
        counts = {
            "submit": 1,
            "resume": 0,
            "recall": 1,
            "failed": 1,
            "uncertain": 1,
            "claimed": 0,
            "bad": 0,
            "pays_again": 0,
        }
        assert ran.records == [{**counts, "cost_usd": 0.01, "affordable": None, "ends_at_line": None, "seconds": 0.065}]
    assert served.accepted == 3


def test_a_dry_run_says_where_the_money_ends(served: Emulator, flux_klein: Command) -> None:
    prompts(2)
    flux_klein(*ARGUMENTS)
    prompts(8)
    ran = flux_klein(*ARGUMENTS, "--dry-run", "--max-spend", "0.05")
    bound = "Bound: --max-spend $0.05, $0.02 spent before: "
    assert ran.out.splitlines()[2] == f"{bound}enough for 3 of 6; the money ends before line 6"
    [facts] = flux_klein(*ARGUMENTS, "--dry-run", "--max-spend", "0.05", "--json").records
    assert (facts["affordable"], facts["ends_at_line"]) == (3, 6)
    ran = flux_klein(*ARGUMENTS, "--dry-run", "--max-spend", "0.08")
    assert ran.out.splitlines()[2] == "Bound: --max-spend $0.08, $0.02 spent before: enough for all"
    assert served.accepted == 2


def test_what_the_service_charged_once_is_the_price_of_the_next_run(served: Emulator, flux_klein: Command) -> None:
    prompts(1)
    served.script("submit", Generation(cost=0.04))
    flux_klein(*ARGUMENTS, "--max-spend", "0.05")
    prompts(4)
    before = "(as charged before; the catalogue says $0.01)"
    ran = flux_klein(*ARGUMENTS, "--dry-run", "--max-spend", "0.12")
    assert ran.out.splitlines()[1:3] == [
        f"Cost: $0.12 (3 x $0.04) {before}",
        "Bound: --max-spend $0.12, $0.04 spent before: enough for 2 of 3; the money ends before line 4",
    ]
    ran = flux_klein("batch", "prompts.jsonl", "--max-spend", "0.12")
    assert ran.err.startswith(f"Submitting 3 of 4, at $0.04 each {before}: $0.12 in all; --max-spend $0.12, ")


def test_a_batch_says_what_it_is_about_to_spend(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts(2)
    flux_klein(*ARGUMENTS)
    prompts(8)
    arguments = ("batch", "prompts.jsonl")
    before = [served.accepted]
    served.script("submit", *[error_reply(400, 400002, message="no balance left")] * 200)
    ran = flux_klein(*arguments, "--max-spend", "0.05")
    said = (
        "Submitting 6 of 8, at $0.01 each: $0.06 in all; --max-spend $0.05, $0.02 spent before, which is enough for 3"
    )
    assert ran.err.splitlines()[0] == said
    assert flux_klein(*arguments).err.startswith("Submitting 6 of 8, at $0.01 each: $0.06 in all; no --max-spend\n")
    ran = flux_klein("batch", "-", "--format", "jsonl", stdin=Path("prompts.jsonl").read_bytes())
    assert ran.err.startswith("Submitting 6 of 8, at $0.01 each: $0.06 in all; no --max-spend\n")
    for name, value in (("batch.CHECKED_FIRST", 5), ("forecast._AT_ONCE", 4)):
        monkeypatch.setattr(f"flux_klein_async.cli.{name}", value)
    rows = "".join(f"picture {number};64;64\n" for number in range(8))
    Path("prompts.csv").write_text(f'sep=;\nprompt;width;height\n{rows};;\n"";;\n')
    for file in ("prompts.jsonl", "prompts.csv"):
        assert flux_klein("batch", file).err.startswith(
            "Submitting 6 of 8, at $0.01 each: $0.06 in all; no --max-spend\n"
        )
    ran = flux_klein("batch", "-", "--format", "jsonl", stdin=Path("prompts.jsonl").read_bytes())
    assert ran.err.startswith("Submitting lines as they come, at $0.01 each; no --max-spend\n")
    monkeypatch.setattr("flux_klein_async.cli.batch._FORECAST_WITHIN", 0.0)
    said = "Submitting 2 of the first 4, at $0.01 each: $0.02, and the new ones of 4 more; no --max-spend\n"
    assert flux_klein(*arguments).err.startswith(said)
    served.fault("model", Reply(500, "sorry"), probability=1)
    said = "Submitting 2 of the first 4, at an unknown price, and the new ones of 4 more; no --max-spend\n"
    assert flux_klein(*arguments).err.startswith(said)
    assert [served.accepted] == before


@pytest.mark.parametrize("bound", [(), ("--max-spend", "5")])
def test_what_other_runs_may_have_paid_for_is_named_too(
    served: Emulator, flux_klein: Command, bound: tuple[str, ...]
) -> None:
    """Also for requests that a later one of the same line has replaced."""
    prompts(3)
    served.script_prompt("picture 0", error_reply(500, message="no luck", accepted=True))
    served.script_prompt("picture 1", Generation(ends="failed"))
    told = "; up to $0.0{} may have been charged for {}"
    own, others = "{} request{} of unknown cost", "requests of other runs"
    batch = ("batch", "prompts.jsonl", *bound)
    assert told.format(2, own.format(2, "s")) + "\n" in flux_klein(*batch).err
    assert told.format(2, others) + "\n" in flux_klein(*batch).err
    prompts(4)
    served.script_prompt("picture 3", Generation(ends="failed"))
    both = told.format(1, own.format(1, "")) + told.format(2, others)
    assert both in flux_klein(*batch).err
    both = told.format(2, own.format(2, "s")) + told.format(3, others)
    assert both in flux_klein(*batch, "--retry-failed").err


def test_a_batch_says_what_it_may_pay_for_a_second_time(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncertain submits, and generations that failed and may be charged; not what was refused."""
    prompts(4)
    served.script_prompt("picture 0", error_reply(500, message="no luck", accepted=True))
    served.script_prompt("picture 1", Generation(ends="failed"))
    served.script_prompt("picture 2", error_reply(422))
    flux_klein(*ARGUMENTS)
    again = "may be paid for a second time"
    for options, new, count in (([], 1, 0), (["--resubmit-uncertain"], 2, 1), (["--retry-failed"], 2, 1)):
        said = flux_klein(*ARGUMENTS, *options, "--dry-run").out.splitlines()[0]
        assert said.startswith(f"{new} to submit, ")
        assert said.endswith(f"; {count} {again}" if count else "uncertain")
        [facts] = flux_klein(*ARGUMENTS, *options, "--dry-run", "--json").records
        assert (facts["submit"], facts["pays_again"]) == (new, count)
    monkeypatch.setattr("flux_klein_async.cli.batch.CHECKED_FIRST", 2)
    ran = flux_klein(
        "batch", "-", "--format", "jsonl", "--resubmit-uncertain", stdin=Path("prompts.jsonl").read_bytes()
    )
    assert ran.err.splitlines()[0] == f"Submitting lines as they come, at $0.01 each; no --max-spend; 1 {again}"
    served.script_prompt("picture 0", error_reply(500, message="no luck", accepted=True))
    flux_klein(*ARGUMENTS, "--resubmit-uncertain")
    ran = flux_klein("batch", "prompts.jsonl", "--resubmit-uncertain", "--retry-failed")
    assert ran.err.splitlines()[0].endswith(f"no --max-spend; 2 {again}")


def test_a_run_that_stops_early_counts_the_bad_lines_that_it_did_not_reach(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flux_klein_async.cli.batch.CHECKED_FIRST", 5)
    prompts(20, BAD, BAD)
    served.script("submit", *[error_reply(401)] * 20)
    ran = flux_klein("batch", "prompts.jsonl", "--concurrency", "1")
    assert ran.code == 77
    assert ran.err.splitlines()[0].endswith("; no --max-spend; 2 bad")
    assert "0 of 22 done, 20 not submitted, 2 bad (--dry-run names them)" in ran.err


def test_a_run_without_money_reads_on_and_collects_what_earlier_runs_paid_for(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Done, without its file, failed; and bad lines are named."""
    monkeypatch.setattr("flux_klein_async.cli.batch.CHECKED_FIRST", 5)
    small = ("--width", "64", "--height", "64", "--concurrency", "1", "--max-spend", "0.03")
    served.script_prompt("failed", Generation(ends="failed"))
    Path("prompts.txt").write_text("done\nfailed\nno file\n")
    flux_klein("batch", "prompts.txt", *small)
    Path("out/0002-no-file.png").unlink()
    lines = [json.dumps({"prompt": prompt}) for prompt in ("new", "done", "another", "failed", "no file")]
    Path("prompts.jsonl").write_text("\n".join([*lines, json.dumps(BAD), json.dumps({"prompt": "third"})]))
    ran = flux_klein("batch", "prompts.jsonl", *small)
    assert served.accepted == 3
    assert sorted(ran.out.split()) == ["out/0000-done.png", "out/0004-no-file.png"]
    assert "2 of 7 done in out, 2 done before, 1 failed before, 1 bad, 3 not submitted; $0.00 spent" in ran.err


@pytest.mark.parametrize(
    ("price", "said"),
    [
        ({}, "does not say it"),
        ({"price_unit": "megapixel"}, "does not say it"),
        ({"base_price_usd": 0.012, "price_unit": "megapixel"}, "says $0.012 per megapixel"),
    ],
)
def test_a_dry_run_counts_every_line_prints_the_first_bad_ones_and_guesses_no_price(
    served: Emulator, flux_klein: Command, price: dict[str, Any], said: str
) -> None:
    served.fault("model", Reply(200, {"model_id": "a/b", **price}), probability=1)
    prompts(1001, *[BAD] * 30)
    lines = Path("prompts.jsonl").read_text().splitlines(keepends=True)
    Path("prompts.jsonl").write_text("".join(["{}\n", *lines]))  # bad from the start
    ran = flux_klein("batch", "prompts.jsonl", "--dry-run")
    assert (ran.code, ran.err.count("Line ")) == (65, 20)
    assert ran.err.endswith("\n11 more.\nA run submits nothing while one of the first 1,000 lines is bad.\n")
    assert ran.out.splitlines()[:2] == ["1,001 to submit, 31 bad", f"Cost: unknown, the catalogue {said}"]
    prompts(2)
    ran = flux_klein(*ARGUMENTS, "--dry-run", "--json")
    assert (ran.code, ran.records[0]["submit"], ran.records[0]["cost_usd"]) == (1, 2, None)
    assert ("of 2, at $0.012 per megapixel;" in flux_klein("batch", "prompts.jsonl").err) == ("megapixel" in said)


def test_an_id_that_the_journal_knows_with_another_input_is_a_bad_line_of_a_dry_run(
    served: Emulator, flux_klein: Command
) -> None:
    for prompt in ("a cat", "a dog"):
        prompts(0, {"id": "pet", "prompt": prompt, "width": 64, "height": 64})
        ran = flux_klein(*ARGUMENTS, *(["--dry-run"] if prompt == "a dog" else []))
    assert (ran.code, ran.out.splitlines()[0]) == (65, "0 to submit, 1 bad")
    assert "Line 1 (pet): " in ran.err


@pytest.mark.parametrize(("max_spend", "answer", "code"), [("0.015", None, 1), ("9", "no dogs", 65)])
def test_an_edited_line_takes_the_id_of_one_that_was_not_paid_for(
    served: Emulator, flux_klein: Command, max_spend: str, answer: str | None, code: int
) -> None:
    prompts(0, {"id": "cat", "prompt": "a cat"}, {"id": "dog", "prompt": "a dog"})
    options = ("--width", "64", "--height", "64", "--concurrency", "1")
    served.script("submit", None, answer and error_reply(422, 422001, answer))
    assert flux_klein(*ARGUMENTS, *options, "--max-spend", max_spend).code == code
    served.script("submit")
    prompts(0, {"id": "cat", "prompt": "a cat"}, {"id": "dog", "prompt": "a fox"})
    ran = flux_klein("batch", "prompts.jsonl", *options)
    assert (ran.code, served.accepted) == (0, 2)
    assert "Submitting 1 of 2, at $0.01 each: $0.01 in all" in ran.err
    prompts(0, {"id": "cat", "prompt": "a lynx"}, {"id": "dog", "prompt": "a fox"})
    ran = flux_klein("batch", "prompts.jsonl", *options)
    assert (ran.code, served.accepted) == (65, 2)
    assert "1 of 2 done in out, 1 done before, 1 bad; $0.00 spent" in ran.err  # nothing of what the old input cost
    assert "another input by the id 'cat', and it may be paid for: give it back its old input (fields, " in ran.err


def test_lines_come_from_standard_input(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("batch", "-", "--quiet", "--no-download", "--json", stdin=b"a cat\na dog\n")
    assert (ran.code, sorted(record["input"]["prompt"] for record in ran.records)) == (0, ["a cat", "a dog"])
    ran = flux_klein("batch", "-", "--format", "csv", "--quiet", "--no-download", stdin=b"prompt\na cat\na dog\na fox")
    assert (ran.code, served.accepted) == (0, 3)


def test_the_rows_of_a_file_are_counted_ahead_but_not_those_of_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('prompt\n"a\nb"\n\nc\n"torn')
    assert [_count(str(tmp_path / "rows"), kind) for kind in (FileFormat.CSV, FileFormat.TXT)] == [2, 5]
    assert _count("-", FileFormat.TXT) is None


def test_a_run_on_the_emulator_is_resumed_too(flux_klein: Command) -> None:
    prompts(3)
    ran = flux_klein("batch", "prompts.jsonl", "--emulator")
    assert (ran.code, len(pictures())) == (0, 3)
    assert "spent" not in ran.err
    again = flux_klein("batch", "prompts.jsonl", "--emulator")
    assert "3 of 3 done in out, 3 done before" in again.err


def test_what_a_killed_run_had_at_its_emulator_is_submitted_again(flux_klein: Command) -> None:
    ends = {"submitted": "r-1", "uncertain": None, "failed": "r-2", "completed": "r-3"}
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": "x", "id": end}) + "\n" for end in ends))

    async def earlier() -> None:
        async with SqliteJournal("run.sqlite") as journal:
            account = journal.for_account(EMULATED_TOKEN, connect.EMULATED_SERVICE)
            items = account.items()
            for end, request_id in ends.items():
                claim = await items.claim(KLEIN_4B_TEXT_TO_IMAGE, b'{"prompt":"x"}', end)
                await account.record(Entry(state=EntryState.SUBMITTING, key=end, item=claim.item))
                await account.record(Entry(state=EntryState(end), key=end, request_id=request_id))

    asyncio.run(earlier())
    ran = flux_klein("batch", "prompts.jsonl", "--emulator", "--journal", "run.sqlite")
    assert (ran.code, len(pictures())) == (0, 4), ran.err


def test_what_an_emulator_may_have_forgotten_is_announced_as_up_to(served: Emulator, flux_klein: Command) -> None:
    prompts(3)
    flux_klein(*ARGUMENTS)
    min(Path("out").glob("*.png")).unlink()
    served.service.queue.jobs.clear()  # as one that was started again
    for options, said in (
        (("--no-download",), "Submitting 0 of 3, at $0.01 each: $0.00 in all"),
        ((), "Submitting up to 1 of 3, at $0.01 each: up to $0.01 in all"),
        ((), "Submitting 0 of 3, at $0.01 each: $0.00 in all"),
    ):
        ran = flux_klein("batch", "prompts.jsonl", "--no-report", *options)
        assert (ran.code, ran.err.partition(";")[0]) == (0, said)
    assert (served.accepted, len(pictures())) == (4, 3)


@pytest.mark.parametrize("rows", [[{"id": "a"}, {"id": "b"}], [{}, {}]])
@pytest.mark.parametrize("first", [1, 1000])
def test_a_forgotten_journal_does_not_pay_for_everything_again(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, str]], first: int
) -> None:
    """Also where the row is not among the first, or its submit had an unknown outcome."""
    monkeypatch.setattr("flux_klein_async.cli.batch.CHECKED_FIRST", first)
    served.lose_submit()
    old = [{"prompt": f"x{number}", **row} for number, row in enumerate(rows)]
    prompts(0, *old)
    assert flux_klein(*ARGUMENTS, "--journal", "run.sqlite", "--no-download").code == 1
    new = {"prompt": "new", **dict.fromkeys(rows[0], "new")}
    prompts(0, new, *old)
    for options in ([], ["--dry-run"], ["--journal", "other.sqlite"], ["--retry-failed"]):
        ran = flux_klein(*ARGUMENTS, *options)
        assert (ran.code, served.accepted) == (64, 2), options
        assert not Path("other.sqlite").exists()
    assert "'out/manifest.jsonl' lists 2 rows that the journal " in ran.err
    assert (
        "out/journal.sqlite does not know, among them line 2 of this file, and this run would pay for them again: "
        in ran.err
    )
    assert "name that run's journal, or another --output-dir to pay again" in ran.err
    ran = flux_klein("batch", "prompts.jsonl", "--emulator", "--no-report")
    assert (ran.code, "line 2 of this file: made again, which costs nothing." in ran.err) == (0, True)
    assert (flux_klein(*ARGUMENTS).code, served.accepted) == (64, 2)  # and what was paid for is not forgotten
    prompts(0, {**new, "prompt": "newer", **dict.fromkeys(rows[0], "newer")})  # a line that no run has made
    assert (flux_klein(*ARGUMENTS, "--journal", "third.sqlite").code, served.accepted) == (0, 3)


def test_uncertain_rows_that_the_journal_does_not_know_name_the_option_for_them(
    served: Emulator, flux_klein: Command
) -> None:
    prompts(1)
    served.lose_submit()
    assert flux_klein(*ARGUMENTS, "--journal", "run.sqlite").code == 1
    ran = flux_klein(*ARGUMENTS)
    assert (ran.code, served.accepted) == (64, 1)
    assert "; their submits are uncertain, and --resubmit-uncertain repeats them, and this run would pay" in ran.err
    assert (flux_klein(*ARGUMENTS, "--resubmit-uncertain").code, served.accepted) == (0, 2)


def test_what_an_emulator_made_is_not_paid_for(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with a journal that knows nothing of it; and what the journal knows is the journal's affair."""
    prompts(2)
    assert flux_klein(*ARGUMENTS, "--emulator", "--journal", "rehearsal.sqlite").code == 0
    monkeypatch.setattr(connect, "is_local", lambda _: False)
    assert (flux_klein(*ARGUMENTS).code, served.accepted) == (0, 2)
    lines = Path("out/manifest.jsonl").read_text().replace("http://127.0.0.1", "https://files.runcomfy.net")
    Path("out/manifest.jsonl").write_text(lines)
    assert (flux_klein(*ARGUMENTS).code, served.accepted) == (0, 2)
    assert flux_klein(*ARGUMENTS, "--journal", "other.sqlite").code == 64


def test_a_renewed_token_does_not_pay_for_everything_again(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts(3)
    assert flux_klein("batch", "prompts.jsonl", "--emulator").code == 0  # emulated requests do not count
    with monkeypatch.context() as mistyped:  # nor do those that were refused
        mistyped.setenv("RUNCOMFY_API_TOKEN", "mistyped")
        assert flux_klein(*ARGUMENTS).code == 77
    assert flux_klein(*ARGUMENTS).code == 0
    served.service.api_key = "renewed"
    monkeypatch.setenv("RUNCOMFY_API_TOKEN", "renewed")
    refused = [flux_klein(*ARGUMENTS), flux_klein(*ARGUMENTS, "--dry-run")]
    assert all("another token" in ran.err and "--new-token" in ran.err and ran.code == 1 for ran in refused)
    with monkeypatch.context() as mistyped:  # it does not take over
        mistyped.setenv("RUNCOMFY_API_TOKEN", "mistyped")
        assert flux_klein(*ARGUMENTS, "--new-token").code == 77
    assert flux_klein(*ARGUMENTS).code == 1
    gone_on = [flux_klein("batch", "prompts.jsonl", "--new-token"), flux_klein("batch", "prompts.jsonl")]
    assert all("3 of 3 done in out, 3 done before" in ran.err for ran in gone_on)
    assert served.accepted == 3
