"""Rings in two levels: reduce in each node, a ring between equal positions of the nodes on 1 / m each, gather back.

>>> first, second = HierarchicalRing().rounds(4, per_node=2)
>>> [(r.dst.tolist(), float(r.share[0]), r.repeat) for r in first]
[([1, 0, 3, 2], 0.5, 1), ([2, 3, 0, 1], 0.25, 1)]
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.network.all_reduce._groups import everyone, next_inside, nodes_of
from moesim.network.stages import Round
from moesim.registry import part


@part
class HierarchicalRing:
    """Use all ports of a node: position a reduces and gathers its 1 / m of the vector with the a-th of the other nodes.

    Three kernels for an all-reduce: in the node, between nodes, in the node. Within one node it is ``ring``.
    """

    halves_alone: ClassVar[bool] = True

    def rounds(self, n: int, per_node: int) -> tuple[list[Round], list[Round]]:
        """Return for each half the rings in and between nodes. Raises ``ValueError`` for nodes filled in part."""
        nodes, m = nodes_of(n, per_node)
        near = [everyone(next_inside(n, m), 1 / m, m - 1)] if m > 1 else []
        if nodes == 1:
            return near, [r._replace(launch=False) for r in near]
        far = everyone((np.arange(n) + m) % n, 1 / n, nodes - 1)
        return [*near, far], [far._replace(launch=False), *near]
