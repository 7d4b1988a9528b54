"""Bi-level (SMILE): between equal positions of the nodes first, then inside the node of the destination.

Device 0 has something for device 3: over its own port to device 2, the mirror of PXN's way.

>>> import numpy as np
>>> copies = np.zeros((4, 4), np.int32)
>>> copies[0, 3] = 7
>>> for stage in Bilevel().stages(Messages(copies), per_node=2):
...     print([tuple(map(int, pair)) for pair in np.argwhere(stage.traffic)])
[(0, 2)]
[(2, 3)]
"""

from __future__ import annotations

from moesim.network.all_to_all._rails import across, by_node, fan_out, summed
from moesim.network.stages import Messages, Stage
from moesim.registry import part


@part
class Bilevel:
    """Route to a node, then to a device in it: two kernels, O(N + m) messages per device, no copies.

    SMILE (arXiv 2212.05191) trains a router of two levels for this; here the routing is given and only its transport is
    two-level. A token goes over the port once per device that it is bound for (``node_limited``: once per node).
    """

    def stages(self, messages: Messages, per_node: int) -> list[Stage]:
        """Return the stage along the rails and the stage inside nodes."""
        sent = by_node(messages, per_node)
        return [Stage(across(summed(sent, -1).swapaxes(-2, -1))), Stage(fan_out(messages, per_node))]
