"""Every request as it is sent: where the token goes, and what JSON goes with it."""

import io
import json
import math
import types
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

from flux_klein_async import __version__
from flux_klein_async.api.messages import Kind, Request
from flux_klein_async.api.requests import Api, InputBody, canonical, encode_input, file_names, single_values
from flux_klein_async.api.urls import ApiUrls
from flux_klein_async.errors import InputRejectedError, InvalidInputError
from flux_klein_async.models import HostedFile, TextToImage9BInput, TextToImageInput

API = Api(ApiUrls("https://h.example"), "s3cr3t-token")
MODEL = "blackforestlabs/flux-2-klein/4b/text-to-image"

COMMON = {
    "Accept": "application/json",
    "User-Agent": f"flux_klein_async/{__version__}",
    "Authorization": "Bearer s3cr3t-token",
    "Cache-Control": "no-cache",
    "Accept-Encoding": "gzip, deflate",
}
FILE = "https://x.runcomfy.net/a.png?signature=x"
FILE_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": f"flux_klein_async/{__version__}"}

JSON_HEADERS = {**COMMON, "Accept-Encoding": "identity", "Content-Type": "application/json"}
STATUS, RESULT = "requests/r-1/status", "requests/r-1/result?include_cost=true"
SEARCH = "search=a%20b%26c%2B%C3%A9&category=x%2Fy"
# The last column is the silence after which a call fails: soon for polls, late for what costs money.
REQUESTS: list[tuple[Request, Kind, str, str, dict[str, str], float]] = [
    (API.submit(MODEL, b"{}"), Kind.SUBMIT, "POST", f"models/{MODEL}", JSON_HEADERS, 60.0),
    (API.poll("r-1"), Kind.READ, "GET", STATUS, COMMON, 5.0),
    (API.poll_result("r-1"), Kind.READ, "GET", RESULT, COMMON, 5.0),
    (API.status("r-1"), Kind.READ, "GET", STATUS, COMMON, 10.0),
    (API.result("r-1"), Kind.READ, "GET", RESULT, COMMON, 10.0),
    (API.model(MODEL), Kind.READ, "GET", f"models/{MODEL}", COMMON, 10.0),
    (API.models(None, "", 0), Kind.READ, "GET", "models?limit=100&offset=0", COMMON, 10.0),
    (API.models("a b&c+\u00e9", "x/y", 7), Kind.READ, "GET", f"models?{SEARCH}&limit=100&offset=7", COMMON, 10.0),
    (API.cancel("r-1"), Kind.CANCEL, "POST", "requests/r-1/cancel", COMMON, 10.0),
    (API.file(FILE), Kind.FILE, "GET", FILE, FILE_HEADERS, 30.0),
]


@pytest.mark.parametrize(("made", "kind", "method", "path", "headers", "silence"), REQUESTS)
def test_builds_each_call_as_the_service_wants_it(
    made: Request, kind: Kind, method: str, path: str, headers: Any, silence: float
) -> None:
    url = path if kind is Kind.FILE else f"https://h.example/v1/{path}"
    body = b"{}" if kind is Kind.SUBMIT else None
    assert made == Request(kind, method, url, headers, replayable=kind is not Kind.SUBMIT, silence=silence, body=body)


def test_the_token_is_in_one_header_of_api_calls_and_in_no_file_request() -> None:
    holders = {
        (request.kind, name)
        for request, *_ in REQUESTS
        for name, value in [*request.headers.items(), ("url", request.url), ("body", str(request.body))]
        if "s3cr3t-token" in value
    }
    assert holders == {(kind, "Authorization") for kind in (Kind.SUBMIT, Kind.READ, Kind.CANCEL)}


@pytest.mark.parametrize(
    "call", [API.poll, API.status, API.result, API.cancel, API.model, lambda model: API.submit(model, b"{}")]
)
def test_an_id_is_checked_before_a_url_is_built(call: Any) -> None:
    with pytest.raises(InvalidInputError):
        call("../models")


