"""The fields of an input, as the catalogue's dialect of JSON schema says them, whatever it holds."""

import time
from typing import Any

import pytest

from flux_klein_async import ModelInfo
from flux_klein_async.schema import every_name, input_fields, misfit

FILE = {"type": "string", "format": "image_uri"}
SIZE = {"type": "object", "properties": {"width": {"type": "integer"}}}
# A field's schema, and what is said of it besides its name and schema, where it differs from a bare InputField.
FIELDS: list[tuple[Any, dict[str, Any]]] = [
    ({"type": "string"}, {"type": "string"}),
    ({"type": "float", "minimum": 1, "maximum": 10.5, "default": 5},
     {"type": "number", "range": "1 to 10.5", "minimum": 1, "maximum": 10.5, "default": 5}),
    ({"type": "INT", "minimum": 0}, {"type": "integer", "range": "at least 0", "minimum": 0}),
    ({"type": "number", "maximum": 2e7}, {"type": "number", "range": "at most 20000000", "maximum": 2e7}),
    ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9, "multipleOf": 2},
     {"type": "integer", "range": "above 0 and below 9; a multiple of 2"}),
    ({"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1, "exclusiveMaximum": True},
     {"type": "number", "range": "above 0 and below 1", "minimum": 0, "maximum": 1}),
    ({"type": "string", "minLength": 1, "maxLength": 512}, {"type": "string", "range": "1 to 512 characters"}),
    ({"type": "array", "items": {"type": "string"}, "maxItems": 1},
     {"type": "list of string", "many": True, "range": "at most 1 item"}),
    ({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2},
     {"type": "list of string", "many": True, "choices": ("a", "b"), "range": "at least 2 items; a, b"}),
    ({"type": "list"}, {"type": "list", "many": True}),
    ({"type": "bool", "default": False, "required": True}, {"type": "boolean", "default": False, "required": True}),
    ({"type": "dict", "description": "A map.", "title": "M"}, {"type": "object", "description": "A map."}),
    ({"type": "latent", "title": "L"}, {"type": "latent", "description": "L"}),
    # What it takes: files.
    (FILE, {"type": "image file", "file": "image"}),
    ({"type": "string", "format": "file_uri"}, {"type": "file", "file": "file"}),
    ({"type": "string", "format": "audio_uris"}, {"type": "audio files", "file": "audio", "many": True}),
    ({"type": "array", "format": "image_uris", "items": {"type": "string"}},
     {"type": "image files", "file": "image", "many": True}),
    ({"type": "array", "items": {"type": "string", "format": "Video_URI"}},
     {"type": "video files", "file": "video", "many": True}),
    ({"anyOf": [FILE, {"type": "null"}]}, {"type": "image file", "file": "image"}),
    ({"type": "string", "format": "uri"}, {"type": "string"}),
    ({**FILE, "validations": {"max_file_size": 6 * 2**20, "min_width": 64, "maxFileSize": 512, "odd": 1, "max_x": "y"}},
     {"type": "image file", "file": "image", "range": "at most 6 MiB; width at least 64; at most 512 bytes"}),
    # Choices.
    ({"enum": [1, 2]}, {"type": "integer", "choices": (1, 2), "range": "1, 2"}),
    ({"enum": [True, None, 0.5, "x" * 70, [1]]},
     {"choices": (True, None, 0.5, "x" * 70, [1]), "range": f"true, null, 0.5, {'x' * 57}..., ..."}),
    ({"const": "only"}, {"type": "string", "choices": ("only",), "range": "only"}),
    ({"type": "integer", "enum": list(range(32))},
     {"type": "integer", "choices": tuple(range(32)), "range": f"{', '.join(map(str, range(30)))}, and 2 more"}),
    # Several forms, references.
    ({"type": ["integer", "null"], "minimum": 1}, {"type": "integer", "range": "at least 1", "minimum": 1}),
    ({"anyOf": [{"enum": ["square"]}, {"$ref": "#/$defs/Size"}]}, {"type": "string or object", "range": "square"}),
    ({"oneOf": [{"type": "integer", "maximum": 4}, {"type": "array", "items": {"type": "integer"}}], "title": "T"},
     {"type": "integer or list of integer", "many": True, "range": "at most 4", "description": "T"}),
    ({"allOf": [{"$ref": "#/$defs/a~1b~0"}], "default": "y"},
     {"type": "string", "choices": ("x", "y"), "range": "x, y", "default": "y"}),
    ({"type": "null"}, {"type": "null"}),
    ({"type": [], "format": 7, "enum": 7, "minimum": "0", "maximum": True, "validations": []}, {}),
    ({"type": "integer", "minimum": 10**30, "maximum": float("inf")}, {"type": "integer"}),
    # What refers to nothing, elsewhere or to itself.
    *[({"$ref": f"#/{path}"}, {}) for path in ("$defs/none", "$defs/Size/type/x", "x/" * 200)],
    ({"$ref": "https://a.example/s"}, {}),
    ({"$ref": 7}, {}),
    ({"$ref": "#/$defs/Self"}, {}),
    *[(spec, {}) for spec in (7, None, [], {}, {"anyOf": []}, {"anyOf": 7})],
]  # fmt: skip
DEFS = {
    "Size": SIZE,
    "a/b~": {"type": "string", "enum": ["x", "y"]},
    "Self": {"$ref": "#/$defs/Self"},
}


