"""`flux-klein batch`: a file of prompts, resumed however a run ends."""

import asyncio
import io
import math
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Iterator
from contextlib import AsyncExitStack, aclosing, closing, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import typer

from flux_klein_async.api.urls import host_of, is_loopback, parsed
from flux_klein_async.batch.estimate import Estimate
from flux_klein_async.batch.formats import FileFormat, format_of
from flux_klein_async.batch.manifest import (
    MANIFEST,
    Manifest,
    Record,
    every_record,
    json_line,
    may_be_paid,
    recognised,
    unreached,
)
from flux_klein_async.batch.rows import Columns, DiskMap, Row, count_rows, read_ahead, read_rows
from flux_klein_async.cli import connect, page, run, signals
from flux_klein_async.cli.commands import Names
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.generate import checked_fields, list_fields, with_lists
from flux_klein_async.cli.output import Screen, duration
from flux_klein_async.errors import FluxKleinError, InvalidInputError, JournalError
from flux_klein_async.journal.base import Claim
from flux_klein_async.journal.budget import Budget, dollars, generation_price
from flux_klein_async.journal.reader import exists, locate
from flux_klein_async.journal.states import Action
from flux_klein_async.journal.writer import JournalAccount, StoredJournal
from flux_klein_async.operations.files import safe_stem, slug
from flux_klein_async.operations.inputs import digest_files
from flux_klein_async.operations.items import all_there
from flux_klein_async.operations.submit import TYPED, prepare
from flux_klein_async.options import Limits
from flux_klein_async.paths import user_path
from flux_klein_async.polling.adaptive import AdaptivePolling

__all__ = ["batch"]

_CHECKED_FIRST = 1000  # rows that are checked before the first of them is submitted
_BAD_SHOWN = 20  # bad lines that are printed one by one
_AT_ONCE = 256  # rows about which the journal is asked together
_FORECAST_WITHIN = 2.0  # seconds for asking the journal about rows before the first submit

_WORDS = {
    Action.RECALL: "done before",
    Action.RESUME: "to be resumed",
    Action.FAILED: "failed before",
    Action.UNCERTAIN: "uncertain",
    Action.CLAIMED: "claimed by another run",
}


