"""`flux-klein batch`: a file of prompts, resumed however a run ends."""

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack, aclosing, closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import typer

from flux_klein_async.api.urls import host_of, is_loopback, parsed
from flux_klein_async.batch.formats import FileFormat, format_of, mistaken
from flux_klein_async.batch.manifest import (
    MANIFEST,
    Manifest,
    Record,
    every_record,
    may_be_paid,
    recognised,
    unreached,
)
from flux_klein_async.batch.rows import Columns, DiskMap, Row, count_rows, next_rows, read_ahead, read_rows
from flux_klein_async.cli import connect, page, run, signals
from flux_klein_async.cli.commands import Names
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.forecast import BAD_SHOWN, CHECKED_FIRST, NEW, Estimate, Forecast, Money
from flux_klein_async.cli.generate import CatalogueFields, catalogue_fields, checked_fields
from flux_klein_async.cli.output import Screen
from flux_klein_async.errors import FluxKleinError, InvalidInputError, JournalError
from flux_klein_async.journal.base import Claim
from flux_klein_async.journal.budget import Budget
from flux_klein_async.journal.reader import exists, locate
from flux_klein_async.journal.sqlite import SqliteLocation
from flux_klein_async.journal.states import Action
from flux_klein_async.journal.writer import EMULATED_TOKEN, JournalAccount, Spending, StoredJournal
from flux_klein_async.operations.inputs import digest_files
from flux_klein_async.operations.items import all_there
from flux_klein_async.operations.names import safe_stem, slug
from flux_klein_async.operations.submit import TYPED, prepare
from flux_klein_async.options import Limits
from flux_klein_async.paths import user_path
from flux_klein_async.polling.adaptive import AdaptivePolling

__all__ = ["batch"]

_AT_ONCE = 256  # rows about which the journal is asked together
_FORECAST_WITHIN = 2.0  # seconds for asking the journal about rows before the first submit

Preview = Callable[[str, bytes, str | None], Awaitable[Claim]]


def batch(**options: Any) -> ExitCode:
    """Generate a picture for each line of a file."""
    asked = _Batch(**options)
    return signals.run(asked.work, quiet=asked.quiet, stopped="Nothing was submitted.")


