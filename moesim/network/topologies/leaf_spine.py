"""Leaf-spine fabric: every leaf switch has hosts below and one link to every spine switch above.

Two hosts of one leaf meet at the leaf; others cross one spine, which one (or which shares) is up to the balancing:

>>> fabric = LeafSpine(leaves=2, spines=4, hosts_per_leaf=8, link="400 Gbit/s")
>>> fabric.oversubscription, fabric.leaf_of(8)
(2.0, 1)
>>> fabric.links()["class"].value_counts(sort=False).to_dict()
{'nic_out': 16, 'nic_in': 16, 'leaf_up': 8, 'leaf_down': 8}
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt
from scipy import sparse

from moesim.network.topologies._build import graph, link_table
from moesim.registry import part
from moesim.units import BytesPerSecond, Seconds


@part
class LeafSpine:
    """Join leaves x hosts_per_leaf hosts.

    ``link``: bytes/s per direction of a host's port; ``uplink``: of a link between leaf and spine (default: the same);
    ``latency``: of each link. Order of links: nic_out and nic_in by host, leaf_up by (leaf, spine), leaf_down likewise.
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

    def leaf_of(self, host: Any) -> Any:
        """Return the leaf of *host* (a number or an array)."""
        return host // self.hosts_per_leaf

    def links(self) -> pd.DataFrame:
        """Return the table of links."""
        hosts = [(f"host{h}", f"leaf{self.leaf_of(h)}") for h in range(self.n_hosts)]
        ups = [(f"leaf{leaf}", f"spine{spine}") for leaf in range(self.leaves) for spine in range(self.spines)]
        uplink = self.uplink or self.link
        return link_table([("nic_out", hosts, self.link), ("nic_in", [(b, a) for a, b in hosts], self.link),
                           ("leaf_up", ups, uplink), ("leaf_down", [(b, a) for a, b in ups], uplink)], self.latency)

    def crossing(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return which flows from hosts *src* to hosts *dst* cross a spine, bool [flows]."""
        return self.leaf_of(src) != self.leaf_of(dst)

    def incidence(self, src: np.ndarray, dst: np.ndarray, flow: np.ndarray, spine: np.ndarray,
                  share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (flow, link, share of its bytes) for flows from *src* to *dst*; *share* of *flow* crosses *spine*."""
        hosts, fabric, each = self.n_hosts, self.leaves * self.spines, np.arange(len(src))
        up, down = (self.leaf_of(end[flow]) * self.spines + spine for end in (src, dst))
        return (np.concatenate([each, each, flow, flow]),
                np.concatenate([src, hosts + dst, 2 * hosts + up, 2 * hosts + fabric + down]),
                np.concatenate([np.ones(2 * len(each)), share, share]))

    def routes(self, balancing: Any, seed: int) -> sparse.csr_array:
        """Return the share of each pair's bytes on each link: [n_hosts * n_hosts, links]; a host's own use none."""
        hosts = self.n_hosts
        source, target = np.divmod(np.arange(hosts * hosts), hosts)
        pair = np.flatnonzero(source != target)
        source, target = source[pair], target[pair]
        far = np.flatnonzero(self.crossing(source, target))
        shares = balancing.spine_shares(self, source[far], target[far], seed)
        which, spine = np.nonzero(shares)
        flow, link, share = self.incidence(source, target, far[which], spine, shares[which, spine])
        return sparse.csr_array((share, (pair[flow], link)),
                                shape=(hosts * hosts, 2 * (hosts + self.leaves * self.spines)))

    def to_networkx(self) -> Any:
        """Return the fabric as a ``networkx.DiGraph`` with the columns of ``links`` on its edges."""
        return graph(self.links())
