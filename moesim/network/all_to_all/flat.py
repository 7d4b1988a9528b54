"""Straight to the destination, everything at once (NCCL's grouped send and receive): one stage.

Each of four devices has three messages to issue, whatever the nodes:

>>> import numpy as np
>>> flat = Flat().stages(Messages(np.ones((4, 4), np.int32)), per_node=2)
>>> len(flat), flat[0].traffic.tolist()
(1, [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
"""

from __future__ import annotations

from moesim.network.all_to_all._rails import checked
from moesim.network.stages import Messages, Stage
from moesim.registry import part


@part
class Flat:
    """Send every message by itself: D - 1 per device, over scale-up links and ports side by side."""

    def stages(self, messages: Messages, per_node: int) -> list[Stage]:
        """Return one stage whose traffic is the copies themselves, not a copy of them."""
        return [Stage(checked(messages, per_node))]
