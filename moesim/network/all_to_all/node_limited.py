"""Node-limited (DeepSeek-V3, DeepEP's normal kernels): a token crosses once per node, then fans out over NVLink.

One token of device 0 is bound for devices 2 and 3 of the other node: one copy over the port, not two.

>>> copies, visits = np.zeros((4, 4), np.int32), np.zeros((4, 2), np.int32)
>>> copies[0, 2] = copies[0, 3] = visits[0, 1] = 1
>>> for stage in NodeLimited().stages(Messages(copies, visits), per_node=2):
...     print([tuple(map(int, pair)) for pair in np.argwhere(stage.traffic)], stage.with_before)
[(0, 2)] False
[(2, 2), (2, 3)] True
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.network.all_to_all._rails import across, checked, fan_out
from moesim.network.stages import Messages, Stage
from moesim.registry import part


@part
class NodeLimited:
    """Send one copy per remote node along the rail; the device there forwards it as it arrives. Both stages overlap.

    ``messages.copies`` counts a token once per device, ``messages.node_copies`` once per node. Home, the forwarder adds
    what its node's devices return and sends one sum: the same bytes reversed. Source: DeepSeek-V3, arXiv 2412.19437,
    section 3.2.2; DeepEP's internode kernels.
    """

    needs_nodes: ClassVar[bool] = True

    def stages(self, messages: Messages, per_node: int) -> list[Stage]:
        """Return the stage along the rails and the stage inside nodes: forwarded copies and those of own tokens.

        Raises ``ValueError`` when ``node_copies`` is None or not [..., D, N].
        """
        copies = checked(messages, per_node)
        nodes = copies.shape[-1] // per_node
        if messages.node_copies is None:
            raise ValueError("node_limited needs node_copies [..., devices, nodes], a token once per node it visits; "
                             "count them, or take 'pxn', which sends a copy per device")
        visits = np.asarray(messages.node_copies)
        if visits.shape != (*copies.shape[:-1], nodes):
            raise ValueError(f"node_copies have the shape {visits.shape}; copies {copies.shape} in nodes of {per_node} "
                             f"need {(*copies.shape[:-1], nodes)}")
        rails = visits.reshape(*visits.shape[:-2], nodes, per_node, nodes).swapaxes(-2, -1)
        return [Stage(across(rails)), Stage(fan_out(messages, per_node), with_before=True)]
