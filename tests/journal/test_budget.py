"""A budget: what it reserves, what it frees, and that an unknown price is never free."""

import asyncio
import contextlib
from decimal import Decimal

import pytest

from flux_klein_async.emulator import VirtualTimeLoop
from flux_klein_async.errors import BudgetExceededError, ConfigurationError, NotFoundError
from flux_klein_async.journal.base import Reservation, SpendingLimit
from flux_klein_async.journal.budget import Budget, dollars, generation_price
from flux_klein_async.models import ModelInfo


def entry(usd: float | None = 0.1, unit: str | None = "output") -> ModelInfo:
    return ModelInfo(model_id="a/b", base_price_usd=usd, price_unit=unit)


class Catalogue:
    """Says the price, and counts how often it was asked."""

    def __init__(self, info: ModelInfo, seconds: float = 0.0) -> None:
        self.info = info
        self.asked: list[str] = []
        self._seconds = seconds

    async def __call__(self, model: str) -> ModelInfo:
        self.asked.append(model)
        await asyncio.sleep(self._seconds)
        return self.info


async def test_a_reservation_counts_until_it_is_freed_or_settled():
    budget, price = Budget(0.3), Catalogue(entry())
    assert [await budget.reserve(key, "a/b", price) for key in "abc"] == [Reservation(usd=0.1, max_usd=0.3)] * 3
    with pytest.raises(BudgetExceededError, match=r"may cost \$0\.10, and \$0\.00 of \$0\.30 is left") as caught:
        await budget.reserve("d", "a/b", price)
    assert (caught.value.charged, caught.value.retryable) == ("no", False)
    budget.release("a")
    await budget.reserve("d", "a/b", price)
    budget.accepted("b", "r-b")
    budget.settle("r-b", 0.05)
    assert budget.committed_usd == Decimal("0.25")


async def test_what_is_reserved_beyond_the_catalogues_price_is_told_because_it_may_become_free():
    budget, price = Budget(1), Catalogue(entry())
    for key in "ab":
        await budget.reserve(key, "a/b", price)
        budget.accepted(key, f"r-{key}")
    budget.settle("r-a", 0.6)
    with pytest.raises(BudgetExceededError, match=r"is left, beside \$0\.60 reserved for requests that may") as caught:
        await budget.reserve("c", "a/b", price)
    assert caught.value.reserved_usd == 0.6
    budget.settle("r-b", 0.1)
    assert await budget.reserve("c", "another", price) == Reservation(usd=0.1, max_usd=1.0)
    with pytest.raises(BudgetExceededError, match=r"\$0\.20 of \$0\.20 is left$") as caught:
        await Budget(0.2).reserve("k", "a/b", Catalogue(entry(0.3)))
    assert caught.value.reserved_usd == 0


@pytest.mark.parametrize(
    ("steps", "committed"),
    [
        ([], "0.1"),  # also an uncertain submit's: nothing is ever said of it again
        ([("release", "k")], "0"),
        ([("release", "k"), ("release", "k")], "0"),
        ([("release", "another")], "0.1"),
        ([("accepted", "k", "r")], "0.1"),
        ([("accepted", "k", "r"), ("settle", "r", 0.03)], "0.03"),
        ([("accepted", "k", "r"), ("settle", "r", 0.5)], "0.5"),
        ([("accepted", "k", "r"), ("settle", "r", 0.0)], "0"),
        ([("accepted", "k", "r"), ("settle", "r", None)], "0.1"),
        *(([("accepted", "k", "r"), ("settle", "r", wrong)], "0.1") for wrong in (float("nan"), float("inf"), -1, 1e5)),
        ([("accepted", "k", "r"), ("settle", "r", 0.03), ("settle", "r", 0.03)], "0.03"),
        ([("accepted", "k", "r"), ("settle", "r", None), ("settle", "r", 0.03)], "0.1"),
        ([("settle", "another", 7.0)], "0.1"),
        ([("accepted", "another", "r"), ("settle", "r", 7.0)], "0.1"),
        ([("accepted", "k", "r"), ("release", "k")], "0.1"),
    ],
)
async def test_what_is_committed_after_what_is_said(steps, committed):
    budget: SpendingLimit = Budget(1)
    await budget.reserve("k", "a/b", Catalogue(entry()))
    for name, *facts in steps:
        getattr(budget, name)(*facts)
    assert budget.committed_usd == Decimal(committed)  # type: ignore[attr-defined]


async def test_a_service_that_charges_more_than_its_catalogue_says_exceeds_the_limit_by_what_is_in_flight_alone():
    budget, price, charged, spent, under_way = Budget(0.3), Catalogue(entry(0.01)), Decimal("0.04"), Decimal(0), []
    for number in range(100):
        with contextlib.suppress(BudgetExceededError):
            await budget.reserve(f"k{number}", "a/b", price)
            budget.accepted(f"k{number}", f"r{number}")
            under_way.append(f"r{number}")
        if under_way and (len(under_way) == 8 or number > 50):
            budget.settle(under_way.pop(0), float(charged))
            spent += charged
    assert not under_way
    assert spent == Decimal("0.32") == budget.committed_usd, "eight at a time, and the first charge is known"
    with pytest.raises(BudgetExceededError, match=r"may cost \$0\.04"):
        await budget.reserve("k", "a/b", price)


