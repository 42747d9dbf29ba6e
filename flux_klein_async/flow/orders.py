"""From what a user gives to what is posted: model, body, size. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from flux_klein_async.api.requests import encode_input
from flux_klein_async.api.urls import checked_model_id
from flux_klein_async.errors import FluxKleinError, InvalidInputError
from flux_klein_async.misuse import slip
from flux_klein_async.models import (
    KLEIN_4B_TEXT_TO_IMAGE,
    KLEIN_9B_TEXT_TO_IMAGE,
    Input,
    TextToImage9BInput,
    TextToImageInput,
)

__all__ = ["Order", "made_id", "made_input", "prepare"]

T = TypeVar("T")

_TYPED = {KLEIN_4B_TEXT_TO_IMAGE: TextToImageInput, KLEIN_9B_TEXT_TO_IMAGE: TextToImage9BInput}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One submit, ready to leave.

    Attributes:
        pixels: Width times height, where known.
        item: How a journal calls the item that it is for, where it is one's.
    """

    model: str
    body: bytes = field(repr=False)
    pixels: int | None
    item: str | None = None


def prepare(
    input: Input,  # noqa: A002  # the public name
    *,
    model: str | None,
    width: int | None,
    height: int | None,
    default_model: str,
) -> Order:
    """Check an input and encode it.

    A string becomes the typed input of its model; for a model without one it goes as `{"prompt": ...}` with the
    size where one was given. A Mapping goes as it is, so that a size beside it is refused.

    Raises:
        InvalidInputError: It cannot be sent, and nothing was.
    """
    size = {name: value for name, value in (("width", width), ("height", height)) if value is not None}
    if model is None:
        model = input.default_model if isinstance(input, TextToImage9BInput) else default_model
    model = checked_model_id(model)
    fields: TextToImageInput | Mapping[str, Any]
    if isinstance(input, Mapping):
        if size:
            raise InvalidInputError("A Mapping goes as it is: put width and height into it")
        fields = input
    elif isinstance(input, str):
        fields = _typed(_TYPED.get(model), {"prompt": input, **size})
    elif isinstance(input, TextToImageInput):
        fields = _typed(type(input), {**dict(input), **size}) if size else input
    else:
        raise InvalidInputError(f"An input is a string, a typed input or a Mapping, not {slip(input)}")
    return Order(model=model, body=encode_input(fields), pixels=_pixels(fields))


def _typed(kind: type[TextToImageInput] | None, fields: dict[str, Any]) -> TextToImageInput | dict[str, Any]:
    if kind is None:
        if not str(fields["prompt"]).strip():
            raise InvalidInputError("prompt: the prompt is blank", fields={"prompt": "the prompt is blank"})
        return fields
    try:
        return kind(**fields)
    except ValidationError as error:
        raise _invalid_input(error) from None


def _invalid_input(error: ValidationError) -> InvalidInputError:
    """Pydantic's findings as one sentence: field, then what is wrong with it."""
    fields = {
        ".".join(map(str, item["loc"])): item["msg"].removeprefix("Value error, ")  # ours, which need no such title
        for item in error.errors(include_url=False)
    }
    return InvalidInputError("; ".join(f"{name}: {message}" for name, message in fields.items()), fields=fields)


def _pixels(fields: TextToImageInput | Mapping[str, Any]) -> int | None:
    if isinstance(fields, TextToImageInput):
        return fields.width * fields.height
    width, height = fields.get("width"), fields.get("height")
    if type(width) is int and type(height) is int and width > 0 and height > 0:
        return width * height
    return None


def made_input(item: T, to_input: Callable[[T], Input] | None) -> Any:
    """An item's input; whatever goes wrong in the making is the item's own error.

    Raises:
        InvalidInputError: `to_input` raised something that is no error of this package.
    """
    return item if to_input is None else _made_by_user("to_input", to_input, item)


def made_id(item: T, to_id: Callable[[T], str | None] | None) -> str | None:
    """An item's id; None where it has none, and is known by its content.

    Raises:
        InvalidInputError: `to_id` raised something that is no error of this package, or gave no text.
    """
    item_id: object = None if to_id is None else _made_by_user("to_id", to_id, item)
    if item_id is None or (isinstance(item_id, str) and item_id):
        return item_id
    raise InvalidInputError(f"to_id must give a text that is not empty, or None; not {item_id!r:.60}")


def _made_by_user(name: str, make: Callable[[T], Any], item: T) -> Any:
    try:
        return make(item)
    except FluxKleinError:
        raise
    except ValidationError as error:
        raise _invalid_input(error) from error
    except Exception as error:
        raise InvalidInputError(f"{name} failed", cause=f"{type(error).__name__}: {error}") from error
