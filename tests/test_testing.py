"""The pytest plugin, as a project that installs it sees it."""

import sys

import pytest

pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]

OPTIONS = ("-q", "--strict-markers", "-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function")

APPLICATION_TEST = """
import asyncio

import pytest

async def test_virtual_time(klein_emulator, klein_client):
    result = await klein_client.generate("a cat", width=64, height=64)
    await asyncio.sleep(3600)
    assert klein_emulator.accepted == 1
    assert asyncio.get_running_loop().time() > 3600
    assert (await klein_client.download_bytes(result))[0].startswith(b"\\x89PNG")

async def test_real_time_elsewhere():
    assert type(asyncio.get_running_loop()).__name__ != "VirtualTimeLoop"

def test_without_a_loop():
    pass

@pytest.mark.klein_emulator(profile="fixed:30", seed=3)
class TestSlow:
    @pytest.mark.klein_emulator(workers=1)
    async def test_marked(self, klein_emulator, klein_client):
        assert (klein_emulator.seed, klein_emulator.workers) == (3, 1)
        await klein_client.generate_all(["a", "b"])
        assert asyncio.get_running_loop().time() >= 60
        with pytest.raises(AttributeError):
            klein_emulator.workers = 2  # too late

async def test_unmarked(klein_emulator):
    assert klein_emulator.workers is None
"""


def test_the_fixtures_work_in_a_project_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(APPLICATION_TEST)
    run = pytester.runpytest_inprocess(*OPTIONS, "-o", "asyncio_mode=auto")
    run.assert_outcomes(passed=5)


def test_a_projects_own_choice_of_loop_goes_first(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
import asyncio

class Mine(asyncio.SelectorEventLoop):
    pass

def pytest_asyncio_loop_factories(config, item):
    return {"mine": Mine}
"""
    )
    pytester.makepyfile(
        """
import asyncio

async def test_loop():
    assert type(asyncio.get_running_loop()).__name__ == "Mine"
"""
    )
    run = pytester.runpytest_inprocess(*OPTIONS, "-o", "asyncio_mode=auto")
    run.assert_outcomes(passed=1)


def test_without_a_mode_the_test_says_what_to_write(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
import pytest

async def test_that_nothing_awaits(klein_client):
    pass

@pytest.mark.asyncio
async def test_that_is_marked(klein_client):
    assert (await klein_client.generate("a cat")).urls

def test_that_awaits_nothing(klein_client, klein_emulator):
    assert klein_emulator.base_url in repr(klein_client)

@pytest.mark.asyncio
@pytest.mark.klein_emulator("fixed:9")
async def test_with_an_option_without_its_name(klein_client):
    pass
"""
    )
    run = pytester.runpytest_inprocess(*OPTIONS, "-o", "asyncio_mode=strict")
    run.assert_outcomes(passed=2, errors=2)
    assert '@pytest.mark.klein_emulator takes names, as in (profile="fixed:9")' in run.stdout.str()
    assert 'asyncio_mode = "auto"' in run.stdout.str()
    assert "@pytest.mark.asyncio" in run.stdout.str()


WITHOUT_PYTEST_ASYNCIO = """
import importlib.util
import sys
import pytest

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "pytest_asyncio" else find_spec(name)
sys.exit(pytest.main(["-q", "-p", "no:asyncio", "-p", "no:cacheprovider"]))
"""


def test_a_projects_own_tests_run_and_the_fixtures_say_what_is_missing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
def test_of_its_own():
    pass

def test_emulator(klein_emulator):
    pass

async def test_client(klein_client):
    pass
"""
    )
    run = pytester.run(sys.executable, "-c", WITHOUT_PYTEST_ASYNCIO)
    run.assert_outcomes(passed=1, errors=2)
    assert run.stdout.str().count("pip install 'flux_klein_async[testing]'") >= 2
