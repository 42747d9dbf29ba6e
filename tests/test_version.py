"""The version is said in one place, and in every call."""

from importlib.metadata import version

import flux_klein_async
from flux_klein_async._version import USER_AGENT


def test_the_installed_version_is_the_modules():
    assert version("flux_klein_async") == flux_klein_async.__version__


def test_the_user_agent_names_client_and_version():
    assert f"flux_klein_async/{flux_klein_async.__version__}" == USER_AGENT
