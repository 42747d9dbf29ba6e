"""Prints pip constraints that pin every direct requirement to the lower bound that pyproject allows.

With `--check`: says whether the environment that runs this holds exactly those versions.
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def lower_bounds() -> dict[str, str]:
    """The lowest version of every direct requirement, extras included."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    bounds = {}
    for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        if line.startswith(project["name"]):
            continue  # one extra that takes in another
        match = re.match(r"([\w-]+)(?:\[.*?\])?\s*>=\s*([\w.]+)", line)
        if match is None:
            sys.exit(f"no lower bound: {line}")
        bounds[match[1]] = match[2]
    return bounds


def check(bounds: dict[str, str]) -> None:
    """End with a message where something is installed in another version, or a run-time requirement is missing."""
    installed = {}
    for name in bounds:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue  # a tool that these tests do not need
    wrong = [
        f"{name} {found}, not {bounds[name]}" for name, found in installed.items() if not same(found, bounds[name])
    ]
    if wrong or not installed:
        sys.exit("not the lowest versions: " + ", ".join(wrong))
    print("lowest versions:", ", ".join(f"{name} {found}" for name, found in sorted(installed.items())))


def same(found: str, bound: str) -> bool:
    """Whether 2.7.0 is the release that 2.7 names."""
    return re.sub(r"(\.0)+$", "", found) == re.sub(r"(\.0)+$", "", bound)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check(lower_bounds())
    else:
        print("\n".join(f"{name}=={bound}" for name, bound in lower_bounds().items()))
