"""Typed inputs made at run time: from the JSON schema of a catalogue entry to a pydantic model. Pure.

A schema is what a stranger wrote. What is understood is checked (types, required, ranges, lengths, enumerations,
defaults, unions, local references); what is not is let through as `Any`, since the service looks at it anyway. Nothing
that a schema says can raise anything but `InvalidInputError`.
"""

import keyword
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, create_model
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError, ValidationError

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.models import BriefModel, shortened

__all__ = ["ModelInput", "input_model"]

_DEEPEST = 8  # nested arrays, unions and references that are followed; what lies deeper is Any
_MOST_CHOICES = 1000  # of an enumeration or a union
_LARGEST = 2**53  # numbers beyond are exact neither in JSON nor as float
# Whatever pydantic says of an annotation that it cannot use.
_UNUSABLE = (PydanticUserError, SchemaError, TypeError, ValueError, OverflowError, RecursionError)


class ModelInput(BriefModel):
    """The base of the inputs that `ModelInfo.input_model` makes; each names its model in `default_model`.

    Only the fields that were given are sent: the service has its own defaults.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )
    default_model: ClassVar[str] = ""

    def __init__(self, **fields: Any) -> None:  # for type checkers, which cannot know the fields
        super().__init__(**fields)

    def given(self) -> dict[str, Any]:
        """The fields that were given, by the names that the service knows."""
        names = {name: field.alias for name, field in type(self).model_fields.items() if name in self.model_fields_set}
        return {name if alias is None else alias: getattr(self, name) for name, alias in names.items()}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        return ((name, shortened(value)) for name, value in self.given().items())


def input_model(schema: Mapping[str, Any] | None, model_id: str) -> type[ModelInput]:
    """A class of inputs for a model, from the JSON schema of its input.

    Raises:
        InvalidInputError: There is no schema, or it names no fields.
    """
    root = _resolved(schema, schema or {}, _DEEPEST) if isinstance(schema, Mapping) else {}
    properties = root.get("properties")
    required = root.get("required")
    if not isinstance(properties, Mapping) or not properties:
        raise InvalidInputError(f"The catalogue entry of {model_id} says nothing of its input's fields: give a Mapping")
    wanted = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    fields: dict[str, Any] = {}
    for key, value in properties.items():
        if isinstance(key, str) and _encodable(key):
            name = _python_name(key, fields)
            fields[name] = _field(_Reader(schema or {}).read(value), value, key, key if key != name else None, wanted)
    made: type[ModelInput] = create_model(_class_name(model_id), __base__=ModelInput, **fields)
    made.default_model = model_id
    return made


def _field(annotation: Any, schema: Any, key: str, alias: str | None, required: set[str]) -> tuple[Any, Any]:
    annotation, adapter = _usable(annotation)
    said = schema if isinstance(schema, Mapping) else {}
    description = said.get("description")
    facts: dict[str, Any] = {"description": description if isinstance(description, str) else None}
    if alias is not None:
        facts["alias"] = alias
    if key not in required:
        facts["default"] = _default(said.get("default"), adapter)
    return annotation, Field(**facts)


def _default(value: Any, adapter: TypeAdapter[Any]) -> Any:
    """The default, if it is one; else None, which is not checked and never sent."""
    try:
        return adapter.validate_python(value, strict=True)
    except (ValidationError, *_UNUSABLE):
        return None


def _usable(annotation: Any) -> tuple[Any, TypeAdapter[Any]]:
    """The annotation, or Any where pydantic cannot make anything of it."""
    try:
        return annotation, TypeAdapter(annotation)
    except _UNUSABLE:
        return Any, TypeAdapter(Any)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _python_name(key: str, taken: Mapping[str, object]) -> str:
    """A name that Python and pydantic let stand for a property."""
    name = re.sub(r"\W", "_", key, flags=re.ASCII).lstrip("_") or "field"
    if name[0].isdigit():
        name = f"field_{name}"
    while keyword.iskeyword(name) or hasattr(ModelInput, name) or name in taken:
        name += "_"
    return name


def _class_name(model_id: str) -> str:
    """`BlackforestlabsFlux2Klein4bTextToImageInput` for that model."""
    words = re.findall(r"[A-Za-z0-9]+", model_id)
    name = "".join(word[0].upper() + word[1:] for word in words) + "Input"
    return f"Model{name}" if name[0].isdigit() else name


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
    """What a local reference, or an `allOf` of one, stands for; an empty schema where it leads nowhere."""
    while depth > 0:
        depth -= 1
        alone, reference = schema.get("allOf"), schema.get("$ref")
        if isinstance(alone, list) and len(alone) == 1 and isinstance(alone[0], Mapping):
            schema = alone[0]
        elif isinstance(reference, str):
            schema = _pointed_at(reference, root)
        else:
            return schema
    return {}


def _pointed_at(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """RFC 6901, in a URI fragment, for the names that occur: those without percent signs."""
    if not reference.startswith("#/"):
        return {}
    found: Any = root
    for part in reference[2:].split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


class _Reader:
    """From a schema to an annotation."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def read(self, schema: Any, depth: int = _DEEPEST) -> Any:
        if not isinstance(schema, Mapping) or depth <= 0:
            return Any
        schema = _resolved(schema, self._root, depth)
        if "const" in schema:
            return _choice([schema["const"]])
        if isinstance(schema.get("enum"), list):
            return _choice(schema["enum"])
        for word in ("anyOf", "oneOf"):
            if isinstance(schema.get(word), list):
                return _union([self.read(each, depth - 1) for each in schema[word][:_MOST_CHOICES]])
        kinds = schema.get("type")
        if isinstance(kinds, list):
            return _union([self._one(kind, schema, depth) for kind in kinds[:_MOST_CHOICES]])
        return self._one(kinds, schema, depth)

    def _one(self, kind: object, schema: Mapping[str, Any], depth: int) -> Any:
        if kind == "array":
            item, _ = _usable(self.read(schema.get("items"), depth - 1))
            lengths = _lengths(schema, "minItems", "maxItems")
            return Annotated[list[item], Field(**lengths)]  # type: ignore[valid-type]
        make = _KINDS.get(kind) if isinstance(kind, str) else None
        return Any if make is None else make(schema)


