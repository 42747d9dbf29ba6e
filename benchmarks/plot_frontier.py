"""Draws polls a request against delay: other clients, ours at several prices of a poll, and the optimum.

    python benchmarks/plot_frontier.py [--output docs/images/frontier.png]

The profile klein of simulation.py at 1024 x 1024. The optimum is exact, one point for each price of a poll. Policies
that learn nothing are evaluated on the distribution itself; ours is simulated, warm, with fixed seeds. The figures
repeat exactly. Needs matplotlib.
"""

import argparse
import random
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from simulation import PEERS, PROFILES, SQUARE, Cost, optimum, policy_cost, simulate

from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.policies import ExponentialPolling, PollPolicy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, SHADE, OURS = "#333333", "#8a8a8a", "#eeeeee", "#4477aa"
OUTPUT = Path(__file__).parent.parent / "docs" / "images" / "frontier.png"
PRICES = (0.001, 0.002, 0.005, 0.010, 0.020, 0.050, 0.100)
LABELLED = {0.001: "poll_cost 0.001 s", 0.010: "AdaptivePolling, poll_cost 0.010 s", 0.100: "poll_cost 0.1 s"}
LEAST = [0.0003 * 10 ** (step / 10) for step in range(51)]  # prices from far below those to far above
WIDEST, TALLEST = (0.9, 14.0), (0.006, 7.0)
PROFILE = PROFILES["klein"]


def ours(price: float, requests: int = 2000, seeds: int = 8) -> Cost:
    """What our policy costs when warm, at this price of a poll."""
    rows = [
        row
        for seed in range(seeds)
        for row in simulate(AdaptivePolling(poll_cost=price), PROFILE, requests, seed=seed)[PROFILE.warm :]
    ]
    return Cost(fmean(row.excess for row in rows), fmean(row.polls for row in rows))


def others() -> dict[str, Cost]:
    """What policies that learn nothing cost."""
    policies: dict[str, PollPolicy] = {name: make() for name, make in PEERS.items()}
    policies["ExponentialPolling()"] = ExponentialPolling(spread=random.Random(0).random)
    return {name: policy_cost(policy, PROFILE.distribution(0, SQUARE)) for name, policy in policies.items()}


def frame(axes: "Axes") -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*WIDEST)
    axes.set_ylim(*TALLEST)
    axes.xaxis.set_major_locator(FixedLocator((1, 2, 3, 5, 10)))
    axes.yaxis.set_major_locator(FixedLocator((0.01, 0.03, 0.1, 0.3, 1, 3)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=10)
    axes.set_xlabel("polls a request", fontsize=11, color=INK)
    axes.set_title("mean seconds from the end to the poll that reports it", fontsize=11, color=INK, loc="left")


def draw(path: Path) -> None:
    figure = Figure(figsize=(7.6, 5), dpi=184, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    axes = figure.subplots()
    frame(axes)

    best = [optimum(PROFILE.distribution(0, SQUARE), price) for price in LEAST]
    polls, excess = [cost.polls for cost in best], [cost.excess for cost in best]
    # Noticing an end takes at least one poll.
    axes.fill_between([*polls, 1, WIDEST[0]], [*excess, TALLEST[1], TALLEST[1]], TALLEST[0], color=SHADE, linewidth=0)
    axes.plot(polls, excess, color=FAINT, linewidth=1)
    axes.text(1.6, 0.0125, "no schedule gets here", color=FAINT, fontsize=11, ha="center")

    found = {price: ours(price) for price in PRICES}
    x, y = [cost.polls for cost in found.values()], [cost.excess for cost in found.values()]
    axes.plot(x, y, color=OURS, linewidth=2, marker="o", markersize=6, markeredgecolor="white")
    for price, text in LABELLED.items():
        at = found[price].polls, found[price].excess
        axes.annotate(text, at, (8, 4), textcoords="offset points", color=OURS, fontsize=11)
    for name, cost in others().items():
        mine = name == "ExponentialPolling()"
        axes.plot(cost.polls, cost.excess, "o", color=OURS if mine else INK, markersize=6, markerfacecolor="white")
        at = cost.polls, cost.excess
        axes.annotate(name, at, (8, -4), textcoords="offset points", color=OURS if mine else INK, fontsize=11)
    figure.savefig(path)
    for price, cost in found.items():
        ratio = cost.total(price) / optimum(PROFILE.distribution(0, SQUARE), price).total(price)
        print(f"poll_cost {price:.3f} s: polls {cost.polls:.2f}, excess {cost.excess:.4f} s, J/J* {ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
