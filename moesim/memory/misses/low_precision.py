"""A missed expert that matters little comes in a low-bit copy, a share of the bytes (HOBBIT).

HOBBIT (arXiv 2411.01433) loads int4 for fp16, a quarter of the bytes; its thresholds are not published.

>>> from moesim.memory.missed import Missed
>>> import numpy as np
>>> missed = Missed(np.array([[[2, 1, 1]]]), np.array([[[True, True, False]]]), low=np.array([[[False, False, True]]]),
...                 weight=np.array([[[0.3, 0.6, 0.7]]]))
>>> LowPrecision().decide(missed).fetched.tolist()
[[[0.25, 0.25, 0.0]]]
>>> LowPrecision(threshold=0.4).decide(missed).fetched.tolist()  # the third is there, but too coarse
[[[0.25, 1.0, 1.0]]]
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.memory.missed import Fate, Missed
from moesim.registry import part


@part
class LowPrecision:
    """Copy what is missed in few bits.

    share      of an expert's bytes that its low-bit copy has
    threshold  an expert that is no token's with this share of its chosen gate weight or more comes in few bits; all
               others come whole, also those that are there in few bits alone. Left out: all come in few bits
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None

    fetches: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        """Weights, if there is a threshold."""
        return () if self.threshold is None else ("weights",)

    @property
    def whole(self) -> bool:
        """Whether caches decide alone: not where what is there may have to come again."""
        return self.threshold is None

    def decide(self, missed: Missed) -> Fate:
        """Return how much of what is fetched, and what is computed with low-bit weights."""
        used = missed.tokens > 0
        if self.threshold is None:
            return Fate(fetched=np.where(missed.missing, self.share, 0.0), low=used & (missed.missing | missed.low))
        enough = missed.weight < self.threshold  # in few bits
        wanted = missed.missing | (used & missed.low & ~enough)
        return Fate(fetched=np.where(wanted, np.where(enough, self.share, 1.0), 0.0),
                    low=used & enough & (missed.missing | missed.low))
