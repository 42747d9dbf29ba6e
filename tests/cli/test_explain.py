"""`flux-klein explain`, called as users call it."""

import sys
from pathlib import Path

import pytest

from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.rehearsal import rehearse

from .helpers import Command

MODEL, SQUARE = "blackforestlabs/flux-2-klein/4b/text-to-image", 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Forty generations of 2 s, learned."""
    policy = AdaptivePolling(store=tmp_path / "times.json")
    rehearse(policy, [1.9 + 0.005 * number for number in range(40)], model=MODEL, pixels=SQUARE)
    policy.save()
    return tmp_path / "times.json"


def test_without_anything_learned_it_explains_what_is_believed_before(flux_klein: Command) -> None:
    ran = flux_klein("explain")
    assert (ran.code, ran.err) == (0, "")
    assert "learned from  nothing yet" in ran.out
    assert "polling-model-api.runcomfy.net.json is not there" in ran.out
    [record] = flux_klein("explain", "--json").records
    assert record["quantiles"]["p50"] == pytest.approx(0.57, rel=0.05)
    assert (record["samples"], record["origin"], record["size"]) == (0, None, "1024 x 1024")


def test_it_explains_what_the_command_line_has_learned(
    flux_klein: Command, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    [named] = flux_klein("explain", "--store", str(store), "--json").records
    assert (named["samples"], named["origin"]) == (pytest.approx(40), str(store))
    assert named["quantiles"]["p50"] == pytest.approx(2.0, rel=0.02)
    monkeypatch.setenv("FLUX_KLEIN_STORE", str(store))
    assert flux_klein("explain", "--json").records == [named]
    monkeypatch.setenv("FLUX_KLEIN_STORE", "")
    assert "is not there" not in flux_klein("explain").out


def test_each_service_is_explained_by_its_own_file(
    flux_klein: Command, monkeypatch: pytest.MonkeyPatch, store: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "flux-klein").mkdir()
    store.rename(tmp_path / "flux-klein" / "polling-api.example.com.json")
    assert flux_klein("explain", "--base-url", "https://api.example.com", "--json").records[0]["samples"] > 39
    assert flux_klein("explain", "--json").records[0]["samples"] == 0


def test_a_file_that_knows_nothing_of_the_model_says_so(flux_klein: Command, store: Path) -> None:
    ran = flux_klein("explain", "--store", str(store), "--model", "a/b")
    assert f"({store} has nothing of this)" in ran.out
    assert "size          unknown" in ran.out


def test_a_damaged_file_is_a_warning_and_what_is_believed_before(flux_klein: Command, store: Path) -> None:
    store.write_text("{")
    ran = flux_klein("explain", "--store", str(store))
    assert ran.code == 0
    assert ran.err.startswith("Warning: The store of learned poll times")
    assert ran.err.count("\n") == 1
    assert "nothing yet" in ran.out


@pytest.mark.parametrize(
    ("profile", "arguments", "median", "p99"),
    [
        ("klein", [], 0.57, (0.7, 1.0)),
        ("klein", ["--width", "512", "--height", "512"], 0.19, (0.2, 0.35)),
        ("heavy", [], 0.57, (2.0, 9.0)),
        ("fixed:0.4", [], 0.4, (0.4, 0.42)),
        ("klein", ["--model", "a/b"], 0.57, (0.7, 1.0)),
    ],
)
def test_a_profile_teaches_its_times(
    flux_klein: Command, profile: str, arguments: list[str], median: float, p99: tuple[float, float]
) -> None:
    ran = flux_klein("explain", "--profile", profile, "--json", *arguments)
    assert ran == flux_klein("explain", "--profile", profile, "--json", *arguments), "by the same seed"
    [record] = ran.records
    assert record["samples"] == pytest.approx(200, abs=1)
    assert record["quantiles"]["p50"] == pytest.approx(median, rel=0.05)
    assert p99[0] < record["quantiles"]["p99"] < p99[1]
    assert record["origin"] == f"200 simulated generations of the profile {profile}"


def test_a_dearer_look_is_made_more_rarely(flux_klein: Command) -> None:
    costs = [
        flux_klein("explain", "--profile", "klein", "--look-cost", look_cost, "--json").records[0]["costs"]
        for look_cost in ("0.001", "0.1")
    ]
    cheap, dear = (cost["AdaptivePolling"] for cost in costs)
    assert cheap["looks"] > 2 * dear["looks"]
    assert cheap["excess"] < dear["excess"] / 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--store", "a.json", "--profile", "klein"], 64, "give one"),
        (["--profile", "nonsense"], 64, "no latency profile"),
        (["--profile", "queue"], 64, "no queue"),
        (["--look-cost", "0"], 64, "above 0"),
        (["--look-cost", "nan"], 64, "above 0"),
        (["--look-cost", "1e-9"], 64, "above 0"),
        (["--width", "10"], 65, "width"),
        (["--model", "../.."], 65, "model id"),
        (["--base-url", "http://example.com"], 77, "Plain http"),
        (["--plot", "none/such/picture.png"], 1, "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_told(flux_klein: Command, arguments: list[str], code: int, words: str) -> None:
    ran = flux_klein("explain", *arguments)
    assert ran.code == code
    assert words in ran.err


def test_queued_waits_are_counted_from_the_end_of_the_queue(flux_klein: Command, store: Path) -> None:
    ran = flux_klein("explain", "--store", str(store), "--queued")
    assert "clock         from the end of the queue on" in ran.out
    assert "(40 more without --queued)" in ran.out


def test_a_picture_is_drawn_too(flux_klein: Command) -> None:
    ran = flux_klein("explain", "--plot", "picture.png")
    assert (ran.code, ran.err) == (0, "Drawn: picture.png\n")
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_sentence_and_no_picture(
    flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = flux_klein("explain", "--plot", "picture.png")
    assert (ran.code, ran.out) == (1, "")
    assert "pip install 'flux_klein_async[plots]'" in ran.err
    assert not Path("picture.png").exists()
    assert flux_klein("explain").code == 0
