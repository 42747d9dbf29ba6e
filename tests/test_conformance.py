"""One suite over both forms of the emulator: what holds in process holds on real sockets."""

import gzip
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from flux_klein_async import (
    APIConnectionError,
    AuthenticationError,
    FixedPolling,
    FluxKleinClient,
    GenerationFailedError,
    InputRejectedError,
    InvalidResponseError,
    NotFoundError,
    RetryPolicy,
    ServerError,
    SubmissionUncertainError,
)
from flux_klein_async.emulator import (
    Emulator,
    Endless,
    Engine,
    Garbage,
    Generation,
    InProcessEmulator,
    Reply,
    Reset,
    Truncate,
    error_reply,
)
from tests.fakes import outcome, png

Pair = tuple[Engine, FluxKleinClient]


@pytest_asyncio.fixture(params=["in process", "loopback", "loopback, with an aiohttp that the client does not know"])
async def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    """An emulator and a client of it, on the same real loop in both forms."""
    options: dict[str, Any] = {"polling": FixedPolling(0.005), "retry": RetryPolicy(attempts=3, initial=0.001)}
    emulator: InProcessEmulator | Emulator
    if request.param == "in process":
        emulator = InProcessEmulator(profile="fixed:0.01")
        options["session"] = emulator.session()
    else:
        emulator = Emulator(profile="fixed:0.01")
        monkeypatch.setattr("flux_klein_async.transport.aiohttp._KNOWN", request.param == "loopback")
    async with emulator, FluxKleinClient(emulator.api_key, base_url=emulator.base_url, **options) as client:
        yield emulator, client


async def test_pictures_of_the_asked_size_come_out_and_all_differ(pair, tmp_path):
    emulator, client = pair
    outcomes = await client.generate_all(["a snow leopard"] * 8)
    digests = set()
    for found in outcomes:
        [path] = await client.download(found.result, tmp_path)
        data = path.read_bytes()
        assert data[16:24] == (1024).to_bytes(4, "big") * 2  # the PNG's own width and height
        digests.add(hashlib.sha256(data).hexdigest())
    assert (len(digests), emulator.accepted) == (8, 8)


SUBMITS = [
    (Reset(), SubmissionUncertainError, 0),
    (Reset(accepted=True), SubmissionUncertainError, 1),
    (Garbage(accepted=True), SubmissionUncertainError, 1),
    (Truncate(accepted=True), SubmissionUncertainError, 1),
    (Endless(), SubmissionUncertainError, 0),
    (error_reply(500, accepted=True), SubmissionUncertainError, 1),
    (error_reply(401), AuthenticationError, 0),
    (error_reply(422, 422001), InputRejectedError, 0),
    (Generation(ends="failed", error="no"), GenerationFailedError, 1),
]


@pytest.mark.parametrize(("answer", "kind", "accepted"), SUBMITS)
async def test_a_submit_that_goes_wrong_ends_the_same_way(pair, answer, kind, accepted):
    emulator, client = pair
    emulator.script("submit", answer)
    assert type(await outcome(client.generate("a cat"))) is kind
    assert (emulator.calls["submit"], emulator.accepted) == (1, accepted)


READS = [
    (Reset(), APIConnectionError),
    (Garbage(), InvalidResponseError),
    (Truncate(), APIConnectionError),
    (Endless(), InvalidResponseError),
    (Reply(200, "<html>"), InvalidResponseError),
    (error_reply(404, 404001), NotFoundError),
    (error_reply(500), ServerError),
]


@pytest.mark.parametrize(("answer", "kind"), READS)
async def test_a_read_that_goes_wrong_ends_the_same_way(pair, answer, kind):
    emulator, client = pair
    emulator.script("model", *[answer] * 9)
    assert type(await outcome(client.get_model())) is kind


async def test_a_request_that_nobody_made_is_not_found(pair):
    _, client = pair
    for verb in (client.status, client.result, client.cancel):
        assert type(await outcome(verb("never-made"))) is NotFoundError


async def test_an_answer_with_large_headers_and_a_compressed_picture_are_read(pair):
    emulator, client = pair
    emulator.script("cancel", Reply(200, b'{"status": "cancelled"}', {"X-1": "x" * 30_000, "X-2": "x" * 30_000}))
    assert (await client.cancel("r-1")).cancelled
    emulator.script("file", Reply(200, gzip.compress(b"\x89PNG\r\n\x1a\n"), {"Content-Encoding": "gzip"}))
    [picture] = await client.download_bytes(await client.generate("a cat"))
    assert picture == b"\x89PNG\r\n\x1a\n"


async def test_a_large_body_is_accepted(pair, tmp_path):
    emulator, client = pair
    (tmp_path / "in.png").write_bytes(png(600_000))
    edit = {"prompt": "night", "image_urls": [tmp_path / "in.png"]}
    assert (await client.generate(edit, model="blackforestlabs/flux-2/dev/edit")).urls
    assert len(emulator.asked("submit")[-1].body) > 800_000


async def test_a_wrong_token_is_refused(pair):
    emulator, _ = pair
    options: dict[str, Any] = {}
    if isinstance(emulator, InProcessEmulator):
        options["session"] = emulator.session()
    async with FluxKleinClient("some-other-token", base_url=emulator.base_url, **options) as client:
        assert type(await outcome(client.submit("a cat"))) is AuthenticationError
