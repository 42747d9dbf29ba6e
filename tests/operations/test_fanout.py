"""Fan-out: bounded, lazy, structured; one item's error is its outcome, and what dooms all stops the rest."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from flux_klein_async import (
    AuthenticationError,
    BudgetExceededError,
    ClientClosedError,
    ConfigurationError,
    DownloadError,
    GenerationCancelledError,
    InputRejectedError,
    InsufficientBalanceError,
    InvalidInputError,
    Limits,
    PermissionDeniedError,
    SubmissionUncertainError,
    TextToImageInput,
)
from flux_klein_async.emulator import Cut, Generation, Hang, Reply, error_reply
from flux_klein_async.events import Downloaded
from flux_klein_async.operations import download
from flux_klein_async.operations.fanout import FanOut, dooms
from tests.fakes import Events, now, outcome, png, settle, strays
from tests.loops import begin_tasks_eagerly
from tests.operations.helpers import EVERY_SECOND, sent


def in_flight_peak(emulator: Any) -> int:
    """How many generations ran at once, from the emulator's own completion instants and submit times."""
    marks = [(at, 1) for at in sent(emulator, "submit")] + [(at, -1) for at in emulator.completions.values()]
    peak = running = 0
    for _, step in sorted(marks):
        running += step
        peak = max(peak, running)
    return peak


@pytest.mark.parametrize(("ordered", "order"), [(False, [1, 2, 0]), (True, [0, 1, 2])])
async def test_outcomes_come_as_they_finish_or_in_the_order_of_the_items(klein_emulator, connect, ordered, order):
    klein_emulator.script("submit", *[Generation(after=seconds) for seconds in (4.5, 0.5, 2.5)])
    async with connect(polling=EVERY_SECOND).generate_many(["a", "b", "c"], ordered=ordered) as outcomes:
        assert [(found.index, found.item) async for found in outcomes] == [(index, "abc"[index]) for index in order]


async def _hanging(*items: str) -> AsyncIterator[str]:
    """Some items, and then none for an hour: a pipe whose writer is slow."""
    for item in items:
        yield item
    await asyncio.sleep(3600)


@pytest.mark.parametrize("leaves", [False, True])
async def test_stopping_and_leaving_do_not_wait_for_the_next_item(klein_emulator, connect, leaves):
    klein_emulator.script("submit", Generation(after=1.5))
    async with connect(polling=EVERY_SECOND).generate_many(_hanging("a"), concurrency=3) as outcomes:
        if not leaves:
            asyncio.get_running_loop().call_later(1, outcomes.stop)
        async for found in outcomes:
            assert (found.item, found.error) == ("a", None)
            if leaves:
                break
    assert now() == 2.0


@pytest.mark.parametrize("then", ["gives one more", "waits", "ends", "stops again in its cleanup"])
async def test_items_that_stop_their_own_fan_out_end_in_good_order(klein_emulator, connect, then):
    """The task that asks them for the next one is not cut off where it is; what they wait for then is not awaited."""
    cleaned = []

    async def items() -> AsyncIterator[str]:
        try:
            yield "a"
            yield "b"
            await asyncio.sleep(0.5)
            outcomes.stop()
            if then == "gives one more":
                yield "c"
            elif then != "ends":
                await asyncio.sleep(3600)
        finally:
            if then == "stops again in its cleanup":
                outcomes.stop()
                await asyncio.sleep(1)
            cleaned.append(now())

    client = connect(polling=EVERY_SECOND)
    outcomes = client.generate_many(items(), concurrency=3)
    async with outcomes:
        found = {outcome.item: type(outcome.error) async for outcome in outcomes}
    await client.aclose()
    late = {"c": GenerationCancelledError} if then == "gives one more" else {}
    assert found == {"a": type(None), "b": type(None), **late}
    end = 1.5 if then == "stops again in its cleanup" else 0.5
    assert (cleaned, now(), strays()) == ([] if late else [end], max(end, 1.0), [])


