"""A token that was renewed is a stranger, and takes over what was submitted with the old one only if told to.

Entries become requests, money is counted, and nothing weaker overwrites what is known.

Items are known again, and nobody works on one that somebody else has under way.

Any sequence of entries leaves what the transition table says, and money that adds up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.errors import BudgetExceededError, InvalidInputError, JournalError
from flux_klein_async.journal.base import Action, Claim, Entry, EntryState, Reservation
from flux_klein_async.journal.database import check
from flux_klein_async.journal.records import files_from, forget_pass, record, strangers, take_over
from flux_klein_async.models import SavedFile

from .helpers import AGAIN, Run, child, entry, request, requests, write
from .test_base import ROWS


def submit(run: Run, token: str) -> None:
    """An item of this token's account, submitted and done."""
    key = f"of {token}"
    claimed = run.claim(b"{}", key, token=token)
    told: list[Entry] = [entry("submitting", key=key, item=claimed.item), entry("submitted", key=key, request_id=key)]
    write(run.database, *told, entry("completed", request_id=key, cost_usd=0.25, answer=b"{}"), token=token)


def known(run: Run, token: str, ignored: tuple[str, ...] = ()) -> int:
    with run.database.writing():
        return len(strangers(run.database, token, ignored))


def test_a_journal_without_orders_knows_no_strangers(run: Run) -> None:
    write(run.database, entry("refused", key="k"), token="one that bought nothing")
    assert known(run, "new") == 0


def test_a_token_is_a_stranger_where_only_others_were_used(run: Run) -> None:
    submit(run, "old")
    assert (known(run, "new"), known(run, "old"), known(run, "new", ("old",))) == (1, 0, 0)
    submit(run, "new")
    assert known(run, "new") == 0


def test_a_new_token_takes_over_what_the_old_one_had(start: Callable[[], Run]) -> None:
    submit(start(), "old")
    run = start()
    write(run.database, entry("refused", key="k"), token="new")  # its account is there, and empty
    with run.database.writing():
        take_over(run.database, "new")
    run.number = 2
    assert run.claim(b"{}", "of old", token="new").action is Action.RECALL
    accounts = run.database.db.execute("SELECT name, settled FROM accounts").fetchall()
    assert accounts == [(run.database.account_name("new"), 250_000_000)]
    check(run.database.path, run.database.db)
    with run.database.writing():
        take_over(run.database, "new")  # once more changes nothing
    assert run.database.db.execute("SELECT name, settled FROM accounts").fetchall() == accounts


def test_which_of_several_was_renewed_nobody_knows(run: Run) -> None:
    submit(run, "old")
    submit(run, "another's")
    with pytest.raises(JournalError, match="2 other tokens"), run.database.writing():
        take_over(run.database, "new")


PRICE = Reservation(usd=0.01, max_usd=0.03)
FILE = SavedFile(path=Path("/out/r.png"), sha256="ab", size=3)


def intent(key: str = "k", **facts: Any) -> Entry:
    return entry("submitting", key=key, model="a/b", body=b'{"prompt": "a"}', reservation=PRICE, **facts)


def money(run: Run) -> tuple[int, int]:
    """Settled and held, in thousandths of a USD, of the only account."""
    [(settled, held)] = run.database.db.execute("SELECT settled, held FROM accounts").fetchall()
    return settled / 10**6, held / 10**6


def test_an_order_from_its_intent_to_its_files(run: Run) -> None:
    run.write(intent())
    facts = request(run.database)
    assert {name: facts[name] for name in ("key", "state", "model", "body", "request_id", "created", "updated")} == {
        "key": "k",
        "state": "submitting",
        "model": "a/b",
        "body": b'{"prompt": "a"}',
        "request_id": None,
        "created": 1000.0,
        "updated": 1000.0,
    }
    assert money(run) == (0, 10)
    run.now = 1001.0
    run.write(entry("submitted", key="k", model="a/b", request_id="r"))
    assert (request(run.database)["state"], request(run.database)["request_id"]) == ("submitted", "r")
    assert money(run) == (0, 10)
    run.write(entry("completed", request_id="r", cost_usd=0.004, answer=b"{}"))
    assert (request(run.database)["state"], request(run.database)["answer"]) == ("completed", b"{}")
    assert money(run) == (4, 0)
    run.write(entry("downloaded", request_id="r", files=(FILE,)))
    facts = request(run.database)
    assert (facts["state"], facts["answer"], files_from(facts["files"])) == ("downloaded", b"{}", (FILE,))
    assert (facts["created"], facts["updated"], money(run)) == (1000.0, 1001.0, (4, 0))


