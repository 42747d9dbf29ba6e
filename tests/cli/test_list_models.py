"""`flux-klein models`: the catalogue as a table, and one model with its price and fields."""

import pytest

from flux_klein_async import ModelInfo
from flux_klein_async.cli.list_models import per_unit
from flux_klein_async.emulator import Emulator, Reply, error_reply
from flux_klein_async.emulator.catalogue import MODELS

from .helpers import Command

CLIP, EDIT = "emulator/clip/image-to-video", "blackforestlabs/flux-2/dev/edit"


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


def test_the_catalogue_is_a_table(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("models", "flux edit", "--category", "image-to-image")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "id                                 does            price   unit",
        "blackforestlabs/flux-2/dev/edit    image-to-image  $0.025  output",
        "blackforestlabs/flux-2/pro/edit    image-to-image  $0.045  megapixel",
        "blackforestlabs/flux-2/flex/edit   image-to-image  $0.06   megapixel",
        "blackforestlabs/flux-2/flash/edit  image-to-image  $0.015  output",
    ]
    assert [line.split()[0] for line in flux_klein("models").out.splitlines()[1:]] == list(MODELS)
    assert {record.endpoint for record in served.records} == {"models"}, "nothing is submitted"


@pytest.mark.parametrize("arguments", [("show", "x"), ("--", "show"), ("--category", "x", "show"), ("sho",)])
def test_a_search_for_the_word_show_goes_after_two_dashes(
    served: Emulator, flux_klein: Command, arguments: tuple[str, ...]
) -> None:
    ran = flux_klein("models", *arguments)
    [record] = served.records
    if arguments[0] == "show":
        assert (ran.code, record.endpoint) == (65, "model")
        return
    assert (ran.code, ran.out, ran.err) == (0, "", "No model of the catalogue matches.\n")
    assert record.query["search"] == arguments[-1]
    assert flux_klein("models", "--json", *arguments).records == []


def test_a_model_is_shown_with_price_and_fields(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("models", "show", CLIP)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        CLIP,
        "name    Emulated clip",
        "does    image-to-video",
        "price   $0.08 per second",
        "note    The emulator's own price: nothing is charged.",
        "",
        "field         type        range            default  required",
        "prompt        string                                yes",
        "image_url     image file  at most 6 MiB             yes",
        "duration      number      1 to 10.5        5",
        "aspect_ratio  string      16:9, 9:16, 1:1  16:9",
    ]
    for entry, words in (
        ({}, "does not say which fields"),
        ({"input_schema": {"properties": {}}}, "names no field"),
        ({"base_price_usd": "0.01"}, "unknown price, unit unknown"),
    ):
        served.script("model", Reply(200, {"model_id": EDIT, **entry}))
        assert words in flux_klein("models", "show", EDIT).out


def test_json_has_every_fact(served: Emulator, flux_klein: Command) -> None:
    [listed] = flux_klein("models", "dev", "--json").records
    facts = {
        "model_id": EDIT,
        "display_name": "FLUX.2 [dev] Edit",
        "categories": ["image-to-image"],
        "base_price_usd": 0.025,
        "price_unit": "output",
        "pricing_note": "The emulator's own price: nothing is charged.",
        "error": None,
    }
    assert listed == facts
    [shown] = flux_klein("models", "show", EDIT, "--json").records
    assert set(shown.pop("input_schema")) == {"type", "properties", "required"}
    fields = {field["name"]: field for field in shown.pop("input_fields")}
    assert shown == facts
    assert (fields["image_urls"]["file"], fields["image_urls"]["many"]) == ("image", True)
    assert fields["seed"]["minimum"] == 0


def test_an_error_is_a_record_too(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("models", "show", "no/such", "--json")
    assert (ran.code, ran.records[0]["model_id"]) == (65, "no/such")
    assert ran.records[0]["error"]["type"] == "NotFoundError"
    assert "Unknown model 'no/such'" in ran.err
    served.script("models", error_reply(422, 422001))
    ran = flux_klein("models", "cat", "--json")
    assert (ran.code, ran.records[0]["search"], ran.records[0]["category"]) == (65, "cat", None)
    assert ran.records[0]["error"]["type"] == "InputRejectedError"
