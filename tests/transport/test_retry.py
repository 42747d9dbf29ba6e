"""What a failure allows, how long to pause, and the loop that repeats."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.api.messages import Kind, Request
from flux_klein_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BudgetExceededError,
    ClientClosedError,
    ConfigurationError,
    DownloadError,
    FluxKleinError,
    GenerationFailedError,
    InvalidInputError,
    InvalidResponseError,
    JournalError,
    ResultNotReadyError,
    ServerError,
    WaitTimeoutError,
    status_error_class,
)
from flux_klein_async.options import RetryPolicy
from flux_klein_async.transport.retry import Backoff, RetryQuota, Verdict, classify, refused_for_now, repeat

RETRY, FATAL, AMBIGUOUS = Verdict.RETRY, Verdict.FATAL, Verdict.AMBIGUOUS


def request(*, replayable: bool) -> Request:
    kind, method = (Kind.READ, "GET") if replayable else (Kind.SUBMIT, "POST")
    url = "https://h.example"
    return Request(kind=kind, method=method, url=url, headers={}, replayable=replayable, silence=1.0)


def refusal(status: int, code: int | None = None, retry_after: float | None = None) -> APIStatusError:
    """The error of an answer with this status, code and `Retry-After`."""
    cls = status_error_class(status, code)
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return cls(status_code=status, error_code=code, retry_after=retry_after, headers=headers)


@pytest.mark.parametrize(
    ("error", "of_submit", "of_read"),
    [
        # No connection was obtained: nothing was sent.
        *[(kind(sent=False), RETRY, RETRY) for kind in (APIConnectionError, APITimeoutError)],
        # The wire broke later: the submit may have been accepted.
        *[(kind(sent=True), AMBIGUOUS, RETRY) for kind in (APIConnectionError, APITimeoutError)],
        *[(kind(), AMBIGUOUS, RETRY) for kind in (APIConnectionError, APITimeoutError)],
        # Refusals for now.
        *[(refusal(429, *said), RETRY, RETRY) for said in [(), (None, 7.0), (429,), (429001,)]],
        *[(refusal(503, *said), RETRY, RETRY) for said in [(None, 7.0), (None, 0.0), (503, 7.0), (500001, 7.0)]],
        # Plain refusals: a 4xx, or a 200 whose code says 4xx.
        *[(refusal(status), FATAL, FATAL) for status in (400, 401, 402, 403, 404, 418, 422, 499)],
        *[(refusal(400, code), FATAL, FATAL) for code in (400002, 422001)],
        *[(refusal(200, code), FATAL, FATAL) for code in (400002, 422001, 402)],
        (refusal(422, 404), FATAL, FATAL),
        # An account or deployment that is switched off, in the codes of the vendor's sister products.
        *[(refusal(status, 10001, 7.0), FATAL, FATAL) for status in (200, 400, 403, 408, 429, 500, 503)],
        *[(refusal(200, code), FATAL, FATAL) for code in (10002, 10003)],
        *[(refusal(200, code), AMBIGUOUS, FATAL) for code in (10000, 10004, -10001, 100010)],
        (refusal(400, 429), FATAL, RETRY),
        (refusal(429, 400002), FATAL, FATAL),
        # The service's trouble: the submit may have been accepted.
        *[(refusal(status), AMBIGUOUS, RETRY) for status in (408, 500, 502, 503, 504, 599)],
        *[(refusal(status, None, 7.0), AMBIGUOUS, RETRY) for status in (408, 500)],
        (refusal(503, 500001), AMBIGUOUS, RETRY),
        # Contradictory answers.
        *[(refusal(status, 500001), AMBIGUOUS, RETRY) for status in (200, 400, 429)],
        *[(refusal(200, code), AMBIGUOUS, FATAL) for code in (4, 0, -400002, None)],
        *[(refusal(status, 400002), AMBIGUOUS, FATAL) for status in (408, 500)],
        *[(refusal(503, code, 7.0), AMBIGUOUS, FATAL) for code in (400002, 404001)],
        (refusal(400, 12345), AMBIGUOUS, FATAL),
        (refusal(429, 1), AMBIGUOUS, RETRY),
        (refusal(503, 429, 7.0), AMBIGUOUS, RETRY),
        # Redirects and unreadable bodies.
        (refusal(399), AMBIGUOUS, FATAL),
        *[(InvalidResponseError(status_code=status), AMBIGUOUS, RETRY) for status in (302, 200, 429)],
        # What is decided here, before anything was sent, or after all was answered.
        *[
            (kind(), FATAL, FATAL)
            for kind in (ConfigurationError, ClientClosedError, InvalidInputError, FluxKleinError)
        ],
        *[(kind(), FATAL, FATAL) for kind in (BudgetExceededError, JournalError, ResultNotReadyError)],
        *[(kind(), FATAL, FATAL) for kind in (GenerationFailedError, WaitTimeoutError)],
        (DownloadError(transient=True), FATAL, FATAL),
    ],
    ids=lambda value: repr(value) + repr(vars(value)) if isinstance(value, Exception) else value.value,
)
def test_a_submit_is_repeated_only_where_it_was_not_accepted(
    error: FluxKleinError, of_submit: Verdict, of_read: Verdict
) -> None:
    decided = classify(error, request(replayable=False)), classify(error, request(replayable=True))
    assert decided == (of_submit, of_read)
    assert refused_for_now(error) is (of_submit is RETRY and isinstance(error, APIStatusError))


@given(
    st.integers(0, 999),
    st.none() | st.integers() | st.sampled_from([400001, 400002, 400004, 404001, 422001, 500001]),
    st.none() | st.floats(0, 120),
)
def test_a_submit_answered_with_an_unheard_status_is_never_repeated(
    status: int, code: int | None, retry_after: float | None
) -> None:
    repeated = classify(refusal(status, code, retry_after), request(replayable=False)) is RETRY
    assert not repeated or status == 429 or (status == 503 and retry_after is not None)


@pytest.mark.parametrize("successes", [0, 1, 1000])
def test_the_quota_pays_for_a_hundred_repeats_and_then_for_one_in_five_successes(successes: int) -> None:
    quota = RetryQuota()
    for _ in range(successes):  # at its capacity it grows no more
        quota.refund()
    assert [quota.take() for _ in range(101)] == [True] * 100 + [False]
    taken = []
    for _ in range(10):
        quota.refund()
        taken.append(quota.take())
    assert taken == [False, False, False, False, True] * 2


@pytest.mark.parametrize(
    ("policy", "spread", "pauses"),
    [
        (RetryPolicy(), 1.0, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]),
        (RetryPolicy(), 0.0, [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5]),
        (RetryPolicy(initial=1, multiplier=3, maximum=10), 0.5, [0.75, 2.25, 6.75, 7.5]),
        (RetryPolicy(initial=2, multiplier=1, maximum=10), 1.0, [2.0, 2.0, 2.0]),
        (RetryPolicy(initial=2, multiplier=0.5, maximum=10), 1.0, [2.0, 1.0, 0.5]),
        (RetryPolicy(initial=0), 1.0, [0.0, 0.0]),
        (RetryPolicy(maximum=0), 1.0, [0.0, 0.0]),
    ],
)
def test_pauses_double_up_to_their_maximum_and_are_spread(
    policy: RetryPolicy, spread: float, pauses: list[float]
) -> None:
    backoff = Backoff(policy, lambda: spread)
    assert [backoff.pause(failures) for failures in range(1, len(pauses) + 1)] == pytest.approx(pauses)


settings = st.floats(0, allow_nan=False, allow_infinity=False)
policies = st.builds(RetryPolicy, initial=settings, multiplier=settings, maximum=settings)


@given(policies, st.integers(1, 10_000), st.floats(0, 1))
def test_a_pause_never_exceeds_its_maximum_whatever_the_policy(
    policy: RetryPolicy, failures: int, spread: float
) -> None:
    assert 0 <= Backoff(policy, lambda: spread).pause(failures) <= policy.maximum


def test_pauses_differ_unless_told_otherwise() -> None:
    backoff = Backoff(RetryPolicy())
    pauses = {backoff.pause(1) for _ in range(20)}
    assert len(pauses) > 1
    assert all(0.05 <= pause <= 0.1 for pause in pauses)


class Script:
    """A call that fails as scripted, then succeeds, and a pause that takes no time; both write down what happened."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.log: list[str] = []

    async def call(self) -> str:
        if self.failures:
            failure = self.failures.pop(0)
            self.log.append(f"fail {failure}")
            raise failure
        self.log.append("succeed")
        return "result"

    async def pause(self) -> None:
        self.log.append("pause")

    def run(self, *, attempts: int | None = 5, allowed: Callable[[FluxKleinError], bool] = lambda _: True) -> str:
        def may_repeat(error: FluxKleinError) -> bool:
            self.log.append(f"ask {error}")
            return allowed(error)

        return asyncio.run(repeat(self.call, may_repeat=may_repeat, pause=self.pause, attempts=attempts))


