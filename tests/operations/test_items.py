"""Items of a fan-out: what a journal knows of one decides whether it is submitted, resumed, recalled or left alone."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from flux_klein_async import Budget, FixedPolling, Limits, SqliteJournal
from flux_klein_async.emulator import (
    Generation,
    Hang,
    InProcessEmulator,
    Pass,
    Reply,
    Reset,
    Rewrite,
    error_reply,
    fault,
)
from flux_klein_async.emulator.endpoints import UNKNOWN
from flux_klein_async.errors import (
    AuthenticationError,
    BudgetExceededError,
    ConfigurationError,
    DownloadError,
    FanOutHaltedError,
    GenerationCancelledError,
    GenerationFailedError,
    InputRejectedError,
    InvalidInputError,
    ItemClaimedError,
    JournalError,
    NotFoundError,
    RateLimitError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.events import Downloaded, Event, Failed, Finished, Held, Polled, Retrying, Submitted, Uncertain
from flux_klein_async.journal.base import Claim, Entry
from flux_klein_async.journal.states import Action, EntryState
from flux_klein_async.operations import items
from flux_klein_async.operations.items import EMULATED, _Row
from tests.fakes import now, settle, strays
from tests.operations.helpers import EVERY_SECOND, Book


class Shelf:
    """A journal that says of every item what the test wants, and remembers what it was told."""

    def __init__(self, *claims: Claim) -> None:
        self.claims = list(claims)
        self.asked: list[tuple[str, bytes, str | None]] = []
        self.released: list[str] = []
        self.entries: list[Entry] = []

    def items(self) -> "Shelf":
        return self

    async def record(self, entry: Entry) -> None:
        self.entries.append(entry)

    async def claim(self, model: str, body: bytes, item_id: str | None) -> Claim:
        self.asked.append((model, body, item_id))
        return self.claims.pop(0) if self.claims else Claim(item=f"item-{len(self.asked)}", action=Action.SUBMIT)

    def release(self, claim: Claim) -> None:
        self.released.append(claim.item)

    def states(self) -> list[EntryState]:
        return [entry.state for entry in self.entries]


def claim(action: Action, request_id: str | None = None, **facts: Any) -> Claim:
    return Claim(item="i", action=action, request_id=request_id, **facts)


async def only(client: Any, shelf: Shelf, **options: Any) -> Any:
    """The outcome of one item."""
    [outcome] = await client.generate_all(["a cat"], **options)
    assert shelf.released == ["i"] or not shelf.asked
    return outcome


async def test_an_item_that_is_new_is_submitted_under_its_name(klein_emulator, connect):
    shelf = Shelf()
    ids = {"a cat": "cat", "a dog": 7}  # the key of a database's row is a number
    outcomes = await connect(journal=shelf).generate_all(["a cat", "a dog"], to_id=ids.get)
    assert [outcome.from_journal for outcome in outcomes] == [False, False]
    assert [item_id for _, _, item_id in shelf.asked] == ["cat", "7"]
    assert [json.loads(body)["prompt"] for _, body, _ in shelf.asked] == ["a cat", "a dog"]
    intents = [entry for entry in shelf.entries if entry.state is EntryState.SUBMITTING]
    assert {entry.item for entry in intents} == {"item-1", "item-2"}
    assert sorted(shelf.released) == ["item-1", "item-2"]
    assert klein_emulator.accepted == 2


SPELT = [
    {"prompt": "a cat", "width": 64, "height": 128},
    {"height": 128, "width": 64, "prompt": "a cat"},
    {"height": 128.0, "prompt": "a cat", "width": 64},
]


async def test_no_item_is_given_the_request_of_another(klein_emulator, connect, tmp_path):
    """A faulty service gives one id to five prompts: five would be "done" with one file."""
    async with SqliteJournal(tmp_path / "journal.sqlite") as journal:
        client = connect(journal=journal)
        first = await client.submit("a cat")
        klein_emulator.script("submit", *[Reply(200, {"request_id": first.request_id}, accepted=True)] * 4)
        found = await client.generate_all(list("abcd"), directory=tmp_path / "out")
        await client.aclose()
    assert ends(found) == {"SubmissionUncertainError": 4}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("action", [Action.RESUME, Action.RECALL, Action.FAILED])
async def test_a_request_of_an_earlier_run_is_not_given_to_another_item(klein_emulator, connect, action):
    handle = await connect().submit("a cat")
    result = await handle.wait_for_result()
    shelf = Shelf(claim(action, handle.request_id, answer=json.dumps(result.raw).encode()))
    klein_emulator.script("submit", Reply(200, {"request_id": handle.request_id}, accepted=True))
    cat, dog = await connect(journal=shelf).generate_all(["a cat", "a dog"], concurrency=1)
    assert (cat.from_journal, dog.from_journal) == (True, False)
    assert (cat.result or cat.error).request_id == handle.request_id
    assert (type(dog.error), dog.error.request_id) == (SubmissionUncertainError, None)


async def test_a_job_that_a_queue_delivers_again_is_paid_for_once(klein_emulator, connect, tmp_path):
    """While it is under way, and after it has ended however it did."""
    klein_emulator.script_prompt("a dog", error_reply(422))
    klein_emulator.script_prompt("a bird", Generation(ends="failed"))
    deliveries = [(0, "a cat"), (0, "a dog"), (0, "a bird"), (0.1, "a cat"), (9, "a cat"), (9, "a dog"), (9, "a bird")]

    async def jobs() -> AsyncIterator[str]:
        for at, prompt in deliveries:
            await asyncio.sleep(at - now())
            yield prompt

    async with SqliteJournal(tmp_path / "journal.sqlite") as journal:
        client = connect(journal=journal)
        outcomes = await client.generate_all(jobs(), to_id=str)
        await client.aclose()
    errors = ["NoneType", "InputRejectedError", "GenerationFailedError"]
    assert [type(outcome.error).__name__ for outcome in outcomes] == [*errors, "ItemClaimedError", *errors]
    # The dog's refusal is no outcome that a journal keeps: it was submitted again.
    assert [outcome.from_journal for outcome in outcomes] == [False] * 4 + [True, False, True]
    assert klein_emulator.calls["submit"] == 4  # nothing was paid for the dog, so it is tried again
    assert klein_emulator.accepted == 2


@pytest.mark.parametrize("to_id", [None, lambda _: "the cat"], ids=["by content", "by id"])
async def test_an_item_in_another_spelling_is_recognised_and_sent_as_it_is_given(
    klein_emulator, connect, tmp_path, to_id
):
    for run, item in enumerate(SPELT):
        async with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            client = connect(journal=journal)
            [outcome] = await client.generate_all([item], to_id=to_id)
            await client.aclose()
        assert (outcome.error, outcome.from_journal) == (None, run > 0)
    [record] = [record for record in klein_emulator.records if record.endpoint == "submit"]
    assert record.body == json.dumps(SPELT[0]).encode()


async def test_equal_items_of_one_run_are_each_submitted_whatever_their_spelling(klein_emulator, connect, tmp_path):
    async with SqliteJournal(tmp_path / "journal.sqlite") as journal:
        client = connect(journal=journal)
        first = await client.generate_all(SPELT[:2])
        again = await client.generate_all(reversed(SPELT[:2]))
        await client.aclose()
    assert [outcome.from_journal for outcome in (*first, *again)] == [False, False, True, True]
    sent = [record.body for record in klein_emulator.records if record.endpoint == "submit"]
    assert sorted(sent) == sorted(json.dumps(item).encode() for item in SPELT[:2])


async def test_a_request_of_an_earlier_run_is_waited_for_and_not_submitted_again(klein_emulator, connect, tmp_path):
    handle = await connect().submit("a cat")
    shelf = Shelf(claim(Action.RESUME, handle.request_id))
    outcome = await only(connect(journal=shelf), shelf, directory=tmp_path)
    assert (outcome.result.request_id, outcome.from_journal) == (handle.request_id, True)
    assert klein_emulator.accepted == 1
    assert [path.name for path in outcome.paths] == [f"{handle.request_id}.png"]
    assert [file.size for file in outcome.files] == [path.stat().st_size for path in outcome.paths]
    assert shelf.states() == [EntryState.COMPLETED, EntryState.DOWNLOADED]


async def test_a_request_that_the_service_has_deleted_is_given_up_and_written_down(klein_emulator, connect):
    shelf = Shelf(claim(Action.RESUME, "gone"))
    outcome = await only(connect(journal=shelf), shelf)
    assert isinstance(outcome.error, NotFoundError)
    assert [(entry.state, entry.request_id) for entry in shelf.entries] == [(EntryState.FAILED, "gone")]
    assert klein_emulator.accepted == 0


async def test_an_item_that_is_missing_until_an_early_deadline_is_resumed_again(klein_emulator, connect):
    """Its journal knows that it was accepted, and would never ask for it again."""
    shelf = Shelf(claim(Action.RESUME, "gone"))
    outcome = await only(connect(journal=shelf, timeout=5), shelf)
    assert type(outcome.error) is WaitTimeoutError
    assert EntryState.FAILED not in shelf.states()


DEAD = b'{"status": "completed", "output": {"image": "http://localhost:1/gone.png"}}'


@pytest.mark.parametrize(
    "known", [{"action": Action.RESUME}, {}, {"answer": b'{"status": "completed", "output": {}}'}, {"answer": DEAD}]
)
async def test_a_request_dies_with_its_emulator_and_is_submitted_again(klein_emulator, connect, tmp_path, known):
    shelf = Shelf(claim(**{"action": Action.RECALL, "request_id": "gone"} | known))
    klein_emulator.service.base_url = "http://localhost:8188"
    client = connect(journal=shelf)
    begun = now()
    outcome = await only(client, shelf, directory=tmp_path)
    assert (outcome.error, len(outcome.paths), klein_emulator.accepted) == (None, 1, 1)
    assert now() - begun < 5, "it was not waited for"
    dead = [entry.state for entry in shelf.entries if entry.request_id == "gone"]
    assert dead == ([EntryState.CANCELLED] if known == {"action": Action.RESUME} else [])


@pytest.mark.parametrize("answers", [[], [error_reply(500)] * 9])
async def test_a_request_that_the_emulator_still_has_is_waited_for(klein_emulator, connect, answers):
    klein_emulator.service.base_url = "http://localhost:8188"
    handle = await connect().submit("a cat")
    klein_emulator.script("status", *answers)
    shelf = Shelf(claim(Action.RESUME, handle.request_id))
    outcome = await only(connect(journal=shelf, timeout=60), shelf)
    assert (outcome.result.request_id, klein_emulator.accepted) == (handle.request_id, 1)


def test_the_emulator_says_what_it_is_in_one_word():
    assert UNKNOWN.lower() == EMULATED


async def test_a_404_that_a_test_asks_for_is_the_services_own(klein_emulator, connect):
    klein_emulator.service.base_url = "http://localhost:8188"
    handle = await connect().submit("a cat")
    klein_emulator.script("status", *[error_reply(404, 404001)] * 90)
    shelf = Shelf(claim(Action.RESUME, handle.request_id))
    outcome = await only(connect(journal=shelf, timeout=60), shelf)
    assert (type(outcome.error), klein_emulator.accepted) == (NotFoundError, 1)


async def kept(client: Any) -> tuple[Any, Claim]:
    """A result of an earlier run and the claim that its journal makes of it."""
    shelf = Shelf()
    client = client(journal=shelf)
    [outcome] = await client.generate_all(["a cat"])
    [entry] = [entry for entry in shelf.entries if entry.state is EntryState.COMPLETED]
    return outcome.result, claim(Action.RECALL, entry.request_id, answer=entry.answer)


NO_FILES = [
    *({}, {"image": None}, {"images": []}, {"image": "not a url"}, {"image": "//cdn.runcomfy.net/x.png"}),
    *("not a url", "//cdn.runcomfy.net/x.png", [], [{}], 7),
]


@pytest.mark.parametrize("output", NO_FILES, ids=repr)
async def test_a_paid_result_without_a_file_is_asked_for_again_by_every_later_run_and_never_submitted_again(
    klein_emulator, connect, tmp_path, output
):
    answer = Rewrite({"output": output, "error": "filtered"})
    klein_emulator.script("result", *[answer] * 3, error_reply(404, 404001), answer)
    shelf = Shelf()
    error = (await only_new(connect(journal=shelf), directory=tmp_path)).error
    [request_id] = klein_emulator.completions
    [known] = [entry for entry in shelf.entries if entry.state is EntryState.COMPLETED]
    assert shelf.states() == [EntryState.SUBMITTING, EntryState.SUBMITTED, EntryState.COMPLETED]
    errors = [error]
    for number in range(4):
        facts = {} if number == 1 else {"answer": known.answer}
        again = Shelf(claim(Action.RECALL, request_id, **facts))
        errors.append((await only(connect(journal=again), again, directory=tmp_path)).error)
        assert again.entries == []
    for found in errors:
        assert (type(found), found.charged, found.retryable) == (GenerationFailedError, "yes", False)
        assert (found.request_id, found.detail) == (request_id, "filtered")
        assert f"fetch the result of request {request_id} again later, do not submit again: filtered" in str(found)
    healed = Shelf(claim(Action.RECALL, request_id, answer=known.answer))
    outcome = await only(connect(journal=healed), healed, directory=tmp_path)
    assert [path.name for path in outcome.paths] == [f"{request_id}.png"]
    assert healed.states() == [EntryState.COMPLETED, EntryState.DOWNLOADED]
    assert (outcome.from_journal, klein_emulator.accepted) == (True, 1)


SHAPES = ["inline", "audio", "url", "path", "nested", "text", "list", "capitals", "links", "counted", "missing"]


async def test_the_files_of_every_shape_are_saved(klein_emulator, connect, tmp_path):
    for shape in SHAPES:
        klein_emulator.script("result", fault(f"out-{shape}"))
        [outcome] = await connect().generate_all(["a cat"], directory=tmp_path / shape, width=64, height=64)
        assert outcome.error is None, shape
        saved = [(path.suffix, hashlib.sha256(path.read_bytes()).hexdigest()) for path in outcome.paths]
        assert saved == [(".png", file.sha256) for file in outcome.files], shape
        assert (len(saved), outcome.result.missing) == (
            2 if shape in ("list", "missing") else 1,
            {"missing": 2, "counted": 3}.get(shape),
        )


@pytest.mark.parametrize(
    ("answer", "kind", "accepted"),
    [
        (Rewrite({"output": {"images": []}}), None, 2),  # filtered for good
        (error_reply(404, 404001), None, 2),  # deleted
        (error_reply(401, 400004), GenerationFailedError, 1),  # nobody knows
        (None, None, 1),  # there by now
    ],
)
async def test_a_paid_result_without_a_file_is_submitted_again_only_on_request_and_after_asking(
    klein_emulator, connect, tmp_path, answer, kind, accepted
):
    klein_emulator.script("result", Rewrite({"output": {"images": []}}), answer)
    for again in (False, True):
        async with SqliteJournal(tmp_path / "journal.sqlite", retry_failed=again) as journal:
            client = connect(journal=journal)
            [outcome] = await client.generate_all(["a cat"], directory=tmp_path / "out", width=64, height=64)
            await client.aclose()
    assert (outcome.error and type(outcome.error), klein_emulator.accepted) == (kind, accepted)


async def only_new(client: Any, **options: Any) -> Any:
    [outcome] = await client.generate_all(["a cat"], **options)
    return outcome


async def test_a_result_that_was_written_down_is_read_again_without_a_call(klein_emulator, connect):
    result, known = await kept(connect)
    asked, shelf = len(klein_emulator.records), Shelf(known)
    outcome = await only(connect(journal=shelf), shelf)
    assert outcome.result == result.model_copy(update={"timings": outcome.result.timings})
    assert outcome.from_journal
    assert len(klein_emulator.records) == asked
    assert shelf.entries == []


async def test_a_result_that_was_too_long_to_be_written_down_is_asked_for(klein_emulator, connect):
    result, known = await kept(connect)
    shelf = Shelf(known._replace(answer=None))
    outcome = await only(connect(journal=shelf), shelf)
    assert outcome.result.urls == result.urls
    assert klein_emulator.accepted == 1


async def saved(connect: Any, directory: Any) -> Claim:
    shelf = Shelf()
    await connect(journal=shelf).generate_all(["a cat"], directory=directory)
    *_, completed, downloaded = shelf.entries
    return claim(Action.RECALL, downloaded.request_id, answer=completed.answer, files=downloaded.files)


@pytest.mark.parametrize(
    ("first", "damage", "calls"),
    [
        ("out", lambda path: None, 0),
        ("out", lambda path: path.unlink(), 1),
        ("out", lambda path: path.write_bytes(path.read_bytes()[:-1]), 1),
        ("elsewhere", lambda path: None, 1),
        ("before", lambda path: path.parent.rename(path.parent.parent / "out"), 0),
    ],
    ids=["there", "missing", "shorter", "in another directory", "in a folder that was renamed"],
)
async def test_files_that_are_not_there_or_not_whole_are_fetched_again(
    klein_emulator, connect, tmp_path, first, damage, calls
):
    known = await saved(connect, tmp_path / first)
    [file] = known.files
    whole = file.path.read_bytes()
    damage(file.path)
    asked, shelf = len(klein_emulator.records), Shelf(known)
    outcome = await only(connect(journal=shelf), shelf, directory=tmp_path / "out")
    assert [path.parent for path in outcome.paths] == [tmp_path / "out"]
    assert [record.path.startswith("/v1") for record in list(klein_emulator.records)[asked:]] == [False] * calls
    assert [path.read_bytes() for path in outcome.paths] == [whole]
    assert shelf.states() == [EntryState.DOWNLOADED] * calls
    assert klein_emulator.accepted == 1


async def test_files_that_have_moved_since_are_found_where_the_service_has_them_now(klein_emulator, connect, tmp_path):
    known = await saved(connect, tmp_path / "first")
    moved = known.answer.replace(b"/files/", b"/files/elsewhere/")
    assert moved != known.answer
    shelf = Shelf(known._replace(answer=moved))
    outcome = await only(connect(journal=shelf), shelf, directory=tmp_path / "second")
    assert [path.read_bytes() for path in outcome.paths] == [known.files[0].path.read_bytes()]
    assert outcome.from_journal
    completed, downloaded = shelf.entries
    assert (completed.state, json.loads(completed.answer)) == (EntryState.COMPLETED, json.loads(known.answer))
    assert (downloaded.state, downloaded.request_id) == (EntryState.DOWNLOADED, known.request_id)
    assert klein_emulator.accepted == 1


async def test_an_item_without_its_files_makes_sense_again_where_a_journal_pays_for_it_once(
    klein_emulator, connect, tmp_path
):
    klein_emulator.fault("file", Reply(503), probability=1)
    outcome = await only_new(connect(journal=Shelf()), directory=tmp_path)
    assert (type(outcome.error), outcome.error.retryable) == (DownloadError, True)


@pytest.mark.parametrize(
    ("result", "told"),
    [(None, "answered HTTP 404"), (error_reply(404, 404001), "a new id"), (error_reply(500), "HTTP 404")],
    ids=["the same", "none", "nobody knows"],
)
async def test_files_that_are_nowhere_are_told_as_what_they_are(klein_emulator, connect, tmp_path, result, told):
    _, known = await kept(connect)
    klein_emulator.fault("file", Reply(404), probability=1)
    klein_emulator.script("result", *[result] * 5)
    asked, shelf = klein_emulator.calls["result"], Shelf(known)
    outcome = await only(connect(journal=shelf), shelf, directory=tmp_path)
    assert isinstance(outcome.error, DownloadError)
    assert (outcome.error.status_code, outcome.error.request_id) == (404, known.request_id)
    assert told in str(outcome.error)
    assert klein_emulator.calls["result"] > asked
    assert shelf.entries == []


UNSURE = "The submit of an earlier run may or may not have been accepted"
AGAIN = "retry_failed=True submits it again"
LOOK_FIRST = (
    "look for it on the site under Library, Generations; if it is not there, resubmit_uncertain=True submits it again"
)


@pytest.mark.parametrize(
    ("known", "error"),
    [
        (claim(Action.CLAIMED), ItemClaimedError()),
        (claim(Action.CLAIMED, "r-1"), ItemClaimedError(request_id="r-1")),
        (claim(Action.UNCERTAIN), SubmissionUncertainError(UNSURE, advice=LOOK_FIRST)),
        (
            claim(Action.UNCERTAIN, error=str(SubmissionUncertainError(cause="X"))),
            SubmissionUncertainError(UNSURE, cause="X", advice=LOOK_FIRST),
        ),
        (claim(Action.FAILED, "r-1"), GenerationFailedError(request_id="r-1", advice=AGAIN)),
        (
            claim(Action.FAILED, "r-1", error=str(GenerationFailedError(request_id="r-1", detail="X"))),
            GenerationFailedError(request_id="r-1", detail="X", advice=AGAIN),
        ),
    ],
    ids=lambda value: value.action.value if isinstance(value, Claim) else None,
)
async def test_what_may_have_been_paid_for_or_is_somebody_elses_is_left_alone_and_told_as_it_was(
    klein_emulator, connect, known, error
):
    shelf = Shelf(known)
    found = (await only(connect(journal=shelf), shelf)).error
    assert (type(found), str(found), found.charged, found.request_id) == (
        type(error),
        str(error),
        error.charged,
        error.request_id,
    )
    assert list(klein_emulator.records) == []


async def test_what_failed_in_an_earlier_run_is_told_in_the_same_words(klein_emulator, connect):
    klein_emulator.fail_prompt("a cat")
    first = Shelf(claim(Action.SUBMIT))
    error = (await only(connect(journal=first), first)).error
    shelf = Shelf(claim(Action.FAILED, error.request_id, error=first.entries[-1].error))
    error.advice = AGAIN
    assert str((await only(connect(journal=shelf), shelf)).error) == str(error)


async def test_the_others_go_on_beside_an_item_that_is_left_alone(klein_emulator, connect):
    shelf = Shelf(claim(Action.CLAIMED), claim(Action.UNCERTAIN), claim(Action.FAILED, "r"))
    outcomes = await connect(journal=shelf).generate_all(["a", "b", "c", "d"], concurrency=1)
    assert [outcome.error is None for outcome in outcomes] == [False, False, False, True]


@pytest.mark.parametrize("error", [JournalError("The disk is full"), OSError("The disk is full")])
async def test_a_journal_that_cannot_claim_stops_everything_before_it_is_paid_for(klein_emulator, connect, error):
    class Torn(Shelf):
        async def claim(self, model: str, body: bytes, item_id: str | None) -> Claim:
            raise error

    outcomes = await connect(journal=Torn()).generate_all(["a", "b", "c"], concurrency=1)
    assert [(type(one.error), "The disk is full" in str(one.error)) for one in outcomes] == [(JournalError, True)] * 3
    assert klein_emulator.accepted == 0


async def test_a_journal_that_cannot_release_loses_no_result(klein_emulator, connect, caplog):
    class Torn(Shelf):
        def release(self, claim: Claim) -> None:
            raise OSError("The disk is full")

    [outcome] = await connect(journal=Torn()).generate_all(["a"])
    assert outcome.error is None
    assert [record.getMessage() for record in caplog.records] == ["The journal raised; ignored"]


@pytest.mark.parametrize("made", ["", True, 7.0, b"x", int])  # a class has __index__ too
async def test_an_id_that_is_neither_text_nor_a_whole_number_is_the_items_own_error(klein_emulator, connect, made):
    [outcome] = await connect(journal=Shelf()).generate_all(["a"], to_id=lambda _: made)
    assert isinstance(outcome.error, InvalidInputError)
    assert klein_emulator.accepted == 0


@pytest.mark.parametrize("give", [str, lambda _: None], ids=["ids", "no ids"])
@pytest.mark.parametrize("shelf", [None, Shelf], ids=["no journal", "a journal"])
async def test_an_id_that_no_journal_reads_is_logged_once(connect, caplog, give, shelf):
    client = connect(journal=shelf and shelf())
    for _ in range(2):
        assert not any(outcome.error for outcome in await client.generate_all(["a", "b"], to_id=give))
    text = "to_id has no effect without a journal that recognises items, such as SqliteJournal(path)"
    assert [record.getMessage() for record in caplog.records] == [text] * (shelf is None and give is str)


async def test_whatever_happens_an_item_is_released(klein_emulator, connect):
    klein_emulator.script("submit", error_reply(422, 422001, message="no cats"), Generation(after=60.0))
    shelf = Shelf(claim(Action.SUBMIT), claim(Action.SUBMIT), claim(Action.RESUME, "r-1"))
    client = connect(journal=shelf)
    async with client.generate_many(["a", "b", "c"], concurrency=3) as outcomes:
        first = await anext(outcomes)
        assert first.error is not None
        await asyncio.sleep(1)
    assert shelf.released == ["i"] * 3
    await client.aclose()
    assert strays() == []


async def test_an_item_that_is_known_needs_no_slot_and_its_time_begins_with_one(klein_emulator, connect):
    """A hundred that are done come at once, though one long generation has the only slot."""
    _, known = await kept(connect)
    klein_emulator.script("submit", Generation(after=50.0))
    shelf = Shelf(claim(Action.SUBMIT), *[known] * 100)

    client, begun = connect(journal=shelf, limits=Limits(max_in_flight=1)), now()
    ends = []
    async with client.generate_many([str(number) for number in range(101)], concurrency=8) as outcomes:
        async for outcome in outcomes:
            ends.append((now() - begun, outcome.from_journal))
    assert [recalled for _, recalled in ends] == [True] * 100 + [False]
    assert ends[99][0] < 1 < ends[100][0]


async def test_one_that_failed_when_it_was_taken_up_is_written_down(klein_emulator, connect):
    klein_emulator.script("submit", Generation(ends="failed", error="no memory"))
    handle = await connect().submit("a cat")
    shelf = Shelf(claim(Action.RESUME, handle.request_id))
    outcome = await only(connect(journal=shelf), shelf)
    assert isinstance(outcome.error, GenerationFailedError)
    assert shelf.states() == [EntryState.FAILED]


async def test_a_journal_that_only_writes_knows_no_items(klein_emulator, connect):
    book = Book()
    outcomes = await connect(journal=book).generate_all(["a", "a"])
    assert [outcome.from_journal for outcome in outcomes] == [False, False]
    assert {entry.item for entry in book.entries} == {None}


async def test_each_token_has_a_journal_of_its_own(klein_emulator, connect):
    tokens = []

    class Keeper(Shelf):
        def for_account(self, token: str, base_url: str | None = None) -> Shelf:
            tokens.append((token, base_url))
            return self

    await connect(journal=Keeper()).generate("a cat")
    assert tokens == [(klein_emulator.api_key, klein_emulator.base_url)]


# --- the directory


@pytest.mark.parametrize("place", ["/proc/x", "file", "file/x", "nowhere", "new/" + "x" * 300])
async def test_a_directory_that_cannot_be_written_to_is_found_before_anything_is_paid_for(
    klein_emulator, connect, tmp_path, place
):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("gone")
    outcomes = await connect().generate_all(["a cat", "a dog"], directory=tmp_path / place)
    assert [(type(item.error), item.error.charged) for item in outcomes] == [(ConfigurationError, "no")] * 2
    assert "Nothing can be written to" in str(outcomes[0].error)
    assert klein_emulator.calls["submit"] == 0


async def test_a_directory_is_tried_once_for_all_items(klein_emulator, connect, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(items, "unwritable", tried.append)
    outcomes = await connect().generate_all(["a cat"] * 8, directory=tmp_path, width=64, height=64)
    assert ([item.error for item in outcomes], tried) == ([None] * 8, [tmp_path])


async def test_a_file_that_a_killed_run_had_saved_is_not_saved_twice(klein_emulator, connect, tmp_path):
    """It was killed before the journal knew of the file, so that a later run fetches it again."""
    shelf = Shelf()
    client = connect(journal=shelf, polling=EVERY_SECOND)
    options: dict[str, Any] = {"directory": tmp_path, "to_name": lambda _: "cat"}
    [first] = await client.generate_all(["a cat"], **options)
    (tmp_path / "cat-2.png").write_bytes(first.paths[0].read_bytes())
    (tmp_path / "cat.png").write_bytes(b"somebody else's")
    shelf.claims.append(claim(Action.RESUME, first.result.request_id))
    [again] = await client.generate_all(["a cat"], **options)
    assert [path.name for path in again.paths] == ["cat-2.png"]
    assert (tmp_path / "cat.png").read_bytes() == b"somebody else's"
    assert len(list(tmp_path.iterdir())) == 2


# --- stopping


def at(emulator: InProcessEmulator) -> dict[str, Any]:
    """The options of a client of another emulator than the fixture's."""
    return {"api_key": emulator.api_key, "base_url": emulator.base_url, "session": emulator.session()}