async def test_plain_items_that_stop_their_own_fan_out_end_in_good_order(klein_emulator):
    def items() -> Iterator[str]:
        yield "a"
        outcomes.stop()
        yield "b"

    async def make(_index: int, item: str) -> Any:
        await asyncio.sleep(1)
        raise InvalidInputError(f"no {item}")

    outcomes = FanOut(items(), make, concurrency=2, ordered=False)
    async with outcomes:
        assert [(outcome.index, outcome.item) async for outcome in outcomes] == [(0, "a"), (1, "b")]


@pytest.mark.parametrize("doomed", [False, True])
async def test_a_stop_ends_the_list_of_all_outcomes_too(klein_emulator, connect, doomed):
    klein_emulator.script("submit", error_reply(401) if doomed else Generation(after=1.5))

    async def items() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(10)
        yield "b"
        await asyncio.sleep(3600)

    fan_out = connect(polling=EVERY_SECOND).generate_many(items(), concurrency=3)
    asyncio.get_running_loop().call_later(5, fan_out.stop)
    found = await fan_out.all()
    assert ([outcome.item for outcome in found], now()) == (["a"], 5.0)


async def test_what_dooms_every_item_does_not_wait_for_the_next_one(klein_emulator, connect):
    klein_emulator.script("submit", error_reply(401))
    with pytest.raises(AuthenticationError):
        async with connect().generate_many(_hanging("a"), concurrency=3) as outcomes:
            async for found in outcomes:
                assert isinstance(found.error, AuthenticationError)
    assert now() < 5


async def test_all_outcomes_wait_for_the_items_that_come_after_what_dooms_them(klein_emulator, connect):
    async def late() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(100)
        yield "b"

    klein_emulator.script("submit", error_reply(401))
    found = await connect().generate_all(late(), concurrency=3)
    assert [(one.item, type(one.error)) for one in found] == [("a", AuthenticationError), ("b", AuthenticationError)]


def _rows(count: int, read: list[int]) -> Iterator[str]:
    for number in range(count):
        read.append(number)
        yield f"picture {number}"


async def _stream(count: int, read: list[int]) -> AsyncIterator[str]:
    for row in _rows(count, read):
        await asyncio.sleep(0)
        yield row


@pytest.mark.parametrize("make", [_rows, _stream])
@pytest.mark.parametrize("ordered", [False, True])
async def test_no_more_than_concurrency_are_in_flight_and_twice_that_are_held(klein_emulator, connect, make, ordered):
    read: list[int] = []
    taken = 0
    async with connect(polling=EVERY_SECOND).generate_many(make(40, read), concurrency=4, ordered=ordered) as found:
        async for item in found:
            assert item.error is None
            taken += 1
            assert len(read) - taken <= 8
            await asyncio.sleep(0.3)
    assert (taken, len(read)) == (40, 40)
    assert in_flight_peak(klein_emulator) <= 4


async def test_a_reader_that_stops_reading_stops_the_reading_of_items(klein_emulator, connect):
    read: list[int] = []
    async with connect(polling=EVERY_SECOND).generate_many(_rows(1000, read), concurrency=4) as outcomes:
        await anext(outcomes)
        await asyncio.sleep(600)
        assert len(read) == 9  # one taken, four that ended, four more that were begun meanwhile and have ended too
    assert klein_emulator.accepted == 9


async def test_the_clients_slots_bound_concurrency_too(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND, limits=Limits(max_in_flight=3))
    outcomes = await client.generate_all([f"picture {number}" for number in range(10)], concurrency=8)
    assert [found.error for found in outcomes] == [None] * 10
    assert in_flight_peak(klein_emulator) == 3


async def test_an_items_timeout_starts_when_it_has_its_slot(klein_emulator, connect):
    klein_emulator.script("submit", *[Generation(after=2.5)] * 6)
    client = connect(polling=EVERY_SECOND, limits=Limits(max_in_flight=2))
    outcomes = await client.generate_all(list("abcdef"), timeout=4)
    assert ([found.error for found in outcomes], now()) == ([None] * 6, 9.0)


