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
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InputRejectedError,
    InsufficientBalanceError,
    InvalidInputError,
    InvalidResponseError,
    JournalError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResultNotReadyError,
    ServerError,
    SubmissionUncertainError,
    WaitTimeoutError,
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
    FluxKleinError: {"request_id": "r-1", "charged": "yes", "cause": "OSError: gone"},
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
    InvalidResponseError: {"status_code": 302},
    SubmissionUncertainError: {"raw": "<html>"},
    GenerationFailedError: {"detail": {"reason": "out of memory"}},
    WaitTimeoutError: {"elapsed": 30.0, "polls": 7, "state": "in_queue"},
    DownloadError: {"url": "https://files.example/a.png", "status_code": 503, "transient": True},
}


def facts_of(cls: type[FluxKleinError]) -> dict[str, Any]:
    return {name: value for base in cls.__mro__ for name, value in FACTS.get(base, {}).items()}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigurationError("No token"), "No token"),
        (ConfigurationError(), "No token, a bad base URL, the wrong event loop, an unusable session"),
        (ClientClosedError(), "The client is closed, or was closed while the call was under way"),
        (InvalidInputError(), "The input was refused here, before anything was sent"),
        (InvalidInputError("prompt: blank", cause="ValueError"), "prompt: blank: ValueError"),
        (APIConnectionError(), "The connection to the service failed"),
        (
            APIConnectionError(cause="ConnectionResetError: reset", request_id="r-1"),
            "The connection to the service failed: ConnectionResetError: reset (request r-1)",
        ),
        (APITimeoutError(request_id="r-1"), "The service did not answer in time (request r-1)"),
        (APIStatusError(status_code=418), "The service refused the call [HTTP 418]"),
        (
            AuthenticationError(status_code=400, error_code=400004, detail="expired"),
            "The token is missing, wrong, expired or revoked [HTTP 400, code 400004]: expired",
        ),
        (
            PermissionDeniedError(status_code=403),
            "The request belongs to somebody else, or the account may not do this [HTTP 403]",
        ),
        (InsufficientBalanceError(status_code=402), "No balance is left on the account [HTTP 402]"),
        (
            NotFoundError(status_code=404, request_id="r-1"),
            "The model or request is unknown, deleted or expired [HTTP 404] (request r-1)",
        ),
        (
            InputRejectedError(status_code=422, detail=[{"loc": ["width"]}]),
            "The service refused the input [HTTP 422]: {'loc': ['width']}",
        ),
        (
            InputRejectedError(
                status_code=422,
                detail=[
                    {"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"},
                    {"loc": ["body"], "msg": "no object"},
                    {"loc": "x", "msg": "odd"},
                    {"loc": ["size", 0], "msg": 7},
                    "odd too",
                ],
            ),
            (
                "The service refused the input [HTTP 422]: prompt: Field required; no object; "
                "{'loc': 'x', 'msg': 'odd'}; {'loc': ['size', 0], 'msg': 7}; odd too"
            ),
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
            "The submit may or may not have been accepted; it is not repeated, since you may have paid for it",
        ),
        (ResultNotReadyError(request_id="r-1"), "The generation has not ended yet (request r-1)"),
        (GenerationFailedError(), "The generation failed"),
        (GenerationFailedError(detail="out of memory"), "The generation failed: out of memory"),
        (GenerationCancelledError(), "The generation was cancelled"),
        (WaitTimeoutError(), "The deadline passed; not seen yet in 0 polls; it may still finish"),
        (
            WaitTimeoutError(elapsed=30.0, polls=1, state="in_queue", request_id="r-1"),
            "The deadline passed after 30 s; last seen in_queue in 1 poll; it may still finish (request r-1)",
        ),
        (DownloadError(url="https://files.example/a.png", status_code=503), "A file could not be downloaded"),
        (BudgetExceededError(), "The next submit could exceed the budget"),
        (JournalError(), "The journal could not be read or written"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FluxKleinError) else "",
)
def test_makes_its_sentence_from_its_facts(error: FluxKleinError, text: str) -> None:
    assert (str(error), repr(error)) == (text, f"{type(error).__name__}({text!r})")


