"""Prints pip constraints that pin every requirement to the lower bound that pyproject allows."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for line in [*project["dependencies"], *(line for name in ("cli", "emulator", "testing") for line in extras[name])]:
    if match := re.match(r"([\w-]+)(?:\[.*\])?>=([\w.]+)", line):
        print("==".join(match.groups()))
