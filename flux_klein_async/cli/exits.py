"""From errors to exit codes, and from many exit codes to one."""

from collections.abc import Iterable
from enum import IntEnum

from flux_klein_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    FluxKleinError,
    InputRejectedError,
    InsufficientBalanceError,
    InvalidInputError,
    InvalidResponseError,
    ItemClaimedError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResultNotReadyError,
    ServerError,
    WaitTimeoutError,
)

__all__ = ["ExitCode", "exit_code", "worst"]


class ExitCode(IntEnum):
    """The codes of the vendor's command (docs/wire.md), and 128 + signal as shells have it."""

    OK = 0
    OTHER = 1
    USAGE = 64
    BAD_INPUT = 65
    UNAVAILABLE = 69
    TRY_LATER = 75
    NO_ACCESS = 77
    INTERRUPTED = 130
    READER_GONE = 141
    TERMINATED = 143


# Worst first. No error belongs to two lines.
_CODES: dict[ExitCode, tuple[type[FluxKleinError], ...]] = {
    ExitCode.NO_ACCESS: (AuthenticationError, PermissionDeniedError, InsufficientBalanceError, ConfigurationError),
    ExitCode.UNAVAILABLE: (ServerError, APIConnectionError, InvalidResponseError),
    ExitCode.TRY_LATER: (WaitTimeoutError, RateLimitError, ResultNotReadyError, ItemClaimedError),
    ExitCode.BAD_INPUT: (InvalidInputError, InputRejectedError, NotFoundError),
}
_WORST_FIRST = (*_CODES, ExitCode.OTHER)


def exit_code(error: FluxKleinError) -> ExitCode:
    """The exit code of an error."""
    if isinstance(error, APITimeoutError) or (isinstance(error, APIStatusError) and error.status_code == 408):
        return ExitCode.TRY_LATER
    return next((code for code, kinds in _CODES.items() if isinstance(error, kinds)), ExitCode.OTHER)


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """The worst of many codes; 0 if there are none."""
    seen = set(codes)
    return next((code for code in _WORST_FIRST if code in seen), ExitCode.OK)
