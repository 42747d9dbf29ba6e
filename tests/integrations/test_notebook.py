import base64
import re

import pytest

from flux_klein_async import (
    GenerationOutput,
    GenerationResult,
    InvalidInputError,
    Outcome,
    RequestState,
    SavedFile,
    TextToImageInput,
)
from flux_klein_async.integrations.notebook import show


async def test_downloaded_files_are_in_the_page_itself(klein_client, tmp_path):
    result = await klein_client.generate("a cat", width=64, height=64)
    paths = await klein_client.download(result, tmp_path)
    contents = await klein_client.download_bytes(result)
    for shown in (show(paths), show(paths[0]), show(str(paths[0])), show(contents)):
        [data] = re.findall(r'src="data:image/png;base64,([^"]+)"', shown._repr_html_())
        assert base64.b64decode(data) == paths[0].read_bytes()
    assert 'width="384"' in show(paths)._repr_html_()
    assert repr(show(paths)) == f"Pictures({result.request_id}.png)"
    name = f"{result.request_id}.png"
    assert repr(show([paths, contents])) == f"Pictures({name}, picture 2)", "what two downloads gave"


async def test_outcomes_are_shown_as_their_files(klein_client, tmp_path):
    outcomes = await klein_client.generate_all(["a cat", " ", "a dog"], directory=tmp_path)
    names = [path.name for outcome in outcomes for path in outcome.paths]
    assert len(names) == 2
    assert repr(show(outcomes)) == f"Pictures({names[0]}, item 1 failed, {names[1]})"
    page = show(outcomes)._repr_html_()
    assert (page.count("<figcaption>a cat</figcaption>"), page.count('alt="a dog"')) == (1, 1)
    assert "<b>item 1</b>: prompt: the prompt is blank</p>" in page
    assert repr(show(outcomes[2])) == f"Pictures({names[1]})"
    assert show(outcomes, width=100)._repr_html_().count('<img width="100"') == 2


async def test_outcomes_of_one_prompt_are_told_apart(klein_client, tmp_path):
    """By the fields in which they differ; by their files if they differ in none."""
    items = [{"prompt": "a cat", "width": side, "height": 64} for side in (64, 96, 96)]
    items += [TextToImageInput(prompt="a dog", height=height) for height in (64, 128)]
    items += [{"prompt": "a fox", "width": 64}, {"prompt": "a bird", "width": 1}, {"prompt": "a bird", "width": 2}]
    outcomes = await klein_client.generate_all(items, directory=tmp_path)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", show(outcomes)._repr_html_())
    names = [outcome.paths[0].name for outcome in outcomes[1:3]]
    cats = ["a cat, width=64", f"a cat, width=96, {names[0]}", f"a cat, width=96, {names[1]}"]
    assert captions == [*cats, "a dog, height=64", "a dog, height=128", "a fox"]
    assert re.findall(r"<b>(.*?)</b>", show(outcomes)._repr_html_()) == ["a bird, width=1", "a bird, width=2"]


def test_a_failure_is_labelled_with_its_prompt_as_text():
    for item, label in (
        ({"prompt": "<script>"}, "&lt;script&gt;"),
        (TextToImageInput(prompt="x" * 300), "x" * 197 + "..."),
        (7, "item 3"),
    ):
        failed = show(Outcome(index=3, item=item, error=InvalidInputError("<b>")))
        assert f"<b>{label}</b>: &lt;b&gt;</p>" in failed._repr_html_()


async def test_an_item_without_a_prompt_is_labelled_with_its_file(klein_client, tmp_path):
    options = {"to_input": lambda row: row[1], "to_name": lambda row: row[0], "directory": tmp_path}
    page = show(await klein_client.generate_all([("j1", "a cat")], **options))._repr_html_()
    assert "<figcaption>j1.png</figcaption>" in page


async def test_an_outcome_whose_file_is_no_picture_is_a_name(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"nonsense")
    saved = SavedFile(path=tmp_path / "a.bin", sha256="", size=8)
    result = GenerationResult(request_id="r", state=RequestState.COMPLETED, output=GenerationOutput())
    shown = show([Outcome(index=0, item="a cat", result=result, files=(saved,))])
    assert shown._repr_html_() == "<p>a cat: no picture that a browser knows</p>"


def test_contents_are_numbered():
    assert show([b"nonsense", b"more"])._repr_html_() == (
        "<p>picture 1: no picture that a browser knows</p><p>picture 2: no picture that a browser knows</p>"
    )


async def test_anything_but_a_file_is_refused(klein_client, tmp_path):
    for value in (await klein_client.generate("a cat"), [7], 7, InvalidInputError("x")):
        with pytest.raises(InvalidInputError, match=r"not (GenerationResult|int|InvalidInputError)"):
            show(value)
    with pytest.raises(
        InvalidInputError, match=r"no files: await client\.download\(outcome\.result, directory\) saves"
    ):
        show(await klein_client.generate_all(["a cat"]))
    with pytest.raises(InvalidInputError, match="is a directory"):
        show(tmp_path)
    with pytest.raises(FileNotFoundError):
        show(tmp_path / "gone.png")
