"""PXN (NCCL since 2.12): over NVLink to the neighbour on the destination's rail, whose port sends one message per node.

Device 0 has something for device 3, position 1 of the other node: device 1 carries it.

>>> import numpy as np
>>> copies = np.zeros((4, 4), np.int32)
>>> copies[0, 3] = 7
>>> for stage in Pxn().stages(Messages(copies), per_node=2):
...     print([tuple(map(int, pair)) for pair in np.argwhere(stage.traffic)], stage.with_before)
[(0, 1)] False
[(1, 3)] True
"""

from __future__ import annotations

from moesim.network.all_to_all._rails import near_then_far
from moesim.network.stages import Messages, Stage
from moesim.registry import part


@part
class Pxn:
    """Gather in the node what goes along one rail and send it while more arrives: the two stages overlap.

    No bytes cross rails; what the m devices of a node send to one device travels as one message. Source: NVIDIA,
    "Doubling all2all Performance with NCCL 2.12" (2022).
    """

    def stages(self, messages: Messages, per_node: int) -> list[Stage]:
        """Return the stage inside nodes (which also delivers what stays in them) and the stage along the rails."""
        near, far = near_then_far(messages, per_node)
        return [Stage(near), Stage(far, with_before=True)]
