"""What a report page says of a batch: the rows of its manifest as plain data, and the totals over them.

The manifest and the files are taken for hostile: any value may have any type, a path may lead anywhere. Only files
below the manifest's directory are named by a link, and only those of media types. Rows wait on disk, so that memory
does not grow with the length of the manifest, but for a few numbers and the path of each picture. The calls block.
"""

import hashlib
import json
import math
import os
import stat
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote

from flux_klein_async import errors
from flux_klein_async.batch.manifest import MANIFEST, Record, every_record, json_line, read_manifest, recognised
from flux_klein_async.batch.rows import DiskMap
from flux_klein_async.errors import OF_EARLIER_RUN, FluxKleinError, InvalidInputError
from flux_klein_async.text import cut

__all__ = ["STATES", "Costs", "Failure", "Report", "advice", "percentile", "rate", "row"]

STATES: Final = ("done", "failed", "uncertain", "cancelled", "not submitted")
"""How an item can have ended, in the order of the page."""

_ENDS: Final = {
    "SubmissionUncertainError": "uncertain",
    "GenerationCancelledError": "cancelled",
    "FanOutHaltedError": "not submitted",
    "BudgetExceededError": "not submitted",
}
_AGAIN: Final = "Run the same command again."
# Commands and options are in backticks.
_ADVICE: Final[dict[type[FluxKleinError], str]] = {
    errors.SubmissionUncertainError: (
        "Look for it on the site under Library, Generations. If it is there, `flux-klein result ID` saves it. If it is "
        "not there, run the command again with `--resubmit-uncertain`; otherwise you may pay twice."
    ),
    errors.GenerationFailedError: "Run the command again with `--retry-failed`.",
    errors.GenerationCancelledError: "Nothing was made. Run the same command again to submit it.",
    errors.WaitTimeoutError: (
        "Run the same command again: it waits for the request, or submits it again if it was cancelled in the queue. A "
        "longer --timeout waits longer."
    ),
    errors.DownloadError: (
        "It is paid for. Run the same command again within 7 days of the generation to download it for free."
    ),
    errors.AuthenticationError: "Check the token with `flux-klein doctor`, then run the same command again.",
    errors.PermissionDeniedError: "Ask the owner of the account, then run the same command again.",
    errors.InsufficientBalanceError: "Top up the balance, then run the same command again.",
    errors.ConfigurationError: "Check the set-up with `flux-klein doctor`, then run the same command again.",
    errors.BudgetExceededError: (
        "Raise `--max-spend`, or leave it out if the price is not known, then run the same command again."
    ),
    errors.InvalidInputError: "Correct this line of the file as the error says, then run the same command again.",
    errors.InputRejectedError: "Correct this line of the file, then run the same command again.",
    errors.NotFoundError: "Check the model's name. Requests are gone after 7 days.",
    errors.FanOutHaltedError: "Find out why the items before it failed, then run the same command again.",
    errors.ItemClaimedError: "Another run works on it. Wait for its end.",
    errors.JournalError: "Make the journal readable and writable again, then run the same command again.",
    errors.FluxKleinError: _AGAIN,
}
# By class and `charged`, where that decides.
_MAY_BE_CHARGED: Final = "It may still be made, and charged. Run the same command again to collect it."
_ADVICE_IF: Final[dict[tuple[str, str | None], str]] = {
    ("GenerationFailedError", "yes"): (
        "It was charged and gave no file. Run the same command again to ask for the file once more, for free. If there "
        "is still none, `--retry-failed` pays again; another prompt may do better."
    ),
    ("GenerationCancelledError", "yes"): _MAY_BE_CHARGED,
    ("GenerationCancelledError", "unknown"): _MAY_BE_CHARGED,
}

