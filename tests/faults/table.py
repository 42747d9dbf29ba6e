"""What every verb ends in when something goes wrong: the one table, which docs/faults.md shows.

Written from the rules (docs/guarantees.md), not from what the code does. A row is a group of faults that end alike:
when they happen at the first call only, and when they happen at every call.
"""

from tests.faults.verbs import OK, Cell

__all__ = ["TABLE", "Row"]

Row = tuple[tuple[str, ...], Cell, Cell]


def _forms(*names: str) -> tuple[str, ...]:
    """A refusal without `Retry-After`, with seconds, and with a date."""
    return tuple(name + form for name in names for form in ("", "+after", "+date"))


# Refusals, by what the service means.
INPUT = (*_forms("400", "400001", "422", "422001"), "422001@400", "422001@200")
BALANCE = (*_forms("402", "400002"), "400002@200")
TOKEN = (*_forms("401", "401001", "400004"), "401001@400", "400004@200", "401001@200")
DENIED = (*_forms("403", "403001", "403003"), "403001@400", "403001@200")
MISSING = (*_forms("404", "404001"), "404001@400", "404001@200")
LATER = _forms("429")
TIMED_OUT = _forms("408")
ASKED_FOR_PATIENCE = ("503+after", "503+date")
TROUBLE = (*_forms("500", "500001", "502", "504"), "503", "500001@400", "500001@200")
REFUSED = {
    INPUT: "InputRejectedError",
    BALANCE: "InsufficientBalanceError",
    TOKEN: "AuthenticationError",
    DENIED: "PermissionDeniedError",
    MISSING: "NotFoundError",
}
# The wire, and what comes over it.
BROKEN = ("reset", "truncated", "no-gzip")
SILENT = ("hang",)
HEADS = ("header-no-colon", "header-too-long", "length-no-number", "length-twice")
BODIES = ("nan", "huge-digits", "surrogate", "deep", "cut-json", "empty", "json-null", "json-list")
NO_ANSWER = ("no-http", "endless", "html", "redirect", "redirect-away", "overlong", "gzip-bomb", *HEADS, *BODIES)
BARE = ("json-bare",)
FINE = ("slow", "date-away")
SLOW = ("drip",)
_EFFECTS = (*BROKEN[:2], *SILENT, "no-http", "endless", "html", "500")
TOOK_EFFECT = tuple(f"{name}+accepted" for name in _EFFECTS)


def _same(faults: tuple[str, ...], cell: Cell) -> Row:
    return faults, cell, cell


def _connecting(fine: Cell, refused: Cell, never: Cell) -> list[Row]:
    """Connections: refused or closed before a byte was written, never made, made late."""
    return [
        (("refuse", "drop"), fine, refused),
        (("no-connection",), fine, never),
        _same(("slow-connection",), fine),
    ]


# --- submits: repeated only where they were not accepted


def _submits(fine: Cell) -> list[Row]:
    uncertain = Cell("SubmissionUncertainError", 0, "unknown")
    return [
        *(_same(faults, Cell(error, 0, "no")) for faults, error in REFUSED.items()),
        (LATER, fine, Cell("RateLimitError", 0, "no", retryable=True)),
        (ASKED_FOR_PATIENCE, fine, Cell("ServerError", 0, "no", retryable=True)),
        _same((*TIMED_OUT, *TROUBLE, *BROKEN, *SILENT, *NO_ANSWER, *BARE), uncertain),
        _same((*TOOK_EFFECT, *SLOW, "no-id", "bad-id"), uncertain._replace(accepted=1)),
    ]


_FATES = ("fails", "is-cancelled", "never-ends", "result-never")
_GOOD_FATES = ("upper-case", "other-words", "odd-word", "result-late", "early-404")
_SUBMITTING = _connecting(
    Cell(OK, 1),
    Cell("APIConnectionError", 0, "no", retryable=True),
    Cell("APITimeoutError", 0, "no", retryable=True),
)

# --- single calls: repeated where that is harmless


