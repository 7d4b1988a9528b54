"""A missed expert that all its tokens can do without is not computed; any other is fetched.

>>> from moesim.memory.missed import Missed
>>> import numpy as np
>>> ranks = np.array([[[[1, 0], [0, 2], [1, 1]]]])  # the second is nobody's first choice
>>> missed = Missed(ranks.sum(axis=3), np.ones((1, 1, 3), bool), ranks=ranks, weight=np.array([[[0.9, 0.3, 0.7]]]))
>>> Skip(keep=1).decide(missed).dropped.tolist(), Skip(keep=1, below=0.2).decide(missed).dropped.tolist()
([[[0, 2, 0]]], [[[0, 0, 0]]])
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from moesim.memory.missed import Fate, Missed
from moesim.registry import part


@part
class Skip:
    """Drop a missed expert that is among no token's first *keep* choices (1: assumed).

    below  only if it also has less than this share of the chosen gate weight of every token (left out: whatever it has)
    """

    keep: Annotated[int, Field(ge=0)] = 1
    below: Annotated[float, Field(gt=0, le=1)] | None = None

    fetches: ClassVar[bool] = True
    whole: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Ranks, and weights if they count."""
        return ("ranks",) if self.below is None else ("ranks", "weights")

    def decide(self, missed: Missed) -> Fate:
        """Return what is not computed; the rest comes."""
        dropped = missed.missing & (missed.ranks[..., :self.keep].sum(axis=-1) == 0)
        if self.below is not None:
            dropped &= missed.weight < self.below
        return Fate(fetched=(missed.missing & ~dropped).astype(float), dropped=missed.of(dropped))
