"""Batch processes that share a journal while calls go wrong, and an audit of journal, pictures and manifest.

`run_batches` runs several batch processes, kills one, and then runs one more without faults. `audit` compares the
journal with what the emulator accepted. It reads the journal's tables itself, since the package's reader may be wrong.
Each prompt must occur once.
"""

import asyncio
import hashlib
import json
import os
import sqlite3
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from faulty_client import FALSE_PICTURES, PIXELS, Submit, accepted_submits

from flux_klein_async.batch.manifest import read_manifest
from flux_klein_async.emulator import FAULTS, Emulator, Record, pictures

__all__ = [
    "LEFT_OUT",
    "PRICE",
    "SLOW",
    "Accounts",
    "BatchPlan",
    "BatchesRun",
    "Rules",
    "audit",
    "ends",
    "read_requests",
    "run_batches",
    "totals",
]

PRICE: Final = 10_000_000  # billionths of a USD: what the emulator's catalogue says
_FREE: Final = {"repeated", "refused", "cancelled"}


class JournaledRequest(NamedTuple):
    """One submit in the journal. Money in billionths of a USD."""

    prompt: str
    state: str
    request_id: str | None
    reserved: int
    cost: int | None
    files: tuple[tuple[str, str], ...]  # path and SHA-256

    @property
    def charge(self) -> int:
        """What the request counts for in the totals."""
        if self.state in _FREE:
            return 0
        return self.reserved if self.cost is None else self.cost


@dataclass(frozen=True, slots=True)
class Rules:
    """What is allowed.

    Attributes:
        again: The states after which an item may be submitted again.
        finished: Whether everything must be saved and listed by now; False if a process was killed since.
    """

    again: frozenset[str] = frozenset(_FREE)
    finished: bool = True


def _rows(journal: Path | str, query: str) -> list[tuple[Any, ...]]:
    """What is in a file, or in the default schema of a database that a URI names."""
    if isinstance(journal, Path):
        with closing(sqlite3.connect(journal)) as db:
            return db.execute(query).fetchall()
    import psycopg  # noqa: PLC0415  # an extra

    with psycopg.connect(journal) as server:
        server.execute("SET search_path TO flux_klein")
        return server.execute(query).fetchall()


def read_requests(journal: Path | str) -> list[JournaledRequest]:
    """All requests, oldest first. Nothing else may write to the journal meanwhile."""
    return [
        JournaledRequest(
            json.loads(body)["prompt"] if body else "",
            state,
            request_id,
            reserved or 0,
            cost,
            tuple((path, sha256) for path, sha256, _ in json.loads(files or "[]")),
        )
        for body, state, request_id, reserved, cost, files in _rows(
            journal, "SELECT body, state, request_id, reserved, cost, files FROM requests ORDER BY id"
        )
    ]


def totals(journal: Path | str) -> tuple[int, int]:
    """The journal's own totals over all accounts, settled and reserved, in billionths of a USD."""
    [(settled, held)] = _rows(journal, "SELECT sum(settled), sum(held) FROM accounts")
    return int(settled or 0), int(held or 0)


def ends(requests: Sequence[JournaledRequest]) -> Counter[str]:
    """How many items are in each state, by the newest request of each."""
    return Counter({request.prompt: request.state for request in requests}.values())


@dataclass(slots=True)
class Accounts:
    """What the journal and the emulator know.

    Attributes:
        seed: The emulator's.
        allowed: Other files that it can send as a picture.
    """

    journal: Path | str
    directory: Path
    submits: Sequence[Submit]
    prompts: Sequence[str]
    seed: int
    allowed: frozenset[bytes] = frozenset()
    requests: list[JournaledRequest] = field(init=False)

    def __post_init__(self) -> None:
        self.requests = read_requests(self.journal)

    def sides(self) -> Iterator[tuple[str, list[JournaledRequest], list[Submit]]]:
        """For each prompt, also unknown ones: what the journal knows and what the service accepted."""
        ours: defaultdict[str, list[JournaledRequest]] = defaultdict(list)
        theirs: defaultdict[str, list[Submit]] = defaultdict(list)
        for request in self.requests:
            ours[request.prompt].append(request)
        for submit in self.submits:
            theirs[submit.prompt].append(submit)
        for prompt in {**dict.fromkeys(self.prompts), **ours, **theirs}:
            yield prompt, ours[prompt], theirs[prompt]


