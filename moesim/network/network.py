"""The network of a machine: scale-up switches inside nodes, a fabric between them, and collectives on both.

Letters: D devices, G tensor-parallel groups. A device is host number ``device`` of the fabric (one port each).
Collectives are closed form: time = startup + x + sqrt(ramp * x), where x is the time of the busiest link. They
are right when the collective has its links to itself and its flows start together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from moesim import registry
from moesim.network.collective import Collective, LinkClass, Startup, seconds
from moesim.network.routes import Routes, between_nodes, inside_nodes, merged
from moesim.network.topologies._build import link_table


@dataclass(frozen=True)
class Network:
    """Cost collectives on *n_devices* in nodes of *devices_per_node*.

    ``scale_up`` (bandwidth, efficiency, startup, ramp) holds for every device's link to the switch of its node, one per
    direction. ``fabric`` is a topology part and ``scale_out`` has its efficiency, startup and ramp; both None for one
    node. ``balancing`` is a part or its name; ``seed`` is its. Raises ``ValueError`` if nodes are not joined.
    """

    n_devices: int
    devices_per_node: int
    scale_up: LinkClass
    fabric: Any = None
    scale_out: Startup | None = None
    balancing: Any = "spray"
    seed: int = 0
    _rings: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

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
    def of(cls, machine: Any, balancing: Any = "spray", seed: int = 0) -> Network:
        """Return the network of *machine* (a ``HardwareSpec``)."""
        return cls(machine.n_devices, machine.devices_per_node, machine.scale_up, machine.fabric, machine.scale_out,
                   balancing, seed)

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.n_devices // self.devices_per_node

    @cached_property
    def links(self) -> pd.DataFrame:
        """All links: link, class, name, capacity_bytes_per_s, latency_s; scale_up_out and scale_up_in come first."""
        ports = [(f"device{d}", f"switch{d // self.devices_per_node}") for d in range(self.n_devices)]
        up = link_table([("scale_up_out", ports, self.scale_up.bandwidth),
                         ("scale_up_in", [(b, a) for a, b in ports], self.scale_up.bandwidth)], 0.0)
        if self.nodes == 1:
            return up
        table = pd.concat([up, self.fabric.links()], ignore_index=True)
        table["link"] = np.arange(len(table))
        return table

    def all_to_all(self, traffic: np.ndarray, size: float = 1.0, reverse: bool = False) -> Collective:
        """Cost *traffic* [..., D, D] times *size* bytes from device (row) to device (column).

        The diagonal stays where it is. *reverse* sends from column to row: the same messages on their way home. Whole
        numbers (int32) are faster than floats. Each domain, scale-up and scale-out, is timed by its busiest link; they
        run side by side and the slower counts. Raises ``ValueError`` for another shape, or negative or undefined bytes.
        """
        from moesim.network.loops import link_loads  # numba

        traffic = np.asarray(traffic)
        if traffic.dtype != np.int32:
            traffic = traffic.astype(np.float64, copy=False)
        if traffic.shape[-2:] != (self.n_devices, self.n_devices):
            raise ValueError(f"traffic has the shape {traffic.shape}; "
                             f"its last two axes must be the {self.n_devices} devices")
        flat = np.ascontiguousarray(traffic).reshape(-1, self.n_devices**2)
        shares = self._routes.shares
        loads = np.empty((len(flat), shares.shape[0]))
        link_loads(flat, shares.indptr, self._pairs_reversed if reverse else shares.indices, shares.data, loads)
        if not (loads >= 0).all():
            raise ValueError("traffic holds negative or undefined bytes; give finite numbers >= 0")
        loads = loads.reshape(*traffic.shape[:-2], -1) * size
        return Collective(self._time(loads), loads[..., self._routes.group])

    @cached_property
    def _pairs_reversed(self) -> np.ndarray:
        """The pairs of ``_routes.shares`` with source and destination exchanged."""
        source, target = np.divmod(self._routes.shares.indices, self.n_devices)
        return target * self.n_devices + source

    def all_reduce(self, size: np.ndarray, width: int) -> Collective:
        """Cost the sum over groups of *width* neighbouring devices, all groups at once.

        *size* [..., G]: bytes of the vector that each device of group g holds. Times [..., G], loads [..., G, links].
        Inside a node: a ring, 2 (n - 1) / n of the bytes per link. Across nodes: reduce-scatter in each node, a ring
        between equal positions of the nodes, all-gather in each node. Raises ``ValueError`` for uneven groups.
        """
        local, across = self._ring(width)
        if across is None:
            return self._grouped(size, [2 * local])
        return self._grouped(size, [local, 2 * across, local])

    def reduce_scatter(self, size: np.ndarray, width: int) -> Collective:
        """Cost the sum of which each device keeps its share; arguments and results as ``all_reduce``."""
        local, across = self._ring(width)
        return self._grouped(size, [local] if across is None else [local, across])

    def all_gather(self, sent: np.ndarray) -> Collective:
        """Cost every device getting what all others hold: *sent* [..., D] bytes of each.

        Times [...], loads [..., links]. A ring between equal positions of the nodes, then a ring in each node.
        """
        held = np.asarray(sent, dtype=np.float64).reshape(*np.shape(sent)[:-1], self.nodes, self.devices_per_node)
        position = held.sum(axis=-2, keepdims=True)  # what the ring of a position gathers
        total = np.broadcast_to(position.sum(axis=-1, keepdims=True), held.shape)
        # In a ring a device passes on all but what the next one brought in itself.
        device, per_node = np.arange(self.n_devices), self.devices_per_node
        inside = device // per_node * per_node + (device + 1) % per_node
        local = self._passed(total - np.roll(position, -1, axis=-1), inside)
        if self.nodes == 1:
            return local
        across = self._passed(position - np.roll(held, -1, axis=-2), (device + per_node) % self.n_devices)
        return Collective(across.time_s + local.time_s, across.loads + local.loads)

    def _passed(self, size: np.ndarray, target: np.ndarray) -> Collective:
        """Cost every device sending *size* [..., nodes, devices of a node] bytes to its *target* [D]."""
        size = size.reshape(*size.shape[:-2], self.n_devices)
        traffic = np.zeros((*size.shape, self.n_devices))
        traffic[..., np.arange(self.n_devices), target] = size
        return self.all_to_all(traffic)

    def _grouped(self, size: np.ndarray, stages: list[np.ndarray]) -> Collective:
        """Cost *stages* one after the other: each [G, link groups], loads of one byte per group."""
        size = np.asarray(size, dtype=np.float64)
        n_groups = stages[0].shape[0]
        if size.shape[-1:] != (n_groups,):
            raise ValueError(f"sizes have the shape {size.shape}; the last axis is the {n_groups} groups")
        time_s, loads = np.zeros(size.shape), np.zeros((*size.shape, stages[0].shape[1]))
        for unit in stages:
            load = size[..., None] * unit
            shared = np.where(load > 0, load.sum(axis=-2, keepdims=True), 0.0)  # groups run at once and may share links
            time_s += self._time(shared)
            loads += load
        return Collective(time_s, loads[..., self._routes.group])

    def _ring(self, width: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the loads of one pass of one byte per group: rings inside nodes, and rings between nodes (or None)."""
        if width not in self._rings:
            self._rings[width] = self._build_ring(width)
        return self._rings[width]

    def _build_ring(self, width: int) -> tuple[np.ndarray, np.ndarray | None]:
        per_node = self.devices_per_node
        if width < 1 or self.n_devices % width or max(width, per_node) % min(width, per_node):
            raise ValueError(f"groups of {width} do not fit {self.nodes} nodes of {per_node} devices evenly; "
                             f"take a divisor or a multiple of {per_node}")
        member = np.arange(self.n_devices)
        group, inside = member // width, min(width, per_node)
        target = member // inside * inside + (member + 1) % inside
        local = self._unit(group, target, (inside - 1) / inside)
        if width <= per_node:
            return local, None
        nodes = width // per_node
        target = group * width + (member - group * width + per_node) % width
        return local, self._unit(group, target, (nodes - 1) / nodes / per_node)

    def _unit(self, group: np.ndarray, target: np.ndarray, share: float) -> np.ndarray:
        """Return the loads [G, link groups] when every device sends *share* bytes to its *target* [D]."""
        pair = np.arange(self.n_devices) * self.n_devices + target
        sent = sparse.csr_array((np.full(self.n_devices, share), (pair, group)),
                                shape=(self.n_devices**2, group.max() + 1))
        return (self._routes.shares @ sent).toarray().T

    def _time(self, loads: np.ndarray) -> np.ndarray:
        """Return the seconds of collectives from *loads* [..., link groups]."""
        x, n_up = loads / self._routes.rate, self._routes.n_up
        time_s = seconds(x[..., :n_up].max(axis=-1), self.scale_up)
        if self.scale_out is None or self.nodes == 1:
            return time_s
        return np.maximum(time_s, seconds(x[..., n_up:].max(axis=-1), self.scale_out, self.fabric.path_latency_s))

    @cached_property
    def _routes(self) -> Routes:
        shares = inside_nodes(self.n_devices, self.devices_per_node)
        efficiency = np.full(len(self.links), self.scale_up.efficiency)
        if self.scale_out is not None and self.nodes > 1:
            routes = self.fabric.routes(registry.make("balancing", self.balancing), self.seed)
            far = between_nodes(routes, self.fabric.n_hosts, self.n_devices, self.devices_per_node)
            shares = sparse.csc_array(sparse.hstack([shares, far]))
            efficiency[2 * self.n_devices:] = self.scale_out.efficiency
        return merged(shares, self.links["capacity_bytes_per_s"].to_numpy() * efficiency, 2 * self.n_devices)
