"""Which certificate authorities are trusted: OpenSSL's own, and those that the environment names.

aiohttp makes its default context when it is imported: what a program sets later is not seen by it, and a file that
does not exist is passed over in silence. A context of our own is made where one is named, and only there.
"""

import os
import ssl
from functools import lru_cache
from pathlib import Path

from flux_klein_async.errors import ConfigurationError
from flux_klein_async.options import Environment

__all__ = ["named_authorities"]


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
