"""Any sequence of entries leaves what the transition table says, and money that adds up."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.errors import JournalError
from flux_klein_async.ledger.base import Entry, EntryState, Reservation
from flux_klein_async.ledger.schema import check

from .helpers import Run, orders
from .test_transitions import ROWS

COLUMNS = [state.value for state in EntryState]
KEYS = st.sampled_from(["k1", "k2", "k3"])
REQUESTS = st.sampled_from(["r1", "r2"])
COSTS = st.none() | st.sampled_from([0.0, 0.01, 0.03])

intents = st.builds(
    Entry,
    state=st.just(EntryState.SUBMITTING),
    key=KEYS,
    reservation=st.none() | st.just(Reservation(usd=0.02, max_usd=9.0)),
)
LATER = [state for state in EntryState if state is not EntryState.SUBMITTING]
by_key = st.builds(
    Entry, state=st.sampled_from(LATER), key=KEYS, request_id=st.none() | REQUESTS, cost_usd=COSTS, error=st.none()
)
by_request = st.builds(Entry, state=st.sampled_from(LATER), request_id=REQUESTS, cost_usd=COSTS)


@dataclass
class Known:
    """What the model knows of an order."""

    key: str | None
    request_id: str | None
    state: str
    reserved: float | None = None
    cost: float | None = None

    def hear(self, state: str, cost: float | None) -> None:
        self.state = ROWS[self.state][COLUMNS.index(state)]
        self.cost = self.cost if cost is None else cost

    @property
    def charge(self) -> float:
        if self.state in {"refused", "cancelled"}:
            return 0.0
        return (self.reserved or 0.0) if self.cost is None else self.cost


class Model:
    """A journal without a file."""

    def __init__(self) -> None:
        self.orders: list[Known] = []

    def record(self, entry: Entry) -> bool:
        """Whether it is accepted."""
        found = [order for order in self.orders if entry.key is not None and order.key == entry.key]
        if entry.state is EntryState.SUBMITTING:
            if found:
                return False
            if entry.reservation is not None:
                self._price(entry.reservation.usd)
            reserved = entry.reservation.usd if entry.reservation else None
            self.orders.append(Known(entry.key, None, "submitting", reserved))
            return True
        if not found and entry.request_id is not None:
            found = [order for order in self.orders if order.request_id == entry.request_id]
        if not found and entry.state is not EntryState.REFUSED:
            self.orders.append(Known(entry.key, entry.request_id, entry.state.value, None, entry.cost_usd))
        for order in found:
            self._change(order, entry)
        return True

    def _price(self, usd: float) -> None:
        """What was submitted without a budget is not free in one."""
        for order in self.orders:
            if order.key is not None and order.reserved is None and order.cost is None:
                order.reserved = usd

    def _change(self, order: Known, entry: Entry) -> None:
        if entry.request_id is not None and order.request_id is None:
            order.request_id = entry.request_id
            for other in [other for other in self.orders if other.key is None and other.request_id == entry.request_id]:
                self.orders.remove(other)
                order.hear(other.state, other.cost)
        order.hear(entry.state.value, entry.cost_usd)


@given(st.lists(intents | by_key | by_request, max_size=12))
def test_any_sequence_of_entries_ends_as_the_table_says(entries: list[Entry]) -> None:
    model = Model()
    with TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run.sqlite")
        run.database.db.execute("PRAGMA synchronous = OFF")
        try:
            for one in entries:
                try:
                    run.write(one)
                except JournalError:
                    assert not model.record(one)
                else:
                    assert model.record(one)
            found = [(o["key"], o["request_id"], o["state"], (o["cost"])) for o in orders(run.database)]
            wanted = [
                (o.key, o.request_id, o.state, None if o.cost is None else round(o.cost * 10**9)) for o in model.orders
            ]
            assert sorted(found, key=repr) == sorted(wanted, key=repr)
            totals = run.database.db.execute("SELECT coalesce(sum(settled + held), 0) FROM accounts").fetchone()
            assert totals == (round(sum(order.charge for order in model.orders) * 10**9),)
            check(run.database.path, run.database.db)
        finally:
            run.close()
