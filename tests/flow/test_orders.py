"""What each kind of input becomes before it is posted: model, body, size."""

import asyncio
import json
import types
from typing import Any

import pytest

from flux_klein_async.errors import InvalidInputError, JournalError
from flux_klein_async.flow.orders import Order, made_input, prepare
from flux_klein_async.models import (
    KLEIN_4B_TEXT_TO_IMAGE,
    KLEIN_9B_TEXT_TO_IMAGE,
    HostedFile,
    TextToImage9BInput,
    TextToImageInput,
)

K4, K9, OTHER = KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE, "owner/other"


def order(given: Any, **settings: Any) -> Order:
    return prepare(given, **{"model": None, "width": None, "height": None, "default_model": K4, **settings})


def squared(prompt: str, width: int = 1024, height: int = 1024, **more: int) -> dict[str, Any]:
    return {"prompt": prompt, "width": width, "height": height, **more}


@pytest.mark.parametrize(
    ("given", "settings", "model", "body", "pixels"),
    [
        # a string
        ("a", {}, K4, squared("a"), 1024 * 1024),
        (" a\n", {}, K4, squared(" a\n"), 1024 * 1024),
        ("a", {"width": 512}, K4, squared("a", 512), 512 * 1024),
        ("a", {"width": 64, "height": 2048}, K4, squared("a", 64, 2048), 64 * 2048),
        ("a", {"model": K9}, K9, squared("a"), 1024 * 1024),
        ("a", {"default_model": K9, "height": 512}, K9, squared("a", height=512), 1024 * 512),
        # a string for a model whose input is not known
        ("a", {"model": OTHER}, OTHER, {"prompt": "a"}, None),
        ("a", {"model": OTHER, "width": 512}, OTHER, {"prompt": "a", "width": 512}, None),
        ("a", {"default_model": OTHER, "width": 5, "height": 7}, OTHER, squared("a", 5, 7), 35),
        # typed inputs
        (TextToImageInput(prompt="a", width=512), {}, K4, squared("a", 512), 512 * 1024),
        (TextToImageInput(prompt="a", width=512), {"height": 64}, K4, squared("a", 512, 64), 512 * 64),
        (TextToImageInput(prompt="a"), {"default_model": OTHER}, OTHER, squared("a"), 1024 * 1024),
        (TextToImageInput(prompt="a"), {"model": K9}, K9, squared("a"), 1024 * 1024),
        # the 9B input goes to its own model, unless told otherwise
        (TextToImage9BInput(prompt="a", steps=8), {}, K9, squared("a", steps=8), 1024 * 1024),
        (TextToImage9BInput(prompt="a"), {"default_model": OTHER}, K9, squared("a"), 1024 * 1024),
        (TextToImage9BInput(prompt="a", steps=8), {"width": 64}, K9, squared("a", 64, steps=8), 64 * 1024),
        (TextToImage9BInput(prompt="a"), {"model": OTHER}, OTHER, squared("a"), 1024 * 1024),
        # a Mapping goes as it is
        ({}, {}, K4, {}, None),
        ({"prompt": ""}, {}, K4, {"prompt": ""}, None),
        ({"text": "a", "seed": 5}, {"model": OTHER}, OTHER, {"text": "a", "seed": 5}, None),
        (types.MappingProxyType({"width": 3, "height": 5}), {}, K4, {"width": 3, "height": 5}, 15),
        ({"width": 3}, {}, K4, {"width": 3}, None),
        ({"width": True, "height": 5}, {}, K4, {"width": True, "height": 5}, None),
        ({"width": 3.0, "height": 5}, {}, K4, {"width": 3.0, "height": 5}, None),
        ({"width": "3", "height": 5}, {}, K4, {"width": "3", "height": 5}, None),
        (
            {"image": HostedFile("https://files.example.com/a.png"), "prompt": "see https://localhost/b.png"},
            {},
            K4,
            {"image": "https://files.example.com/a.png", "prompt": "see https://localhost/b.png"},
            None,
        ),
    ],
    ids=str,
)
def test_an_input_becomes_one_order(
    given: Any, settings: dict[str, Any], model: str, body: dict[str, Any], pixels: int | None
) -> None:
    made = order(given, **settings)
    assert (made.model, json.loads(made.body), made.pixels) == (model, body, pixels)


