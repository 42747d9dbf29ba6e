"""`flux-klein models`: the service's catalogue, what a model costs and which fields it takes."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flux_klein_async.batch.manifest import Record
from flux_klein_async.cli import connect
from flux_klein_async.cli.exit_codes import HELP, ExitCode
from flux_klein_async.cli.output import Screen, shortened
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.journal.budget import dollars
from flux_klein_async.models import ModelInfo
from flux_klein_async.schema import InputField

__all__ = ["app", "per_unit"]

_ID, _CELL = 256, 120  # characters: ids are never cut, since they are copied

app = typer.Typer(rich_markup_mode=None)


class SearchOrCommand(TyperGroup):
    """Takes a search with its options, or one of its commands as the first word."""

    def get_params(self, ctx: Any) -> list[Any]:
        """List the parameters; the usage of a command below has no SEARCH before its name."""
        return [param for param in super().get_params(ctx) if ctx.command is self or param.name != "search"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; after `--`, a command's name is a search too."""
        if args and args[0] in self.commands:
            return list(super().parse_args(ctx, ["", *args]))
        ctx.allow_interspersed_args, ctx.allow_extra_args = True, False
        return list(super().parse_args(ctx, args))


def _commands(typed: str) -> list[str]:
    """Shell completion of the first word."""
    return [name for name in ("show",) if name.startswith(typed)]


@app.callback(cls=SearchOrCommand, invoke_without_command=True, subcommand_metavar="| show ID")
def models(
    context: typer.Context,
    search: Annotated[
        str, typer.Argument(metavar="SEARCH", help="What ids and names contain.", autocompletion=_commands)
    ] = "",
    *,
    category: Annotated[str | None, typer.Option(help="Only these, such as text-to-image.", metavar="NAME")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each model.")] = False,
    emulator: connect.Emulated = False,
    base_url: connect.BaseUrl = None,
) -> None:
    """List the models of the service, with what they do and cost.

    A missing price is unknown, not free. Nothing is submitted.

    \b
    Examples:
      flux-klein models
      flux-klein models "flux edit"
      flux-klein models --category image-to-video --json
      flux-klein models show blackforestlabs/flux-2/dev/edit
      flux-klein models -- show          # searches for the word "show"
    """  # noqa: D301  # \b: what follows is not to be wrapped
    if context.invoked_subcommand is not None:
        return

    async def ask(client: FluxKleinClient) -> connect.Answer:
        found = [model async for model in client.list_models(search=search, category=category)]
        if not found:
            Screen().note("No model of the catalogue matches.")
        return ExitCode.OK, [{**_facts(info), "error": None} for info in found], list(_list(found))

    subject = {"search": search or None, "category": category}
    raise connect.answer(ask, base_url, emulator=emulator, as_json=as_json, subject=subject)


@app.command(epilog=HELP)
def show(
    model: Annotated[str, typer.Argument(metavar="ID", help="The model's id.", autocompletion=connect.known_models)],
    *,
    as_json: connect.AsJson = False,
    emulator: connect.Emulated = False,
    base_url: connect.BaseUrl = None,
) -> None:
    """Show a model's price and the fields of its input.

    A missing price is unknown, not free. Nothing is submitted.

    \b
    Examples:
      flux-klein models show blackforestlabs/flux-2-klein/4b/text-to-image
      flux-klein models show blackforestlabs/flux-2/dev/edit --json
    """  # noqa: D301  # \b: what follows is not to be wrapped

    async def ask(client: FluxKleinClient) -> connect.Answer:
        info = await client.get_model(model)
        fields = info.input_fields
        told = [{name: fact for name, fact in asdict(field).items() if name != "schema"} for field in fields]
        record = {**_facts(info), "input_fields": told, "input_schema": info.input_schema, "error": None}
        return ExitCode.OK, record, list(_details(info, fields))

    raise connect.answer(ask, base_url, emulator=emulator, as_json=as_json, subject={"model_id": model})


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