async def test_an_items_own_error_is_its_outcome(klein_emulator, connect):
    klein_emulator.script("submit", None, error_reply(422), error_reply(500), None)
    outcomes = await connect(polling=EVERY_SECOND).generate_all(["a", "b", "c", " "], concurrency=1)
    kinds = [type(found.error) for found in outcomes]
    assert kinds == [type(None), InputRejectedError, SubmissionUncertainError, InvalidInputError]
    assert [found.result is None for found in outcomes] == [False, True, True, True]


async def test_to_input_makes_inputs_and_its_failures_are_outcomes(klein_emulator, connect):
    rows: list[Any] = [{"prompt": "a"}, {}, {"prompt": ""}]
    client = connect()
    outcomes = await client.generate_all(rows, to_input=lambda row: TextToImageInput(prompt=row["prompt"], width=64))
    assert [type(found.error) for found in outcomes] == [type(None), InvalidInputError, InvalidInputError]
    assert "KeyError" in str(outcomes[1].error)
    assert "blank" in str(outcomes[2].error)
    assert klein_emulator.accepted == 1
    refused = await client.generate_all([1], to_input=lambda _: client.handle("../x"))  # type: ignore[arg-type]
    assert "Not a request id" in str(refused[0].error)


class Lazy(Mapping[str, Any]):
    """A row that is read when it is used."""

    def __getitem__(self, _key: str) -> Any:
        raise OSError("the table is gone")

    def __iter__(self) -> Iterator[str]:
        return iter(["prompt"])

    def __len__(self) -> int:
        return 1


class Share:
    """A path that is found when it is used."""

    def __fspath__(self) -> str:
        raise OSError("the share is gone")


@pytest.mark.parametrize("broken", [Lazy(), {"prompt": "b", "image_urls": [Share()]}], ids=["row", "path"])
async def test_an_input_whose_own_code_raises_is_the_error_of_its_item_alone(klein_emulator, connect, broken):
    client = connect()
    outcomes = await client.generate_all(["a", broken, "c"])
    assert [type(found.error) for found in outcomes] == [type(None), InvalidInputError, type(None)]
    assert "is gone" in str(outcomes[1].error)
    with pytest.raises(InvalidInputError, match="is gone"):
        await client.submit(broken)


DOOMS = [
    pytest.param(error_reply(401), AuthenticationError, id="401"),
    pytest.param(error_reply(402), InsufficientBalanceError, id="402"),
    pytest.param(error_reply(403, 403001), PermissionDeniedError, id="403001"),
    *(
        pytest.param(error_reply(status, code), PermissionDeniedError, id=f"{status} with {code}")
        for status, code in [(200, 10001), (403, 10001), (400, 10002), (500, 10003), (408, 10003)]
    ),
]
# What firewalls and gateways say, and an unknown code.
FORBIDDEN = [
    pytest.param(Reply(403, "<html>Request blocked</html>", {"Content-Type": "text/html"}), id="HTML"),
    pytest.param(Reply(403, ""), id="nothing"),
    pytest.param(Reply(403, {"message": "Forbidden"}), id="JSON without a code"),
    pytest.param(Reply(403, {"error_code": 403999, "message": "Access denied"}), id="an unknown code"),
    pytest.param(Reply(403, '["error_code", 403001]'), id="a list"),
]


@pytest.mark.parametrize(
    ("error", "doomed"),
    [
        (ConfigurationError(), True),
        (ClientClosedError(), True),
        (AuthenticationError(status_code=401), True),
        (InsufficientBalanceError(status_code=402), True),
        (BudgetExceededError(), True),
        (PermissionDeniedError(status_code=403, error_code=403003), True),
        (PermissionDeniedError(status_code=200, error_code=10001), True),
        (PermissionDeniedError(status_code=403, error_code=403001, request_id="x"), False),
        (PermissionDeniedError(status_code=403), False),
        (PermissionDeniedError(status_code=403, error_code=1020), False),
        (InputRejectedError(status_code=422), False),
        (SubmissionUncertainError(), False),
    ],
    ids=repr,
)
def test_an_error_dooms_the_rest_where_it_would_be_theirs_too(error, doomed):
    assert dooms(error) is doomed


