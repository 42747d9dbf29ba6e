"""Who is alive is told by a lock that the system drops."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from flux_klein_async.journal import lease as module
from flux_klein_async.journal.lease import Lease

from .helpers import child

HOLD = """
from flux_klein_async.journal.lease import Lease
lease = Lease.take(Path(sys.argv[1]))
Path(sys.argv[1]).with_name(lease.run + ".is").touch()
"""


@pytest.fixture
def lease(path: Path) -> Iterator[Lease]:
    with contextlib.closing(Taken(path)) as taken:
        yield taken.lease


class Taken:
    def __init__(self, path: Path) -> None:
        self.lease = Lease.take(path)

    def close(self) -> None:
        self.lease.release()


def locks(path: Path) -> set[str]:
    return {found.name for found in path.parent.iterdir() if found.suffix == ".lock"}


def run_of_child(path: Path) -> str:
    [mark] = path.parent.glob("*.is")
    return mark.stem


def test_a_run_is_alive_until_it_is_released(path: Path, lease: Lease) -> None:
    other = Lease.take(path)
    assert (lease.is_alive(other.run), other.is_alive(lease.run)) == (True, True)
    assert (lease.is_alive(lease.run), lease.run != other.run) == (True, True)
    other.release()
    other.release()
    assert (lease.is_alive(other.run), other.is_alive(other.run)) == (False, False)
    assert locks(path) == {f"run.sqlite-{lease.run}.lock"}


def test_only_the_owner_can_read_the_sign_of_life(path: Path, lease: Lease) -> None:
    [name] = locks(path)
    assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600


def test_a_killed_process_is_dead_at_once_and_what_it_left_is_removed(path: Path, lease: Lease) -> None:
    with child(HOLD, path) as process:
        run = run_of_child(path)
        assert lease.is_alive(run)
        assert lease.is_alive(run), "polling does no harm"
        process.kill()
        process.wait()
        left = path.with_name(f"{path.name}-{run}.new")  # it died while it made the file
        left.touch()
        assert not lease.is_alive(run)
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
    lease.sweep()
    left = {found.name for found in path.parent.iterdir()}
    assert left == {*others, f"run.sqlite-{lease.run}.lock", f"run.sqlite-{living.run}.lock"}
    living.release()


def test_two_who_poll_once_do_not_take_each_other_for_the_run(
    path: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = "0123456789abcdef"
    path.with_name(f"{path.name}-{run}.lock").touch()
    seen = []

    def clear(journal: Path, run: str) -> None:
        monkeypatch.undo()
        seen.append(lease.is_alive(run))  # while the first still holds the file

    monkeypatch.setattr(module, "_clear", clear)
    assert (lease.is_alive(run), seen) == (False, [False])


def test_a_file_that_cannot_be_polled_is_not_called_dead(
    path: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(module.os, "open", refused)
    assert lease.is_alive("0123456789abcdef")


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
    assert lease.is_alive(lease.run)
    lease.release()
    with pytest.raises(OSError):
        os.fstat(tried[0])


def test_a_directory_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lease.take(tmp_path / "none" / "run.sqlite")
