"""How other clients of such services wait, as policies: what to compare with. Pure; no wait of ours uses it.

The intervals are those of docs/waiting.md, "How others wait", from the clients' own sources.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flux_klein_async.polling.policies import FixedPolling, Observation, PollPolicy, Progress

__all__ = ["PEERS", "GrowingPolling"]

_BOUNDED: Final = 60  # growths after which every interval is at its longest: no power overflows


@dataclass(frozen=True, slots=True)
class GrowingPolling:
    """Looks after `first`, then after `start`, each interval `factor` times longer, at most `most`; all in seconds.

    With `chance`, every interval is drawn evenly between 0 and what it would be, the first one from `start`; `first`
    then counts for nothing.
    """

    first: float
    start: float
    factor: float
    most: float
    chance: random.Random | None = None

    def next_look(self, progress: Progress) -> float:
        """The interval for this many looks."""
        if progress.looks == 0 and self.chance is None:
            return self.first
        grown = min(progress.looks - (self.chance is None), _BOUNDED)
        interval = min(self.start * self.factor**grown, self.most)
        return interval if self.chance is None else interval * self.chance.random()

    def observe(self, observation: Observation) -> None:
        """Nothing to learn."""


PEERS: Final = MappingProxyType[str, Callable[[], PollPolicy]](
    {
        "vendor CLI": lambda: FixedPolling(2.0, first=0),
        "vendor plugin": lambda: FixedPolling(5.0, first=0),
        "vendor httpx client": lambda: FixedPolling(3.0, first=0),
        "fal-client": lambda: FixedPolling(0.1, first=0),
        "replicate": lambda: FixedPolling(0.5),
        "comfy-sdk": lambda: GrowingPolling(0.0, 0.5, 1.5, 5.0),
        "runware-sdk": lambda: GrowingPolling(1.0, 0.5, 1.5, 10.0),
        # The usual recipe: tenacity's wait_random_exponential(multiplier=0.1, max=2).
        "random exponential": lambda: GrowingPolling(0.0, 0.1, 2.0, 2.0, random.Random(0)),
    }
)
"""By name, each time a fresh policy; those that draw begin with the same seed."""
