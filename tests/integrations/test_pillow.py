"""Thumbnails and contact sheets of pictures that nobody vouches for."""

import io
import zlib
from pathlib import Path

import pytest
from PIL import Image

from flux_klein_async.errors import GenerationFailedError, InvalidInputError
from flux_klein_async.integrations.pillow import contact_sheet, thumbnail
from flux_klein_async.models import GenerationOutput, GenerationResult, Outcome, RequestState, SavedFile

RED, BLUE = (200, 20, 20), (20, 20, 200)
RESULT = GenerationResult(request_id="an-id", state=RequestState.COMPLETED, output=GenerationOutput())


def png(width: int, height: int, color: tuple[int, ...] = RED) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA" if len(color) == 4 else "RGB", (width, height), color).save(stream, "PNG")
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its bytes hold."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return png(1, 1)[:8] + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big") + png(1, 1)[33:]


def test_a_thumbnail_fits_and_names_the_size_of_the_original(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(400, 100))
    small, size = thumbnail(tmp_path / "a.png", 64)
    assert (small.size, small.mode, size) == ((64, 16), "RGB", (400, 100))
    small, size = thumbnail(png(8, 8, (*RED, 0)), 64)
    assert (small.size, small.mode) == ((8, 8), "RGBA")


@pytest.mark.parametrize("size", [(7000, 6000), (20_000, 20_000), (100_000, 100_000)])
def test_a_bomb_is_not_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError, match="too large for a preview"):
        thumbnail(bomb(*size), 64)


@pytest.mark.parametrize("content", [b"", b"no picture", png(64, 64)[:-40], b"GIF89a" + b"\xff" * 40])
def test_a_damaged_picture_is_bad_input(content: bytes) -> None:
    with pytest.raises(InvalidInputError, match="No preview can be made"):
        thumbnail(content, 64)


def test_a_sheet_has_every_picture_in_its_place_and_leaves_others_empty(tmp_path: Path) -> None:
    path = contact_sheet(
        [png(64, 64), b"broken", png(512, 512, BLUE), png(4, 4, (*BLUE, 0))], tmp_path / "s.png", columns=2
    )
    with Image.open(path) as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (2 * 264 + 8, 2 * 264 + 8))
        paper = sheet.getpixel((0, 0))
        found = [sheet.getpixel((8 + 128 + 264 * x, 8 + 128 + 264 * y)) for y in (0, 1) for x in (0, 1)]
    assert found == [RED, paper, BLUE, paper]
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.png"]


def test_a_sheet_replaces_the_one_before_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "s.png"
    target.write_bytes(b"before")
    with pytest.raises(InvalidInputError, match=r"takes 1 to 5,000 pictures, not 0"):
        contact_sheet([], target)
    with pytest.raises(InvalidInputError, match=r"not 5,001"):
        contact_sheet([b""] * 5001, target)
    with pytest.raises(InvalidInputError, match="takes a list"):
        contact_sheet(str(tmp_path), target)
    assert target.read_bytes() == b"before"
    assert contact_sheet([png(1, 1)], target) == target
    with Image.open(target) as sheet:
        assert sheet.size == (272, 272)
    with pytest.raises(FileNotFoundError):
        contact_sheet([tmp_path / "gone.png"], target)
    assert contact_sheet([png(1, 1)], tmp_path / "new" / "s.png").exists()


def test_a_sheet_takes_outcomes_and_is_never_blank(tmp_path: Path) -> None:
    picture, target = tmp_path / "a.png", tmp_path / "s.png"
    picture.write_bytes(png(64, 64))
    saved = SavedFile(path=picture, sha256="", size=1)
    made = Outcome(index=0, item="a", result=RESULT, files=(saved,))
    failed = Outcome(index=1, item="b", error=GenerationFailedError())
    with Image.open(contact_sheet([failed, made], target, columns=2)) as sheet:
        assert [sheet.getpixel((8 + 128 + 264 * x, 8 + 128)) for x in (0, 1)] == [sheet.getpixel((0, 0)), RED]
    target.unlink()
    for files, problem in (
        ([failed], "None of 1 can be shown: The generation failed"),
        ([b"no picture"], "None of 1 can be shown: No preview can be made"),
        ([Outcome(index=0, item="a", result=RESULT)], "no files: await client.download"),
        ([RESULT], "not GenerationResult; client.download"),
        ([7], "not int"),
    ):
        with pytest.raises(InvalidInputError, match=problem):
            contact_sheet(files, target)  # type: ignore[arg-type]
    contact_sheet([[picture, picture], [picture]], target, columns=3)  # what three downloads gave
    with Image.open(target) as sheet:
        assert sheet.size == (3 * 264 + 8, 272)
    target.unlink()
    with pytest.raises(InvalidInputError, match=r"is a PNG: give it a name such as sheet.png, not 's.jpg'"):
        contact_sheet([picture], tmp_path / "s.jpg")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
