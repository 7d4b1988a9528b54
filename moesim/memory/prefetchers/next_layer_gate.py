"""The next layer's gate is asked with this layer's input: a guess one layer ahead, none for the first layer.

Speculative loading of arXiv 2312.17238. How good the guess is, is given: DAOP (arXiv 2501.10375) measured 84 % one
layer ahead. What it expects is what really comes with errors drawn: an oracle with a dial.

>>> from moesim.memory import replay
>>> events = [{(layer, (turn + layer) % 4)} for turn in range(100) for layer in range(3)]
>>> replay(events, "lru", 2, prefetcher={"name": "next_layer_gate", "recall": 1.0}).layer_hits.tolist()
[0, 100, 100]
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.memory.job import Forecast, Job
from moesim.memory.noise import expected_with_errors
from moesim.registry import part


@part
class NextLayerGate:
    """Expect what comes in the next layer; *recall* and *precision* as in ``rpp``."""

    recall: Annotated[float, Field(ge=0, le=1)] = 0.84
    precision: Annotated[float, Field(gt=0, le=1)] | None = None

    def forecast(self, job: Job) -> Forecast:
        """Return the expectations of all layers but the first."""
        precision = self.recall if self.precision is None else self.precision
        starts, keys = expected_with_errors(job, self.recall, precision or 1.0)
        size = np.diff(starts)
        known = job.whole.layer > 0
        return job.expecting(np.concatenate([[0], np.cumsum(size * known)]), keys[np.repeat(known, size)], oracle=True)