@pytest.mark.parametrize(("answer", "kind"), DOOMS)
async def test_what_dooms_every_item_stops_new_ones_lets_running_ones_finish_and_is_raised(
    klein_emulator, connect, answer, kind
):
    klein_emulator.script("submit", Generation(after=5.5), answer)
    seen = []
    with pytest.raises(kind) as caught:
        async with connect(polling=EVERY_SECOND).generate_many(list("abcdef"), concurrency=2) as outcomes:
            async for found in outcomes:
                seen.append((found.index, type(found.error)))
    assert seen == [(1, kind), (0, type(None))]
    assert (caught.value.charged, klein_emulator.accepted, klein_emulator.calls["submit"]) == ("no", 1, 2)
    assert strays() == []


async def _letters() -> AsyncIterator[str]:
    for letter in "abcdef":
        yield letter


@pytest.mark.parametrize("items", [lambda: list("abcdef"), _letters], ids=["plain", "async"])
@pytest.mark.parametrize(("answer", "kind"), DOOMS)
async def test_generate_all_gives_what_dooms_to_every_item_not_submitted(klein_emulator, connect, answer, kind, items):
    klein_emulator.script("submit", Generation(after=5.5), answer)
    outcomes = await connect(polling=EVERY_SECOND).generate_all(items(), concurrency=2)
    assert [type(found.error) for found in outcomes] == [type(None), *[kind] * 5]
    assert [(found.index, found.item) for found in outcomes] == list(enumerate("abcdef"))
    assert {found.error.charged for found in outcomes[1:]} == {"no"}
    assert len({id(found.error) for found in outcomes[1:]}) == 5


@pytest.mark.parametrize("answer", FORBIDDEN)
async def test_a_403_that_is_not_the_services_own_is_the_error_of_its_item_alone(klein_emulator, connect, answer):
    klein_emulator.script("submit", None, answer)
    outcomes = await connect(polling=EVERY_SECOND).generate_all(list("abcdef"), concurrency=1)
    assert [type(found.error) for found in outcomes] == [type(None), PermissionDeniedError, *[type(None)] * 4]
    assert (outcomes[1].error.charged, outcomes[1].error.retryable) == ("no", False)
    assert (klein_emulator.accepted, klein_emulator.calls["submit"]) == (5, 6)


async def test_an_item_never_submitted_is_charged_no_whatever_the_first_one_was():
    async def run(_index: int, _item: str) -> Any:
        raise ClientClosedError("closed", charged="unknown", request_id="x")

    outcomes = await FanOut(["a", "b", "c"], run, concurrency=1, ordered=False).all()
    assert [found.error.charged for found in outcomes if found.error] == ["unknown", "no", "no"]
    assert [found.error.request_id for found in outcomes if found.error] == ["x", None, None]


async def test_an_exception_of_the_items_leaves_unwrapped_after_the_running_ones(klein_emulator, connect):
    def rows() -> Iterator[str]:
        yield "a"
        raise LookupError("the table is gone")

    seen = []
    with pytest.raises(LookupError, match="the table is gone"):
        async with connect().generate_many(rows()) as outcomes:
            async for found in outcomes:
                seen.append(found.item)
    assert seen == ["a"]


class Ending:
    """Items whose end may be asked for once: a queue, say, that would then wait for more."""

    def __init__(self) -> None:
        self.left = list("abc")
        self.ends = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self.left:
            self.ends += 1
            raise StopIteration
        return self.left.pop()


@pytest.mark.parametrize("concurrency", [1, 2, 3, 8])
async def test_items_that_have_ended_are_not_asked_again(klein_emulator, connect, concurrency):
    items = Ending()
    outcomes = await connect().generate_all(items, concurrency=concurrency)
    assert (len(outcomes), items.ends) == (3, 1)


# --- saving next to generating


