"""Which texts are host names, and which hosts are public: the ground on which files are trusted. Pure.

yarl, which aiohttp opens connections with, lets blanks, NUL bytes and percent signs through as part of a host, while
the resolver below stops at a NUL. What passes here means the same host everywhere.
"""

import ipaddress
import re

from yarl import URL

__all__ = ["host_of", "is_loopback", "is_public", "parsed"]

# RFC 1123, 2.1: labels of letters, digits and inner hyphens; the underscore is seen in the wild.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?", re.ASCII)
# Names that resolve inside one network only, or nowhere (RFC 6761, RFC 6762).
_PRIVATE_SUFFIXES = frozenset({"local", "localhost", "internal", "invalid"})
# They look global, and lead to any IPv4 address: NAT64 (RFC 6052, RFC 8215) and 6to4 (RFC 3056).
_TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")))


def host_of(url: URL) -> str | None:
    """The host in lower case and in ASCII, or None where the URL has no proper one."""
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
    return mapped or address  # Python's releases differ in what they say of a mapped one


def is_loopback(host: str) -> bool:
    """Whether the host is this very machine."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def is_public(host: str) -> bool:
    """Whether the host can be reached from anywhere: a name with a dot, or a global unicast address."""
    address = _address(host)
    if address is not None:
        translated = any(address in network for network in _TRANSLATED if network.version == address.version)
        return address.is_global and not address.is_multicast and not translated
    labels = host.rstrip(".").split(".")
    # A last label of digits (or 0x...) makes it an IPv4 address in disguise, by the WHATWG URL standard.
    numeric = labels[-1].isdigit() or labels[-1].startswith("0x")
    return len(labels) > 1 and not numeric and labels[-1] not in _PRIVATE_SUFFIXES


def parsed(text: str) -> URL:
    """A stranger's text as a URL.

    Raises:
        ValueError: It is none, whatever yarl says of it.
    """
    try:
        return URL(text)
    except IndexError:  # yarl 1.25 of "x://[]@": brackets in the user's part, and nothing after it
        raise ValueError("Invalid URL: brackets without a host") from None
