"""Any command line: a documented exit code, no traceback, and no file outside the output directory."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.cli.commands import run
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.emulator import Emulator
from tests.served import in_thread

from .strategies import REQUEST_ID, examples
from .test_names import arguments

TOKEN = "token-of-the-command-line-0123456789"
LONG = "a" * 300
# Names as they are typed: never absolute, never a way up.
FOLDERS = ["out", "out/deep/er", "con", "a:b", "-", "--", "\u00fc \U0001f406", "a\nb", ".", LONG, f"{LONG}/x", "\udcff"]
SIZES = ["1", "64", "2048", "63", "2049", "1e3", "", "nan", "-64", "\u0666\u0664", "9" * 20, "9" * 5000]
SECONDS = ["0", "-1", "nan", "inf", "1e-9", "x", "", "9" * 400]
ADDRESSES = ["http://evil.example", "https://", "http://[::1", "https://user:pass@x.example", ""]
folders = st.sampled_from(FOLDERS)
words = st.text(max_size=30).filter(lambda text: "\x00" not in text) | arguments
sizes = st.integers().map(str) | st.sampled_from(SIZES)
seconds = st.floats().map(str) | st.sampled_from(SECONDS)
addresses = words | st.sampled_from(ADDRESSES)

OPTIONS: dict[str, st.SearchStrategy[str]] = {
    "--count": sizes,
    "--width": sizes,
    "--height": sizes,
    "--category": words,
    "--model": words | st.sampled_from(["a/b", "../..", "blackforestlabs/flux-2-klein/9b/text-to-image"]),
    "--output-dir": folders,
    "--concurrency": sizes,
    "--timeout": seconds,
    "--wait": seconds,
    "--base-url": addresses,
    "--port": sizes,
    "--profile": words | st.sampled_from(["klein", "fixed:", "fixed:-1", "queue:0", "fixed:nan"]),
    "--workers": sizes,
    "--seed": sizes,
    "--journal": words,
    "--older-than": seconds,
    "--state": words,
}
FLAGS = ["--no-download", "--json", "--quiet", "--help", "--version", "--", "-", "--jso", "-j", "--no-such"]
COMMANDS = ["generate", "status", "result", "cancel", "models", "models show", "journal", "", "batch", "Generate", "--"]


@st.composite
def options(draw: st.DrawFn) -> list[str]:
    name = draw(st.sampled_from(sorted(OPTIONS)))
    value = draw(OPTIONS[name])
    return draw(st.sampled_from([[name, value], [f"{name}={value}"], [name]]))


pieces = st.one_of(words.map(lambda word: [word]), st.sampled_from(FLAGS).map(lambda flag: [flag]), options())


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    rest = [piece for some in draw(st.lists(pieces, max_size=5)) for piece in some]
    command = draw(st.sampled_from(COMMANDS) | words)
    line = [command, *draw(words.map(lambda word: [word]) | st.just([])), *rest]
    # It would run until it is stopped; a bad port ends it after its other options have been read.
    return [*line, "--port", "none"] if "emulator" in line else line


def assert_orderly(line: list[str], stdin: bytes) -> None:
    """Run one command line in this process: a documented exit code, no traceback, no token."""
    out, err = (io.TextIOWrapper(io.BytesIO(), errors="surrogateescape", write_through=True) for _ in range(2))
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        assert run(line) in set(ExitCode)
    printed = (out.buffer.getvalue() + err.buffer.getvalue()).decode("utf-8", "surrogateescape")
    assert not any(word in printed for word in ("Traceback", "Unexpected", TOKEN)), printed


def everything(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@contextlib.contextmanager
def somewhere() -> Iterator[Path]:
    """An empty working directory inside another one, in which everything written would be seen."""
    with tempfile.TemporaryDirectory() as around:
        here = Path(around) / "here"
        here.mkdir()
        with contextlib.chdir(here):
            yield Path(around)


@examples(150)
@given(command_lines(), st.binary(max_size=20))
def test_without_a_token_any_command_line_ends_in_order_and_writes_nothing(line, stdin):
    with somewhere() as around:
        assert_orderly(line, stdin)
        assert everything(around) == {Path("here")}


@pytest.fixture(scope="module")
def served() -> Iterator[Emulator]:
    with in_thread(Emulator(profile="fixed:0.001", api_key=TOKEN, max_records=100)) as emulator:
        yield emulator


lines = st.one_of(
    st.tuples(
        st.just("generate"),
        words,
        st.just("--width=64"),
        st.just("--height=64"),
        st.builds("--count={}".format, st.integers(0, 2)),
        st.builds("--output-dir={}".format, folders),
        st.sampled_from(["--json", "--quiet", "--no-download", "--timeout=1e-9", "--concurrency=1", "--model=a/b"]),
    ),
    st.tuples(st.sampled_from(["status", "result", "cancel"]), words | st.just(REQUEST_ID), st.just("--json")),
    st.tuples(st.just("result"), words | st.just(REQUEST_ID), st.builds("--output-dir={}".format, folders)),
)


@examples(60)
@given(lines, st.binary(max_size=20))
def test_with_a_service_any_command_line_ends_in_order_and_writes_where_it_was_told(served, line, stdin):
    where = next((text.partition("=")[2] for text in line if text.startswith("--output-dir=")), "out")
    with pytest.MonkeyPatch.context() as patch, somewhere() as around:
        patch.setenv("RUNCOMFY_API_TOKEN", TOKEN)
        patch.setenv("RUNCOMFY_MODEL_API_BASE", served.base_url)
        assert_orderly(list(line), stdin)
        target = os.path.normpath(os.path.join("here", where))  # noqa: PTH118
        for path in everything(around):
            assert path.is_relative_to(target) or Path(target).is_relative_to(path), f"{path} is outside of {target}"
