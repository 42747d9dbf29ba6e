"""An input becomes one request; an accepted submit is never repeated, an uncertain one is never called a failure."""

import asyncio
import gc
import itertools
import json
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

import aiohttp
import pytest

from flux_klein_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Budget,
    BudgetExceededError,
    ClientClosedError,
    FixedPolling,
    FluxKleinClient,
    GenerationCancelledError,
    GenerationResult,
    InputRejectedError,
    InvalidResponseError,
    JournalError,
    Limits,
    NotFoundError,
    RateLimitError,
    RetryPolicy,
    ServerError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.api.messages import Kind
from flux_klein_async.emulator import (
    Generation,
    Hang,
    InProcessEmulator,
    Pass,
    Refuse,
    Reply,
    Reset,
    error_reply,
)
from flux_klein_async.errors import LOOK_FOR_IT, InvalidInputError
from flux_klein_async.events import Cancelled, Submitted, Uncertain
from flux_klein_async.journal.base import Entry
from flux_klein_async.journal.sqlite import SqliteJournal
from flux_klein_async.journal.states import EntryState
from flux_klein_async.models import (
    KLEIN_4B_TEXT_TO_IMAGE,
    KLEIN_9B_TEXT_TO_IMAGE,
    HostedFile,
    TextToImage9BInput,
    TextToImageInput,
)
from flux_klein_async.operations.operation import Operation
from flux_klein_async.operations.submit import PreparedRequest, _Submission, made_input, prepare
from flux_klein_async.transport.base import BodyGuard
from flux_klein_async.transport.throttle import InProcessLimiter
from tests.cells import cells
from tests.fakes import Events, now, outcome, settle, strays
from tests.loops import begin_tasks_eagerly
from tests.operations.helpers import Book, abandoned, block, give_up, sent

K4, K9, OTHER = KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE, "owner/other"


def prepared(given: Any, **settings: Any) -> PreparedRequest:
    return prepare(given, **{"model": None, "width": None, "height": None, "default_model": K4, **settings})


def squared(prompt: str, width: int = 1024, height: int = 1024, **more: int) -> dict[str, Any]:
    return {"prompt": prompt, "width": width, "height": height, **more}


LOGGED = [  # inputs and models; what is logged
    ([{"prompt": "a", "widht": 64}] * 2, K4, ["FLUX.2 [klein] 4B has no field 'widht' (did you mean 'width'?)"]),
    ([{"prompt": "a", "seed": 1, "steps": 2}], K9, ["FLUX.2 [klein] 9B has no field 'seed'"]),
    (
        [{"x" * 99: 1, "prompt": "a", "steps\n": 1}],
        K4,
        [f"FLUX.2 [klein] 4B has no field '{'x' * 40}'", "FLUX.2 [klein] 4B has no field 'steps\\n'"],
    ),
    ([TextToImage9BInput(prompt="a", steps=3)], K4, ["FLUX.2 [klein] 4B has no field 'steps'"]),
    ([{"prompt": "a", "widht": 64}], "emulator/any/text-to-video", []),
    (["a", TextToImageInput(prompt="a")], None, []),
]


@pytest.mark.parametrize(("inputs", "model", "logged"), LOGGED)
async def test_a_field_that_the_model_does_not_have_is_sent_and_logged_once(
    klein_emulator, connect, caplog, inputs, model, logged
):
    client = connect()
    for given in inputs:
        await client.submit(given, model=model)
    assert [record.getMessage() for record in caplog.records] == [f"{line}; it is sent as it is" for line in logged]
    body = json.loads(klein_emulator.asked("submit")[-1].body)
    assert isinstance(inputs[-1], str) or body == dict(inputs[-1])


EDIT = "blackforestlabs/flux-2/dev/edit"
LISTS_NO_SED = f"The catalogue lists for {EDIT} no field 'sed' (did you mean 'seed'?); it is sent as it is"


@pytest.mark.parametrize("budget", [None, 1])  # a budget reads the price in the entry
async def test_a_field_that_the_catalogue_does_not_list_is_logged_once(klein_emulator, connect, caplog, budget):
    client = connect(budget=Budget(budget) if budget else None)
    for _ in range(2):
        await client.submit({"prompt": "a", "image_urls": ["https://a.b/c.png"], "sed": 3}, model=EDIT)
        await asyncio.sleep(1)
        assert [record.getMessage() for record in caplog.records] == [LISTS_NO_SED]
    assert json.loads(klein_emulator.asked("submit")[-1].body)["sed"] == 3
    assert klein_emulator.calls["model"] == 1


async def test_a_submit_does_not_wait_for_the_catalogue_nor_need_it(klein_emulator, connect, caplog):
    klein_emulator.script("model", Hang())
    client, edit = connect(), {"prompt": "a", "image_urls": ["https://a.b/c.png"], "sed": 3}
    await client.submit(edit, model=EDIT)
    assert now() == 0.0
    await asyncio.sleep(11)
    await client.submit(edit, model=EDIT)
    assert (klein_emulator.calls["model"], caplog.records) == (1, [])
    assert await client.aclose() == ()


@pytest.mark.parametrize(
    ("given", "settings", "model", "body", "pixels"),
    [
        # a string
        ("a", {}, K4, squared("a"), 1024 * 1024),
        (" a\n", {}, K4, squared(" a\n"), 1024 * 1024),
        ("a", {"width": 512}, K4, squared("a", 512), 512 * 1024),
        ("a", {"width": 64, "height": 2048}, K4, squared("a", 64, 2048), 64 * 2048),
        ("a", {"model": K9}, K9, squared("a", steps=25), 1024 * 1024),
        ("a", {"default_model": K9, "height": 512}, K9, squared("a", height=512, steps=25), 1024 * 512),
        # a string for a model whose input is not known
        ("a", {"model": OTHER}, OTHER, {"prompt": "a"}, None),
        ("a", {"model": OTHER, "width": 512}, OTHER, {"prompt": "a", "width": 512}, None),
        ("a", {"default_model": OTHER, "width": 5, "height": 7}, OTHER, squared("a", 5, 7), 35),
        # typed inputs
        (TextToImageInput(prompt="a", width=512), {}, K4, squared("a", 512), 512 * 1024),
        (TextToImageInput(prompt="a", width=512), {"height": 64}, K4, squared("a", 512, 64), 512 * 64),
        (TextToImageInput(prompt="a"), {"default_model": OTHER}, OTHER, squared("a"), 1024 * 1024),
        (TextToImageInput(prompt="a"), {"model": K9}, K9, squared("a"), 1024 * 1024),
        # the 9B input goes to its own model, unless told otherwise
        (TextToImage9BInput(prompt="a", steps=8), {}, K9, squared("a", steps=8), 1024 * 1024),
        (TextToImage9BInput(prompt="a"), {"default_model": OTHER}, K9, squared("a", steps=25), 1024 * 1024),
        (TextToImage9BInput(prompt="a", steps=8), {"width": 64}, K9, squared("a", 64, steps=8), 64 * 1024),
        (TextToImage9BInput(prompt="a"), {"model": OTHER}, OTHER, squared("a", steps=25), 1024 * 1024),
        # a Mapping goes as it is
        ({}, {}, K4, {}, None),
        ({"prompt": ""}, {}, K4, {"prompt": ""}, None),
        ({"text": "a", "seed": 5}, {"model": OTHER}, OTHER, {"text": "a", "seed": 5}, None),
        (types.MappingProxyType({"width": 3, "height": 5}), {}, K4, {"width": 3, "height": 5}, 15),
        (
            {"image": HostedFile("https://files.example.com/a.png"), "prompt": "see https://localhost/b.png"},
            {},
            K4,
            {"image": "https://files.example.com/a.png", "prompt": "see https://localhost/b.png"},
            None,
        ),
    ],
    ids=str,
)
def test_an_input_becomes_one_request(
    given: Any, settings: dict[str, Any], model: str, body: dict[str, Any], pixels: int | None
) -> None:
    made = prepared(given, **settings)
    assert (made.model, json.loads(made.body.template), made.pixels) == (model, body, pixels)


