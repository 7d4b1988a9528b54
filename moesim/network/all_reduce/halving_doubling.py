"""Recursive halving, then doubling: log2 n exchanges with ever nearer partners of ever smaller parts, and back.

>>> first, second = HalvingDoubling().rounds(4, per_node=1)
>>> [(r.dst.tolist(), float(r.share[0])) for r in first]
[([2, 3, 0, 1], 0.5), ([1, 0, 3, 2], 0.25)]
>>> [float(r.share[0]) for r in second]
[0.25, 0.5]
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.network.all_reduce._groups import everyone, positive
from moesim.network.stages import Round
from moesim.registry import part


@part
class HalvingDoubling:
    """Swap half of the vector at distance n / 2, a quarter at n / 4, ..., 1 / n with the neighbour; gather mirrored.

    As few bytes as a ring in 2 log2 n steps (Thakur, Rabenseifner, Gropp, IJHPCA 2005), but all members send to one
    partner at once: few large flows, which collide where paths are hashed.
    """

    halves_alone: ClassVar[bool] = True

    def rounds(self, n: int, per_node: int) -> tuple[list[Round], list[Round]]:
        """Return log2 n rounds for each half, in one kernel. Raises ``ValueError`` unless *n* is a power of two."""
        positive(n, per_node)
        if n & (n - 1):
            raise ValueError(f"halving_doubling needs a power of two, got {n} members; "
                             f"take {1 << n.bit_length() - 1} or {1 << n.bit_length()}, or the collective 'ring'")
        distances = [n >> step for step in range(1, n.bit_length())]
        member = np.arange(n)
        halves = [everyone(member ^ d, d / n, launch=d == n // 2) for d in distances]
        return halves, [r._replace(launch=False) for r in reversed(halves)]
