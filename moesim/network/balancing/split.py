"""Single paths with splitting (arXiv 2407.00550): whole flows in turn, the remainder in pieces; loads as if sprayed.

Three flows from host 0 to one leaf over two spines: one each, the third in halves:

>>> from moesim.network import LeafSpine
>>> from moesim.network.ends import Ends
>>> fabric = LeafSpine(leaves=2, spines=2, hosts_per_leaf=3, link="400 Gbit/s")
>>> choice = Split().paths(Ends.of(fabric, src=[0, 0, 0], dst=[3, 4, 5]), seed=0)
>>> choice.flow.tolist(), choice.path.tolist(), choice.share.tolist()
([0, 1, 2, 2], [0, 1, 0, 1], [1.0, 1.0, 0.5, 0.5])
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.network.balancing.ecmp import drawn, mixed
from moesim.network.ends import Choice, Ends, every
from moesim.registry import part


@part
class Split:
    """Deal the f flows of a source host to a destination switch, equal in size and start, over s paths.

    f = q s + r; g = gcd(r, s). The first q s flows stay whole, q per path; each of the last r is cut in s / g pieces,
    dealt on in turn. Every path carries f / s flows, as with spraying, in q s + lcm(r, s) pieces (their theorem 1).
    Flows are in the order of their destination; a hash of (source, switch, seed) says which path is first.
    """

    sent: ClassVar[str] = "apart"
    sees_load: ClassVar[bool] = False
    deals: ClassVar[bool] = True

    def paths(self, ends: Ends, seed: int) -> Choice:
        """Return one path for a whole flow, s / g paths for a split one."""
        n, s = len(ends), ends.n_paths
        order = np.lexsort((ends.port, ends.dst, ends.switch, ends.src, ends.batch))
        keys = np.stack([ends.batch, ends.src, ends.switch])[:, order]
        fresh = np.ones(n, bool)
        fresh[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
        group = np.cumsum(fresh) - 1
        begin = np.flatnonzero(fresh)
        count = np.bincount(group, minlength=len(begin))
        rest = count % s[order[begin]]
        turn, pieces = np.empty(n, np.int64), np.empty(n, np.int64)
        rank = np.arange(n) - begin[group]
        cut = rank - (count - rest)[group]  # the cut-th of the split flows; or < 0
        pieces[order] = np.where(cut < 0, 1, (s[order] // np.gcd(rest[group], s[order])))
        turn[order] = np.where(cut < 0, rank, cut * pieces[order])
        turn += drawn(mixed(ends.src, ends.switch, seed), np.zeros(n, np.int64), s)
        flow, piece = every(pieces)
        return Choice(flow, ends.nth(flow, (turn[flow] + piece) % s[flow]), 1 / pieces[flow])