@pytest.mark.parametrize("ordered", [False, True])
async def test_each_items_files_are_saved_as_soon_as_its_result_is_there(klein_emulator, connect, tmp_path, ordered):
    klein_emulator.script("submit", *[Generation(after=seconds) for seconds in (4.5, 0.5, 2.5)])
    events = Events()
    client = connect(polling=EVERY_SECOND, on_event=events)
    async with client.generate_many(list("abc"), ordered=ordered, directory=tmp_path / "out") as outcomes:
        found = [outcome async for outcome in outcomes]
    assert [entry.item for entry in found] == (list("abc") if ordered else list("bca"))
    for entry in found:
        assert entry.result is not None
        assert entry.paths == (tmp_path / "out" / f"{entry.result.request_id}.png",)
        assert [path.read_bytes() for path in entry.paths] == await client.download_bytes(entry.result)
    assert [(event.at, event.tag) for event in events.of(Downloaded)] == [(1.0, 1), (3.0, 2), (5.0, 0)]


SLOW = Reply(200, png(100), dribble=1.0)  # a byte a second, for minutes


async def test_generations_go_on_while_a_download_dribbles(klein_emulator, connect, tmp_path):
    klein_emulator.script("submit", *[Generation(after=0.5)] * 4)
    klein_emulator.script("file", SLOW)
    client = connect(polling=EVERY_SECOND, limits=Limits(max_in_flight=1), timeout=None)
    async with client.generate_many(list("abcd"), directory=tmp_path) as outcomes:
        found = [(entry.item, entry.error, now()) async for entry in outcomes]
    # One generation at a time, and the next as soon as one has ended: the slot is not kept for the files.
    assert sent(klein_emulator, "submit") == [0.0, 1.0, 2.0, 3.0]
    slowest = 1.0 + len(SLOW.body)
    assert found == [("b", None, 2.0), ("c", None, 3.0), ("d", None, 4.0), ("a", None, slowest)]


async def test_an_item_keeps_its_place_until_its_files_are_saved(klein_emulator, connect, tmp_path):
    klein_emulator.script("submit", *[Generation(after=0.5)] * 4)
    klein_emulator.script("file", SLOW, SLOW)
    client = connect(polling=EVERY_SECOND, limits=Limits(max_in_flight=1), timeout=None)
    await client.generate_all(list("abcd"), directory=tmp_path, concurrency=2)
    length = len(SLOW.body)
    assert sent(klein_emulator, "submit") == [0.0, 1.0, 1.0 + length, 2.0 + length]


@pytest.mark.parametrize(
    ("answers", "transient"),
    [([error_reply(404)], False), ([Reply(200, png(), cut=Cut(10))] * 5, True), ([Hang()], True)],
    ids=["refused", "incomplete", "silent"],
)
async def test_a_download_that_fails_is_its_items_error_and_the_result_can_be_fetched_again(
    klein_emulator, connect, tmp_path, answers, transient
):
    klein_emulator.script("file", *answers)
    client = connect(timeout=20)
    [bad, good] = await client.generate_all(["a", "b"], concurrency=1, directory=tmp_path)
    assert type(bad.error) is DownloadError
    assert (bad.error.charged, bad.error.transient, bad.result, bad.paths) == ("yes", transient, None, ())
    assert (bad.cost_usd, bad.request_id, good.cost_usd) == (0.01, bad.error.request_id, 0.01)
    assert good.request_id == good.result.request_id
    assert not bad.error.retryable, "the item would be paid for again"
    assert (good.error, [path.parent for path in good.paths]) == (None, [tmp_path])
    again = await client.download(await client.result(bad.error.request_id or ""), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*again, *good.paths])


async def test_the_files_of_an_item_have_as_many_seconds_as_its_generation(klein_emulator, connect, tmp_path):
    klein_emulator.script("submit", Generation(after=2.5))
    klein_emulator.script("file", Hang())
    client = connect(polling=EVERY_SECOND, timeout=None)
    [found] = await client.generate_all(["a"], timeout=4, directory=tmp_path)
    assert (type(found.error), now()) == (DownloadError, 7.0)


# --- leaving


