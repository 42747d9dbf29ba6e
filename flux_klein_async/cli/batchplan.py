"""What a batch would do, without doing it: how many lines, what they would cost, how long they would take."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal

from flux_klein_async.batch.estimate import Estimate
from flux_klein_async.batch.rows import BadRow, Row
from flux_klein_async.cli.feed import Feed
from flux_klein_async.cli.records import Record
from flux_klein_async.cli.text import duration
from flux_klein_async.errors import InvalidInputError
from flux_klein_async.journal.base import Action
from flux_klein_async.journal.budget import dollars
from flux_klein_async.operations.submit import prepare

__all__ = ["BAD_KEPT", "Forecast", "Preview", "forecast"]

BAD_KEPT = 20  # bad lines that are told one by one
_AT_ONCE = 256  # rows that the journal is asked for together

Preview = Callable[[str, bytes, str | None], Awaitable[Action]]


@dataclass(slots=True)
class Forecast:
    """What is known of a batch beforehand.

    Attributes:
        estimate: The lines that would be submitted, by size.
        actions: How many lines would be submitted, taken up, kept, or left alone.
        bad: How many lines cannot be submitted, and what is wrong with the `first_bad`.
    """

    estimate: Estimate
    actions: Counter[Action] = field(default_factory=Counter)
    bad: int = 0
    first_bad: list[BadRow] = field(default_factory=list)

    def count(self, row: Row, action: Action) -> None:
        """One line more."""
        self.actions[action] += 1
        if action is Action.SUBMIT:
            self.estimate.add(row.fields)

    def refuse(self, row: BadRow) -> None:
        """One bad line more."""
        self.bad += 1
        if len(self.first_bad) < BAD_KEPT:
            self.first_bad.append(row)

    def lines(self, concurrency: int, price: Decimal | None) -> list[str]:
        """For people."""
        new = self.actions[Action.SUBMIT]
        rest = {
            "done before": self.actions[Action.RECALL],
            "submitted before, to be waited for": self.actions[Action.RESUME],
            "failed before": self.actions[Action.FAILED],
            "uncertain": self.actions[Action.UNCERTAIN],
            "under way in another run": self.actions[Action.CLAIMED],
            "bad": self.bad,
        }
        told = "".join(f", {count:,} {what}" for what, count in rest.items() if count)
        cost = "not known, since price or unit do not say it" if price is None else dollars(price * new)
        each = f" ({new:,} x {dollars(price)})" if price is not None and new > 1 else ""
        return [
            f"{new:,} to submit{told}",
            f"Cost: {cost}{each}",
            f"Time: about {duration(self._seconds(concurrency))} with {concurrency} at once, if none has to queue",
        ]

    def record(self, concurrency: int, price: Decimal | None) -> Record:
        """For programs."""
        return {
            **{action.name.lower(): self.actions[action] for action in Action},
            "bad": self.bad,
            "cost_usd": None if price is None else float(price * self.actions[Action.SUBMIT]),
            "seconds": round(self._seconds(concurrency), 3),
        }

    def _seconds(self, concurrency: int) -> float:
        return self.estimate.seconds(concurrency) if self.estimate.count else 0.0


async def forecast(feed: Feed, model: str, estimate: Estimate, preview: Preview | None) -> Forecast:
    """Read all rows; `preview` says what the journal would have done with one, None that there is no journal yet.

    Raises:
        FluxKleinError, OSError: File or journal cannot be read.
    """
    found = Forecast(estimate)
    waiting: list[Row] = []

    async def settle() -> None:
        actions = await asyncio.gather(*(_action(row, model, preview) for row in waiting))
        for row, action in zip(waiting, actions, strict=True):
            if isinstance(action, BadRow):
                found.refuse(action)
            else:
                found.count(row, action)
        waiting.clear()

    async for _, row in feed:
        if isinstance(row, BadRow):
            found.refuse(row)
            continue
        waiting.append(row)
        if len(waiting) >= _AT_ONCE:
            await settle()
    await settle()
    return found


async def _action(row: Row, model: str, preview: Preview | None) -> Action | BadRow:
    if preview is None:
        return Action.SUBMIT
    order = prepare(row.fields, model=None, width=None, height=None, default_model=model)
    try:
        return await preview(order.model, order.body, row.id)
    except InvalidInputError as error:  # the journal knows another input by this id
        return BadRow(row.line, str(error))
