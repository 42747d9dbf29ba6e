"""Options that several commands have, and their checks: done before anything is paid for."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE

__all__ = ["ModelId", "positive", "writable"]

_LONGEST_NAME = 255  # bytes, on every common file system


def _known_models(begun: str) -> list[str]:
    """What a shell completes the beginning of a model's id to."""
    return [model for model in (KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE) if model.startswith(begun)]


ModelId = Annotated[str, typer.Option(help="Model id.", metavar="ID", autocompletion=_known_models)]


def positive(seconds: float) -> float:
    """A number of seconds, checked."""
    if not seconds > 0:
        raise typer.BadParameter("must be more than 0 seconds")
    return seconds


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
