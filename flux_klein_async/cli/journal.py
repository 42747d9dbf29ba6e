"""`flux-klein journal`: reads or prunes a journal. Calls no service, needs no token."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import Any

from flux_klein_async.api.outputs import is_inline
from flux_klein_async.batch.manifest import Record, file_facts, json_line
from flux_klein_async.cli import connect
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen, table
from flux_klein_async.errors import InvalidInputError
from flux_klein_async.journal.budget import dollars
from flux_klein_async.journal.reader import JournaledRequest, JournalReader, locate
from flux_klein_async.journal.reader import prune as delete
from flux_klein_async.journal.sql import Location
from flux_klein_async.journal.states import EntryState
from flux_klein_async.journal.writer import EMULATED_TOKEN
from flux_klein_async.models import brief_url
from flux_klein_async.text import clipped, cut, shown

__all__ = ["check", "export", "list_requests", "prune", "show"]

_DAY = 24 * 60 * 60.0
_ID_COLUMN = 4  # left out where no item has an id
_LONGEST_ID = 40  # characters of an item's id in a table
_WIDTH = 120  # columns, where stdout is not a terminal


def _place(journal: str | None) -> Location:
    # Unless one is named, as `batch` has it.
    place = connect.existing(locate(Path("out", "journal.sqlite")) if journal is None else connect.journal(journal))
    if journal is None:
        Screen().note(f"Journal: {place}")
    return place


def list_requests(
    *, journal: str | None, state: list[EntryState] | None, since: datetime | None, limit: int, as_json: bool
) -> ExitCode:
    """List requests, the newest first."""
    screen = Screen()
    with JournalReader(_place(journal)) as reader:
        chosen: dict[str, Any] = {"states": state or (), "since": _instant(since)}
        found = reader.requests(**chosen, limit=limit)
        for line in (json_line(_record(request)) for request in found) if as_json else _table(found):
            screen.out(line)
        screen.note(_summary(reader, chosen))
    return ExitCode.OK


def show(*, request_id: str, journal: str | None, as_json: bool) -> ExitCode:
    """Show one request, or those of one item, in full."""
    screen = Screen()
    with JournalReader(_place(journal)) as reader:
        found = list(reader.requests(request_id=request_id)) or list(reader.requests(item_id=request_id))
    if not found:
        raise InvalidInputError(f"The journal knows no request or line with the id {clipped(request_id, 100)}")
    for request in found:
        for line in [json_line(_record(request))] if as_json else _lines(request):
            screen.out(line)
    return ExitCode.OK


def check(*, journal: str | None) -> ExitCode:
    """Check the whole file for damage."""
    place = _place(journal)
    with JournalReader(place) as reader:
        reader.check()
    Screen().note(f"{place} is sound.")
    return ExitCode.OK


def export(*, journal: str | None, state: list[EntryState] | None, since: datetime | None) -> ExitCode:
    """Print every request as a JSON object a line, the oldest first."""
    screen = Screen()
    with JournalReader(_place(journal)) as reader:
        for request in reader.requests(states=state or (), since=_instant(since), oldest_first=True):
            screen.out(json_line(_record(request)))
    return ExitCode.OK


def prune(*, journal: str | None, older_than: float, dry_run: bool) -> ExitCode:
    """Delete requests that ended long ago."""
    count = delete(_place(journal), time.time() - older_than * _DAY, clock=time.time, dry_run=dry_run)
    screen = Screen()
    screen.out(f"{'Would delete' if dry_run else 'Deleted'} {count} request{'' if count == 1 else 's'}")
    if count:
        screen.note("A later run of their lines, in another --output-dir, submits and pays for them again.")
    return ExitCode.OK


def _instant(when: datetime | None) -> float | None:
    return None if when is None else when.astimezone().timestamp()


def _record(request: JournaledRequest) -> Record:
    return {
        "number": request.number,
        "item_id": request.item_id,
        "input": request.input,
        "model": request.model,
        "request_id": request.request_id,
        "state": request.state.value,
        "files": [file_facts(file) for file in request.files],
        "cost_usd": request.cost_usd,
        "reserved_usd": request.reserved_usd,
        "error": request.error,
        "created": datetime.fromtimestamp(request.created, UTC).isoformat(),
        "updated": datetime.fromtimestamp(request.updated, UTC).isoformat(),
        "answer": _brief(request.answer),
    }


def _brief(answer: Any) -> Any:
    """An answer with the type and length of each file that it holds, in place of its bytes."""
    if isinstance(answer, dict):
        return {name: _brief(part) for name, part in answer.items()}
    if isinstance(answer, list):
        return [_brief(part) for part in answer]
    return brief_url(answer) if isinstance(answer, str) and is_inline(answer) else answer


def _lines(request: JournaledRequest) -> Iterator[str]:
    """The record, a line for each known fact, escaped even for a file."""
    for name, fact in _record(request).items():
        if fact not in (None, []):
            text = fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False, allow_nan=False)
            yield f"{name:12}  {shown(text)}"


def _table(requests: Iterable[JournaledRequest]) -> Iterator[str]:
    """A line for each request; the prompt takes the rest of it."""
    rows = [
        (
            _time(request.created),
            request.state.value,
            "" if request.cost_usd is None else dollars(request.cost_usd),
            request.request_id or "",
            "" if request.item_id is None else cut(request.item_id, _LONGEST_ID),
            request.prompt or "",
        )
        for request in requests
    ]
    named = [("created", "state", "cost", "request", "id", "prompt"), *rows] if rows else []
    kept = [number != _ID_COLUMN or any(row[number] for row in rows) for number in range(6)]
    line = shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH
    return table([tuple(compress(row, kept)) for row in named], line)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%m-%d %H:%M")


def _summary(reader: JournalReader, chosen: dict[str, Any]) -> str:
    """What the chosen requests come to; of a whole journal, what was pruned counts too."""
    sums = reader.sums(**chosen, free_token=EMULATED_TOKEN)
    total, pruned, whole = sum(sums.counts.values()), sums.pruned_usd, not any(chosen.values())
    unpaid = {
        EntryState.REPEATED: " (refused for now, and submitted again: not charged)",
        EntryState.REFUSED: " (not accepted, or never sent: not charged)",
    }
    return (
        f"{total} request{'' if total == 1 else 's'}: "
        + (", ".join(f"{count} {state}{unpaid.get(state, '')}" for state, count in sums.counts.items()) or "none")
        + f"; {dollars(sums.spent_usd + pruned if whole else sums.spent_usd)} spent"
        + (f", {dollars(pruned)} of it for pruned requests" if pruned and whole else "")
        + (f", {dollars(sums.reserved_usd)} reserved" if sums.reserved_usd else "")
        + (f"; {sums.unpriced} of unknown cost" if sums.unpriced else "")
        + (f"; not counted: {dollars(pruned)} for pruned requests, of any time" if pruned and not whole else "")
        + (f"; not charged: {dollars(sums.free_usd)} for placeholders of the emulator" if sums.free_usd else "")
    )
