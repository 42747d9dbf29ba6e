"""Every block of code that a page shows runs as it stands: against an emulator on a port, without a token.

`pages` says how. Nothing is skipped: a block that is neither run here nor on the list below fails.
"""

import asyncio
import os
import re

import pytest

from flux_klein_async.emulator import Emulator
from flux_klein_async.emulator.catalogue import MODELS, Model

from .loops import chosen_loop
from .pages import PAGES, ROOT, Shell, blocks, printed_as, run_python, shown, unused_files, with_this_python
from .served import in_thread

pytest_plugins = ["pytester"]

TOKEN = "your-token"  # the one that the pages tell their reader to replace
SOME_MODEL = "owner/any-model/in-the-catalogue"

# Run by `.ci/run` instead, in an environment of their own: by page, how the block begins, and the step.
ELSEWHERE = {
    ("README.md", "python3 -m venv .venv && . .venv/bin/activate\n"): "try_it",
    ("README.md", "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[dev]'"): "test_it",
    ("CONTRIBUTING.md", "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'"): "all steps",
    ("docs/tutorial.md", "python3 -m venv .venv\n"): "tutorial",
    ("docs/howto/scale.md", "python rows.py\n"): "on_ray",
    # tests/test_scale.py
    ("docs/howto/scale.md", "taskiq worker "): "processes",
    ("docs/howto/scale.md", "celery --app "): "processes",
}

# The README is also the package's page on an index, which may show comments: what it does not define stands here.
BEFORE = {"README.md": {"rows": [{"prompt": "a snow leopard"}, {"prompt": "a red panda"}]}}


def elsewhere(block):
    return [entry for entry in ELSEWHERE if entry[0] == block.page and block.text.startswith(entry[1])]


@pytest.fixture
def served(monkeypatch):
    """The service as the pages know it: at the end of the environment's base URL, with every model they name."""
    monkeypatch.setitem(MODELS, SOME_MODEL, Model(SOME_MODEL, "Some model", "video", "any", 0.05, gives="video"))
    with in_thread(Emulator(profile="fixed:0.01", api_key=TOKEN)) as emulator:
        monkeypatch.setenv("RUNCOMFY_MODEL_API_BASE", emulator.base_url)
        monkeypatch.setenv("RUNCOMFY_API_TOKEN", TOKEN)
        monkeypatch.setenv("PATH", with_this_python(os.environ["PATH"]))
        yield emulator


@pytest.fixture
def run_test(pytester):
    """What runs a test that a page shows."""

    def run(text):
        pytester.makepyfile(text)
        pytester.runpytest_inprocess(
            *("-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"),
            *("-o", "asyncio_default_fixture_loop_scope=function"),
        ).assert_outcomes(passed=1)

    return run


# The README in every run, the other pages in the slow ones.
@pytest.mark.parametrize(
    "page", [page if page == "README.md" else pytest.param(page, marks=pytest.mark.slow) for page in PAGES]
)
def test_every_block_of_a_page_runs(page, served, run_test, pytester, capsys):
    shell, names, printed = Shell(pytester.path, os.environ), {"__name__": "__main__", "served": served}, ""
    names |= BEFORE.get(page, {})
    with asyncio.Runner(loop_factory=chosen_loop()) as runner:
        for block in blocks(page):
            match block.do:
                case "python":
                    run_python(block, names, runner)
                    printed = capsys.readouterr().out
                case "test":
                    run_test(block.text)
                    capsys.readouterr()
                case "sh" if not elsewhere(block):
                    printed = shell.run(block)
                case "file":
                    (pytester.path / block.file).write_text(block.text, encoding="utf-8")
                case "output":
                    assert printed_as(block.text, printed), f"{block} is not what was printed:\n{printed}"
                case _:
                    assert block.do == "show" or elsewhere(block), f"{block} is not run"


def test_every_file_that_a_page_has_its_reader_make_is_used():
    assert [str(block) for page in PAGES for block in unused_files(page)] == []


def test_what_is_run_elsewhere_is_still_there():
    found = {entry for page in PAGES for block in blocks(page) for entry in elsewhere(block)}
    assert found == set(ELSEWHERE)


def test_the_readmes_program_saves_three_pictures(served, pytester, capsys):
    exec(compile(shown("README.md")[0], "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.count(".png") == 3
    assert len(list((pytester.path / "out").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```\nsomething\n```\n", "labelled ''"),
        ("```bash\nls\n```\n", "labelled 'bash'"),
        ("    flux-klein models\n", "indented"),
        ("```text\nflux-klein models\n```\n", "looks like code"),
        ("```json\n$ ls\n```\n", "looks like code"),
        ("<!-- pyhton\n1 / 0\n-->\n", "no remark that is known"),
        ("<!-- output -->\n\nA line.\n", "before no block"),
    ],
)
def test_a_block_that_would_not_be_run_is_refused(text, complaint, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.pages.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        blocks("page.md")


def test_no_page_is_missed():
    assert {"README.md", "CONTRIBUTING.md", "docs/tutorial.md", "docs/howto/batch.md"} <= set(PAGES)
    assert sum(block.do in ("python", "test", "sh") for page in PAGES for block in blocks(page)) > 50
    assert all((ROOT / page).is_file() for page in PAGES)
