"""`flux-klein batch`: a file of prompts, resumed however a run ends. `run` does the work."""

import asyncio
import io
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from flux_klein_async.batch.estimate import Estimate
from flux_klein_async.batch.manifest import Manifest, json_line
from flux_klein_async.batch.rows import BadRow, FileFormat, Row, kind_of, read_rows
from flux_klein_async.batch.stream import RowStream
from flux_klein_async.cli import connect, stopping
from flux_klein_async.cli.exits import ExitCode
from flux_klein_async.cli.output import Screen, duration
from flux_klein_async.cli.parameters import (
    AsJson,
    BaseUrl,
    Concurrency,
    Emulated,
    ModelId,
    NoDownload,
    Quiet,
    Timeout,
    writable,
)
from flux_klein_async.cli.run import RunOptions, Totals, connected, run_rows
from flux_klein_async.cli.stopping import Stop
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import InvalidInputError, JournalError
from flux_klein_async.journal.base import Action
from flux_klein_async.journal.budget import Budget, dollars, generation_price
from flux_klein_async.journal.sqlite import SqliteJournal
from flux_klein_async.journal.writer import JournalAccount
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE
from flux_klein_async.operations.submit import prepare
from flux_klein_async.polling.adaptive import AdaptivePolling

__all__ = ["batch"]


_BAD_SHOWN = 20  # bad lines that are printed one by one
_AT_ONCE = 256  # rows that the journal is asked for together

