import random
import statistics

import pytest

from flux_klein_async.emulator.service import parse_profile


@pytest.mark.parametrize(("width", "height", "seconds"), [(512, 512, 0.19), (1024, 1024, 0.57)])
@pytest.mark.parametrize("name", ["klein", "queue"])
def test_the_median_is_the_published_time(name, width, height, seconds):
    profile, rng = parse_profile(name), random.Random(1)
    drawn = [profile.duration(rng, width, height) for _ in range(4000)]
    assert statistics.median(drawn) == pytest.approx(seconds, rel=0.02)
    assert 0.13 < statistics.stdev(drawn) / statistics.mean(drawn) < 0.17


@pytest.mark.parametrize(
    ("text", "workers"), [("klein", None), ("queue", 4), ("queue:9", 9), ("fixed:0.5", None), (" klein ", None)]
)
def test_a_profile_names_its_workers(text, workers):
    assert parse_profile(text).workers == workers


@pytest.mark.parametrize(("text", "seconds"), [("fixed:0.5", 0.5), ("fixed:0", 0.0), ("fixed:1e2", 100.0)])
def test_a_fixed_time_is_exact_whatever_the_size(text, seconds):
    profile, rng = parse_profile(text), random.Random(1)
    assert {profile.duration(rng, side, side) for side in (64, 1024, 2048)} == {seconds}


@pytest.mark.parametrize(
    "text",
    [
        *["", "slow", "Klein", "klein:2", "fixed", "fixed:", "fixed:x", "fixed:-1", "fixed:nan", "fixed:inf"],
        *["queue:", "queue:0", "queue:-1", "queue:2.5", "queue:²", "queue:9999999999"],
    ],
)
def test_an_unknown_form_is_refused_with_the_list_of_forms(text):
    with pytest.raises(ValueError, match="'klein', 'queue', 'queue:WORKERS' or 'fixed:SECONDS'") as caught:
        parse_profile(text)
    assert repr(text) in str(caught.value)
