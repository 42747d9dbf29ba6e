"""Which endpoint a request line means.

Pure. Must not know whether what it names exists.

Generations in their queue: who waits, who runs, who has ended, at any instant.

Pure: time is an argument that never runs backwards. Must not know HTTP, JSON or scripts; a generation's
length and fate are given to it.

The service's normal behaviour: what each endpoint does and answers when no script speaks for it.

Pure: the instant is an argument and chance comes from a seed. Must not know scripts, records or how bytes
travel.
"""

import heapq
import json
import random
import re
import uuid
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qsl, unquote

from flux_klein_async.emulator.catalogue import MODELS, Model, describe, find, output_of, refusals
from flux_klein_async.emulator.profiles import Profile
from flux_klein_async.emulator.scripts import Cut, Endpoint, Generation, Reply

__all__ = ["KEPT_FOR", "Draw", "Job", "Queue", "Response", "Route", "Service", "State", "find_route"]


_MODELS = "/v1/models"
_REQUESTS = "/v1/requests/"
_FILES = "/files/"
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", re.ASCII)
_FILE = re.compile(r"([A-Za-z0-9_-]{1,128})(?:\.([0-9]))?\.(png|mp4)", re.ASCII)
_ORIGIN = re.compile(r"https?://[^/?]*", re.IGNORECASE)

