"""All that is missed is fetched, and the layer's experts wait for the last.

>>> from moesim.memory.missed import Missed
>>> import numpy as np
>>> Fetch().decide(Missed(np.array([[[2, 1, 0]]]), np.array([[[False, True, False]]]))).fetched
array([[[0., 1., 0.]]])
"""

from __future__ import annotations

from typing import ClassVar

from moesim.memory.missed import Fate, Missed
from moesim.registry import part


@part
class Fetch:
    """Copy every missed expert, whole."""

    needs: ClassVar[tuple[str, ...]] = ()
    fetches: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def decide(self, missed: Missed) -> Fate:
        """Return that everything comes."""
        return Fate(fetched=missed.missing.astype(float))
