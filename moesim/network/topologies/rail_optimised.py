"""Rail-optimised fabric: leaf r of a pod joins device r of every node there, and spines join all leaves.

Equal positions of the nodes of a pod (one rail) meet at one leaf; other pairs cross a spine, also inside a node:

>>> fabric = RailOptimised(pods=2, nodes_per_pod=4, rails=8, spines=4)
>>> fabric.n_hosts, fabric.switch_of(8 + 3), fabric.switch_of(3)  # position 3 of nodes 1 and 0
(64, 3, 3)
>>> fabric.widths(np.array([3, 3, 3]), np.array([8 + 3, 8 + 4, 4 * 8 + 3])).tolist()
[[1], [4], [4]]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, NonNegativeInt, PositiveInt

from moesim.network.topologies._build import Topology, link_table
from moesim.registry import part
from moesim.units import BytesPerSecond, Seconds


@part
class RailOptimised(Topology):
    """Join pods x nodes_per_pod nodes of ``rails`` hosts; host = node * rails + rail, leaf = pod * rails + rail.

    ``spines``: every one has a link to every leaf of every pod. 0 is the rail-only fabric of arXiv 2307.12169: pairs
    that do not share a leaf have no path and are relayed inside a node. ``link``: bytes/s per direction of a host's
    port; ``uplink``: of a link between leaf and spine (default: the same); ``latency``: of each link.
    Order of links: nic_out and nic_in by host, leaf_up by (leaf, spine), leaf_down likewise.
    """

    pods: PositiveInt
    nodes_per_pod: PositiveInt
    rails: PositiveInt
    spines: NonNegativeInt
    link: BytesPerSecond = Field(default="400 Gbit/s", validate_default=True)
    uplink: BytesPerSecond | None = None
    latency: Seconds = 0.0

    @property
    def n_hosts(self) -> int:
        """Number of hosts."""
        return self.pods * self.nodes_per_pod * self.rails

    @property
    def oversubscription(self) -> float:
        """What a leaf's hosts can send over what its uplinks can carry; infinite without spines."""
        up = self.spines * (self.uplink or self.link)
        return self.nodes_per_pod * self.link / up if up else float("inf")

    @property
    def path_latency_s(self) -> float:
        """Latency of the longest path: up, across and down."""
        return self.latency * (4 if self.spines and self.pods * self.rails > 1 else 2)

    def switch_of(self, host: Any) -> Any:
        """Return the leaf of *host* (a number or an array)."""
        return host // (self.nodes_per_pod * self.rails) * self.rails + host % self.rails

    def links(self) -> pd.DataFrame:
        """Return the table of links."""
        hosts = [(f"host{h}", f"leaf{self.switch_of(h)}") for h in range(self.n_hosts)]
        ups = [(f"leaf{a}", f"spine{b}") for a in range(self.pods * self.rails) for b in range(self.spines)]
        uplink = self.uplink or self.link
        return link_table([("nic_out", hosts, self.link), ("nic_in", [(b, a) for a, b in hosts], self.link),
                           ("leaf_up", ups, uplink), ("leaf_down", [(b, a) for a, b in ups], uplink)], self.latency)

    def widths(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return the number of spines that the leaf of *src* chooses from, [flows, 1]: 1 inside a leaf."""
        return np.where(self.switch_of(src) == self.switch_of(dst), 1, self.spines).astype(np.int64)[:, None]

    def path(self, src: np.ndarray, dst: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Return the links of each flow on spine *choice*, [flows, 4]: port, up, down, port.

        Up and down are -1 inside a leaf; all four are -1 where there is no path.
        """
        leaf, other = self.switch_of(src), self.switch_of(dst)
        up = 2 * self.n_hosts + leaf * self.spines + choice
        down = 2 * self.n_hosts + (self.pods * self.rails + other) * self.spines + choice
        path = np.column_stack([src, up, down, self.n_hosts + dst])
        path[leaf == other, 1:3] = -1
        if not self.spines:
            path[leaf != other] = -1
        return path
