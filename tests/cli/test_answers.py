"""The commands that ask the service one thing: a request by its id, the catalogue, a model with its fields."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from flux_klein_async import FluxKleinClient, ModelInfo, SqliteJournal
from flux_klein_async.cli.answers import per_unit
from flux_klein_async.emulator import Emulator, Generation, Reply, error_reply
from flux_klein_async.emulator.catalogue import MODELS
from tests.journal.helpers import Run

from .helpers import TOKEN, Command

CLIP, EDIT = "emulator/clip/image-to-video", "blackforestlabs/flux-2/dev/edit"


def submitted(*, until_done: bool = False) -> str:
    """The id of a request that was submitted with the environment's address and token."""

    async def submit() -> str:
        async with FluxKleinClient() as client:
            handle = await client.submit("x", width=64, height=64)
            if until_done:
                await handle.wait_for_result()
        return handle.request_id

    return asyncio.run(submit())


def test_status_says_where_a_request_stands(served: Emulator, flux_klein: Command) -> None:
    served.script("submit", Generation(after=60))
    request_id = submitted()
    ran = flux_klein("status", request_id)
    assert ran.code == 0
    assert ran.out.startswith(f"{request_id}: in_")
    [record] = flux_klein("status", request_id, "--json").records
    assert list(record) == ["request_id", "state", "queue_position", "instance_id", "error"]
    assert record["request_id"] == request_id
    served.script("status", Reply(200, {"status": "TIMED\x1b_OUT"}))
    assert flux_klein("status", request_id).out == f"{request_id}: unknown (TIMED\\x1b_OUT)\n"


def test_result_prints_urls_or_saves_files(served: Emulator, flux_klein: Command) -> None:
    request_id = submitted(until_done=True)
    ran = flux_klein("result", request_id)
    assert ran.out.startswith(served.base_url)
    saved = flux_klein("result", request_id, "--output-dir", "here")
    assert Path(saved.out.strip()) == Path(f"here/{request_id}.png")
    [record] = flux_klein("result", "--json", request_id, "--output-dir", "here").records
    data = Path(saved.out.strip()).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert record["files"] == [{"path": f"here/{request_id}.png", "sha256": digest, "size": len(data)}]
    assert record["error"] is None


