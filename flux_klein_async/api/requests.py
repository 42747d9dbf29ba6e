"""Every call of the API as a frozen `Request`, and the JSON of a submit (source: docs/wire.md)."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from multidict import CIMultiDict, CIMultiDictProxy
from pydantic import BaseModel

from flux_klein_async.api.messages import Kind, Request
from flux_klein_async.api.urls import ApiUrls
from flux_klein_async.errors import InvalidInputError
from flux_klein_async.misuse import slip

__all__ = ["PAGE", "Api", "canonical", "checked_word", "encode_input"]

# Seconds of silence on the socket. A half-open connection never answers, so a poll fails soon and the next one tries
# again. Other calls are small, files may come from cold storage, and losing a submit costs money.
_POLL_SILENCE = 5.0
_CALL_SILENCE = 10.0
_FILE_SILENCE = 30.0
_SUBMIT_SILENCE = 60.0
_WITH_COST = "?include_cost=true"
PAGE = 100  # models; a service that gives fewer at once is asked more often


class Api:
    """Builds every request."""

    def __init__(self, urls: ApiUrls, token: str, user_agent: str) -> None:
        self.urls = urls
        common = {"Accept": "application/json", "User-Agent": user_agent}
        secret = {**common, "Authorization": f"Bearer {token}"}
        self._headers = _frozen({**secret, "Accept-Encoding": "gzip, deflate"})
        # Uncompressed: an answer that is broken in its compression would cost a paid id.
        self._post_headers = _frozen({**secret, "Accept-Encoding": "identity", "Content-Type": "application/json"})
        # Uncompressed, so that Content-Length is the size of the file.
        self._file_headers = _frozen({"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": user_agent})

    def submit(self, model: str, body: bytes) -> Request:
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


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        fields = value.model_dump(exclude_none=True)
        return fields["url"] if set(fields) == {"url"} else fields  # a HostedFile is sent as its URL
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")


# json.dumps would make a new encoder for each call.
_ENCODER = json.JSONEncoder(default=_plain, allow_nan=False, ensure_ascii=False)


def encode_input(value: BaseModel | Mapping[str, Any]) -> bytes:
    """The body of a submit.

    Raises:
        InvalidInputError: It is no JSON object: a foreign type, NaN, a lone surrogate, a cycle.
    """
    try:
        fields = _plain(value)
        if not isinstance(fields, dict):
            raise TypeError("an input is a JSON object")
        return _ENCODER.encode(fields).encode()
    except (TypeError, ValueError, RecursionError) as error:
        cause = error.reason if isinstance(error, UnicodeEncodeError) else str(error)  # its text holds the input
        raise InvalidInputError("The input cannot be written as JSON", cause=cause) from None


def canonical(body: bytes) -> bytes:
    """A body in the one spelling that equal JSON has, by which an item is recognised; it is never sent.

    Keys are sorted, there is no whitespace, and 1024.0 is 1024. Texts stay as they are, in whatever Unicode form, as in
    RFC 8785: a URL in another form is another URL.
    """
    try:
        value = json.loads(body, parse_float=_number)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # nested as deep as Python can just encode
        return body


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value
