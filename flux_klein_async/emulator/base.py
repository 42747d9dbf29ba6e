"""What every form of the emulator offers to whoever scripts and questions it.

Must not know how calls reach the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

from .answers import ENDPOINTS, Generation, check_answer
from .engine import Engine, prompt_of
from .faults import fault, faults_at

if TYPE_CHECKING:
    from collections import Counter, deque
    from collections.abc import Collection, Mapping

    from .answers import Answer, Script
    from .engine import Record
    from .profiles import Profile

__all__ = ["BaseEmulator", "Options"]


class Options(TypedDict, total=False):
    """What every form of the emulator can be constructed with.

    Keys:
        profile: `klein`, `queue`, `queue:WORKERS`, `fixed:SECONDS` or a `Profile`; default `klein`.
        seed: decides request ids, durations, faults and pictures; default 0.
        workers: generations that run side by side, in place of the profile's number; 0: none ever starts.
        api_key: the one token that is accepted; default `emulator-token`.
        script: by endpoint, what its first calls get; see `BaseEmulator.script()`.
        max_records: how many of the last requests are remembered; default 10,000.
        max_generations: how many of the last generations that have ended are remembered; default 200,000. One that is
            forgotten is unknown, as it is anyway 7 days after its end.
        files_url: origin of the hosted files, where it is not the API's own.
    """

    profile: str | Profile
    seed: int
    workers: int | None
    api_key: str
    script: Script | None
    max_records: int
    max_generations: int
    files_url: str | None


class BaseEmulator:
    """The engine's public face, the same in process and on a port."""

    def __init__(self, **options: Unpack[Options]) -> None:
        self.engine = Engine(**options)

    @property
    def base_url(self) -> str:
        """The origin to give to a client."""
        return self.engine.service.base_url

    @property
    def api_key(self) -> str:
        """The token to give to a client."""
        return self.engine.api_key

    @property
    def records(self) -> deque[Record]:
        """The last requests, oldest first."""
        return self.engine.records

    @property
    def calls(self) -> Counter[str]:
        """How often each endpoint was called; `connect` counts connections asked for."""
        return self.engine.calls

    @property
    def accepted(self) -> int:
        """How many submits the real service would have charged; they were accepted, whatever their replies said."""
        return self.engine.service.accepted

    @property
    def spent_usd(self) -> float:
        """What the accepted generations cost, less those that were cancelled in the queue."""
        return self.engine.service.spent_usd

    @property
    def completions(self) -> Mapping[str, float]:
        """By request id the loop's instant at which each generation that has started ends, or ended."""
        return self.engine.service.queue.completions

    # --- what was asked

    def asked(self, endpoint: str) -> list[Record]:
        """The remembered requests to one endpoint, oldest first.

        Raises:
            ValueError: no such endpoint.
        """
        check_answer(endpoint, None)
        return [record for record in self.records if record.endpoint == endpoint]

    @property
    def prompts(self) -> list[str | None]:
        """The prompts that would be paid for, of the accepted submits that are remembered, oldest first."""
        return [prompt_of(record.body) for record in self.asked("submit") if record.request_id is not None]

    # --- what happens

    def script(self, endpoint: str, *answers: Answer | None) -> None:
        """Give the next calls of an endpoint these answers in turn, after those still due; `None` is normal.

        Raises:
            ValueError: no such endpoint, or an answer that belongs to another one.
        """
        self.engine.script(endpoint, *answers)

    def script_nth(self, number: int, endpoint: str, answer: Answer) -> None:
        """Give the `number`-th call of an endpoint from now this answer, those before it the normal one.

        "The third look finds a 503" is `script_nth(3, "status", fault("503"))`. Calls that are scripted already
        come first.

        Raises:
            ValueError: a number below 1, no such endpoint, or an answer that belongs to another one.
        """
        if number < 1:
            raise ValueError(f"calls are counted from 1, not from {number}")
        self.script(endpoint, *[None] * (number - 1), answer)

    def script_prompt(self, prompt: str, answer: Answer) -> None:
        """Give every submit of exactly this prompt this answer, whenever it comes; other scripts wait for others.

        Raises:
            ValueError: an answer that belongs to another endpoint.
        """
        self.engine.script_prompt(prompt, answer)

    def fail_prompt(self, prompt: str, error: str = "the model ran out of memory") -> None:
        """Let every generation of exactly this prompt be accepted, and fail."""
        self.script_prompt(prompt, Generation(ends="failed", error=error))

    def lose_submit(self) -> None:
        """Accept the next submit and lose the reply: it runs, it costs, and its caller cannot know."""
        self.script("submit", fault("reset+accepted"))

    def fault(self, endpoint: str, *answers: Answer, probability: float) -> None:
        """Give calls of an endpoint one of these answers, all equally likely, with this probability.

        A script goes before it. Of several faults of an endpoint the one given first is tried first.

        Raises:
            ValueError: no such endpoint, an answer that belongs to another one, none at all, or no probability.
        """
        self.engine.fault(endpoint, *answers, probability=probability)

    def storm(self, probability: float, *, without: Collection[str] = ()) -> None:
        """Let the calls of every endpoint go wrong with this probability, in every way that can happen there.

        `without`: names of faults that are not to happen.

        Raises:
            ValueError: no probability, or no such fault.
        """
        for name in without:
            fault(name)
        for endpoint in ENDPOINTS:
            if answers := [answer for answer in faults_at(endpoint, without) if self.can_answer(endpoint, answer)]:
                self.fault(endpoint, *answers, probability=probability)

    def calm(self) -> None:
        """End the storm: nothing goes wrong by chance any more; scripts stay."""
        self.engine.calm()

    def can_answer(self, endpoint: str, answer: Answer | None) -> bool:  # noqa: ARG002  # a port can do less
        """Whether this form of the emulator has the means to give an endpoint this answer."""
        return True

    def reset(self) -> None:
        """Forget everything that happened and was scripted since, and start again as constructed."""
        self.engine.reset()