Preview = Callable[[str, bytes, str | None], Awaitable[Action]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """The options of a batch alone, checked."""

    file: str
    kind: FileFormat
    journal: Path
    output_dir: Path
    max_spend: float | None
    retry_failed: bool
    resubmit_uncertain: bool
    new_token: bool
    dry_run: bool


def batch(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Prompts: .txt, .jsonl, .csv; - reads standard input.", show_default=False),
    ],
    *,
    journal: Annotated[
        Path | None,
        typer.Option(help="The journal; DIR/journal.sqlite if not given.", metavar="PATH"),
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Where files and manifest.jsonl go.", metavar="DIR")] = Path("out"),
    kind: Annotated[
        FileFormat | None, typer.Option("--format", help="The format of FILE; by its name, txt for -, if not given.")
    ] = None,
    concurrency: Concurrency = 64,
    max_spend: Annotated[
        float | None,
        typer.Option(min=0, help="USD that all runs on this journal together may spend.", metavar="USD"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and print what it would cost.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Submit failed lines again; they may have been charged.")
    ] = False,
    resubmit_uncertain: Annotated[
        bool,
        typer.Option("--resubmit-uncertain", help="Submit uncertain lines again; they may have been paid."),
    ] = False,
    new_token: Annotated[
        bool,
        typer.Option("--new-token", help="The token was renewed: resume what the old one submitted."),
    ] = False,
    model: ModelId = KLEIN_4B_TEXT_TO_IMAGE,
    timeout: Timeout = 120.0,
    no_download: NoDownload = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    emulator: Emulated = False,
    base_url: BaseUrl = None,
) -> None:
    """Generate a picture for each line of a file.

    Run the same command again to resume it.

    A .txt file has a prompt a line. A .jsonl file has an object a line and a .csv file named columns: prompt, and
    optionally width, height (pixels) and id, which recognises a line whatever else changes; a line without an id is
    recognised by its content. Nothing is submitted before the first 1,000 lines are checked.

    The journal records every submit before it is sent. However a run ends, the same command again submits nothing
    twice, waits for what was submitted and downloads missing files. A submit with an unknown outcome is reported and
    never resubmitted. DIR/manifest.jsonl says what happened to each line.

    Ctrl-C submits nothing more, cancels what is queued and waits up to 30 s for running generations; press it again
    to quit at once.

    \b
    Examples:
      flux-klein batch prompts.txt --emulator
      flux-klein batch prompts.csv --dry-run
      flux-klein batch prompts.jsonl --journal run.sqlite --output-dir out --max-spend 25
      generate-prompts | flux-klein batch - --no-download --json > done.jsonl

    \b
    Exit codes (the worst line decides, in this order after 0):
      0 all done    77 no access (token, balance)    69 service unreachable or in trouble
      75 too late or too many, try again    65 bad input    1 other    64 usage    130 Ctrl-C
    """  # noqa: D301  # \b: what follows is not to be wrapped
    if emulator and base_url is not None:
        raise typer.BadParameter("--emulator has its own address; leave out --base-url")
    folder = output_dir if dry_run else writable(output_dir)
    job = RunOptions(
        model=model,
        concurrency=concurrency,
        timeout=timeout,
        directory=None if no_download else folder,
        as_json=as_json,
        quiet=quiet,
        emulator=emulator,
        base_url=base_url,
    )
    options = _Batch(
        file=file,
        kind=kind or (FileFormat.TXT if file == "-" else kind_of(file)),
        journal=journal or folder / "journal.sqlite",
        output_dir=folder,
        max_spend=max_spend,
        retry_failed=retry_failed,
        resubmit_uncertain=resubmit_uncertain,
        new_token=new_token,
        dry_run=dry_run,
    )
    stream = _opened(file)

    async def body(stop: Stop) -> ExitCode:
        with RowStream(read_rows(stream, options.kind), stream.close) as rows:
            return await _run(job, options, rows, stop)

    raise typer.Exit(stopping.run(body))


def _opened(file: str) -> BinaryIO:
    if file == "-" and sys.stdin is None:
        raise typer.BadParameter("standard input is closed")
    try:
        if file == "-":
            # Not `sys.stdin` itself: the interpreter would wait for a thread that reads it when it ends.
            return open(sys.stdin.fileno(), "rb", closefd=False)
        return open(file, "rb")  # noqa: PTH123  # its reader closes it
    except io.UnsupportedOperation:
        return sys.stdin.buffer  # one that is no file
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{file!r} cannot be read: {getattr(error, 'strerror', error)}") from None


async def _run(job: RunOptions, options: _Batch, rows: RowStream, stop: Stop) -> ExitCode:
    screen = Screen(quiet=job.quiet)
    screen.when_reader_gone(lambda: stop.because(ExitCode.READER_GONE))
    stop.before_leaving = screen.restore
    if bad := await rows.first_bad():
        return _refuse(bad, screen)
    totals = Totals()
    polling = AdaptivePolling(store=None if job.emulator else connect.store_path(os.environ, job.base_url))
    async with AsyncExitStack() as stack:
        address: connect.Address = (job.base_url, None)
        if job.emulator:
            address = await stack.enter_async_context(connect.emulated())
        token = connect.token_of(address)  # first: without a token no journal is made
        journal = await _journal(options, stack)
        account = journal.for_account(token) if journal is not None else None
        if account is not None and not job.emulator:
            await _check_token(options, account)
        budget = None if options.max_spend is None else Budget(options.max_spend)
        client = await stack.enter_async_context(
            connected(job, screen, totals, address, polling=polling, journal=journal, budget=budget)
        )
        if options.dry_run:
            preview = account.items().preview if account is not None else None
            estimate = Estimate(lambda pixels: polling.median(job.model, pixels))
            return await _dry_run(job, rows, client, estimate, preview, screen)
        # In a thread: it may be long. Lines that are there already are not written again.
        opened = asyncio.get_running_loop().run_in_executor(None, Manifest, options.output_dir / "manifest.jsonl")
        manifest = stack.enter_context(await opened)
        totals.total = rows.total if rows.total is not None else await _rough_total(options.file)
        return await run_rows(rows, client, job, totals, screen, stop, manifest=manifest)


async def _journal(options: _Batch, stack: AsyncExitStack) -> SqliteJournal | None:
    """The journal, open; None for a dry run that would have to make it."""
    if options.dry_run and not options.journal.exists():
        return None
    if not options.dry_run:
        options.output_dir.mkdir(parents=True, exist_ok=True)
    return await stack.enter_async_context(
        SqliteJournal(options.journal, retry_failed=options.retry_failed, resubmit_uncertain=options.resubmit_uncertain)
    )


async def _check_token(options: _Batch, account: JournalAccount) -> None:
    """Refuse a token that the journal does not know: it would pay for everything again. The emulator's cost nothing."""
    ignored = (connect.EMULATED_TOKEN,)
    if options.new_token:
        await account.take_over(ignored=ignored)
    elif await account.is_stranger(ignored=ignored):
        raise JournalError(
            f"The journal {options.journal} was written with another token, and this run would pay for everything "
            "again: after renewing your token, pass --new-token; for another account, name another --journal"
        )


async def _rough_total(file: str) -> int | None:
    """The lines of a file, for the progress display; None for anything but a plain file."""
    return await asyncio.get_running_loop().run_in_executor(None, _line_ends, Path(file))


def _line_ends(path: Path) -> int | None:
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return sum(piece.count(b"\n") for piece in iter(lambda: stream.read(1 << 20), b""))


def _refuse(bad: list[BadRow], screen: Screen) -> ExitCode:
    for row in bad[:_BAD_SHOWN]:
        screen.note(f"Line {row.line}: {row.problem}")
    if len(bad) > _BAD_SHOWN:
        screen.note(f"{len(bad) - _BAD_SHOWN} more.")
    screen.note("Nothing was submitted.")
    return ExitCode.BAD_INPUT


# --- the dry run


async def _dry_run(
    job: RunOptions,
    rows: RowStream,
    client: FluxKleinClient,
    estimate: Estimate,
    preview: Preview | None,
    screen: Screen,
) -> ExitCode:
    """Print what a run would do; nothing is made."""
    price = generation_price(await client.get_model())
    actions, bad = await _previewed(rows, job.model, estimate, preview, screen)
    seconds = estimate.seconds(job.concurrency) if estimate.count else 0.0
    cost = None if price is None else price * actions[Action.SUBMIT]
    if job.as_json:
        counts = {action.name.lower(): actions[action] for action in Action}
        usd = None if cost is None else float(cost)
        screen.out(json_line({**counts, "bad": bad, "cost_usd": usd, "seconds": round(seconds, 3)}))
    else:
        for line in _forecast(actions, bad, price, job.concurrency, seconds):
            screen.out(line)
    return ExitCode.BAD_INPUT if bad else ExitCode.OK if price is not None else ExitCode.OTHER


async def _previewed(
    rows: RowStream, model: str, estimate: Estimate, preview: Preview | None, screen: Screen
) -> tuple[Counter[Action], int]:
    """What the journal would have done with each row, and how many rows are bad; prints the first of those."""
    actions: Counter[Action] = Counter()
    bad = 0

    def refuse(row: BadRow) -> None:
        nonlocal bad
        bad += 1
        if bad <= _BAD_SHOWN:
            screen.note(f"Line {row.line}: {row.problem}")

    async def settle(some: list[Row]) -> None:
        asked = await asyncio.gather(*(_action(row, model, preview) for row in some))
        for row, action in zip(some, asked, strict=True):
            if isinstance(action, BadRow):
                refuse(action)
                continue
            actions[action] += 1
            if action is Action.SUBMIT:
                estimate.add(row.fields)

    waiting: list[Row] = []
    async for row in rows:
        if isinstance(row, BadRow):
            refuse(row)
        else:
            waiting.append(row)
        if len(waiting) >= _AT_ONCE:
            await settle(waiting)
            waiting = []
    await settle(waiting)
    return actions, bad


async def _action(row: Row, model: str, preview: Preview | None) -> Action | BadRow:
    if preview is None:
        return Action.SUBMIT
    prepared = prepare(row.fields, model=None, width=None, height=None, default_model=model)
    try:
        return await preview(prepared.model, prepared.body, row.id)
    except InvalidInputError as error:  # the journal knows another input by this id
        return BadRow(row.line, str(error))


def _forecast(
    actions: Counter[Action], bad: int, price: Decimal | None, concurrency: int, seconds: float
) -> Iterator[str]:
    new = actions[Action.SUBMIT]
    others = {
        "done before": actions[Action.RECALL],
        "to be resumed": actions[Action.RESUME],
        "failed before": actions[Action.FAILED],
        "uncertain": actions[Action.UNCERTAIN],
        "claimed by another run": actions[Action.CLAIMED],
        "bad": bad,
    }
    yield f"{new:,} to submit" + "".join(f", {count:,} {what}" for what, count in others.items() if count)
    if price is None:
        yield "Cost: unknown, the catalogue does not say it"
    else:
        yield f"Cost: {dollars(price * new)}" + (f" ({new:,} x {dollars(price)})" if new > 1 else "")
    yield f"Time: about {duration(seconds)} with {concurrency} at once, without a queue"
