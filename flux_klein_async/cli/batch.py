"""`flux-klein batch`: a file of prompts, resumed however a run ends."""

import asyncio
import io
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, aclosing
from decimal import Decimal
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from flux_klein_async.batch.manifest import Manifest, json_line
from flux_klein_async.batch.rows import Estimate, FileFormat, Row, read_ahead, read_rows
from flux_klein_async.cli import connect, page, run, signals
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen, duration
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import InvalidInputError, JournalError
from flux_klein_async.journal.base import Action
from flux_klein_async.journal.budget import Budget, dollars, generation_price
from flux_klein_async.journal.reader import exists, locate
from flux_klein_async.journal.sql import Location
from flux_klein_async.journal.writer import JournalAccount, StoredJournal
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE
from flux_klein_async.operations.inputs import digest_files
from flux_klein_async.operations.submit import prepare
from flux_klein_async.options import Limits
from flux_klein_async.polling.adaptive import AdaptivePolling

__all__ = ["batch"]

_CHECKED_FIRST = 1000  # rows that are checked before the first of them is submitted
_BAD_SHOWN = 20  # bad lines that are printed one by one
_AT_ONCE = 256  # rows about which the journal is asked together

_WORDS = {
    Action.RECALL: "done before",
    Action.RESUME: "to be resumed",
    Action.FAILED: "failed before",
    Action.UNCERTAIN: "uncertain",
    Action.CLAIMED: "claimed by another run",
}

Preview = Callable[[str, bytes, str | None], Awaitable[Action]]