@dataclass(kw_only=True)
class _Batch(run.Options):
    """What the command takes, and what it does."""

    file: str
    journal: str | None
    file_format: FileFormat | None
    prompt_column: str | None
    ignore_extra_columns: bool
    allow_unlisted: bool
    max_spend: float | None
    dry_run: bool
    retry_failed: bool
    resubmit_uncertain: bool
    new_token: bool
    names: Names
    report: bool | None

    def __post_init__(self) -> None:
        """Refuse bad options before the file is read."""
        run.check_writable(self.output_dir)
        named = self.journal
        self._place = locate(self.output_dir / "journal.sqlite") if named is None else connect.journal(named)
        if isinstance(self._place, SqliteLocation):
            folder = self._place.path.parent
            run.check_writable(folder, "--journal")
            if named is not None and not folder.exists():
                raise typer.BadParameter(f"make the directory {str(folder)!r} first", param_hint="--journal")
        self._format = self.file_format or _format_of(self.file)
        self._columns = _columns(self._format, self.prompt_column, ignore_extra=self.ignore_extra_columns)
        checked_fields(self.model, {}, "a prompt", self.fields)
        self._found = self._rows(_opened(self.file))

    async def work(self, screen: Screen, stop: signals.Stop) -> ExitCode:
        """Check the first rows, say what a run would do, and do it."""
        async with AsyncExitStack() as stack:
            rest = await stack.enter_async_context(aclosing(read_ahead(self._found)))
            first = await next_rows(rest, CHECKED_FIRST)
            if not first:
                where = "standard input" if self.file == "-" else repr(self.file)
                raise InvalidInputError(f"There is no prompt in {where}")
            whole = len(first) < CHECKED_FIRST
            if self.model in TYPED and (bad := self._refused(first)):  # else the catalogue finds more
                return _told(bad, screen, whole=whole)
            service = await stack.enter_async_context(connect.connected(screen, self.base_url, emulator=self.emulator))
            entry = await self._entry(service, screen)
            first = [entry.fitted(row) for row in first]
            if bad := self._refused(first):
                return _told(bad, screen, whole=whole)
            is_local = connect.is_local(service.base_url)
            there = await asyncio.to_thread(exists, self._place)
            account = await self._account(stack, service) if there else None
            is_free = self.emulator or (is_local and service.token == EMULATED_TOKEN)
            await self._check_paid(first, entry, account, screen, is_local=is_local, is_free=is_free)
            if not self.dry_run:  # a run that is refused makes nothing
                self.output_dir.mkdir(parents=True, exist_ok=True)
                account = account or await self._account(stack, service)
            spent = await account.spent(self.model) if account is not None else Spending(settled_usd=0.0, held_usd=0.0)
            totals = run.Totals(charged=not self.emulator, bound_usd=self.max_spend, spent_usd=spent.usd)
            polling = AdaptivePolling(store=service.store)
            budget = None if self.max_spend is None else Budget(self.max_spend)
            client = await stack.enter_async_context(
                self.client(service, totals, polling=polling, journal=account, budget=budget)
            )
            rows = _chained(first, rest, entry)
            preview = account.items().preview if account is not None else None
            forgets = is_local and not self.dry_run
            judge = partial(self._judged, preview=preview, forgets=forgets, reads=self.dry_run)
            if self.dry_run:
                money = Money.of(await client.get_model(), self.max_spend, spent)
                forecast = Forecast(Estimate(lambda pixels: polling.quantile(self.model, pixels)), money)
                await forecast.add(rows, judge, screen.note)
                refused = any(row.problem for row in first)
                return forecast.show(screen, self.concurrency, as_json=self.as_json, refused=refused)
            manifest = stack.enter_context(await asyncio.to_thread(Manifest, self.output_dir / MANIFEST))
            totals.total = len(first) if whole else await asyncio.to_thread(_count, self.file, self._format)
            if not self.quiet:
                money = Money.of(await run.entry_of(client), self.max_spend, spent)
                forecast = Forecast(Estimate(), money)
                known = await stack.enter_async_context(aclosing(read_ahead(self._again(first, entry))))
                until = asyncio.get_running_loop().time() + _FORECAST_WITHIN
                await forecast.add(known, judge, until=until)
                totals.spent_usd = money.spent
                totals.recalled, totals.bad, totals.price_usd = forecast.recalled, forecast.bad, money.price
                if not self.emulator:
                    screen.say(forecast.announced(totals.total))
            code = await run.Run(
                client=client,
                totals=totals,
                screen=screen,
                stop=stop,
                options=self,
                to_name=None if self.names is Names.REQUEST else partial(_named, self.names),
                manifest=manifest,
                spending=None if account is None else partial(account.spent, self.model),
            ).generate(rows)
            if totals.done > 0 and not self.no_download if self.report is None else self.report:
                await page.after_batch(self.output_dir, screen, stop, await self._unreached(first, entry, totals))
            return code if stop.code is None else stop.code

    def _refused(self, first: list[Row]) -> list[Row]:
        """The bad ones of the first rows, for which a run begins nothing; a dry run goes on and counts them."""
        return [] if self.dry_run else [row for row in first if row.problem]

    async def _entry(self, service: connect.Address, screen: Screen) -> CatalogueFields:
        """What the catalogue says of the fields, before anything is made; a new token is tried before it takes over.

        Raises:
            AuthenticationError: The service refuses the new token.
            InvalidInputError: A field that an option gives is not listed.
        """
        entry = CatalogueFields()
        if self.model in TYPED and not self.new_token:
            return entry
        async with self.client(service, run.Totals()) as client:
            if self.new_token:
                await client.get_model()
            if self.model not in TYPED:
                entry = await catalogue_fields(client, self.model, screen, allow_unlisted=self.allow_unlisted)
        entry.check(self.fields, is_whole=False)
        return entry

    def _rows(self, stream: BinaryIO) -> Generator[Row, None, None]:
        """The rows of the file; what a row does not say itself is said by the options."""
        # A relative path in a row of standard input begins at the working directory, as "-" has no folder.
        folder = user_path(self.file).parent
        with stream:
            for row in read_rows(stream, self._format, model=self.model, folder=folder, columns=self._columns):
                if row.number == 0 and self.file_format is None and self._format is FileFormat.TXT and not row.problem:
                    row = row._replace(problem=mistaken(row.fields["prompt"]))  # noqa: PLW2901
                # The row's own fields come first, in its order, and win.
                yield row if row.problem else row._replace(fields={**row.fields, **(self.fields | row.fields)})

    def _again(self, first: list[Row], entry: CatalogueFields) -> Generator[Row, None, None]:
        """All rows of a file that can be read twice, else the first ones."""
        if len(first) < CHECKED_FIRST or not user_path(self.file).is_file():
            return (row for row in first)
        rows = self._rows(_opened(self.file))
        return (entry.fitted(row) for row in rows)

    async def _unreached(self, first: list[Row], entry: CatalogueFields, totals: run.Totals) -> int | None:
        """How many good rows have no line in the manifest after the run; None if they cannot be read again."""
        if totals.total == totals.reached:
            return 0
        if len(first) == CHECKED_FIRST and not user_path(self.file).is_file():
            return None

        def rows() -> Iterator[Row]:  # opens the file when it is read
            yield from (row for row in self._again(first, entry) if row.problem is None)

        try:
            return await asyncio.to_thread(unreached, self.output_dir / MANIFEST, rows())
        except (FluxKleinError, typer.BadParameter):  # the page can be written without the number
            return None

    async def _check_paid(
        self,
        first: list[Row],
        entry: CatalogueFields,
        account: JournalAccount | None,
        screen: Screen,
        *,
        is_local: bool,
        is_free: bool,
    ) -> None:
        """Refuse to pay again for a row that the manifest has and the journal does not know; an emulator says so.

        Raises:
            typer.BadParameter: There is one.
        """
        path = self.output_dir / MANIFEST
        if not await asyncio.to_thread(os.path.isfile, path):
            return
        with closing(DiskMap()) as unknown:
            count, uncertain = await self._unknown(path, account, unknown, is_local=is_local)
            if not count:
                return
            preview = account.items().preview if account is not None else None
            async with aclosing(read_ahead(self._again(first, entry))) as rows:
                async for row in rows:
                    if row.problem or unknown.get(recognised(row.id, row.fields)) is None:
                        continue
                    judged, claim = await self._judged(row, preview=preview, forgets=False, reads=True)
                    if claim is not None and claim.action is Action.SUBMIT and not judged.problem:
                        break
                else:
                    return
        listed = f"{str(path)!r} lists {count:,} row{'' if count == 1 else 's'} that the journal {self._place} does not"
        listed += f" know, among them line {row.line:,} of this file"
        if is_free:
            screen.note(f"{listed}: made again, which costs nothing.")
            return
        if uncertain:
            listed += "; their submits are uncertain, and --resubmit-uncertain repeats them"
        raise typer.BadParameter(
            f"{listed}, and this run would pay for them again: name that run's journal, or another "
            "--output-dir to pay again",
            param_hint="--journal",
        )

    async def _unknown(
        self, path: Path, account: JournalAccount | None, unknown: DiskMap, *, is_local: bool
    ) -> tuple[int, bool]:
        """How many rows of the manifest may be paid for and are unknown to the journal; whether all are uncertain."""
        count, uncertain, records = 0, True, every_record(path)
        while some := await asyncio.to_thread(list, islice(records, _AT_ONCE)):
            paid = [record for record in some if self._counts(record)]
            ids = {name for record in paid if (name := str(record["request_id"])).isascii() and name.isprintable()}
            known = await account.known_requests(ids) if account is not None and ids else set()
            for record in paid:
                if str(record["request_id"]) not in known and (is_local or not _is_emulated(record)):
                    key = recognised(record["id"], record["input"])
                    count += unknown.get(key) is None
                    uncertain = uncertain and record["request_id"] is None
                    unknown.put(key, 1)
        return count, uncertain

    def _counts(self, record: Record) -> bool:
        """Whether a record is of a row that another submit would pay for again, unasked."""
        asked = self.resubmit_uncertain and record["request_id"] is None
        return may_be_paid(record) and not asked

    async def _account(self, stack: AsyncExitStack, service: connect.Address) -> JournalAccount:
        """What the journal holds of this account; the journal is made if there is none.

        Refuses an account that the journal does not know: it would pay for everything again.
        """
        store = StoredJournal(
            self._place,
            retry_failed=self.retry_failed or self.emulator,
            resubmit_uncertain=self.resubmit_uncertain or self.emulator,
        )
        await stack.enter_async_context(store)
        if self.emulator:  # is free
            return store.for_account(service.token, connect.EMULATED_SERVICE)
        account = store.for_account(service.token, service.base_url)
        if self.new_token:
            await account.take_over()
        elif await account.is_stranger():
            raise JournalError(
                f"The journal {self._place} was written with another token or for another address of the service, and "
                "this run would pay for everything again: if you renewed your token or the service moved, pass "
                "--new-token; for another account or service, name another --journal"
            )
        return account

    async def _judged(
        self, row: Row, *, preview: Preview | None, forgets: bool, reads: bool
    ) -> tuple[Row, Claim | None]:
        """A row, and the claim by which a run would know what to do with it; None if that is not known.

        It is not known if the row has files that are not read (`reads`); nor if the run would ask a service that
        `forgets` its requests, as an emulator does when it is started again.
        """
        if row.problem or preview is None:
            return row, NEW
        prepared = prepare(row.fields, model=None, width=None, height=None, default_model=self.model)
        try:
            if prepared.body.files:
                if not reads:
                    return row, None
                await asyncio.to_thread(digest_files, prepared.body, Limits())
            claim = await preview(prepared.model, prepared.body.content, row.id)
        except InvalidInputError as error:  # of its files; or the journal knows another input with this id
            return row._replace(problem=str(error)), NEW
        return row, None if forgets and await asyncio.to_thread(_needs_service, claim, self.directory) else claim


