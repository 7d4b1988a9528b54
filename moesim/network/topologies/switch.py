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

from moesim.network.topologies._build import Topology, link_table
from moesim.registry import part
from moesim.units import BytesPerSecond, Seconds


@part
class Switch(Topology):
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

    def switch_of(self, host: Any) -> Any:
        """Return 0, the one switch, for *host* (a number or an array)."""
        return host * 0

    def links(self) -> pd.DataFrame:
        """Return the table of links: nic_out by host, then nic_in."""
        ports = [(f"host{h}", "switch") for h in range(self.hosts)]
        return link_table([("nic_out", ports, self.link), ("nic_in", [(b, a) for a, b in ports], self.link)],
                          self.latency)

    def widths(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return 1 for every pair: there is one path, so nothing to balance."""
        return np.ones((len(src), 1), np.int64)

    def path(self, src: np.ndarray, dst: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Return the links from *src* to *dst*: up and down."""
        return np.stack([src, self.hosts + dst], axis=1)
