"""The commonest slips, each answered with what to write instead."""

import asyncio
import inspect
import re
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from flux_klein_async import (
    AdaptivePolling,
    Budget,
    ClientClosedError,
    ConfigurationError,
    ExponentialPolling,
    FixedPolling,
    FluxKleinClient,
    FluxKleinError,
    GenerationOutput,
    GenerationResult,
    InvalidInputError,
    Limits,
    Outcome,
    PostgresJournal,
    RedisLimiter,
    RequestState,
    RetryPolicy,
    SqliteJournal,
    TextToImage9BInput,
    TextToImageInput,
)
from flux_klein_async.emulator import Emulator, InProcessEmulator
from flux_klein_async.misuse import slip
from tests.served import in_thread

MADE_AT_IMPORT = FluxKleinClient("some-token", base_url="http://127.0.0.1:9")

RESULT = GenerationResult(
    request_id="abc", state=RequestState.COMPLETED, output=GenerationOutput(image="https://files.runcomfy.net/a.png")
)


class Frame:
    """As far as a data frame of pandas or polars is known here; iterating over one gives its columns' names."""

    columns, dtypes = ("prompt",), (str,)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.fixture
def klein_served():
    with in_thread(Emulator(profile="fixed:0.01")) as emulator:
        yield emulator


async def _for_over(made: Any) -> None:
    for _ in made:
        pass


async def _with(made: Any) -> None:
    with made:
        pass


async def _await(made: Any) -> None:
    await made


async def _async_for(made: Any) -> None:
    async for _ in made:
        pass


async def _forgotten(client: FluxKleinClient) -> None:
    forgotten: Any = client.generate("a")
    try:
        await client.generate_all(forgotten)
    finally:
        forgotten.close()


