"""Three-tier fat tree: leaves and aggregation switches in pods, and groups of cores that join the pods.

Every leaf has a link to every aggregation switch of its pod; aggregation switch a of every pod to all cores of group a.
Two switches choose on the way up, and they alone decide; the way down has no choice. The fabric of 512 devices of
arXiv 2407.00550:

>>> fabric = FatTree(pods=8, leaves=4, hosts_per_leaf=16, aggs=4, cores_per_agg=4, uplink="1.6 Tbit/s")
>>> fabric.n_hosts, fabric.oversubscription, fabric.core_oversubscription
(512, 1.0, 1.0)
>>> fabric.widths(np.array([0, 0, 0]), np.array([1, 16, 64])).tolist()  # same leaf, same pod (4 paths), other pod (16)
[[1, 1], [4, 1], [4, 4]]
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
class FatTree(Topology):
    """Join pods x leaves x hosts_per_leaf hosts; ``leaves`` and ``aggs`` are per pod, cores are aggs x cores_per_agg.

    ``link``: bytes/s per direction of a host's port; ``uplink``: of a link between leaf and aggregation switch
    (default: ``link``); ``core_link``: between aggregation switch and core (default: ``uplink``); ``latency``: of each
    link. Order of links: nic_out and nic_in by host, leaf_up by (leaf, aggregation switch of the pod), leaf_down
    likewise, agg_up by (aggregation switch, core of the group), agg_down likewise; leaves and aggregation switches
    are numbered pod by pod, cores group by group.
    """

    pods: PositiveInt
    leaves: PositiveInt
    hosts_per_leaf: PositiveInt
    aggs: PositiveInt
    cores_per_agg: PositiveInt
    link: BytesPerSecond = Field(default="400 Gbit/s", validate_default=True)
    uplink: BytesPerSecond | None = None
    core_link: BytesPerSecond | None = None
    latency: Seconds = 0.0

    @property
    def n_hosts(self) -> int:
        """Number of hosts."""
        return self.pods * self.leaves * self.hosts_per_leaf

    @property
    def oversubscription(self) -> float:
        """What a leaf's hosts can send over what its uplinks can carry."""
        return self.hosts_per_leaf * self.link / (self.aggs * self._uplink)

    @property
    def core_oversubscription(self) -> float:
        """What the leaves of a pod can send to an aggregation switch over what its links to the cores can carry."""
        return self.leaves * self._uplink / (self.cores_per_agg * self._core_link)

    @property
    def path_latency_s(self) -> float:
        """Latency of the longest path: over a core, or over an aggregation switch if there is one pod."""
        return self.latency * (6 if self.pods > 1 else 4 if self.leaves > 1 else 2)

    @property
    def _uplink(self) -> float:
        return self.uplink or self.link

    @property
    def _core_link(self) -> float:
        return self.core_link or self._uplink

    def switch_of(self, host: Any) -> Any:
        """Return the leaf of *host* (a number or an array)."""
        return host // self.hosts_per_leaf

    def pod_of(self, host: Any) -> Any:
        """Return the pod of *host* (a number or an array)."""
        return host // (self.hosts_per_leaf * self.leaves)

    def links(self) -> pd.DataFrame:
        """Return the table of links."""
        hosts = [(f"host{h}", f"leaf{self.switch_of(h)}") for h in range(self.n_hosts)]
        ups = [(f"leaf{leaf}", f"agg{leaf // self.leaves * self.aggs + agg}")
               for leaf in range(self.pods * self.leaves) for agg in range(self.aggs)]
        cores = [(f"agg{agg}", f"core{agg % self.aggs * self.cores_per_agg + core}")
                 for agg in range(self.pods * self.aggs) for core in range(self.cores_per_agg)]
        tiers = [("nic_out", "nic_in", hosts, self.link), ("leaf_up", "leaf_down", ups, self._uplink),
                 ("agg_up", "agg_down", cores, self._core_link)]
        return link_table([row for up, down, pairs, capacity in tiers for row in
                           ((up, pairs, capacity), (down, [(b, a) for a, b in pairs], capacity))], self.latency)

    def widths(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return how many aggregation switches, then cores, a flow has to choose from, [flows, 2]."""
        aggs = np.where(self.switch_of(src) == self.switch_of(dst), 1, self.aggs)
        cores = np.where(self.pod_of(src) == self.pod_of(dst), 1, self.cores_per_agg)
        return np.column_stack([aggs, cores]).astype(np.int64)

    def path(self, src: np.ndarray, dst: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Return the links of each flow, [flows, 6]: port, leaf up, aggregation up and down, leaf down, port.

        *choice* is agg * cores_per_agg + core between pods, agg inside one. What a flow does not cross is -1.
        """
        near, same_leaf = self.pod_of(src) == self.pod_of(dst), self.switch_of(src) == self.switch_of(dst)
        agg, core = np.divmod(choice, np.where(near, 1, self.cores_per_agg))
        ups, cores = self.pods * self.leaves * self.aggs, self.pods * self.aggs * self.cores_per_agg
        up, down = (2 * self.n_hosts + self.switch_of(end) * self.aggs + agg for end in (src, dst))
        first = 2 * (self.n_hosts + ups) + core
        core_up, core_down = (first + (self.pod_of(end) * self.aggs + agg) * self.cores_per_agg for end in (src, dst))
        path = np.column_stack([src, up, core_up, cores + core_down, ups + down, self.n_hosts + dst])
        path[near, 2:4] = -1
        path[same_leaf, 1:5] = -1
        return path
