"""NVLS (NVLink SHARP): the switch of a node adds and multicasts; (n + 1) / n of a vector out and in, whatever n.

>>> first, second = Nvls().rounds(8, per_node=8)
>>> float(first[0].share[0]), second
(1.125, [])
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.network.all_reduce._groups import everyone, next_inside, nodes_of
from moesim.network.stages import Round
from moesim.registry import part


@part
class Nvls:
    """Let the switch read a chunk of everybody, own part too, and add; then write the sum to all. Both streams overlap.

    For each 1 / n that it owns a member receives one sum and sends one to be multicast; for all n of them it sends its
    part and receives the result: n + 1 chunks out and n + 1 in ("N + 1 sends, N + 1 receives": nccl-tests issue 238;
    algorithm over bus bandwidth n / (n + 1): nccl-tests pull request 239). The best case of a switch, 1 out and 1 in,
    would need each part to be sent unasked and the sum to stay in the switch.

    Rounds know members, not switches: what each sends to the switch is written as sent to the next member, and the
    bytes on every link between a member and the switch are right. Short vectors go around a ring, 2 (n - 1) messages:
    NCCL's own choice, and what its times on 2, 4 and 8 H100 show. Groups over several nodes add in their switches,
    then around a ring of each position on 1 / m of the vector (NCCL has a tree there: assumed alike). Alone the halves
    are slower than rings (1 out, 1 / n in for a reduce-scatter: NVIDIA/nccl issue 1083) and not given.
    """

    halves_alone: ClassVar[bool] = False

    def rounds(self, n: int, per_node: int) -> tuple[list[Round], list[Round]]:
        """Return the rounds in and between nodes, both halves as one. Raises ``ValueError`` for part-filled nodes."""
        nodes, m = nodes_of(n, per_node)
        share = (m + 1) / m if m > 2 else 2 * (m - 1) / m  # NCCL: the switch is for three and more
        switch = everyone(next_inside(n, m), share, latencies=2)._replace(messages=2 * (m - 1))
        far = everyone((np.arange(n) + m) % n, 1 / n, 2 * (nodes - 1))
        return ([switch] if m > 1 else []) + ([far] if nodes > 1 else []), []
