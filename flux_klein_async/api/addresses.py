"""Which address may be called: the base URL, request ids, and the hosts that files come from.

Addresses are always built from the base URL and a checked id; URLs that an answer brings are never called with
the token. Parsing is done by yarl, the parser that aiohttp opens connections with, so that what is checked here
is what is opened there.
"""

import re

from flux_klein_async.errors import ConfigurationError, InvalidInputError
from flux_klein_async.hosts import host_of, is_loopback, parsed

__all__ = ["DEFAULT_BASE_URL", "Addresses", "checked_model_id", "checked_request_id", "trusted_file_url"]

DEFAULT_BASE_URL = "https://model-api.runcomfy.net"

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)  # docs/wire.md: as a vendor client accepts it
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", re.ASCII)
_FILE_DOMAINS = ("runcomfy.net", "runcomfy.com")


def checked_request_id(request_id: object) -> str:
    """The id itself, if it can stand in a path.

    Raises:
        InvalidInputError: It holds something else than 1 to 128 letters, digits, `_` and `-`.
    """
    if isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id):
        return request_id
    raise InvalidInputError(f"Not a request id: {str(request_id)[:140]!r}")


def checked_model_id(model: object) -> str:
    """The id itself, if it can stand in a path.

    Raises:
        InvalidInputError: It is not names joined by slashes.
    """
    if isinstance(model, str) and len(model) <= 256 and _MODEL_ID.fullmatch(model):
        return model
    raise InvalidInputError(f"Not a model id such as 'owner/model/variant': {str(model)[:140]!r}")


class Addresses:
    """Every address of the API, built from one base URL."""

    def __init__(self, base_url: str | None = None, *, allow_insecure: bool = False) -> None:
        """Check the base URL; a trailing `/v1`, as the vendor's CLI has it, is accepted.

        Raises:
            ConfigurationError: It is no such URL, or plain http to another machine.
        """
        text = DEFAULT_BASE_URL if base_url is None else base_url
        try:
            url = parsed(text.strip())
            host, port = host_of(url), url.port
            if not text.strip().isprintable():  # yarl drops line breaks
                raise ValueError(text)
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigurationError("The base URL cannot be read", cause=type(error).__name__) from None
        if url.scheme not in {"http", "https"} or not host or port is None:
            raise ConfigurationError("The base URL must begin with https:// and name a host")
        if url.user is not None or url.password is not None or url.raw_query_string or url.raw_fragment:
            raise ConfigurationError("The base URL may hold neither credentials nor query nor fragment")
        if url.scheme == "http" and not allow_insecure and not is_loopback(host):
            raise ConfigurationError(
                f"Plain http to {host} would send the token in clear; use https or allow_insecure=True"
            )
        self.origin = str(url.origin())
        self._prefix = self.origin + url.raw_path.rstrip("/").removesuffix("/v1") + "/v1"

    def model(self, model: str) -> str:
        """Where a model is described, and where its input is posted."""
        return f"{self._prefix}/models/{checked_model_id(model)}"

    def request(self, request_id: str, verb: str) -> str:
        """Where a request's status, result or cancel is."""
        return f"{self._prefix}/requests/{checked_request_id(request_id)}/{verb}"


def trusted_file_url(text: str, origin: str) -> str | None:
    """The URL as it will be opened, or None where no file may come from there.

    Trusted are HTTPS hosts under runcomfy.net and runcomfy.com (docs/wire.md, "Output"), and `origin`, the base
    URL's own. Credentials in the URL are refused everywhere.
    """
    try:
        url = parsed(text)
        host = host_of(url)
        if host is None or "\\" in text or url.user is not None or url.password is not None or url.port is None:
            return None
        own = str(url.origin()) == origin
    except (ValueError, TypeError):
        return None
    ours = url.scheme == "https" and any(host == name or host.endswith(f".{name}") for name in _FILE_DOMAINS)
    return str(url.with_fragment(None)) if own or ours else None
