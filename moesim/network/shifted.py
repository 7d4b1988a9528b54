"""A fabric seen from some of its hosts: number 0 is a later one. What one stage of a pipeline has of the machine's.

>>> from moesim.network import LeafSpine
>>> part = Shifted(LeafSpine(leaves=2, spines=1, hosts_per_leaf=2), first=2)
>>> part.switch_of(0), part.n_hosts, part.path(np.array([0]), np.array([1]), np.array([0])).tolist()
(1, 2, [[2, -1, -1, 7]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moesim.network.topologies._build import Topology


@dataclass(frozen=True)
class Shifted(Topology):
    """The topology *fabric* whose hosts are counted from *first* on; its links have their own numbers."""

    fabric: Any
    first: int

    @property
    def n_hosts(self) -> int:
        """Number of hosts from the first on."""
        return self.fabric.n_hosts - self.first

    @property
    def path_latency_s(self) -> float:
        """Latency of the longest path."""
        return self.fabric.path_latency_s

    @property
    def alive(self) -> np.ndarray | None:
        """Which links are alive, bool [links], or None: all."""
        return self.fabric.alive

    def switch_of(self, host: Any) -> Any:
        """Return the first switch of *host* (a number or an array)."""
        return self.fabric.switch_of(host + self.first)

    def links(self) -> pd.DataFrame:
        """Return the table of all links of the fabric."""
        return self.fabric.links()

    def widths(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return the choices of the fabric's switches."""
        return self.fabric.widths(src + self.first, dst + self.first)

    def path(self, src: np.ndarray, dst: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Return the links of a path."""
        return self.fabric.path(src + self.first, dst + self.first, choice)
