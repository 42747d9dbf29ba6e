"""`flux-klein generate`: one prompt, any number of pictures. `run` does the work."""

import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from flux_klein_async.batch.rows import Row
from flux_klein_async.cli import connect, stopping
from flux_klein_async.cli.exits import ExitCode
from flux_klein_async.cli.output import Screen, decoded_prompt, shortened
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
from flux_klein_async.cli.run import RunOptions, Totals, connected, run_rows
from flux_klein_async.cli.stopping import Stop
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE, TextToImage9BInput
from flux_klein_async.operations.submit import PreparedRequest, made_input, prepare
from flux_klein_async.polling.adaptive import AdaptivePolling

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


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to paint; - reads it from standard input.", show_default=False)
    ],
    *,
    count: Annotated[int, typer.Option(min=1, max=_MOST, help="How many pictures.", metavar="N")] = 1,
    width: Annotated[int | None, typer.Option(help="Pixels, 64 to 2048; 1024 if not given.", metavar="PX")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, 64 to 2048; 1024 if not given.", metavar="PX")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the 9B model, 1 to 100; 25 if not given.", metavar="N")
    ] = None,
    model: ModelId = KLEIN_4B_TEXT_TO_IMAGE,
    output_dir: Annotated[
        Path, typer.Option(help="Where the files go, named after their requests.", metavar="DIR")
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

    Progress goes to standard error, results to standard output, as they finish. Ctrl-C cancels what is queued and
    waits up to 30 s for running generations; press it again to quit at once.

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
        raise typer.BadParameter("--emulator has its own address; leave out --base-url")
    text = decoded_prompt(sys.stdin.buffer.read()) if prompt == "-" else prompt
    fields = json.loads(_prepared(text, model, width, height, steps).body)
    job = RunOptions(
        model=model,
        concurrency=concurrency,
        timeout=timeout,
        directory=None if no_download else writable(output_dir),
        as_json=as_json,
        quiet=quiet,
        emulator=emulator,
        base_url=base_url,
    )
    raise typer.Exit(stopping.run(lambda stop: _run(job, fields, count, stop)))


def _prepared(prompt: str, model: str, width: int | None, height: int | None, steps: int | None) -> PreparedRequest:
    """What is posted for each picture.

    Raises:
        InvalidInputError: The model does not take such an input.
    """
    if steps is None:
        return prepare(prompt, model=None, width=width, height=height, default_model=model)
    if model != KLEIN_9B_TEXT_TO_IMAGE:
        raise typer.BadParameter(f"{model} takes no steps; --model {KLEIN_9B_TEXT_TO_IMAGE} does", param_hint="--steps")
    typed = made_input(prompt, lambda text: TextToImage9BInput(prompt=text, steps=steps))
    return prepare(typed, model=model, width=width, height=height, default_model=model)


def _resume(job: RunOptions) -> Callable[[str], str]:
    """The `flux-klein result` command for a request of this run."""
    options = ["--output-dir", str(job.directory)] if job.directory is not None else []
    options += ["--base-url", job.base_url] if job.base_url is not None else []

    def command(request_id: str) -> str:
        if request_id.startswith("-"):
            return shlex.join(["flux-klein", "result", *options, "--", request_id])
        return shlex.join(["flux-klein", "result", request_id, *options])

    return command


async def _run(job: RunOptions, fields: dict[str, Any], count: int, stop: Stop) -> ExitCode:
    screen = Screen(quiet=job.quiet)
    screen.when_reader_gone(lambda: stop.because(ExitCode.READER_GONE))
    stop.before_leaving = screen.restore
    totals = Totals(total=count)
    async with AsyncExitStack() as stack:
        address: connect.Address = (job.base_url, None)
        if job.emulator:
            address = await stack.enter_async_context(connect.emulated())
        polling = AdaptivePolling(store=None if job.emulator else connect.store_path(os.environ, job.base_url))
        client = await stack.enter_async_context(connected(job, screen, totals, address, polling=polling))
        size = " of {width} x {height}".format_map(fields) if {"width", "height"} <= fields.keys() else ""
        pictures = f"{count} pictures" if count > 1 else "1 picture"
        screen.say(f"Generating {pictures}{size}: {shortened(str(fields.get('prompt', '')), 36)}")
        return await run_rows(
            _rows(fields, count),
            client,
            job,
            totals,
            screen,
            stop,
            label=lambda line: f"Picture {line} of {count}" if count > 1 else "Failed",
            resume=None if job.emulator else _resume(job),
        )


async def _rows(fields: dict[str, Any], count: int) -> AsyncIterator[Row]:
    for index in range(count):
        yield Row(index + 1, None, fields, index)