async def _leave_early(outcomes: Any) -> None:
    await anext(outcomes)


async def _raise_in_body(outcomes: Any) -> None:
    await anext(outcomes)
    raise ZeroDivisionError


async def _be_cancelled(outcomes: Any) -> None:
    await anext(outcomes)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    async for _ in outcomes:
        pass


async def _time_out(outcomes: Any) -> None:
    async with asyncio.timeout(2.25):
        async for _ in outcomes:
            pass


LEAVING = [
    (_leave_early, None),
    (_raise_in_body, ZeroDivisionError),
    (_be_cancelled, asyncio.CancelledError),
    (_time_out, TimeoutError),
]


@pytest.mark.parametrize(("body", "expected"), LEAVING)
@pytest.mark.parametrize("on_abandon", ["cancel", "leave"])
async def test_leaving_in_any_way_leaves_nothing_running(klein_emulator, connect, body, expected, on_abandon):
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("submit", Generation(after=0.5), *[Generation(after=50)] * 99)

    async def visit() -> None:
        async with client.generate_many(
            [f"picture {number}" for number in range(50)], concurrency=3, on_abandon=on_abandon
        ) as outcomes:
            await body(outcomes)

    visitor = asyncio.ensure_future(visit())
    [result] = await asyncio.gather(visitor, return_exceptions=True)
    assert type(result) is (type(None) if expected is None else expected)
    assert now() <= 2.25
    await settle()
    assert strays() == []
    abandoned = klein_emulator.accepted - 1  # one has finished
    assert abandoned >= 2
    assert klein_emulator.calls["cancel"] == (abandoned if on_abandon == "cancel" else 0)


@pytest.mark.parametrize(("body", "expected"), LEAVING)
async def test_leaving_in_any_way_ends_downloads_and_leaves_nothing_partial(
    klein_emulator, connect, tmp_path, monkeypatch, body, expected
):
    monkeypatch.setattr(download, "_FLUSH", 10)
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("submit", *[Generation(after=0.5)] * 9)
    klein_emulator.script("file", None, *[Reply(200, png(100), cut=Cut(90, silent=True))] * 9)

    async def visit() -> None:
        async with client.generate_many([f"picture {number}" for number in range(9)], directory=tmp_path) as outcomes:
            await body(outcomes)

    [result] = await asyncio.gather(asyncio.ensure_future(visit()), return_exceptions=True)
    assert type(result) is (type(None) if expected is None else expected)
    assert klein_emulator.calls["file"] == 9
    await client.aclose()
    assert strays() == []
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"]


async def test_a_cancelled_exit_still_leaves_nothing_running(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND)

    async def visit() -> None:
        async with client.generate_many(list("abc")):
            await asyncio.sleep(0.5)
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)  # arrives inside __aexit__

    [result] = await asyncio.gather(asyncio.ensure_future(visit()), return_exceptions=True)
    assert isinstance(result, asyncio.CancelledError)
    await settle()
    assert strays() == []


async def test_an_exit_that_is_cancelled_waits_for_those_who_are_slow_to_end(klein_emulator):
    ended = []

    async def run(_index: int, item: str) -> Any:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for _ in range(3):  # however often it is cancelled
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)
            ended.append(item)

    async def visit() -> None:
        async with FanOut(["a", "b"], run, concurrency=2, ordered=False):
            await asyncio.sleep(0.5)

    task = asyncio.ensure_future(visit())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait({task})
    assert (task.cancelled(), sorted(ended), strays()) == (True, ["a", "b"], [])


async def test_after_leaving_nothing_more_is_begun_even_where_an_item_ends_in_that_instant():
    begun: list[str] = []

    async def run(_index: int, item: str) -> Any:
        begun.append(item)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1 if len(begun) <= 2 else 0)
        raise InputRejectedError(status_code=422)

    async with FanOut(list("abc"), run, concurrency=2, ordered=False):
        await settle()
    assert begun == ["a", "b"]


