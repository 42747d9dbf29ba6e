"""The emulated service with its scripts and its memory: one call in, what its caller gets out.

Pure: no clock, no I/O, no `async`; the instant is an argument and chance comes from a seed. Together with
`routes` and `service` it reads URLs and JSON by itself and shares nothing with the client. Must not know how
bytes travel.

What every form of the emulator offers to whoever scripts and questions it.

Must not know how calls reach the engine.
"""

import json
import random
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypedDict, Unpack

from flux_klein_async.emulator.faults import fault, faults_at
from flux_klein_async.emulator.profiles import Profile, parse_profile
from flux_klein_async.emulator.scripts import (
    ENDPOINTS,
    Answer,
    Cut,
    Drop,
    Endless,
    Garbage,
    Generation,
    Hang,
    Pass,
    Refuse,
    Reply,
    Reset,
    Rewrite,
    Script,
    Truncate,
    check_answer,
)
from flux_klein_async.emulator.service import Draw, Response, Route, Service, find_route

__all__ = ["BaseEmulator", "Call", "Engine", "Options", "Record", "prompt_of"]


Action: TypeAlias = Reply | Draw | Hang | Reset | Garbage | Truncate | Endless
_PLAIN = Generation()


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request as it arrived.

    Attributes:
        method: The method.
        target: Path and query.
        headers: Their names in lower case.
        body: The whole body.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Record:
    """What came, and what it got.

    Attributes:
        endpoint: `submit`, `status`, `result`, `cancel`, `model`, `models`, `file` or `other`.
        method: The method.
        path: The path, without its query.
        query: The query's parameters.
        headers: Their names in lower case.
        body: The whole body.
        at: The instant of arrival, in seconds on the loop's clock.
        request_id: What the path names or the submit started, or None.
        answer: The script's or the fault's, if it was one.
        status: The HTTP status that was sent, or None.
    """

    endpoint: str
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    at: float
    request_id: str | None
    answer: Answer | None
    status: int | None