def failures(count: int) -> list[ServerError]:
    return [ServerError(f"E{number}") for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_pause_comes_before_each_repeat_and_each_failure_is_asked_about_once(count: int) -> None:
    script = Script(*failures(count))
    assert script.run() == "result"
    steps = [step for number in range(count) for step in ("pause", f"fail E{number}", f"ask E{number}")]
    assert script.log == [*steps, "pause", "succeed"]


@pytest.mark.parametrize("attempts", [2, 5])
def test_attempts_count_the_one_that_failed_before_and_the_last_failure_is_raised(attempts: int) -> None:
    script = Script(*failures(10))
    with pytest.raises(ServerError) as caught:
        script.run(attempts=attempts)
    assert (str(caught.value), 10 - len(script.failures)) == (f"E{attempts - 2}", attempts - 1)


def test_without_a_number_of_attempts_it_goes_on() -> None:
    assert Script(*failures(50)).run(attempts=None) == "result"


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_failure_that_may_not_be_repeated_is_raised_at_once(before: int) -> None:
    last = InvalidInputError("no")
    script = Script(*failures(before), last, ServerError("never"))
    with pytest.raises(InvalidInputError) as caught:
        script.run(allowed=lambda error: error is not last)
    assert caught.value is last
    assert script.log[-2:] == ["fail no", "ask no"]


@pytest.mark.parametrize("foreign", [asyncio.CancelledError("stop"), ValueError("bug"), KeyboardInterrupt("stop")])
@pytest.mark.parametrize("before", [0, 1])
def test_what_is_no_error_of_the_package_passes_untouched(before: int, foreign: BaseException) -> None:
    script = Script(*failures(before), foreign)
    with pytest.raises(type(foreign)) as caught:
        script.run()
    assert (str(caught.value), script.log[-1]) == (str(foreign), f"fail {foreign}")


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), WaitTimeoutError("too late")])
def test_what_the_pause_raises_ends_the_loop(raised: BaseException) -> None:
    class Ending(Script):
        async def pause(self) -> None:
            raise raised

    script = Ending()
    with pytest.raises(type(raised)):
        script.run()
    assert script.log == []
