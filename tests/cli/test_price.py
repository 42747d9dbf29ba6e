"""`flux-klein price`: a price that is not known is neither free nor a success."""

import pytest

from flux_klein_async import ModelInfo
from flux_klein_async.cli.price import per_unit
from flux_klein_async.emulator import Emulator, Reply

from .helpers import Command

KLEIN = "blackforestlabs/flux-2-klein/4b/text-to-image"


@pytest.mark.parametrize(
    ("price", "unit", "words"),
    [
        (0.01, "output", "$0.01 per output"),
        (0.1, "Output ", "$0.10 per Output "),
        (0.0, "output", "$0.00 per output"),
        (0.125, "output", "$0.125 per output"),
        (1e-7, "output", "$0.0000001 per output"),
        (100.0, "output", "$100.00 per output"),
        (0.05, None, "$0.05, unit unknown"),
        (None, "output", "unknown price per output"),
        (None, None, "unknown price, unit unknown"),
    ],
)
def test_a_price_is_named_with_its_unit(price: float | None, unit: str | None, words: str) -> None:
    assert per_unit(ModelInfo(model_id="a/b", base_price_usd=price, price_unit=unit)) == words


def test_the_price_and_what_many_would_cost(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("price", "--count", "500")
    assert ran.code == 0
    first, *_, last = ran.out.splitlines()
    assert first == f"{KLEIN}: $0.01 per output"
    assert last == "500 generations would cost: $5.00"
    assert "would cost" not in flux_klein("price").out
    assert "\n1 generation would cost: $0.01\n" in flux_klein("price", "--count", "1").out
    assert {record.endpoint for record in served.records} == {"model"}, "nothing is submitted"


def test_json_has_every_fact(served: Emulator, flux_klein: Command) -> None:
    assert "Note: The emulator's own price" in flux_klein("price").out
    [record] = flux_klein("price", "--json", "--count", "3").records
    assert record == {
        "model": KLEIN,
        "display_name": "FLUX.2 [klein] 4B",
        "note": "The emulator's own price: nothing is charged.",
        "price_usd": 0.01,
        "price_unit": "output",
        "count": 3,
        "total_usd": 0.03,
        "error": None,
    }
    assert flux_klein("price", "--json").records[0]["total_usd"] is None


@pytest.mark.parametrize("entry", [{}, {"base_price_usd": "0.01"}, {"base_price_usd": 0.01, "price_unit": "second"}])
def test_what_is_not_known_is_no_zero_and_no_success(served: Emulator, flux_klein: Command, entry: object) -> None:
    assert isinstance(entry, dict)
    served.fault("model", Reply(200, {"model_id": KLEIN, **entry}), probability=1)
    ran = flux_klein("price", "--count", "2")
    assert ran.code == 1
    assert "2 generations would cost: unknown" in ran.out
    assert flux_klein("price", "--count", "2", "--json").records[0]["total_usd"] is None


def test_another_model_is_asked_for_by_its_id(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("price", "--model", "emulator/any/text-to-video")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "emulator/any/text-to-video: $0.05 per second")
    ran = flux_klein("price", "--model", "no/such", "--json")
    assert (ran.code, ran.records[0]["model"]) == (65, "no/such")
    assert ran.records[0]["error"]["type"] == "NotFoundError"
    assert "Unknown model 'no/such'" in ran.err
