"""Which URLs may be opened: those below the base URL, and files on trusted hosts.

API URLs are built from the base URL and a checked id; the URLs of an answer are never called with the token. yarl
parses URLs here and in aiohttp, so the host checked is the host opened. yarl accepts blanks, NUL bytes and percent
signs in a host, and a resolver stops at a NUL, so `host_of` checks the host again.
"""

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import quote

from yarl import URL

from flux_klein_async.errors import ConfigurationError, InvalidInputError
from flux_klein_async.misuse import slip

__all__ = [
    "DEFAULT_BASE_URL",
    "ApiUrls",
    "checked_model_id",
    "checked_request_id",
    "file_host",
    "host_of",
    "is_loopback",
    "is_public",
    "parsed",
    "redirected",
    "trusted_file_url",
]

DEFAULT_BASE_URL = "https://model-api.runcomfy.net"

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)  # docs/wire.md: as a vendor client accepts it
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", re.ASCII)
_FILE_DOMAINS = (".runcomfy.net", ".runcomfy.com")


def checked_request_id(request_id: object) -> str:
    """The id itself.

    Raises:
        InvalidInputError: It is not 1 to 128 letters, digits, `_` and `-`.
    """
    if isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id):
        return request_id
    raise InvalidInputError(f"Not a request id: {str(request_id)[:140]!r}")


def checked_model_id(model: object) -> str:
    """The id itself.

    Raises:
        InvalidInputError: It is not names joined by slashes.
    """
    if isinstance(model, str) and len(model) <= 256 and _MODEL_ID.fullmatch(model):
        return model
    raise InvalidInputError(f"Not a model id such as 'owner/model/variant': {str(model)[:140]!r}")


def file_host(name: object) -> str | None:
    """A host that files may come from, in lower case and in ASCII; None if it is no public host, or more than a host.

    With a leading dot it stands for every host below it too.
    """
    text = name if isinstance(name, str) and _BARE_HOST.fullmatch(name) else ""
    below = "." if text.startswith(".") else ""
    try:
        host = host_of(parsed(f"https://{text.removeprefix('.')}")) or ""
    except ValueError:
        host = ""
    # An address has no hosts below it.
    return None if not is_public(host) or (below and _address(host) is not None) else below + host.removesuffix(".")


class ApiUrls:
    """Every URL of the API, built from one base URL, and the hosts that files may come from."""

    def __init__(
        self, base_url: str | None = None, *, allow_insecure: bool | None = False, file_hosts: Collection[str] = ()
    ) -> None:
        """Check the base URL. A trailing `/v1`, as the vendor's CLI writes it, is accepted.

        `allow_insecure` None: as False, where users have no way to allow it. `file_hosts` are checked already
        (`file_host`).

        Raises:
            ConfigurationError: It is no https URL of a host alone, and no allowed http URL.
        """
        text = DEFAULT_BASE_URL if base_url is None else base_url
        if not isinstance(text, str):
            raise ConfigurationError(f"The base URL must be text, not {slip(text)}")
        try:
            url = parsed(text.strip())
            host, port = host_of(url), url.port
            if not text.strip().isprintable():  # yarl drops line breaks
                raise ValueError(text)
        except ValueError as error:
            raise ConfigurationError("The base URL cannot be read", cause=type(error).__name__) from None
        if url.scheme not in {"http", "https"} or not host or port is None:
            raise ConfigurationError(f"The base URL must begin with https:// and name a host{_with_scheme(text)}")
        if _has_credentials(url) or url.raw_query_string or url.raw_fragment:
            raise ConfigurationError("The base URL may hold neither credentials nor query nor fragment")
        if url.scheme == "http" and not allow_insecure and not is_loopback(host):
            raise ConfigurationError(
                f"Plain http to {host} would send the token in clear; use https"
                + (" or allow_insecure=True" if allow_insecure is False else "")
            )
        self.origin = str(url.origin())
        self.file_hosts = (*_FILE_DOMAINS, *file_hosts)
        path = url.raw_path.rstrip("/").removesuffix("/v1")
        self._prefix = f"{self.origin}{path}/v1"
        #: The service in the one spelling that its addresses have, by which a journal tells services apart.
        self.service = str(url.origin().with_host(host.rstrip("."))) + path.rstrip("/")

    def model(self, model: str) -> str:
        """The URL of a model: its catalogue entry by GET, a submit by POST."""
        return f"{self._prefix}/models/{checked_model_id(model)}"

    def models(self) -> str:
        """The URL of the catalogue."""
        return f"{self._prefix}/models"

    def request(self, request_id: str, verb: str) -> str:
        """The URL of a request's status, result or cancel."""
        return f"{self._prefix}/requests/{checked_request_id(request_id)}/{verb}"


