"""Writes the table as a page: `python -m tests.faults.render > docs/faults.md`."""

import sys
from collections.abc import Iterable, Iterator

from flux_klein_async.emulator import FAULTS
from tests.faults.table import TABLE
from tests.faults.verbs import OK, Cell

__all__ = ["render"]

_INTRODUCTION = """\
# What happens when something goes wrong

For every verb, every endpoint that it calls and every fault that the emulator can make there: what the caller gets if
it happens once, and if it happens each time. The client has its defaults (so that it polls `status` while it waits,
and fetches `result` then) and a timeout of 30 s. This page is made from the table that the tests go through cell by
cell, so that it cannot say what is not so. `generate_many` has one item and a budget,
and at the endpoint `file` a directory.

How to read it:

- **ok**: the call succeeds, after a repeat where one was needed.
- An error is followed by what it says of itself: `charged` (may money be gone?) and, if so, *retryable* (would the same
  call make sense later, without paying a second time?).
- **accepted** is how many submits the service accepted, and so charges: never more than one.
- **journal** is what a journal says of the order then, and so what the next run with it does ("What the journal says",
  below). In every cell it fits what the service did, or says that nobody knows it; and it counts with no less money
  than the service.
- A name with a star, such as `503*`, stands for three faults: without `Retry-After`, with seconds (`+after`), and with
  a date (`+date`).
- In every cell the request id is on the error as soon as it was known, the deadline holds, a file is on disk whole or
  not at all, and `aclose()` leaves nothing running.

Each can be tried: `emulator.fault("status", fault("503"), probability=0.05)` in a test ([testing.md](testing.md)),
`flux-klein emulator --fault status:503=0.05` on a port.
"""

_JOURNAL = """\

## What the journal says

| journal | meaning | what the next run does with such an item |
| --- | --- | --- |
| nothing | no submit was about to leave | submits it |
| refused | no submit was accepted | submits it |
| uncertain | its submit may have been accepted; the money stays set aside | reports it, and leaves it alone |
| submitted | it was accepted, and its id is there | waits for that request |
| completed | its result was seen | saves its files, and submits nothing |
| downloaded | its files are there | nothing, or saves them again where they are missing |
| failed | the generation failed; the money stays set aside | reports it, and leaves it alone |
| cancelled | the service says that it was cancelled, which costs nothing | submits it |

`SqliteJournal(resubmit_uncertain=True)` and `SqliteJournal(retry_failed=True)` submit what is left alone. A cancel that
took effect while its answer was lost leaves "submitted": the next run asks, and hears of it. One that the service only
claims to have made (`only-said`) is believed.
"""

_NAMES = """\

## The faults by name

| name | what happens |
| --- | --- |
"""

_ABANDONED = """\

## Cancels that nobody waits for

A generation that is abandoned (at its deadline, or with its task) asks the service to cancel, in the background.
Whatever that cancel meets, the caller is not held up: `WaitTimeoutError` comes at the deadline. Where the service never
confirms it, the `Cancelled` event says `cancelled=None` and `aclose()` returns the id among those left running.
"""


def render() -> str:
    """The page."""
    return "".join([_INTRODUCTION, *_sections(), _JOURNAL, _ABANDONED, _NAMES, *_meanings()])


def _sections() -> Iterator[str]:
    last = ""
    for (verb, endpoint), rows in TABLE.items():
        if verb != last:
            yield f"\n## `{verb}`\n"
            last = verb
        where = "While it connects" if endpoint == "connect" else f"At the endpoint `{endpoint}`"
        yield f"\n{where}:\n\n| fault | once | each time | accepted | journal |\n| --- | --- | --- | --- | --- |\n"
        for faults, once, always in rows:
            accepted, journal = _both(once.accepted, always.accepted), _both(once.journal, always.journal)
            again = "the same" if once == always and once.error != OK else _text(always)
            yield f"| {_names(faults)} | {_text(once)} | {again} | {accepted} | {journal} |\n"


def _both(once: object, always: object) -> str:
    return str(once) if once == always else f"{once}, {always}"


def _text(cell: Cell) -> str:
    if cell.error == OK:
        return "ok"
    return f"`{cell.error}`, charged {cell.charged}" + (", *retryable*" if cell.retryable else "")


def _names(faults: Iterable[str]) -> str:
    names = set(faults)
    shown = []
    for name in faults:
        stem = name.partition("+")[0]
        if {stem, f"{stem}+after", f"{stem}+date"} <= names:
            if name == stem:
                shown.append(f"`{stem}*`")
        else:
            shown.append(f"`{name}`")
    return " ".join(shown)


def _meanings() -> Iterator[str]:
    for name, entry in FAULTS.items():
        if not name.endswith(("+after", "+date")):
            yield f"| `{name}` | {entry.meaning} |\n"


if __name__ == "__main__":
    sys.stdout.write(render())
