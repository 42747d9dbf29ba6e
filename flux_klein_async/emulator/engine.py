"""Decides whether a call gets its scripted answer, a fault or the normal answer of `endpoints`, and records it.

Pure: the instant is an argument, randomness comes from a seed, and how bytes travel is unknown here. The emulator
reads URLs and JSON by itself and shares no code with the client, so that the same mistake cannot hide on both sides.
"""

import json
import random
import re
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias, TypedDict

from flux_klein_async.emulator.endpoints import Route, Service, find_route
from flux_klein_async.emulator.faults import UNTOLD, check_place, fault, faults_at
from flux_klein_async.emulator.generations import Profile, parse_profile
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
    Unasked,
    check_answer,
)

__all__ = ["Action", "EmulatorOptions", "Engine", "Record", "prompt_of"]

Action: TypeAlias = Reply | Hang | Reset | Garbage | Truncate | Endless
_PLAIN = Generation()
_LARGE = 2**20  # bytes of a body; thousands of larger ones would fill the memory
_FILE = re.compile(rb"(;base64,[A-Za-z0-9+/=]{1024})[A-Za-z0-9+/=]+")


@dataclass(frozen=True, slots=True)
class Record:
    """One request and what it got.

    Attributes:
        endpoint: `submit`, `status`, `result`, `cancel`, `model`, `models`, `categories`, `file` or `other`.
        method: The method.
        path: The path, without its query.
        query: The query's parameters.
        headers: Their names in lower case.
        body: The whole body; of one of more than 1 MiB each data URI is cut after 1,024 characters of base64.
        at: The instant of arrival, in seconds on the loop's clock.
        request_id: The id that the path names or the submit started, or None.
        answer: The scripted answer or the fault, or None.
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


class EmulatorOptions(TypedDict, total=False):
    """Keyword arguments of every form of the emulator.

    Keys:
        profile: `klein`, `queue`, `queue:WORKERS`, `fixed:SECONDS` or a `Profile`; default `klein`.
        seed: decides durations, faults and, in process, request ids and pictures; default 0 in process, a random one
            on a port.
        workers: generations that run side by side, instead of the profile's number; 0: none ever starts.
        api_key: the one token that is accepted; default `emulator-token`.
        script: by endpoint, what its first calls get; see `Engine.script()`.
        max_records: how many of the last requests are kept; default 10,000.
        max_generations: how many of the last ended generations are kept; default 200,000. Older ones are unknown, as
            all are 7 days after their end.
        files_url: origin of the hosted files, if it is not the API's own.
    """

    profile: str | Profile
    seed: int
    workers: int | None
    api_key: str
    script: Script | None
    max_records: int
    max_generations: int
    files_url: str | None


class Engine:
    """The emulated service: scripts and faults decide what a call gets, records say what was asked.

    `InProcessEmulator` and `Emulator` are engines with a way in. Takes `EmulatorOptions`, the origin at which it is
    reached and the wall clock's seconds at instant 0.

    Attributes:
        seed: What decides durations, faults and, in process, ids and pictures.
        api_key: The token to give to a client.
        records: The last requests, oldest first.
        calls: How often each endpoint was called; `connect` counts attempts to connect.
    """

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
        files_url: str | None = None,
        base_url: str = "",
        epoch: float = 0.0,
    ) -> None:
        self.seed = seed
        self.api_key = api_key
        self._max_records = max_records
        self._first_script = dict(script or {})
        if isinstance(profile, str) or not hasattr(profile, "duration"):
            profile = parse_profile(str(profile))
        workers = profile.workers if workers is None else workers
        self._new_service = partial(Service, profile, seed, workers, api_key, files_url, max_generations)
        self._profile, self._workers = profile, workers
        self._start(base_url, epoch)

    def _start(self, base_url: str, epoch: float) -> None:
        self.service = self._new_service(base_url, epoch)
        self.records: deque[Record] = deque(maxlen=self._max_records)
        self.calls: Counter[str] = Counter()
        self._random = random.Random(f"{self.seed}/faults")
        self._scripts: dict[str, deque[Answer | None]] = {}
        self._faults: dict[str, list[tuple[float, tuple[Answer, ...]]]] = {}
        self._prompts: dict[str, Answer] = {}
        for endpoint, answers in self._first_script.items():
            self.script(endpoint, *answers)

    def reset(self) -> None:
        """Forget what happened and what was scripted since, and start again as constructed.

        Only request ids go on, because a client that stays refuses one that it knows.
        """
        before = self.service
        self._start(before.base_url, before.epoch)
        self.service.ids = before.ids

    @property
    def profile(self) -> Profile:
        """How long generations take; an argument of the constructor."""
        return self._profile

    @property
    def workers(self) -> int | None:
        """How many generations run side by side; None: no limit. An argument of the constructor."""
        return self._workers

    # --- what happened

    @property
    def base_url(self) -> str:
        """The origin to give to a client."""
        if not self.service.base_url:
            raise RuntimeError("The emulator has no address yet: use it inside `async with Emulator() as emulator`")
        return self.service.base_url

    @property
    def accepted(self) -> int:
        """How many submits were accepted, whatever their replies said, those cancelled in the queue among them."""
        return self.service.accepted

    @property
    def spent_usd(self) -> float:
        """What the accepted generations cost, less those that were cancelled."""
        return self.service.spent_usd

    @property
    def completions(self) -> Mapping[str, float]:
        """By request id, the loop's instant at which each generation that has started ends or ended."""
        return self.service.queue.completions

    @property
    def prompts(self) -> list[str | None]:
        """The prompts of the accepted submits among the records, oldest first."""
        return [prompt_of(record.body) for record in self.asked("submit") if record.request_id is not None]

    def asked(self, endpoint: str) -> list[Record]:
        """List the recorded requests to one endpoint, oldest first.

        Raises:
            ValueError: There is no such endpoint.
        """
        self._check(endpoint)
        return [record for record in self.records if record.endpoint == endpoint]

    # --- what calls get

    def script(self, endpoint: str, *answers: Answer | None) -> None:
        """Give the next calls of an endpoint these answers in turn, after those still due; `None` is normal.

        Raises:
            ValueError: There is no such endpoint, or it cannot give such an answer.
        """
        self._check(endpoint, *answers)
        self._scripts.setdefault(endpoint, deque()).extend(answers)

    def script_nth(self, number: int, endpoint: str, answer: Answer) -> None:
        """Give the `number`-th call of an endpoint from now this answer, those before it the normal one.

        `script_nth(3, "status", fault("503"))`: the third poll gets a 503. Calls that are scripted already come first.

        Raises:
            ValueError: The number is below 1, there is no such endpoint, or it cannot give such an answer.
        """
        if number < 1:
            raise ValueError(f"calls are counted from 1, not from {number}")
        self.script(endpoint, *[None] * (number - 1), answer)

    def script_prompt(self, prompt: str, answer: Answer) -> None:
        """Give every submit of exactly this prompt this answer; it uses up no script and meets no fault.

        Raises:
            ValueError: A submit cannot get such an answer.
        """
        self._check("submit", answer)
        self._prompts[prompt] = answer

    def fail_prompt(self, prompt: str, error: str = "the model ran out of memory") -> None:
        """Accept every submit of exactly this prompt and let its generation fail."""
        self.script_prompt(prompt, Generation(ends="failed", error=error))

    def lose_submit(self) -> None:
        """Accept the next submit and lose the reply: it runs and costs, and the client cannot know."""
        self.script("submit", fault("reset+accepted"))

    def fault(self, endpoint: str, *answers: Answer, probability: float) -> None:
        """Give calls of an endpoint one of these answers, all equally likely, with this probability.

        Scripts go first. Of several faults of an endpoint, the one given first is tried first.

        Raises:
            ValueError: There is no such endpoint, it cannot give such an answer, there is none, or the probability
                does not lie between 0 and 1.
        """
        if not answers:
            raise ValueError("a fault needs at least one answer")
        self._check(endpoint, *answers)
        if not 0 <= probability <= 1:
            raise ValueError(f"a probability lies between 0 and 1, not at {probability!r}")
        self._faults.setdefault(endpoint, []).append((probability, answers))

    def storm(self, probability: float, *, without: Collection[str] = ()) -> None:
        """Let calls of every endpoint go wrong with this probability, in every way possible there.

        `without`: names of faults to leave out. Answers that nobody asked for and ids given twice are never in a storm.

        Raises:
            ValueError: The probability does not lie between 0 and 1, or there is no such fault.
        """
        for name in without:
            fault(name)
        left_out = {*without, *UNTOLD}
        for endpoint in ENDPOINTS:
            if answers := [answer for answer in faults_at(endpoint, left_out) if self.can_answer(endpoint, answer)]:
                self.fault(endpoint, *answers, probability=probability)

    def calm(self) -> None:
        """Remove every fault; scripts stay."""
        self._faults.clear()

    def can_answer(self, endpoint: str, answer: Answer | None) -> bool:  # noqa: ARG002  # a port can do less
        """Whether this form of the emulator is able to give an endpoint this answer."""
        return True

    def _check(self, endpoint: str, *answers: Answer | None) -> None:
        for answer in (None, *answers):
            check_answer(endpoint, answer)
            check_place(endpoint, answer)
            if not self.can_answer(endpoint, answer):
                raise ValueError(
                    f"a port cannot answer {endpoint!r} with {type(answer).__name__}: use InProcessEmulator"
                )

    # --- the way in, for servers

    def connect(self) -> Answer:
        """Count one attempt to connect and return what it gets."""
        return self._next_answer("connect") or Pass()

    def handle(self, method: str, target: str, headers: Mapping[str, str], body: bytes, now: float) -> Action:
        """Let one HTTP request take effect at `now` and return what to send back.

        `target` is path and query; the names of `headers` are in lower case.
        """
        route = find_route(method, target)
        prompt = prompt_of(body) if self._prompts and route.endpoint == "submit" else None
        answer = self._next_answer(route.endpoint, prompt)
        action, started = self._act(route, headers, body, answer, now)
        request_id, status = started or route.request_id, getattr(action, "status", None)
        body = _FILE.sub(rb"\1", body) if len(body) > _LARGE else body
        self.records.append(
            Record(route.endpoint, method, route.path, route.query, headers, body, now, request_id, answer, status)
        )
        return action

    def _next_answer(self, endpoint: str, prompt: str | None = None) -> Answer | None:
        self.calls[endpoint] += 1
        if prompt in self._prompts:
            return self._prompts[prompt]
        if waiting := self._scripts.get(endpoint):
            return waiting.popleft()
        for probability, answers in self._faults.get(endpoint, ()):
            if self._random.random() < probability:
                return self._random.choice(answers)
        return None

    def _act(
        self, route: Route, headers: Mapping[str, str], body: bytes, answer: Answer | None, now: float
    ) -> tuple[Action, str | None]:
        plan = answer if isinstance(answer, Generation) else _PLAIN
        respond = partial(self.service.respond, route, headers, body, plan, now)
        if isinstance(answer, Pass | Rewrite | Cut | Unasked | Generation | None):
            reply, started = respond()
            if isinstance(answer, Rewrite):
                answer = replace(answer, fields=self.service.place(answer.fields, started or route.request_id))
            return _changed(reply, answer), started
        assert not isinstance(answer, Refuse | Drop)  # noqa: S101  # check_answer keeps them to `connect`
        return answer, respond()[1] if answer.accepted else None


def _changed(reply: Reply, how: Pass | Rewrite | Cut | Unasked | Generation | None) -> Reply:
    if how is None:
        return reply
    reply = replace(reply, delay=how.delay or reply.delay)
    if isinstance(how, Cut):
        return replace(reply, cut=how)
    if isinstance(how, Unasked):
        return replace(reply, unasked=how)
    if not isinstance(how, Rewrite):
        return reply
    body = reply.body
    if isinstance(body, dict):
        body = {name: value for name, value in {**body, **how.fields}.items() if value is not None}
    reply = replace(reply, body=body, headers={**reply.headers, **how.headers}, gzip=how.gzip)
    return replace(reply, dribble=how.dribble or reply.dribble, head_dribble=how.head_dribble)


def prompt_of(body: bytes) -> str | None:
    """Read the prompt of a submit; None if there is no readable one."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return None
    prompt = given.get("prompt") if isinstance(given, dict) else None
    return prompt if isinstance(prompt, str) else None
