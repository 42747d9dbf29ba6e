"""The programs of `docs/howto/scale.md`, run as they stand there but for addresses."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flux_klein_async.emulator import Emulator

from .databases import Cluster, RedisServer
from .pages import blocks
from .served import once

__all__ = ["Programs", "end"]


class Programs:
    """The programs in a folder, with the addresses of this run's servers."""

    def __init__(
        self, folder: Path, emulator: Emulator, cluster: Cluster | None = None, redis: RedisServer | None = None
    ) -> None:
        self.folder = folder
        self.emulator = emulator
        replaced = {"/shared/": f"{folder}/", "idle_timeout=60_000": "idle_timeout=500"}
        if cluster is not None and redis is not None:
            replaced |= {
                "postgresql://app@db.example/flux": cluster.new_database(),
                "redis://limits.internal:6379/0": redis.url,
                "redis://limits.internal:6379/1": f"{redis.url}?db=1",
                "redis://limits.internal:6379/2": f"redis+socket://{redis.socket}?virtual_host=2",
            }
        for block in blocks("docs/howto/scale.md"):
            if block.do == "file":
                text = block.text
                for old, new in replaced.items():
                    text = text.replace(old, new)
                (folder / block.file).write_text(text)

    def start(self, *command: str, stdin: int | None = None, **environment: str) -> "subprocess.Popen[str]":
        """A program in a process group of its own."""
        token = {"RUNCOMFY_MODEL_API_BASE": self.emulator.base_url, "RUNCOMFY_API_TOKEN": self.emulator.api_key}
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env={
                **os.environ,
                **token,
                **environment,
                "PYTHONPATH": f"{self.folder}:{os.environ.get('PYTHONPATH', '')}",
            },
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            stdin=stdin,
        )

    def run(self, *command: str, **environment: str) -> str:
        with self.start(*command, **environment) as process:
            printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        return printed

    @contextmanager
    def running(self, *command: str) -> Iterator["subprocess.Popen[str]"]:
        """A program that is killed at the end."""
        with self.start(*command) as process:
            try:
                yield process
            finally:
                end(process)

    def polled(self, count: int, act: Callable[[], object]) -> None:
        """Act at a poll, when an id is in the journal and its generation is under way."""
        once(self.emulator, lambda: self.emulator.calls["status"] >= count, act)


def end(process: "subprocess.Popen[str]", signal_number: int = signal.SIGKILL) -> None:
    """End a process and its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal_number)