class Size(BaseModel):
    width: int = 1
    depth: int | None = None


PICTURE = HostedFile("https://files.example.com/a.png")


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({}, "{}"),
        ({"prompt": "a"}, '{"prompt": "a"}'),
        ({"prompt": "h\u00e9 \u2603 \U0001f406"}, '{"prompt": "h\u00e9 \u2603 \U0001f406"}'),
        ({"a": None, "b": True, "c": 1.5, "d": [1, (2, 3)], "e": {"f": ""}}, None),
        (
            TextToImageInput(prompt="h\u00e9 \u2603 \U0001f406"),
            '{"prompt":"h\u00e9 \u2603 \U0001f406","width":1024,"height":1024}',
        ),
        (TextToImage9BInput(prompt="a"), '{"prompt":"a","width":1024,"height":1024,"steps":25}'),
        (TextToImage9BInput(prompt="a", steps=4), '{"prompt":"a","width":1024,"height":1024,"steps":4}'),
        (types.MappingProxyType({"a": types.MappingProxyType({"b": 1})}), '{"a": {"b": 1}}'),
        ({"image": PICTURE}, '{"image": "https://files.example.com/a.png"}'),
        (
            {"images": [PICTURE, {"deep": PICTURE}]},
            '{"images": ["https://files.example.com/a.png", {"deep": "https://files.example.com/a.png"}]}',
        ),
        ({"size": Size()}, '{"size": {"width": 1}}'),
        ({"image": "https://files.example.com/a.png"}, None),
    ],
    ids=str,
)
def test_writes_an_input_as_json(value: Any, body: str | None) -> None:
    assert encode_input(value) == InputBody((json.dumps(value) if body is None else body).encode())


def test_a_file_in_a_field_that_a_subclass_adds_is_a_file() -> None:
    class Edit(TextToImageInput):
        image: Path

    [(name, file)] = encode_input(Edit(prompt="a", image=Path("a.png"))).files
    assert (name, file.path) == ("image", Path("a.png"))


