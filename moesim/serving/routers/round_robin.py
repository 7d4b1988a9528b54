"""Send requests to the groups in turn, whatever they are.

>>> from moesim.serving.group import example
>>> groups = [example([8], [4], blocks=8), example([], [], blocks=8)]
>>> [RoundRobin().choose(0, groups, turn) for turn in range(4)]
[0, 1, 0, 1]
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.registry import part
from moesim.serving.group import Group


@part
class RoundRobin:
    """Knows nothing of lengths and loads."""

    def choose(self, request: int, groups: Sequence[Group], turn: int) -> int:
        """Return the group of the next request."""
        return turn % len(groups)
