"""What every verb ends in when something goes wrong: the table that docs/faults.md shows.

Written from the rules (docs/guarantees.md), not from what the code does. A row is a group of faults with
the same ends: when they happen at the first call only, and when they happen at every call.
"""

from itertools import chain

from tests.faults.books import NOTHING
from tests.faults.verbs import BY_RESULT, OK, Cell

__all__ = ["TABLE", "Row"]

Row = tuple[tuple[str, ...], Cell, Cell]


def _forms(*names: str) -> tuple[str, ...]:
    """A refusal without `Retry-After`, with seconds, and with a date."""
    return tuple(name + form for name in names for form in ("", "+after", "+date"))


# Refusals, by what the service means.
INPUT = (*_forms("400", "400001", "422", "422001"), "422001@400", "422001@200")
BALANCE = (*_forms("402", "400002"), "400002@200")
TOKEN = (*_forms("401", "401001", "400004"), "401001@400", "400004@200", "401001@200")
DENIED = (*_forms("403", "403001", "403003"), "403001@400", "403001@200", "firewall")
SISTERS = tuple(f"{code}@{status}" for status in (200, 400, 403) for code in (10001, 10002, 10003))
MISSING = (*_forms("404", "404001"), "404001@400", "404001@200")
LATER = (*_forms("429"), "429+ms", "429+reset", "429+unix")
TIMED_OUT = _forms("408")
ASKED_FOR_PATIENCE = ("503+after", "503+date")
TROUBLE = (*_forms("500", "500001", "502", "504"), "503", "503+ms", "503+reset", "500001@400", "500001@200")
REFUSED = {
    INPUT: "InputRejectedError",
    BALANCE: "InsufficientBalanceError",
    TOKEN: "AuthenticationError",
    DENIED: "PermissionDeniedError",
    MISSING: "NotFoundError",
}
# The wire, and what comes over it.
BROKEN = ("reset", "truncated", "no-gzip")
SILENT = ("hang", "only-1xx", "slow-extension")
HEADS = ("header-no-colon", "header-too-long", "length-no-number", "length-twice")
BODIES = ("nan", "huge-digits", "surrogate", "deep", "cut-json", "empty", "json-null", "json-list")
NO_ANSWER = ("no-http", "endless", "html", "redirect", "redirect-away", "overlong", "gzip-bomb", *HEADS, *BODIES)
BARE = ("json-bare",)
LARGE = ("header-9k", "header-60k")
FINE_FILES = ("slow", "date-away", *LARGE)
FINE = (*FINE_FILES, "gzip-zeros")
SLOW = ("drip", "slow-head")
_STRAY = ("stray-429", "stray-422", "stray-401", "stray-200", "stray-again")
STRAY = (*_STRAY, *(f"{name}+head" for name in _STRAY))
_EFFECTS = (*BROKEN[:2], "hang", "no-http", "endless", "html", "500")
TOOK_EFFECT = tuple(f"{name}+accepted" for name in _EFFECTS)


def _same(faults: tuple[str, ...], cell: Cell) -> Row:
    return faults, cell, cell


def _connecting(fine: Cell, bad: Cell) -> list[Row]:
    """Connections: refused or closed before a byte was written, never made, made late."""
    refused, never = (
        bad if bad.error else bad._replace(error=error, retryable=True)
        for error in ("APIConnectionError", "APITimeoutError")
    )
    return [
        (("refuse", "drop"), fine, refused),
        (("no-connection",), fine, never),
        _same(("slow-connection",), fine),
    ]


# --- submits: repeated only where they were not accepted


def _submits(fine: Cell) -> list[Row]:
    uncertain = Cell("SubmissionUncertainError", 0, "uncertain", "unknown")
    return [
        *(_same(faults, Cell(error, 0, "refused", "no")) for faults, error in REFUSED.items()),
        _same(SISTERS, Cell("PermissionDeniedError", 0, "refused", "no")),
        (LATER, fine, Cell("RateLimitError", 0, "refused", "no", retryable=True)),
        (ASKED_FOR_PATIENCE, fine, Cell("ServerError", 0, "refused", "no", retryable=True)),
        _same((*TIMED_OUT, *TROUBLE, *BROKEN, *SILENT, *NO_ANSWER, *BARE), uncertain),
        _same((*TOOK_EFFECT, "no-id", "bad-id"), uncertain._replace(accepted=1)),
        # Its id comes after the deadline: too late for the caller, soon enough for the journal.
        _same(("drip",), uncertain._replace(accepted=1, journal="submitted")),
        _same(("slow-head",), uncertain._replace(accepted=1)),
    ]


