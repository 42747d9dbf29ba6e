"""What was learned, kept between processes: one small JSON file, replaced whole.

The file is a convenience. One that is damaged, foreign or cannot be written costs a warning and a cold start, never a
call. Of several processes that share one, the last to write wins.
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = ["ModelSnapshot", "SizeSnapshot", "Snapshot", "Store"]

_logger = logging.getLogger("flux_klein_async")
_LARGEST: Final = 1024 * 1024
_Weight = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
_Place = Annotated[int, Field(ge=-1000, le=2000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SizeSnapshot(_Part):
    """The histogram of one size: weights by bin of log time."""

    octave: Annotated[int, Field(ge=0, le=1000)] | None
    queued: bool
    bins: Annotated[dict[_Place, _Weight], Field(min_length=1)]


class ModelSnapshot(_Part):
    """One model: its sizes, and the pace of its queue (seconds a place, variance, samples)."""

    model: str | None
    seconds: Annotated[float, Field(gt=0, le=1e4)]
    variance: Annotated[float, Field(ge=0, le=10)]
    count: Annotated[int, Field(ge=1)]
    sizes: list[SizeSnapshot]


class Snapshot(_Part):
    """The whole file."""

    version: Literal[1] = 1
    models: list[ModelSnapshot]


class Store:
    """A file of what was learned."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._warned = False

    def load(self) -> Snapshot | None:
        """What the file says; None where there is none, or none that can be read."""
        try:
            with self.path.open("rb") as file:
                content = file.read(_LARGEST + 1)
            if len(content) <= _LARGEST:
                return Snapshot.model_validate_json(content)
            self._warn("is too large to be one of ours")
        except FileNotFoundError:
            pass
        except OSError as error:
            self._warn(f"cannot be read ({error.strerror})")
        except ValidationError as error:
            self._warn(f"is damaged or from another version ({error.error_count()} errors)")
        return None

    def save(self, snapshot: Snapshot) -> None:
        """Replace the file. Blocks: in an application on a loop, call it in a thread."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(snapshot.model_dump_json())
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._warn(f"cannot be written ({error.strerror})")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning("The store of learned poll times %s %s; it is not used", self.path, what)
