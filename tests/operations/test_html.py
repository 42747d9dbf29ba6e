"""Saved paths show themselves as pictures in a notebook."""

import base64
import pickle
import re

import pytest

from flux_klein_async.operations import html
from flux_klein_async.operations.html import SavedPaths, figure
from tests.fakes import png

CONTENTS = {
    png(): ("img", "image/png"),
    b"\xff\xd8\xff\xe0": ("img", "image/jpeg"),
    b"RIFF....WEBP": ("img", "image/webp"),
    b"GIF89a": ("img", "image/gif"),
    b"....ftypavif": ("img", "image/avif"),
    b"....ftypisom": ("video", "video/mp4"),
    b"\x1aE\xdf\xa3": ("video", "video/webm"),
}


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: CONTENTS[content][1])
def test_each_format_is_shown_as_what_it_is(content):
    element, kind = CONTENTS[content]
    page = figure("a name", content, 100)
    assert page.startswith(f"<{element} ")
    assert f'src="data:{kind};base64,{base64.b64encode(content).decode()}"' in page
    assert 'width="100"' in page


def test_what_no_browser_knows_is_named_instead():
    assert figure("<x>", b"nonsense", 100) == "<p>&lt;x&gt;: no picture that a browser knows</p>"


def test_a_name_cannot_break_out_of_the_page():
    page = figure('"><script>x.png', png(), 100)
    assert "<script" not in page
    assert page.count("<") == 1


async def test_what_was_downloaded_shows_its_picture_in_a_notebook(klein_client, tmp_path):
    paths = await klein_client.download(await klein_client.generate("a cat", width=64, height=64), tmp_path)
    [data] = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', paths._repr_html_())
    assert base64.b64decode(data) == paths[0].read_bytes()


async def test_what_was_downloaded_is_a_list_of_paths_all_the_same(klein_client, tmp_path):
    paths = await klein_client.download(await klein_client.generate("a cat", width=64, height=64), tmp_path)
    assert paths == list(paths) == list(tmp_path.iterdir())
    assert repr(paths) == repr(list(paths))
    assert pickle.loads(pickle.dumps(paths)) == paths


def test_a_file_that_has_gone_or_is_large_is_named_and_not_shown(tmp_path, monkeypatch):
    gone, large = tmp_path / "gone<.png", tmp_path / "large.png"
    large.write_bytes(png())
    monkeypatch.setattr(html, "_LARGEST", len(png()))
    assert "<img" in SavedPaths([large])._repr_html_()
    monkeypatch.setattr(html, "_LARGEST", len(png()) - 1)
    assert SavedPaths([gone, large])._repr_html_() == (
        f"<p>{tmp_path}/gone&lt;.png: cannot be read: No such file or directory</p>"
        f"<p>{large}: too large to be shown unasked</p>"
    )
