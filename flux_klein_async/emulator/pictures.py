"""Placeholder pictures: real PNG files that say what they are.

Pillow is an extra and is imported when the first picture is drawn.
"""

import colorsys
import hashlib
import io
import random
import struct
import textwrap
import unicodedata
import wave
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageFont

__all__ = ["draw", "silence", "video"]

# The background is painted at this size and enlarged: soft edges, in a tenth of the time. It is painted so many times
# finer and reduced first, since Pillow's ellipses have jagged rims.
_CANVAS = 192
_FINER = 3
_SHAPES = 7
_NARROW = 160
_FLAT = 128
_MARGIN = 0.06
_PROMPT_LINES = 4
_PROMPT_START = 300


def draw(prompt: str, width: int, height: int, *, seed: int, request_id: str) -> bytes:
    """Draw a PNG of exactly this size, different for each prompt, seed and request.

    Raises:
        RuntimeError: Pillow is not installed.
    """
    key = hashlib.sha256(f"{seed}\0{request_id}\0{prompt}".encode("utf-8", "surrogatepass")).digest()
    try:
        picture = _background(random.Random(key), width, height)
    except ImportError as error:
        raise RuntimeError("pictures need Pillow: pip install 'flux_klein_async[emulator]'") from error
    _write(picture, _lines(prompt, width, height))
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def video(prompt: str, *, request_id: str) -> bytes:
    """Make the smallest MP4 file: it shows nothing and says that it is a placeholder."""
    text = f"PLACEHOLDER {request_id} {prompt}".encode("utf-8", "replace")
    boxes = ((b"ftyp", b"isom" + struct.pack(">I", 512) + b"isomiso2mp41"), (b"free", text))
    return b"".join(struct.pack(">I", 8 + len(data)) + name + data for name, data in boxes)


def silence() -> bytes:
    """Make a WAV file of a tenth of a second of silence."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(bytes(1_600))
    return out.getvalue()


def _colour(rng: random.Random, hue: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.45, 0.75), value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(rng: random.Random, width: int, height: int) -> "Image.Image":
    from PIL import Image, ImageDraw  # noqa: PLC0415

    scale = min(1.0, _CANVAS / max(width, height)) * _FINER
    size = (round(width * scale), round(height * scale))
    hue = rng.random()
    # Two neighbouring hues, both dark enough for white letters.
    one = _colour(rng, hue, rng.uniform(0.55, 0.75))
    other = _colour(rng, hue + rng.uniform(0.12, 0.35), rng.uniform(0.25, 0.45))
    down = Image.linear_gradient("L")
    if rng.random() < 0.5:
        down = down.transpose(Image.Transpose.ROTATE_180)
    across = down.transpose(Image.Transpose.ROTATE_90)
    slope = Image.blend(down, across, rng.uniform(0.2, 0.8)).resize(size)
    canvas = Image.composite(Image.new("RGB", size, one), Image.new("RGB", size, other), slope)
    brush = ImageDraw.Draw(canvas, "RGBA")
    for _ in range(_SHAPES):
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        radius = rng.uniform(0.08, 0.45) * max(min(size), max(size) / 8)
        tint = (*_colour(rng, hue + rng.uniform(-0.1, 0.45), rng.uniform(0.6, 0.95)), rng.randint(35, 80))
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tint)
    return canvas.reduce(_FINER).resize((width, height), Image.Resampling.BICUBIC)


def _lines(prompt: str, width: int, height: int) -> list[tuple[int, str]]:
    """Lay the text out as lines with their letter heights, the most important first."""
    words = "".join(map(_letters, " ".join(prompt[:_PROMPT_START].split())))
    measure = f"{width} x {height}"
    if height < _FLAT < width:
        return [(max(9, min(height // 3, width // 40)), f"PLACEHOLDER  {measure}  {words}")]
    narrow = width < _NARROW
    title = ["PLACE", "HOLDER"] if narrow else ["PLACEHOLDER"]
    size = max(12, width // 5 if narrow else min(width // 9, height // 6))
    small = max(9, size * 4 // 9)
    per_line = max(6, round(width * (1 - 2 * _MARGIN) / (small * 0.52)))
    prompt_lines = textwrap.wrap(words, per_line, max_lines=_PROMPT_LINES, placeholder="...")
    return [*((size, line) for line in title), (small, measure), *((small, line) for line in prompt_lines)]


def _write(picture: "Image.Image", lines: list[tuple[int, str]]) -> None:
    from PIL import ImageDraw  # noqa: PLC0415

    width, height = picture.size
    brush = ImageDraw.Draw(picture)
    left = max(3, round(min(width, 2 * height) * _MARGIN))
    gap = 1.25
    # Centred as a block; the last lines are left out if there is no room.
    while len(lines) > 1 and sum(size for size, _ in lines) * gap > 0.95 * height:
        lines = lines[:-1]
    top = (height - sum(size for size, _ in lines) * gap) / 2
    for size, text in lines:
        font = _font(size)
        shadow = max(1, size // 14)
        brush.text((left + shadow, top + shadow), text, font=font, fill=(0, 0, 0))
        brush.text((left, top), text, font=font, fill=(255, 255, 255))
        top += size * gap


@lru_cache(maxsize=64)
def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    from PIL import ImageFont  # noqa: PLC0415

    return ImageFont.load_default(size)


def _letters(character: str) -> str:
    """Write a character in ASCII: Pillow's own font, the only one that is always there, has no other letters."""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or character.encode("unicode_escape").decode()