SLIPS: dict[str, tuple[Callable[[FluxKleinClient], Any], Callable[[Any], Any], type[Exception], str]] = {
    "with client": (lambda c: c, _with, TypeError, "Use `async with`, not `with`, for a FluxKleinClient"),
    "with generate_many": (lambda c: c.generate_many(["a"]), _with, TypeError, "Use `async with`"),
    "with a journal": (lambda _: SqliteJournal("run.sqlite"), _with, TypeError, "not `with`, for a SqliteJournal"),
    "with an emulator": (lambda _: Emulator(), _with, TypeError, "Use `async with`, not `with`: async with Emulator()"),
    "with an emulator in process": (lambda _: InProcessEmulator(), _with, TypeError, "async with InProcessEmulator()"),
    "close a client": (
        lambda c: c,
        lambda c: c.close(),
        TypeError,
        "Use `async with`, or `await aclose()`, not `close()`, for a FluxKleinClient",
    ),
    "close generate_many": (lambda c: c.generate_many(["a"]), lambda f: f.close(), TypeError, "Use `async with`, not"),
    "for over generate_many": (lambda c: c.generate_many(["a"]), _for_over, TypeError, "Use `async for`, not `for`"),
    "for over updates": (lambda c: c.updates("abc"), _for_over, TypeError, "Use `async for`, not `for`"),
    "for over list_models": (lambda c: c.list_models(), _for_over, TypeError, "Use `async for`, not `for`"),
    "await list_models": (lambda c: c.list_models(), _await, TypeError, "Use `async for`, not `await`, over a ModelL"),
    "await updates": (lambda c: c.updates("abc"), _await, TypeError, "Use `async for`, not `await`, over a Updates"),
    "names of files": (
        lambda c: c,
        lambda c: c.generate_many(["a"], names=str),
        TypeError,
        "by to_name= of generate_m",
    ),
    "a name of a file": (
        lambda c: c,
        lambda c: _await(c.download(RESULT, "out", name="cat.png")),
        TypeError,
        "download() has no argument 'name'. Files are named by names=['cat.png'] of download",
    ),
    "what download does not take": (
        lambda c: c,
        lambda c: _await(c.download(RESULT, "out", overwrite=True)),
        TypeError,
        "download() has no argument 'overwrite'. It takes result, directory, names, timeout",
    ),
    **{
        f"{name} of what an earlier run left": (
            lambda c: c,
            lambda c, name=name: c.generate_many(["a"], **{name: True}),
            TypeError,
            f"SqliteJournal(path, {name}=True)",
        )
        for name in ("retry_failed", "resubmit_uncertain")
    },
    **{
        f"{name}= of the client": (
            lambda c: c,
            lambda c, name=name: _await(c.generate("a", **{name: 3})),
            TypeError,
            f"generate() has no argument '{name}'. Write FluxKleinClient({advice}=",
        )
        for name, advice in (
            *((part, part) for part in ("api_key", "budget", "journal", "on_event", "retry", "session", "polling")),
            ("limit", "limits"),
            ("token", "api_key"),
            ("max_retries", "retry"),
        )
    },
    **{
        f"a field for {name}": (
            lambda c, name=name: c,
            lambda c, name=name: _await(getattr(c, name)(["a"], seed=1)),
            TypeError,
            "the fields of another model go into the input: {'prompt': ..., 'seed': ...}",
        )
        for name in ("submit", "generate", "generate_many", "generate_all")
    },
    **{
        f"{name}= of other clients": (
            lambda c: c,
            lambda c, name=name: _await(c.generate(**{name: "x"})),
            TypeError,
            f"generate() has no argument '{name}'. {advice}",
        )
        for name, advice in {
            "prompt": "The prompt is the first argument",
            "output_dir": "One picture is saved by client.download(result, directory)",
            "num_images": "A request makes one picture",
            "size": "The sides are width= and height=",
        }.items()
    },
    **{
        f"{verb}({name}=)": (
            lambda c: c,
            lambda c, verb=verb, name=name: _await(getattr(c, verb)(["a"], **{name: 8})),
            TypeError,
            f"{verb}() has no argument '{name}'{advice}",
        )
        for verb, name, advice in (
            ("generate", "widht", "; did you mean width=?"),
            ("submit", "modle", "; did you mean model=?"),
            ("generate_many", "key", ". An item's stable id is to_id=lambda item: ..."),
            ("generate_all", "max_concurrency", ". How many items are worked on at a time is concurrency="),
            ("generate_all", "return_exceptions", ". No item's error is raised: each is in outcome.error"),
            ("generate_many", "progress", ". Write FluxKleinClient(on_event=...), or count the outcomes"),
            ("generate", "key", ". Write FluxKleinClient(api_key=...)"),
            ("generate_many", "concurency", "; did you mean concurrency=?"),
            ("generate_all", "max_in_flight", ". Write FluxKleinClient(limits=Limits(max_in_flight=...))"),
        )
    },
    **{
        f"{verb} with a size that has no name": (
            lambda c: c,
            lambda c, verb=verb: _await(getattr(c, verb)(["a"], 512, 512)),
            TypeError,
            f"FluxKleinClient.{verb}() takes these arguments by name: model=, width=, height=, ",
        )
        for verb in ("submit", "generate", "generate_many", "generate_all")
    },
    "a data frame": (lambda c: c.generate_all(Frame()), _await, InvalidInputError, "frame.to_dict('records')"),
    "a coroutine for many": (
        lambda c: c,
        _forgotten,
        InvalidInputError,
        "a coroutine: write `await` before FluxKleinClient.generate(...)",
    ),
    "a function for many": (lambda c: c.generate_all(_await), _await, InvalidInputError, "not function: call it"),  # type: ignore[arg-type]
    "no directory for a file": (lambda c: c.download(RESULT, None), _await, InvalidInputError, "not NoneType"),
    "a function for names": (
        lambda c: c,
        lambda c: c.download(RESULT, "out", names=str),
        InvalidInputError,
        "names must be a list of 1 file names, one for each file",
    ),
    **{
        f"a wrong {name}": (
            lambda c: c,
            lambda c, name=name: _await(c.generate_all(["a"], **{name: "\n8"})),
            InvalidInputError,
            f"{name} must be {what}, not '\\n8'",
        )
        for name, what in {
            "concurrency": "a whole number of at least 1, or None",
            "timeout": "a number of seconds, 0 or more, or None for no limit",
            "on_abandon": '"cancel" or "leave"',
        }.items()
    },
    "names without a directory": (
        lambda c: c.generate_all(["a"], to_name=str),
        _await,
        InvalidInputError,
        "to_name names files, and none is saved: write directory= too",
    ),
    **{
        f"{given} for a directory": (
            lambda c: c,
            lambda c, verb=verb, given=given: _await(getattr(c, verb)(RESULT, directory=given)),
            InvalidInputError,
            f"directory: '{given}' looks like a file; write its directory, and name files with {names}",
        )
        for verb, given, names in (
            ("download", "out/cat2.PNG", "names=[...]"),
            ("generate_all", "cat.webm", "to_name="),
        )
    },
    "a number for a directory": (
        lambda c: c.generate_all(["a"], directory=7),  # type: ignore[arg-type]
        _await,
        InvalidInputError,
        "directory must be a path, such as 'out', not int",
    ),
    "an outcome for a result": (
        lambda c: c.download_bytes(Outcome(index=0, item="a", result=RESULT)),  # type: ignore[arg-type]
        _await,
        InvalidInputError,
        "not to Outcome; pass its .result",
    ),
    "a queue": (lambda c: c.generate_all(asyncio.Queue()), _await, InvalidInputError, "an async generator that gets"),  # type: ignore[arg-type]
    "bytes for a search": (lambda c: c.list_models(search=b"x"), _await, InvalidInputError, "search must be text"),
    "half a letter": (lambda c: c.list_models(category="\ud800"), _await, InvalidInputError, "a URL can hold"),
    "await generate_many": (
        lambda c: c.generate_many(["a"]),
        _await,
        TypeError,
        "Use `async with`, not `await`, for a FanOut",
    ),
    "generate_many not entered": (
        lambda c: c.generate_many(["a"]),
        _async_for,
        ConfigurationError,
        "async with client.generate_many(...) as outcomes",
    ),
    "await a handle": (lambda c: c.handle("abc"), _await, TypeError, "RequestHandle"),
    "a string for many": (lambda c: c.generate_all("a cat"), _await, InvalidInputError, "generate_all take many in"),
    "a dict for many": (lambda c: c.generate_all({"prompt": "a"}), _await, InvalidInputError, "put it into a list"),
    "bytes for a prompt": (lambda c: c.generate(b"a cat"), _await, InvalidInputError, "not bytes"),  # type: ignore[arg-type]
    "a number for a result": (lambda c: c.download_bytes(7), _await, InvalidInputError, "GenerationResult, not to int"),  # type: ignore[arg-type]
    "a handle for a result": (lambda c: c.download_bytes(c.handle("a")), _await, InvalidInputError, "its result first"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", SLIPS)
async def test_a_slip_says_what_to_write_instead(klein_emulator, klein_client, name):
    make, slip_up, kind, text = SLIPS[name]
    with pytest.raises(kind, match=re.escape(text)):
        await slip_up(make(klein_client))
    assert sum(klein_emulator.calls.values()) == 0


def test_without_an_asyncio_loop_a_call_says_that_it_needs_one(tmp_path):
    """Under trio, or where a coroutine is driven by hand."""
    journal, token = SqliteJournal(tmp_path / "run.sqlite"), "some-token"
    for make in (
        lambda: FluxKleinClient(token).generate("a cat"),
        lambda: FluxKleinClient(token).generate_many(["a cat"]).__aenter__(),
        lambda: FluxKleinClient(token).aclose(),
        journal.open,
    ):
        made = make()
        with pytest.raises(FluxKleinError, match="No asyncio event loop runs here: use asyncio"):
            made.send(None)
    with pytest.raises(RuntimeError, match="The emulator needs an asyncio event loop: use asyncio"):
        Emulator().__aenter__().send(None)


def test_what_is_not_awaited_does_not_claim_to_be_awaitable(klein_client):
    """Frameworks and containers await whatever `isawaitable` says can be awaited."""
    for made in (klein_client, klein_client.handle("abc")):
        assert not inspect.isawaitable(made)
        assert not isinstance(made, Awaitable)


async def _later(_: object) -> None: ...


class _Later:
    async def __call__(self, _: object) -> None: ...


@pytest.mark.parametrize("function", [_later, _Later()], ids=["function", "object"])
async def test_a_coroutine_function_that_nobody_would_await_is_refused(klein_emulator, klein_client, function):
    with pytest.raises(ConfigurationError, match="on_event must be a plain function, not `async def`"):
        FluxKleinClient("some-token", on_event=function)
    for wait in (
        klein_client.generate("a cat", on_status=function),
        klein_client.wait_for_result("a", on_status=function),
    ):
        with pytest.raises(InvalidInputError, match="on_status must be a plain function, not `async def`"):
            await wait
    assert sum(klein_emulator.calls.values()) == 0


@pytest.mark.parametrize(
    ("part", "given", "advice"),
    [
        ("journal", "run.sqlite", "write SqliteJournal(path)"),
        ("budget", 25, "write Budget(max_usd)"),
        ("polling", 0.5, "write FixedPolling(seconds)"),
        ("limits", 64, "write Limits(max_in_flight=...)"),
        ("on_event", "print", "takes a function of one event, such as print, not str"),
        ("retry", 3, "such as RetryPolicy(attempts=3)"),
        ("journal", SqliteJournal, "which is a class: write SqliteJournal(path)"),
        ("budget", Budget, "which is a class: write Budget(max_usd)"),
        ("polling", FixedPolling, "which is a class: write FixedPolling(seconds)"),
        ("base_url", 7, "The base URL must be text, not int"),
    ],
)
def test_what_stands_for_a_part_of_a_client_is_told_what_to_write(part, given, advice):
    with pytest.raises(ConfigurationError, match=re.escape(advice)):
        FluxKleinClient("some-token", **{part: given})


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("token", "Write FluxKleinClient(api_key=...)"),
        ("key", "Write FluxKleinClient(api_key=...)"),
        ("api_token", "Write FluxKleinClient(api_key=...)"),
        ("directory", "generate_many and generate_all take directory="),
        ("to_id", "Write client.generate_many(..., to_id=...)"),
        ("retry_failed", "SqliteJournal(path, retry_failed=True)"),
        ("limit", "did you mean limits=?"),
        ("api_kye", "did you mean api_key=?"),
        ("max_in_flight", "limits=Limits(max_in_flight=...)"),
        ("max_inflight", "limits=Limits(max_in_flight=...)"),
        ("max_retries", "retry=RetryPolicy(attempts=...)"),
        ("version", "It takes api_key, base_url"),
        ("verbose", "It takes api_key, base_url, model, timeout"),
    ],
)
def test_an_argument_that_a_client_does_not_take_is_told_what_to_write_and_its_value_is_in_no_frame(name, advice):
    with pytest.raises(TypeError, match=re.escape(advice)) as caught:
        FluxKleinClient(**{name: "secret"})
    _, *frames = [frame.f_locals for frame, _ in traceback.walk_tb(caught.tb)]  # the first is this test's
    assert "secret" not in repr(frames)
    assert str(inspect.signature(FluxKleinClient)).startswith("(api_key: str | None = None, *, base_url")


