"""A small storm in virtual time: a tenth of all calls fail in every known way, and the accounts still agree."""

import asyncio
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from faulty_client import PIXELS, Item, Plan, RunRecord, Submit, accepted_submits, audit, run_items
from harness import problems

from flux_klein_async import FluxKleinClient, Limits
from flux_klein_async.emulator import FAULTS, InProcessEmulator, VirtualTimeLoop, fault, pictures

pytestmark = pytest.mark.slow

PLAN = Plan(count=300, concurrency=50, seed=7)
# Where money is at stake, and each too rare among all the others: the reply to a submit that is lost or late.
LOST_REPLIES = [fault(name) for name in FAULTS if name.endswith("+accepted") or name in {"slow", "drip", "no-id"}]


async def rage(directory):
    """One storm and its results."""
    storm = SimpleNamespace()

    def connect(hear):
        return FluxKleinClient(
            emulator.api_key,
            base_url=emulator.base_url,
            session=emulator.session(),
            timeout=30.0,
            limits=Limits(max_in_flight=PLAN.concurrency, max_file_bytes=1_500_000),
            on_event=hear,
        )

    with problems() as storm.seen:
        async with InProcessEmulator(round_trip=0.05, workers=12, seed=PLAN.seed) as emulator:
            emulator.fault("submit", *LOST_REPLIES, probability=0.1)
            emulator.storm(0.1)
            storm.ridden = await run_items(PLAN, connect, emulator.base_url, directory)
            storm.submits = accepted_submits(emulator.records)
            storm.faults = Counter(record.endpoint for record in emulator.records if record.answer is not None)
            storm.kinds = len({repr(record.answer)[:200] for record in emulator.records})
            storm.accepted = emulator.accepted
        storm.tasks = asyncio.all_tasks() - {asyncio.current_task()}
    storm.ends = Counter(end for item in storm.ridden.items for end in item.ends)
    storm.files = sum(len(item.files) for item in storm.ridden.items)
    return storm


@pytest.fixture(scope="module")
def weather(tmp_path_factory):
    random.seed(PLAN.seed)  # the client's own pauses
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(rage(tmp_path_factory.mktemp("storm")))


def test_nothing_is_paid_twice_lost_mixed_up_or_left_behind(weather):
    found = audit(weather.ridden, weather.submits, seed=PLAN.seed)
    assert found == dict.fromkeys(found, 0)
    assert len(found) == 10
    assert (weather.seen, weather.tasks) == ([], set())
    assert weather.accepted == len(weather.submits)


def test_it_was_a_storm(weather):
    """Most generations succeed. Which call meets which fault depends on the threads that write files."""
    assert {"submit", "status", "result", "file"} <= set(weather.faults)
    assert weather.kinds > 30
    assert weather.ends["result"] > PLAN.count / 2
    assert weather.files > PLAN.count / 3
    assert all(weather.ends[end] for end in ("SubmissionUncertainError", "abandoned", "not cancellable"))


PROMPT = "a snow leopard, number 0"
ACCEPTED = Submit(PROMPT, "id-0", told=True)
LATE = ACCEPTED._replace(told=False)


def item(**told):
    return Item(PROMPT, random.Random(0), **told)


@pytest.mark.parametrize(
    ("one", "submits", "wrong"),
    [
        (item(ids={"id-0"}), [ACCEPTED], {}),
        (item(ids={"id-0"}, heard={"id-0"}), [LATE], {}),
        (item(heard={"id-0"}, abandoned=True), [ACCEPTED], {}),
        (item(uncertain=True), [LATE], {}),
        (item(uncertain=True), [], {}),
        (item(free=True), [], {}),
        (
            item(ids={"id-0"}),
            [ACCEPTED, ACCEPTED._replace(request_id="id-1")],
            {"submitted twice", "told and lost", "nobody"},
        ),
        (item(), [ACCEPTED], {"nobody was told", "told and lost"}),
        (item(), [LATE], {"nobody was told"}),
        (item(uncertain=True), [ACCEPTED], {"told and lost"}),
        (item(heard={"id-0"}), [LATE], {"told and lost"}),
        (item(ids={"id-0", "id-1"}), [ACCEPTED], {"another item"}),
        (item(ids={"id-0"}), [], {"another item"}),
        (item(ids={"id-0"}, free=True), [ACCEPTED], {"not charged"}),
        (item(ids={"id-0"}), [ACCEPTED, Submit("a prompt of nobody", "id-1", told=True)], {"of no item"}),
        (item(strange=[KeyError()]), [], {"outside the tree"}),
    ],
)
def test_the_books_show_what_is_wrong(one, submits, wrong, tmp_path):
    found = audit(RunRecord([one], tmp_path), submits, seed=0)
    shown = {what for what, number in found.items() if number}
    assert len(shown) == len(wrong)
    assert all(any(word in what for what in shown) for word in wrong)


def test_the_books_know_an_id_that_was_never_given(tmp_path):
    ridden = RunRecord([item(ids={"id-0"})], tmp_path, untagged={"id-0", "id-9"})
    assert audit(ridden, [ACCEPTED], seed=0)["ids that the service never gave"] == 1


def test_the_books_compare_files_with_what_was_served(tmp_path):
    drawn = pictures.draw(PROMPT, PIXELS, PIXELS, seed=0, request_id="id-0")
    one = item(ids={"id-0"})
    for name, data in {"whole": drawn, "half": drawn[:-1], "lie": fault("picture-text").body.encode()}.items():
        (tmp_path / name).write_bytes(data)
        one.files.append(("id-0", tmp_path / name))
    (tmp_path / ".left.part").touch()
    found = audit(RunRecord([one], tmp_path), [ACCEPTED], seed=0)
    assert {what: number for what, number in found.items() if number} == {
        "files neither whole nor as served": 1,
        "files that nobody was told of": 1,
    }