def audit(accounts: Accounts, rules: Rules) -> dict[str, int]:
    """Counts contradictions between the two; each count must be 0."""
    wrong: Counter[str] = Counter()
    wanted = set(accounts.prompts)
    for prompt, requests, submits in accounts.sides():
        wrong["of no item"] += prompt not in wanted
        _audit_submits(requests, submits, rules, wrong)
        _audit_money(requests, wrong)
        if rules.finished:
            _audit_end(requests, submits, wrong)
    settled, held = totals(accounts.journal)
    spoilt, surplus = _pictures(accounts)
    return {
        "prompts of nobody": wrong["of no item"],
        "accepted, and the journal knows nothing of it": wrong["lost"],
        "ids that the service never gave": wrong["invented"],
        "submitted again against the rules": wrong["again"],
        "accepted twice, and the first not called uncertain": wrong["twice"],
        "items neither saved nor ended for a known reason": wrong["unfinished"],
        "pictures that are not the service's own": spoilt,
        "files that no request names": surplus if rules.finished else 0,
        "lines that the manifest lacks": _unlisted(accounts.directory, accounts.requests) if rules.finished else 0,
        "requests charged with another price": wrong["price"],
        "billionths that the totals are off": abs(
            settled + held - sum(request.charge for request in accounts.requests)
        ),
    }


def _audit_submits(requests: list[JournaledRequest], submits: list[Submit], rules: Rules, wrong: Counter[str]) -> None:
    accepted = {submit.request_id for submit in submits}
    known = {request.request_id for request in requests if request.request_id is not None}
    # A request of a killed process stays in submission until the next process opens the journal.
    unsure = sum(request.state in {"uncertain", "submitting"} and request.request_id is None for request in requests)
    wrong["lost"] += max(0, len(accepted - known) - unsure)
    wrong["invented"] += len(known - accepted)
    wrong["again"] += sum(request.state not in rules.again for request in requests[:-1])
    forgiven = sum(request.state in rules.again - {"repeated", "refused"} for request in requests)
    wrong["twice"] += max(0, len(accepted) - 1 - forgiven)


def _audit_money(requests: list[JournaledRequest], wrong: Counter[str]) -> None:
    """What was accepted, or may have been, must be charged or reserved at the service's price."""
    wrong["price"] += sum(request.charge != PRICE for request in requests if request.state not in _FREE)


def _audit_end(requests: list[JournaledRequest], submits: list[Submit], wrong: Counter[str]) -> None:
    last = requests[-1] if requests else None
    endless = {submit.request_id for submit in submits if submit.endless}
    explained = last is not None and (
        last.state in {"failed", "uncertain"}
        or (last.state == "downloaded" and last.files != ())
        or (last.state == "submitted" and last.request_id in endless)
    )
    wrong["unfinished"] += not explained


def _pictures(accounts: Accounts) -> tuple[int, int]:
    """Files that are not what was drawn for them, and files that no request names."""
    spoilt, named, told = 0, set(), set(accounts.allowed)
    for request in accounts.requests:
        for path, sha256 in request.files:
            file = Path(path)
            named.add(file.name)
            data = file.read_bytes() if file.is_file() else b""
            drawn = pictures.draw(
                request.prompt, PIXELS, PIXELS, seed=accounts.seed, request_id=request.request_id or ""
            )
            whole = data == drawn or data in accounts.allowed
            if data in accounts.allowed:  # another run may have been told of the drawn one; the journal names the last
                told.add(drawn)
            spoilt += not (whole and file.parent == accounts.directory and hashlib.sha256(data).hexdigest() == sha256)
    found = [path for path in accounts.directory.iterdir() if not path.name.startswith((".", "journal.sqlite"))]
    unnamed = [path for path in found if path.name not in named and path.read_bytes() not in told]
    return spoilt, sum(path.name != "manifest.jsonl" for path in unnamed)


def _unlisted(directory: Path, requests: Iterable[JournaledRequest]) -> int:
    """Saved pictures that the manifest does not list."""
    listed = {
        record["request_id"]: [file["sha256"] for file in record["files"]]
        for record in read_manifest(directory / "manifest.jsonl")
        if record["state"] == "completed"
    }
    saved = [request for request in requests if request.state == "downloaded"]
    return sum(listed.get(request.request_id) != [sha256 for _, sha256 in request.files] for request in saved)


# --- the processes

