"""`flux-klein status`, `result`, `cancel`, `models` and `models show`: ask the service one thing, print its answer."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TypedDict, Unpack

from flux_klein_async.batch.manifest import Record, error_facts, file_facts, json_line, result_facts
from flux_klein_async.cli import connect, signals
from flux_klein_async.cli.exit_codes import ExitCode, exit_code
from flux_klein_async.cli.output import Screen, table
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import FluxKleinError, InvalidInputError
from flux_klein_async.journal.budget import dollars
from flux_klein_async.journal.writer import StoredJournal
from flux_klein_async.models import ModelInfo, RequestState, SavedFile, brief_url, missing_files, without_file
from flux_klein_async.options import Limits
from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.schema import InputField
from flux_klein_async.text import clipped

__all__ = ["cancel", "models", "per_unit", "result", "show", "status"]

_WORD = 40  # characters of a state that nobody documented
# One record or many for --json, and the lines for output without it.
Answer = tuple[ExitCode, Record | Sequence[Record], Sequence[str | Path]]


class _Options(TypedDict):
    """What all these commands take."""

    as_json: bool
    emulator: bool
    base_url: str | None


def status(*, request_id: str, **options: Unpack[_Options]) -> ExitCode:
    """Print the state of a request."""

    async def ask(client: FluxKleinClient) -> Answer:
        found = await client.status(request_id)
        facts = {"request_id": found.request_id, "state": found.state.value, "queue_position": found.queue_position}
        place = f", position {found.queue_position}" if found.queue_position is not None else ""
        record = {**facts, "instance_id": found.instance_id, "error": None}
        unknown = found.state is RequestState.UNKNOWN
        word = f" ({clipped(str(found.raw['status']), _WORD)})" if unknown else ""
        return ExitCode.OK, record, [f"{found.request_id}: {found.state.value}{word}{place}"]

    return _answer(ask, {"request_id": request_id}, **options)


def result(
    *,
    request_id: str,
    output_dir: Path | None,
    wait: float,
    file_host: list[str],
    journal: str | None,
    **options: Unpack[_Options],
) -> ExitCode:
    """Print the URLs of a request's files, or save them; a journal that knows the request learns how it ended."""

    async def ask(client: FluxKleinClient) -> Answer:
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
    return _answer(ask, subject, waits=wait > 0, notes=notes, file_hosts=file_host, journal=journal, **options)


def _saved(path: Path) -> SavedFile:
    with path.open("rb") as file:
        return SavedFile(path=path, sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=file.tell())


def cancel(*, request_id: str, **options: Unpack[_Options]) -> ExitCode:
    """Cancel a request that is still queued; one that has started is exit code 1."""

    async def ask(client: FluxKleinClient) -> Answer:
        found = await client.cancel(request_id)
        record = {"request_id": found.request_id, "cancelled": found.cancelled, "state": found.state.value}
        words = "cancelled, it will not run" if found.cancelled else "not cancelled, it has started or ended"
        code = ExitCode.OK if found.cancelled else ExitCode.OTHER
        return code, {**record, "error": None}, [f"{found.request_id}: {words}"]

    return _answer(ask, {"request_id": request_id}, **options)


# --- the catalogue


def models(*, search: str, category: str | None, **options: Unpack[_Options]) -> ExitCode:
    """Print the models of the catalogue."""

    async def ask(client: FluxKleinClient) -> Answer:
        found = [model async for model in client.list_models(search=search, category=category)]
        if not found:
            Screen().note("No model of the catalogue matches.")
        return ExitCode.OK, [{**_facts(info), "error": None} for info in found], list(_list(found))

    return _answer(ask, {"search": search or None, "category": category}, **options)


def show(*, model: str, **options: Unpack[_Options]) -> ExitCode:
    """Print a model's price and the fields of its input."""

    async def ask(client: FluxKleinClient) -> Answer:
        info = await client.get_model(model)
        fields = info.input_fields
        told = [{name: fact for name, fact in asdict(field).items() if name != "schema"} for field in fields]
        record = {**_facts(info), "input_fields": told, "input_schema": info.input_schema, "error": None}
        return ExitCode.OK, record, list(_details(info, fields))

    return _answer(ask, {"model_id": model}, **options)


