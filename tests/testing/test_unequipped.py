"""A project in whose environment the package is, but not what its fixtures need."""

import sys

import pytest

pytest_plugins = ["pytester"]

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
