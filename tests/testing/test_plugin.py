"""The pytest plugin, as a project that installs it sees it."""

import pytest

pytest_plugins = ["pytester"]

APPLICATION_TEST = """
import asyncio


async def test_virtual_time(klein_emulator, klein_client):
    result = await klein_client.generate("a cat", width=64, height=64)
    await asyncio.sleep(3600)
    assert klein_emulator.accepted == 1
    assert asyncio.get_running_loop().time() > 3600
    assert (await klein_client.read(result))[0].startswith(b"\\x89PNG")


async def test_real_time_elsewhere():
    assert type(asyncio.get_running_loop()).__name__ != "VirtualTimeLoop"


def test_without_a_loop():
    pass
"""


def test_the_fixtures_work_in_a_project_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(APPLICATION_TEST)
    run = pytester.runpytest_inprocess(
        "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"
    )
    run.assert_outcomes(passed=3)


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
    run = pytester.runpytest_inprocess(
        "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"
    )
    run.assert_outcomes(passed=1)
