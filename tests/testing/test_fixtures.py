"""The fixtures of the plugin, used as a project uses them that has not read everything."""

import pytest

pytest_plugins = ["pytester"]


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
"""
    )
    run = pytester.runpytest_inprocess(
        "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=strict", "-o", "asyncio_default_fixture_loop_scope=function"
    )
    run.assert_outcomes(passed=2, errors=1)
    assert 'asyncio_mode = "auto"' in run.stdout.str()
    assert "@pytest.mark.asyncio" in run.stdout.str()
