"""Whether to try again, and the loop that does: `classify` decides, tenacity repeats.

Only named failures are repeated, so that a cancellation always passes. This module neither sends nor sleeps.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_never

from flux_klein_async.api.messages import Request
from flux_klein_async.errors import (
    APIConnectionError,
    APIStatusError,
    FluxKleinError,
    InvalidResponseError,
    RateLimitError,
    ServerError,
    refuses_account,
)
from flux_klein_async.options import RetryPolicy

__all__ = ["Backoff", "RetryQuota", "Verdict", "classify", "refused_for_now", "repeat"]

T = TypeVar("T")


class Verdict(Enum):
    """What a failure allows."""

    RETRY = "retry"  # the call had no effect, or may have it twice
    FATAL = "fatal"  # the same call would fail again
    AMBIGUOUS = "ambiguous"  # it may have been accepted, and accepting it twice costs money


_OF_A_CALL = (APIConnectionError, APIStatusError, InvalidResponseError)


def classify(error: FluxKleinError, request: Request) -> Verdict:
    """What this failure of this request allows. Pure; deadline, quota and number of attempts may forbid more."""
    if request.replayable:
        return Verdict.RETRY if isinstance(error, _OF_A_CALL) and error.transient else Verdict.FATAL
    if isinstance(error, APIConnectionError):
        return Verdict.AMBIGUOUS if error.sent else Verdict.RETRY
    if isinstance(error, APIStatusError):
        if refused_for_now(error):
            return Verdict.RETRY
        return Verdict.FATAL if _plain_refusal(error) else Verdict.AMBIGUOUS
    return Verdict.AMBIGUOUS if isinstance(error, InvalidResponseError) else Verdict.FATAL


def refused_for_now(error: FluxKleinError) -> bool:
    """Whether a submit was refused for now: 429, or 503 with a readable `Retry-After` itself, by convention.

    A code in the body that says something else makes the answer contradictory: then it is no refusal for now.
    """
    if isinstance(error, RateLimitError) and error.status_code == 429:
        return error.error_code is None or _says(error.error_code, "4")
    if isinstance(error, ServerError) and error.status_code == 503:
        asked = error.retry_after is not None and "retry-after" in error.headers
        return asked and (error.error_code is None or _says(error.error_code, "5"))
    return False


def _plain_refusal(error: APIStatusError) -> bool:
    """A 4xx other than 408 whose code, if any, says 4xx too; a 200 whose code says 4xx; an account switched off.

    A code that says 408 is a time-out somewhere behind the service: it proves nothing.
    """
    code = error.error_code
    if refuses_account(error):
        return True
    if str(code).startswith("408"):
        return False
    if 400 <= error.status_code < 500 and error.status_code != 408:
        return code is None or _says(code, "4")
    return error.status_code == 200 and code is not None and _says(code, "4")


def _says(code: int, leading: str) -> bool:
    """Whether a code such as 400002, or a bare 402, belongs to the statuses with this first digit."""
    text = str(code)
    return len(text) in {3, 6} and text.startswith(leading)


class RetryQuota:
    """The repeats of a whole client, bounded so that an outage is not multiplied.

    A repeat takes 5 of 500 credits, and a call that succeeds at once gives one back: a hundred repeats are free, then
    about one for every five successes. (The figures of the AWS SDKs' standard retry mode.)
    """

    CAPACITY = 500
    COST = 5

    def __init__(self) -> None:
        self._credits = self.CAPACITY

    def take(self) -> bool:
        """Whether one more repeat is allowed."""
        if self._credits < self.COST:
            return False
        self._credits -= self.COST
        return True

    def refund(self) -> None:
        """Give one credit back: a call succeeded at once."""
        if self._credits < self.CAPACITY:
            self._credits += 1


@dataclass(frozen=True, slots=True)
class Backoff:
    """Jittered exponential pauses: the n-th is uniform between half its bound and its bound."""

    policy: RetryPolicy
    spread: Callable[[], float] = random.random

    def pause(self, failures: int) -> float:
        """Seconds to pause after so many failures (1 or more)."""
        try:
            bound = min(self.policy.maximum, self.policy.initial * self.policy.multiplier ** (failures - 1))
        except OverflowError:
            bound = self.policy.maximum
        return bound * (0.5 + self.spread() / 2)


async def repeat(
    call: Callable[[], Awaitable[T]],
    *,
    may_repeat: Callable[[FluxKleinError], bool],
    pause: Callable[[], Awaitable[None]],
    attempts: int | None,
) -> T:
    """Repeat a call that failed once and may be repeated; `pause` comes before each repeat.

    The first attempt is the caller's plain await, so that a call which succeeds at once does not pay for tenacity.

    Args:
        call: A coroutine function.
        may_repeat: Asked once for each failure.
        pause: What it raises ends the loop.
        attempts: In all, the first included; None: no limit.

    Raises:
        FluxKleinError: The last failure.
    """

    async def before(_: RetryCallState) -> None:
        await pause()

    retrying = AsyncRetrying(
        before=before,
        retry=retry_if_exception(lambda error: isinstance(error, FluxKleinError) and may_repeat(error)),
        stop=stop_never if attempts is None else stop_after_attempt(attempts - 1),
        reraise=True,
    )
    return await retrying(call)
