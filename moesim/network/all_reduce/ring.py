"""Ring: n - 1 times a share of 1 / n to the next member, to reduce; the same again to gather. Fewest bytes, most steps.

>>> first, second = Ring().rounds(4, per_node=4)
>>> first[0].dst.tolist(), first[0].share.tolist(), first[0].repeat
([1, 2, 3, 0], [0.25, 0.25, 0.25, 0.25], 3)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.network.all_reduce._groups import everyone, positive
from moesim.network.stages import Round
from moesim.registry import part


@part
class Ring:
    """Pass chunks around one ring in the order of the members (Patarasuk, Yuan, JPDC 2009).

    Between nodes the one ring uses one port of each node, that of its last member; ``hierarchical_ring`` uses all.
    """

    halves_alone: ClassVar[bool] = True

    def rounds(self, n: int, per_node: int) -> tuple[list[Round], list[Round]]:
        """Return one repeated round for each half; the second continues the kernel of the first."""
        positive(n, per_node)
        if n == 1:
            return [], []
        target = (np.arange(n) + 1) % n
        return [everyone(target, 1 / n, n - 1)], [everyone(target, 1 / n, n - 1, launch=False)]
