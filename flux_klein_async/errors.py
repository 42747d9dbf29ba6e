"""What goes wrong with the service, the network, an input or a journal, and what each error knows.

    FluxKleinError
    ├── ConfigurationError             the client is set up wrong
    │   └── ClientClosedError          the client is closed, or was closed during the call
    ├── InvalidInputError              refused here, before anything was sent (a ValueError)
    ├── APIConnectionError             the connection failed
    │   └── APITimeoutError            the service did not answer in time (a TimeoutError)
    ├── APIStatusError                 the service refused
    │   ├── AuthenticationError, PermissionDeniedError, InsufficientBalanceError
    │   ├── NotFoundError, InputRejectedError
    │   └── RateLimitError, ServerError
    ├── InvalidResponseError           the answer contradicts the API's documentation
    ├── SubmissionUncertainError       the submit may or may not have been accepted
    ├── ResultNotReadyError            asked for the result before the end
    ├── GenerationFailedError          the generation failed
    ├── GenerationCancelledError       the generation was cancelled
    ├── WaitTimeoutError               the deadline passed, the request id is known (a TimeoutError)
    ├── DownloadError                  a file could not be downloaded
    ├── BudgetExceededError            the next submit could exceed the budget
    ├── FanOutHaltedError              too many in a row may have been charged for nothing
    └── JournalError                   the journal could not be read or written
        └── ItemClaimedError           another run that shares the journal works on this item

An error carries facts; ``__str__`` makes the sentence from them. The table at the end maps the service's codes to
classes.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from flux_klein_async.text import cut, shown

__all__ = [
    "LOOK_FOR_IT",
    "OF_EARLIER_RUN",
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BudgetExceededError",
    "Charged",
    "ClientClosedError",
    "ConfigurationError",
    "DownloadError",
    "FanOutHaltedError",
    "FluxKleinError",
    "GenerationCancelledError",
    "GenerationFailedError",
    "InputRejectedError",
    "InsufficientBalanceError",
    "InvalidInputError",
    "InvalidResponseError",
    "ItemClaimedError",
    "JournalError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ResultNotReadyError",
    "ServerError",
    "SubmissionUncertainError",
    "WaitTimeoutError",
    "by_known_code",
    "refuses_account",
    "status_error_class",
]

Charged = Literal["no", "yes", "unknown"]
LOOK_FOR_IT = "look for it on the site under Library, Generations"
OF_EARLIER_RUN = "The submit of an earlier run may or may not have been accepted"
_IN_REPR = 200  # characters of a sentence in a repr
_LONGEST = 2100  # characters of a detail in a sentence; the attribute has all of it


class FluxKleinError(Exception):
    """The root: ``except FluxKleinError`` catches every failure of the service or the network.

    Attributes:
        request_id: The request's id, or None before it is known.
        paid_by_this_call: Whether this call had a submit accepted.
        cause: Type and text of the underlying exception, if it could not be chained.
        advice: What to do about it, the end of the sentence, instead of what the class advises; or None.
    """

    _transient: bool = False
    _charged: Charged | None = None  # None: it depends on whether a request id is known

    def __init__(
        self,
        message: str = "",
        *,
        request_id: str | None = None,
        charged: Charged | None = None,
        cause: str | None = None,
        advice: str | None = None,
    ) -> None:
        # Only the message is positional: unpickling calls the class with `args` and then restores `__dict__`.
        super().__init__(message)
        self.request_id = request_id
        self.cause = cause
        self.advice = advice
        self.paid_by_this_call = False
        if charged is not None:
            self._charged = charged

    @property
    def charged(self) -> Charged:
        """May you have been charged? An accepted request with an unknown end may be charged."""
        return self._charged or ("unknown" if self.request_id else "no")

    @property
    def transient(self) -> bool:
        """Whether the failure may pass by itself."""
        return self._transient

    @property
    def retryable(self) -> bool:
        """Would the same call make sense later, without paying twice?

        False once this call had a submit accepted: resume ``request_id`` with ``wait_for_result`` instead.
        """
        return self.transient and not self.paid_by_this_call

    def __str__(self) -> str:
        return shown(self._sentence())  # it may end in a log or on a terminal, and others have written parts of it

    def _sentence(self) -> str:
        text = str(self.args[0]) if self.args and self.args[0] else self._summary()
        if self.cause:
            text += f": {self.cause}"
        if advice := self._advice():
            text += f"; {advice}"
        mark = f" (request {self.request_id})" if self.request_id else ""
        return text if mark in text else text + mark  # the cause may have said it

    def __repr__(self) -> str:
        text = self._sentence()
        return f"{type(self).__name__}({cut(text, _IN_REPR)!r})"

    def _advice(self) -> str | None:
        return self.advice

    def _summary(self) -> str:
        return (type(self).__doc__ or type(self).__name__).splitlines()[0].rstrip(".")


class ConfigurationError(FluxKleinError):
    """No token, a bad base URL, the wrong event loop, an unusable session."""


class ClientClosedError(ConfigurationError):
    """The client is closed, or was closed while the call was under way."""


class InvalidInputError(FluxKleinError, ValueError):
    """The input was refused here, before anything was sent.

    Attributes:
        fields: What is wrong, by field name; empty if no single field is at fault.
    """

    def __init__(self, message: str = "", *, fields: Mapping[str, str] | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.fields = dict(fields or {})


class APIConnectionError(FluxKleinError):
    """The connection to the service failed.

    Attributes:
        sent: False if certainly nothing of the request's body was written.
    """

    _transient = True

    def __init__(self, message: str = "", *, sent: bool = True, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.sent = sent


class APITimeoutError(APIConnectionError, TimeoutError):
    """The service did not answer in time."""


class APIStatusError(FluxKleinError):
    """The service refused the call.

    Attributes:
        status_code: The HTTP status.
        error_code: The service's own code, or None.
        detail: Its message, or its list of the fields at fault.
        headers: The response headers; names in lower case.
        body: The response body as text, at most 2,000 characters.
        retry_after: Seconds to wait before the next call, as the service asked, but at most 120, as long as the client
            itself waits; or None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int = 0,
        error_code: int | None = None,
        detail: Any = None,
        headers: Mapping[str, str] | None = None,
        body: str = "",
        retry_after: float | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.status_code = status_code
        self.error_code = error_code
        self.detail = detail
        self.headers = dict(headers or {})
        self.body = body
        self.retry_after = retry_after
        if type(self) is APIStatusError:
            self._transient = status_code == 408  # has no class of its own

    def _summary(self) -> str:
        code = f", code {self.error_code}" if self.error_code is not None else ""
        wait = f", retry after {self.retry_after:g} s" if self.retry_after is not None else ""
        detail = f": {_said(self.detail)}"[:_LONGEST] if self.detail else ""
        return f"{super()._summary()} [HTTP {self.status_code}{code}{wait}]{detail}"


