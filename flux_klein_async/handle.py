"""`RequestHandle`: one request, with the client's verbs on it."""

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, NoReturn

from flux_klein_async.models import CancelOutcome, GenerationResult, RequestStatus
from flux_klein_async.options import DEFAULT, OnAbandon, Timeout

if TYPE_CHECKING:
    from flux_klein_async.client import FluxKleinClient
    from flux_klein_async.flow.looking import Ticket

__all__ = ["RequestHandle"]


class RequestHandle:
    """A request that was accepted, by this client or by another process.

    Cheap and passive: dropping it leaves the request as it is. `request_id` is all that is needed to take the
    request up again, for as long as the service keeps it (7 days).
    """

    __slots__ = ("_client", "ticket")

    def __init__(self, client: "FluxKleinClient", ticket: "Ticket") -> None:
        self._client = client
        self.ticket = ticket

    @property
    def request_id(self) -> str:
        """The service's id of this request."""
        return self.ticket.request_id

    def __repr__(self) -> str:
        return f"RequestHandle({self.request_id!r})"

    if not TYPE_CHECKING:  # pragma: no branch  # there, the slip must stay an error

        def __await__(self) -> NoReturn:
            raise TypeError("A RequestHandle is not awaited: `await handle.wait_for_result()` brings its result")

    async def status(self) -> RequestStatus:
        """As `FluxKleinClient.status`.

        Raises:
            FluxKleinError: As there.
        """
        return await self._client.status(self)

    async def result(self) -> GenerationResult:
        """As `FluxKleinClient.result`.

        Raises:
            FluxKleinError: As there.
        """
        return await self._client.result(self)

    async def cancel(self) -> CancelOutcome:
        """As `FluxKleinClient.cancel`.

        Raises:
            FluxKleinError: As there.
        """
        return await self._client.cancel(self)

    async def wait_for_result(
        self,
        *,
        timeout: Timeout = DEFAULT,
        on_abandon: OnAbandon = "leave",
        on_status: Callable[[RequestStatus], object] | None = None,
    ) -> GenerationResult:
        """As `FluxKleinClient.wait_for_result`.

        Raises:
            FluxKleinError: As there.
        """
        return await self._client.wait_for_result(self, timeout=timeout, on_abandon=on_abandon, on_status=on_status)

    def updates(self, *, timeout: Timeout = DEFAULT) -> AsyncIterator[RequestStatus]:
        """As `FluxKleinClient.updates`."""
        return self._client.updates(self, timeout=timeout)