@pytest.mark.parametrize(
    ("given", "settings", "text"),
    [
        ("", {}, "prompt: the prompt is blank"),
        (" \n", {}, "prompt: the prompt is blank"),
        (" \n", {"model": OTHER}, "prompt: the prompt is blank"),
        ("a", {"width": 63}, "width: Input should be greater than or equal to 64"),
        ("a", {"height": 2049}, "height: Input should be less than or equal to 2048"),
        (
            "a",
            {"width": 512.0, "height": "512"},
            "width: Input should be a valid integer; height: Input should be a valid integer",
        ),
        ("a", {"width": True}, "width: Input should be a valid integer"),
        (TextToImageInput(prompt="a"), {"width": 0}, "width: Input should be greater than or equal to 64"),
        ({"prompt": "a"}, {"width": 512}, "A Mapping goes as it is: put width and height into it"),
        ({"prompt": "a"}, {"height": 512}, "A Mapping goes as it is: put width and height into it"),
        ({"prompt": b"a"}, {}, "The input cannot be written as JSON: bytes has no place in JSON"),
        ({"a": {1}}, {}, "The input cannot be written as JSON: set has no place in JSON"),
        ("a", {"model": "../requests"}, "Not a model id such as 'owner/model/variant': '../requests'"),
        ("a", {"model": ""}, "Not a model id such as 'owner/model/variant': ''"),
        ("a", {"default_model": "/a"}, "Not a model id such as 'owner/model/variant': '/a'"),
        (None, {}, "An input is a string, a typed input or a Mapping, not NoneType"),
        (b"a", {}, "An input is a string, a typed input or a Mapping, not bytes"),
        (["a"], {}, "An input is a string, a typed input or a Mapping, not list"),
        (5, {"width": 64}, "An input is a string, a typed input or a Mapping, not int"),
        (
            HostedFile("https://files.example.com/a.png"),
            {},
            "An input is a string, a typed input or a Mapping, not HostedFile",
        ),
    ],
    ids=str,
)
def test_an_input_that_cannot_be_sent_says_why(given: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        order(given, **settings)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ("private \ud800", {}),
        ("private \ud800", {"model": OTHER}),
        ("private", {"model": OTHER, "width": float("nan")}),
        ("private", {"width": 10**400}),
        ({"prompt": "private", "seed": float("inf")}, {}),
    ],
    ids=ascii,
)
def test_a_refusal_does_not_repeat_the_input(given: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        order(given, **settings)
    assert "private" not in repr(caught.value)
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)


def test_a_caller_s_own_input_class_names_its_own_model() -> None:
    class Mine(TextToImage9BInput):
        default_model = "owner/mine"

    assert order(Mine(prompt="a")).model == "owner/mine"


def test_an_order_does_not_show_its_body() -> None:
    assert repr(order("a private wish")) == f"Order(model='{K4}', pixels=1048576, item=None)"


@pytest.mark.parametrize(
    ("to_input", "made"),
    [(None, {"prompt": "a"}), (lambda row: row["prompt"], "a"), (lambda row: TextToImageInput(**row), squared("a"))],
)
def test_an_item_becomes_an_input(to_input: Any, made: Any) -> None:
    given = made_input({"prompt": "a"}, to_input)
    assert (dict(given) if isinstance(given, TextToImageInput) else given) == made


@pytest.mark.parametrize(
    ("to_input", "text"),
    [
        (lambda row: row["text"], "to_input failed: KeyError: 'text'"),
        (lambda row: TextToImageInput(prompt=""), "prompt: the prompt is blank"),
        (
            lambda row: TextToImageInput(prompt="a", width=1),
            "width: Input should be greater than or equal to 64",
        ),
    ],
)
def test_what_goes_wrong_in_the_making_is_the_items_own_error(to_input: Any, text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        made_input({"prompt": "a"}, to_input)
    assert str(caught.value) == text
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("error", [JournalError("disk full"), asyncio.CancelledError(), KeyboardInterrupt()])
def test_an_error_of_the_package_and_a_cancellation_pass_unwrapped(error: BaseException) -> None:
    def to_input(item: str) -> str:
        raise error

    with pytest.raises(type(error)) as caught:
        made_input("a", to_input)
    assert caught.value is error


@pytest.mark.parametrize(
    ("given", "settings", "fields"),
    [
        ("a", {"width": 1, "height": 9999}, {"width", "height"}),
        (" ", {}, {"prompt"}),
        (" ", {"model": OTHER}, {"prompt"}),
        ({"prompt": "a"}, {"width": 64}, set()),
    ],
)
def test_the_fields_at_fault_are_named(given, settings, fields):
    with pytest.raises(InvalidInputError) as caught:
        order(given, **settings)
    assert set(caught.value.fields) == fields
    assert all(message in str(caught.value) for message in caught.value.fields.values())


@pytest.mark.parametrize(
    ("width", "height", "pixels"),
    [
        (1, 1, 1),
        (3, 5, 15),
        (0, 5, None),
        (5, 0, None),
        (-3, -5, None),
        (3.0, 5, None),
        (True, 5, None),
        (3, None, None),
    ],
)
def test_pixels_are_known_where_both_sides_are_lengths(width: Any, height: Any, pixels: int | None) -> None:
    assert order({"width": width, "height": height}).pixels == pixels
