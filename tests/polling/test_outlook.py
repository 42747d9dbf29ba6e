"""Outlooks are worked out again when enough is new, and a changed service is noticed."""

import random

import pytest

from flux_klein_async.polling.durations import Size
from flux_klein_async.polling.outlook import Drift, History

SIZE, OTHER = Size.of(1024 * 1024), Size.of(512 * 512)
PRICE = 0.01


def taught(history: History, count: int, median: float = 0.57, *, size: Size = SIZE, seed: int = 0) -> History:
    chance = random.Random(seed)
    for _ in range(count):
        seconds = median * chance.lognormvariate(0, 0.15)
        history.outlook(size).learn(seconds, seconds)
    return history


def renewals(history: History, count: int, median: float = 0.57) -> int:
    """How often the outlook was worked out again during so many samples."""
    seen = set()
    kept = []
    for seed in range(count):
        taught(history, 1, median, seed=seed)
        kept.append(history.outlook(SIZE).distribution())
        seen.add(id(kept[-1]))
    return len(seen)


def test_there_is_one_outlook_for_each_size() -> None:
    history = History()
    assert history.outlook(SIZE) is history.outlook(SIZE)
    assert history.outlook(SIZE) is not history.outlook(OTHER)


def test_nothing_new_is_not_worked_out_again() -> None:
    outlook = taught(History(), 50).outlook(SIZE)
    assert outlook.distribution() is outlook.distribution()
    assert outlook.schedule(PRICE) is outlook.schedule(PRICE)


def test_it_is_worked_out_again_ever_more_rarely() -> None:
    history = History()
    first, then, warm = renewals(history, 8), renewals(history, 200), renewals(history, 640)
    assert first >= 4
    assert then <= 12
    assert 4 <= warm <= 8


def test_a_size_with_little_of_its_own_follows_the_others() -> None:
    history = taught(History(), 1)
    outlook = history.outlook(OTHER)
    before = outlook.distribution()
    taught(history, 40)
    assert outlook.distribution() is not before
    taught(history, 10, 0.19, size=OTHER)
    settled = outlook.distribution()
    taught(history, 100, seed=1)
    assert outlook.distribution() is settled


@pytest.mark.parametrize("factor", [0.4, 0.6, 1.7, 2.0, 5.0])
def test_a_changed_service_is_believed_within_fifty_samples(factor: float) -> None:
    history = taught(History(), 400)
    taught(history, 50, 0.57 * factor, seed=1)
    estimate = history.outlook(SIZE).distribution()
    assert estimate.quantile(0.5) == pytest.approx(0.57 * factor, rel=0.08)


def test_a_change_seen_at_one_size_makes_the_others_old() -> None:
    history = taught(taught(History(), 100), 100, 0.19, size=OTHER)
    outlook = history.outlook(OTHER)
    before = outlook.distribution()
    taught(history, 40, 1.14, seed=1)
    assert outlook.distribution() is not before
    assert outlook.distribution().quantile(0.5) > 0.24


def test_chance_alone_changes_nothing() -> None:
    drift, chance = Drift(), random.Random(0)
    assert sum(drift.push(chance.random()) for _ in range(100_000)) <= 2


@pytest.mark.parametrize("rank", [0.0, 1.0])
def test_eight_of_a_kind_are_a_change(rank: float) -> None:
    drift = Drift()
    assert [drift.push(rank) for _ in range(8)] == [False] * 7 + [True]
    assert not drift.push(rank)


def test_schedules_differ_by_price_and_by_what_is_known_of_the_start() -> None:
    outlook = taught(History(), 50).outlook(SIZE)
    plain = outlook.schedule(PRICE)
    assert outlook.schedule(PRICE, 1.1) is plain
    assert outlook.schedule(PRICE, 0.1) is plain
    assert outlook.schedule(PRICE, float("nan")) is plain
    assert outlook.schedule(PRICE, 1.0, 0.005) is plain
    assert outlook.schedule(PRICE, 4.0).cost > plain.cost
    assert outlook.schedule(PRICE, float("inf")) is outlook.schedule(PRICE, 1024.0)
    assert outlook.schedule(PRICE, 1.0, 0.5).after(0) > plain.after(0)


def test_few_schedules_are_kept() -> None:
    outlook = taught(History(), 50).outlook(SIZE)
    first = outlook.schedule(PRICE)
    for step in range(300):
        outlook.schedule(PRICE + step / 1000)
    assert outlook.schedule(PRICE) is not first