@pytest.mark.parametrize(
    ("model", "given", "named"),
    [
        (TextToImageInput, ["a fox"], "TextToImageInput(prompt='a fox')"),
        (TextToImage9BInput, ["a fox", 512], "TextToImage9BInput(prompt='a fox', width=512)"),
        (GenerationOutput, [1] * 9, "GenerationOutput(image=1, video=1, images=1, videos=1, others=1, not_taken=1)"),
    ],
)
def test_a_field_without_its_name_is_told_the_name(model, given, named):
    with pytest.raises(TypeError, match=re.escape(f"The fields are given by name: {named}")):
        model(*given)


def test_a_subclass_of_the_client_takes_arguments_of_its_own():
    class Ours(FluxKleinClient):
        def __init__(self, *, team: str) -> None:
            super().__init__(f"token-of-{team}")

    assert isinstance(Ours(team="a"), FluxKleinClient)


@pytest.mark.parametrize(
    ("part", "name", "advice"),
    [
        (Limits, "concurrency", "Write max_in_flight= here, or concurrency= in a call of generate_many"),
        (Limits, "timeout", "Write FluxKleinClient(timeout=...)"),
        (RetryPolicy, "max_retries", "Write attempts=, which counts the first one too"),
        (Budget, "usd", "It takes max_usd"),
        (SqliteJournal, "resubmit_uncertian", "did you mean resubmit_uncertain=?"),
        (PostgresJournal, "shema", "did you mean schema=?"),
        (RedisLimiter, "max_inflight", "did you mean max_in_flight=?"),
        (AdaptivePolling, "max", "It takes poll_cost, minimum, maximum, store"),
        (FixedPolling, "seconds", "It takes interval, first"),
        (ExponentialPolling, "multiplyer", "did you mean multiplier=?"),
    ],
)
def test_an_argument_that_a_part_does_not_take_is_told_what_to_write(part, name, advice):
    with pytest.raises(TypeError, match=re.escape(f"{part.__name__}() has no argument {name!r}")) as caught:
        part(**{name: 1})
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("part", "given", "named"),
    [
        (FluxKleinClient, ["secret", "https://h.example"], "base_url=, model="),
        (Limits, [8], "max_in_flight="),
        (AdaptivePolling, [0.01], "poll_cost="),
        (SqliteJournal, ["run.sqlite", True], "retry_failed="),
    ],
)
def test_an_argument_without_its_name_is_told_which_have_one(part, given, named):
    with pytest.raises(TypeError, match=re.escape(f"{part.__name__}() takes these arguments by name: {named}")):
        part(*given)


