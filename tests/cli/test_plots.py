"""The picture: drawn for any estimate, with the looks where they are."""

import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from flux_klein_async.cli import plots
from flux_klein_async.cli.explained import Heading
from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.explanation import Explanation, explain
from flux_klein_async.polling.rehearsal import rehearse

MODEL, SQUARE = "a/b", 1024 * 1024


def explained(seconds: float, spread: float = 0.15, *, stragglers: bool = False) -> Explanation:
    policy, chance = AdaptivePolling(), random.Random(0)
    if seconds:
        slower = (7.0 if stragglers and not number % 33 else 1.0 for number in range(100))
        drawn = [seconds * times * chance.lognormvariate(0, spread) for times in slower]
        rehearse(policy, drawn, model=MODEL, pixels=SQUARE)
    return explain(policy, MODEL, SQUARE)


TIMES = {"fresh": (0.0, 0.0), "usual": (0.57, 0.15), "wide": (0.57, 1.5), "narrow": (0.4, 0.0), "slow": (300.0, 0.3)}


def heading(**facts: object) -> Heading:
    values = {"model": MODEL, "size": "1024 x 1024", "queued": False, "origin": "here", "there": True}
    return Heading(**{**values, **facts})


@pytest.mark.parametrize("times", TIMES.values(), ids=list(TIMES))
def test_any_estimate_makes_a_picture(tmp_path: Path, times: tuple[float, float]) -> None:
    plots.draw(heading(), explained(*times), tmp_path / "picture")
    with Image.open(tmp_path / "picture") as picture:
        assert (picture.format, picture.size) == ("PNG", (1200, 750))
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 100


def test_the_tail_behind_the_table_is_drawn_to_the_edge() -> None:
    told = explained(0.57, stragglers=True)
    times, shares, hazards = plots._curves(told, 5.0)
    assert told.distribution.times[-1] < 5.0 < times[-1]
    assert hazards[-1] == pytest.approx(1 / times[-1], rel=0.01)
    assert shares[-1] == pytest.approx(1 - told.distribution.at(times[-1]), rel=0.01)


def test_the_queue_and_no_origin_are_drawn_too(tmp_path: Path) -> None:
    plots.draw(heading(queued=True, origin=None), explained(0.0), tmp_path / "picture")
    assert (tmp_path / "picture").stat().st_size > 10_000


def test_a_path_with_dollars_is_no_formula(tmp_path: Path) -> None:
    plots.draw(heading(origin=r"/$\frac$/times.json"), explained(0.57), tmp_path / "picture")


def test_the_looks_are_where_they_are_made(tmp_path: Path) -> None:
    told = explained(0.57)
    plots.draw(heading(), told, tmp_path / "picture")
    with Image.open(tmp_path / "picture") as picture:
        row = [picture.convert("RGB").getpixel((x, 150)) for x in range(picture.width)]  # between labels and curve
    red = [x for x, (r, g, _) in enumerate(row) if r > g + 60]
    lines = [x for before, x in pairwise([-9, *red]) if x > before + 1]
    ages = [math.log(look.at) for look in told.looks[:3]]
    scale = (lines[2] - lines[0]) / (ages[2] - ages[0])
    assert [line - lines[0] for line in lines[:3]] == pytest.approx([scale * (age - ages[0]) for age in ages], abs=2)


@pytest.mark.parametrize(
    ("low", "high"), [(0.36, 0.85), (0.15, 2.9), (0.37, 5.2), (0.001, 900.0), (0.3, 0.54), (0.41, 0.42), (250.0, 380.0)]
)
def test_numbers_on_the_axis_have_room(low: float, high: float) -> None:
    ticks = plots._ticks(low, high)
    assert all(low <= tick <= high for tick in ticks)
    assert all(math.log(later / tick) > 0.045 * math.log(high / low) for tick, later in pairwise(ticks))
    assert len(ticks) >= min(3, 10 * math.log10(high / low) // 1)
