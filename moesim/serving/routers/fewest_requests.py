"""Send a request to the group that has the fewest, waiting or running.

>>> from moesim.serving.group import example
>>> groups = [example([8], [4], blocks=8), example([], [], blocks=8)]
>>> FewestRequests().choose(0, groups, turn=1)
1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from moesim.registry import part
from moesim.serving.group import Group


@part
class FewestRequests:
    """Keeps numbers of requests even whatever their lengths; ties go to the first group.

    ``waiting``: how many running requests a waiting one counts as (vLLM's data-parallel balancer: 4).
    """

    waiting: Annotated[float, Field(ge=0)] = 1.0

    def choose(self, request: int, groups: Sequence[Group], turn: int) -> int:
        """Return the group of the next request."""
        return min(range(len(groups)), key=lambda g: self.waiting * groups[g].n_waiting + len(groups[g].running))
