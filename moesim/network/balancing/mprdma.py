"""Multi-path RDMA: every pair in equal pieces, each on a spine that its own hash picks; more pieces, fewer collisions.

>>> from moesim.network import LeafSpine
>>> fabric = LeafSpine(leaves=2, spines=4, hosts_per_leaf=4, link="400 Gbit/s")
>>> Mprdma(pieces=4).spine_shares(fabric, src=np.array([0, 1]), dst=np.array([4, 5]), seed=1).tolist()
[[0.25, 0.25, 0.25, 0.25], [0.25, 0.5, 0.0, 0.25]]
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import PositiveInt

from moesim.network.balancing.ecmp import mixed, splitmix64
from moesim.registry import part

GAMMA = 0x9E3779B97F4A7C15  # step of the splitmix64 sequence (Steele, Lea, Flood, OOPSLA 2014)


@part
class Mprdma:
    """Hash each of *pieces* on its own; pieces that meet on a spine are one piece of their joint size.

    Default 4: one of the numbers (2, 4, 8) that arXiv 2407.00550 compares with.
    """

    pieces: PositiveInt = 4
    per_packet: ClassVar[bool] = False

    def spine_shares(self, topology: Any, src: np.ndarray, dst: np.ndarray, seed: int, batch: Any = 0) -> np.ndarray:
        """Return the share of the pieces on each spine, [flows, spines]; one piece goes where ecmp sends it."""
        state, count = mixed(src, dst, seed), np.zeros((len(src), topology.spines))
        for piece in range(self.pieces):
            step = np.uint64(piece * GAMMA % 2**64)
            with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
                spine = splitmix64(state + step) % np.uint64(topology.spines)
            count[np.arange(len(src)), spine.astype(np.int64)] += 1
        return count / self.pieces
