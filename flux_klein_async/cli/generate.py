"""`flux-klein generate`: pictures of one prompt."""

import json
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from flux_klein_async.batch.rows import Row
from flux_klein_async.cli import connect, run, signals
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen, shortened
from flux_klein_async.cli.streams import Nowhere
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import InvalidInputError
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE, TextToImage9BInput
from flux_klein_async.operations.submit import PreparedRequest, made_input, prepare
from flux_klein_async.options import Limits
from flux_klein_async.polling.adaptive import AdaptivePolling

__all__ = ["PromptCommand", "generate"]

_MOST = 1_000_000  # pictures in one call: a typing error should not cost more


class PromptCommand(TyperCommand):
    """Accepts a prompt such as "-5 degrees", and still refuses a mistyped option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; text that starts with a dash is a prompt if it has several words or follows `--`."""
        explicit = "--" in args
        ctx.ignore_unknown_options = True
        rest = super().parse_args(ctx, args)
        prompt = ctx.params.get("prompt") or ""
        if not explicit and len(prompt) > 1 and prompt.startswith("-") and len(prompt.split()) == 1:
            ctx.fail(f"No such option: {prompt} (a prompt that starts with a dash goes after --)")
        return list(rest)


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to paint; - reads it from standard input.")],
    *,
    count: Annotated[int, typer.Option(min=1, max=_MOST, help="How many pictures.", metavar="N")] = 1,
    width: Annotated[int | None, typer.Option(help="Pixels, 64 to 2048; 1024 if not given.", metavar="PX")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, 64 to 2048; 1024 if not given.", metavar="PX")] = None,
    steps: Annotated[int | None, typer.Option(help="1 to 100, for the 9B model; 25 if not given.", metavar="N")] = None,
    model: connect.ModelId = KLEIN_4B_TEXT_TO_IMAGE,
    output_dir: Annotated[Path, typer.Option(help="Where the files go.", metavar="DIR")] = Path("out"),
    concurrency: run.Concurrency = 64,
    timeout: run.Timeout = 120.0,
    no_download: run.NoDownload = False,
    as_json: run.JsonLines = False,
    quiet: run.Quiet = False,
    emulator: connect.Emulated = False,
    base_url: connect.BaseUrl = None,
) -> None:
    """Generate pictures from a prompt and print their paths.

    Progress goes to standard error, results to standard output as they finish. Ctrl-C cancels what is queued and
    waits up to 30 s for running generations; press it again to quit at once.

    \b
    Examples:
      flux-klein generate "a snow leopard at dawn" --emulator
      flux-klein generate "a snow leopard at dawn" --count 8 --output-dir leopards
      flux-klein generate "a poster" --width 768 --height 1024 --json
      flux-klein generate "a map" --steps 8 \\
          --model blackforestlabs/flux-2-klein/9b/text-to-image
      flux-klein generate -- "--dashes--, an abstract painting"
      cat prompt.txt | flux-klein generate - --no-download
    """  # noqa: D301  # \b: what follows is not to be wrapped
    if prompt == "-" and sys.stdin is None:
        raise typer.BadParameter("standard input is closed", param_hint="PROMPT")
    if no_download and isinstance(sys.stdout, Nowhere):
        raise typer.BadParameter("standard output is closed: the URLs would be lost", param_hint="--no-download")
    text = _decoded(sys.stdin.buffer.read()) if prompt == "-" else prompt
    fields = json.loads(_prepared(text, model, width, height, steps).body)
    directory = None if no_download else run.writable(output_dir)

    async def body(screen: Screen, stop: signals.Stop) -> ExitCode:
        totals = run.Totals(total=count)
        async with (
            connect.connected(screen, base_url, emulator=emulator) as service,
            FluxKleinClient(
                service.token,
                base_url=service.base_url,
                model=model,
                timeout=timeout,
                limits=Limits(max_in_flight=concurrency),
                on_event=totals.note,
                polling=AdaptivePolling(store=service.store),
            ) as client,
        ):
            size = " of {width} x {height}".format_map(fields) if {"width", "height"} <= fields.keys() else ""
            pictures = f"{count} pictures" if count > 1 else "1 picture"
            screen.say(f"Generating {pictures}{size}: {shortened(str(fields.get('prompt', '')), 36)}")
            return await run.Run(
                client=client,
                totals=totals,
                screen=screen,
                stop=stop,
                concurrency=concurrency,
                directory=directory,
                as_json=as_json,
                charged=not emulator,
                label=lambda line: f"Picture {line} of {count}" if count > 1 else "Failed",
                resume=None if emulator else _resume(directory, base_url),
            ).generate(_rows(fields, count))

    raise typer.Exit(signals.run(body, quiet=quiet))


def _decoded(data: bytes) -> str:
    """A prompt from standard input: UTF-8, without the one line end that editors and `echo` add."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"The prompt on standard input is not UTF-8 (byte {error.start})") from None
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _prepared(prompt: str, model: str, width: int | None, height: int | None, steps: int | None) -> PreparedRequest:
    """What is posted for each picture."""
    if steps is None:
        return prepare(prompt, model=None, width=width, height=height, default_model=model)
    if model != KLEIN_9B_TEXT_TO_IMAGE:
        raise typer.BadParameter(f"{model} takes no steps; --model {KLEIN_9B_TEXT_TO_IMAGE} does", param_hint="--steps")
    typed = made_input(prompt, lambda text: TextToImage9BInput(prompt=text, steps=steps))
    return prepare(typed, model=model, width=width, height=height, default_model=model)


def _resume(directory: Path | None, base_url: str | None) -> Callable[[str], str]:
    """The `flux-klein result` command for a request of this run."""
    options = ["--output-dir", str(directory)] if directory is not None else []
    options += ["--base-url", base_url] if base_url is not None else []

    def command(request_id: str) -> str:
        named = ["--", request_id] if request_id.startswith("-") else [request_id]
        return shlex.join(["flux-klein", "result", *options, *named])

    return command


async def _rows(fields: dict[str, Any], count: int) -> AsyncIterator[Row]:
    for index in range(count):
        yield Row(index + 1, fields, number=index)
