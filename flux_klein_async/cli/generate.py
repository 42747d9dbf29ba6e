"""`flux-klein generate`: one prompt, as many pictures as asked for. The work itself is in `items`."""

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from flux_klein_async.cli import service, stopping
from flux_klein_async.cli.board import Board
from flux_klein_async.cli.exits import ExitCode
from flux_klein_async.cli.items import Plan, Production
from flux_klein_async.cli.parameters import (
    AsJson,
    BaseUrl,
    Concurrency,
    Emulated,
    ModelId,
    NoDownload,
    Quiet,
    Timeout,
    writable,
)
from flux_klein_async.cli.progress import metered
from flux_klein_async.cli.render import Screen
from flux_klein_async.cli.stopping import Stop
from flux_klein_async.cli.text import decoded_prompt, duration, shortened
from flux_klein_async.journal.budget import dollars
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE, TextToImage9BInput
from flux_klein_async.operations.submit import PreparedRequest, made_input, prepare

__all__ = ["PromptCommand", "generate"]

_MOST = 1_000_000  # pictures in one call: more fit in no memory, and a typing error costs enough as it is


class PromptCommand(TyperCommand):
    """Takes a prompt such as "-5 degrees" for what it is, and a mistyped option still for a mistake."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; what starts with a dash is a prompt if it has more than one word, or after `--`."""
        explicit = "--" in args
        ctx.ignore_unknown_options = True
        rest = super().parse_args(ctx, args)
        prompt = ctx.params.get("prompt") or ""
        if not explicit and len(prompt) > 1 and prompt.startswith("-") and len(prompt.split()) == 1:
            ctx.fail(f"No such option: {prompt} (a prompt that starts with a dash goes after --)")
        return list(rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The options, checked."""

    plan: Plan
    prompt: str
    model: str
    timeout: float
    base_url: str | None
    emulator: bool
    quiet: bool


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to paint; - reads it from standard input.", show_default=False)
    ],
    *,
    count: Annotated[int, typer.Option(min=1, max=_MOST, help="How many pictures.", metavar="N")] = 1,
    width: Annotated[int | None, typer.Option(help="Pixels, 64 to 2048; 1024 if not given.", metavar="PX")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, 64 to 2048; 1024 if not given.", metavar="PX")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the 9B model, 4 to 50; its own choice if not given.", metavar="N")
    ] = None,
    model: ModelId = KLEIN_4B_TEXT_TO_IMAGE,
    output_dir: Annotated[
        Path, typer.Option(help="Where the files go, each named after its request; made if need be.", metavar="DIR")
    ] = Path("out"),
    concurrency: Concurrency = 64,
    timeout: Timeout = 120.0,
    no_download: NoDownload = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    emulator: Emulated = False,
    base_url: BaseUrl = None,
) -> None:
    """Generate pictures from a prompt and print their paths.

    Progress goes to standard error, results to standard output, as they finish. Ctrl-C cancels what is queued, keeps
    what is done and names what runs on.

    \b
    Examples:
      flux-klein generate "a snow leopard at dawn" --emulator
      flux-klein generate "a snow leopard at dawn" --count 8 --output-dir leopards
      flux-klein generate "a poster" --width 768 --height 1024 --json > poster.jsonl
      flux-klein generate "a map" --steps 8 \\
          --model blackforestlabs/flux-2-klein/9b/text-to-image
      flux-klein generate -- "--dashes--, an abstract painting"
      cat prompt.txt | flux-klein generate - --no-download

    \b
    Exit codes (the worst picture decides, in this order after 0):
      0 all done    77 no access (token, balance)    69 service unreachable or in trouble
      75 too late or too many, try again    65 bad input    1 other    64 usage    130 Ctrl-C
    """  # noqa: D301  # \b: what follows is not to be wrapped
    if emulator and base_url is not None:
        raise typer.BadParameter("--emulator has an address of its own; leave out --base-url")
    text = decoded_prompt(sys.stdin.buffer.read()) if prompt == "-" else prompt
    order = _order(text, model, width, height, steps)
    plan = Plan(
        inputs=[json.loads(order.body)] * count,
        concurrency=concurrency,
        directory=None if no_download else writable(output_dir),
        as_json=as_json,
        take_up=None if emulator else _take_up(base_url, None if no_download else output_dir),
    )
    job = _Job(plan=plan, prompt=text, model=model, timeout=timeout, base_url=base_url, emulator=emulator, quiet=quiet)
    raise typer.Exit(stopping.run(lambda stop: _run(job, stop)))


def _order(prompt: str, model: str, width: int | None, height: int | None, steps: int | None) -> PreparedRequest:
    """What is posted for each picture.

    Raises:
        InvalidInputError: The model's input cannot be so.
    """
    if steps is None:
        return prepare(prompt, model=None, width=width, height=height, default_model=model)
    if model != KLEIN_9B_TEXT_TO_IMAGE:
        raise typer.BadParameter(f"{model} takes no steps; --model {KLEIN_9B_TEXT_TO_IMAGE} does", param_hint="--steps")
    typed = made_input(prompt, lambda text: TextToImage9BInput(prompt=text, steps=steps))
    return prepare(typed, model=model, width=width, height=height, default_model=model)


def _take_up(base_url: str | None, directory: Path | None) -> Callable[[str], str]:
    """How to call `flux-klein result` for a request of this run."""
    options = ["--output-dir", str(directory)] if directory is not None else []
    options += ["--base-url", base_url] if base_url is not None else []

    def command(request_id: str) -> str:
        if request_id.startswith("-"):
            return shlex.join(["flux-klein", "result", *options, "--", request_id])
        return shlex.join(["flux-klein", "result", request_id, *options])

    return command


async def _run(job: _Job, stop: Stop) -> ExitCode:
    screen = Screen(quiet=job.quiet)
    screen.when_reader_gone(lambda: stop.because(ExitCode.READER_GONE))
    stop.before_leaving = screen.restore
    board = Board(len(job.plan.inputs))
    async with AsyncExitStack() as stack:
        address: service.Address = (job.base_url, None)
        if job.emulator:
            address = await stack.enter_async_context(service.emulated())
            screen.note("Emulated: the pictures are placeholders, and nothing is charged.")
        client = await stack.enter_async_context(
            service.build_client(
                address,
                model=job.model,
                timeout=job.timeout,
                concurrency=job.plan.concurrency,
                on_event=board.note,
                store=None if job.emulator else service.store_path(os.environ, job.base_url),
            )
        )
        production = Production(client, board, screen, job.plan)
        _announce(job, screen)
        begun = asyncio.get_running_loop().time()
        async with metered(screen, board):
            code = await production.run()
        cost = f", {dollars(production.cost_usd)}" if production.cost_usd and not job.emulator else ""
        screen.say(_summary(job, board, asyncio.get_running_loop().time() - begun) + cost)
    return code


def _announce(job: _Job, screen: Screen) -> None:
    plan = job.plan
    size = "{width} x {height}".format_map(plan.inputs[0]) if {"width", "height"} <= plan.inputs[0].keys() else ""
    what = f"{len(plan.inputs)} pictures" if len(plan.inputs) > 1 else "1 picture"
    screen.say(f"Generating {what}{' of ' + size if size else ''}: {shortened(job.prompt, 36)}")


def _summary(job: _Job, board: Board, seconds: float) -> str:
    where = f" in {job.plan.directory}" if job.plan.directory is not None and board.done else ""
    failed = f", {board.failed} failed" if board.failed else ""
    return f"{board.done} of {board.total} done{where}{failed}, {duration(seconds)}"
