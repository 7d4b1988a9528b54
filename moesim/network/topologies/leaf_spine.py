"""Leaf-spine fabric: every leaf switch has hosts below and one link to every spine switch above.

Two hosts of one leaf meet at the leaf; others cross one spine, which one (or which shares) is up to the balancing:

>>> fabric = LeafSpine(leaves=2, spines=4, hosts_per_leaf=8, link="400 Gbit/s")
>>> fabric.oversubscription, fabric.widths(np.array([0, 0]), np.array([1, 8])).tolist()
(2.0, [[1], [4]])
>>> fabric.links()["class"].value_counts(sort=False).to_dict()
{'nic_out': 16, 'nic_in': 16, 'leaf_up': 8, 'leaf_down': 8}
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt

from moesim.network.topologies._build import Topology, link_table
from moesim.registry import part
from moesim.units import BytesPerSecond, Seconds


@part
class LeafSpine(Topology):
    """Join leaves x hosts_per_leaf hosts; the number of a path is its spine.

    ``link``: bytes/s per direction of a host's port; ``uplink``: of a link between leaf and spine (default: the same);
    ``latency``: of each link. Order of links: nic_out and nic_in by host, leaf_up by (leaf, spine), leaf_down likewise.
    Fewer spines and slower uplinks oversubscribe alike, but the first leaves fewer paths.
    """

    leaves: PositiveInt
    spines: PositiveInt
    hosts_per_leaf: PositiveInt
    link: BytesPerSecond = Field(default="400 Gbit/s", validate_default=True)
    uplink: BytesPerSecond | None = None
    latency: Seconds = 0.0

    @property
    def n_hosts(self) -> int:
        """Number of hosts."""
        return self.leaves * self.hosts_per_leaf

    @property
    def oversubscription(self) -> float:
        """What a leaf's hosts can send over what its uplinks can carry."""
        return self.hosts_per_leaf * self.link / (self.spines * (self.uplink or self.link))

    @property
    def path_latency_s(self) -> float:
        """Latency of the longest path: up, across and down."""
        return self.latency * (4 if self.leaves > 1 else 2)

    def switch_of(self, host: Any) -> Any:
        """Return the leaf of *host* (a number or an array)."""
        return host // self.hosts_per_leaf

    def links(self) -> pd.DataFrame:
        """Return the table of links."""
        hosts = [(f"host{h}", f"leaf{self.switch_of(h)}") for h in range(self.n_hosts)]
        ups = [(f"leaf{leaf}", f"spine{spine}") for leaf in range(self.leaves) for spine in range(self.spines)]
        uplink = self.uplink or self.link
        return link_table([("nic_out", hosts, self.link), ("nic_in", [(b, a) for a, b in hosts], self.link),
                           ("leaf_up", ups, uplink), ("leaf_down", [(b, a) for a, b in ups], uplink)], self.latency)

    def widths(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return the number of spines for pairs of hosts in different leaves, 1 for others: [flows, 1]."""
        return np.where(self.switch_of(src) == self.switch_of(dst), 1, self.spines)[:, None]

    def path(self, src: np.ndarray, dst: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Return the links from *src* to *dst* over the spine *choice*: up, across (-1 inside a leaf), down."""
        ups = 2 * self.n_hosts
        downs = ups + self.leaves * self.spines
        up, down = (self.switch_of(end) * self.spines + choice for end in (src, dst))
        far = self.switch_of(src) != self.switch_of(dst)
        return np.stack([src, np.where(far, ups + up, -1), np.where(far, downs + down, -1), self.n_hosts + dst], axis=1)