def test_a_class_without_docstring_is_named_by_its_class() -> None:
    class UnheardError(FluxKleinError): ...

    assert str(UnheardError()) == "UnheardError"


def test_exports_every_class_of_the_tree() -> None:
    own = [cls for cls in CLASSES if cls.__module__ == errors.__name__]
    public = {cls.__name__ for cls in own if not cls.__name__.startswith("_")}
    assert public | {"Charged", "status_error_class"} == set(errors.__all__)


@pytest.mark.parametrize(
    ("cls", "bases"),
    [
        (ClientClosedError, {ConfigurationError}),
        (InvalidInputError, {ValueError}),
        (APITimeoutError, {TimeoutError}),
        (WaitTimeoutError, {TimeoutError}),
        (AuthenticationError, {APIStatusError}),
        (PermissionDeniedError, {APIStatusError}),
        (InsufficientBalanceError, {APIStatusError}),
        (NotFoundError, {APIStatusError}),
        (InputRejectedError, {APIStatusError}),
        (RateLimitError, {APIStatusError}),
        (ServerError, {APIStatusError}),
    ],
)
def test_is_caught_as_what_a_caller_expects(cls: type[FluxKleinError], bases: set[type]) -> None:
    assert bases <= set(cls.__mro__)


@pytest.mark.parametrize("cls", CLASSES)
def test_only_the_named_classes_have_a_base_outside_the_tree(cls: type[FluxKleinError]) -> None:
    foreign = {base for base in (ValueError, OSError, RuntimeError, LookupError) if issubclass(cls, base)}
    expected: dict[type, set[type]] = {
        InvalidInputError: {ValueError},
        APITimeoutError: {OSError},
        WaitTimeoutError: {OSError},
    }
    assert foreign == expected.get(cls, set())


