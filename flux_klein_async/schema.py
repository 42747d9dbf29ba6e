"""The fields of a model's input, read from the catalogue's dialect of JSON schema (docs/wire.md, "Input"). Pure.

The schema is a stranger's: whatever it holds, reading it raises nothing, follows no reference out of it and ends soon.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Any

from flux_klein_async.text import cut

__all__ = ["InputField", "every_name", "input_fields", "misfit"]

_MOST_FIELDS = 200
_MOST_NODES = 100  # schemas inside one field: references can branch without end
_MOST_BRANCHES = 10  # of anyOf and its like
_DEEPEST = 8
_LONGEST_REFERENCE = 300  # characters
_MOST_CHOICES = 1000
_MOST_NAMED = 30  # choices, in words
_LONGEST_CHOICE = 60  # characters

_FILE = re.compile(r"([a-z][a-z0-9]{0,19})_uri(s?)")  # the dialect's: image_uri, image_uris, video_uri, audio_uri
_TYPES = {
    **dict.fromkeys(("float", "double", "number"), "number"),
    **dict.fromkeys(("int", "integer"), "integer"),
    **dict.fromkeys(("str", "string"), "string"),
    **dict.fromkeys(("bool", "boolean"), "boolean"),
    **dict.fromkeys(("list", "array"), "list"),
    **dict.fromkeys(("dict", "object"), "object"),
    "null": "null",
}
# The words of `InputField.type` for values that are no object, and for lists of them.
_PLAIN = re.compile(r"(?:list of )?(string|integer|number|boolean|null|(?:[a-z0-9]+ )?files?)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
# What may add fields to those that a schema names itself.
_OPEN = ("additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref")
# What is read of a schema; the rest, however large, is not touched.
_READ = (
    *("type", "format", "enum", "const", "items", "anyOf", "oneOf", "validations"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "minItems", "maxItems"),
    *("default", "description", "title", "required", "properties"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputField:
    """A field of a model's input, as the catalogue describes it (source: docs/wire.md, "Input").

    Attributes:
        name: What to write in the Mapping.
        type: In words: `string`, `integer`, `number`, `boolean`, `object`, `list of string`, `image file`, `image
            files`; several are joined by " or ", and "any" says that the schema names none.
        required: Whether the service refuses an input without it.
        default: What the service takes if the field is left out; None if the schema does not say.
        minimum: The least number; None if there is none, or the field may have several shapes.
        maximum: The greatest number; likewise.
        choices: The only values that are allowed; () if there is no such list.
        file: The kind of file that it takes, such as `image`, `video` or `audio`; None if it takes none.
        many: Whether it takes a list.
        range: Everything that bounds the value, in words: "64 to 2048", "16:9, 9:16", "at most 6 MiB".
        description: The service's remarks, or None.
        schema: The field's own schema.
    """

    name: str
    type: str
    required: bool = False
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    file: str | None = None
    many: bool = False
    range: str = ""
    description: str | None = None
    schema: Mapping[str, Any]


def input_fields(schema: Mapping[str, Any] | None) -> tuple[InputField, ...]:
    """The fields of an input's schema in its order, at most 200."""
    if schema is None:
        return ()
    whole = _Reader(schema).resolved(schema)
    properties, required = whole.get("properties"), whole.get("required")
    if not isinstance(properties, Mapping):
        return ()
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    named = islice(properties.items(), _MOST_FIELDS)
    return tuple(_field(str(name), spec, name in needed, schema) for name, spec in named)


def every_name(schema: Mapping[str, Any] | None) -> Collection[str]:
    """The names of all fields of an input; () if the schema names none, or may allow others."""
    if schema is None or any(schema.get(word) for word in _OPEN):
        return ()
    named = schema.get("properties")
    return named.keys() if isinstance(named, Mapping) else ()


def misfit(field: InputField, value: object) -> str | None:
    """What a value is that can never be what the field takes, such as "an object"; None if it may be.

    A local file is text, as it is sent. Where the schema says nothing certain, every value may be right.
    """
    shapes = [_PLAIN.fullmatch(part) for part in field.type.split(" or ")]
    if not all(shapes):
        return None
    is_number = all(shape and shape[1] in ("integer", "number", "null") for shape in shapes)
    for one in value if field.many and isinstance(value, list) else [value]:
        if isinstance(one, Mapping | list):
            return "an object" if isinstance(one, Mapping) else "a list"
        if isinstance(one, str) and is_number and not _NUMBER.fullmatch(one.strip()):
            return f"{cut(one, _LONGEST_CHOICE)!r}"
    return None


