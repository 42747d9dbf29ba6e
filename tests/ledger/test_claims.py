"""Items are known again, and nobody works on one that somebody else has under way."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flux_klein_async.errors import InvalidInputError, JournalError
from flux_klein_async.ledger.base import Action, Claim, EntryState
from flux_klein_async.ledger.claims import forget_pass
from flux_klein_async.models import SavedFile

from .helpers import AGAIN, Run, child, entry, order

FILE = SavedFile(path=Path("/out/r.png"), sha256="ab", size=3)
Start = Callable[[], Run]


def reopened(start: Start, run: Run) -> Run:
    """The next run, after this one's end."""
    run.close()
    return start()


@pytest.mark.parametrize(
    ("states", "action", "facts"),
    [
        ([], Action.SUBMIT, {}),
        (["submitting"], Action.UNCERTAIN, {"error": "The process ended before the service's answer was written down"}),
        (["submitting", "refused"], Action.SUBMIT, {}),
        (["submitting", "uncertain"], Action.UNCERTAIN, {"error": "why"}),
        (["submitting", "submitted"], Action.TAKE_UP, {"request_id": "r"}),
        (["submitting", "submitted", "completed"], Action.KEEP, {"request_id": "r", "answer": b"{}"}),
        (
            ["submitting", "submitted", "completed", "downloaded"],
            Action.KEEP,
            {"request_id": "r", "answer": b"{}", "files": (FILE,)},
        ),
        (["submitting", "submitted", "failed"], Action.FAILED, {"request_id": "r", "error": "why"}),
        (["submitting", "submitted", "cancelled"], Action.SUBMIT, {}),
    ],
)
def test_what_is_to_be_done_with_an_item_of_an_earlier_run(
    start: Start, states: list[str], action: Action, facts: dict[str, object]
) -> None:
    run = start()
    item = run.claim().item
    known = {
        "submitted": {"key": "k", "request_id": "r"},
        "completed": {"request_id": "r", "answer": b"{}"},
        "downloaded": {"request_id": "r", "files": (FILE,)},
        "failed": {"request_id": "r", "error": "why"},
        "cancelled": {"request_id": "r"},
    }
    for state in states:
        run.write(entry(state, item=item, **known.get(state, {"key": "k", "error": "why"})))
    later = reopened(start, run)
    assert later.look() is action
    assert later.claim() == Claim(item=item, action=action, **facts)  # type: ignore[arg-type]


def test_a_look_at_an_item_takes_nothing(start: Start) -> None:
    one, two = start(), start()
    assert one.look() is Action.SUBMIT
    assert two.claim().action is Action.SUBMIT
    assert one.look() is Action.TAKEN


@pytest.mark.parametrize(
    ("end", "again"),
    [(entry("failed", key="k"), EntryState.FAILED), (entry("uncertain", key="k"), EntryState.UNCERTAIN)],
)
def test_only_who_asks_for_it_submits_a_failed_or_uncertain_item_again(
    start: Start, end: object, again: EntryState
) -> None:
    run = start()
    run.write(entry("submitting", key="k", item=run.claim().item), end)  # type: ignore[arg-type]
    run = reopened(start, run)
    assert run.claim().action is not Action.SUBMIT
    run.number = 2
    assert run.claim(again=AGAIN | {again}).action is Action.SUBMIT


def test_an_intent_whose_process_died_is_written_down_as_uncertain(start: Start) -> None:
    run = start()
    run.write(entry("submitting", key="k", item=run.claim().item))
    run = reopened(start, run)
    run.claim()
    assert order(run.database)["state"] == "uncertain"


# --- who has it


def test_an_item_that_is_under_way_here_is_taken_until_it_is_released(run: Run) -> None:
    claimed = run.claim()
    run.number = 2
    taken = run.claim()
    assert (taken.item, taken.action) == (claimed.item, Action.TAKEN)
    run.release(taken)  # as its caller does with every claim
    run.number = 3
    assert run.claim().action is Action.TAKEN
    run.release(claimed)
    run.number = 4
    assert run.claim().action is Action.SUBMIT


def test_an_item_whose_abandoned_submit_is_seen_through_is_taken(run: Run) -> None:
    claimed = run.claim()
    run.write(entry("submitting", key="k", item=claimed.item))
    run.release(claimed)
    run.number = 2
    assert run.claim().action is Action.TAKEN
    run.write(entry("submitted", key="k", request_id="r"))
    run.number = 3
    assert run.claim().action is Action.TAKE_UP


@pytest.mark.parametrize(
    ("states", "action"),
    [
        ([], Action.TAKEN),
        (["submitting"], Action.TAKEN),
        (["submitting", "submitted"], Action.TAKEN),
        (["submitting", "submitted", "completed"], Action.KEEP),
        (["submitting", "submitted", "failed"], Action.FAILED),
        (["submitting", "submitted", "cancelled"], Action.SUBMIT),
        (["submitting", "refused"], Action.SUBMIT),
        (["submitting", "uncertain"], Action.UNCERTAIN),
    ],
)
def test_an_item_of_another_run_that_is_alive_is_free_once_its_order_ended(
    start: Start, states: list[str], action: Action
) -> None:
    one, other = start(), start()
    claimed = one.claim()
    for state in states:
        one.write(entry(state, key="k", item=claimed.item, request_id="r" if state != "submitting" else None))
    one.release(claimed)  # which only the run itself knows
    assert other.claim().action is action


