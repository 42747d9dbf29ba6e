"""The server stops and starts again on the same port during calls: no id is lost, nothing is paid twice."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from flux_klein_async import FixedPolling, FluxKleinClient, RequestHandle, RetryPolicy, SubmissionUncertainError
from flux_klein_async.emulator import Emulator, Generation, Hang, Pass
from flux_klein_async.events import Polled, Retrying, Submitted
from tests.fakes import Events, outcome
from tests.networks import closed_port, until

pytestmark = pytest.mark.slow

TOKEN = "emulator-token"
PATIENT = RetryPolicy(attempts=1000, initial=0.05, maximum=0.5)  # waits long enough that the retry quota lasts
MANY = 20


@pytest.fixture
def emulator() -> Emulator:
    """A service whose port can be opened and closed several times."""
    return Emulator(port=closed_port(), profile="fixed:0.1")


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
async def client(emulator: Emulator, events: Events) -> AsyncIterator[FluxKleinClient]:
    address = "http://{}:{}".format(*emulator._address)
    options = {"retry": PATIENT, "polling": FixedPolling(0.01), "on_event": events, "timeout": 30}
    async with FluxKleinClient(TOKEN, base_url=address, **options) as client:
        yield client


async def test_waits_go_on_over_a_restart_and_every_result_comes(client, emulator, events):
    async with emulator:
        emulator.script("submit", *[Generation(after=1.0)] * MANY)
        handles = [await client.submit(f"cat {number}") for number in range(MANY)]
        waits = [asyncio.ensure_future(handle.wait_for_result()) for handle in handles]
        await until(lambda: len({poll.request_id for poll in events.of(Polled)}) == MANY)
    # The port is closed: every wait has a poll that fails.
    await until(lambda: len({poll.request_id for poll in events.of(Polled) if poll.error}) == MANY)
    async with emulator:
        results = await asyncio.gather(*waits)
    assert [result.request_id for result in results] == [handle.request_id for handle in handles]
    assert emulator.accepted == MANY


async def test_submits_made_while_the_port_is_closed_are_sent_once_when_it_opens(client, emulator, events):
    async with emulator:
        await client.get_model()  # a connection that will be dead
    submits = [asyncio.ensure_future(client.submit(f"cat {number}")) for number in range(MANY)]
    await until(lambda: len(events.of(Retrying)) >= MANY)
    assert not any(submit.done() for submit in submits)
    async with emulator:
        handles = await asyncio.gather(*submits)
    assert len({handle.request_id for handle in handles}) == emulator.accepted == MANY


@pytest.mark.parametrize("answer", [Pass(delay=60), Hang(accepted=True), Hang()], ids=["late", "lost", "not accepted"])
async def test_submits_under_way_when_it_goes_are_uncertain_and_not_sent_again(client, emulator, events, answer):
    async with emulator:
        emulator.script("submit", *[answer] * MANY)
        submits = [asyncio.ensure_future(outcome(client.submit(f"cat {number}"))) for number in range(MANY)]
        await until(lambda: emulator.calls["submit"] == MANY)
        accepted = emulator.accepted
    errors = await asyncio.gather(*submits)
    async with emulator:
        again = await client.submit("a dog")
    assert {(type(error), error.charged) for error in errors} == {(SubmissionUncertainError, "unknown")}
    assert emulator.accepted == accepted + 1
    assert isinstance(again, RequestHandle)
    assert emulator.calls["submit"] == MANY + 1
    assert [event.request_id for event in events.of(Submitted)] == [again.request_id]


async def test_restarts_in_the_middle_of_a_fan_out_lose_and_double_nothing(client, emulator, events):
    """Every item is a result or uncertain, and the service accepted no more than that."""
    await emulator.__aenter__()
    fan_out = asyncio.ensure_future(client.generate_all([f"cat {number}" for number in range(60)], concurrency=10))
    for done in (5, 20, 40):
        await until(lambda done=done: fan_out.done() or len(events.of(Submitted)) >= done)
        await emulator.__aexit__()
        await emulator.__aenter__()
    outcomes = await fan_out
    await emulator.__aexit__()
    errors = [found.error for found in outcomes if found.error is not None]
    results = {found.result.request_id for found in outcomes if found.result is not None}
    assert {type(error) for error in errors} <= {SubmissionUncertainError}
    assert len(results) == 60 - len(errors)
    assert len(results) <= emulator.accepted <= 60