def trusted_file_url(text: str, origin: str, hosts: Collection[str] = _FILE_DOMAINS) -> str | None:
    """The URL as it will be opened, or None if it is not trusted.

    Trusted are HTTPS on these hosts, by default those under runcomfy.net and runcomfy.com (docs/wire.md, "Output"),
    and `origin`, the base URL's own; never a URL with credentials. If that is this machine, its other names are opened
    as `origin`: an emulator names itself by an address, and its user by `localhost`.

    What is opened is the origin that was checked here, followed by path and query exactly as given: they may be signed
    as text. Only spaces and characters outside of ASCII, which no request line can carry, are quoted.
    """
    try:
        url = parsed(text)
        host, start = host_of(url), _ORIGIN.match(text)
        if host is None or start is None or _REFUSED.search(text) or _has_credentials(url) or url.port is None:
            return None
        checked = str(url.origin())
        if is_loopback(host) and is_loopback(URL(origin).host or "") and checked == str(URL(origin).with_host(host)):
            checked = origin
        rest = quote(text[start.end() :].partition("#")[0], safe=_AS_GIVEN)
    except (ValueError, TypeError):
        return None
    ours = url.scheme == "https" and any(
        host == name.removeprefix(".") or (name.startswith(".") and host.endswith(name)) for name in hosts
    )
    return checked + (rest if rest.startswith("/") else f"/{rest}") if checked == origin or ours else None


def redirected(url: str, location: str) -> str:
    """The URL that a `Location` header names, seen from a URL with a host (RFC 3986, 5.2).

    Unlike `urllib.parse.urljoin`, it rewrites nothing of what the header says, beyond leading `./` and `../`.
    """
    if _SCHEME.match(location):
        return location
    scheme, _, rest = url.partition("//")
    host, _, path = _UNTIL_QUERY.split(rest)[0].partition("/")
    origin = f"{scheme}//{host}"
    if location.startswith("//"):
        return scheme + location
    if location.startswith("/"):
        return origin + location
    if not location or location[0] in "?#":
        return f"{origin}/{path}{location}"
    folders = path.split("/")[:-1]
    while (step := _DOTS.match(location)) is not None:
        location = location[step.end() :]
        folders = folders[: -1 if step[0].startswith("..") else None]
    return "/".join((origin, *folders, location))


_BARE_HOST = re.compile(r"[^\s/?#@:\\]+")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_UNTIL_QUERY = re.compile(r"[?#]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_DOTS = re.compile(r"\.\.?(/|$)")
_REFUSED = re.compile(r"[\\\x00-\x1f\x7f]")  # parsers disagree about backslashes, and drop some control characters
_AS_GIVEN = "".join(map(chr, range(0x21, 0x7F)))


def _with_scheme(text: str) -> str:
    """What to write instead of a host whose scheme was left out, as the rest of a sentence."""
    try:
        url = parsed(f"https://{text.strip()}")
        host = host_of(url) or ""
        if is_loopback(host):
            url = parsed(f"http://{text.strip()}")
        is_host = url.explicit_port is not None or is_public(host) or is_loopback(host)
        return f"; write {url.origin()}" if is_host else ""
    except ValueError:
        return ""


def _has_credentials(url: URL) -> bool:
    return url.user is not None or url.password is not None


# RFC 1123, 2.1: labels of letters, digits and inner hyphens; the underscore is seen in the wild.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?", re.ASCII)
# Names that resolve only inside one network, or nowhere (RFC 6761, 6762, 7686, 9476).
_PRIVATE_SUFFIXES = frozenset({"alt", "example", "internal", "invalid", "local", "localhost", "onion", "test"})
# Networks about which Python releases differ, refused on all of them (IANA, special-purpose address registries).
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",  # protocol assignments
            "192.88.99.0/24",  # relays of 6to4
            # Outside of 2000::/3 nothing is global unicast: also IPv4-compatible ("::7f00:1"), translated
            # ("::ffff:0:7f00:1") and NAT64 ("64:ff9b::7f00:1") addresses, which lead to any IPv4 address.
            *("::/3", "4000::/2", "8000::/1"),
            "2001::/23",  # protocol assignments, Teredo ("2001::7f00:1") among them
            "2002::/16",  # 6to4 ("2002:7f00:1::")
            "3fff::/20",  # documentation
        ),
    )
)
# The middle of an address that holds an IPv4 address, in any network (ISATAP, RFC 5214, 6.1).
_TUNNELS = (b"\0\0\x5e\xfe", b"\x02\0\x5e\xfe")


def host_of(url: URL) -> str | None:
    """The host in lower case and in ASCII, or None if it is no proper host."""
    host = (url.raw_host or "").lower()
    if _address(host) is not None or (len(host) <= 253 and _NAME.fullmatch(host)):
        return host
    return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address  # Python releases differ in their answers about a mapped address


def is_loopback(host: str) -> bool:
    """Whether the host is this machine."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def is_public(host: str) -> bool:
    """Whether the host can be reached from anywhere: a name with a dot, or a global unicast address."""
    address = _address(host)
    if address is not None:
        if any(address in network for network in _SPECIAL if network.version == address.version):
            return False
        if address.packed[8:12] in _TUNNELS:
            return False
        local = address.is_multicast or address.is_reserved or getattr(address, "scope_id", None) is not None
        return address.is_global and not local
    labels = host.rstrip(".").split(".")
    # By the WHATWG URL standard, a last label of digits (or 0x...) makes the name an IPv4 address.
    numeric = labels[-1].isdigit() or labels[-1].startswith("0x")
    return len(labels) > 1 and not numeric and labels[-1] not in _PRIVATE_SUFFIXES


def parsed(text: str) -> URL:
    """Any text as a URL.

    Raises:
        ValueError: It is no URL.
    """
    try:
        return URL(text)
    except IndexError:  # yarl 1.25 raises it for "x://[]@"
        raise ValueError("Invalid URL: brackets without a host") from None
