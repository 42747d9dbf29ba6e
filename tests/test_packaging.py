"""What is shipped: the typed marker, the entry points, and a core without its extras."""

import re
import tomllib
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import flux_klein_async

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_typed_marker_is_shipped():
    assert (Path(flux_klein_async.__file__).parent / "py.typed").is_file()


def test_the_core_needs_three_packages():
    core = [line for line in requires("flux_klein_async") or [] if "extra ==" not in line]
    assert sorted(re.split(r"[^\w-]", line)[0] for line in core) == ["aiohttp", "pydantic", "tenacity"]


def test_every_requirement_has_a_lower_bound():
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *[line for extra in extras for line in extra]]
    assert [line for line in lines if ">=" not in line and not line.startswith("flux_klein_async")] == []


def test_command_and_plugin_are_installed():
    [command] = entry_points(group="console_scripts", name="flux-klein")
    [plugin] = entry_points(group="pytest11", name="flux_klein_async")
    assert (command.value, plugin.value) == ("flux_klein_async.__main__:main", "flux_klein_async.testing")


def test_the_installed_version_is_the_modules():
    assert version("flux_klein_async") == flux_klein_async.__version__


def test_the_changelog_has_this_version():
    assert f"## {flux_klein_async.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_gives_exactly_two_set_up_commands():
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([block for block in blocks if "-m venv" in block]) == 2
