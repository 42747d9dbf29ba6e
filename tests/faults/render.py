"""Writes the table as a page: `python -m tests.faults.render > docs/faults.md`."""

import sys
from collections.abc import Iterable, Iterator

from flux_klein_async.emulator import FAULTS
from tests.faults.table import TABLE
from tests.faults.verbs import OK, Cell

__all__ = ["render"]

_INTRODUCTION = """\
# What happens when something goes wrong

For every verb, every endpoint that it calls and every fault that the emulator can make there: what you get if it
happens once, and if it happens each time. The client has its defaults (it polls `status` while it waits, then fetches
`result`; the last sections have `poll_endpoint="result"`) and a timeout of 30 s; `generate_many` has one item and a
budget, and at the endpoint `file` a directory. This page is generated from the table that the tests check cell by cell.

How to read it:

- **ok**: the call succeeds, after a repeat where one was needed.
- An error is followed by its `charged` (may money be gone?) and, where it is so, *retryable* (would the same call make
  sense later, without paying a second time?).
- **accepted** is how many submits the service accepted, and so charges: never more than one.
- **journal** is what a journal then says of the request, and so what the next run does with it (below, "What the
  journal says"). In every cell it agrees with what the service did or says that this is unknown, and it never counts
  less money than the service.
- A name with a star, such as `503*`, stands for three faults: without `Retry-After`, with seconds (`+after`), and with
  a date (`+date`).
- In every cell the error has the request id as soon as it is known, the deadline holds, a file is on disk whole or
  not at all, and `aclose()` leaves nothing running.
- What a traceback with local variables, as crash reporters collect it, shows of the token: nothing, in every cell.

Try each with `emulator.fault("status", fault("503"), probability=0.05)` in a test ([testing.md](testing.md)), or with
`flux-klein emulator --fault status:503=0.05` on a port.
"""

_JOURNAL = """\

## What the journal says

| journal | meaning | what the next run does with such an item |
| --- | --- | --- |
| nothing | no submit was about to be sent | submits it |
| refused | no submit was accepted | submits it |
| uncertain | its submit may have been accepted; the money stays reserved | reports it, and does not submit it |
| submitted | it was accepted, and its id is known | waits for that request |
| completed | its result was seen | saves its files, and submits nothing |
| downloaded | its files are there | nothing, or saves them again where they are missing |
| failed | the generation failed; the money stays reserved | reports it, and does not submit it |
| cancelled | the service says that it was cancelled, which costs nothing | submits it |

`SqliteJournal(resubmit_uncertain=True)` and `SqliteJournal(retry_failed=True)` submit those that are only reported. A
cancel that took effect while its answer was lost leaves "submitted": the next run asks, and learns of it. A cancel that
the service only claims (`only-said`) is believed.
"""

_ABANDONED = """\

## Cancels in the background

A generation that is abandoned (at its deadline, or with its task) asks the service to cancel, in the background. No
fault of that cancel delays the caller: `WaitTimeoutError` comes at the deadline. Where the service never confirms the
cancel, the `Cancelled` event says `cancelled=None` and `aclose()` returns the id among those left running.
"""

_NAMES = """\

## The faults by name

| name | what happens |
| --- | --- |
"""


def render() -> str:
    """Return the page."""
    return "".join([_INTRODUCTION, *_sections(), _JOURNAL, _ABANDONED, _NAMES, *_meanings()])


def _sections() -> Iterator[str]:
    last = ""
    for (verb, endpoint), rows in TABLE.items():
        if verb != last:
            name, _, option = verb.partition(" with ")
            yield f"\n## `{name}`{option and f' with `{option}`'}\n"
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
