"""A test over every combination of some values: a few with the fast tests, all with the slow ones."""

from collections.abc import Collection, Iterable
from itertools import product
from typing import Any

import pytest

__all__ = ["cells"]


def cells(*values: Iterable[Any], fast: Collection[tuple[Any, ...]]) -> list[Any]:
    """What to parametrise with: every combination, marked slow unless it is one of `fast`."""
    combinations = list(product(*values))
    assert set(fast) <= set(combinations)
    return [pytest.param(*each, marks=() if each in fast else pytest.mark.slow) for each in combinations]