@pytest.mark.parametrize(
    ("entries", "state", "spent"),
    [
        ([entry("refused", key="k", error="no")], "refused", (0, 0)),
        ([entry("uncertain", key="k", error="who knows")], "uncertain", (0, 10)),
        ([entry("uncertain", key="k"), entry("submitted", key="k", request_id="r")], "submitted", (0, 10)),
        ([entry("submitted", key="k", request_id="r"), entry("failed", request_id="r")], "failed", (0, 10)),
        ([entry("submitted", key="k", request_id="r"), entry("cancelled", request_id="r")], "cancelled", (0, 0)),
        ([entry("submitted", key="k", request_id="r"), entry("completed", request_id="r")], "completed", (0, 10)),
        (
            [
                entry("submitted", key="k", request_id="r"),
                entry("cancelled", request_id="r"),
                entry("completed", request_id="r", cost_usd=0.02),
            ],
            "completed",
            (20, 0),
        ),
    ],
)
def test_how_an_order_ends_and_what_it_counts_with(
    run: Run, entries: list[Entry], state: str, spent: tuple[int, int]
) -> None:
    run.write(intent(), *entries)
    assert (request(run.database)["state"], money(run)) == (state, spent)


def test_a_weaker_entry_adds_what_it_knows_and_changes_nothing_else(run: Run) -> None:
    run.write(intent(), entry("completed", request_id="r", cost_usd=0.01, answer=b"{}"))
    run.write(entry("submitted", key="k", request_id="r"))
    facts = request(run.database)
    assert (facts["key"], facts["state"], facts["answer"], money(run)) == ("k", "completed", b"{}", (10, 0))
    run.now = 2000.0
    run.write(entry("failed", request_id="r", error="late"), entry("uncertain", key="k"))
    assert request(run.database) == facts
    run.write(entry("downloaded", request_id="r", files=(FILE,)), entry("completed", request_id="r", cost_usd=0.02))
    facts = request(run.database)
    assert (facts["state"], files_from(facts["files"]), money(run)) == ("downloaded", (FILE,), (20, 0))


def test_an_error_stays_with_the_state_that_it_explains(run: Run) -> None:
    run.write(intent(), entry("uncertain", key="k", error="no answer"))
    assert request(run.database)["error"] == "no answer"
    run.write(entry("uncertain", key="k", error="again"))
    assert request(run.database)["error"] == "no answer"
    run.write(entry("submitted", key="k", request_id="r"))
    assert request(run.database)["error"] is None
    run.write(entry("failed", request_id="r", error="\ud800" + "x" * 5000))
    run.write(entry("failed", request_id="r", cost_usd=0.01, error="again"))
    error = request(run.database)["error"]
    assert error.startswith("\\ud800xxx")
    assert len(error) < 2200


def test_a_request_of_another_program_is_written_down_too(run: Run) -> None:
    run.write(entry("completed", request_id="r", cost_usd=0.01, answer=b"{}"))
    facts = request(run.database)
    assert (facts["key"], facts["state"], facts["answer"], money(run)) == (None, "completed", b"{}", (10, 0))
    run.write(entry("downloaded", request_id="r", files=(FILE,)))
    assert request(run.database)["state"] == "downloaded"


def test_a_submit_that_was_refused_before_its_intent_was_written_is_no_order(run: Run) -> None:
    run.write(entry("refused", key="k", error="budget"))
    assert requests(run.database) == []


def test_a_submit_without_an_intent_is_not_lost(run: Run) -> None:
    run.write(entry("submitted", key="k", request_id="r"), entry("uncertain", key="l"))
    assert [(facts["key"], facts["state"]) for facts in requests(run.database)] == [
        ("k", "submitted"),
        ("l", "uncertain"),
    ]


def test_an_id_that_the_service_gave_twice_stands_for_both_orders(run: Run) -> None:
    run.write(intent("k"), intent("l"))
    run.write(entry("submitted", key="k", request_id="r"), entry("submitted", key="l", request_id="r"))
    run.write(entry("completed", request_id="r", cost_usd=0.01))
    assert [facts["state"] for facts in requests(run.database)] == ["completed", "completed"]
    assert money(run) == (20, 0), "rather too much than too little"


