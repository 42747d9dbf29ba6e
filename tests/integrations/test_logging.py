"""One record for each event, with its facts as fields and at a fitting level; handlers side by side."""

import json
import logging
from typing import Any

import pytest

from flux_klein_async import FluxKleinError, events
from flux_klein_async.emulator import Reset, error_reply
from flux_klein_async.integrations.logging import LogEvents, combine
from flux_klein_async.models import RequestState
from flux_klein_async.text import plain

EVENT = events.Closed(at=1.0, left_running=())


def test_each_handler_is_called_in_order_and_an_exception_of_one_is_logged(caplog):
    told: list[tuple[str, events.Event]] = []

    def broken(event: events.Event) -> None:
        raise LookupError("mine")

    handle = combine(
        broken, lambda event: told.append(("a", event)), None, broken, lambda event: told.append(("b", event))
    )
    handle(EVENT)
    assert told == [("a", EVENT), ("b", EVENT)]
    assert {record.name for record in caplog.records} == {"flux_klein_async"}
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [LookupError, LookupError]


def test_an_exception_that_ends_the_program_passes():
    def leave(event: events.Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        combine(leave)(EVENT)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("row 7", "row 7"),
        ("two\r\nlines\x1b[31m\u2028\x85", r"two\r\nlines\x1b[31m\u2028\x85"),
        ("a\x00b c~\xa0\u202a", "a\\x00b c~\xa0\\u202a"),
        ("\ud800", r"\ud800"),
        ("\n" * 299, r"\n" * 148 + "\\..."),
        ("x" * 301, "x" * 297 + "..."),
        ("x" * 300, "x" * 300),
        (7, 7),
        (-(2**63), -(2**63)),
        (2**63, "int"),
        (0.5, 0.5),
        (True, True),
        (("a", "b\n"), ("a", r"b\n")),
        (("a",) * 11, ("a",) * 10),
        ((1, 2), "tuple"),
        ({"token": "s"}, "dict"),
        (None, "NoneType"),
    ],
)
def test_only_numbers_and_bounded_text_are_shown_of_a_value(value, shown):
    assert plain(value) == shown
    assert type(plain(value)) is type(shown)


PROMPT = "a snow leopard that must not be logged"
DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR
TABLE = [
    (events.Submitted(at=1.0, request_id="r", tag=7, seconds=0.25), INFO, "submitted request_id=r tag=7 seconds=0.250"),
    (events.Polled(at=1.0, request_id="r", poll=2, state=None, error="e"), DEBUG, "polled request_id=r poll=2 error=e"),
    (
        events.StateChanged(at=1.0, request_id="r", state=RequestState.IN_QUEUE, queue_position=0),
        DEBUG,
        "state_changed request_id=r state=in_queue queue_position=0",
    ),
    (events.Held(at=1.0, kind="read", seconds=3.0), WARNING, "held kind=read seconds=3.000"),
    (events.LimiterChanged(at=1.0, available=False, error="e"), WARNING, "limiter_changed available=False error=e"),
    (events.Retrying(at=1.0, attempt=2, seconds=0.1, error="e"), WARNING, "retrying attempt=2 seconds=0.100 error=e"),
    (
        events.Finished(at=1.0, request_id="r", seconds=1.0, polls=2, lag_max=0.1, cost_usd=None),
        INFO,
        "finished request_id=r seconds=1.000 polls=2 lag_max=0.100",
    ),
    (
        events.Failed(at=1.0, error_type="E", error="a\nb", seconds=1.5, cost_usd=0.01),
        ERROR,
        r"failed error_type=E seconds=1.500 cost_usd=0.010 error=a\nb",
    ),
    (events.Cancelled(at=1.0, cancelled=False), INFO, "cancelled cancelled=False abandoned=False"),
    (events.Cancelled(at=1.0, cancelled=True, abandoned=True), INFO, "cancelled cancelled=True abandoned=True"),
    (events.Cancelled(at=1.0, cancelled=None, abandoned=True), WARNING, "cancelled abandoned=True"),
    (events.Uncertain(at=1.0, error="e"), ERROR, "uncertain error=e"),
    (events.Downloaded(at=1.0, paths=("a",), sha256=("b",)), INFO, "downloaded paths=('a',) sha256=('b',)"),
    (events.Closed(at=1.0, left_running=()), INFO, "closed left_running=() left_running_count=0"),
    (events.Closed(at=1.0, left_running=("r",)), WARNING, "closed left_running=('r',) left_running_count=1"),
    (events.Event(at=1.0), INFO, "event "),
]


@pytest.mark.parametrize(("event", "level", "message"), TABLE, ids=lambda value: type(value).__name__)
def test_an_event_is_one_record(event, level, message, caplog):
    caplog.set_level(DEBUG)
    LogEvents()(event)
    [record] = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == ("flux_klein_async.events", level, message)


def test_every_event_is_in_the_table():
    assert {type(event).__name__ for event, _, _ in TABLE} == set(events.__all__)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name.startswith("klein_")}


def test_the_facts_are_fields_of_the_record(caplog):
    LogEvents(logging.getLogger("mine"))(events.Failed(at=1.5, request_id="r", tag=object(), error_type="E", error="e"))
    [record] = caplog.records
    facts = {"at": 1.5, "request_id": "r", "tag": "object", "error_type": "E", "error": "e"}
    assert fields(record) == {"klein_event": "failed", **{f"klein_{name}": value for name, value in facts.items()}}
    assert record.name == "mine"


def test_a_record_is_bounded(caplog):
    LogEvents()(events.Closed(at=1.0, left_running=tuple(f"request-{number}" for number in range(10_000))))
    [record] = caplog.records
    assert (len(record.klein_left_running), record.klein_left_running_count) == (10, 10_000)
    assert len(record.getMessage()) < 400


def test_below_the_loggers_level_nothing_is_computed(caplog):
    class Loud(str):
        __slots__ = ()

        def __str__(self) -> str:
            raise AssertionError

    caplog.set_level(ERROR)
    LogEvents()(events.Submitted(at=1.0, request_id="r", tag=Loud("tag"), seconds=0.25))
    assert caplog.records == []


async def test_a_bad_day_is_logged_without_prompt_or_token(connect, klein_emulator, caplog, tmp_path):
    caplog.set_level(DEBUG, "flux_klein_async.events")
    klein_emulator.script("submit", error_reply(503, retry_after=1), None, Reset(accepted=True))
    client = connect(on_event=LogEvents())
    await client.download(await client.generate(PROMPT, tag="row 7"), tmp_path)
    with pytest.raises(FluxKleinError):
        await client.generate(PROMPT)
    await client.aclose()
    records = [record for record in caplog.records if record.name == "flux_klein_async.events"]
    happened = {record.klein_event for record in records}
    assert {"held", "retrying", "submitted", "polled", "finished", "downloaded", "uncertain", "failed"} < happened
    written = json.dumps([[record.getMessage(), fields(record)] for record in records])
    assert PROMPT not in written
    assert klein_emulator.api_key not in written
