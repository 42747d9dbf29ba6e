"""A body is begun or dropped, never both: whoever comes first decides."""

import itertools

import pytest

from flux_klein_async.transport.base import BodyGuard


@pytest.mark.parametrize(
    ("steps", "answers", "begun"),
    [
        ([], [], False),
        (["begin"], [True], True),
        (["drop"], [True], False),
        (["begin", "drop"], [True, False], True),
        (["drop", "begin"], [True, False], False),
        (["begin", "begin"], [True, False], True),
        (["drop", "drop"], [True, True], False),
        (["begin", "drop", "begin", "drop"], [True, False, False, False], True),
        (["drop", "begin", "drop", "begin"], [True, False, True, False], False),
    ],
)
def test_who_comes_first_decides(steps: list[str], answers: list[bool], begun: bool) -> None:
    guard = BodyGuard()
    assert ([getattr(guard, step)() for step in steps], guard.begun) == (answers, begun)


@pytest.mark.parametrize("steps", list(itertools.product(["begin", "drop"], repeat=4)))
def test_no_body_is_both_begun_and_dropped(steps: tuple[str, ...]) -> None:
    guard = BodyGuard()
    allowed = {step for step in steps if getattr(guard, step)()}
    assert allowed == {steps[0]}


def test_guards_do_not_share_their_state() -> None:
    first, second = BodyGuard(), BodyGuard()
    first.begin()
    assert (first.begun, second.begun) == (True, False)


def test_a_first_write_that_was_refused_leaves_nothing() -> None:
    guard = BodyGuard()
    guard.begin()
    guard.failed()
    assert (guard.begun, guard.begin(), guard.drop()) == (False, False, True)
