"""Options that several commands have, and their checks: done before anything is paid for."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE

__all__ = [
    "AsJson",
    "BaseUrl",
    "Concurrency",
    "Emulated",
    "ModelId",
    "NoDownload",
    "Quiet",
    "Timeout",
    "positive",
    "writable",
]


_LONGEST_NAME = 255  # bytes, on every common file system


def positive(seconds: float) -> float:
    """A number of seconds, checked."""
    if not seconds > 0:
        raise typer.BadParameter("must be more than 0 seconds")
    return seconds


def _known_models(begun: str) -> list[str]:
    """What a shell completes the beginning of a model's id to."""
    return [model for model in (KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE) if model.startswith(begun)]


ModelId = Annotated[str, typer.Option(help="Model id.", metavar="ID", autocompletion=_known_models)]
Concurrency = Annotated[int, typer.Option(min=1, help="Pictures under way at once.", metavar="N")]
Timeout = Annotated[float, typer.Option(help="Seconds for each picture.", metavar="S", callback=positive)]
NoDownload = Annotated[bool, typer.Option("--no-download", help="Print URLs, save nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each picture.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress; errors are still told.")]
Emulated = Annotated[
    bool, typer.Option("--emulator", help="Placeholder pictures from a local emulator: no token, no charge.")
]
BaseUrl = Annotated[str | None, typer.Option(help="The API's address, if it is not the usual one.", metavar="URL")]


def writable(directory: Path) -> Path:
    """The directory, if files can go there: found out before anything is paid for."""
    try:
        fits = all(len(os.fsencode(part)) <= _LONGEST_NAME for part in directory.parts)
        existing = next((path for path in (directory, *directory.absolute().parents) if path.exists()), directory)
        usable = fits and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:  # the path as a whole is too long
        usable = False
    if not usable:
        raise typer.BadParameter(f"nothing can be written to {str(directory)!r}", param_hint="--output-dir")
    return directory
