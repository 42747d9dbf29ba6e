"""Pictures made smaller with Pillow: a thumbnail, or many on one contact sheet.

Files may be hostile: what is larger than 40 megapixels is not decoded.
"""

import io
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.models import Outcome, not_saved
from flux_klein_async.paths import replacing, user_path

__all__ = ["contact_sheet", "thumbnail"]

File = str | os.PathLike[str] | bytes  # a path, or the content of a file

_MOST_PIXELS = 40_000_000  # a decoded picture takes four bytes for each
_SHEET_PIXELS = 32_000_000
_MOST_ON_SHEET = 5000  # pictures: more would be smaller than 80 pixels each
_GAP = 8  # pixels between two pictures of a sheet
_PAPER = (24, 24, 27)


def thumbnail(file: File, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """A picture made to fit in a square, and the size of the original in pixels.

    Args:
        file: A path, or the content of a file. The first frame of an animation counts.
        side: Pixels of the square. Smaller pictures stay as they are.

    Raises:
        InvalidInputError: It is no picture that Pillow knows, is damaged, or has more than 40 megapixels.
        FileNotFoundError: There is no such file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bound, and metadata in disorder
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
                size = picture.size
                if size[0] * size[1] > _MOST_PIXELS:
                    raise InvalidInputError(f"The picture is too large for a preview: {size[0]} x {size[1]} pixels")
                picture.thumbnail((side, side))  # a JPEG is decoded at a fraction of its size
                small = ImageOps.exif_transpose(picture)
                return small.convert("RGBA" if small.has_transparency_data else "RGB"), size
    except Image.DecompressionBombError:
        raise InvalidInputError("The picture is too large for a preview") from None
    except (InvalidInputError, FileNotFoundError):
        raise
    except Exception as error:  # a damaged file makes Pillow raise what it will
        raise InvalidInputError(f"No preview can be made: {type(error).__name__}") from error


def contact_sheet(
    files: Iterable[File | Iterable[File] | Outcome[Any]], path: str | os.PathLike[str], *, columns: int | None = None
) -> Path:
    """Save many pictures on one PNG, in order, row by row; the file is replaced whole or not at all.

    Args:
        files: Paths, contents, lists of them (`client.download` and `client.download_bytes` give those) or outcomes;
            at most 5,000 pictures. A file that is no picture, and an outcome that failed, leaves its place empty.
        path: Where the sheet goes; its directory is made.
        columns: Pictures side by side; about as many as there are rows, by default.

    Returns:
        The path.

    Raises:
        InvalidInputError: There are no pictures, or too many; or a value is neither a file nor an outcome with files.
        OSError: A file does not exist, or the sheet cannot be written.
    """
    target = user_path(path)
    if target.suffix.lower() != ".png":
        raise InvalidInputError(f"A contact sheet is a PNG: give it a name such as sheet.png, not {target.name!r:.80}")
    if isinstance(files, str | bytes | os.PathLike):
        raise InvalidInputError(
            "A contact sheet takes a list of pictures; those of a directory are Path(...).glob('*.png')"
        )
    pictures = list(files)
    given = [part for file in pictures for part in _pictures_of(file)]
    if not 0 < len(given) <= _MOST_ON_SHEET:
        raise InvalidInputError(f"A contact sheet takes 1 to {_MOST_ON_SHEET:,} pictures, not {len(given):,}")
    side = min(256, math.isqrt(_SHEET_PIXELS // len(given)))
    columns = min(len(given), columns or math.ceil(math.sqrt(len(given) * 1.5)))
    rows = math.ceil(len(given) / columns)
    sheet = Image.new("RGB", (columns * (side + _GAP) + _GAP, rows * (side + _GAP) + _GAP), _PAPER)
    problem, shown = None, 0
    for number, file in enumerate(given):
        try:
            small, _ = thumbnail(file, side)
        except InvalidInputError as error:
            problem = error
            continue
        shown += 1
        left = _GAP + number % columns * (side + _GAP) + (side - small.width) // 2
        top = _GAP + number // columns * (side + _GAP) + (side - small.height) // 2
        sheet.paste(small, (left, top), small if small.mode == "RGBA" else None)
    if not shown:
        errors = (file.error for file in pictures if isinstance(file, Outcome))
        raise InvalidInputError(f"None of {len(given):,} can be shown: {next(filter(None, errors), problem)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as unfinished:
        sheet.save(unfinished, "PNG")
    return target


def _pictures_of(file: object) -> Sequence[File]:
    if isinstance(file, list | tuple):  # what one `download` gave
        return [part for each in file for part in _pictures_of(each)]
    if isinstance(file, str | bytes | os.PathLike):
        return [file]
    if not isinstance(file, Outcome):
        raise InvalidInputError(
            f"A contact sheet takes paths, contents or outcomes, not {type(file).__name__}; "
            "client.download(result, directory) gives paths"
        )
    if file.result is not None and not file.paths:
        raise not_saved()
    return file.paths or [b""]  # nothing to show in its place