def _single(verb_charges: str, accepted: int, *, fine: tuple[str, ...] = (), bad: tuple[str, ...] = ()) -> list[Row]:
    """`fine` are answers that are taken as they come (a short one even if it drips), `bad` those that are none."""

    def ends(error: str, *, retryable: bool) -> Cell:
        return Cell(error, accepted, verb_charges, retryable)

    good = Cell(OK, accepted)
    return [
        *(_same(faults, ends(error, retryable=False)) for faults, error in REFUSED.items()),
        (LATER + TIMED_OUT, good, ends("RateLimitError", retryable=True)),
        (TROUBLE + ASKED_FOR_PATIENCE, good, ends("ServerError", retryable=True)),
        (BROKEN, good, ends("APIConnectionError", retryable=True)),
        (SILENT + tuple(set(SLOW) - set(fine)), good, ends("APITimeoutError", retryable=True)),
        (NO_ANSWER + bad, good, ends("InvalidResponseError", retryable=True)),
        _same(FINE + fine, good),
    ]


def _single_connecting(charges: str, accepted: int) -> list[Row]:
    return _connecting(
        Cell(OK, accepted),
        Cell("APIConnectionError", accepted, charges, retryable=True),
        Cell("APITimeoutError", accepted, charges, retryable=True),
    )


# --- waits: a look that fails is a look that saw nothing


def _looks(*, retryable: bool, failed: Cell) -> list[Row]:
    good, out_of_time = Cell(OK, 1), Cell("WaitTimeoutError", 1, "unknown", retryable)
    saw_nothing = (*TROUBLE, *ASKED_FOR_PATIENCE, *LATER, *TIMED_OUT, *BROKEN, *SILENT, *NO_ANSWER, *BARE, *SLOW)
    odd = ("slow", "no-status", "other-id", "unknown-state", "gone-back", "odd-position")
    return [
        *((faults, good, Cell(error, 1, "unknown")) for faults, error in REFUSED.items()),
        (saw_nothing + odd, good, out_of_time),
        _same(("date-away", "done-too-soon"), good),
        (("failed-too-soon",), good, failed),
    ]


def _results(*, retryable: bool) -> list[Row]:
    """The result after the end was seen: one that is not there yet is asked for again for 10 s."""

    def ends(error: str, *, passing: bool = True) -> Cell:
        return Cell(error, 1, "unknown", retryable and passing)

    good = Cell(OK, 1)
    stands = {faults: error for faults, error in REFUSED.items() if faults not in (INPUT, MISSING)}
    return [
        *(_same(faults, ends(error, passing=False)) for faults, error in stands.items()),
        (INPUT, good, ends("InputRejectedError", passing=False)),
        (MISSING, good, ends("NotFoundError", passing=False)),
        (LATER + TIMED_OUT, good, ends("RateLimitError")),
        (TROUBLE + ASKED_FOR_PATIENCE, good, ends("ServerError")),
        (BROKEN, good, ends("APIConnectionError")),
        (SILENT + SLOW, good, ends("WaitTimeoutError")),
        ((*NO_ANSWER, "other-id"), good, ends("InvalidResponseError")),
        ((*BARE, "no-output"), good, ends("ResultNotReadyError")),
        _same((*FINE, *_ODD_RESULTS), good),
    ]


_ODD_RESULTS = ("bare-output", "odd-cost", "ended-in-2199", "ended-first")
_GENERATED = Cell(OK, 1)
_FAILED = Cell("GenerationFailedError", 1, "unknown")

# --- files: begun again, or gone on with, where the transfer broke