def test_a_journal_that_knows_the_request_learns_its_result(
    served: Emulator, flux_klein: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.sqlite"

    async def submit() -> str:
        async with SqliteJournal(path) as journal, FluxKleinClient(journal=journal) as client:
            return (await client.submit("x", width=64, height=64)).request_id

    request_id, where = asyncio.run(submit()), ("--journal", str(path))
    fetch = ("result", request_id, "--wait", "5", "--output-dir", "here", *where)
    monkeypatch.setenv("RUNCOMFY_API_TOKEN", "another")
    ran = flux_klein(*fetch)
    assert (ran.code, f"knows no request {request_id} of this token and service" in ran.err) == (65, True)
    monkeypatch.setenv("RUNCOMFY_API_TOKEN", TOKEN)
    assert flux_klein(*fetch).code == 0
    [known] = flux_klein("journal", "export", *where).records
    assert (known["state"], known["cost_usd"], len(known["files"])) == ("downloaded", 0.01, 1)


def test_result_makes_no_journal_and_adds_no_request_to_one(
    served: Emulator, flux_klein: Command, tmp_path: Path
) -> None:
    request_id, path = submitted(until_done=True), tmp_path / "run.sqlite"
    ran = flux_klein("result", request_id, "--json", "--journal", str(path))
    assert (ran.code, ran.records[0]["error"]["type"], path.exists()) == (65, "InvalidInputError", False)
    Run(path).close()
    ran = flux_klein("result", request_id, "--journal", str(path))
    assert (ran.code, f"knows no request {request_id}" in ran.err) == (65, True)
    assert flux_klein("journal", "export", "--journal", str(path)).out == ""


def test_result_before_the_end_is_75_unless_it_waits(served: Emulator, flux_klein: Command) -> None:
    served.script("submit", Generation(after=0.2))
    request_id = submitted()
    early = flux_klein("result", request_id, "--json")
    assert early.code == 75
    assert early.records[0]["error"]["type"] == "ResultNotReadyError"
    assert "not ready" in early.err
    assert flux_klein("result", request_id, "--wait", "5").code == 0


def test_a_wait_for_an_id_that_does_not_exist_says_once_that_it_is_not_found(
    served: Emulator, flux_klein: Command
) -> None:
    ran = flux_klein("result", "no-such-id", "--wait", "0.3")
    assert (ran.code, ran.err.count("no-such-id"), ran.err.count("request")) == (65, 1, 3)
    assert "may still finish" not in ran.err
    assert served.calls["status"] > 0


def test_cancel_says_whether_it_could(served: Emulator, flux_klein: Command) -> None:
    request_id = submitted(until_done=True)
    ran = flux_klein("cancel", request_id)
    assert ran.code == 1
    assert "not cancelled" in ran.out
    assert flux_klein("cancel", request_id, "--json").records[0]["cancelled"] is False
    served.script("cancel", Reply(200, {"request_id": request_id, "status": "cancelled", "outcome": "cancelled"}))
    ran = flux_klein("cancel", request_id)
    assert (ran.code, ran.out) == (0, f"{request_id}: cancelled, it will not run\n")


@pytest.mark.parametrize("command", ["status", "result"])
@pytest.mark.parametrize(
    ("status", "error_code", "code"),
    [(401, 401001, 77), (403, 403001, 77), (404, 404001, 65), (500, 500001, 69), (429, None, 75)],
)
def test_refusals_have_their_codes(
    served: Emulator, flux_klein: Command, command: str, status: int, error_code: int | None, code: int
) -> None:
    served.fault(command, error_reply(status, error_code, retry_after=300), probability=1)
    ran = flux_klein(command, "abc", "--json")
    assert ran.code == code
    assert ran.records[0]["error"]["charged"] in {"no", "unknown"}
    assert "abc" in ran.err


EVIL = "a\r\nforged\x1b[2J\x9b31m\u2028\u202eb"
SAFE = r"a\r\nforged\x1b[2J\x9b31m\u2028\u202eb"


def test_no_command_prints_a_strangers_text_as_it_is_into_a_pipe(served: Emulator, flux_klein: Command) -> None:
    """Nor to a terminal. JSON has its own escapes."""
    url = f"https://files.runcomfy.net/{EVIL}.png"
    answer = {"request_id": "r-1", "status": "completed", "output": {"images": [url]}}
    entry = {"model_id": EVIL, "base_price_usd": 0.01, "price_unit": EVIL, "pricing_note": EVIL}
    served.fault("result", Reply(200, answer), probability=1)
    served.fault("status", error_reply(404, 404001, EVIL), probability=1)
    served.fault("cancel", Reply(200, EVIL), probability=1)
    schema = {"properties": {EVIL: {"type": EVIL, "enum": [EVIL], "default": EVIL}}}
    served.fault("model", Reply(200, {**entry, "input_schema": schema}), probability=1)
    served.fault("models", Reply(200, {"models": [{**entry, "categories": [EVIL]}], "total": 1}), probability=1)
    for arguments in (
        *(("result", "r-1"), ("status", "r-1"), ("cancel", "r-1"), ("doctor",)),
        *(("models",), ("models", "show", "a/b")),
    ):
        ran = flux_klein(*arguments)
        shown = ran.out + ran.err
        assert "forged" in shown, arguments
        assert not any(line.startswith("forged") for line in shown.splitlines()), arguments
        assert not set(shown) & set("\r\x1b\x9b\u2028\u202e"), arguments
    assert flux_klein("result", "r-1").out == f"https://files.runcomfy.net/{SAFE}.png\n"
    [listed] = flux_klein("models", "--json").records
    assert listed["categories"] == [EVIL]
    [record] = flux_klein("models", "show", "a/b", "--json").records
    assert record["pricing_note"] == record["input_fields"][0]["name"] == EVIL


@pytest.mark.parametrize(
    ("price", "unit", "words"),
    [
        (0.01, "output", "$0.01 per output"),
        (0.1, "Output ", "$0.10 per Output "),
        (0.0, "output", "$0.00 per output"),
        (0.125, "output", "$0.125 per output"),
        (1e-7, "output", "$0.0000001 per output"),
        (100.0, "output", "$100.00 per output"),
        (0.05, None, "$0.05, unit unknown"),
        (None, "output", "unknown price per output"),
        (None, None, "unknown price, unit unknown"),
    ],
)
def test_a_price_is_named_with_its_unit(price: float | None, unit: str | None, words: str) -> None:
    assert per_unit(ModelInfo(model_id="a/b", base_price_usd=price, price_unit=unit)) == words


def test_the_catalogue_is_a_table(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("models", "flux edit", "--category", "image-to-image")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "id                                 does            price   unit",
        "blackforestlabs/flux-2/dev/edit    image-to-image  $0.025  output",
        "blackforestlabs/flux-2/pro/edit    image-to-image  $0.045  megapixel",
        "blackforestlabs/flux-2/flex/edit   image-to-image  $0.06   megapixel",
        "blackforestlabs/flux-2/flash/edit  image-to-image  $0.015  output",
    ]
    assert [line.split()[0] for line in flux_klein("models").out.splitlines()[1:]] == list(MODELS)
    assert {record.endpoint for record in served.records} == {"models"}, "nothing is submitted"


@pytest.mark.parametrize("arguments", [("show", "x"), ("--", "show"), ("--category", "x", "show"), ("sho",)])
def test_a_search_for_the_word_show_goes_after_two_dashes(
    served: Emulator, flux_klein: Command, arguments: tuple[str, ...]
) -> None:
    ran = flux_klein("models", *arguments)
    [record] = served.records
    if arguments[0] == "show":
        assert (ran.code, record.endpoint) == (65, "model")
        return
    assert (ran.code, ran.out, ran.err) == (0, "", "No model of the catalogue matches.\n")
    assert record.query["search"] == arguments[-1]
    assert flux_klein("models", "--json", *arguments).records == []


def test_a_model_is_shown_with_price_and_fields(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("models", "show", CLIP)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        CLIP,
        "name    Emulated clip",
        "does    image-to-video",
        "price   $0.08 per second",
        "note    The emulator's own price: nothing is charged.",
        "",
        "field         type        range            default  required",
        "prompt        string                                yes",
        "image_url     image file  at most 6 MiB             yes",
        "duration      number      1 to 10.5        5",
        "aspect_ratio  string      16:9, 9:16, 1:1  16:9",
    ]
    for entry, words in (
        ({}, "does not say which fields"),
        ({"input_schema": {"properties": {}}}, "names no field"),
        ({"base_price_usd": "0.01"}, "unknown price, unit unknown"),
    ):
        served.script("model", Reply(200, {"model_id": EDIT, **entry}))
        assert words in flux_klein("models", "show", EDIT).out


def test_json_has_every_fact(served: Emulator, flux_klein: Command) -> None:
    [listed] = flux_klein("models", "dev", "--json").records
    facts = {
        "model_id": EDIT,
        "display_name": "FLUX.2 [dev] Edit",
        "categories": ["image-to-image"],
        "base_price_usd": 0.025,
        "price_unit": "output",
        "pricing_note": "The emulator's own price: nothing is charged.",
        "error": None,
    }
    assert listed == facts
    [shown] = flux_klein("models", "show", EDIT, "--json").records
    assert set(shown.pop("input_schema")) == {"type", "properties", "required"}
    fields = {field["name"]: field for field in shown.pop("input_fields")}
    assert shown == facts
    assert (fields["image_urls"]["file"], fields["image_urls"]["many"]) == ("image", True)
    assert fields["seed"]["minimum"] == 0


def test_an_error_is_a_record_too(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("models", "show", "no/such", "--json")
    assert (ran.code, ran.records[0]["model_id"]) == (65, "no/such")
    assert ran.records[0]["error"]["type"] == "NotFoundError"
    assert "Unknown model 'no/such'" in ran.err
    served.script("models", error_reply(422, 422001))
    ran = flux_klein("models", "cat", "--json")
    assert (ran.code, ran.records[0]["search"], ran.records[0]["category"]) == (65, "cat", None)
    assert ran.records[0]["error"]["type"] == "InputRejectedError"
