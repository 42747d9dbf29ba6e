"""The commands of `flux-klein`: their options, their help, and how one is run; the module that it names does the work.

Help and a completion load this module and no other command's: it must import nothing that loads pydantic, aiohttp or
asyncio.
"""

import math
import os
import shlex
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from difflib import get_close_matches
from enum import StrEnum
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import rich  # noqa: F401  # if the extra is not installed, say so before anything is done
import typer
from typer.core import TyperCommand

from flux_klein_async import KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE, __version__
from flux_klein_async.batch.formats import FileFormat
from flux_klein_async.cli.exit_codes import HELP, ExitCode, exit_code
from flux_klein_async.cli.output import Screen
from flux_klein_async.cli.parsing import LONGEST, Command, Group, PromptCommand, SearchOrCommand, usage_error
from flux_klein_async.errors import FluxKleinError
from flux_klein_async.journal.states import EntryState
from flux_klein_async.paths import user_path
from flux_klein_async.text import shown

__all__ = ["DEBUG_VARIABLE", "PARTS", "Commands", "Names", "app", "built", "run"]

DEBUG_VARIABLE = "FLUX_KLEIN_DEBUG"
"""Prints tracebacks, and the log with every event."""
PARTS: dict[str, typer.Typer] = {}
"""Each command or group, as an application of its own, in the order of the help."""
_MOST = 1_000_000  # pictures in one call: a typing error should not cost more


class Commands(Group):
    """The commands of `flux-klein`; only the one that is named is built. The help of all lists their first lines."""

    def __init__(self, **attributes: Any) -> None:
        listed = {name: TyperCommand(name, help=_first_line(part)) for name, part in PARTS.items()}
        super().__init__(**{**attributes, "commands": listed})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command that the first word names, and the other words; says which is meant, where that can be known."""
        if args[0] not in PARTS and not ctx.resilient_parsing:
            ctx.fail(_unknown(args[0]))
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else built(name), rest


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code. Raises nothing but KeyboardInterrupt."""
    screen = Screen()
    try:
        command = typer.main.get_command(app)
        return int(command.main(args=list(argv), prog_name="flux-klein", standalone_mode=False) or ExitCode.OK)
    except FluxKleinError as error:
        from flux_klein_async.cli import connect  # loads the API

        connect.advise(error)
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
            for line in f"{usage}Error: {usage_error(error, _takers)}".splitlines():
                screen.note(line)
            return ExitCode.USAGE
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()  # without the values of variables
        why = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        screen.note(f"Unexpected {type(error).__name__}{why}; {DEBUG_VARIABLE}=1 shows where.")
        return ExitCode.OTHER


def built(name: str) -> Any:
    """One command, or group of commands, as the parser wants it."""
    return typer.main.get_command(PARTS[name])


def _takers(option: str) -> list[str]:
    """The commands that take an option, the one for many pictures first."""
    names = sorted(PARTS, key=lambda name: name != "batch")
    return [name for name in names if any(option in parameter.opts for parameter in built(name).params)]


def _first_line(part: typer.Typer) -> str:
    told = part.registered_callback or part.registered_commands[0]
    return (told.callback.__doc__ or "").partition("\n")[0]


def _unknown(word: str) -> str:
    near = [name for name in PARTS if name.startswith(word)] or get_close_matches(word, PARTS, 1)
    if " " in word:
        advice = f": write flux-klein generate {shlex.quote(shown(word[:LONGEST]))}"
    elif word in {"help", "version"}:
        advice = f"; did you mean --{word}?"
    else:
        advice = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"No such command {word[:LONGEST]!r}{advice}"


def _application(*, add_completion: bool = False, **settings: Any) -> typer.Typer:
    # Plain help: rich's panels waste columns. Pretty exceptions show the values of variables, which may be the token.
    return typer.Typer(
        add_completion=add_completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
        **settings,
    )


app = _application(
    name="flux-klein", add_completion=True, cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}
)
models = _application(name="models", cls=SearchOrCommand, epilog=HELP)
journals = _application(name="journal", cls=Group)


