"""Options are checked before anything is paid for."""

from pathlib import Path

import pytest
import typer

from flux_klein_async.cli.parameters import positive, writable


@pytest.mark.parametrize("seconds", [0.001, 1.0, float("inf")])
def test_seconds_are_more_than_none(seconds):
    assert positive(seconds) == seconds


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_other_seconds_are_refused(seconds):
    with pytest.raises(typer.BadParameter):
        positive(seconds)


def test_a_directory_that_can_be_made_is_writable_and_not_made_yet(tmp_path):
    assert writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_or_a_name_that_is_too_long_is_found_out(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (
        tmp_path / "file",
        tmp_path / "file" / "x",
        tmp_path / ("x" * 300),
        Path(*["x" * 200] * 100),
    ):
        with pytest.raises(typer.BadParameter, match="nothing can be written"):
            writable(path)