_BAD_WORDS = tuple(f"says-{word}" for word in ("TIMED_OUT", "expired", "rejected", "error"))
_GOOD_WORDS = ("says-SUCCESS", "says-done")
_FATES = ("fails", "is-cancelled", "never-ends", "result-never", *_BAD_WORDS, *_GOOD_WORDS)
_FILED = ("costs-more", "same-id", "signed-file", "signed-redirect")
_GOOD_FATES = ("upper-case", "other-words", "odd-word", "result-late", "early-404", *_FILED)
_SUBMITTED = Cell(OK, 1, "submitted")
_NOT_SENT = Cell("", 0, "refused", "no")


def _generations(fine: Cell) -> list[Row]:
    """A submit whose generation is waited for."""
    return [
        *_submits(fine),
        _same(FINE + STRAY + _GOOD_FATES, fine),
        # An error in status and result stands for 10 s; a word alone is waited out.
        _same(("fails", *_BAD_WORDS), Cell("GenerationFailedError", 1, "failed", "unknown")),
        _same(("is-cancelled",), Cell("GenerationCancelledError", 1, "cancelled", "no")),
        _same(("never-ends", *_GOOD_WORDS), Cell("WaitTimeoutError", 1, "submitted", "unknown")),
        _same(("result-never",), Cell("ResultNotReadyError", 1, "submitted", "unknown")),
    ]


# --- single calls: repeated where that is harmless


def _single(
    good: Cell, bad: Cell, *, fine: tuple[str, ...] = (), none: tuple[str, ...] = (), lost: tuple[str, ...] = ()
) -> list[Row]:
    """`bad` is what every error of the call has in common.

    `fine`: answers that are taken as they come (a short one even if it drips); `none`: answers that cannot be read;
    `lost`: those that have a row elsewhere.
    """
    slow = tuple(name for name in SLOW if name not in fine + lost)

    def ends(error: str, *, retryable: bool) -> Cell:
        return bad._replace(error=error, retryable=retryable)

    return [
        *(_same(faults, ends(error, retryable=False)) for faults, error in REFUSED.items()),
        (LATER, good, ends("RateLimitError", retryable=True)),
        (TIMED_OUT, good, ends("APIStatusError", retryable=True)),
        (TROUBLE + ASKED_FOR_PATIENCE, good, ends("ServerError", retryable=True)),
        (BROKEN, good, ends("APIConnectionError", retryable=True)),
        (SILENT + slow, good, ends("APITimeoutError", retryable=True)),
        (NO_ANSWER + none, good, ends("InvalidResponseError", retryable=True)),
        _same(FINE + fine, good),
    ]


# --- waits: a failed poll yields no information, so nothing is recorded


def _polls(good: Cell, *, retryable: bool) -> list[Row]:
    out_of_time = _OUT_OF_TIME._replace(retryable=retryable)
    saw_nothing = (
        *TROUBLE,
        *ASKED_FOR_PATIENCE,
        *LATER,
        *TIMED_OUT,
        *BROKEN,
        *SILENT,
        *NO_ANSWER,
        *BARE,
        *SLOW,
    )
    odd = ("no-status", "other-id", "unknown-state", "gone-back", "odd-position")
    return [
        *((faults, good, Cell(error, 1, "submitted", "unknown")) for faults, error in REFUSED.items()),
        (saw_nothing + odd, good, out_of_time),
        _same(("slow", "date-away", *LARGE, "gzip-zeros", "done-too-soon", "failed-too-soon"), good),
    ]


def _results(good: Cell, *, retryable: bool) -> list[Row]:
    """The result after the end was seen: until it is there, it is asked for again for 10 s."""

    def ends(error: str, *, passing: bool = True) -> Cell:
        return Cell(error, 1, "submitted", "unknown", retryable and passing)

    stands = {faults: error for faults, error in REFUSED.items() if faults not in (INPUT, MISSING)}
    return [
        *(_same(faults, ends(error, passing=False)) for faults, error in stands.items()),
        (INPUT, good, ends("InputRejectedError", passing=False)),
        (MISSING, good, ends("NotFoundError", passing=False)),
        (LATER, good, ends("RateLimitError")),
        (TIMED_OUT, good, ends("APIStatusError")),
        (TROUBLE + ASKED_FOR_PATIENCE, good, ends("ServerError")),
        (BROKEN, good, ends("APIConnectionError")),
        (SILENT + SLOW, good, ends("WaitTimeoutError")),
        ((*NO_ANSWER, "other-id"), good, ends("InvalidResponseError")),
        (BARE, good, ends("ResultNotReadyError")),
        _same((*FINE, *_ODD_RESULTS), good),
        _same(_WITHOUT_FILE, Cell("GenerationFailedError", 1, "completed", "yes")),
        (("no-output",), good, Cell("GenerationFailedError", 1, "completed", "yes")),
    ]


