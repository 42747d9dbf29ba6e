"""`Budget` reserves money before a submit is sent, so that the tasks of one client cannot spend too much together.

What all processes and machines spend together that share a journal is checked in `journal/sql`, "the budget".

The catalogue gives the expected cost of a generation; its result gives the actual cost. The money stays reserved until
then, and for an uncertain submit for ever. If a result costs more than was reserved for it, that much is reserved for
its model from then on, and for requests under way.
"""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

from flux_klein_async.errors import BudgetExceededError, ConfigurationError
from flux_klein_async.journal.base import Reservation
from flux_klein_async.journal.states import to_nano
from flux_klein_async.misuse import named_arguments
from flux_klein_async.models import ModelInfo

__all__ = ["Budget", "dollars", "generation_price", "over_budget"]

# docs/wire.md, "Endpoints": a price by the output is known before the submit, a price by the second is not.
_PER_GENERATION = "output"
_FRESH = 600.0  # seconds until a price is read again: prices change by the month, runs last for hours


def generation_price(info: ModelInfo) -> Decimal | None:
    """The price of one generation in USD; None if the catalogue does not give it. An unknown price is never free."""
    if info.base_price_usd is None or (info.price_unit or "").strip().lower() != _PER_GENERATION:
        return None
    return Decimal(str(info.base_price_usd))  # 3 * 0.1 is exactly 0.3


def dollars(amount: Decimal | float) -> str:
    """Format USD with two decimals, or more if they are not zero."""
    if isinstance(amount, float):
        amount = Decimal(f"{amount:.9f}")  # drops the error of summed floats
    amount = amount.normalize()
    exponent = amount.as_tuple().exponent
    has_more = isinstance(exponent, int) and exponent < -2  # not an int: NaN
    return f"${amount:f}" if has_more else f"${amount:.2f}"


def over_budget(
    usd: Decimal | float, committed: Decimal | float, limit: Decimal | float, reserved: Decimal | float = 0
) -> BudgetExceededError:
    """The error of a submit at this price, for which too little is left; `reserved`: as its `reserved_usd`."""
    left = max(Decimal(0), Decimal(str(limit)) - Decimal(str(committed)))
    sentence = f"The next generation may cost {dollars(usd)}, and {dollars(left)} of {dollars(limit)} is left"
    if reserved:
        sentence += f", beside {dollars(reserved)} reserved for requests that may cost less"
    error = BudgetExceededError(sentence, charged="no")
    error.reserved_usd = float(reserved)
    return error


@named_arguments({})
class Budget:
    """Limits what a client may spend.

    With a `SqliteJournal` or `PostgresJournal`, the limit covers everything that any process ever spent in that
    journal with the client's token at its service, with or without a budget. Without one, it covers what is submitted
    with this object. The price of a generation comes from the catalogue; if it is not known, nothing is submitted. If
    the service charges more, the highest charge for the model is its price from then on. Until the first such charge is
    known, what is in flight can exceed the limit by the difference.

    Args:
        max_usd: The limit in USD, 0 or more.

    Raises:
        ConfigurationError: `max_usd` is not such a number.
    """

    def __init__(self, max_usd: float | Decimal) -> None:
        self._limit = self._committed = Decimal(0)
        try:
            limit = Decimal(str(max_usd))
        except ArithmeticError:
            limit = Decimal(-1)
        if not limit.is_finite() or limit < 0:
            raise ConfigurationError(f"A budget is a number of USD, 0 or more, not {max_usd!r:.40}")
        self._limit = limit
        self._reserved: dict[str, tuple[str, Decimal]] = {}  # model and USD, by key, and by request id once accepted
        self._highest: dict[str, Decimal] = {}  # by model: the highest cost, if it was more than its reservation
        self._prices: dict[str, tuple[float, Decimal]] = {}  # by model: when it was read, in loop time, and the price
        self._reading_price = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Budget(max_usd={self._limit}, committed_usd={self._committed})"

    @property
    def committed_usd(self) -> Decimal:
        """USD spent and reserved by the submits of this object."""
        return self._committed

    async def reserve(self, key: str, model: str, price: Callable[[str], Awaitable[ModelInfo]]) -> Reservation:
        """Reserve the price of one submit.

        Raises:
            BudgetExceededError: Too little is left, or the model's price is not known.
            FluxKleinError: The catalogue could not be read.
        """
        known = await self._price(model, price)
        usd = max(known, self._highest.get(model, Decimal(0)))
        if self._committed + usd > self._limit:
            reserved = sum((held for _, held in self._reserved.values()), Decimal(0))
            raise over_budget(usd, self._committed, self._limit, reserved if usd > known else 0)
        self._committed += usd
        self._reserved[key] = model, usd
        return Reservation(usd=float(usd), max_usd=float(self._limit))

    def release(self, key: str) -> None:
        """Free the money of a submit that was not accepted."""
        self._committed -= self._reserved.pop(key, ("", Decimal(0)))[1]

    def accepted(self, key: str, request_id: str) -> None:
        """Keep the money of a submit for the request that it was accepted as."""
        if key in self._reserved:
            self._reserved[request_id] = self._reserved.pop(key)

    def settle(self, request_id: str, cost_usd: float | None) -> None:
        """Replace the reservation by the actual cost; if that is no amount, count the reservation as spent."""
        model, reserved = self._reserved.pop(request_id, ("", None))
        if reserved is None or cost_usd is None or to_nano(cost_usd) is None:
            return  # another's, or settled before; or a cost that is not reported, in a wrong unit or no number
        cost = Decimal(str(cost_usd))
        self._committed += cost - reserved
        if cost > max(reserved, self._highest.get(model, reserved)):
            self._highest[model] = cost
            for key, (other, usd) in self._reserved.items():  # those under way will cost as much
                if other == model and usd < cost:
                    self._committed += cost - usd
                    self._reserved[key] = model, cost

    async def _price(self, model: str, price: Callable[[str], Awaitable[ModelInfo]]) -> Decimal:
        """The price of one generation; one task reads it for all that wait."""
        loop = asyncio.get_running_loop()
        async with self._reading_price:
            read_at, usd = self._prices.get(model, (0.0, None))
            if usd is None or loop.time() - read_at > _FRESH:
                info = await price(model)
                usd = generation_price(info)
                if usd is None:
                    error = BudgetExceededError(
                        f"The price of a generation of {model} is not known (price {info.base_price_usd}, unit "
                        f"{info.price_unit}); a budget allows no submit at an unknown price"
                    )
                    error.price_known = False
                    raise error
                self._prices[model] = (loop.time(), usd)
            return usd
