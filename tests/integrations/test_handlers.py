"""Handlers side by side, and what of a value may be shown."""

import pytest

from flux_klein_async.events import Closed, Event
from flux_klein_async.integrations.handlers import clipped, combine, plain

EVENT = Closed(at=1.0, left_running=())


def test_each_handler_is_told_in_its_order_and_none_is_left_out(caplog):
    told: list[tuple[str, Event]] = []
    combine(lambda event: told.append(("a", event)), None, lambda event: told.append(("b", event)))(EVENT)
    assert told == [("a", EVENT), ("b", EVENT)]
    assert caplog.records == []


def test_one_that_raises_is_logged_and_keeps_nothing_from_the_others(caplog):
    told: list[Event] = []

    def broken(event: Event) -> None:
        raise LookupError("mine")

    combine(broken, told.append, broken, told.append)(EVENT)
    assert told == [EVENT, EVENT]
    assert {record.name for record in caplog.records} == {"flux_klein_async"}
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [LookupError, LookupError]


def test_what_ends_the_program_is_not_held_back():
    def leave(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        combine(leave)(EVENT)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("row 7", "row 7"),
        ("two\r\nlines\x1b[31m\u2028\x85", "two  lines [31m  "),
        ("a\x00b\x1fc d~e\x7ff\x80g\x9fh\xa0i\u2028j\u2029k\u2027l\u202a", "a b c d~e f g h\xa0i j k\u2027l\u202a"),
        ("\ud800", "?"),
        ("x" * 301, "x" * 299 + "…"),
        ("x" * 300, "x" * 300),
        (7, 7),
        (-(2**63), -(2**63)),
        (2**63, "int"),
        (0.5, 0.5),
        (True, True),
        (("a", "b\n"), ("a", "b ")),
        (("a",) * 11, ("a",) * 10),
        ((1, 2), "tuple"),
        ({"token": "s"}, "dict"),
        (None, "NoneType"),
    ],
)
def test_only_numbers_and_bounded_text_are_shown_of_a_value(value, shown):
    assert plain(value) == shown
    assert type(plain(value)) is type(shown)


def test_a_text_stays_in_one_line():
    assert clipped("a\nb") == "a b"
