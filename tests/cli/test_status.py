import asyncio
import hashlib
from pathlib import Path

import pytest

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import Emulator, Generation, Reply, error_reply

from .helpers import Command


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
