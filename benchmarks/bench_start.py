"""What does it cost to start: to import the package, and to ask the command line for help or a completion?

    python benchmarks/bench_start.py [--turns 15]

CPU of whole processes (user and system), in turn; the medians of the ratios count. "The client" is what a program
imports to use it: its pydantic models are most of it, and `import pydantic` alone loads little of pydantic.
"""

import argparse
import os
import resource
import subprocess
import sys
from statistics import median

from harness import verdict

CLI = [sys.executable, "-m", "flux_klein_async"]
COMPLETION = {"_FLUX_KLEIN_COMPLETE": "complete_bash", "COMP_WORDS": "flux-klein ge", "COMP_CWORD": "1"}
DEPENDENCIES = "import aiohttp, pydantic, tenacity"
# What runs, in which environment, what it is compared with, and the bar.
VARIANTS: dict[str, tuple[list[str], dict[str, str], str, float | None]] = {
    "dependencies": ([sys.executable, "-c", DEPENDENCIES], {}, "dependencies", None),
    "package": ([sys.executable, "-c", "import flux_klein_async"], {}, "dependencies", 1.2),
    "client": ([sys.executable, "-c", "from flux_klein_async import FluxKleinClient"], {}, "dependencies", None),
    "typer, rich": ([sys.executable, "-c", "import typer, rich"], {}, "typer, rich", None),
    "flux-klein --help": ([*CLI, "--help"], {}, "typer, rich", 1.3),
    "flux-klein batch --help": ([*CLI, "batch", "--help"], {}, "typer, rich", 1.3),
    "completion of a command": (CLI, COMPLETION, "typer, rich", 1.3),
    "completion of an option": (
        CLI,
        COMPLETION | {"COMP_WORDS": "flux-klein generate --wi", "COMP_CWORD": "2"},
        "typer, rich",
        1.3,
    ),
}


def cpu(command: list[str], environment: dict[str, str]) -> float:
    """CPU of one process, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=os.environ | environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    turns = parser.parse_args().turns
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(turns + 1):
        for name, (command, environment, _, _) in VARIANTS.items():
            used = cpu(command, environment)
            if turn:  # the first compiles
                found[name].append(used)
    missed = False
    for name, (_, _, base, bar) in VARIANTS.items():
        ratio = median(own / other for own, other in zip(found[name], found[base], strict=True))
        missed = missed or (bar is not None and ratio > bar)
        told = "" if bar is None else f"   bar {bar:.2f}: {verdict(ratio <= bar)}"
        print(f"{name:26}{median(found[name]):7.0f} ms{ratio:8.3f} of {base}{told}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