async def test_the_first_of_several_failures_is_the_one_that_is_raised(klein_emulator):
    async def run(index: int, _item: str) -> Any:
        await asyncio.sleep(index)
        raise (AuthenticationError if index == 0 else InsufficientBalanceError)(status_code=400 + index)

    outcomes = []
    with pytest.raises(AuthenticationError):
        async with FanOut(["a", "b"], run, concurrency=2, ordered=False) as found:
            async for item in found:
                outcomes.append(type(item.error))
    assert outcomes == [AuthenticationError, InsufficientBalanceError]


async def test_a_worker_cancelled_from_outside_does_not_hang_the_reader(klein_emulator, connect):
    async with connect(polling=EVERY_SECOND).generate_many(list("ab")) as outcomes:
        await settle()
        for task in asyncio.all_tasks():
            if "FanOut._work" in repr(task.get_coro()):
                task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await anext(outcomes)


async def test_a_defect_in_the_callable_reaches_the_reader():
    async def run(_index: int, _item: str) -> Any:
        raise ZeroDivisionError

    async with FanOut(["a", "b"], run, concurrency=2, ordered=True) as outcomes:
        with pytest.raises(ZeroDivisionError):
            await anext(outcomes)


async def test_after_leaving_the_iterator_is_at_its_end(connect):
    client = connect()
    assert await client.generate_all([]) == []
    async with client.generate_many(["a"]) as outcomes:
        pass
    assert [found async for found in outcomes] == []


@pytest.mark.parametrize(("count", "concurrency"), [(20, 4), (300, 150)])
async def test_where_tasks_begin_eagerly_no_more_are_in_flight_and_nothing_nests(
    klein_emulator, connect, count, concurrency
):
    begin_tasks_eagerly()
    read: list[int] = []
    client = connect(polling=EVERY_SECOND, limits=Limits(max_in_flight=2 * concurrency, max_connections=50))
    async with client.generate_many(_rows(count, read), concurrency=concurrency) as outcomes:
        await asyncio.sleep(0.01)
        assert repr(outcomes) == f"<FanOut entered, {concurrency} of {concurrency} items under way>"
        assert len(read) <= concurrency
        assert [found.error async for found in outcomes] == [None] * count
    assert klein_emulator.accepted == count
    assert in_flight_peak(klein_emulator) <= concurrency
    assert strays() == []


@pytest.mark.parametrize(("body", "expected"), LEAVING)
async def test_where_tasks_begin_eagerly_leaving_leaves_nothing_running(klein_emulator, connect, body, expected):
    begin_tasks_eagerly()
    await test_leaving_in_any_way_leaves_nothing_running(klein_emulator, connect, body, expected, "cancel")


async def test_where_tasks_begin_eagerly_what_dooms_every_item_stops_the_rest(klein_emulator, connect):
    begin_tasks_eagerly()
    klein_emulator.script("submit", Generation(after=5.5), error_reply(401))
    outcomes = await connect(polling=EVERY_SECOND).generate_all(list("abcdef"), concurrency=2)
    assert [type(found.error) for found in outcomes] == [type(None), *[AuthenticationError] * 5]
    assert klein_emulator.calls["submit"] == 2


# --- misuse


@pytest.mark.parametrize("items", ["a prompt", b"bytes", {"prompt": "one"}, TextToImageInput(prompt="one"), 7, None])
async def test_one_input_instead_of_many_is_refused(klein_emulator, connect, items):
    with pytest.raises(InvalidInputError):
        connect().generate_many(items)


async def test_an_input_whose_own_code_raises_is_the_error_of_its_item(klein_emulator, connect):
    class Lost:
        def __fspath__(self) -> str:
            raise LookupError("the table is gone")

    lost, found = await connect().generate_all([{"prompt": "a", "image": Lost()}, "a"])
    assert (type(lost.error), str(lost.error)) == (
        InvalidInputError,
        "The input failed: LookupError: the table is gone",
    )
    assert (found.error, klein_emulator.accepted) == (None, 1)


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True, "8"])
async def test_a_concurrency_that_is_no_count_is_refused(connect, concurrency):
    with pytest.raises(InvalidInputError):
        connect().generate_many(["a"], concurrency=concurrency)