def test_an_order_keeps_the_id_that_it_has(run: Run) -> None:
    run.write(intent(), entry("submitted", key="k", request_id="r"), entry("completed", key="k", request_id="s"))
    assert (request(run.database)["request_id"], request(run.database)["state"]) == ("r", "completed")


@pytest.mark.parametrize(
    "wrong",
    [
        entry("submitting", request_id="r"),
        entry("submitted"),
        entry("submitting", key="k", item="one"),
    ],
)
def test_an_entry_that_says_of_nothing_what_it_is_about_is_refused(run: Run, wrong: Entry) -> None:
    with pytest.raises(JournalError):
        run.write(wrong)
    assert requests(run.database) == []


def test_a_submit_is_intended_once(run: Run) -> None:
    run.write(intent())
    with pytest.raises(JournalError, match="before"):
        run.write(intent())
    assert money(run) == (0, 10)


# --- budget


def test_money_is_set_aside_until_none_is_left(run: Run) -> None:
    run.write(intent("a"), intent("b"), intent("c"))
    with pytest.raises(BudgetExceededError) as caught:
        run.write(intent("d"))
    assert str(caught.value) == (
        "The next submit is expected to cost 0.01 USD; of 0.03 USD, 0 are spent and 0.03 set aside"
    )
    assert (caught.value.charged, len(requests(run.database))) == ("no", 3)
    run.write(entry("refused", key="a"), intent("e"))
    run.write(entry("submitted", key="b", request_id="r"), entry("completed", request_id="r", cost_usd=0.002))
    with pytest.raises(BudgetExceededError, match=r"0\.002 are spent and 0\.02 set aside"):
        run.write(intent("f"))


def test_what_was_spent_without_a_budget_counts_in_one(run: Run) -> None:
    run.write(entry("completed", request_id="r", cost_usd=0.025))
    with pytest.raises(BudgetExceededError):
        run.write(intent())


def unbudgeted(key: str, state: str = "submitted", **facts: Any) -> list[Entry]:
    intended = entry("submitting", key=key, model="a/b", body=b"{}")
    return [intended, entry(state, key=key, request_id=f"of {key}", **facts)]


def test_what_was_submitted_without_a_budget_and_may_cost_something_is_not_free_in_one(run: Run) -> None:
    run.write(*unbudgeted("a"), *unbudgeted("b", "failed"), *unbudgeted("c", "cancelled"))
    run.write(*unbudgeted("d", "completed", cost_usd=0.002))
    assert money(run) == (2, 0)
    with pytest.raises(BudgetExceededError, match=r"0\.002 are spent and 0\.02 set aside"):
        run.write(intent())
    run.write(entry("completed", request_id="of a", cost_usd=0.004))
    with pytest.raises(BudgetExceededError, match=r"0\.006 are spent and 0\.03 set aside"):
        run.write(intent(), *unbudgeted("e"), intent("l"))
    assert money(run) == (6, 20)
    check(run.database.path, run.database.db)


def test_others_may_submit_without_a_budget_meanwhile(start: Callable[[], Run]) -> None:
    bounded, other = start(), start()
    bounded.write(intent("a"))
    other.write(*unbudgeted("b"))
    write(other.database, *unbudgeted("c"), token="another account's")
    bounded.write(intent("d"))
    other.write(entry("completed", request_id="of b", cost_usd=0.0))
    bounded.write(intent("e"))
    with pytest.raises(BudgetExceededError, match=r"0 are spent and 0\.03 set aside"):
        bounded.write(intent("f"))


@pytest.mark.parametrize(
    ("usd", "most", "fits"),
    [(0.01, float("inf"), True), (0.0, 0.0, True), (0.01, -1.0, False)]
    + [(usd, 1.0, False) for usd in (-0.01, float("nan"), float("inf"))]
    + [(0.01, float("nan"), False)],
)
def test_only_amounts_of_money_can_be_set_aside(run: Run, usd: float, most: float, fits: bool) -> None:
    wanted = entry("submitting", key="k", reservation=Reservation(usd=usd, max_usd=most))
    if fits:
        run.write(wanted)
    else:
        with pytest.raises(BudgetExceededError):
            run.write(wanted)
    assert len(requests(run.database)) == fits


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_cost_that_is_no_amount_is_not_known(run: Run, cost: float) -> None:
    run.write(intent(), entry("submitted", key="k", request_id="r"), entry("completed", request_id="r", cost_usd=cost))
    assert money(run) == (0, 10)
    run.write(entry("completed", request_id="r", cost_usd=0.004), entry("completed", request_id="r", cost_usd=cost))
    assert money(run) == (4, 0)


