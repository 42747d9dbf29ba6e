"""A body is begun or dropped, never both: the first call decides. It is begun once."""

import itertools

import pytest

from flux_klein_async.transport.base import BodyGuard


@pytest.mark.parametrize(
    ("steps", "answers", "written"),
    [
        ([], [], False),
        (["begin"], [True], False),
        (["drop"], [True], False),
        (["begin", "wrote"], [True, None], True),
        (["begin", "drop"], [True, False], False),
        (["begin", "drop", "wrote"], [True, False, None], True),
        (["begin", "wrote", "drop"], [True, None, False], True),
        (["drop", "begin"], [True, False], False),
        (["begin", "begin"], [True, False], False),
        (["begin", "wrote", "begin"], [True, None, False], True),
        (["drop", "drop"], [True, True], False),
        (["begin", "drop", "begin", "drop"], [True, False, False, False], False),
        (["drop", "begin", "drop", "begin"], [True, False, True, False], False),
    ],
)
def test_the_first_call_decides(steps: list[str], answers: list[bool | None], written: bool) -> None:
    guard = BodyGuard()
    assert ([getattr(guard, step)() for step in steps], guard.written) == (answers, written)


@pytest.mark.parametrize("steps", list(itertools.product(["begin", "drop"], repeat=4)))
def test_no_body_is_both_begun_and_dropped(steps: tuple[str, ...]) -> None:
    guard = BodyGuard()
    allowed = [step for step in steps if getattr(guard, step)()]
    assert set(allowed) == {steps[0]}
    assert allowed.count("begin") <= 1