@pytest.mark.usefixtures("klein_emulator")
async def test_a_stopped_fan_out_submits_nothing_more_and_waits_for_what_runs(connect, tmp_path):
    """Two run, two are queued, two wait for a slot, the rest was not read: each ends in its own way."""
    shelf, read = Shelf(), []

    def endless() -> Any:
        for number in range(1000):
            read.append(number)
            yield f"picture {number}"

    ends: dict[int, Any] = {}
    async with InProcessEmulator(workers=2) as emulator:
        client = connect(**at(emulator), journal=shelf, limits=Limits(max_in_flight=4))
        async with client.generate_many(endless(), concurrency=6, directory=tmp_path) as outcomes:
            await asyncio.sleep(0.2)
            outcomes.stop()
            outcomes.stop()
            async for outcome in outcomes:
                ends[outcome.index] = outcome
        assert await client.aclose() == ()
        assert (emulator.accepted, emulator.calls["cancel"]) == (4, 4)  # those that run cannot be cancelled
    assert read == list(range(6))
    # Which of them run is open: the directory is tried in a thread.
    made = [outcome for outcome in ends.values() if outcome.error is None]
    assert [len(outcome.paths) for outcome in made] == [1, 1]
    errors = [outcome.error for outcome in ends.values() if outcome.error is not None]
    assert [(type(error), error.charged) for error in errors] == [(GenerationCancelledError, "no")] * 4
    assert all(error.retryable and "; another run can submit it" in str(error) for error in errors)
    assert shelf.states().count(EntryState.DOWNLOADED) == 2
    cancelled = {entry.request_id for entry in shelf.entries if entry.state is EntryState.CANCELLED}
    assert len(cancelled) == 2
    assert {error.request_id for error in errors} == {None, *cancelled}


