"""What the exceptions say, what they know, and that nothing of it is lost on the way between processes."""

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flux_klein_async import errors
from flux_klein_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BudgetExceededError,
    ClientClosedError,
    ConfigurationError,
    DownloadError,
    FanOutHaltedError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InputRejectedError,
    InsufficientBalanceError,
    InvalidInputError,
    InvalidResponseError,
    ItemClaimedError,
    JournalError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResultNotReadyError,
    ServerError,
    SubmissionUncertainError,
    WaitTimeoutError,
    by_known_code,
    refuses_account,
    status_error_class,
)


def tree(root: type[FluxKleinError]) -> Iterator[type[FluxKleinError]]:
    """The class and all below it that the package itself defines."""
    yield root
    for child in root.__subclasses__():
        if child.__module__.startswith("flux_klein_async."):
            yield from tree(child)


CLASSES = sorted(set(tree(FluxKleinError)), key=lambda cls: cls.__name__)

# What each class knows besides the facts that all of them have; a class has those of its bases too.
FACTS: dict[type[FluxKleinError], dict[str, Any]] = {
    FluxKleinError: {"request_id": "r-1", "charged": "yes", "cause": "OSError: gone", "advice": "write it otherwise"},
    InvalidInputError: {"fields": {"width": "too small"}},
    APIConnectionError: {"sent": False},
    APIStatusError: {
        "status_code": 422,
        "error_code": 422001,
        "detail": [{"loc": ["width"]}],
        "headers": {"x-trace": "t-1"},
        "body": '{"detail": []}',
        "retry_after": 1.5,
    },
    InputRejectedError: {"single": ("images",), "file_names": {"image": "a.png"}},
    InvalidResponseError: {"status_code": 302},
    SubmissionUncertainError: {"raw": "<html>"},
    GenerationFailedError: {"detail": {"reason": "out of memory"}, "raw": {"output": {}}, "cost_usd": 0.01},
    WaitTimeoutError: {"elapsed": 30.0, "polls": 7, "state": "unknown", "word": "TIMED_OUT", "cancelling": True},
    FanOutHaltedError: {"reason": "5 submits in a row ended uncertain", "possibly_charged": 7},
    DownloadError: {"url": "https://files.example/a.png", "status_code": 503, "cost_usd": 0.01, "transient": True},
}


def facts_of(cls: type[FluxKleinError]) -> dict[str, Any]:
    return {name: value for base in cls.__mro__ for name, value in FACTS.get(base, {}).items()}


