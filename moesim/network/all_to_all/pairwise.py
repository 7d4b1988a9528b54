"""Staged: D - 1 rounds, in round k device i sends to device i + k only; nobody receives from two at once.

>>> rounds = Pairwise().stages(Messages(np.arange(9).reshape(3, 3)), per_node=1)
>>> [(r.traffic.tolist(), r.launch) for r in rounds]
[([[0, 1, 0], [0, 0, 5], [6, 0, 0]], True), ([[0, 0, 2], [3, 0, 0], [0, 7, 0]], False)]
"""

from __future__ import annotations

import numpy as np

from moesim.network.all_to_all._rails import checked
from moesim.network.stages import Messages, Stage
from moesim.registry import part

LARGEST_BYTES = 2**30  # assumed: what a call may take of memory. 512 devices of bytes (float64) without a batch fit


@part
class Pairwise:
    """Wait for each other after every round, in one kernel: uneven rounds add up their slowest members.

    The pairs of a round are a permutation, so on a non-blocking fabric no link is shared (MPICH's choice for large
    messages: Thakur, Rabenseifner, Gropp, IJHPCA 2005).
    """

    def stages(self, messages: Messages, per_node: int) -> list[Stage]:
        """Return D - 1 stages, of one device an empty one; the diagonal of the messages is in none of them.

        Raises ``ValueError`` when the matrices of all rounds would take more than 1 GiB.
        """
        copies = checked(messages, per_node)
        devices = np.arange(copies.shape[-1])
        if (len(devices) - 1) * copies.nbytes > LARGEST_BYTES:
            raise ValueError(f"pairwise makes a matrix per round: {len(devices) - 1} of {copies.nbytes} bytes are more "
                             f"than 1 GiB; exchange fewer layers at once, or take 'flat'")
        found = []
        for step in range(1, len(devices)):
            target = (devices + step) % len(devices)
            traffic = np.zeros_like(copies)
            traffic[..., devices, target] = copies[..., devices, target]
            found.append(Stage(traffic, launch=step == 1))
        return found or [Stage(np.zeros_like(copies))]