@pytest.mark.parametrize("patience", [60, None], ids=["held", "backing off"])
async def test_stopping_does_not_wait_for_a_submit_that_waits(klein_emulator, connect, patience):
    klein_emulator.script("submit", *[error_reply(429, retry_after=patience)] * 50)
    client, begun = connect(), now()
    async with client.generate_many(["a", "b"], timeout=None) as outcomes:
        await asyncio.sleep(1)
        outcomes.stop()
        ends = [outcome async for outcome in outcomes]
    assert now() - begun == 1
    assert [(type(end.error), end.error.charged) for end in ends] == [(GenerationCancelledError, "no")] * 2
    assert klein_emulator.accepted == 0


BUSY = Reply(429, {}, {"Retry-After": "3"})
CANCELLED, UNCERTAIN = GenerationCancelledError, SubmissionUncertainError
ON_ITS_WAY = [  # how the submit is answered; when, how and at whose cost its item ends; the journal's last word of it
    pytest.param([Generation(delay=2.0, after=3.0)], None, type(None), None, "completed", id="runs"),
    pytest.param([Generation(delay=2.0, after=0.0)], None, type(None), None, "completed", id="completed"),
    pytest.param([Generation(delay=2.0, after=60.0)], None, CANCELLED, "no", "cancelled", id="queued"),
    pytest.param([Reply(429, {}), Generation(delay=2.0)], None, type(None), None, "completed", id="after a repeat"),
    pytest.param([Reply(422, {}, delay=2.0)], 2.0, InputRejectedError, "no", "refused", id="refused"),
    pytest.param([Reply(429, {}, delay=2.0)], 2.0, CANCELLED, "no", "refused", id="refused for now"),
    pytest.param([replace(BUSY, delay=2.0)], 2.0, CANCELLED, "no", "refused", id="held"),
    pytest.param([Reset(delay=2.0)], 2.0, UNCERTAIN, "unknown", "uncertain", id="reset"),
    pytest.param([Hang()], 6.0, UNCERTAIN, "unknown", "uncertain", id="never"),
    pytest.param([Generation(delay=6.5)], 6.0, UNCERTAIN, "unknown", "uncertain", id="too late"),
    pytest.param([Pass(4.5)], None, type(None), None, "completed", id="written down slowly"),
    pytest.param([Pass(4.5)], 6.1, WaitTimeoutError, "unknown", "submitted", id="written down after its deadline"),
]


