"""The paths that users give, where `~` is their home directory as in a shell; and a file that is replaced whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing", "user_path"]


def user_path(path: "str | os.PathLike[str]") -> Path:
    """The path with a leading `~` or `~name` expanded; left as it is where that home is not known."""
    with suppress(ValueError):  # a name that no user can have
        return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises RuntimeError
    return Path(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write to. It takes that name when the block ends, and is removed if the block fails.

    Its name cannot be guessed: neither another thread nor another process writes to it, and nobody puts a link there.
    """
    unfinished = path.with_name(f".{os.urandom(8).hex()}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
