"""The expert of the layer that runs again last goes: layers come round in a fixed order.

The layer term of HOBBIT (arXiv 2411.01433, "furthest layer distance"), read as the distance to the layer's next turn.
In caches of one layer each all distances are equal, and it is ``lru``.

>>> from moesim.memory import replay
>>> events = [{(layer, 0)} for layer in (0, 1, 2, 3)] * 3  # four layers, room for three experts of any
>>> replay(events, "fld", 3, scope="global").hits, replay(events, "lru", 3, scope="global").hits
(6, 0)
"""

from __future__ import annotations

from moesim.memory.job import Job
from moesim.memory.terms import HERE, LAYER, LAYERS, SEEN, Rule, score
from moesim.registry import part


@score
def _distance(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    for c in range(n):
        ahead = (of[keys[c], LAYER] - now[HERE] - 1.0) % now[LAYERS]
        out[c] = of[keys[c], SEEN] - ahead * 2.0**27


@part
class Fld:
    """Evict by the layers until the expert's layer runs again, then by the last use."""

    def rule(self, job: Job) -> Rule:
        """Return the rule; nothing of *job* plays a part."""
        return Rule(_distance)
