"""Which endpoint a request line means.

Pure. Must not know whether what it names exists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .answers import Endpoint

__all__ = ["Route", "find_route"]

_MODELS = "/v1/models"
_REQUESTS = "/v1/requests/"
_FILES = "/files/"
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", re.ASCII)
_FILE = re.compile(r"([A-Za-z0-9_-]{1,128})(?:\.([0-9]))?\.(png|mp4)", re.ASCII)
_ORIGIN = re.compile(r"https?://[^/?]*", re.IGNORECASE)

_METHODS: dict[str, Endpoint] = {"status": "status", "result": "result", "cancel": "cancel"}


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint and what the path and the query say to it.

    `malformed`: the id cannot be one. `allow`: what the method should have been, where it is another.
    """

    endpoint: Endpoint
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None
    model_id: str | None = None
    file: tuple[int, str] | None = None
    malformed: bool = False
    allow: str | None = None


def find_route(method: str, target: str) -> Route:
    """Read a request line; what is no endpoint of the service is `other`."""
    # A proxy's client writes the whole URL where others write the path.
    target = _ORIGIN.sub("", target, count=1) if not target.startswith("/") else target
    path, _, query_text = target.partition("?")
    query = dict(parse_qsl(query_text, keep_blank_values=True)) if query_text else {}
    if path.startswith(_REQUESTS):
        return _request_route(method, path, query)
    if path == _MODELS:
        return _checked(method, "GET", Route("models", path, query))
    if path.startswith(_MODELS + "/"):
        return _model_route(method, path, query)
    if path.startswith(_FILES):
        return _file_route(method, path, query)
    return Route("other", path, query)


def _checked(method: str, wanted: str, route: Route) -> Route:
    if method == wanted:
        return route
    return Route("other", route.path, route.query, allow=wanted)


def _request_route(method: str, path: str, query: Mapping[str, str]) -> Route:
    text, _, verb = path[len(_REQUESTS) :].rpartition("/")
    endpoint = _METHODS.get(verb)
    if endpoint is None or not text:
        return Route("other", path, query)
    request_id = unquote(text)
    malformed = not _REQUEST_ID.fullmatch(request_id)
    route = Route(endpoint, path, query, request_id=request_id, malformed=malformed)
    return _checked(method, "POST" if endpoint == "cancel" else "GET", route)


def _model_route(method: str, path: str, query: Mapping[str, str]) -> Route:
    model_id = unquote(path[len(_MODELS) + 1 :])
    malformed = not _MODEL_ID.fullmatch(model_id)
    if method == "POST":
        return Route("submit", path, query, model_id=model_id, malformed=malformed)
    return _checked(method, "GET", Route("model", path, query, model_id=model_id, malformed=malformed))


def _file_route(method: str, path: str, query: Mapping[str, str]) -> Route:
    found = _FILE.fullmatch(path[len(_FILES) :])
    if found is None:
        return _checked(method, "GET", Route("file", path, query, malformed=True))
    request_id, number, suffix = found.groups()
    return _checked(method, "GET", Route("file", path, query, request_id=request_id, file=(int(number or 0), suffix)))
