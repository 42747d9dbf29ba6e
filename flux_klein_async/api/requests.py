"""Every call of the API as a frozen `Request`, and the JSON of a submit (source: docs/wire.md)."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from multidict import CIMultiDict, CIMultiDictProxy
from pydantic import BaseModel
from pydantic_core import from_json

from flux_klein_async import __version__
from flux_klein_async.api.messages import Kind, Request
from flux_klein_async.api.urls import ApiUrls
from flux_klein_async.errors import InputRejectedError, InvalidInputError
from flux_klein_async.misuse import slip
from flux_klein_async.models import TextToImage9BInput, TextToImageInput, from_float, whole
from flux_klein_async.text import shown

__all__ = [
    "PAGE",
    "Api",
    "InputBody",
    "InputFile",
    "canonical",
    "checked_word",
    "encode_input",
    "file_names",
    "single_values",
]

# Seconds of silence on the socket. A half-open connection never answers, so a poll fails soon and the next one tries
# again. Other calls are small, files may come from cold storage, and losing a submit costs money.
_POLL_SILENCE = 5.0
_CALL_SILENCE = 10.0
_FILE_SILENCE = 30.0
_SUBMIT_SILENCE = 60.0
_WITH_COST = "?include_cost=true"
_MOST_NAMED = 5  # file names in an advice
PAGE = 100  # models; a service that gives fewer at once is asked more often


class Api:
    """Builds every request."""

    def __init__(self, urls: ApiUrls, token: str) -> None:
        self.urls = urls
        agent = {"User-Agent": f"flux_klein_async/{__version__}"}
        common = {"Accept": "application/json", **agent}
        # A cached status would be a delay that nobody can explain. Files never change, and may come from a cache.
        secret = {**common, "Authorization": f"Bearer {token}", "Cache-Control": "no-cache"}
        self._headers = _frozen({**secret, "Accept-Encoding": "gzip, deflate"})
        # Uncompressed: an answer that is broken in its compression would cost a paid id.
        self._post_headers = _frozen({**secret, "Accept-Encoding": "identity", "Content-Type": "application/json"})
        # Uncompressed, so that Content-Length is the size of the file.
        self._file_headers = _frozen({"Accept": "*/*", "Accept-Encoding": "identity", **agent})

    def submit(self, model: str, body: bytes | memoryview) -> Request:
        """The one request that costs money."""
        url, headers = self.urls.model(model), self._post_headers
        return Request(Kind.SUBMIT, "POST", url, headers, replayable=False, silence=_SUBMIT_SILENCE, body=body)

    def poll(self, request_id: str) -> Request:
        """A status call made while waiting."""
        return self._get(self.urls.request(request_id, "status"), _POLL_SILENCE)

    def poll_result(self, request_id: str) -> Request:
        """A result call made while waiting: answered with the state before the end, with the result after it."""
        return self._get(self.urls.request(request_id, "result") + _WITH_COST, _POLL_SILENCE)

    def status(self, request_id: str) -> Request:
        """A single status call."""
        return self._get(self.urls.request(request_id, "status"), _CALL_SILENCE)

    def result(self, request_id: str) -> Request:
        """The result, with its cost if the service tells it."""
        return self._get(self.urls.request(request_id, "result") + _WITH_COST, _CALL_SILENCE)

    def model(self, model: str) -> Request:
        """The catalogue entry of a model."""
        return self._get(self.urls.model(model), _CALL_SILENCE)

    def models(self, search: str | None, category: str | None, offset: int) -> Request:
        """A page of the catalogue, without the schemas: they are most of its size."""
        words = {"search": search, "category": category, "limit": PAGE, "offset": offset}
        query = urlencode({name: word for name, word in words.items() if word not in (None, "")}, quote_via=quote)
        return self._get(f"{self.urls.models()}?{query}", _CALL_SILENCE)

    def cancel(self, request_id: str) -> Request:
        """A cancel has no body, and repeating it changes nothing."""
        url = self.urls.request(request_id, "cancel")
        return Request(Kind.CANCEL, "POST", url, self._headers, replayable=True, silence=_CALL_SILENCE)

    def file(self, url: str) -> Request:
        """A hosted file, without the token."""
        return Request(Kind.FILE, "GET", url, self._file_headers, replayable=True, silence=_FILE_SILENCE)

    def _get(self, url: str, silence: float) -> Request:
        return Request(Kind.READ, "GET", url, self._headers, replayable=True, silence=silence)


def _frozen(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Headers in the form that aiohttp uses as it is; it would convert a plain dict for every call."""
    return CIMultiDictProxy(CIMultiDict(headers))


