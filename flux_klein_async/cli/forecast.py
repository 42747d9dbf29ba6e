"""What a batch will cost and how long it takes, as `--dry-run` and the first line of a run say."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NamedTuple

from flux_klein_async.batch.manifest import json_line
from flux_klein_async.batch.rows import Row, next_rows
from flux_klein_async.cli.answers import per_unit
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen, duration
from flux_klein_async.journal.base import Claim
from flux_klein_async.journal.budget import dollars, generation_price
from flux_klein_async.journal.states import Action
from flux_klein_async.journal.writer import Spending
from flux_klein_async.models import ModelInfo, TextToImageInput

__all__ = ["BAD_SHOWN", "CHECKED_FIRST", "NEW", "Estimate", "Forecast", "Money", "affordable_at", "published"]

CHECKED_FIRST: Final = 1000  # rows that are checked before the first of them is submitted
BAD_SHOWN: Final = 20  # bad lines that are printed one by one
NEW: Final = Claim(item="", action=Action.SUBMIT)

_AT_ONCE: Final = 256  # rows about which the journal is asked together
_WORDS: Final = {
    Action.RECALL: "done before",
    Action.RESUME: "to be resumed",
    Action.FAILED: "failed before",
    Action.UNCERTAIN: "uncertain",
    Action.CLAIMED: "claimed by another run",
}
_SIDES: Final = {name: TextToImageInput.model_fields[name].default for name in ("width", "height")}
_MOST_PIXELS: Final = 65_536  # of a side, in an estimate
_STEPS: Final = 16  # an octave of pixels: sizes within a step differ by less than 5 %


def published(pixels: float) -> float:
    """Seconds of a generation as the vendor publishes them (docs/wire.md), without queue and network."""
    return 0.063 + 0.483 * pixels / 1e6


class Estimate:
    """Sums up generations, in constant memory.

    Args:
        learned: Maps pixels to the seconds of a generation; where it gives None, the published time counts.

    Attributes:
        count: How many there are.
        is_learned: Whether all their times were learned, with what they waited in the queue.
    """

    def __init__(self, learned: Callable[[int], float | None] = lambda _: None) -> None:
        self._learned = lru_cache(maxsize=256)(lambda step: learned(round(2 ** (step / _STEPS))))
        self._total = self._longest = 0.0
        self.count = 0
        self.is_learned = True

    def add(self, fields: Mapping[str, Any]) -> None:
        """Count one more generation of this input."""
        pixels = math.prod(_side(fields.get(name), default) for name, default in _SIDES.items())
        learned = self._learned(round(_STEPS * math.log2(pixels)))
        seconds = published(pixels) if learned is None else learned
        self.is_learned = self.is_learned and learned is not None
        self._total += seconds
        self._longest = max(self._longest, seconds)
        self.count += 1

    def seconds(self, concurrency: int) -> float:
        """How long all of them take, `concurrency` at a time."""
        return max(self._total / concurrency, self._longest)


def _side(given: Any, default: int) -> int:
    """A side in pixels; a model without a typed input may mean anything by `width`."""
    return given if type(given) is int and 0 < given <= _MOST_PIXELS else default


def affordable_at(price: Decimal | float | None, most: float | None, spent: float) -> int | None:
    """How many pictures a bound has room for; None if that is not known, or there is no bound."""
    if most is None or not price:
        return None
    return max(0, int((Decimal(str(most)) - Decimal(f"{spent:.9f}")) / Decimal(str(price))))


class Money(NamedTuple):
    """The price of a picture if it is known, and the bound if there is one, of which so much was spent before.

    Attributes:
        listed: The catalogue's price, if the service has charged more; that is the price then.
        unit: The catalogue's price, in words, if it is not that of a picture.
        assumed: How much of what was spent is what the bound counts for requests of unknown cost.
    """

    price: Decimal | None
    most: float | None
    spent: float
    listed: Decimal | None = None
    unit: str | None = None
    assumed: float = 0.0

    @classmethod
    def of(cls, entry: ModelInfo | None, most: float | None, spent: Spending) -> "Money":
        """The price that a catalogue entry says, or the service has charged, if that is more."""
        price, listed = None if entry is None else generation_price(entry), None
        known = entry is not None and price is None and entry.base_price_usd is not None
        unit = per_unit(entry) if entry is not None and known else None
        if price is not None and (charged := Decimal(str(spent.highest_usd))) > price:
            price, listed = charged, price
        assumed = 0.0 if most is None or price is None else spent.unpriced * float(price)
        return cls(price, most, spent.usd + assumed, listed, unit, assumed + spent.held_usd)

    @property
    def affordable(self) -> int | None:
        """How many pictures the bound has room for; None if that is not known, or there is no bound."""
        return affordable_at(self.price, self.most, self.spent)

    @property
    def each(self) -> str:
        """The price of a picture, in words."""
        if self.price is None:
            return self.unit or "an unknown price"
        return f"{dollars(self.price)} each{self.of_before}"

    @property
    def of_before(self) -> str:
        """That the price is not the catalogue's, in words."""
        return "" if self.listed is None else f" (as charged before; the catalogue says {dollars(self.listed)})"

    def bound(self) -> str:
        """The bound, in words."""
        if self.most is None:
            return "no --max-spend"
        assumed = f" ({dollars(self.assumed)} of it for requests of unknown cost)" if self.assumed else ""
        before = f", {dollars(self.spent)} spent before{assumed}" if self.spent else ""
        return f"--max-spend {dollars(self.most)}{before}"