def batch(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Prompts: .txt, .jsonl or .csv; - reads standard input.")],
    *,
    journal: Annotated[
        Location | None,
        typer.Option(
            parser=connect.journal, help="A file or postgresql://; else DIR/journal.sqlite.", metavar="JOURNAL"
        ),
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Where files and manifest.jsonl go.", metavar="DIR")] = Path("out"),
    file_format: Annotated[FileFormat | None, typer.Option("--format", help="Else by the name of FILE.")] = None,
    concurrency: run.Concurrency = 64,
    max_spend: Annotated[float | None, typer.Option(min=0, help="For all runs on the journal.", metavar="USD")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and print what it would cost.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Submit failed lines again.")] = False,
    resubmit_uncertain: Annotated[
        bool, typer.Option("--resubmit-uncertain", help="Submit uncertain lines again; they may be charged twice.")
    ] = False,
    new_token: Annotated[bool, typer.Option("--new-token", help="Resume what your previous token submitted.")] = False,
    model: connect.ModelId = KLEIN_4B_TEXT_TO_IMAGE,
    timeout: run.Timeout = 120.0,
    no_download: run.NoDownload = False,
    report: Annotated[
        bool | None,
        typer.Option("--report/--no-report", help="Write DIR/index.html; else if a picture was saved."),
    ] = None,
    as_json: run.JsonLines = False,
    quiet: run.Quiet = False,
    emulator: connect.Emulated = False,
    base_url: connect.BaseUrl = None,
) -> None:
    """Generate a picture for each line of a file.

    A .txt file has one prompt per line, a .jsonl file one object per line, a .csv file a header. Fields: prompt, and
    optionally width and height (pixels) and id. The id recognises a line in the next run; a line without one is
    recognised by its content. The first 1,000 lines are checked before anything is submitted.

    For a model other than the klein models a .jsonl line has any field of its input. {"file": "ref.png"} in place of a
    value sends a local file; a relative path begins at the folder of FILE.

    However a run ends, run the same command again to resume it. The journal records every submit before it is sent, so
    nothing is submitted twice. A submit with an unknown outcome is reported, and resubmitted only with
    --resubmit-uncertain.
    DIR/manifest.jsonl says what happened to each line, and DIR/index.html shows it, as flux-klein report does.

    Ctrl-C ends submitting, cancels what is queued and waits up to 30 s for running generations; press it again to quit
    at once.

    \b
    Examples:
      flux-klein batch prompts.txt --emulator
      flux-klein batch prompts.csv --dry-run
      flux-klein batch prompts.jsonl --journal run.sqlite --max-spend 25
      flux-klein batch edits.jsonl --model blackforestlabs/flux-2/dev/edit
      generate-prompts | flux-klein batch - --no-download --json > done.jsonl
    """  # noqa: D301  # \b: what follows is not to be wrapped
    folder = output_dir if dry_run else run.writable(output_dir)
    file_format = file_format or _format_of(file)
    # A relative path in a row of standard input begins at the working directory, as "-" has no folder.
    found = _rows(_opened(file), file_format, model, Path(file).parent)
    place = journal or locate(folder / "journal.sqlite")

    async def body(screen: Screen, stop: signals.Stop) -> ExitCode:
        async with AsyncExitStack() as stack:
            rest = await stack.enter_async_context(aclosing(read_ahead(found)))
            first = [row async for row in _some(rest, _CHECKED_FIRST)]
            if bad := [row for row in first if row.problem]:
                return _refused(bad, screen)
            service = await stack.enter_async_context(connect.connected(screen, base_url, emulator=emulator))
            account = None
            store = StoredJournal(place, retry_failed=retry_failed, resubmit_uncertain=resubmit_uncertain)
            if not dry_run or await asyncio.to_thread(exists, place):  # a dry run makes none
                if not dry_run:
                    folder.mkdir(parents=True, exist_ok=True)
                account = (await stack.enter_async_context(store)).for_account(service.token)
                if not emulator:
                    await _check_token(account, place, new_token=new_token)
            totals, polling = run.Totals(), AdaptivePolling(store=service.store)
            client = await stack.enter_async_context(
                FluxKleinClient(
                    service.token,
                    base_url=service.base_url,
                    model=model,
                    timeout=timeout,
                    limits=Limits(max_in_flight=concurrency),
                    on_event=totals.note,
                    polling=polling,
                    journal=store if account is not None else None,
                    budget=None if max_spend is None else Budget(max_spend),
                )
            )
            rows = _chained(first, rest)
            if dry_run:
                price = generation_price(await client.get_model())
                preview = account.items().preview if account is not None else None
                forecast = _Forecast(Estimate(lambda pixels: polling.median(model, pixels)), screen)
                await forecast.add(rows, model, preview)
                return forecast.show(price, concurrency, as_json=as_json)
            in_thread = asyncio.get_running_loop().run_in_executor  # it may take long
            manifest = stack.enter_context(await in_thread(None, Manifest, folder / "manifest.jsonl"))
            totals.total = len(first) if len(first) < _CHECKED_FIRST else await in_thread(None, _line_ends, file)
            code = await run.Run(
                client=client,
                totals=totals,
                screen=screen,
                stop=stop,
                concurrency=concurrency,
                directory=None if no_download else folder,
                as_json=as_json,
                charged=not emulator,
                manifest=manifest,
            ).generate(rows)
            wanted = totals.done > 0 and not no_download if report is None else report
            if wanted:
                await page.after_batch(folder, screen, stop)
            return code if stop.code is None else stop.code

    raise typer.Exit(signals.run(body, quiet=quiet))


def _format_of(file: str) -> FileFormat:
    """The format of a file, by the suffix of its name."""
    suffix = "txt" if file == "-" else Path(file).suffix.lower().removeprefix(".")
    if suffix not in set(FileFormat):
        known = ", ".join(f".{name}" for name in FileFormat)
        raise InvalidInputError(f"{Path(file).name!r:.80} does not end in {known}; pass --format")
    return FileFormat(suffix)


def _opened(file: str) -> BinaryIO:
    if file == "-" and sys.stdin is None:
        raise typer.BadParameter("standard input is closed")
    try:
        if file == "-":
            # Not `sys.stdin` itself: at its end the interpreter would wait for a thread that reads it.
            return open(sys.stdin.fileno(), "rb", closefd=False)
        return open(file, "rb")  # noqa: PTH123  # its reader closes it
    except io.UnsupportedOperation:
        return sys.stdin.buffer  # not a file
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{file!r} cannot be read: {getattr(error, 'strerror', error)}") from None


def _rows(stream: BinaryIO, file_format: FileFormat, model: str, folder: Path) -> Generator[Row, None, None]:
    with stream:
        yield from read_rows(stream, file_format, model=model, folder=folder)


async def _some(rows: AsyncIterator[Row], count: int) -> AsyncIterator[Row]:
    """The first rows."""
    async for row in rows:
        yield row
        count -= 1
        if count == 0:
            return


async def _chained(first: list[Row], rest: AsyncIterator[Row]) -> AsyncIterator[Row]:
    for row in first:
        yield row
    async for row in rest:
        yield row


async def _check_token(account: JournalAccount, place: Location, *, new_token: bool) -> None:
    """Refuse a token that the journal does not know: it would pay for everything again. The emulator's cost nothing."""
    ignored = (connect.EMULATED_TOKEN,)
    if new_token:
        await account.take_over(ignored=ignored)
    elif await account.is_stranger(ignored=ignored):
        raise JournalError(
            f"The journal {place} was written with another token, and this run would pay for everything again: "
            "if you renewed your token, pass --new-token; for another account, name another --journal"
        )


def _line_ends(file: str) -> int | None:
    """The line ends of a file, for the progress display; None for anything but a plain file."""
    if not Path(file).is_file():
        return None
    with open(file, "rb") as stream:  # noqa: PTH123
        return sum(piece.count(b"\n") for piece in iter(lambda: stream.read(1 << 20), b""))


def _refused(bad: list[Row], screen: Screen) -> ExitCode:
    for row in bad[:_BAD_SHOWN]:
        screen.note(f"Line {row.line}: {row.problem}")
    if len(bad) > _BAD_SHOWN:
        screen.note(f"{len(bad) - _BAD_SHOWN} more.")
    screen.note("Nothing was submitted.")
    return ExitCode.BAD_INPUT


class _Forecast:
    """What a run would do."""

    def __init__(self, estimate: Estimate, screen: Screen) -> None:
        self._estimate = estimate
        self._screen = screen
        self._actions: Counter[Action] = Counter()
        self._bad = 0

    async def add(self, rows: AsyncIterator[Row], model: str, preview: Preview | None) -> None:
        """Count the rows; print the first bad ones."""

        async def judged(row: Row) -> tuple[Row, Action]:
            if row.problem or preview is None:
                return row, Action.SUBMIT
            prepared = prepare(row.fields, model=None, width=None, height=None, default_model=model)
            try:
                if prepared.body.files:
                    await asyncio.to_thread(digest_files, prepared.body, Limits())
                return row, await preview(prepared.model, prepared.body.content, row.id)
            except InvalidInputError as error:  # of its files; or the journal knows another input with this id
                return row._replace(problem=str(error)), Action.SUBMIT

        while some := [row async for row in _some(rows, _AT_ONCE)]:
            for row, action in await asyncio.gather(*map(judged, some)):
                if row.problem:
                    self._bad += 1
                    if self._bad <= _BAD_SHOWN:
                        self._screen.note(f"Line {row.line}: {row.problem}")
                    continue
                self._actions[action] += 1
                if action is Action.SUBMIT:
                    self._estimate.add(row.fields)

    def show(self, price: Decimal | None, concurrency: int, *, as_json: bool) -> ExitCode:
        """Print the counts, the cost and the time."""
        new = self._actions[Action.SUBMIT]
        seconds = self._estimate.seconds(concurrency)
        if as_json:
            counts = {action.name.lower(): self._actions[action] for action in Action}
            usd = None if price is None else float(price * new)
            self._screen.out(json_line({**counts, "bad": self._bad, "cost_usd": usd, "seconds": round(seconds, 3)}))
        else:
            others = {_WORDS[action]: self._actions[action] for action in _WORDS} | {"bad": self._bad}
            listed = "".join(f", {count:,} {what}" for what, count in others.items() if count)
            cost = "unknown, the catalogue does not say it" if price is None else dollars(price * new)
            product = f" ({new:,} x {dollars(price)})" if price is not None and new > 1 else ""
            self._screen.out(f"{new:,} to submit{listed}")
            self._screen.out(f"Cost: {cost}{product}")
            self._screen.out(f"Time: about {duration(seconds)} with {concurrency} at a time, without a queue")
        return ExitCode.BAD_INPUT if self._bad else ExitCode.OK if price is not None else ExitCode.OTHER
