"""Equal-cost multipath: a hash of the pair picks one spine for all its bytes, so pairs can collide.

>>> from moesim.network import LeafSpine
>>> fabric = LeafSpine(leaves=2, spines=4, hosts_per_leaf=4, link="400 Gbit/s")
>>> shares = Ecmp().spine_shares(fabric, src=np.arange(4), dst=np.arange(4) + 4, seed=0)
>>> shares.max(axis=1).tolist(), shares.sum(axis=0).tolist()
([1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 1.0, 1.0])
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from moesim.registry import part


@part
class Ecmp:
    """Pick a spine per (source, destination, seed) with a 64-bit hash; flows of a pair are one connection.

    Only the leaf of the source chooses here, and no two leaves hash the same pair: one seed for all switches is as good
    as one for each.
    """

    per_packet: ClassVar[bool] = False

    def spine_shares(self, topology: Any, src: np.ndarray, dst: np.ndarray, seed: int, batch: Any = 0) -> np.ndarray:
        """Return 1 for the hashed spine and 0 for the others, [pairs, spines]."""
        spine = splitmix64(mixed(src, dst, seed)) % np.uint64(topology.spines)
        return (spine[:, None] == np.arange(topology.spines, dtype=np.uint64)).astype(np.float64)


def mixed(src: np.ndarray, dst: np.ndarray, seed: int) -> np.ndarray:
    """Return a number (uint64) per (source, destination, seed): what switches hash."""
    pair = np.asarray(src, np.uint64) << np.uint64(32) | np.asarray(dst, np.uint64)
    return splitmix64(pair) ^ splitmix64(np.uint64(seed))


def splitmix64(x: Any) -> np.ndarray:
    """Return a well-mixed 64-bit hash of each of *x* (uint64). Source: Steele, Lea, Flood, OOPSLA 2014."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        z = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
