"""What each endpoint of the service does and answers, when no script decides otherwise.

Pure: the instant is an argument. Scripts, records and the way bytes travel are unknown here. How far a generation is,
`generations` knows.
"""

import json
import random
import re
import uuid
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from flux_klein_async.emulator.catalogue import HOSTED, MODELS, categories, describe, find, output_of, refusals
from flux_klein_async.emulator.generations import Job, Profile, Queue
from flux_klein_async.emulator.scripts import Endpoint, Generation, Reply

__all__ = ["UNKNOWN", "Placeholder", "Route", "Service", "find_route"]

UNKNOWN = "X-Flux-Klein-Emulator"  # a header that tells a client: this request is not of this emulator, and was free

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
        self.ids = random.Random(f"{self.seed}/ids")
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
            reply = _error(404, 404001, "Unknown, deleted or expired request")
            return replace(reply, headers={UNKNOWN: "unknown"})
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
        if wrong := refusals(model, given, f"{self._files_url()}/"):
            return _refused(wrong), None
        request_id = str(uuid.UUID(int=self.ids.getrandbits(128), version=4))
        seconds = self.profile.duration(self._durations, *_size(given)) if plan.after is None else plan.after
        kept = {name: given[name] for name in _KEPT_FIELDS if name in given}
        job = Job(request_id, model, kept, now, seconds, plan)
        self.queue.add(job)
        self.accepted += 1
        self._charge(job, 1)
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
            self._charge(job, -1)
        outcome = "cancelled" if cancelled else "not_cancellable"
        return Reply(200, {"request_id": job.request_id, "status": _word(job, job.state), "outcome": outcome})

    def _charge(self, job: Job, times: int) -> None:
        """Count the cost of a generation, or take it back; one that ends cancelled costs nothing."""
        if job.plan.ends != "cancelled":
            self.spent_usd = round(self.spent_usd + times * job.cost, 6)

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
