"""`Budget`: money is set aside before a submit leaves, so that no number of tasks together can spend too much.

A generation is expected to cost what the catalogue says; what it did cost is known only from its result. What may have
been spent stays set aside until then: an uncertain submit for good.
"""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

from flux_klein_async.errors import BudgetExceededError, ConfigurationError
from flux_klein_async.journal.base import Reservation
from flux_klein_async.models import ModelInfo

__all__ = ["Budget", "dollars", "generation_price"]


# docs/wire.md, "Endpoints": priced by the output, a generation's price is known before it is made. A price for a
# second is not: nobody knows how many there will be.
_COUNTABLE = "output"
_FRESH = 600.0  # seconds for which a price that was read is believed: prices change by the month, runs last for hours


def generation_price(info: ModelInfo) -> Decimal | None:
    """USD for one generation of one output; None where price or unit do not say it. It is never taken for free."""
    if info.base_price_usd is None or (info.price_unit or "").strip().lower() != _COUNTABLE:
        return None
    return Decimal(str(info.base_price_usd))  # 0.1 * 3 is 0.3 here


def dollars(amount: Decimal | float) -> str:
    """USD as money is written: two decimals, and more only where there is something in them."""
    if isinstance(amount, float):
        amount = Decimal(f"{amount:.9f}")  # less what the summing of floats added
    amount = amount.normalize()
    exponent = amount.as_tuple().exponent
    fine = isinstance(exponent, int) and exponent < -2  # no int: not a number
    return f"${amount:f}" if fine else f"${amount:.2f}"


class Budget:
    """At most so many USD for everything that a client submits.

    With a journal that keeps accounts (`SqliteJournal`) the bound holds for all that was ever spent in it, by all
    processes that share it, with a budget or not; without one, for what this object sees. What a generation costs is
    read from the catalogue; an unknown price or unit lets nothing start.

    Args:
        max_usd: USD, 0 or more.

    Raises:
        ConfigurationError: `max_usd` is no such number.
    """

    def __init__(self, max_usd: float | Decimal) -> None:
        try:
            limit = Decimal(str(max_usd))
        except ArithmeticError:
            limit = Decimal(-1)
        if isinstance(max_usd, bool) or not limit.is_finite() or limit < 0:
            raise ConfigurationError(f"A budget is a number of USD, 0 or more, not {max_usd!r:.40}")
        self._limit = limit
        self._committed = Decimal(0)
        self._reserved: dict[str, Decimal] = {}  # by key, then by request id
        self._prices: dict[str, tuple[float, Decimal]] = {}  # when it was read, on the loop's clock
        self._asking = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Budget(max_usd={self._limit}, committed_usd={self._committed})"

    @property
    def committed_usd(self) -> Decimal:
        """USD spent and set aside, by the submits of this object."""
        return self._committed

    async def reserve(self, key: str, model: str, price: Callable[[str], Awaitable[ModelInfo]]) -> Reservation:
        """Set aside the price of one submit.

        Raises:
            BudgetExceededError: Too little is left, or the model's price is not known.
            FluxKleinError: The catalogue could not be read.
        """
        usd = await self._price(model, price)
        if self._committed + usd > self._limit:
            raise BudgetExceededError(
                f"The next generation may cost {dollars(usd)}, and {dollars(self._committed)} of "
                f"{dollars(self._limit)} are spent or set aside"
            )
        self._committed += usd
        self._reserved[key] = usd
        return Reservation(usd=float(usd), max_usd=float(self._limit))

    def release(self, key: str) -> None:
        """The submit was not accepted: its money is free again."""
        self._committed -= self._reserved.pop(key, Decimal(0))

    def accepted(self, key: str, request_id: str) -> None:
        """The submit was accepted: its money is kept for this request."""
        if key in self._reserved:
            self._reserved[request_id] = self._reserved.pop(key)

    def settle(self, request_id: str, cost_usd: float | None) -> None:
        """The request cost so much. None: nobody knows, so that what was set aside counts as spent."""
        reserved = self._reserved.pop(request_id, None)
        if reserved is not None and cost_usd is not None:  # not somebody else's, nor one settled before
            self._committed += Decimal(str(cost_usd)) - reserved

    async def _price(self, model: str, price: Callable[[str], Awaitable[ModelInfo]]) -> Decimal:
        """The price of one generation: asked for by the first of many, and again when it is old."""
        loop = asyncio.get_running_loop()
        async with self._asking:
            asked, usd = self._prices.get(model, (0.0, None))
            if usd is None or loop.time() - asked > _FRESH:
                usd = _known_price(await price(model), model)
                self._prices[model] = (loop.time(), usd)
            return usd


def _known_price(info: ModelInfo, model: str) -> Decimal:
    usd = generation_price(info)
    if usd is None:
        raise BudgetExceededError(
            f"What a generation of {model} costs is not known (price {info.base_price_usd}, unit "
            f"{info.price_unit}), and what is not known is not taken for free"
        )
    return usd
