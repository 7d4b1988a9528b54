"""Multi-path RDMA: every flow in equal pieces, each on a path that its own hash picks; more pieces, fewer collisions.

>>> from moesim.network import LeafSpine
>>> from moesim.network.ends import Ends
>>> fabric = LeafSpine(leaves=2, spines=4, hosts_per_leaf=4, link="400 Gbit/s")
>>> choice = Mprdma(pieces=4).paths(Ends.of(fabric, src=[0, 1], dst=[4, 5]), seed=1)
>>> choice.flow.tolist(), choice.path.tolist(), choice.share.tolist()
([0, 0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 0, 1, 3], [0.25, 0.25, 0.25, 0.25, 0.25, 0.5, 0.25])
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import PositiveInt

from moesim.network.balancing.ecmp import hashed
from moesim.network.ends import Choice, Ends
from moesim.registry import part


@part
class Mprdma:
    """Hash each of *pieces* on its own; pieces that meet on a path are one piece of their joint size.

    Default 4: one of the numbers (2, 4, 8) that arXiv 2407.00550 compares with.
    """

    pieces: PositiveInt = 4
    sent: ClassVar[str] = "apart"
    sees_load: ClassVar[bool] = False
    deals: ClassVar[bool] = False

    def paths(self, ends: Ends, seed: int) -> Choice:
        """Return the shares of the pieces; one piece goes where ecmp sends it."""
        n = len(ends)
        most = int(ends.widths.prod(axis=1).max(initial=1))
        key = np.stack([np.arange(n) * most + hashed(ends, seed, ends.port * self.pieces + piece)
                        for piece in range(self.pieces)])
        place, count = np.unique(key, return_counts=True)
        return Choice(place // most, place % most, count / self.pieces)
