"""An explanation as text of 80 columns, and as the record of `--json`. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from flux_klein_async.cli.records import Record
from flux_klein_async.polling.explanation import OURS, UNTIL, Explanation

__all__ = ["Heading", "as_lines", "as_record"]

_BAR = 18  # columns of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉"
_LOOKS = 12  # looks that are told one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What is explained.

    Attributes:
        origin: Where knowledge of it would come from, or None.
        there: Whether that exists.
    """

    model: str
    size: str
    queued: bool
    origin: str | None
    there: bool


def as_lines(heading: Heading, explanation: Explanation, *, bars: bool) -> Iterator[str]:
    """The text; `bars`: of block characters, else of `#`."""
    yield from _heading(heading, explanation)
    yield ""
    yield from _times(explanation)
    yield ""
    yield from _steps(explanation, bars=bars)
    yield ""
    yield from _looks(explanation)
    yield ""
    yield from _costs(explanation)


def _heading(heading: Heading, explanation: Explanation) -> Iterator[str]:
    yield f"model         {heading.model}"
    yield f"size          {heading.size}"
    yield f"clock         from {'the end of the queue' if heading.queued else 'acceptance'} on"
    if explanation.known:
        yield f"learned from  {heading.origin}"
    else:
        yield "learned from  nothing yet; what follows is believed before the first generation"
        if heading.origin is not None:
            yield f"              ({heading.origin} {'has nothing of this' if heading.there else 'is not there'})"
    lent = f", and {explanation.lent:.0f} lent by other sizes" if explanation.lent else ""
    yield f"samples       {explanation.samples:.0f} of this size{lent}"
    if explanation.otherwise:
        how = "without" if heading.queued else "with"
        yield f"              ({explanation.otherwise:.0f} more {how} --queued)"


def _times(explanation: Explanation) -> Iterator[str]:
    yield "How long it takes: so many in a hundred have ended by then"
    yield "  " + "".join(f"{chance:>12.0%}" for chance in explanation.quantiles)
    yield "  " + "".join(f"{_seconds(value):>12}" for value in explanation.quantiles.values())


def _steps(explanation: Explanation, *, bars: bool) -> Iterator[str]:
    yield "When it ends (hazard: ends a second, of those still running)"
    yield f"  {'from':>8}{'ends before the next':>22}{'still running':>20}     hazard"
    most, highest = (max(values) for values in zip(*((s.chance, s.hazard) for s in explanation.steps), strict=True))
    for step in explanation.steps:
        ends = f"{step.chance:>8.1%} {_bar(step.chance / most, bars=bars)}"
        hazard = f"{step.hazard:>10.2f} {_bar(step.hazard / highest, bars=bars)}"
        yield f"  {_seconds(step.start):>8}{ends}{step.survival:>12.1%}{hazard}".rstrip()


def _looks(explanation: Explanation) -> Iterator[str]:
    yield f"When it looks, at {explanation.look_cost:g} s a look"
    yield "  look          at         gap   sees the end   still running after"
    for number, look in enumerate(explanation.looks[:_LOOKS], 1):
        yield (f"  {number:>4}{_seconds(look.at):>12}{_seconds(look.gap):>12}{look.sees:>15.1%}{look.survival:>22.1%}")
    if len(explanation.looks) > _LOOKS:
        yield "  and on, ever more rarely"


def _costs(explanation: Explanation) -> Iterator[str]:
    price = explanation.look_cost
    yield f"What that costs, beside other clients on the same times (waits of at most {UNTIL:g} s)"
    yield "  J = mean excess + look cost x mean looks"
    yield f"  {'':26}{'excess':>10}{'looks':>10}{'J':>12}{'of ours':>10}"
    ours = explanation.costs[OURS].total(price)
    for name, cost in explanation.costs.items():
        total = cost.total(price)
        yield f"  {name:26}{_seconds(cost.excess):>10}{cost.looks:>10.1f}{_seconds(total):>12}{total / ours:>9.1f}x"


def _bar(part: float, *, bars: bool) -> str:
    if not bars:
        return ("#" * round(part * _BAR)).ljust(_BAR)
    whole, rest = divmod(round(part * _BAR * 8), 8)
    return ("█" * whole + _EIGHTHS[rest].strip()).ljust(_BAR)


def _seconds(seconds: float) -> str:
    """With three figures that count."""
    return f"{seconds:.3f} s" if seconds < 10 else f"{seconds:.1f} s"


def as_record(heading: Heading, explanation: Explanation) -> Record:
    """One JSON object; all times in seconds."""
    price = explanation.look_cost
    return {
        "model": heading.model,
        "size": heading.size,
        "queued": heading.queued,
        "origin": heading.origin if explanation.known else None,
        "samples": explanation.samples,
        "lent": explanation.lent,
        "otherwise": explanation.otherwise,
        "look_cost": price,
        "quantiles": {f"p{chance * 100:.0f}": value for chance, value in explanation.quantiles.items()},
        "steps": [step._asdict() for step in explanation.steps],
        "looks": [look._asdict() for look in explanation.looks],
        "costs": {name: {**cost._asdict(), "j": cost.total(price)} for name, cost in explanation.costs.items()},
    }
