"""A process that is killed at any instant leaves a file that holds all it was told to hold, and nothing by halves."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flux_klein_async.ledger.base import Action
from flux_klein_async.ledger.schema import check

from .helpers import Run, order, orders

DIE_INSIDE = """
import os, signal, sys
from pathlib import Path
from flux_klein_async.ledger.base import Reservation
from tests.ledger.helpers import Run, entry

path, statement = sys.argv[1:]
run = Run(Path(path))
run.submit()

def die(text):
    if text.startswith(statement):
        os.kill(os.getpid(), signal.SIGKILL)

run.database.db.set_trace_callback(die)
run.write(entry("completed", request_id="r-k", cost_usd=0.01, answer=b"{}"))
"""


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("BEGIN", "submitted"),
        ("UPDATE orders", "submitted"),
        ("UPDATE accounts", "submitted"),
        ("COMMIT", "submitted"),
        ("never", "completed"),
    ],
)
def test_one_that_dies_inside_a_transaction_leaves_none_of_it(path: Path, statement: str, expected: str) -> None:
    process = subprocess.run([sys.executable, "-c", DIE_INSIDE, str(path), statement], check=False)
    assert process.returncode == (0 if expected == "completed" else -signal.SIGKILL)
    run = Run(path)
    assert order(run.database)["state"] == expected
    check(path, run.database.db)
    assert run.claim().action is (Action.KEEP if expected == "completed" else Action.TAKE_UP)
    run.close()


DIE_WHILE_MAKING = """
import os, signal, sys
from pathlib import Path
from flux_klein_async.ledger import schema
from tests.ledger.helpers import Run

path, where = sys.argv[1:]
if where == "before":
    schema._into_place = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
else:
    schema._sync_directory = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Run(Path(path))
"""


@pytest.mark.parametrize("where", ["before", "after"])
def test_one_that_dies_while_it_makes_the_file_leaves_a_whole_one_or_none(path: Path, where: str) -> None:
    process = subprocess.run([sys.executable, "-c", DIE_WHILE_MAKING, str(path), where], check=False)
    assert process.returncode == -signal.SIGKILL
    assert path.exists() == (where == "after")
    run = Run(path)
    assert orders(run.database) == []
    run.close()
    assert [found.name for found in path.parent.iterdir()] == [path.name]


WRITE_ON = """
import asyncio, itertools, sys
from flux_klein_async.ledger.sqlite import SqliteJournal
from tests.ledger.helpers import entry

async def main():
    journal = SqliteJournal(sys.argv[1])

    async def caller(name):
        for number in itertools.count():
            key = f"{name}-{number}"
            await journal.record(entry("submitting", key=key))
            print("intent", key, flush=True)
            await journal.record(entry("submitted", key=key, request_id="r-" + key))
            print("id", key, flush=True)

    await asyncio.gather(*(caller(name) for name in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 20, 57, 130, 333])
def test_what_was_recorded_is_there_whenever_the_process_is_killed(path: Path, lines: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITE_ON, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline().split() for _ in range(lines)]
    process.kill()
    told += [line.split() for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait()
    run = Run(path)
    found = {facts["key"]: facts["request_id"] for facts in orders(run.database)}
    assert {key for _, key in told} <= set(found)
    assert {key: f"r-{key}" for what, key in told if what == "id"}.items() <= found.items()
    check(path, run.database.db)
    run.close()