@pytest.mark.usefixtures("klein_emulator")
@pytest.mark.parametrize(("answers", "ends_at", "kind", "charged", "last"), ON_ITS_WAY)
async def test_a_submit_on_its_way_when_it_is_stopped_has_five_seconds_and_outcome_and_journal_agree(
    request, connect, answers, ends_at, kind, charged, last
):
    case = request.node.callspec.id
    shelf = Slow("submitted" if "written down" in case else "")
    async with InProcessEmulator(workers=1 if case == "queued" else None) as emulator:
        client = connect(**at(emulator), journal=shelf)
        if case == "queued":
            emulator.script("submit", Generation(after=60.0))
            await connect(**at(emulator)).submit("before")
        emulator.script("submit", *answers)
        async with client.generate_many(["a"], timeout=6.1 if "deadline" in case else None) as outcomes:
            await asyncio.sleep(1)
            outcomes.stop()
            outcomes.stop()
            [outcome] = [outcome async for outcome in outcomes]
        error, ended_at = outcome.error, now()
        left = await client.aclose()
        assert emulator.calls["cancel"] == (0 if last in {"refused", "uncertain"} else 1)
    assert (type(error), error and error.charged) == (kind, charged)
    assert ended_at == (ends_at or ended_at)
    assert shelf.entries[-1].state == last
    assert (error or outcome.result).request_id == shelf.entries[-1].request_id
    assert left == ((error.request_id,) if last == "submitted" else ())
    assert strays() == []