_NOT_NOW = (*LATER, *TIMED_OUT, *TROUBLE, *ASKED_FOR_PATIENCE, *BROKEN)


def _result_polls(good: Cell, *, retryable: bool) -> list[Row]:
    """Polls that ask for the result: after an answer that is none to a poll, the status is polled instead."""

    def ends(error: str, *, passing: bool = retryable) -> Cell:
        return Cell(error, 1, "submitted", "unknown", passing)

    return [
        *((faults, good, ends(error, passing=False)) for faults, error in REFUSED.items()),
        ((*_NOT_NOW, *SILENT, *SLOW), good, ends("WaitTimeoutError")),
        ((*NO_ANSWER, "other-id"), good, ends("InvalidResponseError")),
        (BARE, good, ends("ResultNotReadyError")),
        ((*_WITHOUT_FILE, "no-output"), good, Cell("GenerationFailedError", 1, "completed", "yes")),
        _same((*FINE, *_ODD_RESULTS), good),
    ]


_ODD_RESULTS = (
    *("bare-output", "odd-cost", "cost-huge", "cost-in-nano", "ended-in-2199", "ended-first", "no-zone"),
    *("out-missing", "out-counted", "out-capitals", "out-text", "out-list", "out-links", "out-inline-bad"),
    *("out-inline", "out-audio", "out-url", "out-path", "out-nested"),
)
# Never silently done: the id is in the error, and a later run asks again.
_SHAPES = ("empty", "filtered", "no-scheme", "http", "prose", "words")
_WITHOUT_FILE = tuple(f"out-{shape}" for shape in _SHAPES)
_GENERATED = Cell(OK, 1, "completed")
_OUT_OF_TIME = Cell("WaitTimeoutError", 1, "submitted", "unknown", retryable=True)
_KNOWN = Cell("", 1, "submitted", "unknown")  # an error about a request that runs
_HAD = Cell("", 1, "completed", "unknown")  # an error about a request whose result was seen before

# --- files: fetched again from the beginning

_PASSING_FILES = (
    *_forms("500", "500001", "502", "503", "504", "429", "408"),
    *("429+ms", "429+reset", "429+unix", "503+ms", "503+reset"),
    *("reset", "truncated", "no-gzip", "no-http", "overlong", "html", "cut", *HEADS),
    *("picture-empty", "picture-text"),
)
_REFUSED_FILES = (
    *_forms("400", "400001", "402", "400002", "401", "401001", "400004", "403", "403001", "403003"),
    *_forms("404", "404001", "422", "422001"),
    *("redirect", "redirect-away", "firewall"),
)
_LARGE_FILES = ("endless", "gzip-bomb", "picture-endless")
_NO_FILE = Cell("DownloadError", 1, "completed", "yes")
_NO_FILE_YET = _NO_FILE._replace(retryable=True)
_DOWNLOADED = Cell(OK, 1, "downloaded")


def _files(good: Cell) -> list[Row]:
    return [
        _same(_REFUSED_FILES, _NO_FILE),
        (_PASSING_FILES, good, _NO_FILE_YET),
        _same(_LARGE_FILES, _NO_FILE),
        _same((*SLOW, *SILENT), _NO_FILE_YET),
        _same((*FINE_FILES, "picture-mislabelled", "picture-short"), good),
    ]


# --- pages of the catalogue

_ODD_TOTALS = ("total-high", "total-low", "no-total")
_ODD_PAGES = ("page-no-list", "page-no-ids")

# --- prices: without one, nothing is reserved and nothing submitted

_UNPRICED = Cell("", 0, NOTHING, "no")


# --- cancels: one that took effect while its answer was lost is not reported as done, so it is not recorded


