"""A run is alive as long as it holds its lock, which the system drops when the process ends."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from flux_klein_async.journal import lease as module
from flux_klein_async.journal.lease import Lease, is_alive, sweep

from .helpers import child

HOLD = """
from flux_klein_async.journal.lease import Lease
lease = Lease.take(Path(sys.argv[1]))
Path(sys.argv[1]).with_name(lease.run + ".is").touch()
"""


@pytest.fixture
def lease(path: Path) -> Iterator[Lease]:
    taken = Lease.take(path)
    yield taken
    taken.release()


def locks(path: Path) -> set[str]:
    return {found.name for found in path.parent.iterdir() if found.suffix == ".lock"}


def run_of_child(path: Path) -> str:
    [mark] = path.parent.glob("*.is")
    return mark.stem


def test_a_run_is_alive_until_it_is_released(path: Path, lease: Lease) -> None:
    other = Lease.take(path)
    assert (is_alive(path, lease.run), is_alive(path, other.run), lease.run != other.run) == (True, True, True)
    other.release()
    other.release()
    assert (is_alive(path, lease.run), is_alive(path, other.run)) == (True, False)
    assert locks(path) == {f"run.sqlite-{lease.run}.lock"}


def test_only_the_owner_can_read_the_lock(path: Path, lease: Lease) -> None:
    [name] = locks(path)
    assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600


def test_a_killed_process_is_dead_at_once_and_what_it_left_is_removed(path: Path, lease: Lease) -> None:
    with child(HOLD, path) as process:
        run = run_of_child(path)
        assert is_alive(path, run)
        assert is_alive(path, run), "checking does no harm"
        process.kill()
        process.wait()
        left = path.with_name(f"{path.name}-{run}.new")  # it died while it made the file
        left.touch()
        assert not is_alive(path, run)
        assert not left.exists()
    assert locks(path) == {f"run.sqlite-{lease.run}.lock"}


def test_sweeping_removes_what_the_dead_left_and_nothing_else(path: Path, lease: Lease) -> None:
    others = [
        "run.sqlite-0123456789abcdef.lock.bak",
        "run.sqlite-0123.lock",
        "other-0123456789abcdef.lock",
        "run.sqlite-x0123456789abcdef.lock",
    ]
    living = Lease.take(path)
    for name in ["run.sqlite-0123456789abcdef.lock", *others]:
        (path.parent / name).touch()
    sweep(path)
    left = {found.name for found in path.parent.iterdir()}
    assert left == {*others, f"run.sqlite-{lease.run}.lock", f"run.sqlite-{living.run}.lock"}
    living.release()


def test_two_processes_that_check_at_once_do_not_take_each_other_for_the_run(
    path: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = "0123456789abcdef"
    path.with_name(f"{path.name}-{run}.lock").touch()
    seen = []

    def clear(journal: Path, run: str) -> None:
        monkeypatch.undo()
        seen.append(is_alive(path, run))  # while the first still holds the file

    monkeypatch.setattr(module, "_clear", clear)
    assert (is_alive(path, run), seen) == (False, [False])


def test_a_run_whose_lock_cannot_be_opened_counts_as_alive(
    path: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(module.os, "open", refused)
    assert is_alive(path, "0123456789abcdef")


@pytest.mark.parametrize("taken", ["locked", "removed"])
def test_a_run_whose_file_was_taken_for_a_leftover_begins_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    tried = []
    lock = module._try_lock

    def meddle(handle: int, *, shared: bool) -> bool:
        tried.append(handle)
        if len(tried) > 1:
            return lock(handle, shared=shared)
        [name] = locks(path)
        if taken == "removed":
            (path.parent / name).unlink()
        return taken == "removed"

    monkeypatch.setattr(module, "_try_lock", meddle)
    lease = Lease.take(path)
    assert len(tried) == 2
    assert is_alive(path, lease.run)
    lease.release()
    with pytest.raises(OSError):
        os.fstat(tried[0])


def test_a_directory_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lease.take(tmp_path / "none" / "run.sqlite")
