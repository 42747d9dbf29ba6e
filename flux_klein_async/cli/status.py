"""`flux-klein status`, `result` and `cancel`: one request, named by its id."""

import asyncio
import hashlib
from pathlib import Path

from flux_klein_async.batch.manifest import file_facts, result_facts
from flux_klein_async.cli import connect
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import shortened
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.models import RequestState, SavedFile, brief_url, missing_files, without_file

__all__ = ["cancel", "result", "status"]

_WORD = 40  # characters of a state that nobody documented


def status(*, request_id: str, as_json: bool, emulator: bool, base_url: str | None) -> ExitCode:
    """Print the state of a request."""

    async def ask(client: FluxKleinClient) -> connect.Answer:
        found = await client.status(request_id)
        facts = {"request_id": found.request_id, "state": found.state.value, "queue_position": found.queue_position}
        place = f", position {found.queue_position}" if found.queue_position is not None else ""
        record = {**facts, "instance_id": found.instance_id, "error": None}
        unknown = found.state is RequestState.UNKNOWN
        word = f" ({shortened(str(found.raw['status']), _WORD)})" if unknown else ""
        return ExitCode.OK, record, [f"{found.request_id}: {found.state.value}{word}{place}"]

    return connect.answer(ask, base_url, emulator=emulator, as_json=as_json, subject={"request_id": request_id})


def result(
    *,
    request_id: str,
    output_dir: Path | None,
    wait: float,
    file_host: list[str],
    as_json: bool,
    emulator: bool,
    base_url: str | None,
) -> ExitCode:
    """Print the URLs of a request's files, or save them."""

    async def ask(client: FluxKleinClient) -> connect.Answer:
        waiting = client.wait_for_result(request_id, timeout=wait) if wait > 0 else client.result(request_id)
        found = await waiting
        if not found.urls:
            raise without_file(found)
        paths = await client.download(found, output_dir) if output_dir is not None else []
        files = [file_facts(await asyncio.to_thread(_saved, path)) for path in paths]
        if found.missing:
            notes.append(missing_files(found))
        record = {**result_facts(found), "files": files, "error": None}
        return ExitCode.OK, record, paths or [brief_url(url) for url in found.urls]

    notes: list[str] = []
    subject = {"request_id": request_id}
    return connect.answer(
        ask,
        base_url,
        emulator=emulator,
        as_json=as_json,
        subject=subject,
        waits=wait > 0,
        notes=notes,
        file_hosts=file_host,
    )


def _saved(path: Path) -> SavedFile:
    with path.open("rb") as file:
        return SavedFile(path=path, sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=file.tell())


def cancel(*, request_id: str, as_json: bool, emulator: bool, base_url: str | None) -> ExitCode:
    """Cancel a request that is still queued; one that has started is exit code 1."""

    async def ask(client: FluxKleinClient) -> connect.Answer:
        found = await client.cancel(request_id)
        record = {"request_id": found.request_id, "cancelled": found.cancelled, "state": found.state.value}
        words = "cancelled, it will not run" if found.cancelled else "not cancelled, it has started or ended"
        code = ExitCode.OK if found.cancelled else ExitCode.OTHER
        return code, {**record, "error": None}, [f"{found.request_id}: {words}"]

    return connect.answer(ask, base_url, emulator=emulator, as_json=as_json, subject={"request_id": request_id})
