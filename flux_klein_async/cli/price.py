"""`flux-klein price`: what a model costs, by its catalogue entry. A missing price is unknown, never free."""

from decimal import Decimal
from typing import Annotated

import typer

from flux_klein_async.batch.manifest import Record, error_facts, json_line
from flux_klein_async.cli import connect, stopping
from flux_klein_async.cli.exits import ExitCode, exit_code
from flux_klein_async.cli.output import Screen
from flux_klein_async.cli.parameters import BaseUrl, ModelId
from flux_klein_async.errors import FluxKleinError
from flux_klein_async.journal.budget import dollars, generation_price
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE, ModelInfo

__all__ = ["per_unit", "price", "total"]


def total(info: ModelInfo, count: int) -> Decimal | None:
    """USD for `count` generations of one output each; None if price or unit do not tell."""
    usd = generation_price(info)
    return None if usd is None else usd * count


def per_unit(info: ModelInfo) -> str:
    """The price and its unit, in words."""
    amount = "unknown price" if info.base_price_usd is None else dollars(Decimal(str(info.base_price_usd)))
    return f"{amount} per {info.price_unit}" if info.price_unit else f"{amount}, unit unknown"


def _lines(info: ModelInfo, count: int | None) -> list[str]:
    lines = [f"{info.model_id}: {per_unit(info)}"]
    if info.pricing_note:
        lines.append(f"Note: {info.pricing_note}")
    if count is not None:
        cost = total(info, count)
        known = "unknown, the catalogue does not say it" if cost is None else dollars(cost)
        lines.append(f"{count} generation{'s' if count > 1 else ''} would cost: {known}")
    return lines


def _record(info: ModelInfo, count: int | None) -> Record:
    cost = total(info, count) if count is not None else None
    return {
        "model": info.model_id,
        "display_name": info.display_name,
        "price_usd": info.base_price_usd,
        "price_unit": info.price_unit,
        "note": info.pricing_note,
        "count": count,
        "total_usd": None if cost is None else float(cost),
        "error": None,
    }


def price(
    *,
    model: ModelId = KLEIN_4B_TEXT_TO_IMAGE,
    count: Annotated[int | None, typer.Option(min=1, help="Also print the cost of N generations.", metavar="N")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    base_url: BaseUrl = None,
) -> None:
    """Print what a model costs.

    The price is that of the model's catalogue entry. If the entry names no price or unit, the cost is unknown, not
    free. Nothing is submitted.

    \b
    Examples:
      flux-klein price
      flux-klein price --count 500
      flux-klein price --model blackforestlabs/flux-2-klein/9b/text-to-image --json

    \b
    Exit codes:
      0 price known    1 price unknown    others as for generate
    """  # noqa: D301  # \b: what follows is not to be wrapped
    screen = Screen()

    async def body(stop: stopping.Stop) -> ExitCode:
        screen.when_reader_gone(lambda: stop.because(ExitCode.READER_GONE))
        try:
            async with connect.build_client((base_url, None), model=model) as client:
                info = await client.get_model()
        except FluxKleinError as error:
            screen.note(str(error))
            if as_json:
                screen.out(json_line({"model": model, "error": error_facts(error)}))
            return exit_code(error)
        for line in [json_line(_record(info, count))] if as_json else _lines(info, count):
            screen.out(line)
        known = info.base_price_usd is not None if count is None else total(info, count) is not None
        return ExitCode.OK if known else ExitCode.OTHER

    raise typer.Exit(stopping.run(body))