class Forecast:
    """What a run would do.

    Attributes:
        bad: How many rows cannot be submitted.
    """

    def __init__(self, estimate: Estimate, money: Money) -> None:
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
        while (some := await next_rows(rows, _AT_ONCE)) and (not self._judged or now() < until):
            self._judged += len(some)
            for row, claim in await asyncio.gather(*map(judge, some)):
                if not row.problem:
                    self._unread += claim is None
                    self._count(row, claim or NEW)
                    continue
                self.bad += 1
                if self._noted < BAD_SHOWN and not row.is_told:
                    self._noted += 1
                    note(f"{row.place}: {row.problem}")

    def _count(self, row: Row, claim: Claim) -> None:
        without_file = claim.action is Action.RECALL and claim.error is not None
        action = Action.FAILED if without_file else claim.action  # as a run counts it
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
            return f"Submitting lines as they come, at {self._money.each}; {self._money.bound()}{rest}"
        upto = "up to " if self._unread else ""
        cost = "" if price is None else f": {upto}{dollars(price * new)}"
        if total > self._judged:
            begin = f"Submitting {upto}{new:,} of the first {self._judged:,}"
            more = f", and the new ones of {total - self._judged:,} more"
        else:
            begin, more, cost = f"Submitting {upto}{new:,} of {total:,}", "", cost and f"{cost} in all"
        ends = f", which is enough for {affordable:,}" if affordable is not None and affordable < new else ""
        return f"{begin}, at {self._money.each}{cost}{more}; {self._money.bound()}{ends}{rest}"

    def _paid_again(self) -> str:
        return f"; {self._again:,} may be paid for a second time" if self._again else ""

    def show(self, screen: Screen, concurrency: int, *, as_json: bool, refused: bool) -> ExitCode:
        """Print the counts, the cost and the time; `refused`: a run submits nothing, for its bad rows."""
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
            if self.bad > self._noted:
                screen.note(f"{self.bad - self._noted:,} more.")
            others = {_WORDS[action]: self._actions[action] for action in _WORDS} | {"bad": self.bad}
            listed = "".join(f", {count:,} {what}" for what, count in others.items() if count)
            unit = self._money.unit
            unknown = "unknown, the catalogue " + (f"says {unit}" if unit else "does not say it")
            cost = unknown if price is None else dollars(price * new)
            product = f" ({new:,} x {dollars(price)})" if price is not None and new > 1 else ""
            screen.out(f"{new:,} to submit{listed}{self._paid_again()}")
            screen.out(f"Cost: {cost}{product}{self._money.of_before}")
            if self._money.most is not None and price is not None:
                enough = "enough for all" if self._ends_at is None else f"enough for {affordable:,} of {new:,}"
                ends = "" if self._ends_at is None else f"; the money ends before line {self._ends_at:,}"
                screen.out(f"Bound: {self._money.bound()}: {enough}{ends}")
            times = "as earlier runs took" if self._estimate.is_learned else "by the published times, without a queue"
            if new:
                screen.out(f"Time: about {duration(seconds)} with {concurrency} at a time, {times}; saving is extra")
            if refused:
                screen.note(f"A run submits nothing while one of the first {CHECKED_FIRST:,} lines is bad.")
        return ExitCode.BAD_INPUT if self.bad else ExitCode.OK if price is not None else ExitCode.OTHER
