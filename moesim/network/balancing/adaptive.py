"""Adaptive routing: a flow takes the path on which the fewest bytes wait when it starts, and stays there.

Four flows that start together find four different spines (hashing would let some collide):

>>> from moesim.network import LeafSpine
>>> from moesim.network.ends import Ends
>>> fabric = LeafSpine(leaves=2, spines=4, hosts_per_leaf=4, link="400 Gbit/s")
>>> sorted(Adaptive().paths(Ends.of(fabric, src=[0, 1, 2, 3], dst=[4, 5, 6, 7]), seed=0).path.tolist())
[0, 1, 2, 3]
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.network.balancing.ecmp import drawn, mixed
from moesim.network.ends import Choice, Ends, every
from moesim.registry import part

_FLOWS = 65_536  # so many at a time, or the table of all their paths grows large


@part
class Adaptive:
    """Choose by the seconds of bytes that wait on all links of a path, flow by flow, in the order of a hash.

    It sees the whole path, as CONGA does (SIGCOMM 2014); switches that see only their own ports do worse. Equal
    paths are told apart by a hash. In the closed form all pairs of devices start together with equal bytes.
    """

    sent: ClassVar[str] = "apart"
    sees_load: ClassVar[bool] = True
    deals: ClassVar[bool] = True

    def paths(self, ends: Ends, seed: int) -> Choice:
        """Return one path for each flow."""
        from moesim.network.loops import least_loaded  # numba

        links = ends.fabric.links()
        second = 1 / np.maximum(links["capacity_bytes_per_s"].to_numpy(), 1e-300)  # per byte
        waiting = np.zeros(len(links)) if ends.backlog_s is None else ends.backlog_s.copy()
        first = drawn(mixed(ends.src, ends.dst, seed), ends.port, ends.n_paths)
        chosen = np.empty(len(ends), np.int64)
        turn = np.lexsort((ends.size, ends.port, mixed(ends.src, ends.dst, seed)))
        for begin in range(0, len(ends), _FLOWS):
            some = turn[begin:begin + _FLOWS]
            row, rank = every(ends.n_paths[some])
            path = ends.nth(some[row], (first[some][row] + rank) % ends.n_paths[some][row])
            start = np.cumsum(ends.n_paths[some]) - ends.n_paths[some]
            pick = least_loaded(start, ends.links(some[row], path), ends.size[some], second, waiting)
            chosen[some] = path[pick]
        return Choice(np.arange(len(ends)), chosen, np.ones(len(ends)))