def _is_emulated(record: Record) -> bool:
    """Whether an emulator made the files of a record."""
    urls = record.get("urls")
    hosts = list[str | None]()
    with suppress(ValueError, TypeError):
        hosts = [host_of(parsed(url)) for url in urls] if isinstance(urls, list) else []
    return bool(hosts) and all(host is not None and is_loopback(host) for host in hosts)


def _named(names: Names, row: Row) -> str:
    """The stem of a row's files: its id, or its index in the file and the first words of its prompt."""
    stem = safe_stem(row.id) if names is Names.ID and row.id is not None else ""
    return stem or "-".join(filter(None, (f"{row.number:04d}", slug(str(row.fields.get("prompt", ""))))))


def _format_of(file: str) -> FileFormat:
    if file == "-":
        return FileFormat.TXT
    if user_path(file).is_dir():
        raise typer.BadParameter(f"{file!r} is a directory: name a file of prompts")
    return format_of(file)


def _columns(file_format: FileFormat, prompt: str | None, *, ignore_extra: bool) -> Columns:
    if (prompt is not None or ignore_extra) and file_format is not FileFormat.CSV:
        raise typer.BadParameter("only .csv files have columns", param_hint="--prompt-column, --ignore-extra-columns")
    return Columns("prompt" if prompt is None else prompt, ignore_extra)


