"""What we ask: every call of the API as a frozen `Request`.

The only place where the token enters a header, and the only one that writes JSON. Sources of every fact:
docs/wire.md.
"""

import json
from collections.abc import Mapping
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy
from pydantic import BaseModel

from flux_klein_async.api.messages import Kind, Request
from flux_klein_async.api.urls import ApiUrls
from flux_klein_async.errors import InvalidInputError

__all__ = ["Api", "encode_input"]

# Seconds of silence on the socket. A half-open connection answers a poll never: it is given up soon and simply
# polled again. Other calls are small and repeated too, files may come from cold storage. A submit is given up late,
# since its loss costs money.
_POLL_SILENCE = 5.0
_CALL_SILENCE = 10.0
_FILE_SILENCE = 30.0
_SUBMIT_SILENCE = 60.0
_WITH_COST = "?include_cost=true"


class Api:
    """Builds every request; the only object that puts the token into a header."""

    def __init__(self, urls: ApiUrls, token: str, user_agent: str) -> None:
        self.urls = urls
        common = {"Accept": "application/json", "User-Agent": user_agent}
        secret = {**common, "Authorization": f"Bearer {token}"}
        self._headers = _frozen(secret)
        self._post_headers = _frozen({**secret, "Content-Type": "application/json"})
        # Content-Length counts the bytes as they are sent: the length of a compressed file could not be checked.
        self._file_headers = _frozen({"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": user_agent})

    def submit(self, model: str, body: bytes) -> Request:
        """The one request that costs money."""
        return Request(
            kind=Kind.SUBMIT,
            method="POST",
            url=self.urls.model(model),
            headers=self._post_headers,
            body=body,
            replayable=False,
            silence=_SUBMIT_SILENCE,
        )

    def poll(self, request_id: str) -> Request:
        """A status call made while waiting."""
        return self._get(self.urls.request(request_id, "status"), _POLL_SILENCE)

    def poll_result(self, request_id: str) -> Request:
        """A result call made while waiting: before the end it is answered with the state, after it with all."""
        return self._get(self.urls.request(request_id, "result") + _WITH_COST, _POLL_SILENCE)

    def status(self, request_id: str) -> Request:
        """A status call made for its own sake."""
        return self._get(self.urls.request(request_id, "status"), _CALL_SILENCE)

    def result(self, request_id: str) -> Request:
        """The result, with its cost where the service tells it."""
        return self._get(self.urls.request(request_id, "result") + _WITH_COST, _CALL_SILENCE)

    def model(self, model: str) -> Request:
        """The catalogue entry of a model."""
        return self._get(self.urls.model(model), _CALL_SILENCE)

    def cancel(self, request_id: str) -> Request:
        """A cancel has no body; asking twice cancels no more than once."""
        return Request(
            kind=Kind.CANCEL,
            method="POST",
            url=self.urls.request(request_id, "cancel"),
            headers=self._headers,
            replayable=True,
            silence=_CALL_SILENCE,
        )

    def file(self, url: str) -> Request:
        """A hosted file: without the token, whatever the host."""
        return Request(
            kind=Kind.FILE,
            method="GET",
            url=url,
            headers=self._file_headers,
            replayable=True,
            silence=_FILE_SILENCE,
        )

    def _get(self, url: str, silence: float) -> Request:
        return Request(kind=Kind.READ, method="GET", url=url, headers=self._headers, replayable=True, silence=silence)


def _frozen(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Headers in the form that aiohttp takes as it is: a plain dict it would convert for every call."""
    return CIMultiDictProxy(CIMultiDict(headers))


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        fields = value.model_dump(exclude_none=True)
        return fields["url"] if set(fields) == {"url"} else fields  # a HostedFile goes as its URL
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")


# json.dumps would make a new encoder for each call with options.
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
        text = _ENCODER.encode(fields)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError("The input cannot be written as JSON", cause=_reason(error)) from None


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, UnicodeEncodeError) else str(error)
