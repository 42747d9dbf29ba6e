"""`flux-klein models`: the service's catalogue, what a model costs and which fields it takes."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from decimal import Decimal

from flux_klein_async.batch.manifest import Record
from flux_klein_async.cli import connect
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen, shortened
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.journal.budget import dollars
from flux_klein_async.models import ModelInfo
from flux_klein_async.schema import InputField

__all__ = ["models", "per_unit", "show"]

_ID, _CELL = 256, 120  # characters: ids are never cut, since they are copied


def models(*, search: str, category: str | None, as_json: bool, emulator: bool, base_url: str | None) -> ExitCode:
    """Print the models of the catalogue."""

    async def ask(client: FluxKleinClient) -> connect.Answer:
        found = [model async for model in client.list_models(search=search, category=category)]
        if not found:
            Screen().note("No model of the catalogue matches.")
        return ExitCode.OK, [{**_facts(info), "error": None} for info in found], list(_list(found))

    subject = {"search": search or None, "category": category}
    return connect.answer(ask, base_url, emulator=emulator, as_json=as_json, subject=subject)


def show(*, model: str, as_json: bool, emulator: bool, base_url: str | None) -> ExitCode:
    """Print a model's price and the fields of its input."""

    async def ask(client: FluxKleinClient) -> connect.Answer:
        info = await client.get_model(model)
        fields = info.input_fields
        told = [{name: fact for name, fact in asdict(field).items() if name != "schema"} for field in fields]
        record = {**_facts(info), "input_fields": told, "input_schema": info.input_schema, "error": None}
        return ExitCode.OK, record, list(_details(info, fields))

    return connect.answer(ask, base_url, emulator=emulator, as_json=as_json, subject={"model_id": model})


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
    rows = [
        (shortened(info.model_id, _ID), ", ".join(info.categories), _price(info), info.price_unit or "")
        for info in found
    ]
    yield from _table([("id", "does", "price", "unit"), *rows] if rows else [])


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
        yield from _table([("field", "type", "range", "default", "required"), *rows])


def _default(field: InputField) -> str:
    if field.default is None or isinstance(field.default, str):
        return field.default or ""
    return json.dumps(field.default)


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their content, which is escaped even for a file."""
    from rich.cells import cell_len  # noqa: PLC0415  # takes its time

    safe = [[row[0], *(shortened(cell, _CELL) for cell in row[1:])] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*safe, strict=True)]
    for row in safe:
        yield "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