def _opened(file: str) -> BinaryIO:
    if file == "-" and sys.stdin is None:
        raise typer.BadParameter("standard input is closed")
    try:
        if file == "-":
            # Not `sys.stdin` itself: at its end the interpreter would wait for a thread that reads it.
            return open(sys.stdin.fileno(), "rb", closefd=False)
        return open(user_path(file), "rb")  # noqa: PTH123  # its reader closes it
    except io.UnsupportedOperation:
        return sys.stdin.buffer  # not a file
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{file!r} cannot be read: {getattr(error, 'strerror', error)}") from None


async def _chained(first: list[Row], rest: AsyncIterator[Row], entry: CatalogueFields) -> AsyncIterator[Row]:
    for row in first:
        yield row
    async for row in rest:
        yield entry.fitted(row)


def _count(file: str, file_format: FileFormat) -> int | None:
    """How many rows a file has, for the progress display; None for anything but a plain file."""
    if not user_path(file).is_file():
        return None
    with open(user_path(file), "rb") as stream:  # noqa: PTH123
        return count_rows(stream, file_format)


def _told(bad: list[Row], screen: Screen, *, whole: bool) -> ExitCode:
    shown = [row for row in bad if not row.is_told][:BAD_SHOWN]
    for row in shown:
        screen.note(f"{row.place}: {row.problem}")
    if len(bad) > len(shown):
        screen.note(f"{len(bad) - len(shown)} more.")
    unread = "" if whole else f" --dry-run checks the lines after the first {CHECKED_FIRST:,} too."
    screen.note(f"Nothing was submitted.{unread}")
    return ExitCode.BAD_INPUT


def _needs_service(claim: Claim, directory: Path | None) -> bool:
    """Whether a run asks the service about an item, which an emulator that was restarted has forgotten."""
    if claim.action is Action.RECALL and claim.answer is not None:
        return directory is not None and not (claim.files and all_there(claim.files, directory))
    return claim.action in {Action.RECALL, Action.RESUME}