class Engine:
    """Everything the emulated service knows."""

    def __init__(
        self,
        *,
        profile: str | Profile = "klein",
        seed: int = 0,
        workers: int | None = None,
        api_key: str = "emulator-token",
        script: Script | None = None,
        max_records: int = 10_000,
        max_generations: int = 200_000,
        epoch: float = 0.0,
        base_url: str = "",
        files_url: str | None = None,
    ) -> None:
        self.profile = parse_profile(profile) if isinstance(profile, str) else profile
        self.seed = seed
        self.api_key = api_key
        self._workers = self.profile.workers if workers is None else workers
        self._first_script = dict(script or {})
        self._max_records = max_records
        self._max_generations = max_generations
        self._start(epoch, base_url, files_url)

    def _start(self, epoch: float, base_url: str, files_url: str | None) -> None:
        self.service = Service(
            profile=self.profile,
            seed=self.seed,
            workers=self._workers,
            api_key=self.api_key,
            epoch=epoch,
            base_url=base_url,
            files_url=files_url,
            max_generations=self._max_generations,
        )
        self.records: deque[Record] = deque(maxlen=self._max_records)
        self.calls: Counter[str] = Counter()
        self._chance = random.Random(f"{self.seed}/faults")
        self._scripts: dict[str, deque[Answer | None]] = {}
        self._faults: dict[str, list[tuple[float, tuple[Answer, ...]]]] = {}
        self._prompts: dict[str, Answer] = {}
        for endpoint, answers in self._first_script.items():
            self.script(endpoint, *answers)

    def reset(self) -> None:
        """Forget everything that happened and was scripted since, and start again as constructed."""
        self._start(self.service.epoch, self.service.base_url, self.service.files_url)

    def script(self, endpoint: str, *answers: Answer | None) -> None:
        """Give the next calls of an endpoint these answers in turn, after those still due; `None` is normal.

        Raises:
            ValueError: no such endpoint, or an answer that belongs to another one.
        """
        for answer in (None, *answers):
            check_answer(endpoint, answer)
        self._scripts.setdefault(endpoint, deque()).extend(answers)

    def fault(self, endpoint: str, *answers: Answer, probability: float) -> None:
        """Give calls of an endpoint one of these answers with this probability, where no script speaks.

        Raises:
            ValueError: no such endpoint, an answer that belongs to another one, none at all, or no probability.
        """
        if not answers:
            raise ValueError("a fault needs at least one answer")
        for answer in answers:
            check_answer(endpoint, answer)
        if not 0 <= probability <= 1:
            raise ValueError(f"a probability lies between 0 and 1, not at {probability!r}")
        self._faults.setdefault(endpoint, []).append((probability, answers))

    def calm(self) -> None:
        """Let nothing go wrong by chance any more; scripts stay."""
        self._faults.clear()

    def script_prompt(self, prompt: str, answer: Answer) -> None:
        """Give every submit of exactly this prompt this answer, before all scripts and faults.

        Raises:
            ValueError: an answer that belongs to another endpoint.
        """
        check_answer("submit", answer)
        self._prompts[prompt] = answer

    def connect(self) -> Answer:
        """Count one attempt to connect and say what becomes of it."""
        return self._next_answer("connect") or Pass()

    def handle(self, call: Call, now: float) -> Action:
        """Let one request take effect at `now` and say what to send back, and how."""
        route = find_route(call.method, call.target)
        answer = self._answer_to_prompt(route, call) or self._next_answer(route.endpoint)
        action, started = self._act(call, route, answer, now)
        self.records.append(
            Record(
                route.endpoint,
                call.method,
                route.path,
                route.query,
                call.headers,
                call.body,
                now,
                started or route.request_id,
                answer,
                getattr(action, "status", None),
            )
        )
        return action

    def _answer_to_prompt(self, route: Route, call: Call) -> Answer | None:
        if not self._prompts or route.endpoint != "submit":
            return None
        answer = self._prompts.get(prompt_of(call.body) or "")
        if answer is not None:
            self.calls[route.endpoint] += 1
        return answer

    def _next_answer(self, endpoint: str) -> Answer | None:
        self.calls[endpoint] += 1
        if waiting := self._scripts.get(endpoint):
            return waiting.popleft()
        for probability, answers in self._faults.get(endpoint, ()):
            if self._chance.random() < probability:
                return self._chance.choice(answers)
        return None

    def _act(self, call: Call, route: Route, answer: Answer | None, now: float) -> tuple[Action, str | None]:
        if answer is None or isinstance(answer, (Pass, Cut, Generation)):
            fate = answer if isinstance(answer, Generation) else _PLAIN
            reply, started = self.service.respond(route, call.headers, call.body, fate, now)
            delay = answer.delay if answer else 0.0
            if isinstance(answer, Cut):
                reply = replace(reply, cut=answer)
            return (replace(reply, delay=delay) if delay else reply), started
        if isinstance(answer, Rewrite):
            reply, started = self.service.respond(route, call.headers, call.body, _PLAIN, now)
            return _rewritten(reply, answer), started
        assert not isinstance(answer, Refuse | Drop)  # noqa: S101  # check_answer keeps them to `connect`
        started = None
        if answer.accepted:
            _, started = self.service.respond(route, call.headers, call.body, _PLAIN, now)
        return answer, started


def prompt_of(body: bytes) -> str | None:
    """Read the prompt of a submit, or `None` where there is none that can be read."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return None
    prompt = given.get("prompt") if isinstance(given, dict) else None
    return prompt if isinstance(prompt, str) else None


def _rewritten(reply: Response, how: Rewrite) -> Response:
    changed = replace(
        reply, headers={**reply.headers, **how.headers}, delay=how.delay, dribble=how.dribble or reply.dribble
    )
    if isinstance(changed, Reply) and isinstance(changed.body, dict):
        body = {**changed.body, **how.fields}
        return replace(changed, body={name: value for name, value in body.items() if value is not None})
    return changed


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

        "The third poll finds a 503" is `script_nth(3, "status", fault("503"))`. Calls that are scripted already
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
