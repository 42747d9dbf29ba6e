"""The `flux-klein` application: its commands, and the exit code of an error that ends one of them.

A command's module is imported when the command runs, or when its own help or options are asked for.
"""

import os
import shlex
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from flux_klein_async._version import __version__
from flux_klein_async.cli.exit_codes import HELP, ExitCode, exit_code
from flux_klein_async.cli.output import Screen, print_help
from flux_klein_async.errors import FluxKleinError
from flux_klein_async.text import shown

__all__ = ["app", "run"]

_ALIKE = 0.7  # click's own 0.6 finds --json for --n
_LONGEST = 80  # characters of a mistyped option that are repeated
DEBUG_VARIABLE = "FLUX_KLEIN_DEBUG"

# Module and function of each command (or its group), and the first line of its help.
_COMMANDS = {
    "generate": ("generate:generate", "Generate pictures from a prompt and print their paths."),
    "batch": ("batch:batch", "Generate a picture for each line of a file."),
    "report": ("page:report", "Write a page that shows what a batch made, and print its path."),
    "status": ("status:status", "Print the state of a request."),
    "result": ("status:result", "Print the URLs of a request's files, or save them."),
    "cancel": ("status:cancel", "Cancel a request that is still queued."),
    "doctor": ("doctor:doctor", "Check what a generation needs: versions, token, network, price."),
    "emulator": ("emulator:emulator", "Emulate the service on this machine: no account, no charge."),
    "models": ("list_models:app", "List the models of the service, with what they do and cost."),
    "journal": ("journal:app", "Read or prune the journal of a batch."),
}
_WITHOUT_EXIT_CODES = {"emulator", "journal"}  # in their help


class Commands(TyperGroup):
    """Lists the commands from the table, and loads one when it is named."""

    def __init__(self, **attributes: Any) -> None:
        listed = {name: TyperCommand(name, help=told) for name, (_, told) in _COMMANDS.items()}
        super().__init__(**{**attributes, "commands": listed})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; for a completion from the words alone: to convert them, typer would load pydantic."""
        if ctx.resilient_parsing:
            for parameter in self.get_params(ctx):
                parameter.process_value = lambda _, value: value  # type: ignore[method-assign,assignment]
        return list(super().parse_args(ctx, args))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command that the first word names, and the other words; says which is meant, where that can be known."""
        if args[0] not in self.commands and not ctx.resilient_parsing:
            ctx.fail(self._unknown(args[0]))
        name, _, rest = super().resolve_command(ctx, args)
        if not ctx.resilient_parsing:  # the command may run
            _quieten_log()
        return name, None if name is None else loaded(name), rest

    def _unknown(self, word: str) -> str:
        near = [name for name in self.commands if name.startswith(word)] or get_close_matches(word, self.commands, 1)
        if " " in word:
            advice = f": write flux-klein generate {shlex.quote(shown(word[:_LONGEST]))}"
        elif word in {"help", "version"}:
            advice = f"; did you mean --{word}?"
        else:
            advice = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"No such command {word[:_LONGEST]!r}{advice}"


def _quieten_log() -> None:
    import logging

    log = logging.getLogger("flux_klein_async")
    if not os.environ.get(DEBUG_VARIABLE) and not log.handlers:
        log.addHandler(logging.NullHandler())  # the error itself is printed once, by `run`


def loaded(name: str) -> Any:
    """One command, or group of commands, as the parser wants it."""
    where, _, attribute = _COMMANDS[name][0].partition(":")
    module = import_module(f"flux_klein_async.cli.{where}")
    found = getattr(module, attribute)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.callback()(lambda: None)  # so that typer makes a group, which holds the command under its name
    epilog = None if name in _WITHOUT_EXIT_CODES else HELP
    if isinstance(found, typer.Typer):
        alone.add_typer(found, name=name, epilog=epilog)
    else:
        alone.command(name, cls=getattr(module, "PromptCommand", None), epilog=epilog)(found)
    return typer.main.get_command(alone).commands[name]  # type: ignore[attr-defined]


