"""The knobs: frozen settings, checked when made, and the one reading of the environment.

`None` means no limit; `DEFAULT` means the client's own value. Nothing here is read at import.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

from flux_klein_async.errors import ConfigurationError, InvalidInputError

__all__ = [
    "DEFAULT",
    "Environment",
    "Limits",
    "OnAbandon",
    "RetryPolicy",
    "Timeout",
    "checked_timeout",
    "finite",
    "from_environ",
]

OnAbandon = Literal["cancel", "leave"]


class _Default(Enum):
    DEFAULT = "DEFAULT"

    def __repr__(self) -> str:
        return self.value


DEFAULT: Final = _Default.DEFAULT
Timeout = float | None | Literal[_Default.DEFAULT]


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ConfigurationError(sentence)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def finite(value: object) -> bool:
    """Whether it is a number, 0 or more, that the loop's clock can add."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return 0 <= float(value) < math.inf
    except OverflowError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much at once, and how large.

    Attributes:
        max_in_flight: Generations run by `generate*` at the same time.
        max_connections: Open connections to the API.
        polls_per_second: Ceiling for the polls of all waits of the client together; None is no ceiling.
        max_json_bytes: Largest answer read, after decompression (8 MiB).
        max_file_bytes: Largest file downloaded (64 MiB).
    """

    max_in_flight: int = 64
    max_connections: int = 100
    polls_per_second: float | None = None
    max_json_bytes: int = 8 * 1024 * 1024
    max_file_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("max_in_flight", "max_connections", "max_json_bytes", "max_file_bytes"):
            _require(_count(getattr(self, name)), f"Limits.{name} must be a whole number of at least 1")
        rate = self.polls_per_second
        _require(rate is None or (finite(rate) and rate > 0), "Limits.polls_per_second must be above 0 or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a call is repeated where repeating is safe: jittered exponential backoff.

    Attributes:
        attempts: Tries in all, the first included; 1 never repeats.
        initial: Seconds, upper bound of the first pause.
        multiplier: Growth of that bound from pause to pause.
        maximum: Seconds, cap of that bound.
        refused_submits: Tries in all for a submit that the service told to come later (429, or 503 with
            `Retry-After`); None goes on until the deadline.
    """

    attempts: int = 5
    initial: float = 0.1
    multiplier: float = 2.0
    maximum: float = 5.0
    refused_submits: int | None = None

    def __post_init__(self) -> None:
        _require(_count(self.attempts), "RetryPolicy.attempts must be a whole number of at least 1")
        for name in ("initial", "multiplier", "maximum"):
            _require(finite(getattr(self, name)), f"RetryPolicy.{name} must be a finite number, 0 or more")
        _require(
            self.refused_submits is None or _count(self.refused_submits),
            "RetryPolicy.refused_submits must be a whole number of at least 1, or None",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the process environment says: candidates only, nothing is checked or opened here.

    Attributes:
        proxy: For https, with its credentials; None: none.
        no_proxy: Names of hosts that are called directly, as they stand in the variable.
        ca_file: The certificate authorities to trust, and `ca_dir` a directory of them.
    """

    token: str | None = field(default=None, repr=False)
    token_variable: str | None = None
    token_file: str | None = None
    base_url: str | None = None
    proxy: str | None = field(default=None, repr=False)
    no_proxy: str = ""
    ca_file: str | None = None
    ca_dir: str | None = None


# docs/wire.md, "Names that RunComfy users already have"; the first that is set wins.
TOKEN_VARIABLES = ("RUNCOMFY_API_TOKEN", "RUNCOMFY_TOKEN", "RUNCOMFY_API_KEY")
BASE_URL_VARIABLE = "RUNCOMFY_MODEL_API_BASE"

# The names that curl, pip and requests know. HTTP_PROXY is not among them: it is for plain http, which never goes
# through a proxy here (transport/proxies.py).
_PROXY_VARIABLES = ("https_proxy", "all_proxy")


def _in_either_case(environ: Mapping[str, str], name: str) -> str | None:
    """As curl and urllib read them: lower case goes first, and an empty value switches off what follows."""
    return environ.get(name, environ.get(name.upper()))


def from_environ(environ: Mapping[str, str]) -> Environment:
    """Read the environment: the only place that does."""
    variable = next((name for name in TOKEN_VARIABLES if environ.get(name, "").strip()), None)
    folder = environ.get("RUNCOMFY_CONFIG_DIR") or None
    if folder is None and (parent := environ.get("XDG_CONFIG_HOME")):
        folder = f"{parent}/runcomfy"
    if folder is None and (home := environ.get("HOME") or environ.get("USERPROFILE")):
        folder = f"{home}/.config/runcomfy"
    proxy = next((value for name in _PROXY_VARIABLES if (value := _in_either_case(environ, name)) is not None), "")
    return Environment(
        token=environ[variable].strip() if variable else None,
        token_variable=variable,
        token_file=f"{folder}/token.json" if folder else None,
        base_url=environ.get(BASE_URL_VARIABLE) or None,
        proxy=proxy.strip() or None,
        no_proxy=_in_either_case(environ, "no_proxy") or "",
        ca_file=environ.get("SSL_CERT_FILE") or None,  # OpenSSL's own names for them
        ca_dir=environ.get("SSL_CERT_DIR") or None,
    )


def checked_timeout(timeout: Timeout, default: float | None) -> float | None:
    """Seconds, or None for no limit.

    Raises:
        InvalidInputError: Not a number of seconds.
    """
    if timeout is DEFAULT:
        return default
    if timeout is None:
        return None
    if timeout == math.inf and not isinstance(timeout, bool):
        return None
    if not finite(timeout):
        raise InvalidInputError("timeout must be a number of seconds, 0 or more, or None for no limit")
    return float(timeout)
