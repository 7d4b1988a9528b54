"""Flowlets: a flow in equal bursts, one after the other, each on a path that its own hash picks.

Collisions last for one burst only, but in every burst some flows collide:

>>> from moesim.network import LeafSpine
>>> from moesim.network.ends import Ends
>>> fabric = LeafSpine(leaves=2, spines=4, hosts_per_leaf=4, link="400 Gbit/s")
>>> Flowlet(flowlets=4).paths(Ends.of(fabric, src=[1], dst=[5]), seed=1).path.tolist()
[0, 3, 1, 1]
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import PositiveInt

from moesim.network.balancing.ecmp import hashed
from moesim.network.ends import Choice, Ends, every
from moesim.registry import part


@part
class Flowlet:
    """Cut every flow in *flowlets* bursts.

    Switches cut where a sender pauses; a saturating transfer hardly does, and when is beyond a fluid model, so the
    number is given (default 8: assumed). Packets in flight at a change of path may arrive out of order; not modelled.
    """

    flowlets: PositiveInt = 8
    sent: ClassVar[str] = "in_turn"
    sees_load: ClassVar[bool] = False
    deals: ClassVar[bool] = False

    def paths(self, ends: Ends, seed: int) -> Choice:
        """Return the path of each burst, in order; the first goes where ecmp sends the flow."""
        bursts = [hashed(ends, seed, ends.port * self.flowlets + burst) for burst in range(self.flowlets)]
        path = np.stack(bursts, axis=1)
        flow, burst = every(np.full(len(ends), self.flowlets))
        return Choice(flow, path[flow, burst], np.full(len(flow), 1 / self.flowlets))
