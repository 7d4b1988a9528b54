"""One non-blocking switch: only the ports of the hosts can be a bottleneck.

>>> fabric = Switch(hosts=16, link="400 Gbit/s")
>>> fabric.oversubscription, fabric.links()["class"].value_counts(sort=False).to_dict()
(1.0, {'nic_out': 16, 'nic_in': 16})
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
class Switch:
    """Join *hosts*. ``link``: bytes/s per direction of a host's port; ``latency``: of each link."""

    hosts: PositiveInt
    link: BytesPerSecond = Field(default="400 Gbit/s", validate_default=True)
    latency: Seconds = 0.0

    @property
    def n_hosts(self) -> int:
        """Number of hosts."""
        return self.hosts

    @property
    def oversubscription(self) -> float:
        """Return 1: the switch carries what all hosts send."""
        return 1.0

    @property
    def path_latency_s(self) -> float:
        """Latency of a path: up and down."""
        return 2 * self.latency

    def links(self) -> pd.DataFrame:
        """Return the table of links: nic_out by host, then nic_in."""
        ports = [(f"host{h}", "switch") for h in range(self.hosts)]
        return link_table([("nic_out", ports, self.link), ("nic_in", [(b, a) for a, b in ports], self.link)],
                          self.latency)

    def crossing(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return which flows from hosts *src* to hosts *dst* cross a spine: none, there is no second switch."""
        return np.zeros(len(src), bool)

    def incidence(self, src: np.ndarray, dst: np.ndarray, flow: np.ndarray, spine: np.ndarray,
                  share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (flow, link, share of its bytes) for flows from *src* to *dst*; nothing crosses a spine."""
        each = np.arange(len(src))
        return np.tile(each, 2), np.concatenate([src, self.hosts + dst]), np.ones(2 * len(each))

    def routes(self, balancing: Any, seed: int) -> sparse.csr_array:
        """Return the share of each pair's bytes on each link; there is one path, so nothing to balance."""
        source, target = np.divmod(np.arange(self.hosts**2), self.hosts)
        pair, nothing = np.flatnonzero(source != target), np.zeros(0, np.int64)
        flow, link, share = self.incidence(source[pair], target[pair], nothing, nothing, nothing)
        return sparse.csr_array((share, (pair[flow], link)), shape=(self.hosts**2, 2 * self.hosts))

    def to_networkx(self) -> Any:
        """Return the fabric as a ``networkx.DiGraph`` with the columns of ``links`` on its edges."""
        return graph(self.links())