_METHODS: dict[str, Endpoint] = {"status": "status", "result": "result", "cancel": "cancel"}


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint and what the path and the query say to it.

    `malformed`: the id cannot be one. `allow`: what the method should have been, where it is another.
    """

    endpoint: Endpoint
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None
    model_id: str | None = None
    file: tuple[int, str] | None = None
    malformed: bool = False
    allow: str | None = None


def find_route(method: str, target: str) -> Route:
    """Read a request line; what is no endpoint of the service is `other`."""
    # A proxy's client writes the whole URL where others write the path.
    target = _ORIGIN.sub("", target, count=1) if not target.startswith("/") else target
    path, _, query_text = target.partition("?")
    query = dict(parse_qsl(query_text, keep_blank_values=True)) if query_text else {}
    if path.startswith(_REQUESTS):
        return _request_route(method, path, query)
    if path == _MODELS:
        return _checked(method, "GET", Route("models", path, query))
    if path.startswith(_MODELS + "/"):
        return _model_route(method, path, query)
    if path.startswith(_FILES):
        return _file_route(method, path, query)
    return Route("other", path, query)


def _checked(method: str, wanted: str, route: Route) -> Route:
    if method == wanted:
        return route
    return Route("other", route.path, route.query, allow=wanted)


def _request_route(method: str, path: str, query: Mapping[str, str]) -> Route:
    text, _, verb = path[len(_REQUESTS) :].rpartition("/")
    endpoint = _METHODS.get(verb)
    if endpoint is None or not text:
        return Route("other", path, query)
    request_id = unquote(text)
    malformed = not _REQUEST_ID.fullmatch(request_id)
    route = Route(endpoint, path, query, request_id=request_id, malformed=malformed)
    return _checked(method, "POST" if endpoint == "cancel" else "GET", route)


def _model_route(method: str, path: str, query: Mapping[str, str]) -> Route:
    model_id = unquote(path[len(_MODELS) + 1 :])
    malformed = not _MODEL_ID.fullmatch(model_id)
    if method == "POST":
        return Route("submit", path, query, model_id=model_id, malformed=malformed)
    return _checked(method, "GET", Route("model", path, query, model_id=model_id, malformed=malformed))


def _file_route(method: str, path: str, query: Mapping[str, str]) -> Route:
    found = _FILE.fullmatch(path[len(_FILES) :])
    if found is None:
        return _checked(method, "GET", Route("file", path, query, malformed=True))
    request_id, number, suffix = found.groups()
    return _checked(method, "GET", Route("file", path, query, request_id=request_id, file=(int(number or 0), suffix)))


State = Literal["in_queue", "in_progress", "completed", "failed", "cancelled"]

KEPT_FOR = 7 * 86_400.0
"""Seconds after its end for which the service keeps a generation."""


@dataclass(slots=True, eq=False)
class Job:
    """One accepted generation."""

    request_id: str
    model: Model
    input: Mapping[str, Any]
    submitted: float
    duration: float
    fate: Generation
    number: int = 0
    started: float | None = None
    finished: float | None = None
    state: State = "in_queue"


class Queue:
    """First come, first served, by `workers` workers (`None`: one for each; 0: nothing ever starts).

    The last `keep` generations that have ended are remembered.
    """

    def __init__(self, workers: int | None, *, keep: int) -> None:
        if keep < 0:
            raise ValueError(f"max_generations cannot be below 0, at {keep}")
        self.jobs: dict[str, Job] = {}
        # By request id the instant at which each generation that has started ends, or ended.
        self.completions: dict[str, float] = {}
        self._workers = workers
        self._keep = keep
        self._submitted = 0
        self._waiting: dict[int, Job] = {}
        # The waiting numbers in order: a place in the queue is then a bisection and not a walk.
        self._order: list[int] = []
        self._running: list[tuple[float, int, Job]] = []
        self._ended: deque[Job] = deque()

    def add(self, job: Job) -> None:
        """Take a generation in at `job.submitted`; it starts at once if a worker is free."""
        self.advance(job.submitted)
        self._submitted += 1
        job.number = self._submitted
        self.jobs[job.request_id] = job
        if self._workers is None or len(self._running) < self._workers:
            self._start(job, job.submitted)
        else:
            self._waiting[job.number] = job
            self._order.append(job.number)

    def advance(self, now: float) -> None:
        """Let everything happen that is due by `now`, in its order and at its own instant."""
        while self._running and self._running[0][0] <= now:
            end, _, job = heapq.heappop(self._running)
            job.state = job.fate.ends
            self._ended.append(job)
            if self._order:
                self._start(self._waiting.pop(self._order.pop(0)), end)
        self._forget(now)

    def position(self, job: Job) -> int:
        """Count the generations that wait before this one."""
        return bisect_left(self._order, job.number)

    def cancel(self, job: Job, now: float) -> bool:
        """End a waiting generation and let those behind it move up; False if it does not wait."""
        if job.state != "in_queue":
            return False
        del self._order[self.position(job)]
        del self._waiting[job.number]
        job.state = "cancelled"
        job.finished = now
        self._ended.append(job)
        return True

    def _start(self, job: Job, at: float) -> None:
        job.state = "in_progress"
        job.started = at
        job.finished = at + job.duration
        self.completions[job.request_id] = job.finished
        heapq.heappush(self._running, (job.finished, job.number, job))

    def _forget(self, now: float) -> None:
        while self._ended and (len(self._ended) > self._keep or (self._ended[0].finished or 0.0) + KEPT_FOR <= now):
            old = self._ended.popleft()
            del self.jobs[old.request_id]
            self.completions.pop(old.request_id, None)


_PIXELS = range(64, 2049)
_DEFAULT_PIXELS = 1024
_PAGE = 50


@dataclass(frozen=True, slots=True)
class Draw:
    """A hosted file that is still to be made: a picture (`png`) or a stand-in for a film (`mp4`)."""

    prompt: str
    width: int
    height: int
    seed: int
    request_id: str
    suffix: str = "png"
    headers: Mapping[str, str] = field(default_factory=dict, compare=False)
    delay: float = 0.0
    dribble: float | None = None
    status: int = 200
    cut: Cut | None = None


Response: TypeAlias = Reply | Draw


class Service:
    """Accounts, catalogue, queue and hosted files. `epoch` is the wall clock's seconds at instant 0."""

    def __init__(
        self,
        *,
        profile: Profile,
        seed: int,
        workers: int | None,
        api_key: str,
        epoch: float,
        base_url: str,
        files_url: str | None,
        max_generations: int,
    ) -> None:
        self.epoch = epoch
        self.base_url = base_url
        self.files_url = files_url
        self.queue = Queue(workers, keep=max_generations)
        self.accepted = 0
        self.spent_usd = 0.0
        self._profile = profile
        self._seed = seed
        self._api_key = api_key
        # Streams of their own: one more duration drawn does not change the ids that follow.
        self._ids = random.Random(f"{seed}/ids")
        self._durations = random.Random(f"{seed}/durations")
        self._answers = {
            "status": self._status,
            "result": self._result,
            "cancel": self._cancel,
        }

    def respond(
        self, route: Route, headers: Mapping[str, str], body: bytes, fate: Generation, now: float
    ) -> tuple[Response, str | None]:
        """Let a call take effect; also say which generation it started, if it did."""
        self.queue.advance(now)
        refusal = self._refusal(route, headers)
        if refusal is not None:
            return refusal, None
        if route.endpoint == "submit":
            return self._submit(route, body, fate, now)
        return self._read(route, now), None

    def _refusal(self, route: Route, headers: Mapping[str, str]) -> Reply | None:
        if route.endpoint == "file":
            return None
        if route.endpoint == "other":
            return _no_endpoint(route)
        if not self._knows(headers.get("authorization", "")):
            return _error(401, 400004, "Invalid or missing API token")
        if route.malformed:
            noun = "model" if route.request_id is None else "request"
            return _error(400, 400001, f"Malformed {noun} id")
        return None

    def _read(self, route: Route, now: float) -> Response:
        if route.endpoint == "file":
            return self._file(route)
        if route.endpoint == "models":
            return _models(route.query)
        if route.endpoint == "model":
            return _model(route.model_id or "")
        return self._request(route, now)

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        return scheme.lower() == "bearer" and token.strip() == self._api_key

    def _submit(self, route: Route, body: bytes, fate: Generation, now: float) -> tuple[Response, str | None]:
        model = MODELS.get(route.model_id or "")
        if model is None:
            return _error(404, 404001, f"Unknown model {route.model_id!r}"), None
        try:
            given = json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            detail = [{"loc": ["body"], "msg": f"Invalid JSON: {error}", "type": "json_invalid"}]
            return _refused(detail), None
        if wrong := refusals(model, given):
            return _refused(wrong), None
        request_id = str(uuid.UUID(int=self._ids.getrandbits(128), version=4))
        seconds = fate.after
        if seconds is None:
            seconds = self._profile.duration(self._durations, *_size(given))
        self.queue.add(Job(request_id, model, given, now, seconds, fate))
        self.accepted += 1
        self.spent_usd = round(self.spent_usd + model.price, 6)
        url = f"{self.base_url}/v1/requests/{request_id}"
        answer = {
            "request_id": request_id,
            "status_url": f"{url}/status",
            "result_url": f"{url}/result",
            "cancel_url": f"{url}/cancel",
        }
        return Reply(200, answer), request_id

    def _request(self, route: Route, now: float) -> Reply:
        job = self.queue.jobs.get(route.request_id or "")
        if job is None:
            return _error(404, 404001, "Unknown, deleted or expired request")
        return self._answers[route.endpoint](job, route.query, now)

    def _status(self, job: Job, _query: Mapping[str, str], _now: float) -> Reply:
        url = f"{self.base_url}/v1/requests/{job.request_id}"
        answer: dict[str, Any] = {
            "request_id": job.request_id,
            "status": _word(job, job.state),
            "status_url": f"{url}/status",
            "result_url": f"{url}/result",
        }
        if job.state == "in_queue":
            answer["queue_position"] = self.queue.position(job)
        elif job.started is not None:
            answer["instance_id"] = f"emulated-{job.number}"
        return Reply(200, answer)

    def _result(self, job: Job, query: Mapping[str, str], now: float) -> Reply:
        early = job.state in ("in_queue", "in_progress")
        state = job.state
        if not early and now < (job.finished or 0.0) + job.fate.result_lag:
            early, state = True, "in_progress"
        if early and job.fate.early_result is not None:
            return job.fate.early_result
        answer: dict[str, Any] = {
            "request_id": job.request_id,
            "status": _word(job, state),
            "created_at": self._wall(job.submitted),
        }
        if early:
            return Reply(200, answer)
        answer["finished_at"] = self._wall(job.finished or 0.0)
        if state == "completed":
            answer["output"] = self._output(job)
        elif state == "failed":
            answer["error"] = job.fate.error or "The model failed"
        if query.get("include_cost") == "true":
            answer["cost"] = 0.0 if job.started is None else job.model.price
        return Reply(200, answer)

    def _cancel(self, job: Job, _query: Mapping[str, str], now: float) -> Reply:
        outcome = "cancelled" if self.queue.cancel(job, now) else "not_cancellable"
        if outcome == "cancelled":
            self.spent_usd = round(self.spent_usd - job.model.price, 6)
        answer = {"request_id": job.request_id, "status": _word(job, job.state), "outcome": outcome}
        return Reply(200, answer)

    def _output(self, job: Job) -> Any:
        if job.fate.output is not None:
            return job.fate.output
        files_url = self.base_url if self.files_url is None else self.files_url
        return output_of(job.model, files_url, job.request_id)

    def _file(self, route: Route) -> Response:
        job = self.queue.jobs.get(route.request_id or "")
        hosted = {"image": [(0, "png")], "images": [(1, "png"), (2, "png")], "video": [(0, "mp4")]}
        if job is None or job.state != "completed" or route.file not in hosted[job.model.gives]:
            return Reply(404, "<h1>Not found</h1>", {"Content-Type": "text/html"})
        number, suffix = route.file
        seed = job.input.get("seed")
        seed = seed if isinstance(seed, int) else self._seed
        prompt = str(job.input.get("prompt", ""))
        return Draw(prompt, *_size(job.input), seed + number, job.request_id, suffix)

    def _wall(self, instant: float) -> str:
        moment = datetime.fromtimestamp(self.epoch + instant, tz=UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _word(job: Job, state: str) -> str:
    return job.fate.words.get(state, state)


def _size(given: Mapping[str, Any]) -> tuple[int, int]:
    width, height = (
        value if isinstance(value := given.get(name), int) and value in _PIXELS else _DEFAULT_PIXELS
        for name in ("width", "height")
    )
    return width, height


def _error(status: int, code: int, message: str, **more: Any) -> Reply:
    return Reply(status, {"error_code": code, "error_message": message, **more})


def _refused(detail: list[dict[str, Any]]) -> Reply:
    return _error(422, 422001, "The input was refused", detail=detail)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON value")


def _no_endpoint(route: Route) -> Reply:
    if route.allow is not None:
        return Reply(405, {"detail": "Method Not Allowed"}, {"Allow": route.allow})
    return Reply(404, {"detail": "Not Found"})


def _model(model_id: str) -> Reply:
    model = MODELS.get(model_id)
    if model is None:
        return _error(404, 404001, f"Unknown model {model_id!r}")
    return Reply(200, describe(model, schema=True))


def _models(query: Mapping[str, str]) -> Reply:
    numbers = {"limit": query.get("limit", str(_PAGE)), "offset": query.get("offset", "0")}
    detail = [
        {"loc": ["query", name], "msg": "Input should be a whole number", "type": "int_parsing"}
        for name, text in numbers.items()
        if not (text.isascii() and text.isdigit())
    ]
    if detail:
        return _refused(detail)
    found = find(query.get("search", ""), query.get("category", ""), query.get("kind", ""))
    start, count = int(numbers["offset"]), int(numbers["limit"])
    schema = query.get("include_schema") == "true"
    page = [describe(model, schema=schema) for model in found[start : start + count]]
    return Reply(200, {"models": page, "total": len(found)})
