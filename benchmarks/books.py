"""The books of a journal held against those of the emulated service: what was paid for, and what became of it.

Reads the journal's file by itself, not through the package: what is to be found wrong must not be read by whoever may
be wrong. Every prompt is taken to occur once.
"""

import hashlib
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from flux_klein_async.batch.manifest import read_manifest
from flux_klein_async.emulator import pictures

__all__ = [
    "PIXELS",
    "PRICE",
    "Accepted",
    "Books",
    "JournaledRequest",
    "Rules",
    "audit",
    "ends",
    "read_orders",
    "totals",
]

PIXELS: Final = 64  # the width and height of every picture
PRICE: Final = 10_000_000  # billionths of a USD: what the emulator's catalogue says
_FREE: Final = {"refused", "cancelled"}


class Accepted(Protocol):
    """One submit that the service accepted."""

    @property
    def prompt(self) -> str:
        """What was submitted."""
        ...

    @property
    def request_id(self) -> str:
        """What it was accepted as."""
        ...

    @property
    def endless(self) -> bool:
        """Whether it never ends, or its result never comes."""
        ...


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
        """What it counts with."""
        if self.state in _FREE:
            return 0
        return self.reserved if self.cost is None else self.cost


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be.

    Attributes:
        again: After which ends an item could be submitted again.
        at_home: Whether everything is to be at home, named and listed now; else some process was killed since.
    """

    again: frozenset[str] = frozenset(_FREE)
    at_home: bool = True


def read_orders(journal: Path) -> list[JournaledRequest]:
    """All requests, oldest first; nobody may write to the journal meanwhile."""
    with closing(sqlite3.connect(journal)) as db:
        rows = db.execute("SELECT body, state, request_id, reserved, cost, files FROM requests ORDER BY id")
        return [
            JournaledRequest(
                json.loads(body)["prompt"] if body else "",
                state,
                request_id,
                reserved or 0,
                cost,
                tuple((path, sha256) for path, sha256, _ in json.loads(files or "[]")),
            )
            for body, state, request_id, reserved, cost, files in rows
        ]


def totals(journal: Path) -> tuple[int, int]:
    """Settled and set aside, over all accounts, in billionths of a USD, as the journal adds it up itself."""
    with closing(sqlite3.connect(journal)) as db:
        settled, held = db.execute("SELECT sum(settled), sum(held) FROM accounts").fetchone()
    return settled or 0, held or 0


def ends(requests: Sequence[JournaledRequest]) -> Counter[str]:
    """How many items are in which state, by the newest request of each."""
    return Counter({request.prompt: request.state for request in requests}.values())


@dataclass(slots=True)
class Books:
    """Both sides.

    Attributes:
        seed: The emulator's.
        lies: What it can call a picture without a sign that it is none.
    """

    journal: Path
    directory: Path
    submits: Sequence[Accepted]
    prompts: Sequence[str]
    seed: int
    lies: frozenset[bytes] = frozenset()
    requests: list[JournaledRequest] = field(init=False)

    def __post_init__(self) -> None:
        self.requests = read_orders(self.journal)

    def sides(self) -> Iterator[tuple[str, list[JournaledRequest], list[Accepted]]]:
        """Of each prompt what the journal knows and what the service accepted; those of nobody too."""
        ours: defaultdict[str, list[JournaledRequest]] = defaultdict(list)
        theirs: defaultdict[str, list[Accepted]] = defaultdict(list)
        for request in self.requests:
            ours[request.prompt].append(request)
        for submit in self.submits:
            theirs[submit.prompt].append(submit)
        for prompt in {**dict.fromkeys(self.prompts), **ours, **theirs}:
            yield prompt, ours[prompt], theirs[prompt]


def audit(books: Books, rules: Rules) -> dict[str, int]:
    """Compare both sides; every number is one of things that must not be, and so must be 0."""
    wrong: Counter[str] = Counter()
    wanted = set(books.prompts)
    for prompt, requests, submits in books.sides():
        wrong["of no item"] += prompt not in wanted
        _audit_submits(requests, submits, rules, wrong)
        _audit_money(requests, wrong)
        if rules.at_home:
            _audit_end(requests, submits, wrong)
    settled, held = totals(books.journal)
    spoilt, surplus = _pictures(books)
    return {
        "prompts of nobody": wrong["of no item"],
        "accepted, and the journal knows nothing of it": wrong["lost"],
        "ids that the service never gave": wrong["invented"],
        "submitted again against the rules": wrong["again"],
        "accepted twice, and the first not called uncertain": wrong["twice"],
        "items neither at home nor honestly ended": wrong["unfinished"],
        "pictures that are not the service's own": spoilt,
        "files that no request names": surplus if rules.at_home else 0,
        "lines that the manifest lacks": _unlisted(books.directory, books.requests) if rules.at_home else 0,
        "requests charged with another price": wrong["price"],
        "billionths that the totals are off": abs(settled + held - sum(request.charge for request in books.requests)),
    }


def _audit_submits(
    requests: list[JournaledRequest], submits: list[Accepted], rules: Rules, wrong: Counter[str]
) -> None:
    accepted = {submit.request_id for submit in submits}
    known = {request.request_id for request in requests if request.request_id is not None}
    # Of a process that was killed a request stays on its way until the next one opens the journal.
    unsure = sum(request.state in {"uncertain", "submitting"} and request.request_id is None for request in requests)
    wrong["lost"] += max(0, len(accepted - known) - unsure)
    wrong["invented"] += len(known - accepted)
    wrong["again"] += sum(request.state not in rules.again for request in requests[:-1])
    forgiven = sum(request.state in rules.again - {"refused"} for request in requests)
    wrong["twice"] += max(0, len(accepted) - 1 - forgiven)


def _audit_money(requests: list[JournaledRequest], wrong: Counter[str]) -> None:
    """What it knows to be accepted costs what the service took, and what may have been is set aside."""
    wrong["price"] += sum(request.charge != PRICE for request in requests if request.state not in _FREE)


def _audit_end(requests: list[JournaledRequest], submits: list[Accepted], wrong: Counter[str]) -> None:
    last = requests[-1] if requests else None
    endless = {submit.request_id for submit in submits if submit.endless}
    honest = last is not None and (
        last.state in {"failed", "uncertain"}
        or (last.state == "downloaded" and last.files != ())
        or (last.state == "submitted" and last.request_id in endless)
    )
    wrong["unfinished"] += not honest


def _pictures(books: Books) -> tuple[int, int]:
    """Files that are not what was drawn for them, and files that nobody ordered."""
    spoilt, named = 0, set()
    for request in books.requests:
        for path, sha256 in request.files:
            file = Path(path)
            named.add(file.name)
            data = file.read_bytes() if file.is_file() else b""
            drawn = pictures.draw(request.prompt, PIXELS, PIXELS, seed=books.seed, request_id=request.request_id or "")
            whole = data == drawn or data in books.lies
            spoilt += not (whole and file.parent == books.directory and hashlib.sha256(data).hexdigest() == sha256)
    found = {path.name for path in books.directory.iterdir() if not path.name.startswith((".", "journal.sqlite"))}
    return spoilt, len(found - named - {"manifest.jsonl"})


def _unlisted(directory: Path, requests: Iterable[JournaledRequest]) -> int:
    """Saved pictures of which the manifest's last line says something else."""
    listed = {
        record["request_id"]: [file["sha256"] for file in record["files"]]
        for record in read_manifest(directory / "manifest.jsonl")
        if record["state"] == "completed"
    }
    home = [request for request in requests if request.state == "downloaded"]
    return sum(listed.get(request.request_id) != [sha256 for _, sha256 in request.files] for request in home)
