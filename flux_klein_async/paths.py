"""The paths that users give: `~` is their home directory, as in a shell. Nothing is opened here."""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["user_path"]


def user_path(path: "str | os.PathLike[str]") -> Path:
    """The path with a leading `~` or `~name` expanded; left as it is where that home is not known."""
    with suppress(ValueError):  # a name that no user can have
        return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises RuntimeError
    return Path(path)
