"""Send a request to the group whose requests need the least KV memory.

>>> from moesim.serving.group import example
>>> groups = [example([8], [4], blocks=8), example([4, 4], [2, 1], blocks=8)]    # 11 tokens, and 5 + 4
>>> LeastLoaded().choose(0, groups, turn=3)
1
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.registry import part
from moesim.serving.group import Group


@part
class LeastLoaded:
    """Keeps memory, and so the work of attention, even; it knows how long outputs will be. Ties: fewest requests."""

    def choose(self, request: int, groups: Sequence[Group], turn: int) -> int:
        """Return the group of the next request."""
        return min(range(len(groups)), key=lambda g: (
            groups[g].promised, groups[g].n_waiting + len(groups[g].running)))
