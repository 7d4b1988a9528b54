"""How devices are wired: scale-up switches inside nodes and a fabric between them, as one topology of devices.

A device is host number ``device`` of the fabric (one port each). Flows inside a node use its switch, others the fabric.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from moesim.network.collective import Constants, LinkClass, Transfer
from moesim.network.topologies._build import Topology, link_table
from moesim.network.wire import Packet

Self = TypeVar("Self", bound="Wiring")


@dataclass(frozen=True)
class Wiring(Topology):
    """Join *n_devices* in nodes of *devices_per_node*.

    ``scale_up`` (bandwidth and constants) holds for every device's link to the switch of its node, one per direction.
    ``fabric`` is a topology part and ``scale_out`` has its constants; both None for one node. ``balancing`` and
    ``reduction`` (the all-reduce) are parts or their names; ``seed`` is of the first. ``copy_bandwidth``: bytes/s at
    which a device reads or writes its memory. A pair of devices that the fabric does not join is relayed by the device
    of the sender's node at the receiver's place (NVLink, then rail: NCCL's PXN). Raises ``ValueError`` if nodes are not
    joined.
    """

    n_devices: int
    devices_per_node: int
    scale_up: LinkClass
    fabric: Any = None
    scale_out: Transfer | None = None
    balancing: Any = "spray"
    seed: int = 0
    copy_bandwidth: float = np.inf
    reduction: Any = "hierarchical_ring"
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n_devices % self.devices_per_node:
            raise ValueError(f"{self.n_devices} devices do not fill nodes of {self.devices_per_node}; "
                             f"make n_devices a multiple")
        if self.nodes > 1 and (self.fabric is None or self.scale_out is None):
            raise ValueError(f"{self.nodes} nodes need a fabric and scale_out to join them; give both")
        if self.nodes > 1 and self.fabric.n_hosts < self.n_devices:
            raise ValueError(f"the fabric has {self.fabric.n_hosts} hosts for {self.n_devices} devices "
                             f"(one port each); take a larger fabric")

    @classmethod
    def of(cls: type[Self], machine: Any, balancing: Any = "spray", seed: int = 0) -> Self:
        """Return the network of *machine* (a ``HardwareSpec``)."""
        return cls(machine.n_devices, machine.devices_per_node, machine.scale_up, machine.fabric, machine.scale_out,
                   balancing, seed, machine.device.memory[0].bandwidth, reduction=machine.reduction)

    @classmethod
    def on(cls: type[Self], fabric: Any, balancing: Any = "spray", seed: int = 0) -> Self:
        """Return the perfect network in which every host of *fabric* is a node of one device: no startup, no loss."""
        return cls(fabric.n_hosts, 1, Constants(), fabric, Constants(), balancing, seed)

    # A topology of devices

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.n_devices // self.devices_per_node

    @property
    def n_hosts(self) -> int:
        """Number of devices: what flows run between."""
        return self.n_devices

    @property
    def path_latency_s(self) -> float:
        """Latency of the longest path; the scale-up switch's is in its startup."""
        return self.fabric.path_latency_s if self.nodes > 1 else 0.0

    @cached_property
    def alive(self) -> np.ndarray | None:
        """Which links are alive, bool [links], or None: all."""
        if self.nodes == 1 or self.fabric.alive is None:
            return None
        return np.concatenate([np.ones(2 * self.n_devices, bool), self.fabric.alive])

    @cached_property
    def n_links(self) -> int:
        """Number of links."""
        return 2 * self.n_devices + (self.fabric.n_links if self.nodes > 1 else 0)

    def links(self) -> pd.DataFrame:
        """Return the table of all links; scale_up_out and scale_up_in, by device, come first."""
        ports = [(f"device{d}", f"switch{d // self.devices_per_node}") for d in range(self.n_devices)]
        up = link_table([("scale_up_out", ports, self.scale_up.bandwidth),
                         ("scale_up_in", [(b, a) for a, b in ports], self.scale_up.bandwidth)], 0.0)
        if self.nodes == 1:
            return up
        table = pd.concat([up, self.fabric.links()], ignore_index=True)
        return table.assign(link=np.arange(len(table)))

    def switch_of(self, device: Any) -> Any:
        """Return the first switch of *device*'s port, or its node if there is one node."""
        return self.fabric.switch_of(device) if self.nodes > 1 else device // self.devices_per_node

    def node_of(self, device: Any) -> Any:
        """Return the node of *device* (a number or an array)."""
        return device // self.devices_per_node

    def _port(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return the device of the node of *src* whose port is used: its own, or one at the place of *dst*."""
        apart = self.fabric.widths(src, dst).prod(axis=1) == 0
        return np.where(apart, self.node_of(src) * self.devices_per_node + dst % self.devices_per_node, src)

    def widths(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return the choices of the fabric's switches for pairs in different nodes, 1 for others: [flows, tiers]."""
        if self.nodes == 1:
            return np.ones((len(src), 1), np.int64)
        widths = self.fabric.widths(self._port(src, dst), dst)
        return np.where((self.node_of(src) == self.node_of(dst))[:, None], 1, widths)

    def path(self, src: np.ndarray, dst: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Return the links of a path: through the switch of a node, over the fabric, or first one, then the other."""
        n, near = self.n_devices, self.node_of(src) == self.node_of(dst)
        if self.nodes == 1:
            return np.stack([src, n + dst], axis=1)
        port = np.where(near, src, self._port(src, dst))
        far = self.fabric.path(port, dst, np.where(near, 0, choice))
        far = np.where(near[:, None] | (far < 0), -1, far + 2 * n)
        hop = near | (port != src)
        inside = np.stack([np.where(hop, src, -1), np.where(hop, n + np.where(near, dst, port), -1)], axis=1)
        return np.concatenate([inside, far], axis=1)

    # Constants and rates

    def constants(self, name: str = "") -> list[Transfer]:
        """Return the constants of the domains for the collective *name*: scale-up and, between nodes, scale-out.

        The way home of an all-to-all, "..._combine", has those of the way out unless it has its own.
        """
        domains = [self.scale_up] if self.nodes == 1 or self.scale_out is None else [self.scale_up, self.scale_out]
        return [d.of.get(name, d.of.get(name.removesuffix("_combine"), d)) for d in domains]

    def rate(self, name: str = "") -> np.ndarray:
        """Return the bytes/s that the collective *name* reaches on every link."""
        if ("rate", name) not in self._known:
            efficiency = [c.efficiency * (Packet(c.packet.payload, c.packet.header).goodput if c.packet else 1.0)
                          for c in self.constants(name)]
            n_up = 2 * self.n_devices
            share = np.concatenate([np.full(n_up, efficiency[0]), np.full(self.n_links - n_up, efficiency[-1])])
            self._known["rate", name] = self.links()["capacity_bytes_per_s"].to_numpy() * share
        return self._known["rate", name]

    @property
    def latency_s(self) -> list[float]:
        """Path latency of the domains."""
        return [0.0] if self.nodes == 1 else [0.0, self.path_latency_s]
