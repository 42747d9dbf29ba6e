"""Ray Data, in an environment that has it (the step `on_ray` of `.ci/run`): each row once, and paid for once."""

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from faulty_client import accepted_submits

from flux_klein_async import (
    Budget,
    FluxKleinClient,
    FluxKleinError,
    InvalidInputError,
    JournalError,
    Limits,
    SqliteJournal,
)
from flux_klein_async.emulator import Emulator
from tests.databases import Cluster, RedisServer
from tests.journal.helpers import journal_named, named
from tests.networks import until
from tests.pages import ROOT
from tests.programs import Programs
from tests.served import in_thread, once

# Ray and what it uses call deprecated functions of their own.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

MISSING = "Ray is not installed, and its tests need it: pip install 'flux_klein_async[ray]'"
ROWS = 5000


@pytest.fixture(scope="module", autouse=True)
def ray() -> Any:
    try:
        import ray
    except ImportError:
        if os.environ.get("FLUX_KLEIN_TEST_RAY"):  # not FLUX_KLEIN_TEST_REQUIRE: Ray has a step of its own
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    return ray


# --- an actor


class Actor:
    """An actor as Ray makes it, in this process."""

    def __init__(self, make_client: Callable[[], Any], **options: Any) -> None:
        from flux_klein_async.integrations.ray import _input_of, _RowGenerator

        options = {"to_input": _input_of, "to_id": None, "concurrency": 64, "directory": None, **options}
        self._actor = _RowGenerator(make_client, 4, options)

    async def __call__(self, *rows: dict[str, Any]) -> list[dict[str, Any]]:
        import pyarrow as pa

        made: list[dict[str, Any]] = (await self._actor(pa.Table.from_pylist(list(rows)))).to_pylist()
        return made


def client_of(emulator: Emulator, journal: Any = None, **options: Any) -> FluxKleinClient:
    return FluxKleinClient(emulator.api_key, base_url=emulator.base_url, journal=journal, **options)


def journaled(emulator: Emulator, path: Path) -> Callable[[], Any]:
    """Makes clients with journals of their own in one file."""

    @asynccontextmanager
    async def make_client() -> AsyncIterator[FluxKleinClient]:
        async with SqliteJournal(path) as journal, client_of(emulator, journal) as client:
            yield client

    return make_client


def prompts(*texts: str | None) -> list[dict[str, Any]]:
    return [{"prompt": text, "width": 64, "height": None} for text in texts]


async def test_a_row_comes_back_with_its_end_in_new_columns(live_emulator: Emulator, tmp_path: Path) -> None:
    actor = Actor(lambda: client_of(live_emulator), directory=tmp_path)
    [good, bad] = await actor({"n": 7, "prompt": "a", "error": "old"}, {"n": 8, "prompt": None, "error": None})
    del good["request_id"], good["urls"]
    [file] = good.pop("files")
    assert Path(file).parent == tmp_path
    assert good == {"n": 7, "prompt": "a", "state": "completed", "cost_usd": 0.01, "charged": "yes", "error": None}
    assert (bad["n"], bad["charged"], bad["urls"], bad["cost_usd"]) == (8, "no", [], None)
    assert bad["error"].startswith("InputRejectedError: ")


async def test_rows_with_equal_inputs_are_one_item_of_a_journal(live_emulator: Emulator, tmp_path: Path) -> None:
    made = journaled(live_emulator, tmp_path / "run.sqlite")
    one, two = Actor(made), Actor(made)
    # In one batch, in batches at once, in an actor that waits until the other is done with them, and later.
    batches = await asyncio.gather(*(actor(*prompts("a", "b", "a")) for actor in (one, two, one)))
    batches.append(await one(*prompts("b", "a", "b")))
    assert live_emulator.accepted == 2
    assert len({row["request_id"] for rows in batches for row in rows}) == 2
    assert {row["error"] for rows in batches for row in rows} == {None}
    ids = Actor(made, to_input=lambda row: row["prompt"], to_id=lambda row: f"{row['prompt']} {row['n']}")
    await ids({"prompt": "a", "n": 1}, {"prompt": "a", "n": 2})
    assert live_emulator.accepted == 4
    await Actor(lambda: client_of(live_emulator))(*prompts("a", "a"))  # without a journal
    assert live_emulator.accepted == 6


async def test_a_row_that_another_run_keeps_is_given_up_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flux_klein_async.integrations.ray as module

    monkeypatch.setattr(module, "_RETRY", 0.01)
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    async with Emulator(profile="fixed:60") as emulator:
        made = journaled(emulator, tmp_path / "run.sqlite")
        async with made() as client, client.generate_many(prompts("a"), to_input=module._input_of):
            await until(lambda: emulator.accepted)
            [row] = await Actor(made)(*prompts("a"))
    assert row["error"].startswith("ItemClaimedError: ")


async def test_what_dooms_every_submit_ends_the_rows_of_the_actor_and_not_the_job(live_emulator: Emulator) -> None:
    wrong = Actor(lambda: FluxKleinClient("wrong", base_url=live_emulator.base_url), concurrency=1)
    rows = await wrong(*prompts("a", "b"))
    rows += await wrong(*prompts("c"))
    assert [(row["error"].split(":")[0], row["charged"]) for row in rows] == [("AuthenticationError", "no")] * 3
    assert len(live_emulator.records) == 1
    failing = Actor(lambda: client_of(live_emulator), to_input=lambda row: row["nothing"])
    [row] = await failing(*prompts("a"))
    assert row["error"].startswith("InvalidInputError: to_input failed: KeyError")


