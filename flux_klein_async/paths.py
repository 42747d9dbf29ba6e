"""The paths that users give: `~` is their home directory, as in a shell. Nothing is opened here."""

import os
from pathlib import Path

__all__ = ["user_path"]


def user_path(path: "str | os.PathLike[str]") -> Path:
    """The path with a leading `~` or `~name` expanded; left as it is where that home is not known."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises RuntimeError
