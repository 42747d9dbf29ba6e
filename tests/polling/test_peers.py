"""How others wait, look by look."""

from itertools import islice, pairwise

import pytest

from flux_klein_async.polling.peers import PEERS, GrowingPolling
from flux_klein_async.polling.rehearsal import looks

# docs/waiting.md, "How others wait", written down once more: the first five looks.
FIRST = {
    "vendor CLI": [0, 2, 4, 6, 8],
    "vendor plugin": [0, 5, 10, 15, 20],
    "vendor httpx client": [0, 3, 6, 9, 12],
    "fal-client": [0, 0.1, 0.2, 0.3, 0.4],
    "replicate": [0.5, 1, 1.5, 2, 2.5],
    "comfy-sdk": [0, 0.5, 1.25, 2.375, 4.0625],
    "runware-sdk": [1, 1.5, 2.25, 3.375, 5.0625],
}
LONGEST = {"comfy-sdk": 5, "runware-sdk": 10}


@pytest.mark.parametrize("name", FIRST)
def test_a_peer_looks_when_its_source_says(name):
    assert list(islice(looks(PEERS[name]()), 5)) == pytest.approx(FIRST[name])


@pytest.mark.parametrize("name", LONGEST)
def test_growing_intervals_end_at_the_longest(name):
    ages = list(islice(looks(PEERS[name]()), 100))
    assert {round(after - before, 9) for before, after in pairwise(ages[10:])} == {LONGEST[name]}


def test_random_intervals_are_drawn_below_what_doubles_up_to_two_seconds():
    policy = PEERS["random exponential"]()
    runs = [list(islice(looks(policy), 12)) for _ in range(300)]
    for number in range(12):
        gaps = [run[number] - (run[number - 1] if number else 0) for run in runs]
        most = min(0.1 * 2**number, 2)
        assert 0.9 * most < max(gaps) <= most
        assert sum(gaps) / len(gaps) == pytest.approx(most / 2, rel=0.15)


def test_each_policy_is_fresh_and_draws_the_same():
    first, second = (list(islice(looks(PEERS["random exponential"]()), 9)) for _ in range(2))
    assert first == second


def test_a_wait_without_end_overflows_nothing():
    ages = list(islice(looks(GrowingPolling(0.0, 1.0, 2.0, 9.0)), 2000))
    assert ages[-1] - ages[-2] == 9.0
