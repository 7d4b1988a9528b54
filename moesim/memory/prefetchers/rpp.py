"""The whole route of a token is predicted before the first layer, with errors (ExpertFlow's routing path predictor).

arXiv 2410.17954 reports an accuracy above 0.9 on texts like those it was trained on, 5 to 10 points less on others.
What it expects is what really comes with errors drawn: an oracle with a dial.

>>> from moesim.memory import replay
>>> events = [{(layer, (turn + layer) % 4)} for turn in range(100) for layer in range(3)]
>>> [replay(events, "lru", 2, prefetcher={"name": "rpp", "recall": r}).hits for r in (0.5, 1.0)]
[145, 300]
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moesim.memory.job import Forecast, Job
from moesim.memory.noise import expected_with_errors
from moesim.registry import part


@part
class Rpp:
    """Expect what comes in every layer of the pass.

    recall     share of the experts of tokens that are expected
    precision  share of the expected that are right; None: as many are expected as are used
    horizon    layers that are loaded ahead, the coming one included
    """

    recall: Annotated[float, Field(ge=0, le=1)] = 0.92
    precision: Annotated[float, Field(gt=0, le=1)] | None = None
    horizon: Annotated[int, Field(ge=1)] = 1

    def forecast(self, job: Job) -> Forecast:
        """Return the expectations of all layers."""
        precision = self.recall if self.precision is None else self.precision
        starts, keys = expected_with_errors(job, self.recall, precision or 1.0)
        return job.expecting(starts, keys, self.horizon, oracle=True)
