"""What the environment says of the way to the service: certificate authorities, and proxies.

aiohttp makes its TLS context when it is imported and ignores a missing file, so named authorities get one of our own.

Only https goes through a proxy, inside a tunnel (CONNECT) that the proxy cannot read. Over plain http the proxy would
get the token, which goes to the API's origin alone. For the same reason a loopback host is never called through one.
"""

import base64
import ipaddress
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from yarl import URL

from flux_klein_async.api.credentials import SHORTEST_SECRET
from flux_klein_async.api.urls import host_of, is_loopback, parsed
from flux_klein_async.errors import ConfigurationError
from flux_klein_async.options import Environment

__all__ = ["Proxies", "Proxy", "named_authorities"]


def named_authorities(environment: Environment) -> ssl.SSLContext | None:
    """A context for SSL_CERT_FILE and SSL_CERT_DIR, or None; `ConfigurationError` if they name no certificates."""
    file, directories = environment.ca_file, environment.ca_dir
    if file is None and directories is None:
        return None
    stamp = None
    with suppress(OSError):  # changes when the file is replaced under a long-lived process
        found = Path(file or "").stat()
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
    return _context(file, directories, stamp)


@lru_cache(maxsize=2)  # reading a system's authorities takes some 20 ms: once a process, not once a client
def _context(file: str | None, directories: str | None, _stamp: object) -> ssl.SSLContext:
    context = ssl.create_default_context()  # OpenSSL reads the variables too, in place of its own file or directory
    context.set_alpn_protocols(["http/1.1"])  # without this, some servers speak HTTP/2
    if file is not None:
        try:
            context.load_verify_locations(cafile=file)
        except OSError as error:  # ssl.SSLError is one
            problem = f"SSL_CERT_FILE names {file}, where no certificates can be read"
            raise ConfigurationError(problem, cause=str(error)) from None
    if directories is not None:
        found = [directory for directory in directories.split(os.pathsep) if Path(directory).is_dir()]
        if not found:
            raise ConfigurationError(f"SSL_CERT_DIR names {directories}, which is no directory")
        for directory in found:
            context.load_verify_locations(capath=directory)
    return context


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy. Its address holds no credentials: they are a header that only the proxy gets."""

    url: URL
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


class Proxies:
    """The proxy for https, and the hosts that are called without it; false where there is none."""

    def __init__(self, environment: Environment) -> None:
        """Refuse nothing yet: a proxy that cannot be used may never be needed."""
        self._problem = ""
        self._proxy: Proxy | None = None
        self._direct = environment.no_proxy.lower().replace(",", " ").split()
        if environment.proxy is not None:
            try:
                self._proxy = _parsed(environment.proxy)
            except ValueError as error:
                self._problem = f"The proxy that HTTPS_PROXY or ALL_PROXY names cannot be used: {error}"
        self.secrets = self._proxy.secrets if self._proxy else ()  # a proxy may answer with what it was sent

    def __bool__(self) -> bool:
        return bool(self._proxy or self._problem)

    def of(self, address: str) -> Proxy | None:
        """The proxy for this address, or None; `ConfigurationError` if it cannot be used."""
        url = URL(address)
        host = host_of(url)
        if url.scheme != "https" or host is None or is_loopback(host):
            return None
        if any(entry == "*" or _covers(entry, host.rstrip("."), url.port) for entry in self._direct):
            return None
        if self._problem:
            raise ConfigurationError(self._problem)
        return self._proxy


def _parsed(text: str) -> Proxy:
    """The proxy that a variable names; without a scheme it is http, as in curl and requests."""
    try:
        url = parsed(text if "://" in text else f"http://{text}")
        host, port = host_of(url), url.port
    except ValueError:  # its text would show the credentials
        raise ValueError("it is no URL") from None
    if url.scheme not in {"http", "https"}:
        advice = "name the host in NO_PROXY; in Python, a session with a SOCKS connector can be lent to the client"
        raise ValueError(f"{url.scheme} is neither http nor https ({advice})")
    if host is None or port is None:
        raise ValueError("it names no host")
    plain = URL.build(scheme=url.scheme, host=host, port=port)
    if url.user is None and url.password is None:
        return Proxy(plain)
    basic = base64.b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()  # UTF-8: RFC 7617, 2.1
    return Proxy(plain, {"Proxy-Authorization": f"Basic {basic}"}, (basic, *_secrets(url)))


def _secrets(url: URL) -> Iterator[str]:
    """What would show the credentials, longest first, as text and as in a URL; without a password, the user does.

    A short password counts only next to its user: alone it is part of ordinary words.
    """
    for user, password in ((url.user or "", url.password or ""), (url.raw_user or "", url.raw_password or "")):
        if password:
            yield f"{user}:{password}"
        if len(password or user) >= SHORTEST_SECRET:
            yield password or user


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of NO_PROXY means this host: its name or a domain above, an address, a network (as in Go)."""
    with suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    name, colon, wanted = entry.lstrip(".").rpartition(":")
    if not colon:
        name, wanted = wanted, str(port)
    name = name.strip("[]").rstrip(".")
    return wanted == str(port) and bool(name) and (host == name or host.endswith(f".{name}"))