def checked_word(name: str, word: object) -> str | None:
    """A word of a search, or None.

    Raises:
        InvalidInputError: It is no text that a URL can hold.
    """
    if word is not None and not isinstance(word, str):
        raise InvalidInputError(f"{name} must be text, or None for every model, not {slip(word)}")
    try:
        quote(word or "")
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{name} must be text that a URL can hold, not {word!r:.140}: {error.reason}") from None
    return word


# --- the input of a submit


class InputFile:
    """A local file of an input. Only its path is known before it is read (`operations.inputs`).

    Attributes:
        path: Where it is; absolute once it was read.
        size: Bytes, once it was read.
        sha256: The SHA-256 of its bytes in hexadecimal digits, once it was read.
    """

    __slots__ = ("path", "sha256", "size")

    def __init__(self, path: object) -> None:
        if isinstance(path, bytes):  # as `os.fsdecode` reads it
            path = path.decode("utf-8", "surrogateescape")
        if not isinstance(path, str):
            raise TypeError(f"a path is text, not {type(path).__name__}")
        self.path = Path(path)
        self.size: int | None = None
        self.sha256: str | None = None

    def __repr__(self) -> str:
        return f"the file {str(self.path)!r}"

    @property
    def facts(self) -> dict[str, Any]:
        """What a journal and a manifest show in place of its bytes."""
        return {"file": str(self.path), "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class InputBody:
    """The JSON of a submit before its local files are read.

    Attributes:
        template: The JSON, with a NUL byte, which JSON never holds, in place of each file.
        files: The files in this order, each with the field that holds it, such as `image_urls.0`.
    """

    template: bytes
    files: tuple[tuple[str, InputFile], ...] = ()

    @property
    def recorded(self) -> bytes:
        """What a journal records: path, size and SHA-256 in place of the bytes of each file."""
        return self._filled(lambda file: json.dumps(file.facts))

    @property
    def content(self) -> bytes:
        """The one spelling by which an item is recognised: a file counts with its bytes, wherever it is.

        Only for files that were read. The lone surrogate sets a digest apart from every text that an input may hold.
        """
        return canonical(self._filled(lambda file: f'"\\ud800{file.sha256}"'))

    def _filled(self, written: Callable[[InputFile], str]) -> bytes:
        if not self.files:
            return self.template
        first, *rest = self.template.split(b"\0")
        return first + b"".join(
            written(file).encode() + piece for (_, file), piece in zip(self.files, rest, strict=True)
        )


_FILE = "\ud800"  # stands for a file in the encoder's output: a text that cannot be encoded, so that no input holds it


def _is_path(value: object) -> bool:
    return isinstance(value, InputFile) or hasattr(value, "__fspath__")  # which os.PathLike means


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        fields = value.model_dump(exclude_none=True)
        return fields["url"] if set(fields) == {"url"} else fields  # a HostedFile is sent as its URL
    if isinstance(value, Mapping):
        return dict(value)
    if _is_path(value):
        return _FILE
    if isinstance(number := whole(value), int):
        return number
    way = _FILE_WAY if isinstance(value, bytes | bytearray | memoryview) else None
    if way is None and not isinstance(value, type):
        way = next((way for name, way in _WAYS.items() if hasattr(value, name)), None)
    raise TypeError(f"{type(value).__name__} has no place in JSON{f'; {way}' if way else ''}")


_FILE_WAY = "a local file is a pathlib.Path"
# What to write instead, by a method that tells the kind of value.
_WAYS = {
    "read": _FILE_WAY,
    "save": "save the picture, and give its pathlib.Path",
    "paths": "a local file is one of its .paths",
    "tolist": f"write its .tolist(); {_FILE_WAY}",
    "isoformat": "write its .isoformat()",
    "__float__": "write float(...)",
    "__iter__": "write list(...)",
}


# json.dumps would make a new encoder for each call.
_ENCODER = json.JSONEncoder(default=_plain, allow_nan=False, ensure_ascii=False)


def encode_input(value: BaseModel | Mapping[str, Any]) -> InputBody:
    """The body of a submit. Its local files (any `os.PathLike` that is a value or an element of a list) are not read.

    Raises:
        InvalidInputError: It is no JSON object: a foreign type, NaN, a lone surrogate, a cycle.
    """
    try:
        if isinstance(value, BaseModel) and type(value) in _TYPED:
            return InputBody(value.model_dump_json().encode())
        return _encoded(value)
    except _UNWRITABLE as error:
        name, cause = _culprit(value, error)
        if name:
            raise InvalidInputError(f"{name}: {cause}", fields={name: cause}) from None
        raise InvalidInputError("The input cannot be written as JSON", cause=cause) from None


_UNWRITABLE = (TypeError, ValueError, RecursionError)
# pydantic writes these in a third of the time. A subclass may have other fields, such as files.
_TYPED = {TextToImageInput, TextToImage9BInput}


def _encoded(value: object) -> InputBody:
    fields = _plain(value)
    if not isinstance(fields, dict):
        raise TypeError("an input is a JSON object")
    text = _ENCODER.encode(fields)
    files: tuple[tuple[str, InputFile], ...] = ()
    if f'"{_FILE}"' in text:
        files = tuple(_files_in(fields))
        text = text.replace(f'"{_FILE}"', "\0", len(files))
    return InputBody(text.encode(), files)


_LONGEST_NAME = 100  # characters of a field's name in an error


def _culprit(value: object, error: Exception) -> tuple[str, str]:
    """The innermost field that cannot be written ("" for the input as a whole), and why."""
    names: list[str] = []
    inner: tuple[object, object, Exception] | None = ("", value, error)
    while inner is not None:
        key, value, error = inner
        names.append(str(key))
        if len(names) > 1 and (isinstance(error, RecursionError) or "Circular" in str(error)):
            break  # its parts are in themselves
        inner = next(_unwritable(value), None)
    if isinstance(error, UnicodeEncodeError):  # its text holds the input
        cause = f"{error.reason}; write whole characters"
    elif isinstance(value, float):
        cause = f"{value} is no number in JSON; write a finite one"
    else:
        cause = str(error)
    return shown(".".join(names[1:])[-_LONGEST_NAME:]), cause


def _unwritable(value: object) -> Iterator[tuple[object, object, Exception]]:
    for key, part in _parts(value):
        try:
            _encoded({"": part})
        except _UNWRITABLE as error:
            yield key, part, error


def _parts(value: object) -> Iterable[tuple[object, object]]:
    value = _plain(value) if isinstance(value, BaseModel | Mapping) else value
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def _files_in(value: Any, name: str = "") -> Iterator[tuple[str, InputFile]]:
    """The files of an input with their fields, in the order in which the encoder writes them."""
    if _is_path(value) and not isinstance(value, str):
        yield name, value if isinstance(value, InputFile) else InputFile(value.__fspath__())
        return
    for key, part in _parts(value):
        yield from _files_in(part, f"{name}.{key}" if name else str(key))


_FILE_NAME = re.compile(  # one line with the suffix of what inputs take, and no URL
    r"(?!\w+://|data:)[^\n]{1,200}\.(png|jpe?g|webp|gif|bmp|avif|heic|tiff?|mp4|mov|webm|mkv|mp3|wav)", re.IGNORECASE
)


def single_values(recorded: bytes, error: InputRejectedError) -> tuple[str, ...]:
    """The fields of one value where the service says that it wants a list."""
    found = list[str]()
    with suppress(ValueError):  # too deep for an advice
        for name, value in from_json(recorded).items():
            if (
                value is not None
                and not isinstance(value, list)
                and any(re.search(rf"\b{re.escape(name)}\b.*\b(list|array)\b", part) for part in str(error).split("; "))
            ):
                found.append(name)
    return tuple(found[:_MOST_NAMED])


def file_names(recorded: bytes, error: InputRejectedError) -> dict[str, str]:
    """By field, a text that looks like the name of a local file, where the service names that field at fault."""
    said, found = str(error), dict[str, str]()
    with suppress(ValueError):  # too deep for an advice
        for name, value in from_json(recorded).items():
            texts = (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))
            text = next(filter(_FILE_NAME.fullmatch, texts), None)
            if text is not None and "prompt" not in name and re.search(rf"\b{re.escape(name)}\b", said):
                found[name] = text
    return dict(islice(found.items(), _MOST_NAMED))


def canonical(body: bytes) -> bytes:
    """A body in the one spelling that equal JSON has, by which an item is recognised; it is never sent.

    Keys are sorted, there is no whitespace, and 1024.0 is 1024. Texts stay as they are, in whatever Unicode form, as in
    RFC 8785: a URL in another form is another URL.
    """
    try:
        value = _DECODER.decode(body.decode(errors="surrogatepass"))
        return _CANONICAL.encode(value).encode(errors="surrogatepass")  # see InputBody.content
    except (ValueError, RecursionError):  # nested as deep as Python can just encode
        return body


_DECODER = json.JSONDecoder(parse_float=from_float)  # made once: `json.loads` would make one for each body
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