FINDINGS = [
    {"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"},
    {"loc": ["body"], "msg": "no object"},
    {"loc": "x", "msg": "odd"},
    {"loc": ["size", 0], "msg": 7},
    "odd too",
]
SENTENCES: list[tuple[FluxKleinError, str]] = [
    (ConfigurationError("No token"), "No token"),
    (ConfigurationError(), "No token, a bad base URL, the wrong event loop, an unusable session"),
    (InvalidInputError("prompt: blank", cause="ValueError"), "prompt: blank: ValueError"),
    (
        APIConnectionError(cause="ConnectionResetError: reset", request_id="r-1"),
        "The connection to the service failed: ConnectionResetError: reset (request r-1)",
    ),
    (
        SubmissionUncertainError("Lost", cause="OSError: gone", advice="look for it", request_id="r-1"),
        "Lost: OSError: gone; look for it (request r-1)",
    ),
    (
        InputRejectedError(status_code=422, detail="no list", single=["images"], file_names={"images": "a.png"}),
        (
            "The service refused the input [HTTP 422]: no list; images: put the value into a list; "
            "images: a string goes as it is; pass pathlib.Path('a.png') to send a local file"
        ),
    ),
    (APIStatusError(status_code=418), "The service refused the call [HTTP 418]"),
    (
        AuthenticationError(status_code=400, error_code=400004, detail="expired"),
        "The token is missing, wrong, expired or revoked [HTTP 400, code 400004]: expired",
    ),
    (
        NotFoundError(status_code=404, request_id="r-1"),
        "The model or request is unknown, deleted or expired [HTTP 404] (request r-1)",
    ),
    (
        InputRejectedError(status_code=422, detail=FINDINGS),
        (
            "The service refused the input [HTTP 422]: prompt: Field required; no object; "
            "{'loc': 'x', 'msg': 'odd'}; {'loc': ['size', 0], 'msg': 7}; odd too"
        ),
    ),
    (
        InputRejectedError(status_code=422, detail="image: not a URL", file_names={"image": "a.png"}),
        (
            "The service refused the input [HTTP 422]: image: not a URL; image: a string goes as it is; "
            "pass pathlib.Path('a.png') to send a local file"
        ),
    ),
    (
        InputRejectedError(status_code=422, file_names={"image": "a.png"}, advice="use @"),
        "The service refused the input [HTTP 422]; use @",
    ),
    (
        RateLimitError(status_code=429, error_code=0, retry_after=2.5),
        "The service limits the rate of calls [HTTP 429, code 0, retry after 2.5 s]",
    ),
    (
        RateLimitError(status_code=429, retry_after=0.0),
        "The service limits the rate of calls [HTTP 429, retry after 0 s]",
    ),
    (ServerError(status_code=502, detail=""), "The service failed [HTTP 502]"),
    (InvalidResponseError(status_code=302), "The answer contradicts the API's documentation"),
    (
        SubmissionUncertainError(raw="<html>"),
        (
            "The submit may or may not have been accepted; it is not repeated, since you may have paid for it; look "
            "for it on the site under Library, Generations"
        ),
    ),
    (GenerationFailedError(), "The generation failed"),
    (GenerationFailedError(detail="out of memory"), "The generation failed: out of memory"),
    (
        WaitTimeoutError(elapsed=30.0, polls=2, state="in_queue", cancelling=True),
        "The deadline passed after 30 s; last seen in_queue in 2 polls; it is cancelled, unless it runs already",
    ),
    (
        WaitTimeoutError(polls=2, state="in_progress", cancelling=True),
        "The deadline passed; last seen in_progress in 2 polls; it may still finish",
    ),
    (WaitTimeoutError(), "The deadline passed; not seen yet in 0 polls; it may still finish"),
    (
        WaitTimeoutError(polls=2, state="unknown", word="TIMED_OUT"),
        "The deadline passed; last seen unknown ('TIMED_OUT') in 2 polls; it may still finish",
    ),
    (
        WaitTimeoutError(elapsed=30.0, polls=1, state="in_queue", request_id="r-1"),
        "The deadline passed after 30 s; last seen in_queue in 1 poll; it may still finish (request r-1)",
    ),
    (
        WaitTimeoutError(polls=1, request_id="r-1", cause="The service failed [HTTP 500] (request r-1)"),
        (
            "The deadline passed; not seen yet in 1 poll; it may still finish: The service failed [HTTP 500] "
            "(request r-1)"
        ),
    ),
    (DownloadError(url="https://files.example/a.png", status_code=503), "A file could not be downloaded"),
    (
        DownloadError(request_id="r-1"),
        (
            "A file could not be downloaded; it is paid for: client.result(request_id) and client.download fetch it "
            "again, for nothing (request r-1)"
        ),
    ),
    (DownloadError("It is gone", request_id="r-1", advice=""), "It is gone (request r-1)"),
    (
        FanOutHaltedError(reason="5 submits in a row ended uncertain", possibly_charged=7, cause="OSError: gone"),
        (
            "5 submits in a row ended uncertain; nothing more is submitted, and up to 7 requests may have been "
            "charged: OSError: gone"
        ),
    ),
    (
        FanOutHaltedError(possibly_charged=1),
        (
            "Submit after submit ended uncertain, or generation after generation was completed without a file; nothing "
            "more is submitted, and up to 1 request may have been charged"
        ),
    ),
]


@pytest.mark.parametrize(("error", "text"), SENTENCES, ids=[type(error).__name__ for error, _ in SENTENCES])
def test_makes_its_sentence_from_its_facts(error: FluxKleinError, text: str) -> None:
    assert (str(error), repr(error)) == (text, f"{type(error).__name__}({text!r})")


def test_no_sentence_of_an_error_breaks_a_line_or_moves_a_cursor_and_its_facts_stay_as_they_are() -> None:
    evil, safe = "a\r\nb\x1b[2J\x9b\u202e", r"a\r\nb\x1b[2J\x9b\u202e"
    for error in (
        FluxKleinError(evil),
        APIConnectionError(cause=evil),
        APIStatusError(status_code=418, detail=evil),
        InputRejectedError(status_code=422, detail=[{"loc": ["body", evil], "msg": evil}, evil]),
        GenerationFailedError(detail=evil),
        DownloadError(cause=evil, request_id="r-1"),
    ):
        assert safe in str(error)
        assert not set(str(error) + repr(error)) & set("\r\n\x1b\x9b\u202e")
        assert safe in repr(error).replace("\\\\", "\\")
    assert APIStatusError(detail=evil).detail == evil
    assert FluxKleinError(evil).args == (evil,)


def test_a_class_without_docstring_is_named_by_its_class() -> None:
    class UnheardError(FluxKleinError): ...

    assert str(UnheardError()) == "UnheardError"


def test_exports_every_class_of_the_tree() -> None:
    own = [cls for cls in CLASSES if cls.__module__ == errors.__name__]
    public = {cls.__name__ for cls in own if not cls.__name__.startswith("_")}
    others = {"LOOK_FOR_IT", "OF_EARLIER_RUN", "Charged", "by_known_code", "refuses_account", "status_error_class"}
    assert public | others == set(errors.__all__)


def test_is_caught_as_what_a_caller_expects() -> None:
    statuses = {cls for cls in CLASSES if issubclass(cls, APIStatusError)}
    assert len(statuses) == 8
    assert issubclass(ClientClosedError, ConfigurationError)
    assert issubclass(APITimeoutError, APIConnectionError)
    assert [cls for cls in CLASSES if issubclass(cls, ValueError)] == [InvalidInputError]
    assert [cls for cls in CLASSES if issubclass(cls, TimeoutError)] == [APITimeoutError, WaitTimeoutError]
    assert [cls for cls in CLASSES if issubclass(cls, OSError)] == [APITimeoutError, WaitTimeoutError]
    assert [cls for cls in CLASSES if issubclass(cls, RuntimeError | LookupError)] == []


