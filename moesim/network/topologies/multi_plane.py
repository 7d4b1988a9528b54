"""Multi-plane fabric: several leaf-spine fabrics side by side that share no switch.

With ``ports="one"`` a host is in one plane (DeepSeek-V3, arXiv 2505.09343: device r of every node is in plane r), and
hosts of different planes have no path; with ``ports="all"`` a host has a slower port in every plane:

>>> MultiPlane(planes=8, leaves=64, spines=32, hosts_per_leaf=32, ports="one").n_hosts  # of 64-port switches
16384
>>> one, every = (MultiPlane(planes=2, leaves=2, spines=4, hosts_per_leaf=8, ports=p) for p in ("one", "all"))
>>> one.widths(np.array([0, 0]), np.array([1, 16])).tolist()  # planes 0 and 1; plane 0, other leaf
[[0, 0], [1, 4]]
>>> every.widths(np.array([0, 0]), np.array([1, 8])).tolist()  # same leaves: 2 paths; other leaves: 2 x 4
[[2, 1], [2, 4]]
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt

from moesim.network.topologies._build import Topology, link_table
from moesim.registry import part
from moesim.units import BytesPerSecond, Seconds


@part
class MultiPlane(Topology):
    """Join hosts by ``planes`` fabrics of leaves x spines switches with hosts_per_leaf ports below every leaf.

    ``ports`` "one": planes x leaves x hosts_per_leaf hosts; host h is in plane h % planes, there under leaf
    h // planes // hosts_per_leaf. "all": leaves x hosts_per_leaf hosts; host h is under leaf h // hosts_per_leaf of
    every plane. ``link``: bytes/s per direction of a host, over all its ports; ``uplink``: of a link between leaf and
    spine (default: as a port: link, or link / planes); ``latency``: of each link. Order of links: nic_out and nic_in by
    host (or, with "all", by (host, plane)), leaf_up by (plane, leaf, spine), leaf_down likewise.
    """

    planes: PositiveInt
    leaves: PositiveInt
    spines: PositiveInt
    hosts_per_leaf: PositiveInt
    ports: Literal["one", "all"]
    link: BytesPerSecond = Field(default="400 Gbit/s", validate_default=True)
    uplink: BytesPerSecond | None = None
    latency: Seconds = 0.0

    @property
    def n_hosts(self) -> int:
        """Number of hosts."""
        return self.leaves * self.hosts_per_leaf * (self.planes if self.ports == "one" else 1)

    @property
    def oversubscription(self) -> float:
        """What the ports below a leaf can send over what its uplinks can carry."""
        return self.hosts_per_leaf * self._port / (self.spines * (self.uplink or self._port))

    @property
    def path_latency_s(self) -> float:
        """Latency of the longest path: up, across and down."""
        return self.latency * (4 if self.leaves > 1 else 2)

    @property
    def _port(self) -> float:
        return self.link if self.ports == "one" else self.link / self.planes

    def plane_of(self, host: Any) -> Any:
        """Return the plane of *host* (a number or an array). Raises ``ValueError`` with ports "all"."""
        if self.ports == "all":
            raise ValueError('multi_plane: with ports "all" a host is in every plane; only ports "one" gives it one')
        return host % self.planes

    def leaf_of(self, host: Any) -> Any:
        """Return the number of the leaf of *host* (a number or an array) in its plane, or in every plane."""
        return (host // self.planes if self.ports == "one" else host) // self.hosts_per_leaf

    def switch_of(self, host: Any) -> Any:
        """Return the first switch of *host* (a number or an array): its leaf, plane by plane.

        With a port in several planes the paths to a host part at the sender and meet at the receiver: the host itself.
        """
        if self.ports == "one":
            return self.plane_of(host) * self.leaves + self.leaf_of(host)
        return host if self.planes > 1 else self.leaf_of(host)

    def links(self) -> pd.DataFrame:
        """Return the table of links; switch names say their plane: plane0.leaf1."""
        ports = [(f"host{h}", f"plane{p}.leaf{self.leaf_of(h)}") for h in range(self.n_hosts)
                 for p in ([self.plane_of(h)] if self.ports == "one" else range(self.planes))]
        ups = [(f"plane{p}.leaf{leaf}", f"plane{p}.spine{spine}") for p in range(self.planes)
               for leaf in range(self.leaves) for spine in range(self.spines)]
        uplink = self.uplink or self._port
        return link_table([("nic_out", ports, self._port), ("nic_in", [(b, a) for a, b in ports], self._port),
                           ("leaf_up", ups, uplink), ("leaf_down", [(b, a) for a, b in ups], uplink)], self.latency)

    def widths(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return how many planes, then spines, a flow has to choose from, [flows, 2]; 0, 0 between planes."""
        spines = np.where(self.leaf_of(src) == self.leaf_of(dst), 1, self.spines)
        planes = np.full(len(src), self.planes if self.ports == "all" else 1)
        widths = np.column_stack([planes, spines]).astype(np.int64)
        if self.ports == "one":
            widths[self.plane_of(src) != self.plane_of(dst)] = 0
        return widths

    def path(self, src: np.ndarray, dst: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Return the links of each flow, [flows, 4]: port, up, down, port; with "all", of path plane * spines + spine.

        Inside a leaf *choice* is the plane alone; up and down are -1. All four are -1 where there is no path.
        """
        leaf, other = self.leaf_of(src), self.leaf_of(dst)
        plane, spine = np.divmod(choice, np.where(leaf == other, 1, self.spines))
        if self.ports == "one":
            plane, out, back = self.plane_of(src), src, dst
        else:
            out, back = (end * self.planes + plane for end in (src, dst))
        ports = self.planes * self.leaves * self.hosts_per_leaf
        up, down = ((plane * self.leaves + end) * self.spines + spine for end in (leaf, other))
        path = np.column_stack([out, 2 * ports + up, 2 * ports + self.planes * self.leaves * self.spines + down,
                                ports + back])
        path[leaf == other, 1:3] = -1
        if self.ports == "one":
            path[self.plane_of(src) != self.plane_of(dst)] = -1
        return path