class Index:
    """A whole number of another type, as numpy's are."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


def test_what_can_be_an_index_is_a_whole_number() -> None:
    side, steps = Index(64), Index(8)
    typed = prepared("a", width=side, height=side)
    assert (json.loads(typed.body.template), typed.pixels) == ({"prompt": "a", "width": 64, "height": 64}, 4096)
    assert TextToImage9BInput(prompt="a", steps=steps).steps == 8  # type: ignore[arg-type]
    assert json.loads(prepared({"prompt": "a", "n": [side]}).body.template) == {"prompt": "a", "n": [64]}


@pytest.mark.parametrize(
    ("given", "settings", "text"),
    [
        ("", {}, "prompt: the prompt is blank"),
        (" \n", {}, "prompt: the prompt is blank"),
        (" \n", {"model": OTHER}, "prompt: the prompt is blank"),
        ("a", {"width": 63}, "width: 63 is less than 64"),
        *(
            (
                {"a": Path("in.png")},
                {"model": model},
                f"a: {name} takes no file; a model that edits is blackforestlabs/flux-2/dev/edit",
            )
            for model, name in ((K4, "FLUX.2 [klein] 4B"), (K9, "FLUX.2 [klein] 9B"))
        ),
        ("a", {"height": 2049}, "height: 2049 is more than 2048"),
        (
            "a",
            {"width": 512.5, "height": "512"},
            "width: 512.5 is not a whole number; height: '512' is not a whole number",
        ),
        ("a", {"width": True}, "width: True is not a whole number"),
        ("a", {"width": float("nan")}, "width: nan is not a whole number"),
        (TextToImageInput(prompt="a"), {"width": 0}, "width: 0 is less than 64"),
        ({"prompt": "a"}, {"width": 512}, "A Mapping goes as it is: put width and height into it"),
        ({"prompt": "a"}, {"height": 512}, "A Mapping goes as it is: put width and height into it"),
        ({"prompt": b"a"}, {}, "prompt: bytes has no place in JSON; a local file is a pathlib.Path"),
        ({(1,): "a"}, {}, "The input cannot be written as JSON: keys must be str, int, float, bool or None, not tuple"),
        ({"a": {1}}, {}, "a: set has no place in JSON; write list(...)"),
        ("a", {"model": "../requests"}, "Not a model id such as 'owner/model/variant': '../requests'"),
        ("a", {"model": ""}, "Not a model id such as 'owner/model/variant': ''"),
        ("a", {"default_model": "/a"}, "Not a model id such as 'owner/model/variant': '/a'"),
        (None, {}, "An input is a string, a typed input or a Mapping, not NoneType"),
        (b"a", {}, "An input is a string, a typed input or a Mapping, not bytes"),
        (["a"], {}, "An input is a string, a typed input or a Mapping, not list"),
        (5, {"width": 64}, "An input is a string, a typed input or a Mapping, not int"),
        (
            HostedFile("https://files.example.com/a.png"),
            {},
            "An input is a string, a typed input or a Mapping, not HostedFile",
        ),
    ],
    ids=str,
)
def test_an_input_that_cannot_be_sent_says_why(given: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        prepared(given, **settings)
    assert str(caught.value) == text
    fields = caught.value.fields  # those at fault are named
    assert "; ".join(f"{name}: {message}" for name, message in fields.items()) == (text if fields else "")
    assert bool(fields) is text.startswith(("prompt:", "width:", "height:", "a:"))


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ("private \ud800", {}),
        ("private \ud800", {"model": OTHER}),
        ("private", {"model": OTHER, "width": float("nan")}),
        ("private", {"width": 10**400}),
        ({"prompt": "private", "seed": float("inf")}, {}),
    ],
    ids=ascii,
)
def test_a_refusal_does_not_repeat_the_input(given: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        prepared(given, **settings)
    assert "private" not in repr(caught.value)
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)


def test_a_caller_s_own_input_class_names_its_own_model() -> None:
    class Mine(TextToImage9BInput):
        default_model = "owner/mine"

    assert prepared(Mine(prompt="a")).model == "owner/mine"


def test_a_prepared_request_does_not_show_its_body() -> None:
    assert repr(prepared("a private wish")) == f"PreparedRequest(model='{K4}', pixels=1048576, asked=None, item=None)"


@pytest.mark.parametrize(
    ("to_input", "made"),
    [(None, {"prompt": "a"}), (lambda row: row["prompt"], "a"), (lambda row: TextToImageInput(**row), squared("a"))],
)
def test_an_item_becomes_an_input(to_input: Any, made: Any) -> None:
    given = made_input({"prompt": "a"}, to_input)
    assert (dict(given) if isinstance(given, TextToImageInput) else given) == made


@pytest.mark.parametrize(
    ("to_input", "text"),
    [
        (lambda row: row["text"], "to_input failed: KeyError: 'text'"),
        (lambda row: TextToImageInput(prompt=""), "prompt: the prompt is blank"),
        (lambda row: TextToImageInput(prompt="a", width=1), "width: 1 is less than 64"),
    ],
)
def test_what_goes_wrong_in_the_making_is_the_items_own_error(to_input: Any, text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        made_input({"prompt": "a"}, to_input)
    assert str(caught.value) == text
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("error", [JournalError("disk full"), asyncio.CancelledError(), KeyboardInterrupt()])
def test_an_error_of_the_package_and_a_cancellation_pass_unwrapped(error: BaseException) -> None:
    def to_input(item: str) -> str:
        raise error

    with pytest.raises(type(error)) as caught:
        made_input("a", to_input)
    assert caught.value is error


@pytest.mark.parametrize(
    ("width", "height", "pixels"),
    [
        (1, 1, 1),
        (3, 5, 15),
        *((*sides, None) for sides in [(0, 5), (5, 0), (-3, -5), (3.0, 5), (True, 5), ("3", 5), (3, None)]),
    ],
)
def test_pixels_are_known_where_both_sides_are_lengths(width: Any, height: Any, pixels: int | None) -> None:
    assert prepared({"width": width, "height": height}).pixels == pixels


HTML = Reply(200, "<html>welcome to the gateway</html>", {"Content-Type": "text/html"})

# What the one submit gets; how many submits the service then has accepted. All faults of the emulator: tests/faults.
UNCERTAIN = [
    pytest.param(Reset(), 0, id="reset before acceptance"),
    pytest.param(Hang(accepted=True), 1, id="no answer, accepted"),
    pytest.param(error_reply(503, retry_after="soon"), 0, id="503 with unreadable Retry-After"),
    pytest.param(Reply(503, {}, {"Retry-After-Ms": "2000"}), 0, id="503 with another header than Retry-After"),
    pytest.param(error_reply(504, accepted=True), 1, id="504 after acceptance"),
    pytest.param(error_reply(429, 500001), 0, id="429 with 500001"),
    pytest.param(error_reply(400, 408), 0, id="400 with 408"),
    pytest.param(Reply(200, {"error_code": 408001}), 0, id="200 with 408001"),
    pytest.param(Reply(200, {"request_id": "../x"}), 0, id="unusable id"),
]


@pytest.mark.parametrize(("answer", "accepted"), UNCERTAIN)
async def test_what_may_have_been_accepted_is_uncertain_and_sent_once(klein_emulator, connect, answer, accepted):
    events = Events()
    client = connect(timeout=20, on_event=events)
    klein_emulator.script("submit", answer)
    error = await outcome(client.generate("a cat"))
    assert type(error) is SubmissionUncertainError
    assert (error.charged, error.retryable) == ("unknown", False)
    assert (klein_emulator.calls["submit"], klein_emulator.accepted) == (1, accepted)
    await client.aclose()
    assert len(events.of(Uncertain)) == 1
    assert strays() == []


@pytest.mark.parametrize(
    ("answer", "raw", "cause"),
    [
        (Reply(502, "<html>bad gateway</html>"), "<html>bad gateway</html>", APIStatusError),
        (HTML, "<html>welcome to the gateway</html>", InvalidResponseError),
        (Reply(200, {"error_code": 500001}), '{"error_code":500001}', APIStatusError),
        (Reply(204, ""), None, InvalidResponseError),
        (Reset(), None, APIConnectionError),
    ],
)
async def test_an_uncertain_submit_tells_what_came_back_and_why(klein_emulator, connect, caplog, answer, raw, cause):
    events = Events()
    await asyncio.sleep(1.5)
    klein_emulator.script("submit", answer)
    error = await outcome(connect(on_event=events).generate("a cat", tag="mine"))
    assert (type(error), error.raw) == (SubmissionUncertainError, raw)
    assert isinstance(error.__cause__, cause)
    assert error.cause == str(error.__cause__)
    assert [(event.tag, event.error) for event in events.of(Uncertain)] == [("mine", str(error))]
    assert [record.getMessage() for record in caplog.records] == [f"{error} (tag mine)"]


@pytest.mark.parametrize(
    ("tag", "shown"),
    [
        (None, ""),
        (7, " (item 7)"),
        ("a\x1b\nb", r" (tag a\x1b\nb)"),
        ("x" * 400, f" (tag {'x' * 297}...)"),
        ({}, " (tag dict)"),
    ],
)
async def test_an_uncertain_submit_is_logged_once_with_its_tag(klein_emulator, connect, caplog, tag, shown):
    klein_emulator.script("submit", Reset())
    error = await outcome(connect().generate("a cat", tag=tag))
    assert [record.getMessage() for record in caplog.records] == [f"{error}{shown}"]
    assert caplog.text.count("may or may not") == 1


@pytest.mark.parametrize(
    ("to_id", "named"), [(None, "item 1)"), (lambda prompt: f"job\n{prompt}", "item job\\na dog)")]
)
async def test_an_uncertain_item_is_logged_with_its_id_or_else_its_index(
    klein_emulator, connect, caplog, tmp_path, to_id, named
):
    klein_emulator.script("submit", Pass(), Reset())
    async with SqliteJournal(tmp_path / "run.sqlite") as journal:
        client = connect(journal=journal)
        await client.generate_all(["a cat", "a dog"], concurrency=1, to_id=to_id)
        await client.aclose()
    assert [record.getMessage().rpartition(" (")[2] for record in caplog.records] == [named]


async def test_an_accepted_submit_is_told_with_its_id_and_its_duration(klein_emulator, connect):
    events = Events()
    client = connect(on_event=events)
    klein_emulator.script("submit", Pass(delay=2.0))
    await asyncio.sleep(1.5)
    result = await client.generate("a cat", tag="mine")
    facts = [(event.request_id, event.tag, event.seconds) for event in events.of(Submitted)]
    assert facts == [(result.request_id, "mine", 2.0)]


REPEATED = [
    pytest.param("connect", [Refuse(), Refuse()], 1, id="connection refused twice"),
    pytest.param("submit", [error_reply(429)] * 8, 9, id="429 without Retry-After, eight times"),
    pytest.param("submit", [error_reply(429, retry_after=2)], 2, id="429 with Retry-After"),
    pytest.param("submit", [error_reply(429, 429001, retry_after=2)], 2, id="429 with 429001"),
    pytest.param("submit", [error_reply(503, retry_after=2)], 2, id="503 with Retry-After"),
]


@pytest.mark.parametrize(("endpoint", "answers", "submits"), REPEATED)
async def test_what_was_not_accepted_is_repeated_until_it_is_accepted_once(
    klein_emulator, connect, endpoint, answers, submits
):
    client = connect(timeout=60)
    klein_emulator.script(endpoint, *answers)
    handle = await client.submit("a cat")
    assert handle.request_id in klein_emulator.completions
    assert (klein_emulator.calls["submit"], klein_emulator.accepted) == (submits, 1)
    if any(isinstance(answer, Reply) and answer.headers for answer in answers):
        assert now() == 2.0


@pytest.mark.parametrize("status", [200, 202, 400, 429, 500, 503])
async def test_an_answer_with_a_usable_id_is_accepted_whatever_else_it_says(klein_emulator, connect, status):
    client = connect()
    body = {"request_id": "known-1", "error_code": 500001 if status >= 400 else None}
    klein_emulator.script("submit", Reply(status, body, {"Retry-After": "1"}))
    assert (await client.submit("a cat")).request_id == "known-1"
    assert klein_emulator.calls["submit"] == 1


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_the_policy_bounds_refused_submits(klein_emulator, connect, limit):
    client = connect(retry=RetryPolicy(refused_submits=limit))
    klein_emulator.script("submit", *[error_reply(429)] * 100)
    error = await outcome(client.submit("a cat"))
    assert type(error) is RateLimitError
    assert (error.charged, klein_emulator.calls["submit"], klein_emulator.accepted) == ("no", limit, 0)


async def test_refused_submits_are_repeated_until_the_deadline(klein_emulator, connect):
    client = connect(timeout=30)
    klein_emulator.script("submit", *[error_reply(429)] * 100)
    error = await outcome(client.submit("a cat"))
    assert type(error) is RateLimitError
    assert klein_emulator.calls["submit"] > 5
    assert 25 < now() <= 30


async def test_a_service_that_cannot_be_reached_is_given_up_after_five_attempts(klein_emulator, connect):
    client = connect()
    klein_emulator.script("connect", *[Refuse()] * 9)
    error = await outcome(client.submit("a cat"))
    assert type(error) is APIConnectionError
    assert (error.charged, error.sent, error.retryable) == ("no", False, True)
    assert klein_emulator.calls["connect"] == 5
    assert 0.75 <= now() <= 1.5


@pytest.mark.parametrize(
    ("status", "kind", "held_as", "held_status"),
    [
        (429, RateLimitError, RateLimitError, 429),
        (503, ServerError, ServerError, 503),
        (500, SubmissionUncertainError, ServerError, 500),
        (408, SubmissionUncertainError, APIStatusError, 408),
        (404, NotFoundError, RateLimitError, 429),  # the model of one submit says nothing about another's
    ],
)
async def test_a_hold_that_outlasts_the_deadline_raises_at_once(
    klein_emulator, connect, status, kind, held_as, held_status
):
    client = connect(timeout=5)
    klein_emulator.script("submit", error_reply(status, retry_after=60))
    await asyncio.sleep(1.5)
    error = await outcome(client.generate("a cat"))
    assert (type(error), now()) == (kind, 1.5)
    await asyncio.sleep(0.5)
    later = await outcome(client.generate("a dog"))
    assert (type(later), later.status_code) == (held_as, held_status)
    assert (later.charged, later.retryable, later.request_id) == ("no", True, None)
    assert (later.retry_after, now(), klein_emulator.calls["submit"]) == (59.5, 2.0, 1)
    after = "" if held_as is RateLimitError and status != 429 else f", after its HTTP {status}"
    assert str(later) == f"The service wants no submit for 59.5 s{after}"


@pytest.mark.parametrize(("seconds", "kind", "status"), [(20.0, ServerError, 503), (40.0, RateLimitError, 429)])
async def test_a_longer_hold_that_another_process_was_told_of_is_a_rate_limit(
    klein_emulator, connect, seconds, kind, status
):
    limiter = InProcessLimiter(Limits())
    client = connect(timeout=5, limits=limiter)
    klein_emulator.script("submit", error_reply(503, retry_after=30))
    await outcome(client.generate("a cat"))
    limiter.hold(Kind.SUBMIT, seconds)  # as a shared limiter does
    error = await outcome(client.generate("a dog"))
    assert (type(error), error.status_code, error.retry_after) == (kind, status, max(30.0, seconds))


async def test_the_deadline_before_a_connection_ends_in_the_last_cause(klein_emulator, connect):
    client = connect(timeout=3)
    klein_emulator.script("connect", Refuse(), Hang())
    error = await outcome(client.generate("a cat"))
    assert type(error) is APIConnectionError
    assert (error.charged, error.retryable, now()) == ("no", True, 3.0)


async def test_the_deadline_without_any_cause_is_a_time_out_that_costs_nothing(klein_emulator, connect):
    client = connect(timeout=3)
    klein_emulator.script("connect", Hang())
    error = await outcome(client.submit("a cat"))
    assert isinstance(error, TimeoutError)
    assert (error.charged, error.retryable, now()) == ("no", True, 3.0)


# --- a ceiling on submits


@pytest.mark.parametrize(
    ("polling", "timeout", "wastes"),
    [(None, 5.0, False), (FixedPolling(0.1), 5.0, True), (None, 1.5, True)],
    ids=["it is known how long they take", "nothing is known", "too short a timeout is the caller's choice"],
)
async def test_a_call_that_lost_its_time_in_line_pays_for_nothing(connect, polling, timeout, wastes):
    """Two generations at once take 2 s, and three calls come in that time."""
    async with InProcessEmulator(profile="fixed:2") as emulator:
        options: Any = {"limits": Limits(max_in_flight=2), "timeout": timeout, "polling": polling}
        client = connect(emulator.api_key, base_url=emulator.base_url, session=emulator.session(), **options)
        await client.generate("first", timeout=None)
        calls = []
        for number in range(30):
            calls.append(asyncio.ensure_future(client.generate(f"picture {number}")))
            await asyncio.sleep(0.66)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        made = sum(isinstance(end, GenerationResult) for end in ends) + 1
        assert (emulator.accepted > made) is wastes
    refused = [end for end in ends if isinstance(end, APITimeoutError)]
    assert wastes or {(end.charged, end.retryable, "a generation takes up to" in str(end)) for end in refused} == {
        ("no", True, True)
    }


async def test_submits_keep_their_distance_and_the_time_of_an_item_stands_still(klein_emulator, connect):
    """Also repeats and what comes after a hold; polls have a ceiling of their own."""
    client = connect(timeout=3, limits=Limits(submits_per_second=0.5))
    klein_emulator.script("submit", None, error_reply(429, retry_after=1), error_reply(429))
    outcomes = await client.generate_all(["a cat"] * 6)
    assert [item.error for item in outcomes] == [None] * 6
    submits = sent(klein_emulator, "submit")
    assert len(submits) == 8
    assert min(later - earlier for earlier, later in itertools.pairwise(submits)) >= 2
    assert submits[-1] <= 18


async def test_submits_come_as_often_as_their_ceiling_allows(klein_emulator, connect):
    await connect(limits=Limits(submits_per_second=4)).generate_all(["a cat"] * 9)
    assert sent(klein_emulator, "submit") == [number / 4 for number in range(9)]


async def test_a_single_submit_whose_turn_comes_too_late_is_neither_sent_nor_recorded(klein_emulator, connect):
    book = Book()
    client = connect(timeout=3, journal=book, limits=Limits(submits_per_second=0.1))
    await client.submit("a cat")
    book.lines.clear()
    error = await outcome(client.submit("a dog"))
    assert (type(error), error.charged, error.retryable, now()) == (APITimeoutError, "no", True, 3.0)
    assert "before the submit's turn came (Limits.submits_per_second)" in str(error)
    assert (book.lines, klein_emulator.calls["submit"]) == ([], 1)


async def test_what_waits_for_its_turn_is_not_written_down_and_ends_at_once_when_it_is_stopped(klein_emulator, connect):
    """A process that is killed meanwhile leaves no submits that count as uncertain."""
    book = Book()
    client = connect(journal=book, budget=book, limits=Limits(submits_per_second=0.1))
    async with client.generate_many(["a cat"] * 30, concurrency=30) as outcomes:
        await asyncio.sleep(15)
        assert (book.lines.count("reserve"), book.lines.count("submitting")) == (30, 2)
        outcomes.stop()
        ends = [item async for item in outcomes]
    assert now() == 15
    assert Counter((type(item.error), item.error and item.error.charged) for item in ends) == {
        (NoneType, None): 2,
        (GenerationCancelledError, "no"): 28,
    }
    assert (book.lines.count("release"), klein_emulator.calls["submit"]) == (28, 2)


# --- giving up


@pytest.mark.parametrize("warm", [False, True])
async def test_no_time_at_all_pays_for_nothing(klein_emulator, connect, warm):
    client = connect()
    if warm:
        await client.get_model()
    for verb in (client.submit, client.generate):
        error = await outcome(verb("a cat", timeout=0))
        assert (type(error), error.charged) == (APITimeoutError, "no")
    assert klein_emulator.calls["submit"] == 0


async def test_a_connection_that_is_free_after_the_deadline_pays_for_nothing(klein_emulator, connect):
    """The loop was blocked past the deadline: nobody would wait for the answer."""
    client = connect(limits=Limits(max_connections=1))
    klein_emulator.script("model", Pass(delay=1.5))
    first = asyncio.ensure_future(client.get_model())
    await settle()
    asyncio.get_running_loop().call_at(1.0, block, 9.0)
    error = await outcome(client.submit("a cat", timeout=2.0))
    assert (type(error), error.charged, error.retryable, now()) == (APITimeoutError, "no", True, 9.0)
    await first
    assert (klein_emulator.calls["submit"], strays()) == (0, [])


async def test_a_submit_cancelled_before_its_body_is_never_sent(klein_emulator, connect):
    klein_emulator.script("connect", Pass(delay=1.0))
    await abandoned(connect(), at=0.5)
    await asyncio.sleep(10)
    assert (klein_emulator.calls["submit"], klein_emulator.accepted) == (0, 0)
    assert strays() == []


async def test_where_tasks_begin_eagerly_a_submit_that_a_trace_stops_is_never_sent(live_emulator):
    """On an open connection, the body would leave in the very step in which the POST begins."""

    async def stop(_: Any, __: Any, started: aiohttp.TraceRequestStartParams) -> None:
        if started.method == "POST":
            outcomes.stop()

    begin_tasks_eagerly()
    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(stop)
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        client = FluxKleinClient(live_emulator.api_key, base_url=live_emulator.base_url, session=session)
        await client.get_model()
        async with client.generate_many(["a cat"]) as outcomes:
            [item] = [item async for item in outcomes]
        await client.aclose()
    assert (type(item.error), item.error.charged) == (GenerationCancelledError, "no")
    assert live_emulator.calls["submit"] == 0


@pytest.mark.parametrize("steps", range(12))
async def test_a_submit_cancelled_at_any_step_is_either_never_sent_or_taken_back(klein_emulator, connect, steps):
    """However far the POST has come when the caller goes: what was accepted is cancelled."""
    client = connect()
    task = asyncio.ensure_future(client.generate("a cat"))
    for _ in range(steps):
        await asyncio.sleep(0)
    await give_up(task)
    await settle()
    assert await client.aclose() in {(), tuple(klein_emulator.completions)}
    assert klein_emulator.calls["cancel"] == klein_emulator.accepted
    assert strays() == []


@pytest.mark.parametrize(
    ("verb", "options", "cancels"),
    [("generate", {"on_abandon": "cancel"}, 1), ("generate", {"on_abandon": "leave"}, 0), ("submit", {}, 1)],
)
async def test_a_submit_cancelled_under_way_runs_on_and_is_then_treated_as_abandoned(
    klein_emulator, connect, verb, options, cancels
):
    events = Events()
    klein_emulator.script("submit", Pass(delay=2.0))
    await abandoned(connect(on_event=events), verb=verb, **options)
    assert now() == 1.0
    await asyncio.sleep(3)
    assert (klein_emulator.calls["submit"], klein_emulator.calls["cancel"]) == (1, cancels)
    assert (len(events.of(Submitted)), len(events.of(Cancelled))) == (1, cancels)
    assert strays() == []


async def test_an_abandoned_submit_is_seen_through_for_five_seconds_and_then_uncertain(klein_emulator, connect):
    events = Events()
    client = connect(on_event=events, limits=Limits(max_connections=1))
    klein_emulator.script("submit", Hang(accepted=True))
    await abandoned(client)
    await client.get_model()  # it keeps the only connection
    assert now() == 6.0
    late = f"The submit was not answered within 5 s; it may have been accepted, and charged; {LOOK_FOR_IT}"
    assert [(event.at, event.error) for event in events.of(Uncertain)] == [(6.0, late)]
    await settle()
    assert strays() == []


async def test_an_abandoned_submit_is_told_as_uncertain_even_when_all_tasks_are_cancelled(klein_emulator, connect):
    """As asyncio.run does at its end."""
    events = Events()
    client = connect(on_event=events)
    klein_emulator.script("submit", Hang(accepted=True))
    await outcome(client.generate("a cat", timeout=1))
    await settle()
    [task] = [task for task in asyncio.all_tasks() if "_see_through" in repr(task.get_coro())]
    task.cancel()
    [ended] = await asyncio.gather(task, return_exceptions=True)
    assert (isinstance(ended, asyncio.CancelledError), len(events.of(Uncertain)), now()) == (True, 1, 1.0)
    assert strays() == []


async def test_an_id_that_arrives_in_the_instant_of_the_cancellation_is_not_lost(klein_emulator, connect):
    events = Events()
    client = connect(on_event=events)
    klein_emulator.script("submit", Pass(delay=2.0))
    task = asyncio.ensure_future(client.generate("a cat"))
    asyncio.get_running_loop().call_at(2.0, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle()
    await client.aclose()
    assert (klein_emulator.calls["cancel"], len(events.of(Submitted))) == (1, 1)


async def test_a_post_that_fails_in_the_instant_of_being_dropped_is_told_in_one_line(klein_emulator, connect, caplog):
    core = connect()._context
    submission = _Submission(Operation(core, 1.0), prepared("a"), b"{}", "cancel")

    async def fail() -> str:
        raise APIConnectionError(sent=False)

    post = asyncio.ensure_future(fail())
    await asyncio.wait({post})
    submission._give_up(post, BodyGuard())
    del post
    await settle()
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == [
        "A background task failed: The connection to the service failed"
    ]


@pytest.mark.parametrize("answer", [Hang(accepted=True), Reply(200, {"request_id": "x"}, dribble=0.5)], ids=repr)
async def test_the_deadline_under_a_submit_is_uncertain_exactly_on_time(klein_emulator, connect, answer):
    klein_emulator.script("submit", answer)
    error = await outcome(connect(timeout=3.25).generate("a cat"))
    assert (type(error), error.charged, now()) == (SubmissionUncertainError, "unknown", 3.25)


# --- an id that another submit has


def mixed_up(request_id: str, **options: Any) -> Reply:
    """An answer to a submit, which was accepted, with the id of another one."""
    return Reply(200, {"request_id": request_id, "status": "in_queue"}, accepted=True, **options)


@pytest.mark.parametrize("verb", ["submit", "generate"])
async def test_an_id_that_this_client_knows_of_another_submit_is_no_id(klein_emulator, connect, verb):
    events, book = Events(), Book()
    client = connect(on_event=events, journal=book, budget=book)
    first = await client.submit("a cat")
    klein_emulator.script("submit", *[mixed_up(first.request_id)] * 4)
    book.lines.clear()
    for prompt in ("a dog", "a hen", "a cow", "a pig"):
        error = await outcome(getattr(client, verb)(prompt))
        assert (type(error), error.charged, error.retryable) == (SubmissionUncertainError, "unknown", False)
        assert error.request_id is None  # it is the cat's
        assert error.raw == f'{{"request_id":"{first.request_id}","status":"in_queue"}}'
        assert error.cause.endswith(f"The service gave the id of another submit: {first.request_id}")
    assert book.lines == ["reserve", "submitting", "uncertain"] * 4
    assert (len(events.of(Submitted)), len(events.of(Uncertain))) == (1, 4)
    assert (klein_emulator.calls["submit"], klein_emulator.accepted) == (5, 5)
    assert (await first.wait_for_result()).request_id == first.request_id


@pytest.mark.parametrize("verb", ["status", "handle"])
async def test_an_id_that_this_client_was_asked_about_is_no_id_of_a_later_submit(klein_emulator, connect, verb):
    first = await connect().submit("a cat")
    client = connect()
    asking = getattr(client, verb)(first.request_id)
    if verb == "status":
        await asking
    klein_emulator.script("submit", mixed_up(first.request_id))
    with pytest.raises(SubmissionUncertainError):
        await client.submit("a dog")


async def test_the_request_of_another_submit_is_not_cancelled_by_a_submit_that_is_given_up(klein_emulator, connect):
    events = Events()
    client = connect(on_event=events)
    first = await client.submit("a cat")
    klein_emulator.script("submit", mixed_up(first.request_id, delay=2.0))
    await abandoned(client)
    await client.aclose()
    assert (klein_emulator.calls["cancel"], len(events.of(Uncertain))) == (0, 1)


async def test_two_submits_that_are_given_one_id_at_once_share_no_request(klein_emulator, connect):
    klein_emulator.script("submit", *[mixed_up("one")] * 5)
    client = connect()
    found = await asyncio.gather(*[outcome(client.submit(prompt)) for prompt in "abcde"])
    assert [getattr(one, "request_id", None) for one in found] == ["one", None, None, None, None]
    assert {type(one) for one in found[1:]} == {SubmissionUncertainError}


class Knowing(Book):
    """A journal that knows an id of a submit of an earlier run, and one whose disk is full."""

    def __init__(self, error: JournalError) -> None:
        super().__init__()
        self.error = error

    async def record(self, entry: Any) -> None:
        await super().record(entry)
        if entry.state is EntryState.SUBMITTED:
            raise self.error


@pytest.mark.parametrize("gives_up", [False, True])
async def test_an_id_that_the_journal_knows_of_another_submit_is_no_id(klein_emulator, connect, gives_up):
    events, book = Events(), Knowing(JournalError("It belongs to another submit", charged="unknown"))
    klein_emulator.script("submit", mixed_up("known-1", delay=2.0))
    client = connect(on_event=events, journal=book)
    if gives_up:
        await abandoned(client)
    else:
        error = await outcome(client.generate("a cat"))
        assert (type(error), error.request_id, error.charged) == (SubmissionUncertainError, None, "unknown")
        assert (error.raw, error.cause) == (
            '{"request_id":"known-1","status":"in_queue"}',
            "It belongs to another submit",
        )
    await client.aclose()
    assert book.lines == ["submitting", "submitted", "uncertain"]
    assert (klein_emulator.calls["cancel"], len(events.of(Uncertain)), events.of(Submitted)) == (0, 1, [])


@pytest.mark.parametrize("facts", [{}, {"request_id": "known-1"}], ids=str)
async def test_a_journal_that_fails_for_another_reason_still_tells_the_id(klein_emulator, connect, facts):
    klein_emulator.script("submit", mixed_up("known-1"))
    error = await outcome(connect(journal=Knowing(JournalError("The disk is full", **facts))).generate("a cat"))
    assert (type(error), error.request_id, error.charged) == (JournalError, "known-1", "unknown")


# --- the ledger


LEDGER = [
    (None, ["reserve", "submitting", "accepted", "submitted", ("settle", 0.01), "completed"]),
    (error_reply(422), ["reserve", "submitting", "release", "refused"]),
    (error_reply(500), ["reserve", "submitting", "uncertain"]),
]


@pytest.mark.parametrize(("answer", "lines"), LEDGER)
async def test_the_intent_is_written_before_the_post_and_the_id_before_anyone_waits(
    klein_emulator, connect, answer, lines
):
    book = Book()
    client = connect(journal=book, budget=book)
    klein_emulator.script("submit", answer)
    await outcome(client.generate("a cat"))
    assert book.lines == lines


ENDS = [
    pytest.param(None, EntryState.SUBMITTED, None, id="accepted"),
    pytest.param(error_reply(422, 422001, message="no cats"), EntryState.REFUSED, "no cats", id="refused"),
    pytest.param(error_reply(500, message="no luck"), EntryState.UNCERTAIN, "no luck", id="uncertain"),
]


@pytest.mark.parametrize(("answer", "state", "error"), ENDS)
async def test_what_is_written_down_is_enough_to_know_a_submit_again(klein_emulator, connect, answer, state, error):
    book = Book()
    klein_emulator.script("submit", answer)
    client = connect(journal=book, budget=book)
    await outcome(client.submit("a cat", width=512))
    intent, end = book.entries
    [request_id] = klein_emulator.completions or [None]
    assert json.loads(intent.body or b"") == {"prompt": "a cat", "width": 512, "height": 1024}
    assert (intent.state, intent.model, intent.request_id) == (EntryState.SUBMITTING, K4, None)
    assert (end.state, end.key, end.model, end.request_id) == (state, intent.key, K4, request_id)
    assert error in end.error if error else end.error is None
    told = {
        EntryState.SUBMITTED: [(intent.key, request_id)],
        EntryState.REFUSED: [(intent.key,)],
        EntryState.UNCERTAIN: [],  # the money stays reserved
    }
    assert book.facts == [(intent.key, K4), *told[state]]
    await client.submit("a dog")
    assert book.entries[-1].key not in {None, intent.key}


@pytest.mark.parametrize(
    ("begins", "limits", "slow", "delay"),
    [
        pytest.param([0.0], Limits(), 0.0, 0.0, id="for its next attempt"),
        pytest.param([0.0, 0.5], Limits(max_connections=1), 0.0, 1.0, id="for a connection"),
        pytest.param([0.0, 1.5], Limits(), 1.0, 1.0, id="after a hold that came while it was written"),
    ],
)
async def test_no_intent_is_open_while_a_submit_waits(klein_emulator, connect, begins, limits, slow, delay):
    """What a killed process leaves open is uncertain, and a person must look for it."""
    book = Book(submitting=slow)
    client = connect(journal=book, limits=limits)
    klein_emulator.script("submit", replace(error_reply(429, retry_after=30), delay=delay))
    submits = []
    for begin in begins:
        await asyncio.sleep(begin - now())
        submits.append(asyncio.ensure_future(client.submit("a cat")))
    await asyncio.sleep(10)
    ended = Counter(entry.state for entry in book.entries)
    assert ended[EntryState.SUBMITTING] == ended[EntryState.REPEATED] >= 1
    await asyncio.gather(*submits)
    opened = [entry.key for entry in book.entries if entry.state is EntryState.SUBMITTING]
    closed = [entry.key for entry in book.entries if entry.state is not EntryState.SUBMITTING]
    assert sorted(opened) == sorted(closed) == sorted(set(opened))


async def test_a_turn_that_fails_for_now_is_waited_for_again_without_an_intent(klein_emulator, connect):
    class Moody(InProcessLimiter):
        moods = 1

        async def turn(self, kind: Kind, price: float = 1.0) -> None:
            if kind is Kind.SUBMIT and self.moods:
                self.moods -= 1
                raise APITimeoutError("no turn in time", sent=False)
            await super().turn(kind, price)

    book = Book()
    await connect(journal=book, limits=Moody(Limits())).submit("a cat")
    assert (book.lines, klein_emulator.accepted) == (["submitting", "submitted"], 1)


DEFECTS = [
    ("submitting", None, JournalError, "no"),
    ("refused", error_reply(422), JournalError, "no"),
    ("uncertain", error_reply(500), SubmissionUncertainError, "unknown"),  # the graver news
    ("submitted", None, JournalError, "unknown"),
    ("completed", None, JournalError, "unknown"),
    ("failed", Generation(ends="failed"), JournalError, "unknown"),
    ("cancelled", Generation(ends="cancelled"), JournalError, "unknown"),
]


@pytest.mark.parametrize(("state", "answer", "kind", "charged"), DEFECTS)
async def test_a_defect_of_the_journal_loses_neither_money_nor_id(
    klein_emulator, connect, caplog, state, answer, kind, charged
):
    book = Book(breaks=state)
    klein_emulator.script("submit", answer)
    error = await outcome(connect(journal=book, budget=book).generate("a cat"))
    assert (type(error), error.charged) == (kind, charged)
    assert [error.request_id] == ([*klein_emulator.completions] or [None])
    assert klein_emulator.calls["submit"] == (0 if state == "submitting" else 1)
    assert book.lines.count("release") == (1 if charged == "no" else 0)
    if kind is JournalError:
        assert error.cause == "OSError: the disk is full"
        assert isinstance(error.__cause__, OSError)
    else:
        assert "could not be written down" in caplog.text


@pytest.mark.parametrize("by", ["cancellation", "deadline", "aclose"])
@pytest.mark.parametrize(
    ("answer", "lines", "kind", "charged"),
    [
        (error_reply(422), ["release", "refused"], InputRejectedError, "no"),
        (error_reply(500), ["uncertain"], SubmissionUncertainError, "unknown"),
    ],
    ids=["refused", "uncertain"],
)
async def test_a_caller_that_leaves_while_the_end_is_written_does_not_leave_it_unwritten(
    klein_emulator, connect, by, answer, lines, kind, charged
):
    book = Book(refused=3, uncertain=3)
    client = connect(journal=book, budget=book, timeout=1.5)
    klein_emulator.script("submit", answer)
    call = asyncio.ensure_future(outcome(client.generate("a cat")))
    await asyncio.sleep(1)
    if by == "cancellation":
        await give_up(call)
    elif by == "deadline":
        error = await call
        assert (type(error), error.charged, now()) == (kind, charged, 1.5)
    await client.aclose()
    if by == "aclose":
        error = await call
        assert (type(error), error.charged) == (ClientClosedError, charged)
    assert book.lines == ["reserve", "submitting", *lines]
    assert len({entry.key for entry in book.entries}) == 1


class Steps(Book):
    """A journal that takes some turns of the loop, and no time, for an entry."""

    async def record(self, entry: Entry) -> None:
        for _ in range(4):
            await asyncio.sleep(0)
        await super().record(entry)


def _stop(client: FluxKleinClient) -> None:
    for operation in list(client._context.operations):
        operation.stop()


def _halt(client: FluxKleinClient) -> None:
    for operation in list(client._context.operations):
        operation.halt(BudgetExceededError("used up", charged="no"))


def _close(client: FluxKleinClient) -> None:
    for operation in list(client._context.operations):
        operation.close()


INTERRUPTS = (_stop, _halt, _close)
EFFECTS = {"reset": Reset(accepted=True), "500": error_reply(500, accepted=True), "accepted": Pass()}


@pytest.mark.parametrize(
    ("interrupt", "answer"), cells(INTERRUPTS, EFFECTS, fast=list(zip(INTERRUPTS, EFFECTS, strict=True)))
)
async def test_an_interrupt_at_any_step_of_a_submit_never_says_less_than_is_known(
    klein_emulator, connect, answer, interrupt
):
    """Also while the journal is told of its end."""
    ended_early = 0
    for steps in range(70):
        klein_emulator.reset()
        book = Steps()
        client = connect(journal=book)
        klein_emulator.script("submit", EFFECTS[answer])
        call = asyncio.ensure_future(outcome(client.submit("a cat")))
        for _ in range(steps):
            await asyncio.sleep(0)
        interrupt(client)
        error = await call
        ended_early += isinstance(error, GenerationCancelledError | BudgetExceededError | ClientClosedError)
        await client.aclose()
        if klein_emulator.accepted:
            assert getattr(error, "charged", "unknown") == "unknown", steps
            assert (book.lines or [""])[-1] in {"uncertain", "submitted", "cancelled"}, steps
    assert 0 < ended_early < 70


@pytest.mark.parametrize("book", [Book(breaks="submitted"), Book(submitted=7)], ids=["broken", "slow"])
async def test_an_abandoned_submit_that_was_accepted_but_not_written_down_is_still_cancelled(
    klein_emulator, connect, caplog, book
):
    client = connect(journal=book, budget=book)
    klein_emulator.script("submit", Pass(delay=0.5))
    await abandoned(client, at=0.25)
    await asyncio.sleep(10)
    assert klein_emulator.calls["cancel"] == 1
    assert not {"release", "refused", "uncertain"} & set(book.lines)
    logged = ["A background task failed: The journal failed: OSError: the disk is full"] if book.breaks else []
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == logged


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (error_reply(429, retry_after=5), ["repeated", "release", "refused"]),
        (Reply(422, {"message": "no cats"}, delay=2.0), ["release", "refused"]),
        (Reply(500, {}, delay=2.0), ["uncertain"]),
        (Reset(delay=2.0), ["uncertain"]),
    ],
    ids=["before its next attempt", "refused", "500", "reset"],
)
async def test_an_abandoned_submit_that_fails_is_told_and_written_as_what_it_is(klein_emulator, connect, answer, ends):
    events, book = Events(), Book()
    client = connect(on_event=events, journal=book, budget=book)
    klein_emulator.script("submit", answer)
    await abandoned(client, verb="submit")
    await asyncio.sleep(6)
    assert book.lines == ["reserve", "submitting", *ends]
    assert book.entries[-1].error is None or "No answer" not in book.entries[-1].error
    assert len(events.of(Uncertain)) == ends.count("uncertain")
    assert klein_emulator.calls["submit"] == 1


@pytest.mark.parametrize("by", ["deadline", "aclose"])
async def test_an_id_that_is_known_when_its_call_ends_is_in_the_error(klein_emulator, connect, by):
    """The answer is here and is being written down: the same call would pay again."""
    client = connect(journal=Book(submitted=3), timeout=2)
    call = asyncio.ensure_future(outcome(client.generate("a cat")))
    await asyncio.sleep(1)
    if by == "aclose":
        await client.aclose()
    error = await call
    assert type(error) is (WaitTimeoutError if by == "deadline" else ClientClosedError)
    assert error.request_id in klein_emulator.completions
    assert (error.charged, error.retryable) == ("unknown", False)


# --- slots and lanes


@pytest.mark.parametrize(
    ("endpoint", "answer", "first"),
    [
        pytest.param("submit", error_reply(429), "a dog", id="refused for now: the next may try"),
        pytest.param("connect", Refuse(), "a cat", id="not reached: it keeps its place"),
    ],
)
async def test_a_submit_refused_for_now_gives_its_slot_back_until_it_is_tried_again(
    klein_emulator, connect, endpoint, answer, first
):
    client = connect(limits=Limits(max_in_flight=1), polling=FixedPolling(0.5))
    klein_emulator.script(endpoint, answer)
    klein_emulator.script("submit", *[Generation(after=3.0)] * 2)
    ended: list[tuple[str, float]] = []

    async def generate(prompt: str) -> None:
        await client.generate(prompt)
        ended.append((prompt, now()))

    await asyncio.gather(generate("a cat"), generate("a dog"))
    assert ended[0][0] == first
    assert ended[1][1] - ended[0][1] >= 2.999  # never both at once


@pytest.mark.parametrize("verb", ["status", "cancel"])
async def test_what_is_urgent_does_not_wait_for_slow_submits(klein_emulator, connect, verb):
    client = connect(limits=Limits(max_connections=4))
    handle = await client.submit("a cat")
    klein_emulator.script("submit", *[Pass(delay=30.0)] * 9)
    submits = [asyncio.ensure_future(client.submit("a dog")) for _ in range(9)]
    await asyncio.sleep(1)
    await getattr(handle, verb)(timeout=5)
    assert now() == 1.0
    await asyncio.gather(*submits)


@pytest.mark.parametrize(
    "answer",
    [Pass(), error_reply(422), error_reply(500), Reset(), Hang()],
    ids=["accepted", "422", "500", "reset", "hang"],
)
async def test_a_connection_is_free_again_however_a_submit_ends(klein_emulator, connect, answer):
    client = connect(limits=Limits(max_connections=1), timeout=3)
    klein_emulator.script("submit", answer)
    await outcome(client.submit("a cat"))
    await asyncio.sleep(6)
    await client.get_model()
    assert now() < 9.1
