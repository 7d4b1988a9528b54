"""Equal-cost multipath: switches hash the flow's addresses and ports; flows can collide.

>>> from moesim.network import LeafSpine
>>> from moesim.network.ends import Ends
>>> fabric = LeafSpine(leaves=2, spines=4, hosts_per_leaf=4, link="400 Gbit/s")
>>> Ecmp().paths(Ends.of(fabric, src=[0, 1, 2, 3], dst=[4, 5, 6, 7]), seed=0).path.tolist()
[3, 2, 1, 1]
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.network.ends import Choice, Ends
from moesim.registry import part

GAMMA = 0x9E3779B97F4A7C15  # step of the splitmix64 sequence (Steele, Lea, Flood, OOPSLA 2014)


@part
class Ecmp:
    """Choose at every switch on the way up by a 64-bit hash of (source, destination, port) and the switch's seed.

    A flow passes one switch of each tier, so a seed per tier is as good as one per switch. ``polarised``: all tiers
    hash alike (equal switches, seeds never set), so that what one tier brought together the next cannot spread.
    Flows whose path is dead are hashed once more, over the living ones; others stay where they are (resilient hashing).
    """

    polarised: bool = False
    sent: ClassVar[str] = "apart"
    sees_load: ClassVar[bool] = False
    deals: ClassVar[bool] = False

    def paths(self, ends: Ends, seed: int) -> Choice:
        """Return one path for each flow."""
        return Choice(np.arange(len(ends)), hashed(ends, seed, ends.port, self.polarised), np.ones(len(ends)))


def hashed(ends: Ends, seed: int, port: np.ndarray, polarised: bool = False) -> np.ndarray:
    """Return the path that the switches' hashes of *ends*, with these *port* s, give each flow, int64 [flows]."""
    path = np.zeros(len(ends), np.int64)
    for tier in range(ends.widths.shape[1]):
        width = ends.widths[:, tier]
        salt = seed if tier == 0 or polarised else splitmix64(np.uint64(seed)) ^ splitmix64(np.uint64(tier))
        path = path * width + drawn(mixed(ends.src, ends.dst, salt), port, width)
    again = np.flatnonzero(ends.dead(np.arange(len(ends)), path))
    if len(again):
        pair = mixed(ends.src[again], ends.dst[again], splitmix64(~np.uint64(seed)))
        path[again] = ends.nth(again, drawn(pair, port[again], ends.n_paths[again]))
    return path


def drawn(state: np.ndarray, port: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return a number below *width* for each *state* (uint64) and *port*, int64."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        value = splitmix64(state + np.asarray(port).astype(np.uint64) * np.uint64(GAMMA))
    return (value % np.asarray(width).astype(np.uint64)).astype(np.int64)


def mixed(src: np.ndarray, dst: np.ndarray, seed: int | np.ndarray) -> np.ndarray:
    """Return a number (uint64) per (source, destination, seed): what switches hash."""
    pair = np.asarray(src, np.uint64) << np.uint64(32) | np.asarray(dst, np.uint64)
    return splitmix64(pair) ^ splitmix64(np.uint64(seed))


def splitmix64(x: np.ndarray | np.uint64) -> np.ndarray:
    """Return a well-mixed 64-bit hash of each of *x* (uint64). Source: Steele, Lea, Flood, OOPSLA 2014."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        z = np.asarray(x, np.uint64) + np.uint64(GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
