"""Packet spraying: every flow uses all paths equally (splitting flows as in arXiv 2407.00550 loads links the same).

>>> from moesim.network import LeafSpine
>>> from moesim.network.ends import Ends
>>> fabric = LeafSpine(leaves=2, spines=4, hosts_per_leaf=2, link="400 Gbit/s")
>>> choice = Spray().paths(Ends.of(fabric, src=[0], dst=[2]), seed=0)
>>> choice.path.tolist(), choice.share.tolist()
([0, 1, 2, 3], [0.25, 0.25, 0.25, 0.25])
"""

from __future__ import annotations

from typing import ClassVar

from moesim.network.ends import Choice, Ends, every
from moesim.registry import part


@part
class Spray:
    """Give every path the same share."""

    sent: ClassVar[str] = "together"
    sees_load: ClassVar[bool] = False
    deals: ClassVar[bool] = False

    def paths(self, ends: Ends, seed: int) -> Choice:
        """Return 1 / (number of paths) for each."""
        flow, rank = every(ends.n_paths)
        return Choice(flow, ends.nth(flow, rank), 1 / ends.n_paths[flow])