class Entry:
    """As `os.DirEntry`: a path that is no `pathlib.Path`."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


class Deep(BaseModel):
    mask: Path
    more: dict[str, Any]


def test_a_path_anywhere_in_an_input_is_a_file_of_its_field():
    paths = [Path(name) for name in "abcdefg"]
    given = {
        "first": paths[0],
        "text": "a.png",
        "images": [paths[1], (PICTURE, types.MappingProxyType({"x": paths[2]}))],
        "deep": Deep(mask=paths[3], more={"again": [paths[3], PurePosixPath("e")]}),
        "entry": Entry(b"f"),
    }
    body = encode_input(given)
    names = ["first", "images.0", "images.1.1.x", "deep.mask", "deep.more.again.0", "deep.more.again.1", "entry"]
    assert [name for name, _ in body.files] == names
    assert [str(file.path) for _, file in body.files] == list("abcddef")
    assert body.template.count(b"\0") == len(names)
    for _, file in body.files:
        file.size, file.sha256 = 5, "00"
    recorded = json.loads(body.recorded)
    assert recorded["first"] == {"file": "a", "size": 5, "sha256": "00"}
    assert (recorded["text"], recorded["images"][1][0]) == ("a.png", PICTURE.url)
    assert repr(body.files[0][1]) == "the file 'a'"


def test_a_file_is_recognised_by_its_digest_alone_and_never_taken_for_a_text():
    def content(value: Any, **digests: str) -> bytes:
        body = encode_input(value)
        for _, file in body.files:
            file.size, file.sha256 = 1, digests[file.path.name]
        return body.content

    one = content({"a": Path("x"), "b": Path("y")}, x="11", y="22")
    assert content({"b": Path("v"), "a": Path("folder/u")}, u="11", v="22") == one
    others = [
        content({"a": Path("x"), "b": Path("y")}, x="22", y="11"),
        content({"a": Path("x"), "b": "22"}, x="11"),
        content({"a": Path("x"), "b": "\\ud80022"}, x="11"),
        content({"a": Path("x"), "b": {"file": "y", "size": 1, "sha256": "22"}}, x="11"),
        content({"a": [Path("x")], "b": Path("y")}, x="11", y="22"),
    ]
    assert len({one, *others}) == 6


def cyclic(wrap: Any) -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = wrap(value)
    return value


def deep() -> dict[str, Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return {"deep": value}


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ({"a": math.nan}, " is no number in JSON; write a finite one"),
        ({"a": [math.inf]}, " is no number in JSON; write a finite one"),
        ({"a": -math.inf}, " is no number in JSON; write a finite one"),
        ({"a": "\ud800 private"}, "surrogates not allowed"),
        ({"\udfff": "a"}, "surrogates not allowed"),
        (TextToImageInput(prompt="a \ud83d"), "surrogate"),
        (cyclic(lambda value: [value]), "Circular reference"),
        (cyclic(types.MappingProxyType), ""),
        (deep(), ""),  # the interpreter's own words, which change
        ({"a": [1, {"b\n": b"bytes"}]}, "a.1.b\\n: bytes has no place in JSON; a local file is a pathlib.Path"),
        ({"a": Image.new("L", (1, 1))}, "a: Image has no place in JSON; save the picture, and give its pathlib.Path"),
        ({"a": io.BytesIO()}, "BytesIO has no place in JSON; a local file is a pathlib.Path"),
        ({"a": Entry(3)}, "a: a path is text, not int"),
        ({"a": {"b": [1, (bytearray(b"x"),)]}}, "a.b.1.0: bytearray has no place in JSON; a local file is a"),
        ({"a": "\ud800", "b": b"x"}, "a: surrogates"),
        ({"a": [1, math.nan]}, "a.1: nan is no number"),
        ({"a": int}, "a: type has no place in JSON"),
        ({"x" * 500 + "\x1b": Decimal(1)}, r"xxx\x1b: Decimal has no place in JSON; write float(...)"),
        ({"a": Path("x"), "b": "\ud800"}, "surrogates not allowed"),
        ({"a": "\ud800", "b": Path("x")}, "surrogates not allowed"),
        ({"a": "\ud800"}, "surrogates not allowed"),
        ({Path("x"): "a"}, "keys must be"),
        ({"a": {1, 2}}, "set has no place in JSON"),
        ({"a": 1j}, "complex has no place in JSON"),
        ({"a": object()}, "object has no place in JSON"),
        ({"a": len}, "builtin_function_or_method has no place in JSON"),
        ({(1, 2): "a"}, "keys must be"),
        ({"a": 10**5000}, "4300"),
        ([], "list has no place in JSON"),
        ("a", "str has no place in JSON"),
        (None, "NoneType has no place in JSON"),
        (PICTURE, "an input is a JSON object"),
    ],
    ids=range(32),
)
def test_refuses_what_is_no_json_object(value: Any, cause: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        encode_input(value)
    said = "".join(f"{name}: {problem}" for name, problem in caught.value.fields.items())
    assert str(caught.value).startswith(said or "The input cannot be written as JSON: ")
    assert cause in str(caught.value)
    assert "private" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)


def test_an_input_is_not_changed_by_writing_it() -> None:
    value = {"images": [PICTURE], "size": types.MappingProxyType({"width": 64})}
    before = dict(value)
    encode_input(value)
    assert value == before


HERE = Path(__file__)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from([PICTURE, HERE]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.none(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), anything))
def test_any_mapping_is_written_or_refused(value: dict[str, Any]) -> None:
    try:
        assert isinstance(json.loads(encode_input(value).recorded), dict)
    except InvalidInputError:
        return


ONE = {"prompt": "caf\u00e9", "width": 1024, "nested": {"a": [1, 2.5, True, None], "b": 1e300}}
SPELLINGS = [
    ONE,
    {"nested": {"b": 1e300, "a": [1, 2.5, True, None]}, "width": 1024, "prompt": "caf\u00e9"},
    {"prompt": "caf\u00e9", "width": 1024.0, "nested": {"a": [1.0, 2.5, True, None], "b": 10.0**300}},
    {"width": 1.024e3, "prompt": "caf\u00e9", "nested": {"a": (1, 2.50, True, None), "b": int(1e300)}},
]
OTHERS = [
    {**ONE, "prompt": "cafe\u0301"},  # another Unicode form: in a URL, another file
    {**ONE, "prompt": "caf\u00e9 "},
    {**ONE, "width": "1024"},
    {**ONE, "width": 1024.5},
    {**ONE, "width": 2**53 + 1},
    {**ONE, "width": 2**53},
    {**ONE, "width": True},
    {**ONE, "width": 1},
    {**ONE, "width": None},
    {**ONE, "nested": {"a": [2.5, 1, True, None], "b": 1e300}},
    {**ONE, "nested": {"a": [1, 2.5, 1, None], "b": 1e300}},
    {name: ONE[name] for name in ("prompt", "width")},
]


def test_equal_json_has_one_spelling_and_other_json_another():
    assert {encode_input(one).content for one in SPELLINGS} == {encode_input(ONE).content}
    assert json.loads(encode_input(ONE).content) == ONE
    assert len({encode_input(one).content for one in (ONE, *OTHERS)}) == 1 + len(OTHERS)


def test_the_one_spelling_is_compact_and_stays():
    spelt = canonical(b' {"b": -0.0, "a": "\\u00e9\xc3\xa9/"} ')
    assert spelt == '{"a":"\u00e9\u00e9/","b":0}'.encode()
    assert canonical(spelt) == spelt


@pytest.mark.parametrize("body", [b"[" * 200_000 + b"]" * 200_000, b"no JSON"], ids=["deep", "none"])
def test_what_cannot_be_read_is_its_own_spelling(body):
    assert canonical(body) == body


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("image_urls", ["https://a.example/a.png", "ref.png"], "ref.png"),
        ("image_url", "~/my pictures/REF.JPEG", "~/my pictures/REF.JPEG"),
        ("image", "C:\\a.webp", "C:\\a.webp"),
        ("image", "https://a.example/a.png", None),
        ("image", "data:image/png", None),
        ("image", ["a cat", 3, None], None),
        ("image", {"file": "ref.png", "sha256": None}, None),
        ("prompt", "ref.png", None),
        ("other", "ref.png", None),
    ],
)
def test_a_string_that_looks_like_a_file_in_a_field_at_fault_is_found(
    field: str, value: Any, found: str | None
) -> None:
    error = InputRejectedError(status_code=422, detail="image_urls, image_url, image, prompt: not a URL")
    recorded = json.dumps({"note": "ref.png", field: value}).encode()
    assert file_names(recorded, error) == ({} if found is None else {field: found})


@pytest.mark.parametrize(
    ("value", "said", "found"),
    [
        ("a.png", "image_urls: Input should be a list of at least one file", True),
        ({"file": "a.png", "sha256": None}, "n: no; image_urls: Input should be an array", True),
        (["a.png"], "image_urls: Input should be a list", False),
        (None, "image_urls: Input should be a list", False),
        ("a.png", "image_urls: not a URL; other: Input should be a list", False),
        ("a.png", "my_image_urls: Input should be a list", False),
    ],
)
def test_one_value_where_the_service_wants_a_list_is_found(value: Any, said: str, found: bool) -> None:
    recorded = json.dumps({"n": 3, "image_urls": value}).encode()
    error = InputRejectedError(status_code=422, detail=said)
    assert single_values(recorded, error) == (("image_urls",) if found else ())


def test_an_input_too_deep_to_be_read_gives_no_advice() -> None:
    deep = b"[" * 1000 + b"]" * 1000
    assert (file_names(deep, InputRejectedError()), single_values(deep, InputRejectedError())) == ({}, ())
