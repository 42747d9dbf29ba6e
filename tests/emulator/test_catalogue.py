import pytest

from flux_klein_async.emulator.catalogue import MODELS, describe, find, output_of, refusals

from .helpers import KLEIN_4B, KLEIN_9B


def test_a_good_input_is_accepted():
    for more in ({}, {"width": 64, "height": 2048}, {"unknown": [1]}, {"steps": 1}):
        assert refusals(MODELS[KLEIN_4B], {"prompt": "x", **more}) == []
    for model in ("emulator/any/image-to-images", "emulator/any/text-to-video"):
        assert refusals(MODELS[model], {"width": "wide"}) == []


@pytest.mark.parametrize(
    ("model", "given", "field", "kind"),
    [
        (KLEIN_4B, {}, "prompt", "missing"),
        (KLEIN_4B, {"prompt": None}, "prompt", "string_type"),
        (KLEIN_4B, {"prompt": 7}, "prompt", "string_type"),
        (KLEIN_4B, {"prompt": " \n"}, "prompt", "string_too_short"),
        (KLEIN_4B, {"prompt": "x", "width": 63}, "width", "greater_than_equal"),
        (KLEIN_4B, {"prompt": "x", "width": 2049}, "width", "less_than_equal"),
        (KLEIN_4B, {"prompt": "x", "width": True}, "width", "integer_type"),
        (KLEIN_4B, {"prompt": "x", "height": 512.0}, "height", "integer_type"),
        (KLEIN_4B, {"prompt": "x", "height": "512"}, "height", "integer_type"),
        (KLEIN_9B, {"prompt": "x", "steps": 0}, "steps", "greater_than_equal"),
        (KLEIN_9B, {"prompt": "x", "steps": 101}, "steps", "less_than_equal"),
    ],
)
def test_a_bad_field_is_pointed_at(model, given, field, kind):
    (wrong,) = refusals(MODELS[model], given)
    assert (wrong["loc"], wrong["type"]) == (["body", field], kind)
    assert wrong["msg"]


def test_every_bad_field_is_named_at_once():
    wrong = refusals(MODELS[KLEIN_4B], {"width": 1, "height": 1})
    assert [entry["loc"][-1] for entry in wrong] == ["prompt", "width", "height"]


def test_an_input_is_an_object():
    for model in MODELS.values():
        for given in ([], "x", None, 3):
            assert refusals(model, given)[0]["loc"] == ["body"]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ({}, len(MODELS)),
        ({"search": "KLEIN"}, 2),
        ({"search": "[klein] 9b"}, 1),
        ({"category": "text-to-image"}, 2),
        ({"kind": "video"}, 1),
        ({"kind": "video", "search": "klein"}, 0),
    ],
)
def test_models_are_found_by_words_category_and_kind(words, count):
    assert len(find(**words)) == count


def test_a_description_has_a_price_and_on_request_a_schema():
    plain, full = (describe(MODELS[KLEIN_9B], schema=schema) for schema in (False, True))
    assert full.pop("input_schema") == {
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "prompt": {"type": "string"},
            "width": {"type": "integer", "minimum": 64, "maximum": 2048, "default": 1024},
            "height": {"type": "integer", "minimum": 64, "maximum": 2048, "default": 1024},
            "steps": {"type": "integer", "minimum": 1, "maximum": 100, "default": 25},
        },
    }
    assert full == plain
    assert (plain["base_price_usd"], plain["price_unit"], plain["categories"]) == (0.02, "output", ["text-to-image"])


@pytest.mark.parametrize(
    ("model", "output"),
    [
        (KLEIN_4B, {"image": "https://f/files/r.png"}),
        ("emulator/any/image-to-images", {"images": ["https://f/files/r.1.png", "https://f/files/r.2.png"]}),
        ("emulator/any/text-to-video", {"video": "https://f/files/r.mp4"}),
    ],
)
def test_the_output_has_the_models_own_shape(model, output):
    assert output_of(MODELS[model], "https://f", "r") == output
