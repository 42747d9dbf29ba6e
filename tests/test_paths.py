"""`~` is expanded wherever a path comes in."""

import json
from pathlib import Path

import pytest

from flux_klein_async import AdaptivePolling, ConfigurationError, FluxKleinClient, SqliteJournal
from flux_klein_async.batch.manifest import Manifest, read_manifest
from flux_klein_async.paths import replacing, user_path


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_a_tilde_is_the_home_directory_and_nothing_else_changes(tmp_path: Path) -> None:
    for given, expanded in (("~", "home"), ("~/x", "home/x"), (Path("~/x/y"), "home/x/y")):
        assert user_path(given) == tmp_path / expanded
    for given in ("x", "x/~", "./~/x", "~nobody-of-this-name/x", "~a\0b/x", "~\ud800/x", ""):
        assert user_path(given) == Path(given)


def test_a_file_is_replaced_whole_or_not_at_all_also_by_two_at_once(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    with pytest.raises(ZeroDivisionError), replacing(path) as third:
        third.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "first"
    assert [each.name for each in tmp_path.iterdir() if each.name != "home"] == ["page.html"]


async def test_every_path_that_the_library_takes_may_begin_with_it(tmp_path, klein_emulator, connect, monkeypatch):
    store = AdaptivePolling(store="~/times.json")
    async with SqliteJournal("~/run.sqlite") as journal:
        client = connect(journal=journal, polling=store)
        [made] = await client.generate_all(["a cat"], width=64, height=64, directory="~/many")
        [path] = await client.download(made.result, Path("~/one"))
        edit = {"prompt": "a cat", "image_urls": [Path("~/one") / path.name]}
        await client.generate(edit, model="blackforestlabs/flux-2/dev/edit")
        await client.aclose()
    with Manifest("~/manifest.jsonl"):
        assert list(read_manifest("~/manifest.jsonl")) == []
    monkeypatch.setenv("RUNCOMFY_CONFIG_DIR", "~/config")
    with pytest.raises(ConfigurationError, match="No token"):
        FluxKleinClient()
    (tmp_path / "home" / "config").mkdir()
    (tmp_path / "home" / "config" / "token.json").write_text(json.dumps({"access_token": "some-token"}))
    FluxKleinClient()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
    found = {path.name for path in (tmp_path / "home").iterdir()}
    assert found >= {"times.json", "run.sqlite", "many", "one", "manifest.jsonl"}
