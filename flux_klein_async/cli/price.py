"""`flux-klein price`: what a model costs, by its catalogue entry. A missing price is unknown, never free."""

from decimal import Decimal
from typing import Annotated

import typer

from flux_klein_async.cli import connect
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.journal.budget import dollars, generation_price
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE, ModelInfo

__all__ = ["per_unit", "price"]


def per_unit(info: ModelInfo) -> str:
    """The price and its unit, in words."""
    amount = "unknown price" if info.base_price_usd is None else dollars(Decimal(str(info.base_price_usd)))
    return f"{amount} per {info.price_unit}" if info.price_unit else f"{amount}, unit unknown"


def price(
    *,
    model: connect.ModelId = KLEIN_4B_TEXT_TO_IMAGE,
    count: Annotated[int | None, typer.Option(min=1, help="Also print the cost of N generations.", metavar="N")] = None,
    as_json: connect.AsJson = False,
    emulator: connect.Emulated = False,
    base_url: connect.BaseUrl = None,
) -> None:
    """Print what a model costs.

    The price is that of the model's catalogue entry. If the entry names no price or unit, the cost is unknown, not
    free, and the exit code is 1. Nothing is submitted.

    \b
    Examples:
      flux-klein price
      flux-klein price --count 500
      flux-klein price --json --model blackforestlabs/flux-2-klein/9b/text-to-image
    """  # noqa: D301  # \b: what follows is not to be wrapped

    async def ask(client: FluxKleinClient) -> connect.Answer:
        info = await client.get_model(model)
        each = generation_price(info)
        total = None if each is None or count is None else each * count
        lines = [f"{info.model_id}: {per_unit(info)}"] + ([f"Note: {info.pricing_note}"] if info.pricing_note else [])
        if count is not None:
            known = "unknown, the catalogue does not say it" if total is None else dollars(total)
            lines.append(f"{count} generation{'s' if count > 1 else ''} would cost: {known}")
        record = {
            "model": info.model_id,
            "display_name": info.display_name,
            "price_usd": info.base_price_usd,
            "price_unit": info.price_unit,
            "note": info.pricing_note,
            "count": count,
            "total_usd": None if total is None else float(total),
            "error": None,
        }
        answer = info.base_price_usd if count is None else total
        return ExitCode.OTHER if answer is None else ExitCode.OK, record, lines

    raise connect.answer(ask, base_url, emulator=emulator, as_json=as_json, subject={"model": model})