def _runs(
    work: str,
    group: typer.Typer | None = None,
    *,
    name: str | None = None,
    cls: type[Command] = Command,
    epilog: str | None = HELP,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function that only declares options; `work`, "module:function", takes and does them."""

    def declared(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**options: Any) -> None:
            _run(work, **options)

        part = group or PARTS.setdefault(command.__name__, _application())
        return part.command(name or command.__name__, cls=cls, epilog=epilog)(run)

    return declared


def _run(work: str, **options: Any) -> None:
    import logging  # for a command that runs

    log, last_resort = logging.getLogger("flux_klein_async"), logging.lastResort
    quiet = logging.NullHandler()  # the error itself is printed once, by `run`
    if os.environ.get(DEBUG_VARIABLE):
        logging.lastResort = logging.StreamHandler()
        logging.lastResort.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.setLevel(logging.DEBUG)
    else:
        log.addHandler(quiet)
    module, _, function = work.partition(":")
    try:
        raise typer.Exit(getattr(import_module(f"flux_klein_async.cli.{module}"), function)(**options))
    finally:
        logging.lastResort = last_resort
        log.setLevel(logging.NOTSET)
        log.removeHandler(quiet)


# --- options that commands share


def _one_service(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    """Refuse --emulator together with --base-url, in either order."""
    if value and context.params.get("base_url" if parameter.name == "emulator" else "emulator"):
        raise typer.BadParameter("--emulator has its own address; leave out --base-url")
    return value


def _known_models(typed: str) -> list[str]:
    """Shell completion of a model id."""
    return [model for model in (KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE) if model.startswith(typed)]


_ModelId = Annotated[str, typer.Option(help="Model id.", metavar="ID", autocompletion=_known_models)]
_AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_Emulated = Annotated[
    bool,
    typer.Option(
        "--emulator", help="Use a new local emulator: placeholder pictures, no token, no charge.", callback=_one_service
    ),
]
_BaseUrl = Annotated[
    str | None, typer.Option(help="Address of the API, instead of the default.", metavar="URL", callback=_one_service)
]


def _at_home(path: Path | None) -> Path | None:
    """A path of an option, with `~` expanded: a shell leaves it alone in `--output-dir=~/x`."""
    return None if path is None else user_path(path)


def _folder(text: str) -> Path:
    from flux_klein_async.operations.names import looks_like_file  # for a command that runs

    if not text:
        raise typer.BadParameter("the name of the directory is empty, as of a variable that is not set")
    path = user_path(text)
    if looks_like_file(path):
        raise typer.BadParameter(
            f"{str(path)!r:.80} looks like a file; this is the directory where files go: `generate` names them after "
            "the prompt, `batch` as --names says, `result` by the request id"
        )
    return path


def _public(names: list[str]) -> list[str]:
    from flux_klein_async.api.urls import file_host  # for a command that runs

    for name in names:
        if file_host(name) is None:
            raise typer.BadParameter(
                f"{name!r:.80} is no public host: write its name alone, such as cdn.example.com, or .example.com for "
                "all hosts below it"
            )
    return names


_AllowUnlisted = Annotated[
    bool, typer.Option("--allow-unlisted", help="Send what the catalogue does not list: fields, or the model.")
]
_FileHosts = Annotated[
    list[str],
    typer.Option(
        "--file-host", help="Another host that files may come from; repeatable.", metavar="HOST", callback=_public
    ),
]


def _positive(seconds: float) -> float:
    if not seconds > 0:
        raise typer.BadParameter(f"{seconds:g} is not more than 0 seconds")
    return seconds


def _amount(usd: float | None) -> float | None:
    if usd is not None and not 0 <= usd < math.inf:
        raise typer.BadParameter(f"{usd:g} is no amount of money: give it in USD, 0 or more")
    return usd


_Concurrency = Annotated[int, typer.Option(min=1, help="Generations at a time.", metavar="N")]
_Timeout = Annotated[float, typer.Option(help="Seconds for each picture.", metavar="S", callback=_positive)]
_NoDownload = Annotated[bool, typer.Option("--no-download", help="Print URLs instead of saving files.")]
_JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object per picture, one per line.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and, on stdout, the paths; no progress.")]
_Width = Annotated[int | None, typer.Option(help="Pixels, 64 to 2048; 1024 if not given.", metavar="PX")]
_Height = Annotated[int | None, typer.Option(help="Pixels, 64 to 2048; 1024 if not given.", metavar="PX")]
_Steps = Annotated[int | None, typer.Option(help="1 to 100, for the 9B model; 25 if not given.", metavar="N")]


def _print_version(wanted: bool) -> None:
    if wanted:
        Screen().out(f"flux-klein {__version__}")
        raise typer.Exit


def _help_if_alone(context: typer.Context) -> None:
    """Without a command, its help goes to stderr."""
    if context.invoked_subcommand is None:
        screen = Screen()
        for line in context.get_help().splitlines():
            screen.note(line)
        raise typer.Exit(ExitCode.USAGE)


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
    _help_if_alone(context)


@_runs("generate:generate", cls=PromptCommand)
def generate(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to paint; - reads it from standard input.")
    ] = None,
    *,
    given: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="FIELD=VALUE", help="Another field; @FILE sends a local file. Repeatable."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=_MOST, help="How many pictures.", metavar="N")] = 1,
    width: _Width = None,
    height: _Height = None,
    steps: _Steps = None,
    model: _ModelId = KLEIN_4B_TEXT_TO_IMAGE,
    allow_unlisted: _AllowUnlisted = False,
    output_dir: Annotated[
        Path,
        typer.Option("--output-dir", "-o", help="Where the files go.", metavar="DIR", parser=_folder),
    ] = Path("out"),
    concurrency: _Concurrency = 64,
    timeout: _Timeout = 120.0,
    no_download: _NoDownload = False,
    file_host: _FileHosts = [],  # noqa: B006  # typer copies it
    as_json: _JsonLines = False,
    quiet: _Quiet = False,
    emulator: _Emulated = False,
    base_url: _BaseUrl = None,
) -> None:
    """Generate pictures from a prompt and print their paths.

    Progress goes to standard error, results to standard output as they finish. Ctrl-C cancels what is queued and
    waits up to 30 s for running generations; press it again to quit at once.

    --input sets any field of the model's input: @FILE is a local file, anything else JSON, and what is no JSON is text;
    @@ begins a text with @. A field that is given several times, or that the catalogue says is a list, is a list. One
    that the catalogue does not list for the model is refused; --allow-unlisted sends it.

    \b
    Examples:
      flux-klein generate "a snow leopard at dawn" --emulator
      flux-klein generate "a snow leopard at dawn" --count 8 --output-dir leopards
      flux-klein generate "a poster" --width 768 --height 1024 --json
      flux-klein generate "a map" --steps 8 \\
          --model blackforestlabs/flux-2-klein/9b/text-to-image
      flux-klein generate "make it night" --input image_urls=@in.png \\
          --input seed=3 --model blackforestlabs/flux-2/dev/edit
      flux-klein generate -- "--dashes--, an abstract painting"
      cat prompt.txt | flux-klein generate - --no-download
    """  # noqa: D301  # \b: what follows is not to be wrapped


class Names(StrEnum):
    """What files are named by."""

    ID = "id"
    INDEX = "index"
    REQUEST = "request"


@_runs("batch:batch")
def batch(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Prompts: .txt, .jsonl or .csv; - reads text.")],
    *,
    journal: Annotated[
        str | None,
        typer.Option(help="A file or postgresql://; else DIR/journal.sqlite.", metavar="JOURNAL"),
    ] = None,
    output_dir: Annotated[
        Path,
        typer.Option("--output-dir", "-o", help="Where files and manifest.jsonl go.", metavar="DIR", parser=_folder),
    ] = Path("out"),
    file_format: Annotated[FileFormat | None, typer.Option("--format", help="Else by the name of FILE.")] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="The column of a .csv file with the prompts.", metavar="NAME")
    ] = None,
    ignore_extra_columns: Annotated[
        bool, typer.Option("--ignore-extra-columns", help="Leave out unknown columns of a .csv file.")
    ] = False,
    concurrency: _Concurrency = 64,
    max_spend: Annotated[
        float | None, typer.Option(help="For all runs on the journal.", metavar="USD", callback=_amount)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check FILE and DIR, and print what it would cost.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Submit failed lines again.")] = False,
    resubmit_uncertain: Annotated[
        bool, typer.Option("--resubmit-uncertain", help="Submit uncertain lines again; they may be charged twice.")
    ] = False,
    new_token: Annotated[
        bool,
        typer.Option(
            "--new-token", help="Resume what your previous token, or the service at its old address, submitted."
        ),
    ] = False,
    model: _ModelId = KLEIN_4B_TEXT_TO_IMAGE,
    allow_unlisted: _AllowUnlisted = False,
    width: _Width = None,
    height: _Height = None,
    steps: _Steps = None,
    timeout: _Timeout = 120.0,
    no_download: _NoDownload = False,
    names: Annotated[
        Names, typer.Option(help="Files by the line's id (else as index), index and prompt, or request id.")
    ] = Names.ID,
    report: Annotated[
        bool | None,
        typer.Option("--report/--no-report", help="Write DIR/index.html; else if a picture was saved."),
    ] = None,
    file_host: _FileHosts = [],  # noqa: B006  # typer copies it
    as_json: _JsonLines = False,
    quiet: _Quiet = False,
    emulator: _Emulated = False,
    base_url: _BaseUrl = None,
) -> None:
    """Generate a picture for each line of a file.

    A .txt file has one prompt per line, also where the line begins with #; a .jsonl file one object per line; a .csv
    file a header, and commas, semicolons or tabs. Fields: prompt, and optionally width and height (pixels) and id.
    Standard input (-) is text unless --format says what it is.
    --width, --height and --steps are for lines without their own. The id recognises a line in the next run; a line
    without one is recognised by its content. The first 1,000 lines are checked before anything is submitted.

    For a model other than the klein models a .jsonl line has any field of its input. {"file": "ref.png"} in place of a
    value sends a local file; a relative path begins at the folder of FILE. A line with a field that the catalogue does
    not list for the model is bad; --allow-unlisted sends it.

    However a run ends, run the same command again to resume it. The journal records every submit before it is sent, so
    nothing is submitted twice. A submit with an unknown outcome is reported, and resubmitted only with
    --resubmit-uncertain; look on the site first. To resubmit one line alone, name a file with that line alone.
    DIR/manifest.jsonl says what happened to each line, and DIR/index.html shows it, as flux-klein report does.

    Ctrl-C ends submitting, cancels what is queued and waits up to 30 s for running generations; press it again to quit
    at once.

    \b
    Examples:
      flux-klein batch prompts.txt --emulator
      flux-klein batch prompts.csv --dry-run
      flux-klein batch prompts.jsonl --journal run.sqlite --max-spend 25
      flux-klein batch edits.jsonl --model blackforestlabs/flux-2/dev/edit
      generate-prompts | flux-klein batch - --no-download --json > done.jsonl
    """  # noqa: D301  # \b: what follows is not to be wrapped


@_runs("page:report")
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A batch's --output-dir.", callback=_at_home)] = Path(
        "out"
    ),
    *,
    contact_sheet: Annotated[
        bool, typer.Option("--contact-sheet", help="Write DIR/contact-sheet.png too: all pictures on one.")
    ] = False,
    quiet: _Quiet = False,
) -> None:
    """Write a page that shows what a batch made, and print its path.

    DIR/index.html shows the pictures with their prompts, costs and times, what failed and what to do about it. It
    opens from disk in any browser and loads nothing from elsewhere. `flux-klein batch` writes it at its end; during
    a run, this command writes how far it is. Ctrl-C ends the making of thumbnails; the page is written without them.

    \b
    Examples:
      flux-klein report out
      flux-klein report out --contact-sheet
    """  # noqa: D301  # \b: what follows is not to be wrapped


_RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id.")]


@_runs("answers:status")
def status(
    request_id: _RequestId,
    as_json: _AsJson = False,
    emulator: _Emulated = False,
    base_url: _BaseUrl = None,
) -> None:
    """Print the state of a request.

    \b
    Examples:
      flux-klein status ID
      flux-klein status ID --json
    """  # noqa: D301  # \b: what follows is not to be wrapped


@_runs("answers:result")
def result(
    request_id: _RequestId,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Save the files here.", metavar="DIR", parser=_folder),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until the request ends.", metavar="S")] = 0.0,
    journal: Annotated[
        str | None,
        typer.Option(help="Record the result, its cost and the saved files in this journal.", metavar="JOURNAL"),
    ] = None,
    file_host: _FileHosts = [],  # noqa: B006  # typer copies it
    as_json: _AsJson = False,
    emulator: _Emulated = False,
    base_url: _BaseUrl = None,
) -> None:
    """Print the URLs of a request's files, or save them.

    \b
    Examples:
      flux-klein result ID --output-dir out
      flux-klein result ID --output-dir out --journal run.sqlite
      flux-klein result ID --wait 60 --json
    """  # noqa: D301  # \b: what follows is not to be wrapped


@_runs("answers:cancel")
def cancel(
    request_id: _RequestId,
    as_json: _AsJson = False,
    emulator: _Emulated = False,
    base_url: _BaseUrl = None,
) -> None:
    """Cancel a request that is still queued.

    A running request continues and is charged; the exit code is then 1.

    \b
    Examples:
      flux-klein cancel ID
      flux-klein cancel ID --json
    """  # noqa: D301  # \b: what follows is not to be wrapped


@_runs("doctor:doctor")
def doctor(emulator: _Emulated = False, base_url: _BaseUrl = None) -> None:
    """Check what a generation needs: versions, token, network, price.

    Nothing is submitted. A line that is not "ok" says what to do; a warning leaves the exit code 0. The token is never
    shown.

    \b
    Examples:
      flux-klein doctor
      flux-klein doctor --base-url http://127.0.0.1:8000
      flux-klein doctor > report.txt
    """  # noqa: D301  # \b: what follows is not to be wrapped


@_runs("emulator:emulator", epilog=None)
def emulator(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.", metavar="PORT")] = 0,
    profile: Annotated[str, typer.Option(help="Times: klein, queue, queue:WORKERS or fixed:SECONDS.")] = "klein",
    workers: Annotated[int | None, typer.Option(min=0, help="Generations at a time, even 0.", metavar="N")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides times and faults.", metavar="N")] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="One of --faults and its probability, such as status:503=0.05; repeatable.", metavar="FAULT"),
    ] = None,
    faults: Annotated[bool, typer.Option("--faults", help="List every fault by name, and exit.")] = False,
) -> None:
    """Emulate the service on this machine: no account, no charge.

    Its pictures are placeholders. It prints its address, its token and the lines that make another shell use it, and
    runs until Ctrl-C.

    \b
    Examples:
      flux-klein emulator --port 8188 --profile queue:2
      flux-klein emulator --seed 7 --fault submit:reset+accepted=0.01
    """  # noqa: D301  # \b: what follows is not to be wrapped


# --- models

PARTS["models"] = models


def _first_word(typed: str) -> list[str]:
    """Shell completion of the first word."""
    return [name for name in ("list", "show") if name.startswith(typed)]


@models.callback(invoke_without_command=True, subcommand_metavar="| show ID")
def _models(
    context: typer.Context,
    search: Annotated[
        str, typer.Argument(metavar="SEARCH", help="What ids and names contain.", autocompletion=_first_word)
    ] = "",
    *,
    category: Annotated[str | None, typer.Option(help="Only these, such as text-to-image.", metavar="NAME")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each model.")] = False,
    emulator: _Emulated = False,
    base_url: _BaseUrl = None,
) -> None:
    """List the models of the service, with what they do and cost.

    A missing price is unknown, not free. Nothing is submitted. `models list` is the same.

    \b
    Examples:
      flux-klein models
      flux-klein models "flux edit"
      flux-klein models --category image-to-video --json
      flux-klein models show blackforestlabs/flux-2/dev/edit
      flux-klein models -- show          # searches for the word "show"
    """  # noqa: D301  # \b: what follows is not to be wrapped
    if context.invoked_subcommand is None:
        _run(
            "answers:models",
            search=search,
            category=category,
            as_json=as_json,
            emulator=emulator,
            base_url=base_url,
        )


@_runs("answers:show", models, name="show")
def show_model(
    model: Annotated[str, typer.Argument(metavar="ID", help="The model's id.", autocompletion=_known_models)],
    *,
    as_json: _AsJson = False,
    emulator: _Emulated = False,
    base_url: _BaseUrl = None,
) -> None:
    """Show a model's price and the fields of its input.

    A missing price is unknown, not free. Nothing is submitted.

    \b
    Examples:
      flux-klein models show blackforestlabs/flux-2-klein/4b/text-to-image
      flux-klein models show blackforestlabs/flux-2/dev/edit --json
    """  # noqa: D301  # \b: what follows is not to be wrapped


# --- journal

PARTS["journal"] = journals

_Place = Annotated[
    str | None,
    typer.Option("--journal", help="A file or postgresql://; else out/journal.sqlite.", metavar="JOURNAL"),
]
_STATES = f"Only those in this state; repeatable. One of {', '.join(EntryState)}."
_States = Annotated[list[EntryState] | None, typer.Option("--state", help=_STATES, metavar="STATE")]
_FORMATS = ["%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
_Since = Annotated[
    datetime | None, typer.Option(formats=_FORMATS, help="Only those created since then, local time.", metavar="DATE")
]
_EachAsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for each.")]


@journals.callback(invoke_without_command=True)
def _journal(context: typer.Context) -> None:
    """Read or prune the journal of a batch.

    `batch` writes it to DIR/journal.sqlite unless you pass --journal, and DIR is `out` unless you say otherwise.

    \b
    Examples:
      flux-klein journal list
      flux-klein journal show ID --journal run.sqlite
      flux-klein journal list --journal postgresql://app@db.example/flux
    """  # noqa: D301  # \b: what follows is not to be wrapped
    _help_if_alone(context)


@_runs("journal:list_requests", journals, name="list", epilog=None)
def list_requests(
    journal: _Place = None,
    *,
    state: _States = None,
    since: _Since = None,
    limit: Annotated[int, typer.Option(min=1, help="The most to list.", metavar="N")] = 20,
    as_json: _EachAsJson = False,
) -> None:
    """List requests, the newest first.

    \b
    States:
      submitting  may have been sent; the answer is not recorded yet
      repeated    refused for now, and submitted again: not charged
      refused     not accepted by the service, or never sent: not charged
      uncertain   may or may not have been accepted
      submitted   accepted: queued or running, as far as the journal knows
      completed   the result is known, no file is saved
      downloaded  the files are saved
      failed      ended without a picture; may be charged
      cancelled   not charged

    \b
    Examples:
      flux-klein journal list --journal run.sqlite
      flux-klein journal list --journal run.sqlite --state uncertain --state failed
      flux-klein journal list --journal run.sqlite --since 2026-03-01 --limit 100
    """  # noqa: D301  # \b: what follows is not to be wrapped


@_runs("journal:show", journals, name="show", epilog=None)
def show_request(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="The id of a request, or of a line.")],
    journal: _Place = None,
    as_json: _EachAsJson = False,
) -> None:
    """Show one request, or those of one line, in full.

    \b
    Example:
      flux-klein journal show ID --journal run.sqlite
    """  # noqa: D301  # \b: what follows is not to be wrapped


@_runs("journal:check", journals, epilog=None)
def check(journal: _Place = None) -> None:
    """Check the whole file for damage.

    \b
    Example:
      flux-klein journal check --journal run.sqlite
    """  # noqa: D301  # \b: what follows is not to be wrapped


@_runs("journal:export", journals, epilog=None)
def export(journal: _Place = None, *, state: _States = None, since: _Since = None) -> None:
    """Print every request as a JSON object a line, the oldest first.

    \b
    Example:
      flux-klein journal export --journal run.sqlite > run.jsonl
    """  # noqa: D301  # \b: what follows is not to be wrapped


@_runs("journal:prune", journals, epilog=None)
def prune(
    journal: _Place = None,
    *,
    older_than: Annotated[float, typer.Option(min=0, help="Days since the end.", metavar="DAYS")] = 7.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print how many there are; delete nothing.")] = False,
) -> None:
    """Delete requests that ended long ago.

    The service deletes their results after 7 days. Requests under way and uncertain ones stay, and so does the sum of
    what was spent. A later run of their lines submits and pays for them again, in another --output-dir: it stops where
    manifest.jsonl still lists them.

    \b
    Examples:
      flux-klein journal prune --journal run.sqlite --dry-run
      flux-klein journal prune --journal run.sqlite --older-than 30
    """  # noqa: D301  # \b: what follows is not to be wrapped
