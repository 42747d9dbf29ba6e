"""Every fault at every endpoint of every verb ends as the table says."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import FAULTS, InProcessEmulator, fault
from tests.cells import cells
from tests.emulator.helpers import run
from tests.faults.books import Books, OnDisk
from tests.faults.render import render
from tests.faults.table import STRAY, TABLE
from tests.faults.verbs import ABANDONED, PLACES, abandon, observe

# By endpoint, the faults of which the table says what is not so yet.
NOT_YET = {
    "model": {name for name in STRAY if name.endswith("+head")},  # head and body leave in one write
}
DOCS = Path(__file__).parents[2] / "docs" / "faults.md"
SO = {
    (verb, endpoint): [
        (kept, *ends)
        for faults, *ends in rows
        if (kept := tuple(name for name in faults if name not in NOT_YET.get(endpoint, ())))
    ]
    for (verb, endpoint), rows in TABLE.items()
}
ROWS = [
    pytest.param(verb, endpoint, row, id=f"{verb}-{endpoint}-{row[0][0]}")
    for (verb, endpoint), rows in SO.items()
    for row in rows
]
# At every place the two rows in the middle: a refusal and a failure.
MIDDLE = [
    pytest.param(verb, endpoint, row, id=f"{verb}-{endpoint}-{row[0][-1]}")
    for (verb, endpoint), rows in SO.items()
    for row in rows[len(rows) // 2 - 1 : len(rows) // 2 + 1]
]
AT_CANCEL = [name for name, entry in FAULTS.items() if ABANDONED in entry.endpoints]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Books]:
    with closing(Books(tmp_path_factory.mktemp("books") / "run.sqlite")) as books:
        yield books


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row.id for row in ROWS])
def test_one_fault_of_each_row_ends_as_the_table_says(number, books):
    """From row to row another fault of its list, once and always in turn."""
    verb, endpoint, (faults, *ends) = ROWS[number].values
    always = number % 2
    assert observe(verb, endpoint, faults[number % len(faults)], books, always=bool(always)) == ends[always]


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "endpoint", "row"), ROWS)
def test_a_fault_ends_as_the_table_says(verb, endpoint, row, books):
    faults, once, always = row
    expected = dict.fromkeys(faults, (once, always))
    observed = {
        name: (observe(verb, endpoint, name, books, always=False), observe(verb, endpoint, name, books, always=True))
        for name in faults
    }
    assert observed == expected


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "endpoint", "row"), MIDDLE)
def test_the_journal_on_the_disk_says_the_same(verb, endpoint, row, tmp_path):
    """The other tests use its rules on a file that is never synced and stays open."""
    faults, _, always = row
    assert observe(verb, endpoint, faults[-1], OnDisk(tmp_path / "run.sqlite"), always=True) == always


def test_the_table_has_each_fault_once_at_each_place_that_a_verb_reaches():
    assert list(TABLE) == PLACES
    for (_, endpoint), rows in TABLE.items():
        listed = sorted(name for faults, _, _ in rows for name in faults)
        assert listed == sorted(name for name, entry in FAULTS.items() if endpoint in entry.endpoints)


@pytest.mark.parametrize("name", cells(AT_CANCEL, fast=[(name,) for name in AT_CANCEL[::5]]))
def test_a_cancel_that_goes_wrong_holds_up_nobody(name, books):
    run(abandon(name, books))


def test_an_id_that_another_submit_was_given_is_no_id():
    async def main():
        async with InProcessEmulator(profile="fixed:0.5") as emulator:
            emulator.fault("submit", fault("same-id"), probability=1)
            session = emulator.session()
            async with FluxKleinClient(emulator.api_key, base_url=emulator.base_url, session=session) as client:
                outcomes = await client.generate_all(["a cat", "a dog", "a fox"])
            assert emulator.accepted == 3
            return Counter(type(outcome.error).__name__ for outcome in outcomes)

    assert run(main()) == {"NoneType": 1, "SubmissionUncertainError": 2}


@pytest.mark.parametrize("name", ["signed-file", "signed-redirect"])
def test_a_signed_address_is_asked_for_byte_by_byte(name):
    async def main():
        async with InProcessEmulator(profile="fixed:0.5") as emulator:
            emulator.script("submit", fault(name))
            session = emulator.session()
            async with FluxKleinClient(emulator.api_key, base_url=emulator.base_url, session=session) as client:
                [picture] = await client.download_bytes(await client.generate("a cat", width=64, height=64))
                return picture[:4]

    assert run(main()) == b"\x89PNG"


@pytest.mark.parametrize("stray", ["stray-429", "stray-422", "stray-401", "stray-200", "stray-again"])
def test_an_answer_that_nobody_asked_for_is_no_answer_of_the_next_submit(stray):
    async def main():
        async with InProcessEmulator(profile="fixed:0.5") as emulator:
            emulator.fault("submit", fault(stray), probability=1)
            session = emulator.session()
            async with FluxKleinClient(emulator.api_key, base_url=emulator.base_url, session=session) as client:
                ids = []
                for prompt in ("a cat", "a dog", "a fox"):
                    ids.append((await client.submit(prompt)).request_id)
                    await asyncio.sleep(1)
            return ids == [record.request_id for record in emulator.asked("submit")]

    assert run(main())


def test_the_page_shows_the_table():
    assert DOCS.read_text(encoding="utf-8") == render(), "python -m tests.faults.render > docs/faults.md"
