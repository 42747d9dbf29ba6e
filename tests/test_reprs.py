"""What logs, debuggers and notebooks show: one short line, no token, little of the prompt."""

import traceback
from datetime import UTC, datetime
from typing import Any

import pytest

from flux_klein_async import (
    AdaptivePolling,
    Budget,
    CancelOutcome,
    Entry,
    EntryState,
    ExponentialPolling,
    FileBytes,
    FixedPolling,
    FluxKleinClient,
    FluxKleinError,
    GenerationOutput,
    GenerationResult,
    HostedFile,
    InputRejectedError,
    ModelInfo,
    NotFoundError,
    Outcome,
    RequestState,
    RequestStatus,
    SqliteJournal,
    TextToImage9BInput,
    TextToImageInput,
    Timings,
)
from flux_klein_async.journal.base import NoBudget
from flux_klein_async.models import brief_repr, shortened

TOKEN = "secret-token-0123456789"
PROMPT = "a snow leopard at dawn, " * 20
CLIENT = FluxKleinClient(TOKEN, base_url="http://127.0.0.1:9")
RESULT = GenerationResult(
    request_id="r-1",
    state=RequestState.COMPLETED,
    output=GenerationOutput(image="https://files.runcomfy.net/a.png"),
    finished_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    cost_usd=0.01,
    timings=Timings(queued=0.5000000004, polls=3),
    raw={"prompt": PROMPT},
)
SHOWN_RESULT = (
    "GenerationResult(request_id='r-1', state=completed, output=GenerationOutput("
    "image='https://files.runcomfy.net/a.png'), finished_at=2026-01-02T03:04:05+00:00, cost_usd=0.01, "
    "timings=Timings(queued=0.5, polls=3))"
)
CUT = "'a snow leopard at dawn, a snow leopar...'"
GONE = NotFoundError("No such request", request_id="r-1")
TABLE: list[tuple[Any, str]] = [
    (CLIENT, "<FluxKleinClient http://127.0.0.1:9 open>"),
    (CLIENT.handle("r-1"), "RequestHandle('r-1')"),
    (FileBytes(b"GIF89a" * 1000), "<FileBytes image/gif, 6,000 bytes>"),
    (CLIENT.updates("r-1"), "<Updates of r-1>"),
    (CLIENT.list_models(search=PROMPT), f"ModelList(search={CUT}, offset=0)"),
    (CLIENT.generate_many([PROMPT]), "<FanOut not entered, 0 of 64 items under way>"),
    (RESULT, SHOWN_RESULT),
    (Outcome(index=7, item=PROMPT, result=RESULT), f"Outcome(index=7, item={CUT}, result={SHOWN_RESULT})"),
    (Outcome(index=7, item={"prompt": "x" * 99}), f"Outcome(index=7, item={{'prompt': '{'x' * 99}'}})"),
    (
        Outcome(index=7, item=PROMPT, error=GONE),
        f"Outcome(index=7, item={CUT}, error=NotFoundError('No such request (request r-1)'))",
    ),
    (InputRejectedError(PROMPT), f"InputRejectedError({PROMPT[:197] + '...'!r})"),
    (TextToImageInput(prompt=PROMPT), f"TextToImageInput(prompt={CUT}, width=1024, height=1024)"),
    (TextToImage9BInput(prompt=PROMPT, steps=8), f"TextToImage9BInput(prompt={CUT}, width=1024, height=1024, steps=8)"),
    (HostedFile("https://files.example.com/a.png"), "HostedFile(url='https://files.example.com/a.png')"),
    (RequestStatus(request_id="r-1", state=RequestState.IN_QUEUE), "RequestStatus(request_id='r-1', state=in_queue)"),
    (CancelOutcome(request_id="r-1", cancelled=True), "CancelOutcome(request_id='r-1', cancelled=True, state=unknown)"),
    (ModelInfo(model_id="a/b", base_price_usd=0.01), "ModelInfo(model_id='a/b', base_price_usd=0.01)"),
    (Entry(state=EntryState.SUBMITTING, key="k", body=PROMPT.encode()), "Entry(state=submitting, key='k')"),
    (FixedPolling(0.5), "FixedPolling(interval=0.5, first=None)"),
    (ExponentialPolling(), "ExponentialPolling(initial=0.1, multiplier=1.25, maximum=5.0, jitter=0.1)"),
    (AdaptivePolling(), "AdaptivePolling(poll_cost=0.01, minimum=0.02, maximum=5.0, models=0)"),
    (NoBudget(), "NoBudget()"),
]


@pytest.mark.parametrize(("value", "text"), TABLE, ids=[type(value).__name__ for value, _ in TABLE])
def test_a_repr_is_short_and_keeps_secrets(value, text):
    assert repr(value) == text
    assert len(text) <= 300
    assert TOKEN not in text
    assert "\n" not in text


def test_an_address_is_kept_whole_unless_it_is_very_long():
    address = "https://files.runcomfy.net/" + "a" * 80
    assert (shortened(address), len(shortened(address + "?signature=" + "b" * 500))) == (address, 120)
    assert len(shortened("https://is.not/ an address" + "x" * 100)) == 40


def test_other_values_are_cut():
    assert repr(shortened([1, 2])) == "[1, 2]"
    assert len(repr(shortened(list(range(1000))))) == 120
    assert brief_repr(RESULT, {"a": None, "b": (), "c": 0}) == "GenerationResult(c=0)"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FluxKleinClient("to ken"), "<FluxKleinClient not made>"),
        (lambda: FluxKleinClient(TOKEN, base_url="nowhere"), "<FluxKleinClient not made>"),
        (lambda: CLIENT.handle("../x"), "<RequestHandle not made>"),
        (lambda: CLIENT.generate_many("abc"), "<FanOut not entered, 0 of 64 items under way>"),
        (lambda: Budget(-1), "Budget(max_usd=0, committed_usd=0)"),
        (lambda: AdaptivePolling(minimum=-1), "AdaptivePolling(poll_cost=0.01, minimum=-1, maximum=5.0, models=0)"),
        (lambda: SqliteJournal(5), "SqliteJournal('')"),  # type: ignore[arg-type]
    ],
)
def test_an_object_whose_constructor_raised_has_a_repr(make, text):
    """Debuggers and crash reporters show the half-made object in the constructor's frame."""
    with pytest.raises((FluxKleinError, TypeError)) as caught:
        make()
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    objects = [names["self"] for names in frames if "self" in names]
    assert text in [repr(value) for value in objects if type(value).__module__.startswith("flux_klein_async")]
