"""The text keeps to 80 columns and says what the figures say."""

import random
import re

import pytest

from flux_klein_async.cli.explained import Heading, as_lines, as_record
from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.explanation import OURS, explain
from flux_klein_async.polling.rehearsal import rehearse

MODEL, SQUARE = "blackforestlabs/flux-2-klein/4b/text-to-image", 1024 * 1024


def policy(seconds: float, stragglers: float = 0.0) -> AdaptivePolling:
    made, chance = AdaptivePolling(), random.Random(0)
    if seconds:
        slower = [seconds * (9.0 if chance.random() < stragglers else 1.0) for _ in range(50)]
        rehearse(made, [each * chance.lognormvariate(0, 0.2) for each in slower], model=MODEL, pixels=SQUARE)
    return made


def heading(**facts: object) -> Heading:
    values = {"model": MODEL, "size": "1024 x 1024", "queued": False, "origin": "here", "there": True}
    return Heading(**{**values, **facts})


POLICIES = {
    "fresh": policy(0),
    "usual": policy(0.5),
    "heavy": policy(0.5, 0.1),
    "slow": policy(90),
    "fast": policy(0.01),
}


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("name", POLICIES)
def test_every_line_fits_into_80_columns(name: str, bars: bool) -> None:
    lines = list(as_lines(heading(), explain(POLICIES[name], MODEL, SQUARE), bars=bars))
    assert max(map(len, lines)) <= 80
    assert "\n".join(lines).isascii() is not bars
    assert all(line == line.rstrip() for line in lines)


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    told = explain(POLICIES["usual"], MODEL, SQUARE)
    text = "\n".join(as_lines(heading(), told, bars=False))
    rows = re.findall(r"^ +[\d.]+ s +([\d.]+)% (#*) +([\d.]+)% +([\d.]+)(?: (#*))?$", text, re.MULTILINE)
    assert len(rows) == len(told.steps)
    most, highest = max(step.chance for step in told.steps), max(step.hazard for step in told.steps)
    for (chance, bar, survival, hazard, other), step in zip(rows, told.steps, strict=True):
        assert (float(chance), float(survival)) == (
            pytest.approx(100 * step.chance, abs=0.06),
            pytest.approx(100 * step.survival, abs=0.06),
        )
        assert float(hazard) == pytest.approx(step.hazard, abs=0.006)
        assert (len(bar), len(other)) == (round(18 * step.chance / most), round(18 * step.hazard / highest))


def test_block_characters_tell_eighths() -> None:
    told = explain(POLICIES["usual"], MODEL, SQUARE)
    bars = re.findall("[█▏▎▍▌▋▊▉]+", "\n".join(as_lines(heading(), told, bars=True)))
    assert max(map(len, bars)) == 18
    assert "█" * 18 in bars
    assert len({character for bar in bars for character in bar}) > 3


def test_costs_are_told_beside_ours() -> None:
    told = explain(POLICIES["usual"], MODEL, SQUARE)
    text = "\n".join(as_lines(heading(), told, bars=True))
    assert re.search(rf"  {OURS} .* 1\.0x$", text, re.MULTILINE)
    ratio = told.costs["vendor CLI"].total(0.01) / told.costs[OURS].total(0.01)
    assert re.search(rf"  vendor CLI .* {ratio:.1f}x$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "facts", "words"),
    [
        ("usual", {}, ["learned from  here", "samples       50 of this size"]),
        ("fresh", {}, ["learned from  nothing yet", "(here has nothing of this)", "samples       0 of this size"]),
        ("fresh", {"there": False}, ["(here is not there)"]),
        ("fresh", {"queued": True}, ["clock         from the end of the queue on"]),
    ],
)
def test_it_says_what_it_knows_and_from_where(name: str, facts: dict[str, object], words: list[str]) -> None:
    text = "\n".join(as_lines(heading(**facts), explain(POLICIES[name], MODEL, SQUARE), bars=True))
    assert [word for word in words if word not in text] == []


def test_without_any_place_none_is_named() -> None:
    text = "\n".join(as_lines(heading(origin=None), explain(POLICIES["fresh"], MODEL, SQUARE), bars=True))
    assert "nothing yet" in text
    assert "None" not in text


def test_what_other_sizes_lend_and_the_other_clock_knows_is_told() -> None:
    other = explain(POLICIES["usual"], MODEL, 512 * 512)
    assert "0 of this size, and 50 lent by other sizes" in "\n".join(as_lines(heading(), other, bars=True))
    queued = explain(POLICIES["usual"], MODEL, SQUARE, queued=True)
    assert "(50 more without --queued)" in "\n".join(as_lines(heading(queued=True), queued, bars=True))
    assert "(50 more with --queued)" in "\n".join(as_lines(heading(), queued, bars=True))


def test_the_record_holds_the_same_figures() -> None:
    told = explain(POLICIES["usual"], MODEL, SQUARE)
    record = as_record(heading(), told)
    assert record["quantiles"]["p50"] == told.quantiles[0.5]
    assert record["looks"][0] == {
        "at": told.looks[0].at,
        "gap": told.looks[0].gap,
        "sees": told.looks[0].sees,
        "survival": told.looks[0].survival,
    }
    assert record["costs"][OURS]["j"] == told.costs[OURS].total(0.01)
    assert as_record(heading(), explain(POLICIES["fresh"], MODEL, SQUARE))["origin"] is None
