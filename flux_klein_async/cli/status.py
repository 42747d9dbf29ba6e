"""`flux-klein status`, `result` and `cancel`: one request, named by its id."""

import asyncio
import hashlib
from pathlib import Path
from typing import Annotated

import typer

from flux_klein_async.batch.manifest import file_facts, result_facts
from flux_klein_async.cli import connect
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import shortened
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.models import RequestState, SavedFile, brief_url, missing_files, without_file

__all__ = ["cancel", "result", "status"]

_WORD = 40  # characters of a state that nobody documented

RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id.")]


def status(
    request_id: RequestId,
    as_json: connect.AsJson = False,
    emulator: connect.Emulated = False,
    base_url: connect.BaseUrl = None,
) -> None:
    """Print the state of a request.

    \b
    Examples:
      flux-klein status ID
      flux-klein status ID --json
    """  # noqa: D301  # \b: what follows is not to be wrapped

    async def ask(client: FluxKleinClient) -> connect.Answer:
        found = await client.status(request_id)
        facts = {"request_id": found.request_id, "state": found.state.value, "queue_position": found.queue_position}
        place = f", position {found.queue_position}" if found.queue_position is not None else ""
        record = {**facts, "instance_id": found.instance_id, "error": None}
        unknown = found.state is RequestState.UNKNOWN
        word = f" ({shortened(str(found.raw['status']), _WORD)})" if unknown else ""
        return ExitCode.OK, record, [f"{found.request_id}: {found.state.value}{word}{place}"]

    raise connect.answer(ask, base_url, emulator=emulator, as_json=as_json, subject={"request_id": request_id})


def result(
    request_id: RequestId,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Save the files here.", metavar="DIR", callback=connect.at_home),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until the request ends.", metavar="S")] = 0.0,
    file_host: connect.FileHosts = [],  # noqa: B006  # typer copies it
    as_json: connect.AsJson = False,
    emulator: connect.Emulated = False,
    base_url: connect.BaseUrl = None,
) -> None:
    """Print the URLs of a request's files, or save them.

    \b
    Examples:
      flux-klein result ID --output-dir out
      flux-klein result ID --wait 60 --json
    """  # noqa: D301  # \b: what follows is not to be wrapped

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
    raise connect.answer(
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


def cancel(
    request_id: RequestId,
    as_json: connect.AsJson = False,
    emulator: connect.Emulated = False,
    base_url: connect.BaseUrl = None,
) -> None:
    """Cancel a request that is still queued.

    A running request continues and is charged; the exit code is then 1.

    \b
    Examples:
      flux-klein cancel ID
      flux-klein cancel ID --json
    """  # noqa: D301  # \b: what follows is not to be wrapped

    async def ask(client: FluxKleinClient) -> connect.Answer:
        found = await client.cancel(request_id)
        record = {"request_id": found.request_id, "cancelled": found.cancelled, "state": found.state.value}
        words = "cancelled, it will not run" if found.cancelled else "not cancelled, it has started or ended"
        code = ExitCode.OK if found.cancelled else ExitCode.OTHER
        return code, {**record, "error": None}, [f"{found.request_id}: {words}"]

    raise connect.answer(ask, base_url, emulator=emulator, as_json=as_json, subject={"request_id": request_id})