_FATAL = ("401", "402", "403", "400002", "400004", "1000")  # and faults whose names begin with these
# Faults that rightly end a run within seconds; states that no client knows, in which a request stays for ever; and a
# service that charges for what it calls cancelled, or four times its price, which no client can keep within a budget.
LEFT_OUT: Final = frozenset(
    {
        *(name for name in FAULTS if name.startswith((*_FATAL, "says-"))),
        "no-price",
        "odd-price",
        "is-cancelled",
        "only-said",
        "costs-more",
    }
)
_CALM_TIMEOUT: Final = 120.0  # seconds for each picture without faults: on a busy machine ten are not enough for all
# Faults that take seconds, or megabytes.
SLOW: Final = frozenset(
    {
        *(name for name in FAULTS if name.endswith(("+after", "+date")) or name.startswith(("hang", "endless"))),
        *("slow", "drip", "gzip-bomb", "never-ends", "result-late", "result-never", "picture-endless"),
        *("overlong", "length-no-number", "failed-too-soon", "early-404"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """What to run.

    Attributes:
        max_usd: What the processes may spend together; less than all items cost.
        killed_at: One process is killed after so many accepted submits.
        without: Names of faults that do not happen.
        timeout: Seconds for each picture with faults.
        journals: One way to the same journal for each process in turn, the first for the last one; none: a file.
    """

    count: int
    processes: int
    concurrency: int
    seed: int
    max_usd: float
    killed_at: int
    probability: float = 0.1
    without: frozenset[str] = LEFT_OUT
    timeout: float = 30.0
    profile: str = "klein"
    workers: int | None = None
    journals: tuple[str, ...] = ()


@dataclass(slots=True)
class BatchesRun:
    """What came of it. Pairs are with faults, and then in all.

    Attributes:
        found: Counts that must be 0.
        codes: Exit codes of the processes with faults, in any order, and of the last one.
        accepted: Accepted submits.
        peak_usd: The most that was ever spent with faults.
        ends: How many items ended in which state.
        stderr: What the last process printed.
    """

    found: dict[str, int]
    codes: tuple[list[int], int]
    accepted: tuple[int, int]
    peak_usd: float
    ends: tuple[Counter[str], Counter[str]]
    calls: Counter[str]
    faults: Counter[str]
    seconds: tuple[float, float]
    stderr: str


class _WatchedRecords(deque[Record]):
    """The emulator's records; calls a function at each."""

    def __init__(self, on_record: Callable[[], None]) -> None:
        super().__init__()
        self._on_record = on_record

    def append(self, record: Record) -> None:
        super().append(record)
        self._on_record()


@dataclass(slots=True)
class _Processes:
    """The emulator and the batch processes that call it."""

    plan: BatchPlan
    folder: Path
    emulator: Emulator
    peak_usd: float = 0.0
    running: list[asyncio.subprocess.Process] = field(default_factory=list)
    killed: bool = False

    def check(self) -> None:
        """Track what is spent; kill a process when it is time."""
        self.peak_usd = max(self.peak_usd, self.emulator.spent_usd)
        if not self.killed and self.emulator.accepted >= self.plan.killed_at:
            self.killed = True
            self.running[0].kill()

    async def run(self, max_usd: float, timeout: float, number: int = 0) -> tuple[int, str]:  # the command's
        """Run one batch process to its end: exit code and standard error."""
        plan, journals = self.plan, self.plan.journals
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flux_klein_async", "batch", "prompts.jsonl", "--quiet", "--no-report"),
            *("--concurrency", str(plan.concurrency), "--max-spend", str(max_usd), "--timeout", str(timeout)),
            *(("--journal", journals[number % len(journals)]) if journals else ()),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "RUNCOMFY_MODEL_API_BASE": self.emulator.base_url,
                "RUNCOMFY_API_TOKEN": self.emulator.api_key,
            },
            cwd=self.folder,
        )
        self.running.append(process)
        _, stderr = await process.communicate()
        assert process.returncode is not None
        return process.returncode, stderr.decode()

    def accounts(self, prompts: list[str]) -> Accounts:
        out = self.folder / "out"
        submits = accepted_submits(self.emulator.records)
        journal = self.plan.journals[0] if self.plan.journals else out / "journal.sqlite"
        return Accounts(journal, out, submits, prompts, self.plan.seed, FALSE_PICTURES)


async def run_batches(plan: BatchPlan, folder: Path) -> BatchesRun:
    """Run several processes with faults, then one without."""
    prompts = [f"a snow leopard, number {number}" for number in range(plan.count)]
    rows = [json.dumps({"prompt": prompt, "width": PIXELS, "height": PIXELS}) for prompt in prompts]
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    async with Emulator(profile=plan.profile, workers=plan.workers, seed=plan.seed) as emulator:
        processes = _Processes(plan, folder, emulator)
        emulator.records = _WatchedRecords(processes.check)
        emulator.storm(plan.probability, without=plan.without)
        begun = time.perf_counter()
        ran = await asyncio.gather(
            *(processes.run(plan.max_usd, plan.timeout, number) for number in range(plan.processes))
        )
        between, accepted, peak = processes.accounts(prompts), emulator.accepted, processes.peak_usd
        found = {f"{what}, with faults": count for what, count in audit(between, Rules(finished=False)).items()}
        emulator.calm()
        calm = time.perf_counter()
        code, stderr = await processes.run(2 * plan.count, _CALM_TIMEOUT)
        after = processes.accounts(prompts)
        return BatchesRun(
            found={
                **found,
                **audit(after, Rules()),
                "billionths above the budget": max(0, round((peak - plan.max_usd) * 1e9)),
            },
            codes=([code for code, _ in ran], code),
            accepted=(accepted, emulator.accepted),
            peak_usd=peak,
            ends=(ends(between.requests), ends(after.requests)),
            calls=Counter(emulator.calls),
            faults=Counter(record.endpoint for record in emulator.records if record.answer is not None),
            seconds=(calm - begun, time.perf_counter() - calm),
            stderr=stderr,
        )