_SUFFIXES: Final = {
    "picture": {".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif"},
    "video": {".mp4", ".webm", ".mov"},
    "audio": {".mp3", ".wav", ".ogg", ".oga", ".opus", ".flac", ".m4a", ".aac"},
}
_LONGEST_PROMPT: Final = 4000  # characters on the page; the manifest has all of it
_LONGEST_TEXT: Final = 600  # characters of another text
_MOST_FILES: Final = 16  # of one row
_PAUSE: Final = 60.0  # seconds without a new file: nothing ran, and a rate does not count them
_UNSETTLED, _UNPRICED = -2.0, -1.0  # in place of the cost of a request that may be charged, and of one that is
_PHASES: Final = ("submit", "queued", "running", "fetch")


def advice(kind: str, charged: str | None = None) -> str:
    """What to do about an error, by the name of its class; one that is not known is repeated."""
    if (known := _ADVICE_IF.get((kind, charged))) is not None:
        return known
    found = getattr(errors, kind, None)
    lineage = found.__mro__ if isinstance(found, type) else ()
    return next((_ADVICE[base] for base in lineage if base in _ADVICE), _AGAIN)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value that this share of sorted values does not exceed (nearest rank); None if there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def rate(times: Sequence[float]) -> float | None:
    """Files a second while files were saved: pauses of more than a minute do not count. None for fewer than two."""
    ordered = sorted(times)
    gaps = [gap for before, after in pairwise(ordered) if (gap := after - before) <= _PAUSE]
    return len(gaps) / sum(gaps) if sum(gaps) > 0 else None


@dataclass(slots=True)
class Failure:
    """Items that ended in the same kind of error.

    Attributes:
        kind: The name of the error's class.
        state: How they ended, one of `STATES`.
        todo: What to do about them.
        message: The error of the first of them.
        count: How many they are.
    """

    kind: str
    state: str
    todo: str
    message: str
    count: int = 0