_FILE = Cell(OK, 1)
_NO_FILE = Cell("DownloadError", 1, "yes")
_NO_FILE_YET = Cell("DownloadError", 1, "yes", retryable=True)
_PASSING_FILES = (
    *_forms("500", "500001", "502", "503", "504", "429", "408"),
    *("reset", "truncated", "no-gzip", "no-http", "overlong", "html", "cut", *HEADS),
    *("picture-empty", "picture-short", "picture-text"),
)
_REFUSED_FILES = (
    *_forms("400", "400001", "402", "400002", "401", "401001", "400004", "403", "403001", "403003"),
    *_forms("404", "404001", "422", "422001"),
    *("redirect", "redirect-away"),
)
_LARGE_FILES = ("endless", "gzip-bomb", "picture-endless")
_FILES: list[Row] = [
    _same(_REFUSED_FILES, _NO_FILE),
    (_PASSING_FILES, _FILE, _NO_FILE_YET),
    _same(_LARGE_FILES, _NO_FILE),
    _same((*SLOW, *SILENT), _NO_FILE_YET),
    _same((*FINE, "picture-mislabelled"), _FILE),
]
_FILE_CONNECTING = _connecting(_FILE, _NO_FILE_YET, _NO_FILE_YET)

# --- the table: verb, endpoint
TABLE: dict[tuple[str, str], list[Row]] = {
    ("submit", "connect"): _SUBMITTING,
    ("submit", "submit"): [*_submits(Cell(OK, 1)), _same(FINE + _FATES + _GOOD_FATES, Cell(OK, 1))],
    ("generate", "connect"): _SUBMITTING,
    ("generate", "submit"): [
        *_submits(_GENERATED),
        _same(FINE + _GOOD_FATES, _GENERATED),
        _same(("fails",), _FAILED),
        _same(("is-cancelled",), Cell("GenerationCancelledError", 1, "no")),
        _same(("never-ends",), Cell("WaitTimeoutError", 1, "unknown")),
        _same(("result-never",), Cell("ResultNotReadyError", 1, "unknown")),
    ],
    ("generate", "status"): _looks(retryable=False, failed=_GENERATED),
    ("generate", "result"): _results(retryable=False),
    ("wait_for_result", "connect"): _connecting(
        _GENERATED,
        Cell("WaitTimeoutError", 1, "unknown", retryable=True),
        Cell("WaitTimeoutError", 1, "unknown", retryable=True),
    ),
    ("wait_for_result", "status"): _looks(retryable=True, failed=_GENERATED),
    ("wait_for_result", "result"): _results(retryable=True),
    ("updates", "status"): _looks(retryable=True, failed=_GENERATED),
    ("status", "connect"): _single_connecting("unknown", 1),
    ("status", "status"): _single(
        "unknown",
        1,
        fine=("unknown-state", "gone-back", "done-too-soon", "failed-too-soon", "odd-position"),
        bad=(*BARE, "no-status", "other-id"),
    ),
    ("result", "connect"): _single_connecting("unknown", 1),
    ("result", "result"): [
        *_single("unknown", 1, fine=_ODD_RESULTS, bad=("other-id",)),
        _same((*BARE, "no-output"), Cell("ResultNotReadyError", 1, "unknown", retryable=True)),
    ],
    ("cancel", "connect"): _single_connecting("unknown", 1),
    ("cancel", "cancel"): [
        *_single("unknown", 1, fine=(*SLOW, "only-said", "too-late"), bad=(*BARE, "no-outcome", "other-id")),
        (("reset+accepted", "truncated+accepted"), Cell(OK, 1), Cell("APIConnectionError", 1, "unknown", True)),
        (("hang+accepted",), Cell(OK, 1), Cell("APITimeoutError", 1, "unknown", True)),
        (("500+accepted",), Cell(OK, 1), Cell("ServerError", 1, "unknown", True)),
        (
            ("no-http+accepted", "endless+accepted", "html+accepted"),
            Cell(OK, 1),
            Cell("InvalidResponseError", 1, "unknown", True),
        ),
    ],
    ("model", "connect"): _single_connecting("no", 0),
    ("model", "model"): _single("no", 0, fine=("no-price", "odd-price"), bad=BARE),
    ("download", "connect"): _FILE_CONNECTING,
    ("download", "file"): _FILES,
    ("read", "connect"): _FILE_CONNECTING,
    ("read", "file"): _FILES,
}
