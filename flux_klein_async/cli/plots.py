"""An explanation as a picture. Needs the extra `plots`.

Figures are made without pyplot: no window opens, and no state of matplotlib's is touched.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from flux_klein_async.cli.explained import Heading
from flux_klein_async.polling.explanation import OURS, Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

# Blue, ochre and red of Paul Tol's colour schemes: every eye tells them apart.
_INK, _FAINT, _ENDS, _HAZARD, _LOOKS = "#333333", "#8a8a8a", "#4477aa", "#997700", "#cc3311"
_SHOWN: Final = (0.002, 0.99)  # quantiles at the edges
_LONGEST: Final = 9.0  # medians at the right edge: behind them is only the tail
_NARROWEST: Final = (0.75, 1.35)  # medians at the edges at least
_ROOM: Final = 0.042  # of the width, that a look's label takes
_TICK_ROOM: Final = 0.045
_TAIL_STEP: Final = 1.05
# From dense to sparse; the first in which all numbers find room is taken.
_TICKS: Final = ((1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9), (1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,))


def draw(heading: Heading, explanation: Explanation, path: Path) -> None:
    """Write the PNG: when it ends, the hazard below it, the looks through both.

    Raises:
        OSError: It cannot be written.
    """
    figure = Figure(figsize=(8, 5), dpi=150, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 2]})
    distribution = explanation.distribution
    low, middle, high = (distribution.quantile(chance) for chance in (_SHOWN[0], 0.5, _SHOWN[1]))
    low, high = min(low, _NARROWEST[0] * middle), max(min(high, _LONGEST * middle), _NARROWEST[1] * middle)
    times, shares, hazards = _curves(explanation, high)
    _frame(above, below, low, high)
    _fill(above, times, shares, _ENDS)
    _fill(below, times, hazards, _HAZARD)
    below.set_xlabel(f"seconds since {'the end of the queue' if heading.queued else 'acceptance'}", color=_INK)
    above.set_ylabel("when it ends", color=_ENDS)
    below.set_ylabel("hazard, a second", color=_HAZARD)
    _looks(above, below, explanation, low, high)
    _title(above, heading, explanation)
    with path.open("wb") as file:
        figure.savefig(file, format="png")


def _curves(explanation: Explanation, high: float) -> tuple[list[float], list[float], list[float]]:
    """Times; the density there in log time, so that equal areas are equal chances; the hazard a second."""
    table = explanation.distribution
    edges = list(table.times[1:])  # without 0, whose logarithm is none
    while edges[-1] <= high * _TAIL_STEP:
        edges.append(edges[-1] * _TAIL_STEP)
    times, shares, hazards = [], [], []
    entries = [(edge, table.at(edge)) for edge in edges]
    for (start, before), (end, after) in pairwise(entries):
        times.append(math.sqrt(start * end))
        shares.append((after - before) / math.log(end / start))
        hazards.append(math.log((1 - before) / (1 - after)) / (end - start))
        if start > high:
            break
    return times, shares, hazards


def _frame(above: "Axes", below: "Axes", low: float, high: float) -> None:
    above.set_xscale("log")
    above.set_xlim(low, high)
    below.xaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    below.xaxis.set_minor_locator(NullLocator())
    above.set_yticks([])
    above.tick_params(axis="x", length=0)
    below.yaxis.set_major_locator(MaxNLocator(4))
    for axes in (above, below):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_FAINT)
        axes.tick_params(colors=_INK, labelsize=9)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the edges, far enough from each other to be read."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    room = math.exp(_TICK_ROOM * math.log(high / low))
    ticks: list[float] = []
    for numbers in _TICKS:
        ticks = [tick for decade in decades for number in numbers if low <= (tick := number * 10.0**decade) <= high]
        if all(after / before > room for before, after in pairwise(ticks)):
            break
    return ticks


def _fill(axes: "Axes", times: list[float], values: list[float], colour: str) -> None:
    axes.fill_between(times, values, color=colour, alpha=0.22, linewidth=0)
    axes.plot(times, values, color=colour, linewidth=1.5)
    axes.set_ylim(0, 1.12 * max(values))


def _looks(above: "Axes", below: "Axes", explanation: Explanation, low: float, high: float) -> None:
    """A line for each look, and above it the chance that it sees the end, where there is room to say so."""
    free, reached = 0.0, 1.0
    for look in explanation.looks:
        faded, reached = 0.15 + 0.75 * math.sqrt(reached), look.survival  # the fewer get there, the fainter
        place = math.log(look.at / low) / math.log(high / low)
        if not 0 < place < 1:
            continue
        for axes in (above, below):
            axes.axvline(look.at, color=_LOOKS, linewidth=1, alpha=faded)
        if place > free and look.sees >= 0.005:
            free = place + _ROOM
            place_above = above.get_xaxis_transform()
            above.text(look.at, 1.015, f"{look.sees:.0%}", color=_LOOKS, fontsize=9, ha="center", transform=place_above)


def _title(axes: "Axes", heading: Heading, explanation: Explanation) -> None:
    ours = explanation.costs[OURS]
    knowledge = f"learned from {heading.origin}" if explanation.known else "believed before the first generation"
    told = (
        f"A look, and the chance that it sees the end: {ours.looks:.1f} looks a wait, which end it {ours.excess:.3f} s "
        "late in the mean"
    )
    _line(axes, 52, heading.model, _INK, fontsize=11, fontweight="bold")
    _line(axes, 36, f"{heading.size}, {knowledge}", _INK, fontsize=9.5)
    _line(axes, 18, told, _LOOKS, fontsize=9.5)


def _line(axes: "Axes", height: float, text: str, colour: str, **style: Any) -> None:
    """A line of text so many points above the axes; a dollar in it is a dollar, no formula."""
    at, points = "axes fraction", "offset points"
    axes.annotate(text, (0, 1), (0, height), xycoords=at, textcoords=points, color=colour, parse_math=False, **style)
