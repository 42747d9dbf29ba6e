"""`flux-klein batch`: a file of prompts, gone on with after any end. The work itself is in `batchrun`."""

import asyncio
import io
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from flux_klein_async.batch.estimate import Estimate
from flux_klein_async.batch.manifest import Manifest
from flux_klein_async.batch.rows import BadRow, Kind, kind_of, read_rows
from flux_klein_async.cli import service, stopping
from flux_klein_async.cli.batchplan import BAD_KEPT, Preview, forecast
from flux_klein_async.cli.batchrun import BatchPlan, BatchRun
from flux_klein_async.cli.exits import ExitCode
from flux_klein_async.cli.feed import Feed
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
from flux_klein_async.cli.progress import metered
from flux_klein_async.cli.records import json_line
from flux_klein_async.cli.render import Screen
from flux_klein_async.cli.stopping import Stop
from flux_klein_async.cli.tally import Tally
from flux_klein_async.cli.text import duration
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import JournalError
from flux_klein_async.journal.budget import Budget, dollars, generation_price
from flux_klein_async.journal.sqlite import Account, SqliteJournal
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE
from flux_klein_async.polling.adaptive import AdaptivePolling

__all__ = ["batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The options, checked."""

    file: str
    kind: Kind
    journal: Path
    output_dir: Path
    plan: BatchPlan
    model: str
    timeout: float
    max_spend: float | None
    retry_failed: bool
    resubmit_uncertain: bool
    new_token: bool
    dry_run: bool
    base_url: str | None
    emulator: bool
    quiet: bool


def batch(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Prompts: .txt, .jsonl, .csv; - reads standard input.", show_default=False),
    ],
    *,
    journal: Annotated[
        Path | None,
        typer.Option(help="Where orders are written down; DIR/journal.sqlite if not given.", metavar="PATH"),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Where files and manifest.jsonl go; made if need be.", metavar="DIR")
    ] = Path("out"),
    kind: Annotated[
        Kind | None, typer.Option("--format", help="How FILE is written; by its name, and txt for -, if not given.")
    ] = None,
    concurrency: Concurrency = 64,
    max_spend: Annotated[
        float | None,
        typer.Option(min=0, help="USD that all runs on this journal together may spend.", metavar="USD"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and say what it would cost.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Submit again what failed; failures may have been charged.")
    ] = False,
    resubmit_uncertain: Annotated[
        bool,
        typer.Option("--resubmit-uncertain", help="Submit again what may have been accepted and paid."),
    ] = False,
    new_token: Annotated[
        bool,
        typer.Option("--new-token", help="The token was renewed: go on with what was submitted with the old one."),
    ] = False,
    model: ModelId = KLEIN_4B_TEXT_TO_IMAGE,
    timeout: Timeout = 120.0,
    no_download: NoDownload = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    emulator: Emulated = False,
    base_url: BaseUrl = None,
) -> None:
    """Generate a picture for each line of a file; go on after any end.

    A .txt file has a prompt a line. A .jsonl file has an object a line and a .csv file named columns: prompt, and if
    you like width, height (pixels) and id, by which a line is known again whatever else changes; without one it is
    known by its content. Nothing is submitted before the first 1,000 lines were checked.

    Every order is written into the journal before it leaves. Run the same command again after any end, a crash
    included: what is done is not submitted again, what was submitted is waited for, missing files are fetched. A line
    whose submit may or may not have been accepted is told and left alone. DIR/manifest.jsonl says what became of each.

    Ctrl-C submits nothing more, cancels what is queued and waits up to 30 s for what runs; a second one leaves at once.

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
        raise typer.BadParameter("--emulator has an address of its own; leave out --base-url")
    directory = output_dir if dry_run else writable(output_dir)
    job = _Job(
        file=file,
        kind=kind or (Kind.TXT if file == "-" else kind_of(file)),
        journal=journal or directory / "journal.sqlite",
        output_dir=directory,
        plan=BatchPlan(concurrency=concurrency, directory=None if no_download else directory, as_json=as_json),
        model=model,
        timeout=timeout,
        max_spend=max_spend,
        retry_failed=retry_failed,
        resubmit_uncertain=resubmit_uncertain,
        new_token=new_token,
        dry_run=dry_run,
        base_url=base_url,
        emulator=emulator,
        quiet=quiet,
    )
    stream = _opened(file)
    raise typer.Exit(stopping.run(lambda stop: _fed(job, stream, stop)))


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


async def _fed(job: _Job, stream: BinaryIO, stop: Stop) -> ExitCode:
    with Feed(read_rows(stream, job.kind), stream.close) as feed:
        return await _run(job, feed, stop)


async def _run(job: _Job, feed: Feed, stop: Stop) -> ExitCode:
    screen = Screen(quiet=job.quiet)
    screen.when_reader_gone(lambda: stop.because(ExitCode.READER_GONE))
    stop.before_leaving = screen.restore
    if bad := await feed.first_bad():
        return _refuse(bad, screen)
    tally, policy = Tally(), AdaptivePolling(store=_store(job))
    async with AsyncExitStack() as stack:
        address: service.Address = (job.base_url, None)
        if job.emulator:
            address = await stack.enter_async_context(service.emulated())
            screen.note("Emulated: the pictures are placeholders, and nothing is charged.")
        token = service.token_of(address)  # first: without one no journal is made either
        journal = await _journal(job, stack)
        account = journal.for_account(token) if journal is not None else None
        if account is not None and not job.emulator:
            await _check_token(job, account)
        client = service.build_client(
            address,
            model=job.model,
            timeout=job.timeout,
            concurrency=job.plan.concurrency,
            on_event=tally.note,
            polling=policy,
            journal=journal,
            budget=None if job.max_spend is None else Budget(job.max_spend),
        )
        await stack.enter_async_context(client)
        if job.dry_run:
            preview = account.items().preview if account is not None else None
            return await _preview(job, feed, client, policy, preview, screen)
        # In a thread, as it may be long; what is there already is not written again.
        opened = asyncio.get_running_loop().run_in_executor(None, Manifest, job.output_dir / "manifest.jsonl")
        manifest = stack.enter_context(await opened)
        tally.total = feed.total if feed.total is not None else await _rough_total(job)
        begun = asyncio.get_running_loop().time()
        async with metered(screen, tally):
            code = await BatchRun(client, tally, screen, job.plan, manifest).through(feed, stop)
        screen.say(_summary(job, tally, asyncio.get_running_loop().time() - begun))
        if stop.code is not None or tally.taken or tally.left:
            screen.say("Run the same command again to go on.")
    return code


def _store(job: _Job) -> Path | None:
    return None if job.emulator else service.store_path(os.environ, job.base_url)


async def _journal(job: _Job, stack: AsyncExitStack) -> SqliteJournal | None:
    """The journal, open; none for a dry run that would have to make it."""
    if job.dry_run and not job.journal.exists():
        return None
    if not job.dry_run:
        job.output_dir.mkdir(parents=True, exist_ok=True)
    return await stack.enter_async_context(
        SqliteJournal(job.journal, retry_failed=job.retry_failed, resubmit_uncertain=job.resubmit_uncertain)
    )


async def _check_token(job: _Job, account: Account) -> None:
    """Whoever goes on with a renewed token must not pay for everything again; what was emulated was never paid for."""
    ignored = (service.EMULATED_TOKEN,)
    if job.new_token:
        await account.take_over(ignored=ignored)
    elif await account.is_stranger(ignored=ignored):
        raise JournalError(
            f"The journal {job.journal} was written with another token, and all would be paid for again: give "
            "--new-token if this one is of the same account, or else another --journal"
        )


async def _rough_total(job: _Job) -> int | None:
    """Lines of a file, for the progress; its rows, if fewer, are known at its end. None for what is no plain file."""
    return await asyncio.get_running_loop().run_in_executor(None, _line_ends, Path(job.file))


def _line_ends(path: Path) -> int | None:
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return sum(piece.count(b"\n") for piece in iter(lambda: stream.read(1 << 20), b""))


def _refuse(bad: list[BadRow], screen: Screen) -> ExitCode:
    for row in bad[:BAD_KEPT]:
        screen.note(f"Line {row.line}: {row.problem}")
    if len(bad) > BAD_KEPT:
        screen.note(f"{len(bad) - BAD_KEPT} more.")
    screen.note("Nothing was submitted.")
    return ExitCode.BAD_INPUT


async def _preview(
    job: _Job, feed: Feed, client: FluxKleinClient, policy: AdaptivePolling, preview: Preview | None, screen: Screen
) -> ExitCode:
    """Say what a run would do; nothing is made."""
    price = generation_price(await client.get_model())
    found = await forecast(feed, job.model, Estimate(lambda pixels: policy.median(job.model, pixels)), preview)
    for row in found.first_bad:
        screen.note(f"Line {row.line}: {row.problem}")
    record, lines = found.record(job.plan.concurrency, price), found.lines(job.plan.concurrency, price)
    for line in [json_line(record)] if job.plan.as_json else lines:
        screen.out(line)
    return ExitCode.BAD_INPUT if found.bad else ExitCode.OK if price is not None else ExitCode.OTHER


def _summary(job: _Job, tally: Tally, seconds: float) -> str:
    total = "" if tally.total is None else f" of {tally.total:,}"
    counts = {
        "done before": tally.from_journal,
        "failed": tally.failed,
        "cancelled": tally.cancelled,
        "uncertain": tally.uncertain,
        "under way in another run": tally.taken,
        "left to the next run": tally.left,
        "bad": tally.bad,
    }
    told = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
    where = f" in {job.output_dir}" if job.plan.directory is not None and tally.done else ""
    spent = "" if job.emulator else f"; {dollars(tally.cost_usd)} spent"
    made = tally.done - tally.from_journal
    rate = f", {made / seconds:.1f} a second" if made and seconds > 0 else ""
    polls = f", {tally.polls / tally.generations:.1f} polls each" if tally.generations else ""
    return f"{tally.done:,}{total} done{where}{told}{spent}{rate}{polls}, {duration(seconds)}"
