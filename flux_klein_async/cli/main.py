"""Runs one `flux-klein` command line: its exit code, and the sentence for an error that ends it."""

import os
import traceback
from collections.abc import Sequence

import typer

from flux_klein_async.cli.commands import DEBUG_VARIABLE, app
from flux_klein_async.cli.exit_codes import ExitCode, exit_code
from flux_klein_async.cli.output import Screen
from flux_klein_async.cli.parsing import usage_error
from flux_klein_async.errors import FluxKleinError

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code. Raises nothing but KeyboardInterrupt."""
    screen = Screen()
    try:
        command = typer.main.get_command(app)
        return int(command.main(args=list(argv), prog_name="flux-klein", standalone_mode=False) or ExitCode.OK)
    except FluxKleinError as error:
        from flux_klein_async.cli import connect  # noqa: PLC0415  # loads the API

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
            for line in f"{usage}Error: {usage_error(error)}".splitlines():
                screen.note(line)
            return ExitCode.USAGE
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()  # without the values of variables
        why = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        screen.note(f"Unexpected {type(error).__name__}{why}; {DEBUG_VARIABLE}=1 shows where.")
        return ExitCode.OTHER
