"""The tests of the application: no token, no money, no socket, no waiting, and each fault in one line."""

import asyncio

from postcards import postcards

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import Generation, InProcessEmulator, fault

TOWNS = ["Bergen", "Siena", "Kyoto"]


async def test_each_town_gets_one_picture(klein_client: FluxKleinClient, klein_emulator: InProcessEmulator) -> None:
    """The emulator knows what was submitted, and what it would have cost."""
    cards = await postcards(klein_client, TOWNS)
    assert [card.town for card in cards if card.url] == TOWNS
    assert sorted(map(str, klein_emulator.prompts)) == sorted(f"a postcard from {town}" for town in TOWNS)
    assert round(klein_emulator.spent_usd, 6) == 0.03


async def test_a_failure_does_not_affect_the_others(
    klein_client: FluxKleinClient, klein_emulator: InProcessEmulator
) -> None:
    """Every generation of this prompt fails."""
    klein_emulator.fail_prompt("a postcard from Siena")
    cards = await postcards(klein_client, TOWNS)
    assert [card.town for card in cards if card.url] == ["Bergen", "Kyoto"]
    assert cards[1].apology == "The picture could not be generated."


async def test_a_lost_reply_is_not_paid_twice(klein_client: FluxKleinClient, klein_emulator: InProcessEmulator) -> None:
    """The submit is accepted and its reply is lost."""
    klein_emulator.lose_submit()
    [card] = await postcards(klein_client, ["Bergen"])
    assert card.apology == "This may have been charged already, so we do not try again."
    assert klein_emulator.accepted == 1


async def test_a_failed_poll_does_no_harm(klein_client: FluxKleinClient, klein_emulator: InProcessEmulator) -> None:
    """The second poll gets a 503."""
    klein_emulator.script("submit", Generation(after=10.0))
    klein_emulator.script_nth(2, "status", fault("503"))
    [card] = await postcards(klein_client, ["Bergen"])
    assert card.url is not None
    assert [record.status for record in klein_emulator.asked("status")][:3] == [200, 503, 200]


async def test_a_cancelled_call_costs_nothing(klein_client: FluxKleinClient, klein_emulator: InProcessEmulator) -> None:
    """A minute of virtual time passes at once."""
    klein_emulator.script("submit", fault("503+after"))
    call = asyncio.ensure_future(postcards(klein_client, ["Bergen"]))
    await asyncio.sleep(1)
    call.cancel()
    await asyncio.sleep(60)
    assert (klein_emulator.accepted, klein_emulator.spent_usd) == (0, 0.0)
