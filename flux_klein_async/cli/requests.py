"""`flux-klein status`, `result` and `cancel`: one request, named by its id."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from flux_klein_async.batch.manifest import Record, error_facts, json_line, result_facts
from flux_klein_async.cli import connect, stopping
from flux_klein_async.cli.exits import ExitCode, exit_code
from flux_klein_async.cli.output import Screen
from flux_klein_async.cli.parameters import BaseUrl
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import FluxKleinError

__all__ = ["cancel", "result", "status"]

_Answer = tuple[ExitCode, Record, list[str]]  # exit code, what --json prints, the lines without it
_Ask = Callable[[FluxKleinClient], Awaitable[_Answer]]

RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _answer(request_id: str, base_url: str | None, ask: _Ask, *, as_json: bool, waits: bool = False) -> typer.Exit:
    """Ask, print the answer or the error, and return the exit. A command that waits stores what it learns."""
    screen = Screen()

    async def body(stop: stopping.Stop) -> ExitCode:
        screen.when_reader_gone(lambda: stop.because(ExitCode.READER_GONE))
        try:
            store = connect.store_path(os.environ, base_url) if waits else None
            async with connect.build_client((base_url, None), store=store) as client:
                code, record, lines = await ask(client)
        except FluxKleinError as error:
            code, record, lines = exit_code(error), {"request_id": request_id, "error": error_facts(error)}, []
            screen.note(str(error))
        for line in [json_line(record)] if as_json else lines:
            screen.out(line)
        return code

    return typer.Exit(stopping.run(body))


def status(request_id: RequestId, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Print the state of a request.

    \b
    Examples:
      flux-klein status ID
      flux-klein status ID --json
    """  # noqa: D301  # \b: what follows is not to be wrapped

    async def ask(client: FluxKleinClient) -> _Answer:
        status = await client.status(request_id)
        record = {
            "request_id": status.request_id,
            "state": status.state.value,
            "queue_position": status.queue_position,
            "instance_id": status.instance_id,
            "error": None,
        }
        place = f", position {status.queue_position}" if status.queue_position is not None else ""
        return ExitCode.OK, record, [f"{status.request_id}: {status.state.value}{place}"]

    raise _answer(request_id, base_url, ask, as_json=as_json)


def result(
    request_id: RequestId,
    output_dir: Annotated[
        Path | None, typer.Option(help="Save the files here and print their paths.", metavar="DIR")
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until the request ends.", metavar="S")] = 0.0,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Print the URLs of a request's files, or save them.

    \b
    Examples:
      flux-klein result ID --output-dir out
      flux-klein result ID --wait 60 --json
    """  # noqa: D301  # \b: what follows is not to be wrapped

    async def ask(client: FluxKleinClient) -> _Answer:
        waiting = client.wait_for_result(request_id, timeout=wait) if wait > 0 else client.result(request_id)
        found = await waiting
        paths = await client.download(found, output_dir) if output_dir is not None else []
        files = [str(path) for path in paths]
        return ExitCode.OK, {**result_facts(found), "files": files, "error": None}, files or found.urls

    raise _answer(request_id, base_url, ask, as_json=as_json, waits=wait > 0)


def cancel(request_id: RequestId, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Cancel a request that is still queued.

    A running request continues and is charged; the exit code is then 1.

    \b
    Examples:
      flux-klein cancel ID
      flux-klein cancel ID --json
    """  # noqa: D301  # \b: what follows is not to be wrapped

    async def ask(client: FluxKleinClient) -> _Answer:
        outcome = await client.cancel(request_id)
        record = {
            "request_id": outcome.request_id,
            "cancelled": outcome.cancelled,
            "state": outcome.state.value,
            "error": None,
        }
        if outcome.cancelled:
            return ExitCode.OK, record, [f"{outcome.request_id}: cancelled, it will not run"]
        return ExitCode.OTHER, record, [f"{outcome.request_id}: not cancelled, it has started or ended"]

    raise _answer(request_id, base_url, ask, as_json=as_json)