def _field(name: str, spec: object, required: bool, root: Mapping[str, Any]) -> InputField:
    reader = _Reader(root)
    shape = reader.shape(spec, 0)
    facts = reader.resolved(spec)
    description = next((text for key in ("description", "title") if isinstance(text := facts.get(key), str)), None)
    return InputField(
        name=name,
        type=shape.words,
        required=required or facts.get("required") is True,
        default=facts.get("default"),
        minimum=shape.minimum,
        maximum=shape.maximum,
        choices=shape.choices,
        file=shape.file,
        many=shape.many,
        range=shape.range,
        description=description,
        schema=spec if isinstance(spec, Mapping) else {},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """One form that a value may have."""

    words: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    file: str | None = None
    many: bool = False
    range: str = ""


_ANY = _Shape(words="any")


class _Reader:
    """Reads the schemas inside one field; `left` bounds how many."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = _MOST_NODES

    def resolved(self, spec: object, depth: int = 0) -> Mapping[str, Any]:
        """A schema with what it refers to and what `allOf` adds; its own words win."""
        self._left -= 1
        if not isinstance(spec, Mapping) or depth > _DEEPEST or self._left < 0:
            return {}
        merged: dict[str, Any] = {}
        parts = spec.get("allOf")
        for part in parts[:_MOST_BRANCHES] if isinstance(parts, list) else []:
            merged = _both(merged, self.resolved(part, depth + 1))
        if isinstance(reference := spec.get("$ref"), str):
            merged = _both(merged, self.resolved(self._target(reference), depth + 1))
        return _both(merged, {key: spec[key] for key in _READ if key in spec})

    def _target(self, reference: str) -> object:
        """What a JSON pointer into this schema names; nothing is fetched."""
        if not reference.startswith("#/") or len(reference) > _LONGEST_REFERENCE:
            return None
        node: object = self._root
        for step in reference[2:].split("/"):
            node = node.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
        return node

    def shape(self, spec: object, depth: int) -> _Shape:
        """The form of a value; of several, joined by "or"."""
        facts = self.resolved(spec)
        if not facts or depth > _DEEPEST:
            return _ANY
        branches = next((facts[key] for key in ("anyOf", "oneOf") if isinstance(facts.get(key), list)), None)
        kinds = facts.get("type")
        if branches:
            own = {key: value for key, value in facts.items() if key not in ("anyOf", "oneOf")}
            found = [self._branch(own, branch, depth) for branch in branches[:_MOST_BRANCHES]]
        elif isinstance(kinds, list):
            found = [self._single({**facts, "type": kind}, depth) for kind in kinds[:_MOST_BRANCHES]]
        else:
            found = [self._single(facts, depth)]
        return _joined([shape for shape in found if shape.words != "null"] or found[:1])

    def _branch(self, own: Mapping[str, Any], branch: object, depth: int) -> _Shape:
        """A form with what the schema around it says of all forms."""
        return self.shape({**own, **branch} if isinstance(branch, Mapping) else own, depth + 1)

    def _single(self, facts: Mapping[str, Any], depth: int) -> _Shape:
        word = facts.get("type")
        choices = _choices(facts)
        kind = _TYPES.get(word.lower(), word[:_LONGEST_CHOICE]) if isinstance(word, str) and word else _kind_of(choices)
        form = facts.get("format")
        file = _FILE.fullmatch(form.lower()) if isinstance(form, str) else None
        many = kind == "list" or bool(file and file[2])
        inner = self.shape(facts.get("items"), depth + 1) if kind == "list" and "items" in facts else _ANY
        name = file[1] if file else inner.file if many else None
        words = f"list of {inner.words}" if many and inner.words != "any" else kind
        if name is not None:
            words = f"{name} {'files' if many else 'file'}".removeprefix("file ")
        ranges = [_range_of(facts, choices), inner.range if many and inner is not _ANY else ""]
        numeric = kind in ("integer", "number")
        return _Shape(
            words=words,
            minimum=_number(facts.get("minimum")) if numeric else None,
            maximum=_number(facts.get("maximum")) if numeric else None,
            choices=choices or (inner.choices if many else ()),
            file=name,
            many=many,
            range="; ".join(dict.fromkeys(filter(None, ranges))),
        )


def _both(first: dict[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """What two schemas say together; of their fields all."""
    both = {**first, **then}
    if isinstance(fields := first.get("properties"), Mapping) and isinstance(more := then.get("properties"), Mapping):
        both["properties"] = {**fields, **more}
    if isinstance(needed := first.get("required"), list) and isinstance(more := then.get("required"), list):
        both["required"] = [*needed, *more]
    return both


def _joined(shapes: list[_Shape]) -> _Shape:
    if len(shapes) < 2:
        return shapes[0] if shapes else _ANY
    return _Shape(
        words=" or ".join(dict.fromkeys(shape.words for shape in shapes)),
        file=next((shape.file for shape in shapes if shape.file), None),
        many=any(shape.many for shape in shapes),
        range=" or ".join(dict.fromkeys(filter(None, (shape.range for shape in shapes)))),
    )


def _choices(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    if "const" in facts:
        return (facts["const"],)
    listed = facts.get("enum")
    return tuple(listed[:_MOST_CHOICES]) if isinstance(listed, list) else ()


_KINDS: Mapping[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


def _kind_of(choices: tuple[Any, ...]) -> str:
    kinds = set(map(type, choices))
    return _KINDS.get(kinds.pop(), "any") if len(kinds) == 1 else "any"


def _number(value: object) -> float | None:
    """A number that can be compared and shown; not a boolean, infinity or thousands of digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e18 and isfinite(value) else None


def _range_of(facts: Mapping[str, Any], choices: tuple[Any, ...]) -> str:
    """Everything that bounds a value, in words."""
    said = [", ".join(map(_choice, choices[:_MOST_NAMED]))] if choices else []
    if len(choices) > _MOST_NAMED:
        said[0] += f", and {len(choices) - _MOST_NAMED} more"
    said += filter(None, (_between(facts, *names) for names in _BOUNDS))
    if (step := _number(facts.get("multipleOf"))) is not None:
        said.append(f"a multiple of {_plain(step)}")
    validations = facts.get("validations")
    if isinstance(validations, Mapping):
        said += _validated(validations)
    return "; ".join(said)


_BOUNDS = (
    ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", ""),
    ("minLength", "maxLength", "", "", "characters"),
    ("minItems", "maxItems", "", "", "items"),
)


def _between(facts: Mapping[str, Any], low: str, high: str, above: str, below: str, unit: str) -> str:
    """Two bounds in words, such as "64 to 2048"; `above` and `below` are excluded, as numbers or (draft 4) as flags."""
    least, most = _number(facts.get(low)), _number(facts.get(high))
    over, under = _number(facts.get(above)), _number(facts.get(below))
    if facts.get(above) is True:
        least, over = None, least
    if facts.get(below) is True:
        most, under = None, most
    if least is not None and most is not None:
        said = [f"{_plain(least)} to {_plain(most)}"]
    else:
        said = [
            f"{word} {_plain(bound)}" for word, bound in (("at least", least), ("at most", most)) if bound is not None
        ]
    said += [f"{word} {_plain(bound)}" for word, bound in (("above", over), ("below", under)) if bound is not None]
    if said and unit:
        return f"{said[0]} {unit.removesuffix('s') if (least if most is None else most) == 1 else unit}"
    return " and ".join(said)


def _validated(validations: Mapping[str, Any]) -> Iterator[str]:
    """What the dialect's `validations` say of a file, such as "at most 6 MiB"."""
    for name, value in islice(validations.items(), _MOST_BRANCHES):
        bound = _number(value)
        words = re.fullmatch(r"(min|max)_?(\w{1,30})", str(name)[:40], re.IGNORECASE)
        if bound is None or words is None:
            continue
        limit, what = ("at least" if words[1].lower() == "min" else "at most"), words[2].lower()
        if what.replace("_", "") in ("filesize", "size", "bytes"):
            yield f"{limit} {_bytes(bound)}"
        else:
            yield f"{what.replace('_', ' ')} {limit} {_plain(bound)}"


def _bytes(count: float) -> str:
    return f"{_plain(round(count / 2**20, 2))} MiB" if count >= 2**20 else f"{_plain(count)} bytes"


def _plain(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) and abs(number) < 1e6 else f"{number:.0f}"


_WORDS = {True: "true", False: "false", None: "null"}


def _choice(value: object) -> str:
    if isinstance(value, str):
        return cut(value, _LONGEST_CHOICE)
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    number = _number(value)
    return "..." if number is None else _plain(number)
