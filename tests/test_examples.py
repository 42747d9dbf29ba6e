"""The examples and the programs that pages show run as they stand, without a token."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import without_remarks

ROOT = Path(__file__).parent.parent
README, TELEMETRY, TESTING, WAITING = (
    re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    for page in ("README.md", "docs/telemetry.md", "docs/testing.md", "docs/waiting.md")
)


def run(program: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, without_remarks(done.stderr)) == (0, "")
    return done.stdout


def test_the_readmes_program_brings_three_pictures_home(tmp_path):
    assert run(README[0], tmp_path).count(".png") == 3
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_the_program_of_the_testing_page_runs_in_no_time(tmp_path):
    assert float(run(TESTING[0], tmp_path).split()[1]) > 60


def test_the_program_of_the_waiting_page_explains_the_looks(tmp_path):
    median, looks, *costs = run(WAITING[0], tmp_path).splitlines()
    assert (median, looks[:9]) == ("half have ended by 0.59 s", "looks at ")
    assert costs[0].startswith("AdaptivePolling: ")
    assert len(WAITING) == 1


def test_the_programs_of_the_telemetry_page_run(tmp_path):
    spans = run(TELEMETRY[0], tmp_path).splitlines()
    assert [line.split()[0] for line in spans] == ["flux_klein.submit", "flux_klein.wait", "generate_content"]
    assert spans[-1].endswith(" completed")
    assert run(TELEMETRY[1], tmp_path) == "0.014\n"


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
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


@pytest.mark.parametrize("test", [README[2], TESTING[1], TESTING[2]], ids=["readme", "testing", "asked"])
def test_a_test_that_a_page_shows_passes(pytester, test):
    pytester.makepyfile(test)
    pytester.runpytest_inprocess(
        "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"
    ).assert_outcomes(passed=1)


pytest_plugins = ["pytester"]