@pytest.mark.parametrize("cls", CLASSES)
def test_the_facts_of_this_file_are_all_that_a_class_takes(cls: type[FluxKleinError]) -> None:
    taken = {
        name
        for base in cls.__mro__
        if issubclass(base, FluxKleinError)
        for name, parameter in inspect.signature(base).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert set(facts_of(cls)) == taken


@pytest.mark.parametrize("message", ["", "A sentence of its own"])
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("cls", CLASSES)
def test_keeps_class_text_and_facts_when_copied_or_pickled(
    cls: type[FluxKleinError], way: Callable[[FluxKleinError], FluxKleinError], message: str
) -> None:
    facts = facts_of(cls)
    error = cls(message, **facts)
    error.paid_by_this_call = True
    twin = way(error)
    assert (type(twin), str(twin), vars(twin)) == (cls, str(error), vars(error))
    assert facts == {name: getattr(twin, name) for name in facts}


@pytest.mark.parametrize(
    ("error", "charged", "retryable"),
    [
        (ConfigurationError(), "no", False),
        (ClientClosedError(), "no", False),
        (ClientClosedError(request_id="r-1"), "unknown", False),
        (InvalidInputError(), "no", False),
        (APIConnectionError(), "no", True),
        (APIConnectionError(request_id="r-1"), "unknown", True),
        (APITimeoutError(), "no", True),
        (APIStatusError(status_code=418), "no", False),
        (APIStatusError(status_code=408), "no", True),
        (AuthenticationError(status_code=401), "no", False),
        (PermissionDeniedError(status_code=403), "no", False),
        (InsufficientBalanceError(status_code=402), "no", False),
        (NotFoundError(status_code=404), "no", False),
        (InputRejectedError(status_code=422), "no", False),
        (RateLimitError(status_code=429), "no", True),
        (ServerError(status_code=500), "no", True),
        (InvalidResponseError(), "no", True),
        (SubmissionUncertainError(), "unknown", False),
        (SubmissionUncertainError(request_id="r-1"), "unknown", False),
        (ResultNotReadyError(request_id="r-1"), "unknown", True),
        (GenerationFailedError(request_id="r-1"), "unknown", False),
        (GenerationFailedError(request_id="r-1", charged="yes"), "yes", False),
        (GenerationCancelledError(request_id="r-1"), "no", False),
        (WaitTimeoutError(request_id="r-1"), "unknown", True),
        (WaitTimeoutError(), "no", True),
        (DownloadError(request_id="r-1"), "yes", False),
        (DownloadError(request_id="r-1", transient=True), "yes", True),
        (BudgetExceededError(), "no", False),
        (JournalError(), "no", False),
        (JournalError(request_id="r-1"), "unknown", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FluxKleinError) else str(value),
)
def test_says_whether_money_may_be_gone_and_another_try_makes_sense(
    error: FluxKleinError, charged: str, retryable: bool
) -> None:
    assert (error.charged, error.retryable) == (charged, retryable)


@pytest.mark.parametrize("cls", CLASSES)
def test_making_a_paid_call_again_never_makes_sense(cls: type[FluxKleinError]) -> None:
    error = cls(request_id="r-1")
    error.paid_by_this_call = True
    assert error.retryable is False


def test_downloading_again_makes_sense_even_though_the_picture_is_paid() -> None:
    error = DownloadError(transient=True, request_id="r-1")
    error.paid_by_this_call = True
    assert (error.retryable, error.charged) == (True, "yes")


@pytest.mark.parametrize(
    ("status", "code", "cls"),
    [
        # The service's own codes, on 400 as well as on the status that their first digits say.
        (400, 400001, InputRejectedError),
        (400, 400002, InsufficientBalanceError),
        (402, 400002, InsufficientBalanceError),
        (400, 400004, AuthenticationError),
        (401, 400004, AuthenticationError),
        (401, 401001, AuthenticationError),
        (400, 401001, AuthenticationError),
        (403, 403001, PermissionDeniedError),
        (400, 403001, PermissionDeniedError),
        (400, 403003, PermissionDeniedError),
        (404, 404001, NotFoundError),
        (400, 404001, NotFoundError),
        (422, 422001, InputRejectedError),
        (400, 422001, InputRejectedError),
        (500, 500001, ServerError),
        (400, 500001, ServerError),
        # The status, where there is no code or none that is known.
        (400, None, InputRejectedError),
        (401, None, AuthenticationError),
        (402, None, InsufficientBalanceError),
        (403, None, PermissionDeniedError),
        (404, None, NotFoundError),
        (408, None, APIStatusError),
        (422, None, InputRejectedError),
        (429, None, RateLimitError),
        (500, None, ServerError),
        (502, None, ServerError),
        (503, None, ServerError),
        (504, None, ServerError),
        (599, None, ServerError),
        (404, 999999, NotFoundError),
        (418, None, APIStatusError),
        (418, 7, APIStatusError),
        (418, -404001, APIStatusError),
        # A success that carries a code is an error all the same.
        (200, 400002, InsufficientBalanceError),
        (200, 404999, NotFoundError),
        (200, 500001, ServerError),
        (200, 0, APIStatusError),
        (200, None, APIStatusError),
        # Codes of the vendor's sister products: account or deployment switched off.
        (400, 10001, PermissionDeniedError),
        (400, 10002, PermissionDeniedError),
        (400, 10003, PermissionDeniedError),
        # The code decides where both are known.
        (500, 404001, NotFoundError),
        (429, 400002, InsufficientBalanceError),
    ],
)
def test_the_code_names_the_class_where_it_is_known_and_the_status_otherwise(
    status: int, code: int | None, cls: type[APIStatusError]
) -> None:
    assert status_error_class(status, code) is cls
