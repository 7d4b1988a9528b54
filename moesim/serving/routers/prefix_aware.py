"""Send a request to where most of its prompt is in memory already, unless that group has far more to do.

>>> from moesim.serving.group import example
>>> groups = [example([8], [4], blocks=8), example([], [], blocks=8)]
>>> PrefixAware().choose(0, groups, turn=1)      # nothing is known anywhere: the group with the fewest requests
1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from moesim.registry import part
from moesim.serving.group import Group


@part
class PrefixAware:
    """Cache-aware routing as in SGLang's router, which guesses from a tree of texts what this one sees in memory.

    ``threshold``: share of the prompt that must be there to count. ``slack``: requests by which the fullest group may
    be ahead of the emptiest; beyond, and without a match, the group with the fewest requests is chosen. (SGLang's
    defaults: 0.5 and 32.)
    """

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    slack: Annotated[int, Field(ge=0)] = 32

    def choose(self, request: int, groups: Sequence[Group], turn: int) -> int:
        """Return the group of the next request."""
        count = [group.n_waiting + len(group.running) for group in groups]
        emptiest = min(range(len(groups)), key=count.__getitem__)
        if max(count) - min(count) > self.slack:
            return emptiest
        prompt = int(groups[0].requests.prompt[request])
        found = [group.pool.found(request, prompt) for group in groups]
        best = max(range(len(groups)), key=lambda g: (found[g], -count[g]))
        return best if found[best] > 0 and found[best] >= self.threshold * prompt else emptiest
