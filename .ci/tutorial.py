"""Follows docs/tutorial.md to the letter, in the current folder: writes its files and runs its commands in order.

The service of its last part is an emulator, which takes the token that the page tells its reader to replace.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from flux_klein_async.emulator import Emulator
from tests.pages import Shell, blocks, printed_as
from tests.served import in_thread

PAGE = "docs/tutorial.md"


def follow(shell: Shell) -> None:
    """Do what the page says, and see what it says that one sees."""
    printed = ""
    for block in blocks(PAGE):
        if block.do == "file":
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.do == "output":
            assert printed_as(block.text, printed), f"{block} is not what was printed:\n{printed}"
        else:
            assert block.do == "sh", f"{block} is not for a reader to do"
            printed = shell.run(block)
            print(block.text + printed)


if __name__ == "__main__":
    with in_thread(Emulator(profile="fixed:0.01", api_key="your-token")) as emulator:
        follow(Shell(Path.cwd(), {**os.environ, "RUNCOMFY_MODEL_API_BASE": emulator.base_url}))
