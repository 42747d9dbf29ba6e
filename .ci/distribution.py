"""Checks built distributions: all of the package, nothing else, and the same wheel by either way.

    python .ci/distribution.py CHECKOUT WHEEL_FOLDER SDIST_FOLDER

The first folder holds the wheel built from the checkout, the second the sdist and the wheel built from that.
"""

import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "flux_klein_async"


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def only(folder: Path, pattern: str) -> Path:
    """The one file of a folder that a pattern names."""
    found = list(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"one {pattern} expected in {folder}, found: {found}")
    return found[0]


def check_wheel(files: dict[str, bytes], package: Path) -> None:
    """The package as it stands in the checkout, its licence, and no more."""
    source = {
        f"{PACKAGE}/{path.relative_to(package)}": path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    shipped = {name: data for name, data in files.items() if name.startswith(f"{PACKAGE}/")}
    assert shipped == source, f"package and wheel differ in {sorted(shipped.items() ^ source.items())[:3]}"
    assert f"{PACKAGE}/py.typed" in shipped, "no typed marker"
    other = [name for name in files if name not in shipped]
    assert all(name.split("/")[0].endswith(".dist-info") for name in other), f"more than the package: {other}"
    assert any(name.endswith("/licenses/LICENSE") for name in other), "no licence"


def check_sdist(sdist: Path) -> None:
    """What is needed to build, test and read it, and no machine's leftovers."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "tests/conftest.py", f"{PACKAGE}/py.typed"}
    assert wanted <= names, f"missing in the sdist: {sorted(wanted - names)}"
    left_over = [name for name in names if "__pycache__" in name or name.startswith((".venv", ".hypothesis", "out/"))]
    assert not left_over, f"left-overs in the sdist: {left_over[:3]}"


if __name__ == "__main__":
    checkout, straight, by_sdist = map(Path, sys.argv[1:])
    files = contents(only(straight, "*.whl"))
    check_wheel(files, checkout / PACKAGE)
    check_sdist(only(by_sdist, "*.tar.gz"))
    assert contents(only(by_sdist, "*.whl")) == files, "the sdist builds another wheel"
    print(f"the wheel's {len(files)} files are the package's, and the sdist builds the same wheel")
