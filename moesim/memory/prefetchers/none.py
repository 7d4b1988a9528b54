"""Nothing is loaded before it is needed.

>>> from moesim.memory import replay
>>> replay([{1}, {2}], "lru", 1, prefetcher="none").loaded_ahead
0
"""

from __future__ import annotations

from moesim.memory.job import Forecast, Job
from moesim.registry import part


@part
class NoPrefetcher:
    """Expect nothing."""

    def forecast(self, job: Job) -> Forecast | None:
        """Return None."""
        return None
