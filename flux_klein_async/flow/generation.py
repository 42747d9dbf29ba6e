"""One generation: submit an order, then wait for its result."""

from collections.abc import Callable

from flux_klein_async.flow.call import Call
from flux_klein_async.flow.core import Core
from flux_klein_async.flow.looking import Ticket
from flux_klein_async.flow.orders import Order
from flux_klein_async.flow.submission import submit
from flux_klein_async.flow.waiting import wait
from flux_klein_async.models import GenerationResult, RequestStatus
from flux_klein_async.options import OnAbandon
from flux_klein_async.transport.pacing import Slot

__all__ = ["generate", "ticket_of"]


async def generate(
    core: Core,
    call: Call,
    order: Order,
    slot: Slot,
    *,
    on_abandon: OnAbandon,
    on_status: Callable[[RequestStatus], object] | None = None,
) -> GenerationResult:
    """Submit and wait, in a slot that was taken.

    Raises:
        FluxKleinError: As `submit` and `wait`.
    """
    begun = core.loop.time()
    await submit(core, call, order, on_abandon=on_abandon, slot=slot)
    return await wait(core, call, ticket_of(core, call, order, begun), on_abandon=on_abandon, on_status=on_status)


def ticket_of(core: Core, call: Call, order: Order, begun: float) -> Ticket:
    """What is known of a request that was accepted just now, its submit begun at this instant."""
    now = core.loop.time()
    return Ticket(
        request_id=call.request_id or "",
        model=order.model,
        pixels=order.pixels,
        accepted_at=now,
        submit_seconds=now - begun,
    )