@pytest.mark.usefixtures("klein_emulator")
async def test_a_request_that_cannot_be_cancelled_after_a_stop_is_waited_for(connect):
    async with InProcessEmulator() as emulator:
        emulator.script("submit", Generation(delay=2.0, after=30.0))
        emulator.script("cancel", *[error_reply(500)] * 50)
        client = connect(**at(emulator))
        async with client.generate_many(["a"], timeout=20) as outcomes:
            await asyncio.sleep(1)
            outcomes.stop()
            [outcome] = [outcome async for outcome in outcomes]
    assert (type(outcome.error), outcome.error.charged) == (WaitTimeoutError, "unknown")
    assert outcome.error.request_id is not None


async def test_a_fan_out_that_has_ended_can_be_stopped(klein_emulator, connect):
    async with connect().generate_many(["a"]) as outcomes:
        ends = [outcome async for outcome in outcomes]
        outcomes.stop()
    assert [end.error for end in ends] == [None]


# --- stopping from inside: the task that calls `stop` is never cancelled


STOPPING = [
    pytest.param(Submitted, None, [type(None), CANCELLED], id="submitted"),
    pytest.param(Polled, None, [type(None), CANCELLED], id="polled"),
    pytest.param(Finished, None, [type(None), CANCELLED], id="finished"),
    pytest.param(Held, BUSY, [CANCELLED, CANCELLED], id="held"),  # in the middle of the POST
    pytest.param(Retrying, BUSY, [CANCELLED, CANCELLED], id="retrying"),
    pytest.param(Uncertain, Reset(), [SubmissionUncertainError, CANCELLED], id="uncertain"),
    pytest.param(Failed, error_reply(422), [InputRejectedError, CANCELLED], id="failed"),
    pytest.param(Downloaded, None, [type(None), type(None)], id="downloaded"),
]