# Plain help: rich's panels waste columns. Pretty exceptions show the values of variables, which may be the token.
app = typer.Typer(
    name="flux-klein",
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COUNT = "FLUX.2 [klein] makes one picture per request; `flux-klein generate` takes --count"
_ACCESS = "the token comes from RUNCOMFY_API_TOKEN, where other users of this machine cannot read it"
_GUIDANCE = "FLUX.2 [klein] takes no guidance"
_SIZE = "the sides are --width and --height"
# What users of other models and other commands look for.
_ELSEWHERE = {
    "--seed": "FLUX.2 [klein] takes no seed; for a model that does, `generate` takes --input seed=N",
    "--negative-prompt": "FLUX.2 [klein] takes no negative prompt; say in the prompt what you want instead",
    **dict.fromkeys(("--n", "--num", "--num-images"), _COUNT),
    **dict.fromkeys(("--guidance", "--guidance-scale"), _GUIDANCE),
    "--image": "FLUX.2 [klein] takes no picture; for a model that does, `generate` takes --input image_urls=@FILE",
    "--lora": "FLUX.2 [klein] takes no LoRA",
    **dict.fromkeys(("--aspect-ratio", "--size"), _SIZE),
    "--prompt": 'a prompt needs no option: `flux-klein generate "a snow leopard"`',
    **dict.fromkeys(("--api-key", "--token"), _ACCESS),
}


def _print_version(wanted: bool) -> None:
    if wanted:
        Screen().out(f"flux-klein {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001  # its callback prints it
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Text to image with FLUX.2 [klein] on RunComfy's Model API.

    The token comes from RUNCOMFY_API_TOKEN, RUNCOMFY_TOKEN, RUNCOMFY_API_KEY or the login of the vendor's command.
    Without a token, try --emulator: it needs no account and charges nothing.

    \b
    Examples:
      flux-klein generate "a snow leopard at dawn" --emulator
      flux-klein doctor
      flux-klein batch prompts.txt --journal run.sqlite --max-spend 25
    """  # noqa: D301  # \b: what follows is not to be wrapped
    if context.invoked_subcommand is None:
        print_help(context)
        raise typer.Exit(ExitCode.USAGE)


def _usage_error(error: Any) -> str:
    """What is wrong with the arguments, in a sentence."""
    if not hasattr(error, "possibilities") or not hasattr(error, "option_name"):  # all but click's NoSuchOption
        from pydantic import ValidationError

        from flux_klein_async.models import findings

        # Some releases of typer have pydantic read the values, and repeat its words.
        if isinstance(error.__cause__, ValidationError):
            error.message = "; ".join(findings(error.__cause__).values())
        return str(error.format_message())
    name = error.option_name
    known = [option for parameter in error.ctx.command.params for option in parameter.opts] if error.ctx else []
    # The rest of a name first ("-m", "--output", "--dir"), then the nearest of what click finds alike.
    near = [option for option in known if option.startswith(f"-{name}") or (len(name) > 3 and name[1:] in option)]
    near = near or get_close_matches(name, error.possibilities or (), 1, _ALIKE)
    if name in _ELSEWHERE:
        advice = f": {_ELSEWHERE[name]}"
    elif near:
        advice = f"; did you mean {' or '.join(near)}?"
    elif error.ctx and error.ctx.command.name == "generate":
        advice = "; a prompt that starts with a dash goes after --"
    elif error.ctx and isinstance(error.ctx.command, Commands):
        advice = "; the options of a command go after its name"
    else:
        advice = ""
    return f"No such option {shown(name[:_LONGEST])}{advice}"


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code. Raises nothing but KeyboardInterrupt."""
    screen = Screen()
    try:
        command = typer.main.get_command(app)
        return int(command.main(args=list(argv), prog_name="flux-klein", standalone_mode=False) or ExitCode.OK)
    except FluxKleinError as error:
        screen.note(f"Error: {error}")
        return exit_code(error)
    except typer.Abort:  # what typer makes of Ctrl-C outside a loop
        raise KeyboardInterrupt from None
    except SystemExit as done:  # raised by a `Screen`, by shell completion, and by typer after a broken pipe
        if isinstance(done.__context__, BrokenPipeError):
            return ExitCode.READER_GONE
        return done.code if isinstance(done.code, int) else ExitCode.OK
    except Exception as error:  # noqa: BLE001  # users get a sentence, not a traceback
        if hasattr(error, "format_message"):  # click's, which typer bundles or imports, by release
            context = getattr(error, "ctx", None)
            usage = "" if context is None else f"{context.get_usage()}\nTry: {context.command_path} --help\n"
            for line in f"{usage}Error: {_usage_error(error)}".splitlines():
                screen.note(line)
            return ExitCode.USAGE
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()  # without the values of variables
        why = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        screen.note(f"Unexpected {type(error).__name__}{why}; {DEBUG_VARIABLE}=1 shows where.")
        return ExitCode.OTHER