async def test_a_journal_that_was_lost_for_a_while_is_used_again(live_emulator: Emulator) -> None:
    class Journaled:
        """A journal that cannot be reached once."""

        errors: ClassVar[list[FluxKleinError]] = [JournalError("It cannot be reached")]

        async def record(self, entry: Any) -> None:
            if self.errors:
                raise self.errors.pop()

    actor = Actor(lambda: client_of(live_emulator, Journaled()), concurrency=1)
    [lost] = await actor(*prompts("a"))
    [found] = await actor(*prompts("a"))
    assert (lost["error"], lost["charged"], found["error"]) == ("JournalError: It cannot be reached", "no", None)


# --- a cluster


@pytest.fixture(scope="module")
def service() -> Iterator[Emulator]:
    """What the environment of the nodes names."""
    with in_thread(Emulator(profile="fixed:0.01")) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def nodes(ray: Any, service: Emulator) -> Iterator[Any]:
    """A head and a second node, each with one core."""
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RUNCOMFY_MODEL_API_BASE", service.base_url)
        patched.setenv("RUNCOMFY_API_TOKEN", service.api_key)
        nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.second = nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def maker(emulator: Emulator, journal: str, **limits: int) -> Callable[[], FluxKleinClient]:
    """Makes an actor's client, in another process."""
    address, token = emulator.base_url, emulator.api_key

    def make_client() -> FluxKleinClient:
        options = {"limits": Limits(**limits), "journal": journal_named(journal), "budget": Budget(1000)}
        return FluxKleinClient(token, base_url=address, **options)

    return make_client


def test_options_are_checked_before_anything_runs(ray: Any, nodes: Any) -> None:
    from flux_klein_async.integrations.ray import generate_dataset

    for concurrency in (0, 1.5, True):
        with pytest.raises(InvalidInputError, match="concurrency"):
            generate_dataset(ray.data.from_items(["a"]), make_client=FluxKleinClient, concurrency=concurrency)  # type: ignore[arg-type]


def test_the_program_of_the_page_runs(
    ray: Any, nodes: Any, service: Emulator, cluster: Cluster, redis_server: RedisServer, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "prompts").mkdir()
    pq.write_table(pa.Table.from_pylist(prompts("a", "b", "c")), tmp_path / "prompts" / "1.parquet")
    before = service.accepted
    Programs(tmp_path, service, cluster, redis_server).run("rows.py", RAY_ADDRESS=nodes.address)
    ended = pq.read_table(tmp_path / "ends").to_pylist()
    assert [row["error"] for row in ended] == [None] * 3
    assert {Path(file) for row in ended for file in row["files"]} == set((tmp_path / "pictures").iterdir())
    assert service.accepted - before == 3


def test_rows_are_read_and_written_in_other_formats(ray: Any, nodes: Any, tmp_path: Path) -> None:
    from flux_klein_async.integrations.ray import generate_dataset

    Path(tmp_path, "in.csv").write_text("prompt,width,height\na,64,64\nb,,\n")
    rows = ray.data.read_csv(f"{tmp_path}/in.csv")
    made = generate_dataset(rows, make_client=FluxKleinClient).materialize()
    assert {row["error"] for row in made.take_all()} == {None}
    made.write_json(f"{tmp_path}/jsonl")
    [expression] = re.findall(r"`(pictures\.map.*)`", (ROOT / "docs/howto/scale.md").read_text())
    eval(expression.replace("...", repr(f"{tmp_path}/csv")), {"pictures": made})
    for again in (ray.data.read_json(f"{tmp_path}/jsonl"), ray.data.read_csv(f"{tmp_path}/csv")):
        assert sorted(row["request_id"] for row in again.take_all()) == sorted(r["request_id"] for r in made.take_all())


def test_a_lost_node_costs_nothing_and_no_row(ray: Any, nodes: Any, cluster: Cluster) -> None:
    from flux_klein_async.integrations.ray import generate_dataset

    journal = named(cluster.new_location())
    with in_thread(Emulator(profile="fixed:0.2", max_records=500_000)) as emulator:
        make_client = maker(emulator, journal, max_in_flight=48)
        # The emulator must go on meanwhile.
        lose = Thread(target=lambda: nodes.remove_node(nodes.second, allow_graceful=False))
        once(emulator, lambda: emulator.accepted >= ROWS // 3, lose.start)
        texts = [f"picture {number}" for number in range(ROWS)]
        rows = ray.data.from_items(prompts(*texts))
        ended = generate_dataset(rows, make_client=make_client, actors=2, concurrency=48).take_all()
        lose.join()
        assert sum(node["Alive"] for node in ray.nodes()) == 1
        assert Counter(row["prompt"] for row in ended) == Counter(texts)
        unsure = {row["prompt"] for row in ended if row["error"] is not None}
        assert all(row["error"] is None or row["error"].startswith("SubmissionUncertain") for row in ended)
        submits = {submit.prompt: submit.request_id for submit in accepted_submits(emulator.records)}
        assert len(submits) == emulator.accepted, "paid for twice"
        known = {row["prompt"]: row["request_id"] for row in ended if row["prompt"] not in unsure}
        assert known == {prompt: submits[prompt] for prompt in known}
        assert submits.keys() <= known.keys() | unsure
        print(f"{emulator.accepted} accepted, {len(unsure)} uncertain")
        # The same job again: all of it comes from the journal.
        again = generate_dataset(rows, make_client=make_client, concurrency=48).take_all()
        assert {row["prompt"]: row["request_id"] for row in again if row["error"] is None} == known
        assert emulator.accepted == len(submits)