_NEW = Claim(item="", action=Action.SUBMIT)
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
        self._format = self.file_format or _format_of(self.file)
        self._columns = _columns(self._format, self.prompt_column, ignore_extra=self.ignore_extra_columns)
        checked_fields(self.model, {}, "a prompt", self.fields)
        self._found = self._rows(_opened(self.file))

    async def work(self, screen: Screen, stop: signals.Stop) -> ExitCode:
        """Check the first rows, say what a run would do, and do it."""
        async with AsyncExitStack() as stack:
            rest = await stack.enter_async_context(aclosing(read_ahead(self._found)))
            first = [row async for row in _some(rest, _CHECKED_FIRST)]
            if not first:
                where = "standard input" if self.file == "-" else repr(self.file)
                raise InvalidInputError(f"There is no prompt in {where}")
            if bad := [row for row in first if row.problem]:
                return _refused(bad, screen)
            service = await stack.enter_async_context(connect.connected(screen, self.base_url, emulator=self.emulator))
            account = await self._account(stack, service)
            spent = (await account.spent()).usd if account is not None else 0.0
            totals = run.Totals(charged=not self.emulator, bound_usd=self.max_spend, spent_usd=spent)
            polling = AdaptivePolling(store=service.store)
            budget = None if self.max_spend is None else Budget(self.max_spend)
            client = await stack.enter_async_context(
                self.client(service, totals, polling=polling, journal=account, budget=budget)
            )
            lists = () if self.model in TYPED else await list_fields(client, screen)
            rows = _chained(first, rest, lists)
            preview = account.items().preview if account is not None else None
            is_local = connect.is_local(service.base_url)
            await self._check_paid(first, lists, account, screen, is_local=is_local)
            forgets = is_local and not self.dry_run
            judge = partial(self._judged, lists=lists, preview=preview, forgets=forgets, reads=self.dry_run)
            if self.dry_run:
                money = _Money(generation_price(await client.get_model()), self.max_spend, spent)
                forecast = _Forecast(Estimate(lambda pixels: polling.quantile(self.model, pixels)), money)
                await forecast.add(rows, judge, screen.note)
                return forecast.show(screen, self.concurrency, as_json=self.as_json)
            manifest = stack.enter_context(await asyncio.to_thread(Manifest, self.output_dir / MANIFEST))
            whole = len(first) < _CHECKED_FIRST
            totals.total = len(first) if whole else await asyncio.to_thread(_count, self.file, self._format)
            if not self.quiet:
                money = _Money(await run.price_of(client), self.max_spend, spent)
                forecast = _Forecast(Estimate(), money)
                known = await stack.enter_async_context(aclosing(read_ahead(self._again(first))))
                until = asyncio.get_running_loop().time() + _FORECAST_WITHIN
                await forecast.add(known, judge, until=until)
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
            ).generate(rows)
            if totals.done > 0 and not self.no_download if self.report is None else self.report:
                await page.after_batch(self.output_dir, screen, stop, await self._unreached(first, lists, totals))
            return code if stop.code is None else stop.code

    def _rows(self, stream: BinaryIO) -> Generator[Row, None, None]:
        """The rows of the file; what a row does not say itself is said by the options."""
        # A relative path in a row of standard input begins at the working directory, as "-" has no folder.
        folder = user_path(self.file).parent
        with stream:
            for row in read_rows(stream, self._format, model=self.model, folder=folder, columns=self._columns):
                # The row's own fields come first, in its order, and win.
                yield row if row.problem else row._replace(fields={**row.fields, **(self.fields | row.fields)})

    def _again(self, first: list[Row]) -> Generator[Row, None, None]:
        """All rows of a file that can be read twice, else the first ones."""
        whole = len(first) < _CHECKED_FIRST or not user_path(self.file).is_file()
        return (row for row in first) if whole else self._rows(_opened(self.file))

    async def _unreached(self, first: list[Row], lists: Collection[str], totals: run.Totals) -> int | None:
        """How many rows have no line in the manifest after the run; None if they cannot be read again."""
        if totals.total == totals.reached:
            return 0
        if len(first) == _CHECKED_FIRST and not user_path(self.file).is_file():
            return None

        def rows() -> Iterator[Row]:
            for row in self._again(first):
                yield row._replace(fields=with_lists(row.fields, lists))

        try:
            return await asyncio.to_thread(unreached, self.output_dir / MANIFEST, rows())
        except (FluxKleinError, typer.BadParameter):  # the page can be written without the number
            return None

    async def _check_paid(
        self,
        first: list[Row],
        lists: Collection[str],
        account: JournalAccount | None,
        screen: Screen,
        *,
        is_local: bool,
    ) -> None:
        """Refuse to pay again for a row that the manifest has and the journal does not know; --emulator says so.

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
            async with aclosing(read_ahead(self._again(first))) as rows:
                async for row in rows:
                    if row.problem or unknown.get(recognised(row.id, with_lists(row.fields, lists))) is None:
                        continue
                    judged, claim = await self._judged(row, lists=lists, preview=preview, forgets=False, reads=True)
                    if claim is not None and claim.action is Action.SUBMIT and not judged.problem:
                        break
                else:
                    return
        listed = f"{str(path)!r} lists {count:,} row{'' if count == 1 else 's'} that the journal {self._place} does not"
        listed += f" know, among them line {row.line:,} of this file"
        if self.emulator:
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

    async def _account(self, stack: AsyncExitStack, service: connect.Address) -> JournalAccount | None:
        """What the journal holds of this account; None for a dry run without a journal, which makes none.

        Refuses an account that the journal does not know: it would pay for everything again.
        """
        if not self.dry_run:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        elif not await asyncio.to_thread(exists, self._place):
            return None
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
        self, row: Row, *, lists: Collection[str], preview: Preview | None, forgets: bool, reads: bool
    ) -> tuple[Row, Claim | None]:
        """A row, and the claim by which a run would know what to do with it; None if that is not known.

        It is not known if the row has files that are not read (`reads`); nor if the run would ask a service that
        `forgets` its requests, as an emulator does when it is started again.
        """
        if row.problem or preview is None:
            return row, _NEW
        fields = with_lists(row.fields, lists)
        prepared = prepare(fields, model=None, width=None, height=None, default_model=self.model)
        try:
            if prepared.body.files:
                if not reads:
                    return row, None
                await asyncio.to_thread(digest_files, prepared.body, Limits())
            claim = await preview(prepared.model, prepared.body.content, row.id)
        except InvalidInputError as error:  # of its files; or the journal knows another input with this id
            return row._replace(problem=str(error)), _NEW
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


async def _some(rows: AsyncIterator[Row], count: int) -> AsyncIterator[Row]:
    """The first rows."""
    async for row in rows:
        yield row
        count -= 1
        if count == 0:
            return


async def _chained(first: list[Row], rest: AsyncIterator[Row], lists: Collection[str]) -> AsyncIterator[Row]:
    for row in first:
        yield row._replace(fields=with_lists(row.fields, lists))
    async for row in rest:
        yield row._replace(fields=with_lists(row.fields, lists))


def _count(file: str, file_format: FileFormat) -> int | None:
    """How many rows a file has, for the progress display; None for anything but a plain file."""
    if not user_path(file).is_file():
        return None
    with open(user_path(file), "rb") as stream:  # noqa: PTH123
        return count_rows(stream, file_format)


def _refused(bad: list[Row], screen: Screen) -> ExitCode:
    shown = [row for row in bad if not row.is_told][:_BAD_SHOWN]
    for row in shown:
        screen.note(f"Line {row.line}: {row.problem}")
    if len(bad) > len(shown):
        screen.note(f"{len(bad) - len(shown)} more.")
    screen.note("Nothing was submitted.")
    return ExitCode.BAD_INPUT


class _Money(NamedTuple):
    """The price of a picture if it is known, and the bound if there is one, of which so much was spent before."""

    price: Decimal | None
    most: float | None
    spent: float

    @property
    def affordable(self) -> int | None:
        """How many pictures the bound has room for; None if that is not known, or there is no bound."""
        return run.affordable_at(self.price, self.most, self.spent)

    def bound(self) -> str:
        """The bound, in words."""
        if self.most is None:
            return "no --max-spend"
        return f"--max-spend {dollars(self.most)}" + (f", {dollars(self.spent)} spent before" if self.spent else "")


def _needs_service(claim: Claim, directory: Path | None) -> bool:
    """Whether a run asks the service about an item, which an emulator that was restarted has forgotten."""
    if claim.action is Action.RECALL and claim.answer is not None:
        return directory is not None and not (claim.files and all_there(claim.files, directory))
    return claim.action in {Action.RECALL, Action.RESUME}


class _Forecast:
    """What a run would do.

    Attributes:
        bad: How many rows cannot be submitted.
    """

    def __init__(self, estimate: Estimate, money: _Money) -> None:
        self._estimate = estimate
        self._money = money
        self._actions: Counter[Action] = Counter()
        self._judged = self._noted = self._unread = self._again = 0
        self.bad = 0
        self._ends_at: int | None = None  # the line for which there is no money

    async def add(
        self,
        rows: AsyncIterator[Row],
        judge: Callable[[Row], Awaitable[tuple[Row, Claim | None]]],
        note: Callable[[str], object] = lambda _: None,
        *,
        until: float = math.inf,
    ) -> None:
        """Count the rows that can be judged before an instant of the loop's clock, and note the first bad ones."""
        now = asyncio.get_running_loop().time
        while (some := [row async for row in _some(rows, _AT_ONCE)]) and (not self._judged or now() < until):
            self._judged += len(some)
            for row, claim in await asyncio.gather(*map(judge, some)):
                if not row.problem:
                    self._unread += claim is None
                    self._count(row, claim or _NEW)
                    continue
                self.bad += 1
                if self._noted < _BAD_SHOWN and not row.is_told:
                    self._noted += 1
                    note(f"Line {row.line}: {row.problem}")

    def _count(self, row: Row, claim: Claim) -> None:
        action = claim.action
        self._again += claim.pays_again
        if action is Action.SUBMIT:
            if self._actions[action] == self._money.affordable:
                self._ends_at = row.line
            self._estimate.add(row.fields)
        self._actions[action] += 1

    @property
    def recalled(self) -> int:
        """How many rows the journal has the result of."""
        return self._actions[Action.RECALL]

    def announced(self, total: int | None) -> str:
        """What is about to be paid for, as far as the rows were judged.

        Rows whose files were not read may be new, or done before, as may those that were not judged, and those about
        which an emulator is asked.
        """
        new = self._actions[Action.SUBMIT]
        price, affordable = self._money.price, self._money.affordable
        rest = self._paid_again() + (f"; {self.bad:,} bad" if self.bad else "")
        if total is None:
            return f"Submitting lines as they come, {self._each()}; {self._money.bound()}{rest}"
        upto = "up to " if self._unread else ""
        cost = "" if price is None else f": {upto}{dollars(price * new)}"
        if total > self._judged:
            begin = f"Submitting {upto}{new:,} of the first {self._judged:,}"
            more = f", and the new ones of {total - self._judged:,} more"
        else:
            begin, more, cost = f"Submitting {upto}{new:,} of {total:,}", "", cost and f"{cost} in all"
        ends = f", which is enough for {affordable:,}" if affordable is not None and affordable < new else ""
        return f"{begin}, {self._each()}{cost}{more}; {self._money.bound()}{ends}{rest}"

    def _paid_again(self) -> str:
        return f"; {self._again:,} may be paid for a second time" if self._again else ""

    def _each(self) -> str:
        return "at an unknown price" if self._money.price is None else f"at {dollars(self._money.price)} each"

    def show(self, screen: Screen, concurrency: int, *, as_json: bool) -> ExitCode:
        """Print the counts, the cost and the time."""
        price, affordable = self._money.price, self._money.affordable
        new = self._actions[Action.SUBMIT]
        seconds = self._estimate.seconds(concurrency)
        if as_json:
            counts = {action.name.lower(): self._actions[action] for action in Action}
            usd = None if price is None else float(price * new)
            facts = {
                "bad": self.bad,
                "pays_again": self._again,
                "cost_usd": usd,
                "affordable": affordable,
                "ends_at_line": self._ends_at,
            }
            screen.out(json_line({**counts, **facts, "seconds": round(seconds, 3)}))
        else:
            others = {_WORDS[action]: self._actions[action] for action in _WORDS} | {"bad": self.bad}
            listed = "".join(f", {count:,} {what}" for what, count in others.items() if count)
            cost = "unknown, the catalogue does not say it" if price is None else dollars(price * new)
            product = f" ({new:,} x {dollars(price)})" if price is not None and new > 1 else ""
            screen.out(f"{new:,} to submit{listed}{self._paid_again()}")
            screen.out(f"Cost: {cost}{product}")
            if self._money.most is not None and price is not None:
                enough = "enough for all" if self._ends_at is None else f"enough for {affordable:,} of {new:,}"
                ends = "" if self._ends_at is None else f"; the money ends before line {self._ends_at:,}"
                screen.out(f"Bound: {self._money.bound()}: {enough}{ends}")
            screen.out(f"Time: about {duration(seconds)} with {concurrency} at a time, without a queue")
        return ExitCode.BAD_INPUT if self.bad else ExitCode.OK if price is not None else ExitCode.OTHER
