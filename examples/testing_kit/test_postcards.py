"""Its tests: no token, no money, no socket, no waiting, and every bad day in a line."""

import asyncio

from postcards import postcards

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import Generation, InProcessEmulator, fault

TOWNS = ["Bergen", "Siena", "Kyoto"]


async def test_every_town_is_painted_once(klein_client: FluxKleinClient, klein_emulator: InProcessEmulator) -> None:
    """What was asked, and what it would have cost."""
    cards = await postcards(klein_client, TOWNS)
    assert [card.town for card in cards if card.url] == TOWNS
    assert sorted(map(str, klein_emulator.prompts)) == sorted(f"a postcard from {town}" for town in TOWNS)
    assert round(klein_emulator.spent_usd, 6) == 0.03


async def test_one_that_fails_spoils_no_other(klein_client: FluxKleinClient, klein_emulator: InProcessEmulator) -> None:
    """This prompt fails, whenever it comes."""
    klein_emulator.fail_prompt("a postcard from Siena")
    cards = await postcards(klein_client, TOWNS)
    assert [card.town for card in cards if card.url] == ["Bergen", "Kyoto"]
    assert cards[1].sorry == "The painter could not do it."


async def test_a_lost_reply_is_not_paid_twice(klein_client: FluxKleinClient, klein_emulator: InProcessEmulator) -> None:
    """The submit is accepted and its reply is lost."""
    klein_emulator.lose_submit()
    [card] = await postcards(klein_client, ["Bergen"])
    assert card.sorry == "We may have paid for it already, and do not paint it twice."
    assert klein_emulator.accepted == 1


async def test_a_bad_poll_goes_unnoticed(klein_client: FluxKleinClient, klein_emulator: InProcessEmulator) -> None:
    """The second poll finds a 503."""
    klein_emulator.script("submit", Generation(after=10.0))
    klein_emulator.script_nth(2, "status", fault("503"))
    [card] = await postcards(klein_client, ["Bergen"])
    assert card.url is not None
    assert [record.status for record in klein_emulator.asked("status")][:3] == [200, 503, 200]


async def test_a_visitor_who_leaves_costs_nothing(
    klein_client: FluxKleinClient, klein_emulator: InProcessEmulator
) -> None:
    """A minute passes in no time."""
    klein_emulator.script("submit", fault("503+after"))
    visit = asyncio.ensure_future(postcards(klein_client, ["Bergen"]))
    await asyncio.sleep(1)
    visit.cancel()
    await asyncio.sleep(60)
    assert (klein_emulator.accepted, klein_emulator.spent_usd) == (0, 0.0)
