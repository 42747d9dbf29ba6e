"""`flux-klein` and `python -m flux_klein_async`: finds the command line, or says how to install it.

Must import nothing of typer or rich itself: they are an extra, and their absence ends in one sentence.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress

from flux_klein_async.cli.streams import leave, open_closed

__all__ = ["main"]

_EXTRAS = {"typer", "rich", "click"}  # some releases of typer bring click as a package of its own


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; None is the process's own arguments, and its end."""
    open_closed()
    return _run(argv) if argv is not None else leave(_run(sys.argv[1:]))


def _run(argv: Sequence[str]) -> int:
    try:
        from flux_klein_async.cli.main import run  # noqa: PLC0415  # the extra may be missing

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
