"""Which state replaces which, and what a request counts with."""

import math

import pytest

from flux_klein_async.journal.states import STATES, Charge, EntryState, charge, from_nano, supersedes, to_nano

# A row for the state that a request is in, a column for the entry that comes: what the request is then.
_TABLE = """
            submitting repeated   refused    uncertain  submitted  completed  downloaded failed     cancelled
submitting  submitting repeated   refused    uncertain  submitted  completed  downloaded failed     cancelled
repeated    repeated   repeated   refused    repeated   submitted  completed  downloaded failed     cancelled
refused     refused    refused    refused    refused    submitted  completed  downloaded failed     cancelled
uncertain   uncertain  repeated   refused    uncertain  submitted  completed  downloaded failed     cancelled
submitted   submitted  submitted  submitted  submitted  submitted  completed  downloaded failed     cancelled
completed   completed  completed  completed  completed  completed  completed  downloaded completed  completed
downloaded  downloaded downloaded downloaded downloaded downloaded downloaded downloaded downloaded downloaded
failed      failed     failed     failed     failed     failed     completed  downloaded failed     failed
cancelled   cancelled  cancelled  cancelled  cancelled  cancelled  completed  downloaded cancelled  cancelled
"""
_HEADINGS, *_ROWS = [row.split() for row in _TABLE.strip().splitlines()]
AFTER = {(row[0], entry): then for row in _ROWS for entry, then in zip(_HEADINGS, row[1:], strict=True)}


def test_what_is_known_for_certain_never_gives_way_to_what_is_known_less_well() -> None:
    assert list(EntryState) == _HEADINGS, "the words in files stay what they are"
    found = {
        (now.value, entry.value): (entry if supersedes(entry, now) else now).value
        for now in EntryState
        for entry in EntryState
    }
    assert found == AFTER
    assert set(STATES) == set(EntryState)
    assert {state for state in STATES if not STATES[state].ended} == {
        EntryState.SUBMITTING,
        EntryState.REPEATED,
        EntryState.SUBMITTED,
    }


def test_a_request_counts_with_its_cost_or_else_with_its_reservation() -> None:
    for state in EntryState:
        free = state in {EntryState.REPEATED, EntryState.REFUSED, EntryState.CANCELLED}
        assert charge(state, 7, None) == Charge(0, 0 if free else 7)
        assert charge(state, 7, 5) == Charge(0 if free else 5, 0)
        assert charge(state, 7, 0) == charge(state, None, None) == Charge(0, 0)


@pytest.mark.parametrize(
    ("usd", "nano"),
    [(0.0, 0), (0.01, 10_000_000), (0.1 + 0.2, 300_000_000), (1e-9, 1), (1e4, 10**13)]
    + [(usd, None) for usd in (-0.01, math.nan, math.inf, -math.inf, 1e300, 1e10, 10_000.01)],
)
def test_money_is_counted_in_whole_billionths(usd: float, nano: int | None) -> None:
    assert to_nano(usd) == nano
    assert nano is None or from_nano(nano) == pytest.approx(usd, abs=1e-15)
