"""`flux-klein explain`: what is believed of how long generations take, and when they are therefore looked at."""

import json
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flux_klein_async.cli import service
from flux_klein_async.cli.exits import ExitCode
from flux_klein_async.cli.explained import Heading, as_lines, as_record
from flux_klein_async.cli.parameters import BaseUrl, ModelId
from flux_klein_async.cli.records import json_line
from flux_klein_async.cli.render import Screen, is_utf8
from flux_klein_async.flow.orders import Order, prepare
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE
from flux_klein_async.options import finite
from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.explanation import Explanation
from flux_klein_async.polling.explanation import explain as explained
from flux_klein_async.polling.rehearsal import rehearse

__all__ = ["explain"]

_REHEARSED = 200  # simulated generations that teach a profile
_SEED = 1
_STRAGGLING, _TIMES_SLOWER = 0.03, 5.0  # the profile "heavy": 3 % take five times as long


def _positive(seconds: float) -> float:
    if not finite(seconds) or seconds < 1e-6:
        raise typer.BadParameter("must be a number of seconds above 0")
    return seconds


def explain(
    *,
    store: Annotated[
        Path | None, typer.Option(help="What was learned; else what the command line itself keeps.", metavar="FILE")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Instead: what 200 simulated generations teach; klein, heavy (3 % take five times as long) or "
            "fixed:SECONDS.",
            metavar="NAME",
        ),
    ] = None,
    model: ModelId = KLEIN_4B_TEXT_TO_IMAGE,
    width: Annotated[int | None, typer.Option(help="Pixels, 64 to 2048; 1024 if not given.", metavar="PX")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, 64 to 2048; 1024 if not given.", metavar="PX")] = None,
    queued: Annotated[
        bool, typer.Option("--queued", help="Of requests that were seen in the queue, from the end of it on.")
    ] = False,
    look_cost: Annotated[
        float, typer.Option(help="Seconds of waiting that a look is worth.", metavar="S", callback=_positive)
    ] = 0.010,
    plot: Annotated[
        Path | None, typer.Option(help="Draw it too, as a PNG; needs matplotlib.", metavar="FILE", dir_okay=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    base_url: BaseUrl = None,
) -> None:
    """Explain when a generation is looked at, and why.

    It shows the times learned, the looks and what they cost; without a file of learned times, what is believed before
    the first generation. It calls nobody.

    \b
    Examples:
      flux-klein explain
      flux-klein explain --profile heavy --plot heavy.png
      flux-klein explain --store times.json --width 512 --height 512 --look-cost 0.05
    """  # noqa: D301  # \b: what follows is not to be wrapped
    if store is not None and profile is not None:
        raise typer.BadParameter("--store and --profile are two answers to one question; give one")
    if plot is not None:
        service.require_matplotlib()
    screen = Screen()
    order = prepare("x", model=None, width=width, height=height, default_model=model)
    with _warnings_on(screen):
        policy, origin = _learned(order, store, profile, base_url, look_cost)
    heading = Heading(
        model=order.model,
        size=_size(order),
        queued=queued,
        origin=str(origin) if origin is not None else None,
        there=not isinstance(origin, Path) or origin.exists(),
    )
    explanation = explained(policy, order.model, order.pixels, queued=queued)
    lines = as_lines(heading, explanation, bars=is_utf8())
    for line in [json_line(as_record(heading, explanation))] if as_json else lines:
        screen.out(line)
    if plot is not None:
        raise typer.Exit(_drawn(plot, heading, explanation, screen))


def _drawn(path: Path, heading: Heading, explanation: Explanation, screen: Screen) -> ExitCode:
    from flux_klein_async.cli.plots import draw  # noqa: PLC0415  # matplotlib takes its time

    try:
        draw(heading, explanation, path)
    except OSError as error:
        screen.note(f"The picture cannot be written to {str(path)!r}: {error.strerror}")
        return ExitCode.OTHER
    screen.note(f"Drawn: {path}")
    return ExitCode.OK


def _learned(
    order: Order, store: Path | None, profile: str | None, base_url: str | None, look_cost: float
) -> tuple[AdaptivePolling, Path | str | None]:
    """A policy, and where its knowledge comes from: a profile, a file, or nothing."""
    if profile is not None:
        policy = AdaptivePolling(look_cost=look_cost)
        rehearse(policy, _durations(profile, order), model=order.model, pixels=order.pixels)
        return policy, f"{_REHEARSED} simulated generations of the profile {profile}"
    path = store if store is not None else service.store_path(os.environ, base_url)
    return AdaptivePolling(look_cost=look_cost, store=path), path


def _durations(profile: str, order: Order) -> Iterator[float]:
    from flux_klein_async.emulator import parse_profile  # noqa: PLC0415  # for a profile only

    straggling = _STRAGGLING if profile == "heavy" else 0.0
    try:
        timing = parse_profile("klein" if profile == "heavy" else profile)
        if timing.workers is not None:
            raise ValueError("one generation at a time has no queue: write 'klein'")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--profile") from None
    width, height = _width_and_height(order) or (1024, 1024)
    chance = random.Random(_SEED)
    for _ in range(_REHEARSED):
        seconds = timing.duration(chance, width, height)
        yield seconds * (_TIMES_SLOWER if chance.random() < straggling else 1.0)


def _width_and_height(order: Order) -> tuple[int, int] | None:
    fields = json.loads(order.body)
    return (fields["width"], fields["height"]) if order.pixels is not None else None


def _size(order: Order) -> str:
    found = _width_and_height(order)
    return f"{found[0]} x {found[1]}" if found is not None else "unknown"


@contextmanager
def _warnings_on(screen: Screen) -> Iterator[None]:
    """Tell what the package logs, such as a store that is damaged: the answer would be a riddle without it."""

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            screen.note(f"Warning: {record.getMessage()}")

    log, handler = logging.getLogger("flux_klein_async"), Told(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
