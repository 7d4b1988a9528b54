"""Send a request to the group that has the fewest, waiting or running, as far as the router knows.

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
from moesim.units import Seconds


@part
class FewestRequests:
    """Keeps numbers of requests even whatever their lengths; ties go to the first group.

    ``waiting``: how many running requests a waiting one counts as (vLLM's data-parallel balancer: 4). ``period``: the
    router is told the counts at multiples of it, each time as they were when a group's last step ended, and adds what
    it has sent since as waiting (vLLM's coordinator: 100 ms at least, v1/engine/coordinator.py); 0: it always knows.
    """

    waiting: Annotated[float, Field(ge=0)] = 1.0
    period: Annotated[Seconds, Field(ge=0)] = 0.0

    def choose(self, request: int, groups: Sequence[Group], turn: int) -> int:
        """Return the group of the next request."""
        return min(range(len(groups)), key=lambda g: self._load(request, groups[g]))

    def _load(self, request: int, group: Group) -> float:
        if not self.period:
            return self.waiting * group.n_waiting + len(group.running)
        told_s = float(group.requests.arrival_s[request]) // self.period * self.period
        waiting, running = group.reported(told_s)
        return self.waiting * (waiting + group.newer(told_s)) + running
