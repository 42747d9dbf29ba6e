"""Events are small, frozen, exported, and hold nothing that must not be shown."""

import dataclasses
from types import UnionType
from typing import Any, get_args, get_type_hints

import pytest

from flux_klein_async import events
from flux_klein_async.emulator import error_reply
from flux_klein_async.events import Event
from flux_klein_async.models import RequestState

CLASSES = [value for _, value in sorted(vars(events).items()) if isinstance(value, type) and issubclass(value, Event)]

# A field that is not listed here was added without asking whether it may hold a token, an input or a resource.
FIELDS = {
    "Cancelled": {"abandoned", "cancelled"},
    "Closed": {"left_running"},
    "Downloaded": {"paths", "seconds", "sha256"},
    "Event": set(),
    "Failed": {"call", "cost_usd", "error", "error_type", "model", "seconds", "verb"},
    "Finished": {"cost_usd", "lag_max", "polls", "model", "seconds"},
    "Held": {"kind", "seconds", "status_code"},
    "LimiterChanged": {"available", "error"},
    "Polled": {"error", "poll", "state"},
    "Retrying": {"attempt", "call", "error", "kind", "seconds", "status_code"},
    "StateChanged": {"queue_position", "state"},
    "Submitted": {"call", "model", "seconds"},
    "Uncertain": {"call", "error", "model", "seconds"},
}


def make(cls: type[Event]) -> Event:
    """An event of this class, filled by the types of its fields."""
    samples: dict[object, Any] = {
        float: 1.0,
        int: 1,
        str: "a",
        tuple[str, ...]: ("a",),
        RequestState: RequestState.COMPLETED,
    }
    hints = get_type_hints(cls)
    build: Any = cls
    event: Event = build(**{field.name: samples.get(hints[field.name]) for field in dataclasses.fields(cls)})
    return event


def test_exports_every_event() -> None:
    assert events.__all__ == [cls.__name__ for cls in CLASSES]


def test_has_no_field_that_could_hold_an_input_or_a_token() -> None:
    common = {field.name for field in dataclasses.fields(Event)}
    own = {cls.__name__: {field.name for field in dataclasses.fields(cls)} - common for cls in CLASSES}
    assert (common, own) == ({"at", "request_id", "tag"}, FIELDS)


@pytest.mark.parametrize("cls", CLASSES)
def test_is_a_small_frozen_object_of_plain_values(cls: type[Event]) -> None:
    plain = {float, int, str, bool, RequestState, type(None), tuple[str, ...]}
    for name, hint in get_type_hints(cls).items():
        assert name == "tag" or {*(get_args(hint) if isinstance(hint, UnionType) else [hint])} <= plain
    event = make(cls)
    assert not hasattr(event, "__dict__")
    for field in dataclasses.fields(cls):
        assert field.kw_only
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, field.name, None)


async def test_without_a_handler_no_event_is_made(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for cls in CLASSES:
        monkeypatch.setattr(cls, "__init__", lambda self, **fields: made.append(type(self).__name__))
    await connect().generate("a cat")
    assert made == []
    await connect(on_event=lambda event: None).generate("a cat")
    assert {"Submitted", "Polled", "StateChanged", "Finished"} <= set(made)


async def test_events_before_the_id_is_known_share_a_call_with_the_one_that_brings_it(
    connect: Any, klein_emulator: Any
) -> None:
    klein_emulator.script("submit", error_reply(429))
    told: list[Event] = []
    client = connect(on_event=told.append)
    await client.generate("a cat")
    await client.generate("a dog")
    repeated, accepted, other = (event for event in told if isinstance(event, events.Retrying | events.Submitted))
    assert isinstance(repeated, events.Retrying)
    assert isinstance(accepted, events.Submitted)
    assert repeated.kind == "submit"
    assert (repeated.request_id, repeated.call) == (None, accepted.call)
    assert accepted.call != getattr(other, "call", None)
