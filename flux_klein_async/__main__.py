"""`flux-klein` and `python -m flux_klein_async`: finds the command line, or says how to install it.

Must import nothing of typer or rich itself: they are an extra, and their absence ends in one sentence.
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from flux_klein_async.cli.output import leave, open_closed

__all__ = ["main"]

_EXTRAS = {"typer", "rich", "click"}  # some releases of typer bring click as a package of its own


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; None is the process's own arguments, and its end."""
    open_closed()
    if argv is not None:
        return _run(argv)
    if sys.argv[1:2] in (["generate"], ["batch"]):
        _end_at_signals()
    return leave(_run(sys.argv[1:]))


def _end_at_signals() -> None:
    """Until the event loop handles signals, end the process at the first one: the imports take a while."""

    def end(number: int, _frame: object) -> None:
        with suppress(OSError):  # nobody reads it
            os.write(2, b"Nothing was submitted.\n")
        os._exit(128 + number)

    for number in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, number) and signal.getsignal(getattr(signal, number)) is not signal.SIG_IGN:  # with nohup
            signal.signal(getattr(signal, number), end)


def _run(argv: Sequence[str]) -> int:
    try:
        from flux_klein_async.cli.commands import run  # noqa: PLC0415  # the extra may be missing

        return run(argv)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            raise
        with suppress(OSError):  # nobody reads it
            sys.stderr.write(
                f"flux-klein needs {error.name}, which is not installed: pip install 'flux_klein_async[cli]'\n"
            )
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