@pytest.mark.parametrize("name", ["to_input", "to_id", "to_name", "on_status"])
async def test_what_is_no_function_is_refused_with_an_example(klein_emulator, klein_client, name):
    verb, given = (klein_client.generate, "a") if name == "on_status" else (klein_client.generate_all, ["a"])
    for wrong, problem in (("id", f"^{name} takes a function .*, such as .*, not str"), (_later, "not `async def`")):
        with pytest.raises(InvalidInputError, match=problem):
            await verb(given, **{name: wrong})
    assert sum(klein_emulator.calls.values()) == 0


@pytest.mark.parametrize(
    "verb", ["download", "download_bytes", "status", "result", "cancel", "wait_for_result", "generate"]
)
async def test_a_forgotten_await_is_named_where_its_coroutine_is_used(klein_emulator, klein_client, verb):
    forgotten = klein_client.generate("a cat")
    arguments = [forgotten, *(["out"] if verb == "download" else [])]
    with pytest.raises(InvalidInputError, match=r"a coroutine: write `await` before FluxKleinClient\.generate"):
        await getattr(klein_client, verb)(*arguments)
    forgotten.close()
    assert sum(klein_emulator.calls.values()) == 0


async def test_a_forgotten_await_warns_with_the_verbs_name(klein_client):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        klein_client.generate("a cat")
    # In debug mode further lines say where it was made.
    first_lines = [str(found.message).splitlines()[0] for found in caught]
    assert first_lines == ["coroutine 'FluxKleinClient.generate' was never awaited"]


def test_what_is_no_coroutine_is_named_by_its_type():
    assert (slip(None), slip([])) == ("NoneType", "list")


async def test_a_client_that_is_closed_says_so(connect):
    client = connect()
    async with client:
        pass
    with pytest.raises(ClientClosedError, match="The client is closed: make another"):
        await client.generate("a cat")
    with pytest.raises(ClientClosedError):
        async with client:
            pass


def test_a_client_made_at_import_works_in_the_loop_that_uses_it_first_and_only_there():
    async def ask() -> None:
        with pytest.raises(
            ConfigurationError,
            match="make one for each loop, in the coroutine that uses it and not where a module is imported",
        ):
            await MADE_AT_IMPORT.status("abc")

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(MADE_AT_IMPORT.__aenter__())
        second.run(ask())
        first.run(MADE_AT_IMPORT.aclose())


def test_a_client_made_without_a_loop_generates_in_one(klein_served):
    client = FluxKleinClient(klein_served.api_key, base_url=klein_served.base_url)

    async def main() -> GenerationResult:
        async with client:
            return await client.generate("a cat", width=64, height=64)

    assert asyncio.run(main()).image_url.startswith(klein_served.base_url)
