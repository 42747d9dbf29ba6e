"""The examples run as they stand, without a token. What pages show is in `test_docs_code`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import without_remarks
from tests.served import PATIENCE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def run(program: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, without_remarks(done.stderr)) == (0, "")
    return done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs(path, tmp_path):
    assert run(path.read_text(), tmp_path)


def test_the_example_project_passes_its_own_tests_in_a_folder_of_its_own(tmp_path):
    project = tmp_path / "project"
    shutil.copytree(ROOT / "examples" / "testing_kit", project, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout
