"""A run is alive as long as it holds its lock, which the system drops when the process ends."""

import gc
import os
import signal
import stat
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flux_klein_async.errors import JournalError
from flux_klein_async.journal import sqlite as module
from flux_klein_async.journal.sqlite import Lease, SqliteJournal, SqliteLocation, is_alive, sweep

from .helpers import Run, check, child, entry, files, states

HOLD = """
from flux_klein_async.journal.sqlite import Lease
lease = Lease.take(Path(sys.argv[1]))
Path(sys.argv[1]).with_name(lease.run + ".is").touch()
"""


@pytest.fixture
def location(path: Path) -> SqliteLocation:
    return SqliteLocation(path)


@pytest.fixture
def lease(path: Path) -> Iterator[Lease]:
    taken = Lease.take(path)
    yield taken
    taken.release()


def locks(path: Path) -> set[str]:
    return {found.name for found in path.parent.iterdir() if found.suffix == ".lock"}


FORK = """
import os
from flux_klein_async.journal.sqlite import SqliteStore
store = SqliteStore.open(Path(sys.argv[1]), lambda: 1.0)
Path(sys.argv[1]).with_name(store._lease.run + ".is").touch()
if os.fork() == 0:
    Path(sys.argv[1]).with_name("child.new").write_text(str(os.getpid()))
    Path(sys.argv[1]).with_name("child.new").rename(Path(sys.argv[1]).with_name("child"))
    sys.stdin.read()
    os._exit(0)
while not Path(sys.argv[1]).with_name("child").exists():
    time.sleep(0.001)
"""


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


@pytest.mark.slow
def test_the_orphans_of_a_fork_do_not_keep_a_dead_run_alive(path: Path) -> None:
    with child(FORK, path) as process:
        run = run_of_child(path)
        assert is_alive(path, run), "the parent is"
        process.kill()
        process.wait()
        os.kill(int(path.with_name("child").read_text()), 0)  # the orphan is there
        assert not is_alive(path, run)


def in_fork(body: Callable[[], object]) -> int:
    """Run the body in a forked process; its exit code, 0 if nothing was raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads
        process = os.fork()
    if process == 0:
        code = 1
        signal.alarm(30)  # a deadlock ends the child, not the run of the tests
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_what_a_forked_process_does_with_a_lease_leaves_its_parents_run_alive(path: Path, lease: Lease) -> None:
    def body() -> None:
        lease.release()
        own = Lease.take(path)  # may have the number of the file that the lease had
        lease.release()
        assert is_alive(path, lease.run)
        assert is_alive(path, own.run)
        own.release()

    assert in_fork(body) == 0
    assert is_alive(path, lease.run)
    assert locks(path) == {f"run.sqlite-{lease.run}.lock"}


def test_a_lock_that_the_program_closed_itself_does_not_block_a_forked_process(path: Path) -> None:
    lease = Lease.take(path)
    assert lease._handle is not None
    os.close(lease._handle)
    assert in_fork(lambda: Lease.take(path).release()) == 0
    module._held.discard(lease._handle)


@pytest.mark.slow
def test_a_forked_process_cannot_use_or_close_its_parents_journal(path: Path, start: Callable[[], Run]) -> None:
    run = start()
    run.submit("a", body=b"a")
    connection = weakref.ref(run.store.db)

    def body() -> None:
        with pytest.raises(JournalError, match="before this process was forked"):
            run.submit("b", body=b"b")
        run.close()
        del run.store.db, run.store
        gc.collect()
        assert connection() is not None, "to collect it would be to close it"
        own = start()  # a run of its own
        own.submit("c", body=b"c")
        own.close()

    assert in_fork(body) == 0
    assert files(path) == ["run.sqlite", f"run.sqlite-{run.store._lease.run}.lock", "run.sqlite-shm", "run.sqlite-wal"]
    run.submit("d", body=b"d")
    assert states(path) == ["submitted"] * 3
    check(path)


async def test_a_journal_that_was_used_before_a_fork_is_a_clear_error_after_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is not there any more: an entry would never be written."""
    journal = SqliteJournal(path)
    await journal.open()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        for use in (journal.open, journal.aclose):
            with pytest.raises(JournalError, match="before this process was forked"):
                await use()
        journal._writer.__del__()  # warns of nothing
    await journal.record(entry("submitting", key="k"))
    await journal.aclose()


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
