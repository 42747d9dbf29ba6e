"""The parts that an application brings, kept from doing harm: a limiter or a budget is worth less than a request.

What such a part is asked before a call may end that call, in an error of ours. What it is told afterwards it may not
lose: the failure is logged, and the call goes on.
"""
# ruff: noqa: D102  # the protocols say what each method does

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from flux_klein_async.api.messages import Kind
from flux_klein_async.errors import ConfigurationError, FluxKleinError
from flux_klein_async.ledger.base import Reservation, SpendingLimit
from flux_klein_async.models import ModelInfo
from flux_klein_async.transport.pacing import Limiter

__all__ = ["GuardedBudget", "GuardedLimiter", "asked", "told"]

_log = logging.getLogger("flux_klein_async")


@contextmanager
def asked(part: str, kind: type[FluxKleinError] = ConfigurationError) -> Iterator[None]:
    """Turn what a part raises into an error of this kind; errors of ours pass."""
    try:
        yield
    except FluxKleinError:
        raise
    except Exception as error:
        raise kind(f"The {part} failed", cause=f"{type(error).__name__}: {error}") from error


@contextmanager
def told(part: str) -> Iterator[None]:
    """Log what a part raises, and go on."""
    try:
        yield
    except Exception:  # noqa: BLE001  # whatever it is: what was paid for counts more
        _log.exception("The %s raised; ignored", part)


class GuardedLimiter:
    """A `Limiter` whose failures never lose what was accepted."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    async def acquire(self) -> None:
        with asked("limiter"):
            await self._limiter.acquire()

    def release(self) -> None:
        with told("limiter"):
            self._limiter.release()

    def hold(self, kind: Kind, until: float) -> None:
        with told("limiter"):
            self._limiter.hold(kind, until)

    def held_until(self, kind: Kind) -> float:
        with asked("limiter"):
            return self._limiter.held_until(kind)

    def admit(self, kind: Kind) -> float:
        with asked("limiter"):
            return self._limiter.admit(kind)

    def refused(self, kind: Kind) -> None:
        with told("limiter"):
            self._limiter.refused(kind)

    def served(self, kind: Kind) -> None:
        with told("limiter"):
            self._limiter.served(kind)

    def look_price(self) -> float:
        with asked("limiter"):
            return self._limiter.look_price()

    async def look(self, price: float) -> None:
        with asked("limiter"):
            await self._limiter.look(price)


class GuardedBudget:
    """A `SpendingLimit` whose failures never lose what was accepted."""

    def __init__(self, budget: SpendingLimit) -> None:
        self._budget = budget

    async def reserve(self, key: str, model: str, price: Callable[[str], Awaitable[ModelInfo]]) -> Reservation | None:
        with asked("budget"):
            return await self._budget.reserve(key, model, price)

    def release(self, key: str) -> None:
        with told("budget"):
            self._budget.release(key)

    def accepted(self, key: str, request_id: str) -> None:
        with told("budget"):
            self._budget.accepted(key, request_id)

    def settle(self, request_id: str, cost_usd: float | None) -> None:
        with told("budget"):
            self._budget.settle(request_id, cost_usd)