async def test_a_fan_out_can_be_entered_only_once(connect):
    fan_out = connect().generate_many([])
    async with fan_out:
        pass
    assert isinstance(await outcome(fan_out.__aenter__()), ConfigurationError)


async def test_a_fan_out_whose_maker_knows_no_end_can_be_stopped(klein_emulator):
    """Its items simply run to their end; no more are read."""
    read = []

    def numbers():
        for number in range(100):
            read.append(number)
            yield number

    async def make(index, item):
        await asyncio.sleep(1)
        raise InvalidInputError(f"no {item}")

    async with FanOut(numbers(), make, concurrency=3, ordered=False) as outcomes:
        await asyncio.sleep(0.5)
        outcomes.stop()
        ends = [outcome.index async for outcome in outcomes]
    assert (sorted(ends), read) == ([0, 1, 2], [0, 1, 2])


async def test_the_names_of_an_items_files_are_the_users(klein_emulator, connect, tmp_path):
    client = connect(polling=EVERY_SECOND)
    rows = [{"name": "cat", "prompt": "a cat"}, {"name": "dog", "prompt": "a dog"}]
    outcomes = await client.generate_all(
        rows,
        to_input=lambda row: row["prompt"],
        to_name=lambda row: row["name"],
        directory=tmp_path,
        width=64,
        height=64,
    )
    assert [path.name for entry in outcomes for path in entry.paths] == ["cat.png", "dog.png"]
    numbered = {"to_input": lambda _: "a cat", "to_name": lambda key: key, "directory": tmp_path}
    [entry] = await connect().generate_all([7], **numbered)
    assert [path.name for path in entry.paths] == ["7.png"], "the key of a database's row"


@pytest.mark.parametrize("name", ["../x", "a/b", "", "nul", "a\0b", 7.5, True, None, "x" * 201])
async def test_a_name_that_is_no_plain_file_name_is_refused_before_it_is_paid_for(
    klein_emulator, connect, tmp_path, name
):
    [entry] = await connect().generate_all(["a cat"], to_name=lambda _: name, directory=tmp_path)
    assert (type(entry.error), klein_emulator.accepted) == (InvalidInputError, 0)
    assert str(entry.error).startswith("to_name: ")


async def test_no_file_is_replaced_by_that_of_another_item_or_run(klein_emulator, connect, tmp_path):
    client = connect(polling=EVERY_SECOND)
    (tmp_path / "cat.png").write_bytes(b"from an earlier run")
    (tmp_path / "cat-3.png").symlink_to("cat.png")
    klein_emulator.script("submit", Generation(output={"images": ["{file}?1", "{file}?2"]}))
    outcomes = await client.generate_all(["a", "b", "c"], to_name=lambda _: "cat", directory=tmp_path, concurrency=1)
    names = [[path.name for path in entry.paths] for entry in outcomes]
    assert names == [["cat-2.png", "cat-4.png"], ["cat-5.png"], ["cat-6.png"]]
    assert (tmp_path / "cat.png").read_bytes() == b"from an earlier run"
    assert len(list(tmp_path.iterdir())) == 6


async def test_model_and_size_are_those_of_every_item_and_its_index_is_its_tag(klein_emulator, connect):
    events = Events()
    client = connect(polling=EVERY_SECOND, on_event=events)
    outcomes = await client.generate_all(["a", "b"], model="a/b", width=64, height=128)
    assert {event.tag for event in events} == {0, 1}  # the index
    bodies = [record.body for record in klein_emulator.records if record.endpoint == "submit"]
    assert [json.loads(body) for body in sorted(bodies)] == [
        {"prompt": prompt, "width": 64, "height": 128} for prompt in ("a", "b")
    ]
    assert {record.path for record in klein_emulator.records if record.endpoint == "submit"} == {"/v1/models/a/b"}
    # Without a directory nothing is fetched.
    assert ([entry.paths for entry in outcomes], klein_emulator.calls["file"]) == ([(), ()], 0)
