"""Inputs made from a catalogue entry: what the schema says is checked, what it hides is let through."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flux_klein_async import InvalidInputError, ModelInfo, ModelInput
from flux_klein_async.emulator.catalogue import MODELS, describe
from flux_klein_async.schemas import input_model

SIZE = {"type": "string", "enum": ["small", "large"]}
ENDLESS: dict[str, Any] = {"type": "array", "items": {"$ref": "#/$defs/endless"}}


def made(schema: Any, **root: Any) -> type[ModelInput]:
    return input_model({"type": "object", "properties": {"x": schema}, **root}, "a/b")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string"}, ["", "a"], [1, None, b"a", True]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["a", "abcd"]),
        ({"type": "integer"}, [0, -5, 10**30], [1.0, "1", True, None]),
        ({"type": "integer", "minimum": 64, "maximum": 2048.0}, [64, 2048], [63, 2049]),
        ({"type": "integer", "minimum": 3.5, "maximum": 5.5}, [4, 5], [3, 6]),
        ({"type": "integer", "exclusiveMinimum": 3.5, "exclusiveMaximum": 5.5}, [4, 5], [3, 6]),
        ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6}, [4, 5], [3, 6]),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
        ({"type": "integer", "multipleOf": 16}, [64, 0], [65]),
        ({"type": "integer", "minimum": math.nan, "maximum": 10**30, "multipleOf": 0}, [-(10**9), 10**9], ["x"]),
        ({"type": "number", "minimum": 0, "maximum": 1}, [0, 0.5, 1], [-0.1, 1.1, "0.5", True, math.nan, math.inf]),
        ({"type": "number", "exclusiveMaximum": 1.0}, [0.9], [1.0]),
        ({"type": "boolean"}, [True, False], [0, "true", None]),
        ({"type": "null"}, [None], [0, ""]),
        ({"type": "array"}, [[], [1, "a"]], ["a", {}]),
        (
            {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
            [[1], [1, 2]],
            [[], ["a"], [1] * 3],
        ),
        ({"type": "object", "properties": {"y": {"type": "integer"}}}, [{}, {"y": "any"}], [[], "a"]),
        ({"type": ["string", "null"]}, ["a", None], [1]),
        ({"anyOf": [{"type": "integer", "maximum": 5}, {"type": "null"}]}, [5, None], [6, "a"]),
        ({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}, ["a", ["a"]], [1, [1]]),
        ({"anyOf": [{"type": "string"}, {"if": {}}]}, ["a", 1, None], []),
        ({"enum": ["a", 1, None]}, ["a", 1, None], ["b", 2, "1"]),
        ({"enum": ["a", 1.5]}, ["a", "let through"], []),
        ({"enum": []}, ["let through"], []),
        ({"const": "a"}, ["a"], ["b"]),
        ({"const": "\ud800"}, ["let through: pydantic can make nothing of it"], []),
        ({"$ref": "#/$defs/size"}, ["small"], ["medium", 1]),
        ({"allOf": [{"$ref": "#/$defs/size"}], "default": "small"}, ["large"], ["medium"]),
        ({"$ref": "#/$defs/sl~1ash"}, [True], [1]),
        ({"$ref": "#/$defs/loop"}, [1, "let through"], []),
        ({"$ref": "#/nowhere"}, [1, "let through"], []),
        ({"$ref": "https://example.com/schema"}, [1], []),
        ({"$ref": "#/$defs/endless"}, [[], [[]]], ["a", ["a"]]),
        ({"type": "no such type"}, [1, "let through"], []),
        ({"type": [["string"]]}, [1], []),
        ({"pattern": "[", "type": "string"}, ["let through"], [1]),
        ({}, [1, None, {}], []),
        (True, [1], []),
        (7, [1], []),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_a_schema_says_plainly_is_checked(schema, good, bad):
    kind = made(
        schema,
        **{
            "$defs": {"size": SIZE, "sl/ash": {"type": "boolean"}, "loop": {"$ref": "#/$defs/loop"}, "endless": ENDLESS}
        },
    )
    for value in good:
        assert kind(x=value).given() == {"x": value}
    for value in bad:
        with pytest.raises(ValidationError):
            kind(x=value)


def test_required_fields_are_and_others_are_not_sent_unless_given():
    kind = made({"type": "integer", "default": 5}, required=["x"])
    with pytest.raises(ValidationError, match="Field required"):
        kind()
    kind = made({"type": "integer", "default": 5})
    assert (kind().x, kind().given()) == (5, {})
    assert made({"type": "integer", "default": "five"})().x is None
    with pytest.raises(ValidationError):
        kind(x=None)


def test_fields_that_the_schema_does_not_know_are_refused():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        made({})(y=1)


@pytest.mark.parametrize(
    "key",
    ["class", "json", "copy", "given", "model_config", "_x", "__init__", "negative-prompt", "1st", "", "\u00fc", "x y"],
)
def test_a_property_of_any_name_is_given_and_sent_by_that_name(key):
    kind = input_model({"properties": {key: {"type": "integer"}, "x_y": {}, "field": {}}}, "a/b")
    assert kind(**{key: 1}).given() == {key: 1}
    with pytest.raises(ValidationError):
        kind(**{key: "1"})


def test_the_class_is_named_after_its_model_and_knows_it():
    kind = input_model({"properties": {"x": {"description": "what it is"}}}, "1owner/flux-2/4b")
    assert (kind.__name__, kind.default_model) == ("Model1ownerFlux24bInput", "1owner/flux-2/4b")
    assert kind.model_fields["x"].description == "what it is"
    assert ModelInput.default_model == ""


@pytest.mark.parametrize(
    "schema", [None, {}, {"properties": {}}, {"properties": []}, {"type": "string"}, [], {"$ref": "#"}]
)
def test_an_entry_that_names_no_fields_says_so(schema):
    with pytest.raises(InvalidInputError, match=r"^The catalogue entry of a/b says nothing .*: give a Mapping$"):
        input_model(schema, "a/b")


async def test_an_input_made_from_the_catalogue_goes_to_its_model(klein_emulator, klein_client):
    nine = "blackforestlabs/flux-2-klein/9b/text-to-image"
    kind = (await klein_client.model(nine)).input_model()
    await klein_client.generate(kind(prompt="a cat", steps=8), width=640)
    await klein_client.generate_all([kind(prompt="a dog")])
    await klein_client.submit(kind(prompt="a cow"), model="emulator/any/text-to-video")
    submits = [record for record in klein_emulator.records if record.endpoint == "submit"]
    assert [(record.path.partition("/v1/models/")[2], json.loads(record.body)) for record in submits] == [
        (nine, {"prompt": "a cat", "steps": 8, "width": 640}),
        (nine, {"prompt": "a dog"}),
        ("emulator/any/text-to-video", {"prompt": "a cow"}),
    ]
    with pytest.raises(InvalidInputError, match="width: Input should be less than or equal to 2048"):
        await klein_client.submit(kind(prompt="a cat"), width=5000)
    with pytest.raises(ValidationError, match="steps"):
        kind(prompt="a cat", steps=3)


@pytest.mark.parametrize("model_id", MODELS)
def test_every_emulated_entry_with_fields_makes_inputs(model_id):
    entry = describe(MODELS[model_id], schema=True)
    info = ModelInfo(model_id=model_id, input_schema=entry.get("input_schema"))
    if MODELS[model_id].fields:
        assert info.input_model()(prompt="a cat").given() == {"prompt": "a cat"}
    else:
        with pytest.raises(InvalidInputError):
            info.input_model()


KEYS = [
    "type",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "items",
    "$ref",
    "default",
    "minimum",
    "maximum",
    "minLength",
]
KEYS += ["maxLength", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "description"]
TYPES = ["string", "integer", "number", "boolean", "null", "array", "object"]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*TYPES, "#/properties/x", "#/", "\ud800"])
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)
names = st.sampled_from(["x", "prompt", "_y", "json", "model_fields", "\ud800"]) | st.text(max_size=8)
properties = st.dictionaries(names, anything, max_size=4)


@given(
    st.fixed_dictionaries({"properties": properties}, optional={"required": anything, "$ref": anything}) | anything,
    anything,
)
def test_no_schema_raises_anything_unexpected_and_no_value_either(schema, value):
    try:
        kind = input_model(schema, "a/b")
    except InvalidInputError:
        return
    repr(kind)
    for name, field in kind.model_fields.items():
        key = name if field.alias is None else field.alias
        try:
            found = kind(**{key: value})
        except ValidationError:
            continue
        assert list(found.given()) == [key]
        repr(found)
