"""The options that several commands share, and their checks, which run before anything is paid for."""

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
    """The seconds, if they are more than 0."""
    if not seconds > 0:
        raise typer.BadParameter("must be more than 0 seconds")
    return seconds


def _known_models(typed: str) -> list[str]:
    """Shell completion of a model id."""
    return [model for model in (KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE) if model.startswith(typed)]


ModelId = Annotated[str, typer.Option(help="Model id.", metavar="ID", autocompletion=_known_models)]
Concurrency = Annotated[int, typer.Option(min=1, help="Generations at a time.", metavar="N")]
Timeout = Annotated[float, typer.Option(help="Seconds for each picture.", metavar="S", callback=positive)]
NoDownload = Annotated[bool, typer.Option("--no-download", help="Print URLs instead of saving files.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per picture, one a line.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress, only errors.")]
Emulated = Annotated[
    bool, typer.Option("--emulator", help="Placeholder pictures from a local emulator: no token, no charge.")
]
BaseUrl = Annotated[str | None, typer.Option(help="Address of the API, instead of the default.", metavar="URL")]


def writable(directory: Path) -> Path:
    """The directory, if files can be written there."""
    try:
        fits = all(len(os.fsencode(part)) <= _LONGEST_NAME for part in directory.parts)
        existing = next((path for path in (directory, *directory.absolute().parents) if path.exists()), directory)
        usable = fits and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:  # the path as a whole is too long
        usable = False
    if not usable:
        raise typer.BadParameter(f"nothing can be written to {str(directory)!r}", param_hint="--output-dir")
    return directory
