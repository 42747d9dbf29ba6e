"""`flux-klein report`: writes a page that shows what a batch made. `batch` writes it too.

The page is `index.html` and a folder beside it: one style, one script, the rows in scripts of 1,000, the thumbnails.
Names carry a digest of the content, and the page is replaced last: it never names what is not there.
"""

import asyncio
import hashlib
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from flux_klein_async.batch.manifest import MANIFEST, json_line
from flux_klein_async.batch.report import STATES, Report
from flux_klein_async.cli import signals
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen
from flux_klein_async.cli.thumbnails import Thumbnail, make_thumbnails
from flux_klein_async.errors import BudgetExceededError, FluxKleinError, InvalidInputError
from flux_klein_async.journal.budget import dollars
from flux_klein_async.paths import replacing

__all__ = ["after_batch", "report", "write_report"]

_PAGE, _BESIDE, _THUMBNAILS, _SHEET = "index.html", "index_files", "thumbnails", "contact-sheet.png"
_MARK = b'<meta name="generator" content="flux-klein report">'
_MARKED_WITHIN = 2048  # bytes
_CHUNK = 1000  # rows in a script
_KEPT = 3600.0  # seconds that files of older pages stay: someone may be reading them, or writing them
_AFTER_STOP = 5.0  # seconds for the thumbnails of a batch that was stopped
_NOTICED = 200  # thumbnails whose making is worth a line
_UNREADABLE_SHOWN = 5
_NOT_SUBMITTED = "not submitted"  # of `STATES`
_INTERNAL = ("path", "key", "saved")  # facts of a file that the page does not use
_MOST_FAILURES = 20  # kinds of error that are listed


def report(*, directory: Path, contact_sheet: bool, quiet: bool) -> ExitCode:
    """Write the page of a batch's directory, and print its path."""

    async def body(screen: Screen, stop: signals.Stop) -> ExitCode:
        for path in await _written(directory, screen, stop, contact_sheet=contact_sheet):
            screen.out(path)
        return ExitCode.OK if stop.code is None else stop.code

    return signals.run(body, quiet=quiet)


async def after_batch(folder: Path, screen: Screen, stop: signals.Stop, unreached: int | None) -> None:
    """Write the page and say where it is, or why there is none: a batch that is done does not fail with it.

    `unreached`: how many good rows of the input the manifest does not have; None if that is not known.
    """
    if stop.code is not None:
        screen.say("Writing the report. Press Ctrl-C to quit without.")
    try:
        [path] = await _written(folder, screen, stop, unreached=unreached)
    except FluxKleinError as error:
        screen.note(f"No report: {error}")
    else:
        screen.say(f"Report: {path}")


