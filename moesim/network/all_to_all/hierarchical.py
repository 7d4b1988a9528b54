"""Hierarchical (DeepSpeed-MoE): change the layout, exchange in the node, change it again, exchange along the rails.

The first change of layout can be had for nothing where the kernel that sorts tokens writes them in the order wanted:

>>> import numpy as np
>>> ones = Messages(np.ones((4, 4), np.int32))
>>> [np.sum(stage.copied).item() for stage in Hierarchical(transforms=1).stages(ones, per_node=2)]
[0.0, 16]
"""

from __future__ import annotations

from typing import Literal

from moesim.network.all_to_all._rails import checked, near_then_far, summed
from moesim.network.stages import Messages, Stage
from moesim.registry import part


@part
class Hierarchical:
    """Take O(m + D / m) messages instead of O(D), for twice the volume in all; with two copies it equals ``2dh``.

    ``transforms``: 2, as published (DeepSpeed-MoE, arXiv 2201.05596, section 5.3), or 1, only that between the stages.
    One node, or nodes of one device, have nothing to align: there it is ``flat`` without copies.
    """

    transforms: Literal[1, 2] = 2

    def stages(self, messages: Messages, per_node: int) -> list[Stage]:
        """Return the stage inside nodes and the stage along the rails, with the copies before them."""
        copies = checked(messages, per_node)
        if per_node in (1, copies.shape[-1]):
            return [Stage(copies)]
        near, far = near_then_far(messages, per_node)
        first = summed(copies, -1) if self.transforms == 2 else 0.0
        return [Stage(near, copied=first), Stage(far, copied=summed(near, -2))]
