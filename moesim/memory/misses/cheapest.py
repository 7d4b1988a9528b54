"""Each missed expert goes where it costs least by itself: the host computes its tokens, or it is fetched (Fiddler).

Fiddler (arXiv 2402.07033) takes the smaller of the host's time for the tokens, and a copy and the device's time for
them. Each expert is looked at alone: not what else the host or the link has to do, and not the hits that the device
has to compute anyway.

>>> from moesim.memory.missed import Missed, Seconds
>>> import numpy as np
>>> tokens = np.array([[[1, 30, 9]]])  # the third is there
>>> costs = Seconds(copy=10.0, device=np.full((1, 1, 3), 1.0), host=3.0 * tokens)
>>> fate = Cheapest().decide(Missed(tokens, np.array([[[True, True, False]]]), seconds=costs))
>>> fate.host.tolist(), fate.fetched.tolist()
([[[1, 0, 0]]], [[[0.0, 1.0, 0.0]]])
"""

from __future__ import annotations

from typing import ClassVar

from moesim.memory.missed import Fate, Missed
from moesim.registry import part


@part
class Cheapest:
    """Choose host or copy for each expert by its own cost; the host has the draw."""

    needs: ClassVar[tuple[str, ...]] = ("host", "seconds")
    fetches: ClassVar[bool] = True
    whole: ClassVar[bool] = False

    def decide(self, missed: Missed) -> Fate:
        """Return what the host computes, and what is fetched."""
        costs = missed.seconds
        assert costs is not None, "asked for in needs"
        at_host = missed.missing & (costs.host <= costs.copy + costs.device)
        return Fate(fetched=(missed.missing & ~at_host).astype(float), host=missed.of(at_host))
