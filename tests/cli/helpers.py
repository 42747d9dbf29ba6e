"""What the tests of the command line share."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

TOKEN = "secret-token-of-the-test"


@dataclass(frozen=True)
class Ran:
    """One call of the command line."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Command(Protocol):
    """Calls the command line in this process."""

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Ran: ...
