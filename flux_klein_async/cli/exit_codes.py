"""The exit code of a command, from the errors that it met."""

from collections.abc import Iterable
from enum import IntEnum

from flux_klein_async import errors
from flux_klein_async.errors import FluxKleinError

__all__ = ["HELP", "ExitCode", "exit_code", "worst"]


HELP = """\b
Exit codes (the worst item decides, in this order):
  77 no access (token, balance)    69 service unreachable or in trouble
  75 too late, too many, claimed: try again    65 bad input or not found
  1 other: a failed generation, an uncertain submit, the --max-spend is spent
  0 all done    64 usage    129 hang-up    130 Ctrl-C
  141 nobody reads the output    143 SIGTERM
"""


class ExitCode(IntEnum):
    """The codes of the vendor's command (docs/wire.md), and 128 + signal as shells have it."""

    OK = 0
    OTHER = 1
    USAGE = 64
    BAD_INPUT = 65
    UNAVAILABLE = 69
    TRY_LATER = 75
    NO_ACCESS = 77
    HUNG_UP = 129
    INTERRUPTED = 130
    READER_GONE = 141
    TERMINATED = 143


# Worst first. No error belongs to two lines.
_CODES: dict[ExitCode, tuple[type[FluxKleinError], ...]] = {
    ExitCode.NO_ACCESS: (
        errors.AuthenticationError,
        errors.PermissionDeniedError,
        errors.InsufficientBalanceError,
        errors.ConfigurationError,
    ),
    ExitCode.UNAVAILABLE: (errors.ServerError, errors.APIConnectionError, errors.InvalidResponseError),
    ExitCode.TRY_LATER: (
        errors.WaitTimeoutError,
        errors.RateLimitError,
        errors.ResultNotReadyError,
        errors.ItemClaimedError,
    ),
    ExitCode.BAD_INPUT: (errors.InvalidInputError, errors.InputRejectedError, errors.NotFoundError),
}


def exit_code(error: FluxKleinError) -> ExitCode:
    """The exit code of an error."""
    if isinstance(error, errors.APITimeoutError) or getattr(error, "status_code", None) == 408:
        return ExitCode.TRY_LATER
    return next((code for code, kinds in _CODES.items() if isinstance(error, kinds)), ExitCode.OTHER)


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """The worst of many codes; 0 if there are none."""
    seen = set(codes)
    return next((code for code in (*_CODES, ExitCode.OTHER) if code in seen), ExitCode.OK)