@pytest.mark.parametrize("number", range(len(FIELDS)))
def test_a_field_is_read(number: int) -> None:
    spec, expected = FIELDS[number]
    [field] = input_fields({"properties": {"x": spec}, "$defs": DEFS})
    assert field.schema == (spec if isinstance(spec, dict) else {})
    facts = {name: getattr(field, name) for name in field.__slots__ if name != "schema"}
    nothing = {"required": False, "many": False, "choices": (), "range": ""}
    bare = {**dict.fromkeys(facts), **nothing, "name": "x", "type": "any"}
    assert facts == {**bare, **expected}


def test_fields_come_in_the_order_of_the_schema_and_know_whether_they_are_required() -> None:
    inner = {"properties": {"b": {}, "a": {}, "c": 1}, "required": ["a", 7, "z"]}
    apart = [{"properties": {"b": {}}, "required": ["z"]}, {"properties": {"a": {}, "c": 1}, "required": ["a"]}]
    for schema in (inner, {"$ref": "#/$defs/In", "$defs": {"In": inner}}, {"allOf": [7, inner]}, {"allOf": apart}):
        fields = ModelInfo(model_id="a/b", input_schema=schema).input_fields
        assert [(field.name, field.required) for field in fields] == [("b", False), ("a", True), ("c", False)]
    for odd in (None, {}, {"properties": []}, {"properties": {}}, {"$ref": "#/$ref"}):
        assert ModelInfo(model_id="a/b", input_schema=odd).input_fields == ()
    assert input_fields({"properties": {"a": {}}, "required": "a"})[0].required is False


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ({"properties": {"prompt": {}, "seed": {}}, "additionalProperties": False}, ["prompt", "seed"]),
        ({"properties": {str(number): {} for number in range(300)}}, [str(number) for number in range(300)]),
        *[
            ({"properties": {"prompt": {}}, word: {"x": {}}}, [])
            for word in ("additionalProperties", "patternProperties")
        ],
        *[
            ({"properties": {"prompt": {}}, word: [{"properties": {"x": {}}}]}, [])
            for word in ("allOf", "anyOf", "oneOf")
        ],
        ({"properties": {"prompt": {}}, "additionalProperties": True}, []),
        ({"properties": {"prompt": {}}, "$ref": "#/x"}, []),
        *[({"properties": value}, []) for value in (None, [], {}, "x")],
        (None, []),
    ],
)
def test_a_schema_names_every_field_or_may_allow_others(schema: Any, names: list[str]) -> None:
    assert list(every_name(schema)) == names


@pytest.mark.parametrize(
    ("spec", "value", "found"),
    [
        (FILE, "a.png", None),
        (FILE, {"path": "a.png"}, "an object"),
        (FILE, ["a.png"], "a list"),
        ({"type": "array", "format": "image_uris"}, ["a.png", {"path": "a.png"}], "an object"),
        ({"type": "array", "format": "image_uris"}, {"path": "a.png"}, "an object"),
        ({"type": "integer"}, "three", "'three'"),
        ({"type": "integer"}, " 3 ", None),  # many services read it
        ({"type": "number"}, "-1.5e3", None),
        ({"type": ["integer", "null"]}, "x" * 70, f"'{'x' * 57}...'"),
        ({"type": "boolean"}, "yes", None),
        ({"type": "string"}, 7, None),
        ({"type": "array", "items": {"type": "integer"}}, [1, [2]], "a list"),
        ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, [[1]], None),
        ({"anyOf": [FILE, {"type": "object"}]}, {"path": "a.png"}, None),
        ({"type": "list"}, [{}], None),
        ({}, {}, None),
    ],
)
def test_a_value_that_can_never_be_what_a_field_takes_is_named(spec: Any, value: Any, found: str | None) -> None:
    [field] = input_fields({"properties": {"x": spec}})
    assert misfit(field, value) == found


def test_a_hostile_schema_is_read_in_little_time() -> None:
    """Each of them would take for ever, or gigabytes, if every reference and every list were followed."""
    branching = {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 100, "items": {}} for n in range(100)}
    wide = {"enum": list(range(40_000)), **{f"x{n}": n for n in range(40_000)}}
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        nested = {"type": "array", "items": nested}
    defs = {**branching, "wide": wide, "all": {"allOf": [{"$ref": "#/$defs/all"}] * 100}}
    specs = [{"$ref": "#/$defs/0"}, {"anyOf": [{"$ref": "#/$defs/wide"}] * 100}, nested, {"$ref": "#/$defs/all"}]
    schema = {"properties": {str(n): specs[n % len(specs)] for n in range(10_000)}, "$defs": defs}
    begun = time.process_time()
    fields = input_fields(schema)
    assert time.process_time() - begun < 2
    assert len(fields) == 200
    assert max(len(field.type) + len(field.range) for field in fields) < 2_000
    assert fields[2].type == "list of " * 8 + "list"
