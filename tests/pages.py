"""The code blocks of the pages, and how they are run.

The blocks of a page run in order and share what they define. What a page does not show is written in HTML comments,
which neither GitHub nor the site shows:

    <!-- python ... -->   a hidden block, which runs in its place (`served` is the emulator); `<!-- sh ... -->` as well
    <!-- file: NAME -->   the next block is put into this file; a later block has to use it
    <!-- output -->       the next block is what the one before printed; `...` stands for anything
"""

import ast
import asyncio
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

__all__ = [
    "PAGES",
    "ROOT",
    "Block",
    "Shell",
    "blocks",
    "printed_as",
    "run_python",
    "shown",
    "unused_files",
    "with_this_python",
]

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if "_build" not in path.parts
)

_RUN = ("python", "sh")
_SHOWN = ("json", "text")
_CODE = re.compile(r"^\s*(\$ |flux-klein |pip |python3? |\.venv|import \w|from \w+ import )", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a page.

    `do`: "python" and "sh" are run, "test" is run by pytest, "file" is written, "output" is compared, "show" is none of
    these. `line` is where its text begins in the page, from 0.
    """

    page: str
    line: int
    do: str
    text: str
    file: str = ""
    hidden: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line + 1}"


def blocks(page: str) -> list[Block]:
    """The blocks of a page in order, hidden ones included.

    Raises:
        ValueError: One says nothing of what it is, or looks like code that would not be run.
    """
    found: list[Block] = []
    remark = ""
    for token in MarkdownIt("commonmark").parse((ROOT / page).read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else 0
        if remark and token.type != "fence":
            raise ValueError(f"{page}:{line}: {remark!r} stands before no block")
        if token.type == "html_block":
            remark = token.content.strip().removeprefix("<!--").removesuffix("-->").strip()
            word, _, text = remark.partition("\n")
            if word in _RUN:
                found.append(Block(page, line, word, text + "\n", hidden=True))
                remark = ""
            elif not re.fullmatch(r"output|file: \S+", remark):
                raise ValueError(f"{page}:{line}: {remark[:60]!r} is no remark that is known")
        elif token.type == "code_block":
            raise ValueError(f"{page}:{line} is indented: fence it, and say what it is")
        elif token.type == "fence":
            if not token.info.startswith("{"):  # a directive of the site
                found.append(_fenced(page, line, token.info, token.content, remark))
            remark = ""
    return found


def _fenced(page: str, line: int, label: str, text: str, remark: str) -> Block:
    if label not in (*_RUN, *_SHOWN):
        raise ValueError(f"{page}:{line} is labelled {label!r}: it must be one of {', '.join((*_RUN, *_SHOWN))}")
    if label in _SHOWN and _CODE.search(text):
        raise ValueError(f"{page}:{line} looks like code, and would not be run")
    if remark.startswith("file: "):
        return Block(page, line, "file", text, file=remark.removeprefix("file: "))
    if remark == "output":
        return Block(page, line, "output", text)
    if label == "python" and any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        for node in ast.parse(text).body
    ):
        return Block(page, line, "test", text)
    return Block(page, line, label if label in _RUN else "show", text)


def shown(page: str) -> list[str]:
    """The texts of the blocks of Python that a reader of the page sees."""
    return [block.text for block in blocks(page) if block.do in ("python", "test") and not block.hidden]


def run_python(block: Block, names: dict[str, Any], runner: asyncio.Runner) -> None:
    """Run a block as a notebook would: it may await at its top level."""
    text = "\n" * block.line + block.text  # so that a traceback names the page's own line
    code = compile(text, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        runner.run(eval(code, names))
    else:
        exec(code, names)  # not within a loop: it may bring one of its own


class Shell:
    """Runs blocks in a folder, one after the other; what they export, the next ones have."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._exported = folder / ".exported"

    def run(self, block: Block) -> str:
        """What the block printed on standard output.

        Raises:
            AssertionError: It ended with another code than 0.
        """
        kept = f"if [ -f {self._exported} ]; then . {self._exported}; fi"
        script = f"set -euo pipefail\n{kept}\n{block.text}\nexport -p > {self._exported}\n"
        bash = shutil.which("bash")
        assert bash is not None
        done = subprocess.run(
            [bash, "-c", script],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout


def printed_as(pattern: str, text: str) -> bool:
    """Whether this was printed, where `...` stands for anything."""
    return re.fullmatch(re.escape(pattern.strip()).replace(r"\.\.\.", ".*?"), text.strip(), re.DOTALL) is not None


def unused_files(page: str) -> Iterator[Block]:
    """The files of a page that no later block uses."""
    all_of_them = blocks(page)
    for number, block in enumerate(all_of_them):
        later = "".join(other.text for other in all_of_them[number + 1 :] if other.do in (*_RUN, "file"))
        if block.do == "file" and block.file.removesuffix(".py") not in later:  # a module is used by its name
            yield block


def with_this_python(path: str) -> str:
    """The search path of commands, with those of the environment that runs the tests first."""
    return f"{Path(sys.executable).parent}:{path}"
