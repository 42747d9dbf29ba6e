"""What a dry run says: counts, cost and time, from rows and journal alone."""

from decimal import Decimal

import pytest

from flux_klein_async.batch.estimate import Estimate
from flux_klein_async.batch.rows import BadRow, Row
from flux_klein_async.cli.batchplan import BAD_KEPT, Forecast, forecast
from flux_klein_async.cli.feed import Feed
from flux_klein_async.errors import InvalidInputError
from flux_klein_async.journal.base import Action
from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.policies import Observation

ROWS = [Row(number, str(number), {"prompt": "x", "width": 1000, "height": 1000}) for number in range(600)]


async def test_each_row_is_asked_for_once_and_counted_as_the_journal_says():
    asked, actions = [], list(Action)

    async def preview(model: str, body: bytes, item_id: str | None) -> Action:
        asked.append((model, body, item_id))
        return actions[len(asked) % len(actions)]

    with Feed(ROWS) as feed:
        found = await forecast(feed, "a/b", Estimate(), preview)
    assert [item_id for _, _, item_id in asked] == [row.id for row in ROWS]
    assert asked[0][:2] == ("a/b", b'{"prompt": "x", "width": 1000, "height": 1000}')
    assert found.actions == dict.fromkeys(Action, 100)
    assert found.estimate.count == 100


async def test_without_a_journal_all_are_to_be_submitted():
    with Feed(ROWS) as feed:
        found = await forecast(feed, "a/b", Estimate(), None)
    assert found.actions == {Action.SUBMIT: 600}


async def test_bad_rows_are_counted_and_the_first_of_them_kept():
    async def preview(model: str, body: bytes, item_id: str | None) -> Action:
        raise InvalidInputError("another input by this id")

    with Feed([BadRow(1, "blank"), *ROWS]) as feed:
        found = await forecast(feed, "a/b", Estimate(), preview)
    assert (found.bad, len(found.first_bad)) == (601, BAD_KEPT)
    assert found.first_bad[:2] == [BadRow(1, "blank"), BadRow(0, "another input by this id")]
    assert found.actions == {}


@pytest.mark.parametrize(
    ("price", "cost"),
    [
        (Decimal("0.01"), "Cost: $12.00 (1,200 x $0.01)"),
        (None, "Cost: not known, since price or unit do not say it"),
        (Decimal(0), "Cost: $0.00 (1,200 x $0.00)"),
    ],
)
def test_the_lines_for_people(price, cost):
    found = Forecast(Estimate())
    for action, count in ((Action.SUBMIT, 1200), (Action.RECALL, 5), (Action.UNCERTAIN, 1)):
        for _ in range(count):
            found.count(ROWS[0], action)
    for _ in range(2):
        found.refuse(BadRow(1, "blank"))
    # 1,200 of a megapixel, each 0.063 + 0.483 s as published, 64 at once
    first = "1,200 to submit, 5 done before, 1 uncertain, 2 bad"
    assert found.lines(64, price) == [first, cost, "Time: about 10.2 s with 64 at once, if none has to queue"]


def test_nothing_to_do_takes_no_time_and_no_money():
    found = Forecast(Estimate())
    assert found.lines(64, Decimal("0.01")) == [
        "0 to submit",
        "Cost: $0.00",
        "Time: about 0.0 s with 64 at once, if none has to queue",
    ]
    assert found.record(64, Decimal("0.01"))["seconds"] == 0.0


def test_what_was_learned_counts_for_more_than_what_was_published():
    policy = AdaptivePolling()
    assert policy.median("a/b", 1_000_000) is None
    for _ in range(50):
        policy.observe(
            Observation(
                model="a/b",
                pixels=1_000_000,
                not_before=2.9,
                not_after=3.1,
                running_since=None,
                served=None,
                polls=2,
            )
        )
    assert policy.median("a/b", 1_000_000) == pytest.approx(3.0, rel=0.1)