async def test_what_one_model_is_charged_says_nothing_of_another_and_a_lower_charge_nothing_at_all():
    budget, price = Budget(10), Catalogue(entry(0.01))
    for key, model, cost in (("a", "a/b", 0.04), ("b", "a/b", 0.02), ("c", "c/d", 0.001)):
        await budget.reserve(key, model, price)
        budget.accepted(key, key)
        budget.settle(key, cost)
    assert [(await budget.reserve(model, model, price)).usd for model in ("a/b", "c/d")] == [0.04, 0.01]


async def test_a_higher_charge_is_reserved_for_what_is_under_way_or_uncertain_too():
    budget, price = Budget(10), Catalogue(entry(0.01))
    for key, model in (("a", "a/b"), ("b", "a/b"), ("uncertain", "a/b"), ("other", "c/d"), ("known", "a/b")):
        await budget.reserve(key, model, price)
    budget.accepted("a", "ra")
    budget.accepted("b", "rb")
    budget.accepted("known", "rk")
    budget.settle("rk", None)
    budget.settle("ra", 0.04)
    assert budget.committed_usd == Decimal("0.14")
    budget.release("uncertain")
    budget.settle("rb", 0.02)
    assert budget.committed_usd == Decimal("0.08")


async def test_a_higher_charge_lowers_no_reservation_at_a_price_that_rose_since(klein_emulator):
    budget, price = Budget(10), Catalogue(entry(0.01))
    await budget.reserve("before", "a/b", price)
    await asyncio.sleep(601)
    price.info = entry(0.1)
    await budget.reserve("since", "a/b", price)
    budget.accepted("before", "r")
    budget.settle("r", 0.04)
    assert budget.committed_usd == Decimal("0.14")


async def test_many_at_once_never_set_aside_more_than_there_is_and_ask_the_price_once(klein_emulator):
    budget, price = Budget(Decimal("0.7")), Catalogue(entry(), seconds=1.0)
    ends = await asyncio.gather(
        *(budget.reserve(str(number), "a/b", price) for number in range(50)), return_exceptions=True
    )
    assert sum(isinstance(end, Reservation) for end in ends) == 7  # 0.1 in binary would leave room for 6
    assert {type(end) for end in ends} == {Reservation, BudgetExceededError}
    assert price.asked == ["a/b"]


@pytest.mark.parametrize(("usd", "unit"), [(None, "output"), (0.1, None), (0.1, "second"), (0.1, ""), (None, None)])
async def test_a_price_that_is_not_known_is_not_taken_for_free(usd, unit):
    budget = Budget(1000)
    with pytest.raises(BudgetExceededError, match="at an unknown price"):
        await budget.reserve("k", "a/b", Catalogue(entry(usd, unit)))
    assert budget.committed_usd == 0


def test_prices_of_models_are_kept_apart_and_read_again_after_ten_minutes():
    asked = []

    async def price(model: str) -> ModelInfo:
        asked.append((model, asyncio.get_running_loop().time()))
        return entry()

    async def body() -> None:
        budget = Budget(1000)
        for number, (model, seconds) in enumerate((("a/b", 0), ("c/d", 0), ("a/b", 600), ("a/b", 1), ("c/d", 0))):
            await asyncio.sleep(seconds)
            await budget.reserve(str(number), model, price)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(body())
    assert asked == [("a/b", 0), ("c/d", 0), ("a/b", 601), ("c/d", 601)]


async def test_a_catalogue_that_fails_is_asked_again_by_the_next():
    budget = Budget(1)

    async def fails(model: str) -> ModelInfo:
        raise NotFoundError(model)

    with pytest.raises(NotFoundError):
        await budget.reserve("k", "a/b", fails)
    await budget.reserve("k", "a/b", Catalogue(entry()))


@pytest.mark.parametrize("limit", [-1, -0.01, float("nan"), float("inf"), True, "much", None, Decimal("NaN")])
def test_a_budget_is_a_number_of_dollars(limit):
    with pytest.raises(ConfigurationError, match="number of USD"):
        Budget(limit)


def test_a_budget_of_nothing_allows_what_is_free():
    budget = Budget(0)
    asyncio.run(budget.reserve("k", "a/b", Catalogue(entry(0.0))))
    with pytest.raises(BudgetExceededError):
        asyncio.run(Budget(0).reserve("k", "a/b", Catalogue(entry(1e-9))))
    assert repr(budget) == "Budget(max_usd=0, committed_usd=0.0)"


def test_money_has_two_decimals_and_more_where_they_say_something() -> None:
    table = {"0": "$0.00", "0.5": "$0.50", "0.0005": "$0.0005", "0.1250": "$0.125", "100": "$100.00"}
    table |= {"1E+2": "$100.00", "1e-9": "$0.000000001", "NaN": "$NaN"}
    assert {amount: dollars(Decimal(amount)) for amount in table} == table
    assert dollars(0.1 + 0.2) == "$0.30", "without the error of summed floats"


def test_a_price_for_an_output_is_that_of_a_generation():
    assert generation_price(entry(0.1, " Output ")) == Decimal("0.1")