def _choice(values: Sequence[Any]) -> Any:
    plain = all(value is None or isinstance(value, str | int) for value in values)  # bool is an int
    return Literal[tuple(values)] if values and plain and len(values) <= _MOST_CHOICES else Any


def _union(kinds: list[Any]) -> Any:
    if not kinds or any(kind is Any for kind in kinds):
        return Any
    usable = [Annotated[_usable(kind)[0], Field()] for kind in kinds]
    return reduce(or_, usable)


def _number(value: object) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= _LARGEST else None  # not NaN either


def _lengths(schema: Mapping[str, Any], least: str, most: str) -> dict[str, Any]:
    found = {"min_length": _number(schema.get(least)), "max_length": _number(schema.get(most))}
    return {name: int(value) for name, value in found.items() if value is not None and value >= 0}


def _range(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Bounds for pydantic; drafts before 6 have `exclusiveMinimum: true` beside `minimum`."""
    found: dict[str, float | None] = {}
    for inclusive, exclusive, word in (("ge", "gt", "inimum"), ("le", "lt", "aximum")):
        bound, beyond = _number(schema.get(f"m{word}")), schema.get(f"exclusiveM{word}")
        found[exclusive if beyond is True else inclusive] = bound
        if (number := _number(beyond)) is not None:
            found[exclusive] = number
    return {name: value for name, value in found.items() if value is not None}


def _whole_range(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same for whole numbers: an integer above 3.5 is one of at least 4."""
    bounds = _range(schema)
    whole = {name: math.ceil(value) if name in {"ge", "lt"} else math.floor(value) for name, value in bounds.items()}
    step = _number(schema.get("multipleOf"))
    if isinstance(step, int) and step > 0:
        whole["multiple_of"] = step
    return whole


_KINDS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "string": lambda schema: Annotated[str, Field(**_lengths(schema, "minLength", "maxLength"))],
    "integer": lambda schema: Annotated[int, Field(**_whole_range(schema))],
    "number": lambda schema: Annotated[float, Field(**_range(schema))],
    "boolean": lambda _: bool,
    "null": lambda _: type(None),  # pydantic 2.7 takes None itself for a missing annotation
    "object": lambda _: dict[str, Any],
}
