"""The service's normal behaviour: what each endpoint does and answers when no script decides otherwise.

Routes, the time that generations take, their queue and the endpoints. Pure: the instant is an argument that never runs
backwards, and randomness comes from a seed. Scripts, records and the way bytes travel are unknown here.
"""

import heapq
import json
import math
import random
import re
import uuid
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import InitVar, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

from flux_klein_async.emulator.catalogue import HOSTED, MODELS, Model, categories, describe, find, output_of, refusals
from flux_klein_async.emulator.scripts import Endpoint, Generation, Reply

__all__ = ["KEPT_FOR", "Job", "Placeholder", "Profile", "Queue", "Route", "Service", "find_route", "parse_profile"]

# --- routes

_ROUTES: tuple[tuple[re.Pattern[str], dict[str, Endpoint]], ...] = (
    (re.compile(r"/v1/models"), {"GET": "models"}),
    (re.compile(r"/v1/models/categories"), {"GET": "categories"}),
    (re.compile(r"/v1/models/(?P<model_id>.*)"), {"GET": "model", "POST": "submit"}),
    (re.compile(r"/v1/requests/(?P<request_id>.+)/status"), {"GET": "status"}),
    (re.compile(r"/v1/requests/(?P<request_id>.+)/result"), {"GET": "result"}),
    (re.compile(r"/v1/requests/(?P<request_id>.+)/cancel"), {"POST": "cancel"}),
    (re.compile(r"/files/(?P<request_id>[^.]*)(?P<file>.*)"), {"GET": "file"}),
    (re.compile(r"/(?P<folder>signed|moved)/(?P<request_id>[^/]*)/[^.]*(?P<file>.*)"), {"GET": "file"}),
)
_FORMS = {
    "request_id": re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII),
    "model_id": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", re.ASCII),
    "file": re.compile(r"(\.[0-9])?\.(png|mp4|wav)", re.ASCII),
    "folder": re.compile("signed|moved"),
}
# A client that decodes or encodes one byte of a signed address asks for another one.
_SIGNED = "/signed/{}/%28a%27b%7E%2Fc%29{}?sig=%28%27%7E%2F%29%2b~'"
_ADDRESSES = {"": "/files/{}{}", "direct": _SIGNED, "redirect": _SIGNED.replace("signed", "moved")}
_ORIGIN = re.compile(r"https?://[^/?]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint with what path and query say to it.

    `malformed`: an id or a file's name has a wrong form. `allow`: the methods of a path that does not take this one.
    """

    endpoint: Endpoint
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None
    model_id: str | None = None
    file: str | None = None
    malformed: bool = False
    allow: str | None = None
    folder: str | None = None
    target: str = field(default="", compare=False)


def find_route(method: str, target: str) -> Route:
    """Read a request line; what is no endpoint of the service is `other`."""
    # A client of a proxy sends the whole URL instead of the path.
    target = target if target.startswith("/") else _ORIGIN.sub("", target, count=1)
    path, _, query_text = target.partition("?")
    query = dict(parse_qsl(query_text, keep_blank_values=True)) if query_text else {}
    for pattern, methods in _ROUTES:
        if found := pattern.fullmatch(path):
            if method not in methods:
                return Route("other", path, query, allow=", ".join(methods))
            named = {name: unquote(text) for name, text in found.groupdict().items()}
            malformed = not all(_FORMS[name].fullmatch(text) for name, text in named.items())
            return Route(methods[method], path, query, **named, malformed=malformed, target=target)
    return Route("other", path, query)


# --- how long generations take

_QUEUE_WORKERS = "4"
_WORKERS = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Profile:
    """How long generations take, and how many run side by side.

    Attributes:
        name: What to call it.
        base: Seconds of every generation.
        per_megapixel: Seconds added for each million pixels.
        spread: Standard deviation of the logarithm of the seconds; 0: none.
        workers: How many run side by side; None: no limit.
    """

    name: str
    base: float
    per_megapixel: float = 0.0
    spread: float = 0.0
    workers: int | None = None

    def duration(self, rng: random.Random, width: int, height: int) -> float:
        """Draw the seconds that a picture of this size takes; log-normal, so never negative."""
        seconds = self.base + self.per_megapixel * width * height / 1e6
        return seconds * rng.lognormvariate(0.0, self.spread) if self.spread else seconds


# Published for FLUX.2 [klein] 4B in 4 steps on one H100: 0.19 s at 512x512 and 0.57 s at 1024x1024.
# The straight line through both points, with a megapixel of 1e6 pixels.
_KLEIN = Profile("klein", base=0.063, per_megapixel=0.483, spread=0.15)


def parse_profile(text: str) -> Profile:
    """Read `klein`, `queue`, `queue:WORKERS` or `fixed:SECONDS`.

    Raises:
        ValueError: The text has none of these forms.
    """
    name, colon, value = text.strip().partition(":")
    if name == "klein" and not colon:
        return _KLEIN
    if name == "queue" and _WORKERS.fullmatch(value if colon else _QUEUE_WORKERS):
        return replace(_KLEIN, name=name, workers=int(value or _QUEUE_WORKERS))
    if name == "fixed":
        with suppress(ValueError):
            if math.isfinite(seconds := float(value)) and seconds >= 0:
                return Profile(name, seconds)
    forms = "'klein', 'queue', 'queue:WORKERS' or 'fixed:SECONDS', such as 'fixed:0.5'"
    raise ValueError(f"no latency profile {text!r}: write {forms}")


# --- the queue

KEPT_FOR = 7 * 86_400.0  # seconds after its end for which the service keeps a generation


@dataclass(slots=True, eq=False)
class Job:
    """One accepted generation; `plan` says how it goes, `input` what its placeholder is drawn from."""

    request_id: str
    model: Model
    input: Mapping[str, Any]
    submitted: float
    duration: float
    plan: Generation
    number: int = 0
    started: float | None = None
    finished: float | None = None
    state: Literal["in_queue", "in_progress", "completed", "failed", "cancelled"] = "in_queue"

    @property
    def cost(self) -> float:
        """What it costs, in US dollars."""
        return self.model.price if self.plan.cost is None else self.plan.cost


class Queue:
    """First come, first served, by `workers` workers (`None`: no limit; 0: nothing ever starts).

    The last `keep` ended generations are kept. `completions`: by request id, the instant at which each generation that
    has started ends or ended.
    """

    def __init__(self, workers: int | None, *, keep: int) -> None:
        if keep < 0:
            raise ValueError(f"max_generations cannot be below 0, at {keep}")
        self.jobs: dict[str, Job] = {}
        self.completions: dict[str, float] = {}
        self._workers = workers
        self._keep = keep
        self._submitted = 0
        self._waiting: dict[int, Job] = {}
        # The waiting numbers, sorted: a bisection finds a place in the queue.
        self._order: list[int] = []
        self._running: list[tuple[float, int, Job]] = []
        self._ended: deque[Job] = deque()

    def add(self, job: Job) -> None:
        """Take in a generation at `job.submitted`; it starts at once if a worker is free."""
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
        """Let everything happen that is due by `now`, in order and each at its own instant."""
        while self._running and self._running[0][0] <= now:
            end, _, job = heapq.heappop(self._running)
            job.state = job.plan.ends
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


# --- the endpoints

_PIXELS = range(64, 2049)
_DEFAULT_PIXELS = 1024
_PAGE = 50
_MOST_BYTES = 64 * 2**20  # of a request
_KEPT_FIELDS = ("prompt", "width", "height", "seed")  # what a picture is drawn from; the files of an input are large


@dataclass(frozen=True, slots=True)
class Placeholder:
    """The body of a hosted file, which the server makes: a picture (`png`), or a stand-in (`mp4`, `wav`)."""

    prompt: str
    width: int
    height: int
    seed: int
    request_id: str
    suffix: str = "png"


@dataclass(eq=False)
class Service:
    """Accounts, catalogue, queue and hosted files. `epoch`: the wall clock's seconds at instant 0."""

    profile: Profile
    seed: int
    workers: InitVar[int | None]
    api_key: str
    files_url: str | None
    max_generations: InitVar[int]
    base_url: str
    epoch: float
    accepted: int = 0
    spent_usd: float = 0.0

    def __post_init__(self, workers: int | None, max_generations: int) -> None:
        self.queue = Queue(workers, keep=max_generations)
        # Streams of their own: drawing one more duration does not change the ids that follow.
        self._ids = random.Random(f"{self.seed}/ids")
        self._durations = random.Random(f"{self.seed}/durations")
        self._last_id = ""

    def respond(
        self, route: Route, headers: Mapping[str, str], body: bytes, plan: Generation, now: float
    ) -> tuple[Reply, str | None]:
        """Let a call take effect; return its reply and the id of the generation that it started, if any."""
        self.queue.advance(now)
        if route.allow is not None:
            return Reply(405, {"detail": "Method Not Allowed"}, {"Allow": route.allow}), None
        if route.endpoint == "other":
            return Reply(404, {"detail": "Not Found"}), None
        if route.endpoint == "file":
            return self._file(route), None
        if refusal := self._refusal(route, headers):
            return refusal, None
        if route.endpoint == "submit":
            return self._submit(route, body, plan, now)
        return self._read(route, now), None

    def _refusal(self, route: Route, headers: Mapping[str, str]) -> Reply | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token.strip() != self.api_key:
            return _error(401, 400004, "Invalid or missing API token")
        if route.malformed:
            return _error(400, 400001, f"Malformed {'model' if route.request_id is None else 'request'} id")
        if route.model_id is not None and route.model_id not in MODELS:
            return _error(404, 404001, f"Unknown model {route.model_id!r}")
        if route.request_id is not None and route.request_id not in self.queue.jobs:
            return _error(404, 404001, "Unknown, deleted or expired request")
        return None

    def _read(self, route: Route, now: float) -> Reply:
        if route.endpoint == "model":
            return Reply(200, describe(MODELS[route.model_id or ""], schema=True))
        if route.endpoint == "models":
            return _models(route.query)
        if route.endpoint == "categories":
            return Reply(200, {"categories": categories()})
        job = self.queue.jobs[route.request_id or ""]
        if route.endpoint == "status":
            return self._status(job)
        return self._cancel(job, now) if route.endpoint == "cancel" else self._result(job, route.query, now)

    def _submit(self, route: Route, body: bytes, plan: Generation, now: float) -> tuple[Reply, str | None]:
        model = MODELS[route.model_id or ""]
        if len(body) > _MOST_BYTES:
            return _refused([{"loc": ["body"], "msg": "The request is larger than 64 MiB", "type": "too_large"}]), None
        try:
            given = json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return _refused([{"loc": ["body"], "msg": f"Invalid JSON: {error}", "type": "json_invalid"}]), None
        if wrong := refusals(model, given):
            return _refused(wrong), None
        request_id = str(uuid.UUID(int=self._ids.getrandbits(128), version=4))
        seconds = self.profile.duration(self._durations, *_size(given)) if plan.after is None else plan.after
        kept = {name: given[name] for name in _KEPT_FIELDS if name in given}
        job = Job(request_id, model, kept, now, seconds, plan)
        self.queue.add(job)
        self.accepted += 1
        self.spent_usd = round(self.spent_usd + job.cost, 6)
        said = self._last_id if plan.same_id and self._last_id else request_id
        self._last_id = said
        urls = self._urls(said, "status", "result", "cancel")
        return Reply(200, {"request_id": said, **urls}), request_id

    def _urls(self, request_id: str, *verbs: str) -> dict[str, str]:
        return {f"{verb}_url": f"{self.base_url}/v1/requests/{request_id}/{verb}" for verb in verbs}

    def _status(self, job: Job) -> Reply:
        answer: dict[str, Any] = {"request_id": job.request_id, "status": _word(job, job.state)}
        answer.update(self._urls(job.request_id, "status", "result"))
        if job.state == "in_queue":
            answer["queue_position"] = self.queue.position(job)
        elif job.started is not None:
            answer["instance_id"] = f"emulated-{job.number}"
        if job.state == "failed" and job.plan.error is not None:
            answer["error"] = job.plan.error
        return Reply(200, answer)

    def _result(self, job: Job, query: Mapping[str, str], now: float) -> Reply:
        early, state = job.state in ("in_queue", "in_progress"), job.state
        if not early and now < (job.finished or 0.0) + job.plan.result_lag:
            early, state = True, "in_progress"
        if early and job.plan.early_result is not None:
            return job.plan.early_result
        answer: dict[str, Any] = {
            "request_id": job.request_id,
            "status": _word(job, state),
            "created_at": self._wall(job.submitted),
        }
        if early:
            return Reply(200, answer)
        answer["finished_at"] = self._wall(job.finished or 0.0)
        if state == "completed":
            plan = job.plan
            answer["output"] = self._output(job) if plan.output is None else self.place(plan.output, job.request_id)
        elif state == "failed":
            answer["error"] = job.plan.error or "The model failed"
        if query.get("include_cost") == "true":
            answer["cost"] = 0.0 if job.started is None else job.cost
        return Reply(200, answer)

    def _cancel(self, job: Job, now: float) -> Reply:
        cancelled = self.queue.cancel(job, now)
        if cancelled:
            self.spent_usd = round(self.spent_usd - job.cost, 6)
        outcome = "cancelled" if cancelled else "not_cancellable"
        return Reply(200, {"request_id": job.request_id, "status": _word(job, job.state), "outcome": outcome})

    def _file(self, route: Route) -> Reply:
        job, name = self.queue.jobs.get(route.request_id or ""), route.file or ""
        if job is None or job.state != "completed" or name not in HOSTED[job.model.gives]:
            return Reply(404, "<h1>Not found</h1>", {"Content-Type": "text/html"})
        if route.folder is not None:
            moved, signed = (_ADDRESSES[kind].format(job.request_id, name) for kind in ("redirect", "direct"))
            if route.target == moved:
                return Reply(302, "", {"Location": self._files_url() + signed})
            if route.target != signed:
                return Reply(403, "<Error><Code>SignatureDoesNotMatch</Code></Error>", {"Content-Type": "text/xml"})
        seed = job.input.get("seed")
        seed = (seed if isinstance(seed, int) else self.seed) + HOSTED[job.model.gives].index(name)
        prompt = str(job.input.get("prompt", ""))
        return Reply(200, Placeholder(prompt, *_size(job.input), seed, job.request_id, name.rpartition(".")[2]))

    def _files_url(self) -> str:
        return self.base_url if self.files_url is None else self.files_url

    def _output(self, job: Job) -> dict[str, Any]:
        return output_of(job.model, self._files_url() + _ADDRESSES[job.plan.signed], job.request_id)

    def place(self, value: Any, request_id: str | None) -> Any:
        """Write the URL of a generation's first file in its marks: `{file}`, `{FILE}` and `{place}`."""
        job = self.queue.jobs.get(request_id or "")
        if job is None:
            return value
        address = _ADDRESSES[job.plan.signed].format(job.request_id, HOSTED[job.model.gives][0])
        return _placed(value, self._files_url() + address)

    def _wall(self, instant: float) -> str:
        moment = datetime.fromtimestamp(self.epoch + instant, tz=UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _placed(value: Any, url: str) -> Any:
    if isinstance(value, str):
        scheme, _, place = url.partition(":")
        return value.replace("{file}", url).replace("{FILE}", f"{scheme.upper()}:{place}").replace("{place}", place)
    if isinstance(value, Mapping):
        return {name: _placed(part, url) for name, part in value.items()}
    return [_placed(part, url) for part in value] if isinstance(value, list) else value


def _word(job: Job, state: str) -> str:
    return job.plan.words.get(state, state)


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


def _models(query: Mapping[str, str]) -> Reply:
    numbers = {"limit": query.get("limit", str(_PAGE)), "offset": query.get("offset", "0")}
    detail = [
        {"loc": ["query", name], "msg": "Input should be a whole number", "type": "int_parsing"}
        for name, text in numbers.items()
        if not (text.isascii() and text.isdigit() and len(text) < 10)
    ]
    if detail:
        return _refused(detail)
    found = find(query.get("search", ""), query.get("category", ""), query.get("kind", ""))
    start, count = int(numbers["offset"]), int(numbers["limit"])
    schema = query.get("include_schema") == "true"
    page = [describe(model, schema=schema) for model in found[start : start + count]]
    return Reply(200, {"models": page, "total": len(found)})
