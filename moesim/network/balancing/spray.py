"""Packet spraying: every pair uses all spines equally (splitting flows as in arXiv 2407.00550 loads links the same).

>>> from moesim.network import LeafSpine
>>> fabric = LeafSpine(leaves=2, spines=4, hosts_per_leaf=2, link="400 Gbit/s")
>>> Spray().spine_shares(fabric, src=np.array([0, 1]), dst=np.array([2, 3]), seed=0).tolist()
[[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from moesim.registry import part


@part
class Spray:
    """Give every spine the same share."""

    per_packet: ClassVar[bool] = True

    def spine_shares(self, topology: Any, src: np.ndarray, dst: np.ndarray, seed: int, batch: Any = 0) -> np.ndarray:
        """Return 1 / spines everywhere, [pairs, spines]."""
        return np.full((len(src), topology.spines), 1 / topology.spines)
