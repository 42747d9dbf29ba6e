"""The emulated service with its scripts and its memory: one call in, what its caller gets out.

Pure: no clock, no I/O, no `async`; the instant is an argument and chance comes from a seed. Together with
`routes` and `service` it reads URLs and JSON by itself and shares nothing with the client. Must not know how
bytes travel.
"""

from __future__ import annotations

import json
import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from .answers import Cut, Drop, Generation, Pass, Refuse, Reply, Rewrite, check_answer
from .profiles import Profile, parse_profile
from .routes import Route, find_route
from .service import Draw, Service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .answers import Answer, Endless, Garbage, Hang, Reset, Script, Truncate
    from .service import Response

    Action: TypeAlias = Reply | Draw | Hang | Reset | Garbage | Truncate | Endless

__all__ = ["Call", "Engine", "Record", "prompt_of"]

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