class Report:
    """Reads the manifest of a directory. A context manager.

    Attributes:
        folder: The directory.
        counts: How many items ended in each of `STATES`.
        ends: For each row, in order, the place of its end in `STATES`, as a digit.
        pictures: The pictures that are there, in the order of the input, by the key of their content.
        costs: What the requests cost.
        failures: What went wrong, most frequent first.
        unreadable: The numbers of the manifest's lines that are passed over.
        changed: When the manifest was changed last, in seconds of the epoch.
    """

    def __init__(self, folder: Path) -> None:
        """Read it.

        Raises:
            InvalidInputError: The directory has no manifest.
            JournalError: The manifest cannot be read, or there is no room for temporary files.
        """
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self._priced = 0
        self.unreadable: list[int] = []
        self.pictures: dict[str, Path] = {}
        self._failures: dict[tuple[str, str], Failure] = {}
        self._seconds, self._saved = array("d"), array("d")
        manifest = folder / MANIFEST
        try:
            self.changed = manifest.stat().st_mtime
        except (OSError, ValueError):
            raise InvalidInputError(
                f"{str(folder)!r} has no {MANIFEST}; name the --output-dir of a `flux-klein batch`"
            ) from None
        self._rows = DiskMap()
        try:
            real = os.path.realpath(folder)
            for number, record in enumerate(read_manifest(manifest, on_unreadable=self.unreadable.append)):
                found = row(record, real)
                self._count(found)
                # By the input's order; indexes may be of several files, and of any size.
                place = max(-(2**63), min(found["index"], 2**63 - 1)) + 2**63
                self._rows.put(struct.pack(">QQ", place, number), json_line(found).encode())
            self.costs = Costs.of(every_record(manifest))
            ends = []
            for found in self.rows():
                ends.append(str(STATES.index(found["state"])))
                there = (file for file in found["files"] if file["kind"] == "picture" and file["key"] is not None)
                self.pictures.update({file["key"]: Path(file["path"]) for file in there})
            self.ends = "".join(ends)
        except BaseException:
            self._rows.close()
            raise
        self._seconds = array("d", sorted(self._seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, in the order of the input."""
        for data in self._rows.values():
            yield json.loads(data)

    @property
    def failures(self) -> list[Failure]:
        """What went wrong, most frequent first."""
        return sorted(self._failures.values(), key=lambda failure: -failure.count)

    @property
    def replaced(self) -> int:
        """How many requests of a known cost were replaced by a later one of the same item."""
        return max(0, self.costs.priced - self._priced)

    @property
    def rate(self) -> float | None:
        """Files a second while files were saved, or None."""
        return rate(self._saved)

    def seconds(self, share: float) -> float | None:
        """The time from the submit to the result that this share of the items did not exceed, or None."""
        return percentile(self._seconds, share)

    def _count(self, found: dict[str, Any]) -> None:
        state, error = found["state"], found["error"]
        self._priced += found["cost"] is not None
        self.counts[state] += 1
        saved = (file["saved"] for file in found["files"] if file["saved"] is not None)
        self._saved.extend(islice(saved, 1))
        if found["seconds"] is not None:
            self._seconds.append(found["seconds"])
        if error is not None:
            first = Failure(error["type"], state, error["todo"], error["message"])
            self._failures.setdefault((error["type"], error["todo"]), first).count += 1


def row(record: Record, folder: str) -> dict[str, Any]:
    """A record of a manifest as the page has it; `folder` is the real path of the manifest's directory.

    `index`, `id`, `state` (of `STATES`), `prompt`, `size` (pixels asked for, or null), `cost` (USD), `request`,
    `seconds` (from the submit to the result), `timings` (seconds by phase, `lag_max` and the number of `polls`, or
    null), `files` (`name`, `kind`, `href`, `bytes`, `saved` in seconds of the epoch, `path`, `key` for this content of
    it, `note`), and `error` (null or `type`, `message`, `charged`, `todo`). What the record does not say, or not in
    the right type, is null.
    """
    fields = record["input"] if isinstance(record["input"], dict) else {}
    error = record["error"]
    sides = [fields.get("width"), fields.get("height")]
    files = record["files"] if isinstance(record["files"], list) else []
    timings = _timings(record.get("timings"))
    return {
        "index": record["index"],
        "id": _text(record["id"]),
        "state": _state(error),
        "prompt": _text(_asked(record["input"]), _LONGEST_PROMPT),
        "size": sides if all(type(side) is int and 0 < side < 10**6 for side in sides) else None,
        "cost": _number(record.get("cost_usd")),
        "request": _text(record["request_id"]),
        "seconds": _seconds(timings),
        "timings": timings,
        "files": [_file(file, folder) for file in files[:_MOST_FILES]],
        "error": None if error is None else _error(error),
    }


class Costs(NamedTuple):
    """What the requests of a manifest cost, also those that a later one of the same item replaced.

    Attributes:
        spent: The sum of the costs that the service reported, in USD.
        priced: How many requests that is.
        unpriced: How many results came without a cost.
        unsettled: How many others may have been charged, at most: a submit without an answer counts, even if a later
            run learned which request it was. What a run says of an earlier run's submit counts once.
    """

    spent: float
    priced: int
    unpriced: int
    unsettled: int

    @classmethod
    def of(cls, records: Iterable[Record]) -> Self:
        """Sum up all lines of a manifest."""
        # By request, its cost or why there is none; and the items whose submit has no id.
        with closing(DiskMap()) as known, closing(DiskMap()) as items:
            for number, record in enumerate(records):
                cost, error = _number(record.get("cost_usd")), record["error"]
                if cost is None and isinstance(error, dict) and error.get("charged") == "no":
                    continue
                missing = _UNPRICED if error is None else _UNSETTLED
                request = json.dumps(record["request_id"] or [number]).encode()
                if record["request_id"] is None:
                    item = recognised(record["id"], [record["index"], record["input"]])
                    if items.get(item) and (_error(error)["message"] or "").startswith(OF_EARLIER_RUN):
                        continue
                    items.put(item, 1)
                before = known.get(request)
                known.put(request, max(missing if cost is None else cost, _UNSETTLED if before is None else before))
            values = array("d", known.values())
        unpriced, unsettled = values.count(_UNPRICED), values.count(_UNSETTLED)
        spent = math.fsum(value for value in values if value >= 0)
        return cls(spent, len(values) - unpriced - unsettled, unpriced, unsettled)


def _asked(given: object) -> str:
    """The prompt, else all of the input; nothing of a line that could not be read."""
    prompt = given.get("prompt") if isinstance(given, dict) else None
    return prompt if isinstance(prompt, str) else json.dumps(given) if given else ""


def _state(error: object) -> str:
    if error is None:
        return "done"
    kind = error.get("type") if isinstance(error, dict) else None
    return _ENDS.get(kind, "failed") if isinstance(kind, str) else "failed"


def _error(error: object) -> dict[str, str | None]:
    facts = error if isinstance(error, dict) else {}
    kind, charged = _text(facts.get("type")) or "Error", _text(facts.get("charged"))
    return {
        "type": kind,
        "message": _text(facts.get("message")) or "No reason is recorded.",
        "charged": charged,
        "todo": advice(kind, charged),
    }


def _timings(found: object) -> dict[str, float | None] | None:
    """The timings, if the record has any: what a journal recalls has none."""
    if not isinstance(found, dict):
        return None
    timings = {name: _number(found.get(name)) for name in (*_PHASES, "lag_max", "polls")}
    return timings if any(timings[name] is not None for name in _PHASES) else None


def _seconds(timings: dict[str, float | None] | None) -> float | None:
    """From the call to the result, if this run saw all of it; one that was never seen running ended in the queue."""
    if timings is None or None in (timings["submit"], timings["queued"], timings["fetch"]):
        return None
    return math.fsum(timings[name] or 0.0 for name in _PHASES)


def _file(fact: object, folder: str) -> dict[str, Any]:
    """A file: its `href` and `key` if it is a media file below the folder, else a `note` that says why not."""
    path = fact.get("path") if isinstance(fact, dict) else None
    named = path if isinstance(path, str) else ""
    facts: dict[str, Any] = {"name": _text(os.path.basename(named)), "kind": _kind(named), "href": None}  # noqa: PTH119
    facts |= {"bytes": None, "saved": None, "path": None, "key": None, "note": None}
    try:
        real = os.path.realpath(os.path.join(folder, named))  # noqa: PTH118  # as fast as can be, for 50,000
        below = os.path.relpath(real, folder)
        if not named or below == os.curdir or below.partition(os.sep)[0] == os.pardir:
            return facts | {"note": "The file is outside the directory of this report."}
        status = os.stat(real)  # noqa: PTH116
        href = quote(os.fsencode(below.replace(os.sep, "/")))
    except (OSError, ValueError):  # ValueError: a NUL byte, half a surrogate pair, another drive
        return facts | {"note": "The file is missing. Run the same command again to download it."}
    if not stat.S_ISREG(status.st_mode):
        return facts | {"note": "This is no plain file."}
    facts |= {"bytes": status.st_size, "saved": status.st_mtime}
    if facts["kind"] is None or _kind(real) is None:
        return facts | {"note": "Browsers do not show files of this type."}
    version = f"{below}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape")
    return facts | {"href": f"./{href}", "path": real, "key": hashlib.sha256(version).hexdigest()[:24]}


def _kind(name: str) -> str | None:
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return next((kind for kind, suffixes in _SUFFIXES.items() if suffix in suffixes), None)


def _number(value: object) -> float | None:
    """A number that can be a time, a cost or a count; true and NaN are none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15:
        return float(value)
    return None


def _text(value: object, longest: int = _LONGEST_TEXT) -> str | None:
    return cut(value, longest) if isinstance(value, str) else None