@pytest.mark.parametrize("cls", CLASSES)
def test_the_facts_of_this_file_are_all_that_a_class_takes(cls: type[FluxKleinError]) -> None:
    bases = [inspect.signature(base).parameters.items() for base in cls.__mro__ if issubclass(base, FluxKleinError)]
    taken = {name for items in bases for name, parameter in items if parameter.kind is parameter.KEYWORD_ONLY}
    assert set(facts_of(cls)) == taken


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_keeps_class_text_and_facts_when_copied_or_pickled(way: Callable[[FluxKleinError], FluxKleinError]) -> None:
    for cls in CLASSES:
        facts = facts_of(cls)
        for message in ("", "A sentence of its own"):
            error = cls(message, **facts)
            error.paid_by_this_call = True
            twin = way(error)
            assert (type(twin), str(twin), vars(twin)) == (cls, str(error), vars(error))
            assert facts == {name: getattr(twin, name) for name in facts}


ID = {"request_id": "r-1"}
MONEY: dict[tuple[str, bool], list[FluxKleinError]] = {
    ("no", False): [
        *(ConfigurationError(), ClientClosedError(), InvalidInputError(), APIStatusError(status_code=418)),
        *(AuthenticationError(status_code=401), PermissionDeniedError(), InsufficientBalanceError(), NotFoundError()),
        *(InputRejectedError(), GenerationCancelledError(**ID), BudgetExceededError(), JournalError()),
    ],
    ("no", True): [
        *(APIConnectionError(), APITimeoutError(), APIStatusError(status_code=408), RateLimitError(), ServerError()),
        *(InvalidResponseError(), WaitTimeoutError(), ItemClaimedError(**ID)),
    ],
    ("unknown", False): [
        *(ClientClosedError(**ID), SubmissionUncertainError(), SubmissionUncertainError(**ID)),
        FanOutHaltedError(possibly_charged=5),
        *(GenerationFailedError(**ID), JournalError(**ID)),
    ],
    ("unknown", True): [APIConnectionError(**ID), ResultNotReadyError(**ID), WaitTimeoutError(**ID)],
    ("yes", False): [GenerationFailedError(**ID, charged="yes"), DownloadError(**ID)],
    ("yes", True): [DownloadError(**ID, transient=True)],
}


@pytest.mark.parametrize("facts", MONEY, ids=str)
def test_says_whether_money_may_be_gone_and_another_try_makes_sense(facts: tuple[str, bool]) -> None:
    assert [(error.charged, error.retryable) for error in MONEY[facts]] == [facts] * len(MONEY[facts])


def test_every_class_has_its_say_on_money() -> None:
    own = {cls for cls in CLASSES if cls.__module__ == errors.__name__}
    assert own - {FluxKleinError} == {type(error) for some in MONEY.values() for error in some}


def test_repeating_a_call_that_paid_never_makes_sense() -> None:
    for cls in CLASSES:
        error = cls(request_id="r-1", **({"transient": True} if cls is DownloadError else {}))
        error.paid_by_this_call = True
        assert not error.retryable


def test_the_code_names_the_class_if_it_is_known_and_the_status_otherwise() -> None:
    table = {
        # the service's own codes, on 400 as well as on the status of their first digits
        InputRejectedError: [(400, 400001), (422, 422001), (400, 422001), (400, None), (422, None)],
        InsufficientBalanceError: [(400, 400002), (402, 400002), (402, None), (200, 400002), (429, 400002)],
        AuthenticationError: [(400, 400004), (401, 400004), (401, 401001), (400, 401001), (401, None)],
        PermissionDeniedError: [
            *((403, 403001), (400, 403001), (400, 403003), (403, None)),
            *((status, code) for status in (200, 400, 403, 408, 429, 500, 503) for code in (10001, 10002, 10003)),
        ],
        NotFoundError: [(404, 404001), (400, 404001), (500, 404001), (404, None), (404, 999999), (200, 404999)],
        RateLimitError: [(429, None)],
        ServerError: [
            *((500, 500001), (400, 500001), (200, 500001), (500, 404999)),
            *((500, None), (502, None), (503, None), (504, None), (599, None)),
        ],
        APIStatusError: [(408, None), (418, None), (418, 7), (418, -404001), (200, 0), (200, None)],
    }
    for cls, answers in table.items():
        for status, code in answers:
            assert status_error_class(status, code) is cls, (status, code)


def test_tells_the_services_own_refusals_from_those_of_a_gateway_and_an_account_switched_off_from_both() -> None:
    for status, code, known, off in [
        *((status, code, True, True) for status in (200, 403, 500) for code in (10001, 10002, 10003)),
        *((403, code, True, False) for code in (403001, 403003, 400004, 422001)),
        *((403, code, False, False) for code in (None, 0, 1, 403, 403002, 10000, 10004, -10001)),
    ]:
        error = status_error_class(status, code)(status_code=status, error_code=code)
        assert (by_known_code(error), refuses_account(error)) == (known, off), (status, code)
