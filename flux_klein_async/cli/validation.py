"""Checks of options that several commands have: done before anything is paid for."""

import os
from pathlib import Path

import typer

__all__ = ["positive", "writable"]

_LONGEST_NAME = 255  # bytes, on every common file system


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