@pytest.mark.parametrize("before", ["failed", "refused", "uncertain", "cancelled"])
def test_an_order_of_earlier_is_not_the_end_of_what_is_under_way_now(start: Start, before: str) -> None:
    run = start()
    run.write(entry("submitting", key="k", item=run.claim().item), entry(before, key="k"))
    one, other = reopened(start, run), start()
    again = AGAIN | {EntryState.FAILED, EntryState.UNCERTAIN}
    claimed = one.claim(again=again)
    assert claimed.action is Action.SUBMIT
    assert other.claim(again=again).action is Action.TAKEN
    one.write(entry("submitting", key="l", item=claimed.item))
    other.number = 2
    assert other.claim(again=again).action is Action.TAKEN


def test_a_request_that_was_taken_up_is_free_again_once_it_ended(start: Start) -> None:
    run = start()
    run.submit()
    one, other = reopened(start, run), start()
    assert one.claim().action is Action.TAKE_UP
    assert other.claim().action is Action.TAKEN
    one.write(entry("completed", request_id="r-k"))
    other.number = 2
    assert other.claim().action is Action.KEEP


CLAIM = """
from tests.ledger.helpers import Run, entry
run = Run(Path(sys.argv[1]))
item = run.claim(b"1").item
run.write(entry("submitting", key="k", item=item))
run.submit("l", body=b"2")
run.claim(b"3")
"""


def test_an_item_of_a_killed_process_is_free_at_once(path: Path, run: Run) -> None:
    actions = []
    with child(CLAIM, path) as process:
        for number in (1, 2):
            run.number = number
            actions.append([run.claim(body).action for body in (b"1", b"2", b"3")])
            process.kill()
            process.wait()
    assert actions == [[Action.TAKEN] * 3, [Action.UNCERTAIN, Action.TAKE_UP, Action.SUBMIT]]


# --- by what an item is known


def test_items_without_an_id_are_known_by_content_and_occurrence(start: Start) -> None:
    run = start()
    first, second, other = run.claim(b"1"), run.claim(b"1"), run.claim(b"2")
    another = run.claim(b"1", model="c/d")
    assert len({claimed.item for claimed in (first, second, other, another)}) == 4
    again = reopened(start, run)
    assert [again.claim(b"2").item, again.claim(b"1").item, again.claim(b"1").item] == [
        other.item,
        first.item,
        second.item,
    ]


def test_each_pass_counts_for_itself(run: Run) -> None:
    first = run.claim()
    run.number = 2
    assert run.claim().item == first.item
    with run.database.writing():
        forget_pass(run.database, 1)
    run.number = 1
    assert run.claim().item == first.item


def test_an_id_stands_for_one_input(start: Start) -> None:
    run = start()
    claimed = run.claim(b"1", "the id")
    assert run.claim(b"1").item != claimed.item, "the same content without an id is another item"
    with pytest.raises(InvalidInputError, match="'the id' came before in this pass"):
        run.claim(b"1", "the id")
    run = reopened(start, run)
    with pytest.raises(InvalidInputError, match="knows another input by the id 'the id'"):
        run.claim(b"2", "the id")
    run.number = 2
    with pytest.raises(InvalidInputError, match="knows another input"):
        run.claim(b"1", "the id", model="c/d")
    run.number = 3
    assert run.claim(b"1", "the id").item == claimed.item
    assert run.claim(b"1", "\ud800").action is Action.SUBMIT


def test_a_damaged_item_is_not_taken_for_another_input(start: Start) -> None:
    run = start()
    run.claim(b"1", "the id")
    run.database.db.execute(
        "UPDATE items SET content = CAST(substr(content, 1, 15) || x'00' || substr(content, 17) AS BLOB)"
    )
    with pytest.raises(JournalError, match="is damaged"):
        reopened(start, run).claim(b"1", "the id")


def test_accounts_have_items_of_their_own(run: Run) -> None:
    mine = run.claim(b"1", "i", token="one")
    run.number = 2
    assert run.claim(b"2", "i").item != mine.item


def test_a_result_that_was_damaged_is_had_again_from_the_service(start: Start) -> None:
    run = start()
    run.submit()
    run.write(
        entry("completed", request_id="r-k", answer=b'{"a": 1}'), entry("downloaded", request_id="r-k", files=[FILE])
    )
    run.database.db.execute("UPDATE orders SET answer = ?", (b'{"a": 2}',))
    run = reopened(start, run)
    claimed = run.claim()
    assert (claimed.action, claimed.request_id, claimed.answer, claimed.files) == (Action.KEEP, "r-k", None, ())


def test_what_a_run_took_up_is_taken_for_its_own_next_pass_until_it_is_released(start: Start) -> None:
    first = start()
    first.submit()
    run = reopened(start, first)
    taken_up = run.claim()
    assert taken_up.action is Action.TAKE_UP
    run.number += 1
    assert run.claim().action is Action.TAKEN
    run.release(taken_up)
    run.number += 1
    assert run.claim().action is Action.TAKE_UP
