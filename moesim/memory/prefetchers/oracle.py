"""What the next events will use is loaded before they begin: the best case of any predictor, an oracle.

>>> from moesim.memory import replay
>>> stats = replay([{1}, {2}, {1}, {2}], "lru", 1, prefetcher="oracle")
>>> stats.hits, stats.misses, stats.loads  # no miss is left, but as much is moved
(4, 0, 4)
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moesim.memory.job import Forecast, Job
from moesim.memory.terms import CacheError
from moesim.registry import part


@part
class Oracle:
    """Expect exactly what comes, *window* events ahead."""

    window: Annotated[int, Field(ge=1)] = 1

    def forecast(self, job: Job) -> Forecast:
        """Return the events themselves. Raises ``CacheError`` if a run goes on, whose next pass nobody knows."""
        if job.live and self.window > 1:
            raise CacheError(f"window {self.window} of oracle goes on into the next pass, which is not known while a "
                             "run goes on; use {name: rpp, recall: 1.0, horizon: ...}, which ends with the pass")
        return job.expecting(job.whole.starts, job.whole.keys, self.window, crosses=True, oracle=True)