def _said(detail: Any) -> str:
    """The service's message as text; findings about fields become "field: message"."""
    if isinstance(detail, list):
        return "; ".join(_said(item) for item in detail)
    if isinstance(detail, Mapping) and isinstance(detail.get("loc"), list) and isinstance(detail.get("msg"), str):
        path = ".".join(str(part) for part in detail["loc"] if part not in ("body", "input"))
        return f"{path}: {detail['msg']}" if path else str(detail["msg"])
    return str(detail)


class AuthenticationError(APIStatusError):
    """The token is missing, wrong, expired or revoked."""


class PermissionDeniedError(APIStatusError):
    """The request belongs to somebody else, or the account may not do this."""


class InsufficientBalanceError(APIStatusError):
    """No balance is left on the account."""


class NotFoundError(APIStatusError):
    """The model or request is unknown, deleted or expired."""


class InputRejectedError(APIStatusError):
    """The service refused the input.

    Attributes:
        single: The fields that hold one value where the service wants a list.
        file_names: By field, a string that the service refused there and that looks like the name of a local file.
    """

    def __init__(
        self,
        message: str = "",
        *,
        single: Iterable[str] = (),
        file_names: Mapping[str, str] | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.single = tuple(single)
        self.file_names = dict(file_names or {})

    def _advice(self) -> str:
        lists = "; ".join(f"{name}: put the value into a list" for name in self.single)
        paths = "; ".join(
            f"{name}: a string goes as it is; pass pathlib.Path({text!r}) to send a local file"
            for name, text in self.file_names.items()
        )
        return "; ".join(filter(None, (lists, self.advice or paths)))


class RateLimitError(APIStatusError):
    """The service limits the rate of calls."""

    _transient = True


class ServerError(APIStatusError):
    """The service failed."""

    _transient = True


class InvalidResponseError(FluxKleinError):
    """The answer contradicts the API's documentation.

    Attributes:
        status_code: The HTTP status, or None.
    """

    _transient = True

    def __init__(self, message: str = "", *, status_code: int | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.status_code = status_code


class SubmissionUncertainError(FluxKleinError):
    """The submit may or may not have been accepted; it is not repeated, since you may have paid for it.

    Attributes:
        raw: The start of the answer's text, or None if nothing came back.
    """

    _charged = "unknown"

    def __init__(self, message: str = "", *, raw: str | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.raw = raw

    def _advice(self) -> str:
        if self.advice:
            return self.advice
        own_words = self.args and self.args[0] and "may or may not" not in self.args[0]
        charged = "it may have been accepted, and charged" if own_words else None
        return "; ".join(filter(None, (charged, LOOK_FOR_IT if self.advice is None else None)))


class ResultNotReadyError(FluxKleinError):
    """The generation has not ended yet."""

    _transient = True


class GenerationFailedError(FluxKleinError):
    """The generation failed.

    Attributes:
        detail: What the service says went wrong, or None.
        raw: The whole answer of a generation that completed without a file, or None.
        cost_usd: What that cost in USD, or None if the service does not say.
    """

    def __init__(
        self,
        message: str = "",
        *,
        detail: Any = None,
        raw: Mapping[str, Any] | None = None,
        cost_usd: float | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.detail = detail
        self.raw = raw
        self.cost_usd = cost_usd

    def _summary(self) -> str:
        return f"{super()._summary()}: {self.detail}"[:_LONGEST] if self.detail else super()._summary()


class GenerationCancelledError(FluxKleinError):
    """The generation was cancelled.

    Attributes:
        stopped: Whether the `stop()` of a fan-out cancelled it; another run can submit the item.
    """

    _charged = "no"
    stopped: bool = False

    @property
    def retryable(self) -> bool:
        """Would the same item make sense later, without paying twice? Only if nobody but `stop()` cancelled it."""
        return self.stopped and self.charged == "no"

    def _advice(self) -> str | None:
        return self.advice or ("another run can submit it" if self.retryable else None)


class WaitTimeoutError(FluxKleinError, TimeoutError):
    """The deadline passed before the generation ended; it may still finish.

    Attributes:
        elapsed: Seconds since the call began.
        polls: Number of polls.
        state: The last state seen, or None.
        word: The service's word for it, if that is `unknown`.
        cancelling: Whether the client cancels the request, if it is still queued (`on_abandon="cancel"`).
    """

    _transient = True

    def __init__(
        self,
        message: str = "",
        *,
        elapsed: float | None = None,
        polls: int = 0,
        state: str | None = None,
        word: str | None = None,
        cancelling: bool = False,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.elapsed = elapsed
        self.polls = polls
        self.state = state
        self.word = word
        self.cancelling = cancelling

    def _summary(self) -> str:
        after = f" after {self.elapsed:.3g} s" if self.elapsed is not None else ""
        word = f" ({self.word!r})" if self.word else ""
        seen = f"last seen {self.state}{word}" if self.state else "not seen yet"
        plural = "" if self.polls == 1 else "s"
        is_cancelled = self.cancelling and self.state != "in_progress"
        end = "it is cancelled, unless it runs already" if is_cancelled else "it may still finish"
        return f"The deadline passed{after}; {seen} in {self.polls} poll{plural}; {end}"


class DownloadError(FluxKleinError):
    """A file could not be downloaded.

    Attributes:
        url: The file's URL, without its query.
        status_code: The HTTP status, or None.
        cost_usd: What the generation cost in USD, or None if the service does not say.
    """

    _charged = "yes"

    def __init__(
        self,
        message: str = "",
        *,
        url: str | None = None,
        status_code: int | None = None,
        cost_usd: float | None = None,
        transient: bool = False,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.url = url
        self.status_code = status_code
        self.cost_usd = cost_usd
        self._transient = transient

    def _advice(self) -> str | None:
        if self.advice is not None or self.request_id is None:
            return self.advice
        return "it is paid for: client.result(request_id) and client.download fetch it again, for nothing"


class BudgetExceededError(FluxKleinError):
    """The next submit could exceed the budget.

    Attributes:
        reserved_usd: USD reserved for requests of unknown cost at more than the catalogue's price, because the service
            charged that once; what they cost less can be spent again. 0 otherwise.
        price_known: Whether the price is known; otherwise no budget is large enough.
    """

    reserved_usd: float = 0.0
    price_known: bool = True


class FanOutHaltedError(FluxKleinError):
    """Submit after submit ended uncertain, or generation after generation was completed without a file.

    Nothing more is submitted (`Limits.halt_after`).

    Attributes:
        reason: What ended how, and how often in a row.
        possibly_charged: How many requests of the fan-out may have been charged and gave no file.
    """

    _charged = "unknown"

    def __init__(
        self, message: str = "", *, reason: str | None = None, possibly_charged: int = 0, **facts: Any
    ) -> None:
        super().__init__(message, **facts)
        self.reason = reason
        self.possibly_charged = possibly_charged

    def _summary(self) -> str:
        plural = "" if self.possibly_charged == 1 else "s"
        charged = f"up to {self.possibly_charged} request{plural} may have been charged"
        return f"{self.reason or super()._summary()}; nothing more is submitted, and {charged}"


class JournalError(FluxKleinError):
    """The journal could not be read or written."""


class ItemClaimedError(JournalError):
    """This item is under way already, in another run that shares the journal or in this one."""

    _transient = True
    _charged = "no"


# docs/wire.md, "Errors": HTTP statuses, and the service's own codes.
# In the vendor's sister products: an account or deployment that is switched off. No other status says the same.
_SWITCHED_OFF = (10001, 10002, 10003)
_CLASSES: dict[int, type[APIStatusError]] = {
    **dict.fromkeys((400, 422, 400001, 422001), InputRejectedError),
    **dict.fromkeys((401, 400004, 401001), AuthenticationError),
    **dict.fromkeys((402, 400002), InsufficientBalanceError),
    **dict.fromkeys((403, 403001, 403003, *_SWITCHED_OFF), PermissionDeniedError),
    **dict.fromkeys((404, 404001), NotFoundError),
    **dict.fromkeys((429,), RateLimitError),
    **dict.fromkeys((*range(500, 600), 500001), ServerError),
}


def status_error_class(status_code: int, error_code: int | None) -> type[APIStatusError]:
    """The class for a refusal: by a known code, else by the status, else by the first digits of the code."""
    leading = int(str(error_code)[:3]) if error_code is not None and error_code >= 0 else None
    return next((_CLASSES[key] for key in (error_code, status_code, leading) if key in _CLASSES), APIStatusError)


def refuses_account(error: APIStatusError) -> bool:
    """Whether a code says, on any status, that the account or deployment is switched off."""
    return error.error_code in _SWITCHED_OFF


def by_known_code(error: APIStatusError) -> bool:
    """Whether the service itself refused: with a code of its own that is known, and not a gateway with a status."""
    return error.error_code is not None and error.error_code >= 1000 and error.error_code in _CLASSES