def per_unit(info: ModelInfo) -> str:
    """The price and its unit, in words."""
    amount = "unknown price" if info.base_price_usd is None else _price(info)
    return f"{amount} per {info.price_unit}" if info.price_unit else f"{amount}, unit unknown"


def _price(info: ModelInfo) -> str:
    return "unknown" if info.base_price_usd is None else dollars(Decimal(str(info.base_price_usd)))


def _facts(info: ModelInfo) -> Record:
    names = ("model_id", "display_name", "categories", "base_price_usd", "price_unit", "pricing_note")
    return {name: getattr(info, name) for name in names}


def _list(found: Sequence[ModelInfo]) -> Iterator[str]:
    rows = [(info.model_id, ", ".join(info.categories), _price(info), info.price_unit or "") for info in found]
    return table([("id", "does", "price", "unit"), *rows] if rows else [])


def _details(info: ModelInfo, fields: Sequence[InputField]) -> Iterator[str]:
    yield info.model_id
    facts = {
        "name": info.display_name,
        "does": ", ".join(info.categories),
        "price": per_unit(info),
        "note": info.pricing_note,
    }
    for name, fact in facts.items():
        if fact:
            yield f"{name:6}  {fact}"
    yield ""
    if info.input_schema is None:
        yield "The catalogue does not say which fields it takes."
    elif not fields:
        yield "The catalogue names no field; any input is sent as it is."
    else:
        rows = [
            (field.name, field.type, field.range, _default(field), "yes" if field.required else "") for field in fields
        ]
        yield from table([("field", "type", "range", "default", "required"), *rows])


def _default(field: InputField) -> str:
    if field.default is None or isinstance(field.default, str):
        return field.default or ""
    return json.dumps(field.default)


# --- one answer


def _answer(
    ask: Callable[[FluxKleinClient], Awaitable[Answer]],
    subject: Record,
    *,
    as_json: bool,
    emulator: bool,
    base_url: str | None,
    waits: bool = False,
    notes: Sequence[str] = (),
    file_hosts: Sequence[str] = (),
    journal: str | None = None,
) -> ExitCode:
    """Ask the service, print the answer or the error, and return the exit code.

    The JSON of an error begins with `subject`. A call that `waits` for a generation stores what that teaches. `notes`:
    what `ask` has to say besides, for the terminal. `journal` learns what the answer says of a request that it knows.
    """

    async def body(screen: Screen, _stop: signals.Stop) -> ExitCode:
        record: Record | Sequence[Record]
        try:
            async with connect.connected(screen, base_url, emulator=emulator) as service:
                polling = AdaptivePolling(store=service.store) if waits else None
                limits = Limits(file_hosts=tuple(file_hosts))
                async with (
                    _knowing(journal, subject.get("request_id") or "", service) as kept,
                    FluxKleinClient(
                        service.token, base_url=service.base_url, polling=polling, limits=limits, journal=kept
                    ) as client,
                ):
                    code, record, lines = await ask(client)
        except FluxKleinError as error:
            connect.advise(error, subject.get("model_id") or "")
            code, record, lines = exit_code(error), {**subject, "error": error_facts(error)}, []
            screen.note(str(error))
        records = [record] if isinstance(record, dict) else record
        for line in map(json_line, records) if as_json else lines:
            screen.out(line)
        for note in notes:
            screen.note(note)
        return code

    return signals.run(body)


@asynccontextmanager
async def _knowing(
    journal: str | None, request_id: str, service: connect.Address
) -> AsyncIterator[StoredJournal | None]:
    """The journal, if it knows the request in this account: in another, its cost would count a second time.

    Raises:
        InvalidInputError: There is no journal, or it does not know the request.
        JournalError: It cannot be read or written.
    """
    if journal is None:
        yield None
        return
    place = await asyncio.to_thread(connect.existing, connect.journal(journal))
    async with StoredJournal(place) as kept:
        if not await kept.for_account(service.token, service.base_url).has_request(request_id):
            known = f"The journal {place} knows no request {clipped(request_id, 100)} of this token and service"
            raise InvalidInputError(known, request_id=request_id)
        yield kept