@pytest.mark.parametrize(("kind", "answer", "ends"), STOPPING)
async def test_a_fan_out_that_an_event_handler_stops_ends_in_good_order(
    klein_emulator, connect, tmp_path, kind, answer, ends
):
    """The handler runs in the task of an item, whatever that awaits next."""
    klein_emulator.script("submit", answer)

    def stop_at(event: Event) -> None:
        if isinstance(event, kind):
            fan_out.stop()

    client = connect(on_event=stop_at, journal=Shelf(), limits=Limits(max_in_flight=1))
    fan_out = client.generate_many(list("abcdefgh"), concurrency=2, directory=tmp_path)
    async with fan_out as outcomes:
        found = [outcome async for outcome in outcomes]
    found.sort(key=lambda outcome: outcome.index)
    assert [isinstance(outcome.error, end) for outcome, end in zip(found, ends, strict=False)] == [True, True]
    assert {type(outcome.error) for outcome in found[2:]} <= {CANCELLED}
    assert len(found) < 5
    await client.aclose()
    assert strays() == []


async def test_a_stop_with_many_submits_under_way_is_no_halt(klein_emulator, connect):
    """Each of them may have been accepted, because the user stopped them."""
    klein_emulator.script("submit", *[Pass(9.0)] * 8)
    client = connect()
    async with client.generate_many([str(number) for number in range(99)], concurrency=8) as outcomes:
        await asyncio.sleep(1)
        outcomes.stop()
        found = [outcome async for outcome in outcomes]
    assert [outcome.error.charged for outcome in found if outcome.error] == ["unknown"] * 8
    await client.aclose()
    assert (klein_emulator.accepted, now()) == (8, 6)


async def test_a_stop_from_the_users_own_functions_cancels_the_items_that_wait(klein_emulator, connect):
    def to_input(item: str) -> str:
        if item == "b":
            fan_out.stop()
        return item

    client = connect(limits=Limits(max_in_flight=1))
    fan_out = client.generate_many(list("abcd"), to_input=to_input, concurrency=3)
    async with fan_out as outcomes:
        found = {outcome.item: type(outcome.error) async for outcome in outcomes}
    assert found == {"a": CANCELLED, "b": CANCELLED}
    await client.aclose()
    assert klein_emulator.accepted == klein_emulator.calls["cancel"] <= 1  # the body leaves sooner on Python 3.12


# --- after an error that dooms every further submit

UNDER_WAY, DOOMED = Pass(2.0), Reply(401, {}, delay=1.0)


