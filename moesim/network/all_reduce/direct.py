"""Direct: every member sends every other its 1 / n at once, twice. Fewest bytes and fewest steps, n - 1 messages each.

>>> first, second = Direct().rounds(3, per_node=1)
>>> list(zip(first[0].src.tolist(), first[0].dst.tolist()))
[(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.network.all_reduce._groups import positive
from moesim.network.stages import Round
from moesim.registry import part


@part
class Direct:
    """Do an all-to-all to reduce and another to gather: the two-shot kernels of serving engines, for small vectors."""

    halves_alone: ClassVar[bool] = True

    def rounds(self, n: int, per_node: int) -> tuple[list[Round], list[Round]]:
        """Return one round of n (n - 1) messages for each half, in one kernel."""
        positive(n, per_node)
        if n == 1:
            return [], []
        src, dst = np.nonzero(~np.eye(n, dtype=bool))
        reduce = Round(src, dst, np.full(len(src), 1 / n))
        return [reduce], [reduce._replace(launch=False)]
