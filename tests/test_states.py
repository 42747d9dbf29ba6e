"""Where a request stands: every word that was seen for it, and no end where nobody knows."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.states import RequestState


@pytest.mark.parametrize("spell", [str, str.upper, str.title, lambda word: f"  {word}\n"])
@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("in_queue", "in_queue"),
        ("pending", "in_queue"),
        ("waiting", "in_queue"),
        ("in_progress", "in_progress"),
        ("starting", "in_progress"),
        ("processing", "in_progress"),
        ("completed", "completed"),
        ("succeeded", "completed"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
        ("canceled", "cancelled"),
        ("unknown", "unknown"),
        ("paused", "unknown"),
        ("", "unknown"),
    ],
)
def test_reads_every_word_for_a_state_in_any_case(word: str, state: str, spell: Any) -> None:
    assert RequestState.read(spell(word)) == state


@pytest.mark.parametrize("word", [None, 1, True, b"completed", ["completed"], {}])
def test_what_is_no_word_is_an_unknown_state(word: object) -> None:
    assert RequestState.read(word) is RequestState.UNKNOWN


@given(st.one_of(st.text(), st.binary(), st.integers(), st.none(), st.lists(st.text()), st.floats()))
def test_reading_a_state_never_raises(word: object) -> None:
    assert isinstance(RequestState.read(word), RequestState)


def test_three_states_are_ends() -> None:
    assert {state.value for state in RequestState if state.final} == {"completed", "failed", "cancelled"}
