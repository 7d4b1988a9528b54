"""Two-dimensional hierarchical, 2DH (Tutel): copy, exchange in the node, copy, exchange between equal positions.

Each device of two nodes of four sends one message of 4 between nodes, where flat sends four of 1:

>>> import numpy as np
>>> near, far = Twodh().stages(Messages(np.ones((8, 8), np.int32)), per_node=4)
>>> near.traffic[0].tolist(), far.traffic[0].tolist()
([2, 2, 2, 2, 0, 0, 0, 0], [4, 0, 0, 0, 4, 0, 0, 0])
>>> near.copied.tolist() == far.copied.tolist() == [8] * 8
True
"""

from __future__ import annotations

from moesim.network.all_to_all._rails import checked, near_then_far, summed
from moesim.network.stages import Messages, Stage
from moesim.registry import part


@part
class Twodh:
    """Pay two copies and a stage inside nodes for large messages between them: four phases, one after the other.

    The strided copies bring together what one message carries: before the first stage by position of the destination,
    before the second by its node. Each moves all that a device holds, its own part too.
    Source: Tutel, arXiv 2206.03382. One node, or nodes of one device, have nothing to
    align: there it is ``flat`` without copies, as the chunks already lie in order.
    """

    def stages(self, messages: Messages, per_node: int) -> list[Stage]:
        """Return the stage inside nodes and the stage along the rails, each with the copy before it."""
        copies = checked(messages, per_node)
        if per_node in (1, copies.shape[-1]):
            return [Stage(copies)]
        near, far = near_then_far(messages, per_node)
        return [Stage(near, copied=summed(copies, -1)), Stage(far, copied=summed(near, -2))]