class Slow(Shelf):
    """A journal that takes two seconds for one step of every item but the first two, or for one kind of entry."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.step = step

    async def record(self, entry: Entry) -> None:
        if (self.step == "record" and entry.item in {"item-3", "item-4"}) or self.step == entry.state.value:
            await asyncio.sleep(2)
        await super().record(entry)

    async def claim(self, model: str, body: bytes, item_id: str | None) -> Claim:
        found = await super().claim(model, body, item_id)
        if self.step == "claim" and found.item in {"item-3", "item-4"}:
            await asyncio.sleep(2)
        return found


WAITING = [
    pytest.param({"limits": Limits(max_in_flight=2)}, [], 2, id="for a slot"),
    pytest.param({"limits": Limits(max_connections=3)}, [], 2, id="for a connection"),
    pytest.param({"limits": Limits(max_connections=3), "journal": Slow("refused")}, [], 2, id="while it is written"),
    pytest.param({}, [Reply(429, {}, {"Retry-After": "30"}, delay=0.5)] * 2, 4, id="for the end of a hold"),
    pytest.param({}, [Reply(429, {}, delay=0.99)] * 2, 4, id="for the next attempt"),
    pytest.param({"journal": Slow("claim")}, [], 2, id="for its claim"),
    pytest.param({"journal": Slow("record")}, [], 2, id="for its intent to be written"),
]


@pytest.mark.parametrize(("options", "answers", "submits"), WAITING)
async def test_no_item_submits_after_an_error_that_dooms_all_whatever_it_waits_for(
    klein_emulator, connect, options, answers, submits
):
    klein_emulator.script("submit", UNDER_WAY, DOOMED, *answers)
    ends = {}
    with pytest.raises(AuthenticationError):
        async with connect(**options).generate_many(list("abcd"), concurrency=4) as outcomes:
            async for outcome in outcomes:
                ends[outcome.item] = outcome.error
    assert ends.pop("a") is None
    assert [(type(error), error.charged, error.request_id) for error in ends.values()] == 3 * [
        (AuthenticationError, "no", None)
    ]
    assert (klein_emulator.calls["submit"], klein_emulator.accepted, now() < 5) == (submits, 1, True)
    await settle()
    assert strays() == []


async def test_such_an_error_after_the_submit_stops_the_items_that_wait_too(klein_emulator, connect):
    klein_emulator.script("result", error_reply(401))
    found = await connect(limits=Limits(max_in_flight=1)).generate_all(["a", "b"], concurrency=2)
    assert [(type(one.error), one.error.charged) for one in found] == [
        (AuthenticationError, "unknown"),
        (AuthenticationError, "no"),
    ]
    assert klein_emulator.accepted == 1


@pytest.mark.parametrize("limits", [Limits(), Limits(max_in_flight=1), Limits(max_connections=1)], ids=repr)
async def test_a_budget_that_is_used_up_stops_no_item_that_has_its_money(klein_emulator, connect, limits):
    found = await connect(budget=Budget(0.035), limits=limits).generate_all(list("abcdefgh"), concurrency=8)
    errors = [one.error for one in found if one.error]
    assert [(type(error), error.charged) for error in errors] == [(BudgetExceededError, "no")] * 5
    assert klein_emulator.accepted == 3


async def test_after_a_budget_is_used_up_another_error_still_stops_the_items_that_wait(klein_emulator, connect):
    klein_emulator.script("submit", DOOMED)
    client = connect(budget=Budget(0.035), limits=Limits(max_connections=1))
    found = await client.generate_all(list("abcdefgh"), concurrency=8)
    assert {type(one.error) for one in found} == {BudgetExceededError, AuthenticationError}
    assert (klein_emulator.calls["submit"], klein_emulator.accepted) == (1, 0)


async def test_a_post_under_way_goes_on_after_such_an_error_and_is_not_repeated(klein_emulator, connect):
    klein_emulator.script("submit", UNDER_WAY, DOOMED, Reply(429, {}, delay=3.0))
    found = await connect().generate_all(list("abcd"), concurrency=3)
    assert [type(one.error) for one in found] == [type(None), AuthenticationError, RateLimitError, AuthenticationError]
    assert [one.error.charged for one in found if one.error] == ["no"] * 3
    assert (klein_emulator.calls["submit"], klein_emulator.calls["cancel"]) == (3, 0)


async def test_a_generation_that_was_accepted_before_such_an_error_is_fetched_with_repeats(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=3.0), DOOMED)
    klein_emulator.script("result", error_reply(503), error_reply(503))
    [first, _] = await connect().generate_all(["a", "b"])
    assert (first.error, klein_emulator.calls["result"]) == (None, 3)


async def test_a_request_of_an_earlier_run_is_waited_for_after_such_an_error(klein_emulator, connect):
    handle = await connect().submit("a cat")
    shelf = Shelf(claim(Action.SUBMIT), claim(Action.RESUME, handle.request_id))
    klein_emulator.script("submit", Reply(401, {}))
    found = await connect(journal=shelf, limits=Limits(max_in_flight=1)).generate_all(["a", "b"], concurrency=2)
    assert [type(one.error) for one in found] == [AuthenticationError, type(None)]


async def test_a_fan_out_that_ends_by_such_an_error_can_be_stopped(klein_emulator, connect):
    async with InProcessEmulator(workers=0) as idle:
        idle.script("submit", None, DOOMED)
        async with connect(**at(idle)).generate_many(["a", "b"], concurrency=2) as outcomes:
            assert isinstance((await anext(outcomes)).error, AuthenticationError)
            outcomes.stop()
            assert isinstance((await anext(outcomes)).error, GenerationCancelledError)
        assert idle.calls["cancel"] == 1


# --- submits that all end uncertain, generations that all end without a file

CUT = Reset(accepted=True)


def ends(found: Any) -> dict[str, int]:
    """How many outcomes have each class of error."""
    return dict(Counter(type(one.error).__name__ for one in found))


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"limits": Limits(max_in_flight=1)}, 5),
        ({"limits": Limits(max_in_flight=4)}, 5 + 3),
        ({"limits": Limits(max_connections=3)}, 5 + 2),
        ({"limits": Limits()}, 64),
        ({"limits": Limits(max_in_flight=4, halt_after=1)}, 4),
        ({"limits": Limits(max_in_flight=4, halt_after=20)}, 20 + 3),
        ({"limits": Limits(max_in_flight=4), "journal": Slow("uncertain")}, 5 + 3),
    ],
)
@pytest.mark.parametrize("round_trip", [0.0, 0.1])
@pytest.mark.usefixtures("klein_emulator")
async def test_a_storm_of_submits_that_end_uncertain_halts_the_fan_out(connect, options, most, round_trip):
    """A gateway cuts every answer after the submit was accepted: 400 were paid for once."""
    async with InProcessEmulator(round_trip=round_trip) as emulator:
        emulator.fault("submit", CUT, probability=1)
        found = await connect(**at(emulator), **options).generate_all([f"picture {n}" for n in range(400)])
        assert emulator.accepted <= most
    lost = emulator.accepted
    assert ends(found) == {"SubmissionUncertainError": lost, "FanOutHaltedError": 400 - lost}
    last = found[-1].error
    assert (last.charged, last.retryable, last.possibly_charged) == ("no", False, lost)
    in_a_row = options["limits"].halt_after
    assert str(last).startswith(
        f"{in_a_row} submit{'s' if in_a_row > 1 else ''} in a row ended uncertain; nothing more"
    )


@pytest.mark.parametrize("wait", [{"timeout": 20}, {"timeout": None}], ids=["by the deadline", "by silence"])
async def test_a_storm_of_submits_without_an_answer_halts_the_fan_out_too(klein_emulator, connect, wait):
    klein_emulator.fault("submit", Hang(accepted=True), probability=1)
    found = await connect(limits=Limits(max_in_flight=4)).generate_all([str(n) for n in range(50)], **wait)
    assert klein_emulator.accepted <= 8
    assert ends(found) == {
        "SubmissionUncertainError": klein_emulator.accepted,
        "FanOutHaltedError": 50 - klein_emulator.accepted,
    }


async def test_what_runs_when_a_fan_out_is_halted_is_yielded_and_then_the_halt_is_raised(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=30.0), *[CUT] * 5)
    found = []
    with pytest.raises(FanOutHaltedError) as caught:
        async with connect().generate_many(_endless(), concurrency=2) as outcomes:
            async for outcome in outcomes:
                found.append(outcome)
    assert ends(found[:5]) == {"SubmissionUncertainError": 5}
    assert [(one.item, one.error) for one in found[5:]] == [("picture 0", None)]
    assert (caught.value.charged, caught.value.possibly_charged, klein_emulator.calls["submit"]) == ("unknown", 5, 6)
    assert caught.value.cause.startswith("The connection to the service failed")
    await settle()
    assert strays() == []


async def _endless() -> AsyncIterator[str]:
    """Six items, and then none for an hour."""
    for number in range(6):
        yield f"picture {number}"
    await asyncio.sleep(3600)


async def test_what_is_lost_after_the_halt_is_counted_too(klein_emulator, connect):
    klein_emulator.script("submit", *[CUT] * 5, *[Reset(accepted=True, delay=1.0)] * 3)
    with pytest.raises(FanOutHaltedError) as caught:
        async with connect(limits=Limits(max_in_flight=8)).generate_many([str(n) for n in range(50)]) as outcomes:
            assert ends([outcome async for outcome in outcomes])["SubmissionUncertainError"] == 8
    assert caught.value.possibly_charged == 8


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([*[CUT] * 4, None, *[CUT] * 4, None], id="a success in between"),
        pytest.param([*[CUT] * 4, Generation(ends="failed"), *[CUT] * 4], id="accepted in between, though it failed"),
        pytest.param([Generation(output={}), *[CUT] * 4, Generation(output={}), *[CUT] * 4], id="rows of both kinds"),
        pytest.param([error_reply(422), Generation(ends="failed")] * 9, id="the items' own errors"),
    ],
)
async def test_a_row_that_is_broken_halts_nothing(klein_emulator, connect, answers):
    klein_emulator.script("submit", *answers)
    found = await connect().generate_all([str(n) for n in range(len(answers) + 1)], concurrency=1)
    assert FanOutHaltedError.__name__ not in ends(found)
    assert found[-1].error is None


async def test_a_refusal_in_between_breaks_no_row(klein_emulator, connect):
    klein_emulator.script("submit", *[CUT] * 3, error_reply(422), *[CUT] * 2)
    found = await connect().generate_all([str(n) for n in range(9)], concurrency=1)
    assert ends(found) == {"SubmissionUncertainError": 5, "InputRejectedError": 1, "FanOutHaltedError": 3}


async def test_an_item_that_has_not_submitted_yet_waits_out_a_hold_longer_than_its_timeout(klein_emulator, connect):
    """The one that was refused itself cannot: its time has begun."""
    klein_emulator.script("submit", error_reply(429, retry_after=60))
    found = await connect(timeout=10).generate_all(list("abcd"), concurrency=1)
    assert [type(one.error).__name__ for one in found] == ["RateLimitError", *["NoneType"] * 3]
    assert 60 < now() < 70
    klein_emulator.script("submit", error_reply(429, retry_after=60))
    async with connect(timeout=10).generate_many(list("ab"), concurrency=1) as outcomes:
        asyncio.get_running_loop().call_later(5, outcomes.stop)
        begun = now()
        assert [type(one.error).__name__ async for one in outcomes] == ["RateLimitError", "GenerationCancelledError"]
        assert now() == begun + 5


@pytest.mark.parametrize(
    ("lost", "good"),
    [(CUT, Pass(delay=1.0)), (Generation(output={}, after=0.1), Generation(after=1.0))],
    ids=["submits", "generations"],
)
async def test_a_few_of_many_at_once_that_are_lost_before_the_others_end_halt_nothing(
    klein_emulator, connect, lost, good
):
    klein_emulator.script("submit", *[*[good] * 3, lost] * 16)
    found = await connect().generate_all([str(n) for n in range(64)])
    assert Counter(one.error is None for one in found) == {True: 48, False: 16}
    assert FanOutHaltedError.__name__ not in ends(found)


@pytest.mark.parametrize(
    ("begun", "ended", "rows"),
    [
        (4, "0b 1b 2b 3b", [1, 2, 3, 4]),
        (4, "3b 1b 0b 2b", [1, 1, 2, 4]),  # in the order in which they began
        (5, "0b 1b 3b 4b 2g", [1, 2, 1, 2, 0]),  # a good one ends a row
        (5, "0b 1b 3b 4b 2n", [1, 2, 1, 2, 4]),  # what is neither is left out
        (5, "0b 1b 3n 4b 2b", [1, 2, 0, 1, 4]),
        (5, "0b 1b 4n 3n 2n", [1, 2, 0, 0, 2]),
        (9, "1g 2b 0b 4b 3b 8b", [0, 1, 1, 1, 3, 1]),
    ],
)
def test_a_row_is_counted_in_the_order_in_which_they_began(begun, ended, rows):
    row = _Row()
    assert [row.begin() for _ in range(begun)] == list(range(begun))
    found = [row.end(int(end[0]), {"b": True, "g": False, "n": None}[end[1]]) for end in ended.split()]
    assert found == rows
    assert [row.is_under_way(number) for number in range(begun)] == [
        str(number) not in ended for number in range(begun)
    ]


@pytest.mark.parametrize("ordered", [False, True])
async def test_what_an_earlier_run_paid_for_is_collected_though_no_money_is_left(klein_emulator, connect, ordered):
    known = (await connect().submit("c")).request_id
    claims = [claim(Action.SUBMIT), claim(Action.SUBMIT), claim(Action.RESUME, known), claim(Action.SUBMIT)]
    client = connect(journal=Shelf(*claims), budget=Budget(0))
    found = await client.generate_all(list("abcd"), concurrency=1)
    assert [one.error is None for one in found] == [False, False, True, False]
    assert ends(found) == {"BudgetExceededError": 3, "NoneType": 1}
    assert klein_emulator.accepted == 1
    client, given = connect(journal=Shelf(*claims), budget=Budget(0)), []
    outcomes = client.generate_many(list("abcd"), concurrency=1, ordered=ordered)
    outcomes.reads_on = True
    with pytest.raises(BudgetExceededError):
        async with outcomes:
            async for outcome in outcomes:
                given.append((outcome.item, outcome.error is None))
    assert given == [("a", False), *[("b", False)] * ordered, ("c", True), *[("d", False)] * ordered]


async def test_none_never_halts(klein_emulator, connect):
    klein_emulator.fault("submit", CUT, probability=1)
    found = await connect(limits=Limits(halt_after=None)).generate_all([str(n) for n in range(90)])
    assert ends(found) == {"SubmissionUncertainError": 90}


async def test_submits_that_an_earlier_run_left_uncertain_halt_nothing(klein_emulator, connect):
    shelf = Shelf(*[claim(Action.UNCERTAIN)] * 20)
    found = await connect(journal=shelf).generate_all([str(n) for n in range(21)], concurrency=1)
    assert ends(found) == {"SubmissionUncertainError": 20, "NoneType": 1}


HALTING = [
    pytest.param({"limits": Limits(max_in_flight=5)}, [], 5, id="for a slot"),
    pytest.param({"limits": Limits(max_connections=1)}, [], 5, id="for a connection"),
    pytest.param({}, [Reply(429, {}, {"Retry-After": "30"}, delay=0.5)] * 2, 7, id="for the end of a hold"),
    pytest.param({}, [Reply(429, {}, delay=0.99)] * 2, 7, id="for the next attempt"),
    pytest.param({"journal": Slow("claim")}, [], 5, id="for its claim"),
    pytest.param({"journal": Slow("record")}, [], 5, id="for its intent to be written"),
]


@pytest.mark.parametrize(("options", "answers", "submits"), HALTING)
async def test_no_item_submits_after_a_halt_whatever_it_waits_for(klein_emulator, connect, options, answers, submits):
    klein_emulator.script("submit", *[Reset(accepted=True, delay=1.0)] * 5, *answers)
    found = await connect(**options).generate_all(list("abcdefg"), concurrency=7)
    assert ends(found) == {"SubmissionUncertainError": 5, "FanOutHaltedError": 2}
    assert [one.error.charged for one in found if isinstance(one.error, FanOutHaltedError)] == ["no"] * 2
    assert (klein_emulator.calls["submit"], klein_emulator.accepted) == (submits, 5)


async def test_a_submit_that_still_connects_when_the_fan_out_is_halted_is_dropped(klein_emulator, connect):
    """It was admitted, and nothing of its body was written."""
    klein_emulator.script("submit", *[Reset(accepted=True, delay=1.0)] * 5)
    klein_emulator.script("connect", *[None] * 5, *[Pass(2.0)] * 3)
    shelf = Shelf()
    found = await connect(journal=shelf).generate_all([str(n) for n in range(8)], concurrency=8)
    assert ends(found) == {"SubmissionUncertainError": 5, "FanOutHaltedError": 3}
    await asyncio.sleep(5)
    assert (klein_emulator.calls["submit"], klein_emulator.accepted, strays()) == (5, 5, [])
    assert (shelf.states().count(EntryState.REFUSED), shelf.states().count(EntryState.UNCERTAIN)) == (3, 5)


NOTHING = Generation(output={})


@pytest.mark.parametrize("resumed", [False, True])
async def test_generations_that_all_end_without_a_file_halt_the_fan_out(klein_emulator, connect, resumed):
    klein_emulator.script("submit", *[Generation(output={}, after=1.0)] * 60)
    known = [(await connect().submit("a cat")).request_id for _ in range(5)] if resumed else []
    shelf = Shelf(*[claim(Action.RESUME, request_id) for request_id in known])
    client = connect(limits=Limits(max_in_flight=4), journal=shelf)
    found = await client.generate_all([str(n) for n in range(60)], concurrency=1 if resumed else 8)
    assert klein_emulator.accepted <= 5 + 3
    halted = [one.error for one in found if isinstance(one.error, FanOutHaltedError)]
    assert len(halted) >= 60 - 8
    assert {error.charged for error in halted} == {"no"}
    assert "5 generations in a row ended without a file; nothing more is submitted" in str(halted[-1])


async def test_results_that_never_come_halt_the_fan_out_too(klein_emulator, connect):
    klein_emulator.script("submit", *[Generation(result_lag=1e9)] * 60)
    found = await connect(limits=Limits(max_in_flight=1)).generate_all([str(n) for n in range(9)])
    assert ends(found) == {"ResultNotReadyError": 5, "FanOutHaltedError": 4}


async def test_a_file_in_between_breaks_the_row_of_generations(klein_emulator, connect):
    klein_emulator.script("submit", *[NOTHING] * 4, None, *[NOTHING] * 4)
    found = await connect().generate_all([str(n) for n in range(10)], concurrency=1)
    assert FanOutHaltedError.__name__ not in ends(found)


async def test_what_failed_and_was_charged_counts_as_without_a_file(klein_emulator, connect):
    class Charged(FixedPolling):
        def next_poll(self, progress: Any) -> float:
            raise GenerationFailedError(charged="yes")

    found = await connect(polling=Charged(1.0)).generate_all([str(n) for n in range(9)], concurrency=1)
    assert ends(found) == {"GenerationFailedError": 5, "FanOutHaltedError": 4}