def test_accounts_share_neither_orders_nor_money(run: Run) -> None:
    for token in ("one", "two"):
        with run.database.writing():
            record(run.database, token, intent())
            record(run.database, token, entry("submitted", key="k", request_id="r"))
    with run.database.writing():
        record(run.database, "one", entry("completed", request_id="r", cost_usd=0.02))
    assert [facts["state"] for facts in requests(run.database)] == ["completed", "submitted"]
    totals = run.database.db.execute("SELECT settled, held FROM accounts ORDER BY id").fetchall()
    assert totals == [(20_000_000, 0), (0, 10_000_000)]


@pytest.mark.parametrize(
    ("state", "facts"),
    [("downloaded", {"files": (FILE,)}), ("completed", {"cost_usd": 0.25}), ("failed", {"error": "why"})],
)
def test_what_was_heard_of_a_request_before_its_submit_is_kept_with_it(
    run: Run, state: str, facts: dict[str, Any]
) -> None:
    run.write(entry(state, request_id="r", **facts))
    run.write(entry("submitting", key="k"), entry("submitted", key="k", request_id="r"))
    only = request(run.database)
    assert (only["key"], only["request_id"], only["state"]) == ("k", "r", state)
    assert files_from(only["files"]) == facts.get("files", ())
    assert only["cost"] == (250_000_000 if "cost_usd" in facts else None)
    assert only["error"] == facts.get("error")


