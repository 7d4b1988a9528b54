"""Parallelism-coordinated (DeepSpeed-MoE): equal tensor-parallel ranks exchange a slice each, then groups gather it.

Groups {0, 1} and {2, 3}; group 0 has 8 for group 1: each rank carries 4, and passes them on to the other.

>>> copies = np.zeros((4, 4))
>>> copies[0, 3] = 8
>>> for stage in Coordinated(width=2).stages(Messages(copies), per_node=4):
...     print({(int(i), int(j)): float(stage.traffic[i, j]) for i, j in np.argwhere(stage.traffic) if i != j})
{(0, 2): 4.0, (1, 3): 4.0}
{(2, 3): 4.0, (3, 2): 4.0}
"""

from __future__ import annotations

import numpy as np
from pydantic import PositiveInt

from moesim.network.all_to_all._rails import across, checked, inside
from moesim.network.stages import Messages, Stage
from moesim.registry import part


@part
class Coordinated:
    """Let each of the *width* neighbours of a tensor-parallel group carry 1 / width of what the group has to send.

    That is possible because they hold the same tokens, and of use where they also share their experts in slices, so
    that each needs all tokens of its group (drop, exchange, all-gather: DeepSpeed pull request 5626). For experts that
    are whole, arXiv 2201.05596 (section 5.3) needs no all-gather on the way out. On the way home the transposed
    all-gather is the reduce-scatter of the slices' partial sums. D / width peers instead of D.
    """

    width: PositiveInt

    def stages(self, messages: Messages, per_node: int) -> list[Stage]:
        """Return the exchange between equal ranks and the all-gather in the groups, both float64.

        Raises ``ValueError`` when groups of *width* neighbours do not divide the devices.
        """
        copies = checked(messages, per_node)
        n_devices = copies.shape[-1]
        if n_devices % self.width:
            raise ValueError(f"groups of {self.width} do not divide {n_devices} devices; take another width")
        groups = n_devices // self.width
        shape = (*copies.shape[:-2], groups, self.width, groups, self.width)
        slices = copies.reshape(shape).sum(axis=(-3, -1)) / self.width  # [..., from group, to group]
        ranks = np.broadcast_to(slices[..., None], (*slices.shape, self.width))
        held = slices.sum(axis=-2)[..., None, None]  # what a rank of each group then has: the others want it
        return [Stage(across(ranks)), Stage(inside(np.broadcast_to(held, (*held.shape[:-2], self.width, self.width))))]
