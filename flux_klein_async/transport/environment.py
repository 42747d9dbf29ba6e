"""Which certificate authorities are trusted: OpenSSL's own, and those that the environment names.

aiohttp makes its default context when it is imported: what a program sets later is not seen by it, and a file that
does not exist is passed over in silence. A context of our own is made where one is named, and only there.

Which proxy an address is called through: what the environment's variables mean. Pure.

Only https goes through a proxy, inside a tunnel (CONNECT) that the proxy cannot read. Over plain http the proxy would
be given the token, and the token goes to the API's origin alone: `allow_insecure` permits the way to the API to be
read, not somebody else to be sent it. For the same reason a loopback host is never called through one.
"""

import base64
import ipaddress
import os
import ssl
from collections.abc import Iterator, Mapping
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
    """A context that trusts what SSL_CERT_FILE and SSL_CERT_DIR name; None where neither is set.

    Raises:
        ConfigurationError: There are no certificates.
    """
    file, directory = environment.ca_file, environment.ca_dir
    if file is None and directory is None:
        return None
    return _context(file, directory, _stamp(file))


@lru_cache(maxsize=2)  # reading a system's authorities takes some 20 ms: once a process, not once a client
def _context(file: str | None, directory: str | None, _: object) -> ssl.SSLContext:
    # OpenSSL reads the same variables here, and takes a file or directory that is named in place of its own.
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])  # all that is spoken here; some servers take silence for HTTP/2
    if file is not None:
        _load(context, file)
    if directory is not None:
        _load_all(context, directory)
    return context


def _stamp(file: str | None) -> object:
    """What changes when the file is replaced under a process that lives for months."""
    try:
        found = Path(file or "").stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _load(context: ssl.SSLContext, file: str) -> None:
    try:
        context.load_verify_locations(cafile=file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"SSL_CERT_FILE names {file}, where no certificates can be read", cause=str(error)
        ) from None


def _load_all(context: ssl.SSLContext, directories: str) -> None:
    found = [directory for directory in directories.split(os.pathsep) if Path(directory).is_dir()]
    if not found:
        raise ConfigurationError(f"SSL_CERT_DIR names {directories}, which is no directory")
    for directory in found:
        context.load_verify_locations(capath=directory)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy whose address holds no credentials: those are a header that the proxy alone is sent."""

    url: URL
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


class Proxies:
    """The proxy for https and the hosts that are called without it; false where there is none."""

    def __init__(self, environment: Environment) -> None:
        """Nothing is refused here: what cannot be used may not be needed either."""
        self._problem = ""
        self._proxy: Proxy | None = None
        self._direct = tuple(filter(None, environment.no_proxy.lower().replace(",", " ").split()))
        if environment.proxy is not None:
            try:
                self._proxy = _parsed(environment.proxy)
            except ValueError as error:
                self._problem = f"The proxy that HTTPS_PROXY or ALL_PROXY names cannot be used: {error}"

    def __bool__(self) -> bool:
        return bool(self._proxy or self._problem)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown, whatever a proxy answers."""
        return self._proxy.secrets if self._proxy else ()

    def of(self, address: str) -> Proxy | None:
        """The proxy to call this address through, or None.

        Raises:
            ConfigurationError: It is to be called through one that cannot be used.
        """
        url = URL(address)
        host = host_of(url)
        if url.scheme != "https" or host is None or is_loopback(host) or self._is_direct(host, url.port):
            return None
        if self._problem:
            raise ConfigurationError(self._problem)
        return self._proxy

    def _is_direct(self, host: str, port: int | None) -> bool:
        name = host.rstrip(".")
        return any(entry == "*" or _covers(entry, name, port) for entry in self._direct)


def _parsed(text: str) -> Proxy:
    """The proxy of a variable's value; without a scheme it is http, as curl and requests have it."""
    try:
        url = parsed(text if "://" in text else f"http://{text}")
        host, port = host_of(url), url.port
    except ValueError:  # its text would show the credentials
        raise ValueError("it is no URL") from None
    if url.scheme not in {"http", "https"}:
        raise ValueError(
            f"{url.scheme} is none of http and https (for SOCKS lend the client a session with a SOCKS connector, "
            "or pass trust_env=False)"
        )
    if host is None or port is None:
        raise ValueError("it names no host")
    plain = URL.build(scheme=url.scheme, host=host, port=port)
    if url.user is None and url.password is None:
        return Proxy(plain)
    user, password = url.user or "", url.password or ""
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()  # UTF-8: RFC 7617, 2.1
    return Proxy(plain, {"Proxy-Authorization": f"Basic {basic}"}, (basic, *_secrets(url)))


def _secrets(url: URL) -> Iterator[str]:
    """What would give the credentials away, longest first, as it is meant and as it is written in a URL.

    A password of a few letters only next to its user: alone it would be found in ordinary words. Where there is no
    password, the user is the secret.
    """
    for user, password in ((url.user or "", url.password or ""), (url.raw_user or "", url.raw_password or "")):
        if password:
            yield f"{user}:{password}"
        if len(password or user) >= SHORTEST_SECRET:
            yield password or user


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of NO_PROXY means this host: its name or a domain above, an address, a network (as in Go)."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    name, colon, wanted = entry.lstrip(".").rpartition(":")
    if not colon:
        name, wanted = wanted, str(port)
    name = name.strip("[]").rstrip(".")
    return wanted == str(port) and bool(name) and (host == name or host.endswith(f".{name}"))