def test_files_are_written_down_after_a_stronger_end(run: Run) -> None:
    run.write(entry("downloaded", request_id="r"), entry("completed", request_id="r", files=(FILE,)))
    assert files_from(request(run.database)["files"]) == (FILE,)


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
        (["submitting", "submitted"], Action.RESUME, {"request_id": "r"}),
        (["submitting", "submitted", "completed"], Action.RECALL, {"request_id": "r", "answer": b"{}"}),
        (
            ["submitting", "submitted", "completed", "downloaded"],
            Action.RECALL,
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
    assert later.preview() is action
    assert later.claim() == Claim(item=item, action=action, **facts)  # type: ignore[arg-type]


def test_a_poll_an_item_takes_nothing(start: Start) -> None:
    one, two = start(), start()
    assert one.preview() is Action.SUBMIT
    assert two.claim().action is Action.SUBMIT
    assert one.preview() is Action.CLAIMED


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
    assert request(run.database)["state"] == "uncertain"


# --- who has it


def test_an_item_that_is_under_way_here_is_taken_until_it_is_released(run: Run) -> None:
    claimed = run.claim()
    run.number = 2
    taken = run.claim()
    assert (taken.item, taken.action) == (claimed.item, Action.CLAIMED)
    run.release(taken)  # as its caller does with every claim
    run.number = 3
    assert run.claim().action is Action.CLAIMED
    run.release(claimed)
    run.number = 4
    assert run.claim().action is Action.SUBMIT


def test_an_item_whose_abandoned_submit_is_seen_through_is_taken(run: Run) -> None:
    claimed = run.claim()
    run.write(entry("submitting", key="k", item=claimed.item))
    run.release(claimed)
    run.number = 2
    assert run.claim().action is Action.CLAIMED
    run.write(entry("submitted", key="k", request_id="r"))
    run.number = 3
    assert run.claim().action is Action.RESUME


@pytest.mark.parametrize(
    ("states", "action"),
    [
        ([], Action.CLAIMED),
        (["submitting"], Action.CLAIMED),
        (["submitting", "submitted"], Action.CLAIMED),
        (["submitting", "submitted", "completed"], Action.RECALL),
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
    assert other.claim(again=again).action is Action.CLAIMED
    one.write(entry("submitting", key="l", item=claimed.item))
    other.number = 2
    assert other.claim(again=again).action is Action.CLAIMED


def test_a_request_that_was_taken_up_is_free_again_once_it_ended(start: Start) -> None:
    run = start()
    run.submit()
    one, other = reopened(start, run), start()
    assert one.claim().action is Action.RESUME
    assert other.claim().action is Action.CLAIMED
    one.write(entry("completed", request_id="r-k"))
    other.number = 2
    assert other.claim().action is Action.RECALL


CLAIM = """
from tests.journal.helpers import Run, entry
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
    assert actions == [[Action.CLAIMED] * 3, [Action.UNCERTAIN, Action.RESUME, Action.SUBMIT]]


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


def test_accounts_have_items_of_their_own(run: Run) -> None:
    mine = run.claim(b"1", "i", token="one")
    run.number = 2
    assert run.claim(b"2", "i").item != mine.item


def test_what_a_run_took_up_is_taken_for_its_own_next_pass_until_it_is_released(start: Start) -> None:
    first = start()
    first.submit()
    run = reopened(start, first)
    taken_up = run.claim()
    assert taken_up.action is Action.RESUME
    run.number += 1
    assert run.claim().action is Action.CLAIMED
    run.release(taken_up)
    run.number += 1
    assert run.claim().action is Action.RESUME


COLUMNS = [state.value for state in EntryState]
KEYS = st.sampled_from(["k1", "k2", "k3"])
REQUESTS = st.sampled_from(["r1", "r2"])
COSTS = st.none() | st.sampled_from([0.0, 0.01, 0.03])

intents = st.builds(
    Entry,
    state=st.just(EntryState.SUBMITTING),
    key=KEYS,
    reservation=st.none() | st.just(Reservation(usd=0.02, max_usd=9.0)),
)
LATER = [state for state in EntryState if state is not EntryState.SUBMITTING]
by_key = st.builds(
    Entry, state=st.sampled_from(LATER), key=KEYS, request_id=st.none() | REQUESTS, cost_usd=COSTS, error=st.none()
)
by_request = st.builds(Entry, state=st.sampled_from(LATER), request_id=REQUESTS, cost_usd=COSTS)


@dataclass
class Known:
    """What the model knows of a request."""

    key: str | None
    request_id: str | None
    state: str
    reserved: float | None = None
    cost: float | None = None

    def hear(self, state: str, cost: float | None) -> None:
        self.state = ROWS[self.state][COLUMNS.index(state)]
        self.cost = self.cost if cost is None else cost

    @property
    def charge(self) -> float:
        if self.state in {"refused", "cancelled"}:
            return 0.0
        return (self.reserved or 0.0) if self.cost is None else self.cost


class Model:
    """A journal without a file."""

    def __init__(self) -> None:
        self.requests: list[Known] = []

    def record(self, entry: Entry) -> bool:
        """Whether it is accepted."""
        found = [request for request in self.requests if entry.key is not None and request.key == entry.key]
        if entry.state is EntryState.SUBMITTING:
            if found:
                return False
            if entry.reservation is not None:
                self._price(entry.reservation.usd)
            reserved = entry.reservation.usd if entry.reservation else None
            self.requests.append(Known(entry.key, None, "submitting", reserved))
            return True
        if not found and entry.request_id is not None:
            found = [request for request in self.requests if request.request_id == entry.request_id]
        if not found and entry.state is not EntryState.REFUSED:
            self.requests.append(Known(entry.key, entry.request_id, entry.state.value, None, entry.cost_usd))
        for known in found:
            self._change(known, entry)
        return True

    def _price(self, usd: float) -> None:
        """What was submitted without a budget is not free in one."""
        for known in self.requests:
            if known.key is not None and known.reserved is None and known.cost is None:
                known.reserved = usd

    def _change(self, request: Known, entry: Entry) -> None:
        if entry.request_id is not None and request.request_id is None:
            request.request_id = entry.request_id
            for other in [
                other for other in self.requests if other.key is None and other.request_id == entry.request_id
            ]:
                self.requests.remove(other)
                request.hear(other.state, other.cost)
        request.hear(entry.state.value, entry.cost_usd)


@given(st.lists(intents | by_key | by_request, max_size=12))
def test_any_sequence_of_entries_ends_as_the_table_says(entries: list[Entry]) -> None:
    model = Model()
    with TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run.sqlite")
        run.database.db.execute("PRAGMA synchronous = OFF")
        try:
            for one in entries:
                try:
                    run.write(one)
                except JournalError:
                    assert not model.record(one)
                else:
                    assert model.record(one)
            found = [(o["key"], o["request_id"], o["state"], (o["cost"])) for o in requests(run.database)]
            wanted = [
                (o.key, o.request_id, o.state, None if o.cost is None else round(o.cost * 10**9))
                for o in model.requests
            ]
            assert sorted(found, key=repr) == sorted(wanted, key=repr)
            totals = run.database.db.execute("SELECT coalesce(sum(settled + held), 0) FROM accounts").fetchone()
            assert totals == (round(sum(request.charge for request in model.requests) * 10**9),)
            check(run.database.path, run.database.db)
        finally:
            run.close()
