"""Small copies of pictures for a page, made by at most two processes; those of an earlier page are used again.

The processes import this module: it must import nothing that takes its time.
"""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.paths import replacing

__all__ = ["Thumbnail", "make_thumbnails"]

SIDE = 448  # pixels: a card of the page on a dense screen
_QUALITY = 80
_PROCESSES = 2
_FEW = 8  # made in this process, before another one would have started
_NAMED = re.compile(r"([0-9a-f]{24})\.(\d{1,9})x(\d{1,9})\.webp")


class Thumbnail(NamedTuple):
    """What became of a picture: the name of its copy and its own size in pixels, else why there is none."""

    name: str | None = None
    pixels: tuple[int, int] | None = None
    note: str | None = None


def make_thumbnails(
    pictures: Mapping[str, Path],
    folder: Path,
    *,
    stop: threading.Event,
    on_progress: Callable[[int, int], object] = lambda _done, _of: None,
) -> dict[str, Thumbnail]:
    """Copies in a folder, by the keys of the pictures; a key stands for one content of one file.

    Args:
        pictures: The pictures by key: 24 hexadecimal digits.
        folder: Where copies go, and are found.
        stop: Once set, no more are made; pictures without a copy are missing from the answer.
        on_progress: Called after each copy with how many are made, and how many were to be made.

    Raises:
        OSError: The folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for entry in os.scandir(folder):
        if (named := _NAMED.fullmatch(entry.name)) is not None and named[1] in pictures:
            found[named[1]] = Thumbnail(entry.name, (int(named[2]), int(named[3])))
    missing = {key: path for key, path in pictures.items() if key not in found}
    paths, keys, folders = list(missing.values()), list(missing), [folder] * len(missing)
    # Never a fork: this process has threads, and its loop.
    few = len(missing) <= _FEW
    pool = None if few else ProcessPoolExecutor(_PROCESSES, get_context("spawn"), initializer=_end_with_parent)
    try:
        with _without_ctrl_c():
            apply = map if pool is None else partial(pool.map, chunksize=8)
            made = iter(apply(_made, paths, keys, folders))
        for done, key in enumerate(keys):
            if stop.is_set():
                break
            found[key] = next(made)
            on_progress(done + 1, len(keys))
    except BrokenProcessPool:  # killed, or a decoder crashed on a hostile file
        lost = Thumbnail(note="No preview was made: the process that makes them ended.")
        found |= {key: lost for key in missing if key not in found}
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return found


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that this thread starts get no Ctrl-C: the terminal sends it to all, and the parent answers it."""
    mask = getattr(signal, "pthread_sigmask", None)  # Windows has none
    before = mask(signal.SIG_BLOCK, {signal.SIGINT}) if mask is not None else None
    try:
        yield
    finally:
        if mask is not None:
            mask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """A parent that is killed, or quits at the second Ctrl-C, tells its processes nothing."""
    parent = parent_process()
    assert parent is not None  # noqa: S101  # this runs in a child

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _made(path: Path, key: str, folder: Path) -> Thumbnail:
    # Pillow takes time to load.
    from flux_klein_async.integrations.pillow import thumbnail  # noqa: PLC0415

    try:
        small, (width, height) = thumbnail(path, SIDE)
    except InvalidInputError as error:
        return Thumbnail(note=f"{error}.")
    except FileNotFoundError:
        return Thumbnail(note="The file is gone.")
    name = f"{key}.{width}x{height}.webp"
    with replacing(folder / name) as unfinished:
        small.save(unfinished, "WEBP", quality=_QUALITY)
    return Thumbnail(name, (width, height))