async def _written(
    folder: Path,
    screen: Screen,
    stop: signals.Stop,
    *,
    contact_sheet: bool = False,
    unreached: int | None = None,
) -> list[Path]:
    enough, loop = threading.Event(), asyncio.get_running_loop()
    quarter = 0

    def progress(done: int, of: int) -> None:
        nonlocal quarter
        if of >= _NOTICED and (reached := 4 * done // of) > quarter:
            quarter = reached
            loop.call_soon_threadsafe(screen.say, f"{done:,} of {of:,} thumbnails made")

    if stop.code is None:
        stop.gently(enough.set)
    else:  # a batch that was stopped; the next signal ends the process
        loop.call_later(_AFTER_STOP, enough.set)

    def note(text: str) -> None:
        loop.call_soon_threadsafe(screen.note, text)

    job = partial(write_report, folder, stop=enough, on_progress=progress, note=note)
    return await loop.run_in_executor(None, partial(job, contact_sheet=contact_sheet, unreached=unreached))


def write_report(
    folder: Path,
    *,
    stop: threading.Event,
    contact_sheet: bool = False,
    unreached: int | None = None,
    on_progress: Callable[[int, int], object] = lambda _done, _of: None,
    note: Callable[[str], object] = lambda _: None,
) -> list[Path]:
    """Write the page, and the contact sheet if wanted; their paths. It blocks.

    `note`: told how many thumbnails are missing, if any. `unreached`: as for `after_batch`.

    Raises:
        InvalidInputError: There is no manifest, the page's name is taken by another file, or nothing can be written.
        JournalError: The manifest cannot be read.
    """
    page, beside = folder / _PAGE, folder / _BESIDE
    with Report(folder) as found, _explained(folder):
        if page.exists() and not _is_ours(page):
            raise InvalidInputError(f"{str(page)!r} is no report; move it, since the report would have its name")
        thumbnails = make_thumbnails(found.pictures, beside / _THUMBNAILS, stop=stop, on_progress=on_progress)
        if (lacking := _lacking(folder, len(found.pictures), thumbnails)) is not None:
            note(lacking)
        assets = files("flux_klein_async.cli").joinpath("assets")
        names = {name: _put(beside, name, assets.joinpath(f"report.{name}").read_bytes()) for name in ("css", "js")}
        chunks = list(_chunks(found, thumbnails, beside))
        text = _rendered(found, assets.joinpath("report.html").read_text("utf-8"), names, chunks, unreached)
        with replacing(page) as unfinished:
            unfinished.write_bytes(text)
        _sweep(beside, {*names.values(), *chunks})
        _sweep(beside / _THUMBNAILS, {made.name for made in thumbnails.values() if made.name is not None})
        if not contact_sheet:
            return [page]
        from flux_klein_async.integrations.pillow import contact_sheet as sheet  # noqa: PLC0415  # loads Pillow

        made = [thumbnails[key].name for key in found.pictures if key in thumbnails]
        return [page, sheet([beside / _THUMBNAILS / name for name in made if name is not None], folder / _SHEET)]


def _lacking(folder: Path, pictures: int, thumbnails: Mapping[str, Thumbnail]) -> str | None:
    """How many pictures have no thumbnail, and why; None if all have one."""
    refused = [made.note for made in thumbnails.values() if made.note is not None]
    rest = pictures - len(thumbnails)
    if not refused and not rest:
        return None
    why = [f"`{shlex.join(['flux-klein', 'report', str(folder)])}` makes {rest:,}"] if rest else []
    why += [f"{len(refused):,} cannot have one ({refused[0].removesuffix('.')})"] if refused else []
    return f"{len(refused) + rest:,} of {pictures:,} pictures have no thumbnail: {', '.join(why)}"


def _chunks(found: Report, thumbnails: Mapping[str, Thumbnail], beside: Path) -> Iterator[str]:
    """Write the rows; the names of the scripts that hold them."""
    rows = found.rows()
    number = 0
    while some := list(islice(rows, _CHUNK)):
        shown = ",\n".join(json_line(_shown(row, thumbnails)) for row in some)
        yield _put(beside, "js", f"fluxKleinRows({number}, [\n{shown}\n]);\n".encode(), prefix=f"rows-{number}-")
        number += 1


def _shown(row: dict[str, Any], thumbnails: Mapping[str, Thumbnail]) -> dict[str, Any]:
    """A row as the page's script reads it."""
    shown = []
    for file in row["files"]:
        facts = {name: value for name, value in file.items() if name not in _INTERNAL}
        if file["kind"] == "picture" and file["key"] is not None:
            small = thumbnails.get(file["key"], Thumbnail(note="No preview was made; make the report again."))
            facts |= {"preview": small.name, "pixels": small.pixels, "note": small.note}
        shown.append(facts)
    return row | {"files": shown}


def _rendered(
    found: Report, template: str, names: Mapping[str, str], chunks: list[str], unreached: int | None
) -> bytes:
    # For this command alone, and it takes time to load.
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415

    scale = found.seconds(0.95)
    listed = ", ".join(f"{number:,}" for number in found.unreadable[:_UNREADABLE_SHOWN])
    more = ", ..." if len(found.unreadable) > _UNREADABLE_SHOWN else ""
    count = len(found.unreadable)
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    text = page.render(
        title=found.folder.resolve().name or "Report",
        total=len(found.ends),
        unreached=unreached,
        changed=datetime.fromtimestamp(found.changed, UTC).strftime("%Y-%m-%dT%H:%M"),
        figures=list(_figures(found, unreached or 0)),
        failures=found.failures[:_MOST_FAILURES],
        kinds=len(found.failures),
        counts=[(state, found.counts[state]) for state in STATES if found.counts[state]],
        manifest=MANIFEST,
        unreadable=f"Line{'s' if count > 1 else ''} {listed}{more} could not be read." if count else None,
        scale=None if scale is None else f"{scale:.2f} s",
        files=_BESIDE,
        style=names["css"],
        script=names["js"],
        facts={
            "count": len(found.ends),
            "ends": found.ends,
            "states": STATES,
            "chunk": _CHUNK,
            "chunks": chunks,
            "files": _BESIDE,
            "previews": f"{_BESIDE}/{_THUMBNAILS}",
            "scale": scale,
        },
    )
    return text.encode("utf-8", "replace")  # half a surrogate pair is no text


def _figures(found: Report, unreached: int) -> Iterator[dict[str, str | None]]:
    """The totals at the head of the page."""

    def figure(label: str, value: str, *, unit: str = "", note: str = "", tone: str = "") -> dict[str, str | None]:
        return {"label": label, "value": value, "unit": unit, "note": note, "tone": tone}

    money = any(failure.kind == BudgetExceededError.__name__ for failure in found.failures)
    for state in STATES:
        rest = state == _NOT_SUBMITTED
        count = found.counts[state] + (unreached if rest else 0)
        again = "the budget allows no more: see below" if money else "run the same command again"
        note = again if rest else ""
        if count or state in STATES[:3]:
            tone = state if count and state in STATES[:3] else ""
            yield figure(state.capitalize(), f"{count:,}", tone=tone, note=note)
    spent, _, unpriced, unsettled = found.costs
    notes = [f"with {found.replaced:,} earlier request{'s' if found.replaced > 1 else ''}"] if found.replaced else []
    notes += [f"{unpriced:,} without a reported cost"] if unpriced else []
    notes += [f"up to {unsettled:,} more request{'s' if unsettled > 1 else ''} may be charged"] if unsettled else []
    yield figure("Spent", dollars(spent), note="; ".join(notes))
    if (rate := found.rate) is not None:
        number, unit = (rate, "a second") if rate >= 1 else (rate * 60, "a minute")
        yield figure("Rate", f"{number:,.1f}", unit=unit)
    for label, share in (("p50 to result", 0.5), ("p95 to result", 0.95)):
        if (seconds := found.seconds(share)) is not None:
            yield figure(label, f"{seconds:,.2f}", unit="s")


# --- files


def _is_ours(page: Path) -> bool:
    with page.open("rb") as file:
        return _MARK in file.read(_MARKED_WITHIN)


def _put(folder: Path, suffix: str, data: bytes, prefix: str = "report-") -> str:
    """Write a file whose name carries a digest of its content; the name."""
    name = f"{prefix}{hashlib.sha256(data).hexdigest()[:16]}.{suffix}"
    if not (folder / name).exists():
        with replacing(folder / name) as unfinished:
            unfinished.write_bytes(data)
    return name


def _sweep(folder: Path, used: set[str]) -> None:
    """Remove the files of older pages."""
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another report removes it too
            if path.name not in used and path.is_file() and path.lstat().st_mtime < time.time() - _KEPT:
                path.unlink()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise InvalidInputError(f"The report cannot be written to {str(folder)!r}: {why}") from error
