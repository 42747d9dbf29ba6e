"""Settings, checked when made, and the environment variables.

`None` means no limit; `DEFAULT` means the client's own value. Nothing is read at import.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

from flux_klein_async.api.urls import file_host
from flux_klein_async.errors import ConfigurationError, InvalidInputError
from flux_klein_async.misuse import named_arguments

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
    "require_at_least",
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


def _require_count(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        holds = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        _require(holds, f"{type(owner).__name__}.{name} must be a whole number of at least 1, not {value!r:.40}")


def require_at_least(least: float, **values: float) -> None:
    """Checks settings by their names; raises `ConfigurationError`."""
    for name, value in values.items():
        if not finite(value) or value < least:
            raise ConfigurationError(f"{name} must be a finite number, at least {least:g}, not {value!r:.40}")


def finite(value: object) -> bool:
    """Whether it is a number, 0 or more, that the loop's clock can add."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


@named_arguments(
    {
        **dict.fromkeys(
            ("concurrency", "max_concurrency"),
            "Write max_in_flight= here, or concurrency= in a call of generate_many or generate_all",
        ),
        "timeout": "Write FluxKleinClient(timeout=...)",
    }
)
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much at once, and how large.

    Attributes:
        max_in_flight: Generations that `generate*` runs at the same time.
        max_connections: Open connections to the API.
        polls_per_second: Ceiling for the polls of all waits of the client together, or None. It holds for any second at
            the service, too, if no call takes more than 1 s longer than the others.
        submits_per_second: Ceiling for the submits of the client, repeats included, or None; as exact. A submit that
            waits for its turn is neither sent nor recorded. The timeout of a fan-out's item stands still meanwhile;
            that of a single call does not.
        max_json_bytes: Largest answer, after decompression (8 MiB).
        max_file_bytes: Largest file that is downloaded (64 MiB).
        max_picture_bytes: Largest local picture in an input (6 MiB; source: docs/wire.md, "Input").
        max_input_file_bytes: Any other local file in an input (32 MiB).
        max_request_bytes: Largest body of a submit with local files (64 MiB); they take a third more than on disk.
        file_hosts: Hosts that files may come from besides the service's own: a name such as "cdn.example.com" is that
            host alone, ".example.com" also every host below it. Only public hosts over HTTPS, at each redirect.
        halt_after: So many submits of a fan-out that end uncertain in a row, in the order in which they began, or so
            many generations that are completed without a file (those that failed do not count), stop it from submitting
            more (`FanOutHaltedError`); None never does. Submits that are under way at that moment are not taken back,
            so that up to `max_in_flight` may be charged.
    """

    max_in_flight: int = 64
    max_connections: int = 100
    polls_per_second: float | None = None
    submits_per_second: float | None = None
    max_json_bytes: int = 8 * 1024 * 1024
    max_file_bytes: int = 64 * 1024 * 1024
    max_picture_bytes: int = 6 * 1024 * 1024
    max_input_file_bytes: int = 32 * 1024 * 1024
    max_request_bytes: int = 64 * 1024 * 1024
    file_hosts: tuple[str, ...] = ()
    halt_after: int | None = 5

    def __post_init__(self) -> None:
        _require_count(self, "max_in_flight", "max_connections", "max_json_bytes", "max_file_bytes")
        _require_count(self, "max_picture_bytes", "max_input_file_bytes", "max_request_bytes")
        _require_count(self, *([] if self.halt_after is None else ["halt_after"]))
        for name in ("polls_per_second", "submits_per_second"):
            rate = getattr(self, name)
            holds = rate is None or (finite(rate) and rate > 0)
            _require(holds, f"Limits.{name} must be above 0 or None, not {rate!r:.40}")
        holds = isinstance(self.file_hosts, tuple | list)
        _require(holds, f"Limits.file_hosts must be a tuple of host names, not {self.file_hosts!r:.40}")
        hosts = [file_host(name) for name in self.file_hosts]
        wrong = [str(name)[:80] for name, host in zip(self.file_hosts, hosts, strict=True) if host is None][:1]
        _require(
            not wrong,
            "Limits.file_hosts must be names of public hosts alone, such as 'cdn.example.com', or '.example.com' for "
            f"all below it; not {wrong}",
        )
        object.__setattr__(self, "file_hosts", tuple(hosts))


@named_arguments(dict.fromkeys(("max_retries", "retries"), "Write attempts=, which counts the first one too"))
@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How calls that are safe to repeat are repeated: jittered exponential backoff.

    Attributes:
        attempts: Attempts in all; 1 never repeats.
        initial: Upper bound of the first pause, in seconds.
        multiplier: Growth of that bound from pause to pause.
        maximum: Largest value of that bound, in seconds.
        refused_submits: Attempts in all for a submit that the service asked to send later (429, or 503 with
            `Retry-After`); None continues until the deadline.
    """

    attempts: int = 5
    initial: float = 0.1
    multiplier: float = 2.0
    maximum: float = 5.0
    refused_submits: int | None = None

    def __post_init__(self) -> None:
        _require_count(self, "attempts", *([] if self.refused_submits is None else ["refused_submits"]))
        for name in ("initial", "multiplier", "maximum"):
            require_at_least(0, **{f"RetryPolicy.{name}": getattr(self, name)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the environment variables say, unchecked.

    Attributes:
        proxy: The proxy for https with its credentials, or None.
        no_proxy: Hosts to call directly, as written in the variable.
        ca_file: The certificate authorities to trust; `ca_dir` is a directory of them.
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


def from_environ(environ: Mapping[str, str]) -> Environment:
    """Read the variables that a client needs."""

    def either_case(name: str, default: str = "") -> str:
        # As curl and urllib read them: lower case goes first, and an empty value switches off what follows.
        return environ.get(name, environ.get(name.upper(), default))

    variable = next((name for name in TOKEN_VARIABLES if environ.get(name, "").strip()), None)
    folder = environ.get("RUNCOMFY_CONFIG_DIR")
    if not folder and (parent := environ.get("XDG_CONFIG_HOME")):
        folder = f"{parent}/runcomfy"
    if not folder and (home := environ.get("HOME") or environ.get("USERPROFILE")):
        folder = f"{home}/.config/runcomfy"
    return Environment(
        token=environ[variable].strip() if variable else None,
        token_variable=variable,
        token_file=f"{folder}/token.json" if folder else None,
        base_url=environ.get(BASE_URL_VARIABLE) or None,
        # Not HTTP_PROXY: plain http never goes through a proxy here.
        proxy=either_case("https_proxy", either_case("all_proxy")).strip() or None,
        no_proxy=either_case("no_proxy"),
        ca_file=environ.get("SSL_CERT_FILE") or None,  # OpenSSL's names
        ca_dir=environ.get("SSL_CERT_DIR") or None,
    )


def checked_timeout(timeout: Timeout, default: float | None, name: str = "timeout") -> float | None:
    """Seconds, or None for no limit.

    Raises:
        InvalidInputError: Not a number of seconds.
    """
    if timeout is DEFAULT:
        return default
    if timeout is None or timeout == math.inf:
        return None
    if not finite(timeout):
        raise InvalidInputError(
            f"{name} must be a number of seconds, 0 or more, or None for no limit, not {timeout!r:.40}"
        )
    return float(timeout)