def _cancels() -> list[Row]:
    lost = {
        ("no-outcome", "other-id"): "InvalidResponseError",
        ("reset+accepted", "truncated+accepted"): "APIConnectionError",
        ("hang+accepted", "slow-head"): "APITimeoutError",
        ("500+accepted",): "ServerError",
        ("no-http+accepted", "endless+accepted", "html+accepted"): "InvalidResponseError",
    }
    return [
        *_single(Cell(OK, 1, "cancelled"), _KNOWN, fine=("drip", "only-said"), none=BARE, lost=("slow-head",)),
        _same(("too-late",), Cell(OK, 1, "submitted")),
        *((faults, _SUBMITTED, _KNOWN._replace(error=error, retryable=True)) for faults, error in lost.items()),
    ]


# --- the table: verb, endpoint
TABLE: dict[tuple[str, str], list[Row]] = {
    ("submit", "connect"): _connecting(_SUBMITTED, _NOT_SENT),
    ("submit", "submit"): [*_submits(_SUBMITTED), _same(FINE + STRAY + _FATES + _GOOD_FATES, _SUBMITTED)],
    ("generate", "connect"): _connecting(_GENERATED, _NOT_SENT),
    ("generate", "submit"): _generations(_GENERATED),
    ("generate", "status"): _polls(_GENERATED, retryable=False),
    ("generate", "result"): _results(_GENERATED, retryable=False),
    ("generate_many", "connect"): _connecting(_GENERATED, _UNPRICED),
    ("generate_many", "model"): [
        *_single(_GENERATED, _UNPRICED, fine=STRAY, none=BARE),
        _same(("no-price", "odd-price"), _UNPRICED._replace(error="BudgetExceededError")),
    ],
    ("generate_many", "submit"): _generations(_GENERATED),
    ("generate_many", "status"): _polls(_GENERATED, retryable=False),
    ("generate_many", "result"): _results(_GENERATED, retryable=False),
    ("generate_many", "file"): _files(_DOWNLOADED),
    ("wait_for_result", "connect"): _connecting(_GENERATED, _OUT_OF_TIME),
    ("wait_for_result", "status"): _polls(_GENERATED, retryable=True),
    ("wait_for_result", "result"): _results(_GENERATED, retryable=True),
    ("updates", "status"): _polls(_SUBMITTED, retryable=True),
    ("status", "connect"): _connecting(_SUBMITTED, _KNOWN),
    ("status", "status"): _single(
        _SUBMITTED,
        _KNOWN,
        fine=("unknown-state", "gone-back", "done-too-soon", "failed-too-soon", "odd-position"),
        none=(*BARE, "no-status", "other-id"),
    ),
    ("result", "connect"): _connecting(_GENERATED, _HAD),
    ("result", "result"): [
        *_single(_GENERATED, _HAD, fine=(*_ODD_RESULTS, *_WITHOUT_FILE, "no-output"), none=("other-id",)),
        _same(BARE, _HAD._replace(error="ResultNotReadyError", retryable=True)),
    ],
    ("cancel", "connect"): _connecting(Cell(OK, 1, "cancelled"), _KNOWN),
    ("cancel", "cancel"): _cancels(),
    ("model", "connect"): _connecting(Cell(OK, 0, NOTHING), _UNPRICED),
    ("model", "model"): _single(Cell(OK, 0, NOTHING), _UNPRICED, fine=("no-price", "odd-price", *STRAY), none=BARE),
    ("list_models", "connect"): _connecting(Cell(OK, 0, NOTHING), _UNPRICED),
    ("list_models", "models"): _single(
        Cell(OK, 0, NOTHING), _UNPRICED, fine=_ODD_TOTALS, none=(*BARE, "page-empty", "page-again", *_ODD_PAGES)
    ),
    ("download", "connect"): _connecting(_DOWNLOADED, _NO_FILE_YET),
    ("download", "file"): _files(_DOWNLOADED),
    ("read", "connect"): _connecting(_GENERATED, _NO_FILE_YET),
    ("read", "file"): _files(_GENERATED),
    **{
        (verb + BY_RESULT, "result"): _result_polls(_GENERATED, retryable=verb == "wait_for_result")
        for verb in ("generate", "generate_many", "wait_for_result")
    },
    ("updates" + BY_RESULT, "result"): [
        (_NOT_NOW, _SUBMITTED, _OUT_OF_TIME),
        _same(
            (
                *(*chain(*REFUSED), *SILENT, *SLOW, *NO_ANSWER, *BARE),
                *("other-id", "no-output", *_WITHOUT_FILE, *FINE, *_ODD_RESULTS),
            ),
            _SUBMITTED,
        ),
    ],
}
