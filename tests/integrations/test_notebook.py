import base64
import re
from pathlib import Path

import pytest

from flux_klein_async import InvalidInputError
from flux_klein_async.integrations.notebook import show
from tests.fakes import png

CONTENTS = {
    b"\xff\xd8\xff\xe0": ("img", "image/jpeg"),
    b"RIFF....WEBP": ("img", "image/webp"),
    b"GIF89a": ("img", "image/gif"),
    b"....ftypavif": ("img", "image/avif"),
    b"....ftypisom": ("video", "video/mp4"),
    b"\x1aE\xdf\xa3": ("video", "video/webm"),
}


async def test_what_was_downloaded_or_read_is_in_the_page_itself(klein_client, tmp_path):
    result = await klein_client.generate("a cat", width=64, height=64)
    paths = await klein_client.download(result, tmp_path)
    contents = await klein_client.read(result)
    for shown in (show(paths), show(paths[0]), show(str(paths[0])), show(contents)):
        [data] = re.findall(r'src="data:image/png;base64,([^"]+)"', shown._repr_html_())
        assert base64.b64decode(data) == paths[0].read_bytes()
    assert 'width="384"' in show(paths)._repr_html_()
    assert repr(show(paths)) == f"Pictures({result.request_id}.png)"


@pytest.mark.parametrize("content", CONTENTS, ids=str)
def test_each_format_is_shown_as_what_it_is(content):
    element, kind = CONTENTS[content]
    page = show(content, width=100)._repr_html_()
    assert page.startswith(f"<{element} ")
    assert f'src="data:{kind};base64,' in page
    assert 'width="100"' in page


def test_what_no_browser_knows_is_named_instead():
    assert show([b"nonsense"])._repr_html_() == "<p>picture 1: no picture that a browser knows</p>"


def test_a_name_cannot_break_out_of_the_page(tmp_path: Path):
    path = tmp_path / '"><script>x.png'  # a file system that refuses such names has no such problem
    path.write_bytes(png())
    page = show(path)._repr_html_()
    assert "<script" not in page
    assert page.count("<") == 1


def test_what_is_no_file_says_so(tmp_path):
    with pytest.raises(InvalidInputError, match="not int"):
        show([7])
    with pytest.raises(FileNotFoundError):
        show(tmp_path / "gone.png")
