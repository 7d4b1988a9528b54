"""Single paths with splitting (arXiv 2407.00550): whole pairs in turn, the remainder in pieces; loads as if sprayed.

Three pairs from host 0 to one leaf over two spines: one each, the third in halves:

>>> from moesim.network import LeafSpine
>>> fabric = LeafSpine(leaves=2, spines=2, hosts_per_leaf=3, link="400 Gbit/s")
>>> Split().spine_shares(fabric, src=np.array([0, 0, 0]), dst=np.array([3, 4, 5]), seed=0).tolist()
[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from moesim.network.balancing.ecmp import mixed, splitmix64
from moesim.registry import part


@part
class Split:
    """Deal the f flows of a source host to a destination leaf, equal in size and start, over s spines.

    f = q s + r; g = gcd(r, s). The first q s flows stay whole, q per spine; each of the last r is cut in s / g pieces,
    dealt on in turn. Every spine carries f / s flows, as with spraying, in q s + lcm(r, s) pieces (their theorem 1).
    Flows are in the order of their destination; a hash of (source, leaf, seed) says which spine is first.
    """

    per_packet: ClassVar[bool] = False

    def spine_shares(self, topology: Any, src: np.ndarray, dst: np.ndarray, seed: int, batch: Any = 0) -> np.ndarray:
        """Return 1 for the spine of a whole flow, g / s for those of a split one, [flows, spines]."""
        spines, n = topology.spines, len(src)
        leaf, batch = np.asarray(topology.leaf_of(dst)), np.broadcast_to(batch, n)
        order = np.lexsort((dst, leaf, src, batch))
        keys = np.stack([batch, src, leaf])[:, order]
        fresh = np.ones(n, bool)
        fresh[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
        group = np.cumsum(fresh) - 1
        begin = np.flatnonzero(fresh)
        rest = np.bincount(group, minlength=len(begin)) % spines
        turn, width = np.empty(n, np.int64), np.empty(n, np.int64)
        rank = np.arange(n) - begin[group]
        cut = rank - (np.bincount(group, minlength=len(begin)) - rest)[group]  # the cut-th of the split flows; or < 0
        width[order] = np.where(cut < 0, 1, (spines // np.gcd(rest, spines))[group])
        turn[order] = np.where(cut < 0, rank, cut * width[order])
        turn += (splitmix64(mixed(src, leaf, seed)) % np.uint64(spines)).astype(np.int64)
        return ((np.arange(spines) - turn[:, None]) % spines < width[:, None]) / width[:, None]
