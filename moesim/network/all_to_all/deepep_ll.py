"""DeepEP's low-latency kernels: every copy straight to its device, then one counter per expert; no forwarding.

With 8 experts on two nodes, each device tells 4 experts of the other node how many tokens to wait for:

>>> stages = DeepepLl(experts=8).stages(Messages(np.ones((4, 4), np.int32)), per_node=2)
>>> len(stages), stages[0].messages.tolist()
(1, [4, 4, 4, 4])
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import PositiveInt

from moesim.network.all_to_all._rails import checked
from moesim.network.stages import Messages, Stage
from moesim.registry import part


@part
class DeepepLl:
    """Send as ``flat`` does, but let threads of the GPU write to the port: tokens cost bytes only, counters messages.

    A token goes out once per expert, even to one device (DeepEP, ``internode_ll``: one buffer slot per source and
    expert), so count its copies without de-duplication: per (token, expert), not per (token, device). Then one remote
    atomic per expert on another node tells how many came (``amo_nonfetch_add`` in that kernel); that these are what
    grows with the number of nodes is the best of the readings tested, not proven. ``experts``: of a layer; default:
    what the messages say. Its constants are its own: machines give them as deepep_ll and, for the way home,
    deepep_ll_combine.
    """

    experts: PositiveInt | None = None
    per_expert: ClassVar[bool] = True

    def stages(self, messages: Messages, per_node: int) -> list[Stage]:
        """Return one stage: the copies themselves. Raises ``ValueError`` if nobody says how many experts there are."""
        copies = checked(messages, per_node)
        experts = self.experts or messages.n_experts
        if experts is None:
            raise ValueError("deepep_ll sends a counter per expert: give their number, {name: deepep_ll, experts: 256}")
        away = round(experts * (1 - per_node / copies.shape[-1]))
        return [Stage(copies, messages=np.full(copies.shape[:-1], away))]
