"""What was learned survives the process; a bad file costs one warning and nothing else."""

import json
import logging
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flux_klein_async.polling.store import ModelSnapshot, SizeSnapshot, Snapshot, Store

SNAPSHOT = Snapshot(
    models=[
        ModelSnapshot(
            model="a/b",
            seconds=0.14,
            variance=0.5,
            count=7,
            sizes=[SizeSnapshot(octave=160, queued=False, bins={-57: 12.5, -56: 3.0})],
        ),
        ModelSnapshot(
            model=None,
            seconds=0.14,
            variance=0.0,
            count=1,
            sizes=[SizeSnapshot(octave=None, queued=True, bins={0: 1.0})],
        ),
    ]
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "times.json"
    Store(path).save(SNAPSHOT)
    assert Store(str(path)).load() == SNAPSHOT
    assert [entry.name for entry in path.parent.iterdir()] == ["times.json"]
    assert json.loads(path.read_text())["version"] == 1


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    Store(path).save(SNAPSHOT)
    with path.open() as before:
        Store(path).save(Snapshot(models=[]))
        assert Snapshot.model_validate_json(before.read()) == SNAPSHOT
    assert Store(path).load() == Snapshot(models=[])


def test_no_file_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Store(tmp_path / "none.json").load() is None
    assert caplog.records == []


def changed(**changes: object) -> str:
    whole = json.loads(SNAPSHOT.model_dump_json())
    for where, value in changes.items():
        part = whole
        *way, last = [int(step) if step.isdigit() else step for step in where.split("__")]
        for step in way:
            part = part[step]
        part[last] = value
    return json.dumps(whole)


BAD = {
    "empty": "",
    "no JSON": "{",
    "binary": "\x00\x01",
    "another kind": "[]",
    "brackets": "[" * 100_000,
    "another version": changed(version=2),
    "an unknown field": changed(more=1),
    "a weight below 0": changed(models__0__sizes__0__bins={"3": -1.0}),
    "a weight that is none": changed(models__0__sizes__0__bins={"3": math.nan}),
    "a weight without end": changed(models__0__sizes__0__bins={"3": math.inf}),
    "a bin that is none": changed(models__0__sizes__0__bins={"x": 1.0}),
    "a bin nowhere": changed(models__0__sizes__0__bins={"99999": 1.0}),
    "no bins": changed(models__0__sizes__0__bins={}),
    "a pace of 0": changed(models__0__seconds=0),
    "a size below 0": changed(models__0__sizes__0__octave=-1),
    "too large": " " * 2_000_000,
}


@pytest.mark.parametrize("content", BAD.values(), ids=list(BAD))
def test_a_bad_file_is_ignored_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(content)
    store = Store(path)
    assert store.load() is None
    assert store.load() is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("flux_klein_async", logging.WARNING)
    assert str(path) in record.getMessage()


@given(content=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(content)
    Store(path).load()


def test_what_cannot_be_read_or_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "times.json"
    folder.mkdir()
    store = Store(folder)
    assert store.load() is None
    store.save(SNAPSHOT)
    assert len(caplog.records) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["times.json"]
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "times.json")
    store.save(SNAPSHOT)
    store.save(SNAPSHOT)
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text
