"""The network of a machine and what collectives cost on it in closed form, by the time of the busiest link.

That is right when the collective has its links to itself and its flows start together; ``moesim.network.play`` runs the
same flows exactly, alone or with others. Letters: D devices, G groups of neighbouring devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim import registry
from moesim.network.collective import Collective, Step, seconds
from moesim.network.routes import Routes, between, used
from moesim.network.stages import Messages, Round, Stage, staged
from moesim.network.wiring import Wiring

HALVES = {"all_reduce": (0, 1), "reduce_scatter": (0,), "all_gather": (1,)}  # of the rounds of a reduction


@dataclass(frozen=True)
class Network(Wiring):
    """Cost collectives on the devices that a ``Wiring`` joins."""

    def all_to_all(self, traffic: np.ndarray, size: float = 1.0, reverse: bool = False) -> Collective:
        """Cost *traffic* [..., D, D] times *size* bytes from device (row) to device (column), everything at once.

        The diagonal stays where it is. *reverse* sends from column to row: the same messages on their way home. Whole
        numbers (int32) are faster than floats. Each domain, scale-up and scale-out, is timed by its busiest link; they
        run side by side and the slower counts. Raises ``ValueError`` for another shape, or negative or undefined bytes.
        """
        name = "flat_combine" if reverse else "flat"
        return self._cost([[Stage(np.asarray(traffic))]], name, size, reverse, [None])

    def exchange(self, part: Any, messages: Messages, size: float = 1.0, reverse: bool = False) -> Collective:
        """Cost getting *messages* times *size* bytes to their devices by the all-to-all *part* (or its name).

        *reverse*: home again, its stages in reverse order.
        """
        part = registry.make("all_to_all", part)
        launches = staged(part, messages, self.devices_per_node, reverse)
        return self._cost(launches, title(part, reverse), size, reverse, self._patterns(part, reverse, len(launches)))

    def all_reduce(self, size: np.ndarray, width: int) -> Collective:
        """Cost the sum over groups of *width* neighbouring devices, all groups at once, by ``reduction``.

        *size* [..., G]: bytes of the vector that each device of group g holds. Times [..., G], loads [..., G, links].
        Raises ``ValueError`` for groups that do not fit the nodes evenly.
        """
        return self.reduce(size, width)

    def reduce_scatter(self, size: np.ndarray, width: int) -> Collective:
        """Cost the sum of which each device keeps its share; arguments and results as ``all_reduce``."""
        return self.reduce(size, width, "reduce_scatter")

    def scatter_sums(self, shares: np.ndarray) -> Collective:
        """Cost a reduce-scatter of which each device keeps a share of its own: *shares* [D] bytes. One time, one load.

        It takes as long as even shares with which the busiest link of a ring has as much to carry: past the device with
        the smallest share go all others. Loads are those of even shares of as many bytes.
        """
        n, total = self.n_devices, float(np.sum(shares))
        ring = total if n == 1 else n / (n - 1) * (total - float(np.min(shares)))
        slowest, even = 0, 1
        both = self.reduce_scatter(np.array([[ring], [total]]), n)
        return Collective(both.time_s[slowest], both.loads[even])

    def all_gather(self, sent: np.ndarray) -> Collective:
        """Cost every device getting what all others hold: *sent* [..., D] bytes of each.

        Times [...], loads [..., links]. A ring between equal positions of the nodes, then a ring in each node.
        """
        held = np.asarray(sent, dtype=np.float64).reshape(*np.shape(sent)[:-1], self.nodes, self.devices_per_node)
        position = held.sum(axis=-2, keepdims=True)  # what the ring of a position gathers
        total = position.sum(axis=-1, keepdims=True)
        # In a ring a device passes on all but what the next one brought in itself.
        device, per_node = np.arange(self.n_devices), self.devices_per_node
        inside = device // per_node * per_node + (device + 1) % per_node
        passed = np.empty(held.shape)
        passed[...] = total - position[..., np.arange(1, per_node + 1) % per_node]
        local = self._passed(passed, inside, per_node - 1)
        if self.nodes == 1:
            return local
        across = self._passed(position - np.roll(held, -1, axis=-2), (device + per_node) % self.n_devices, self.nodes -
        1)
        return Collective(across.time_s + local.time_s, across.loads + local.loads)

    def send(self, size: np.ndarray, target: np.ndarray) -> Collective:
        """Cost every device sending *size* [..., D] bytes to its *target* [D], all at once, point to point."""
        return self._passed(np.reshape(size, (*np.shape(size)[:-1], self.nodes, -1)), target, 1, "send")

    def _passed(self, size: np.ndarray, target: np.ndarray, rounds: int, name: str = "all_gather") -> Collective:
        """Cost every device sending *size* [..., nodes, devices of a node] bytes to its *target* [D] in rounds."""
        size = size.reshape(*size.shape[:-2], self.n_devices)
        traffic = np.zeros((*size.shape, self.n_devices))
        traffic[..., np.arange(self.n_devices), target] = size
        return self._cost([[Stage(traffic)]], name, 1.0, False, [None], rounds)

    def _cost(self, launches: list[list[Stage]], name: str, size: float, reverse: bool,
              patterns: Sequence[np.ndarray | None], rounds: int = 1) -> Collective:
        """Cost *launches*, each of stages that run together; *patterns*: the pairs of devices that each may use.

        *rounds*: of messages, and path latencies, that a launch waits for.
        """
        total: Any = 0.0
        steps = []
        for stages, pattern in zip(launches, patterns, strict=True):
            routes = self._routes(pattern)
            loads: Any = sum(self._loads(stage.traffic, routes, reverse) for stage in stages) * size
            copied = sum(np.max(stage.copied, axis=-1) for stage in stages if np.ndim(stage.copied))
            steps.append(Step(self._x(loads, routes, name), rounds * self._issued(stages, name, reverse),
                              self._longest(stages, name, size), latencies=rounds,
                              launch=any(stage.launch for stage in stages),
                              copied_s=copied * (2 * size / self.copy_bandwidth)))  # read and written
            total = total + loads[..., routes.group]
        return Collective(seconds(steps, self.constants(name), self.latency_s), total)

    def _patterns(self, part: Any, reverse: bool, n_launches: int) -> Sequence[np.ndarray | None]:
        """Return, per launch, which pairs of devices can have traffic, where the balancing deals flows; else None."""
        if not registry.make("balancing", self.balancing).deals:
            return [None] * n_launches
        if ("patterns", part, reverse) not in self._known:
            every = Messages(np.ones((self.n_devices,) * 2), np.ones((self.n_devices, self.nodes)), 1)
            may = [sum(np.asarray(stage.traffic) for stage in stages) * (1 - np.eye(self.n_devices)) > 0
                   for stages in staged(part, every, self.devices_per_node, reverse)]
            self._known["patterns", part, reverse] = [pairs.T if reverse else pairs for pairs in may]
        return self._known["patterns", part, reverse]

    def _routes(self, pairs: np.ndarray | None) -> Routes:
        """Return the routes of *pairs* (bool [D, D]; None: all) of devices, balanced together."""
        key = ("routes", None if pairs is None else pairs.tobytes())
        if key not in self._known:
            pairs = ~np.eye(self.n_devices, dtype=bool) if pairs is None else pairs
            self._known[key] = between(self, pairs, registry.make("balancing", self.balancing), self.seed,
                                       2 * self.n_devices)
        return self._known[key]

    def _loads(self, traffic: np.ndarray, routes: Routes, reverse: bool) -> np.ndarray:
        """Return what [..., link groups] *traffic* puts on links."""
        from moesim.network.loops import link_loads  # numba

        traffic = np.asarray(traffic)
        if traffic.dtype != np.int32:
            traffic = traffic.astype(np.float64, copy=False)
        if traffic.shape[-2:] != (self.n_devices, self.n_devices):
            raise ValueError(f"traffic has the shape {traffic.shape}; "
                             f"its last two axes must be the {self.n_devices} devices")
        flat, shares = np.ascontiguousarray(traffic).reshape(-1, self.n_devices**2), routes.shares
        loads = np.empty((len(flat), shares.shape[0]))
        link_loads(flat, shares.indptr, routes.back if reverse else shares.indices, shares.data, loads)
        if not (loads >= 0).all():
            raise ValueError("traffic holds negative or undefined bytes; give finite numbers >= 0")
        return loads.reshape(*traffic.shape[:-2], -1)

    def _x(self, loads: np.ndarray, routes: Routes, name: str) -> np.ndarray:
        """Return the seconds [domains, ...] of the busiest link of each domain under *loads* [..., link groups]."""
        x = _over(loads, routes.slowest(self.rate(name)))
        domains = [x[..., :routes.n_up]] + ([x[..., routes.n_up:]] if self.nodes > 1 else [])
        return np.stack([d.max(axis=-1) for d in domains])

    def _issued(self, stages: list[Stage], name: str, reverse: bool) -> np.ndarray | float:
        """Return the messages [domains, ...] of the busiest device, if the collective *name* pays for messages."""
        if not any(c.message for c in self.constants(name)):
            return 0.0
        node = self.node_of(np.arange(self.n_devices))
        near = node[:, None] == node
        masks = [near & ~np.eye(self.n_devices, dtype=bool), ~near][:len(self.latency_s)]
        axis, counts = -2 if reverse else -1, []
        for mask in masks:
            sent = [((np.asarray(s.traffic) > 0) & mask).sum(axis=axis) if s.messages is None else s.messages
                    for s in stages]
            counts.append(np.max(sum(sent), axis=-1))
        return np.stack(counts)

    def _longest(self, stages: list[Stage], name: str, size: float) -> np.ndarray | float:
        """Return the bytes [domains, ...] of the longest message, if *name* sends short ones another way."""
        from moesim.network.loops import longest  # numba

        eager = [c.eager is not None for c in self.constants(name)]
        if not any(eager):
            return np.inf
        found = []
        for stage in stages:
            traffic = np.ascontiguousarray(stage.traffic)
            entry = longest(traffic.reshape(-1, self.n_devices, self.n_devices), self.devices_per_node,
                            eager[-1] and self.nodes > 1)
            found.append(entry.reshape(2, *traffic.shape[:-2]))
        return np.maximum.reduce(found) * size

    def reduce(self, size: np.ndarray, width: int, operation: str = "all_reduce") -> Collective:
        """Cost an *operation* (of ``HALVES``) in groups of *width* devices by ``reduction``; *size* as ``all_reduce``.

        An all-gather here has equal parts; ``all_gather`` takes uneven ones. Where halves of the reduction are none of
        these (``nvls``, ``tree``), they go around hierarchical rings, as libraries do.
        """
        size, name = np.asarray(size, dtype=np.float64), operation
        rounds = self._rounds(width, name, HALVES[operation])
        if size.shape[-1:] != (self.n_devices // width,):
            raise ValueError(f"sizes have the shape {size.shape}; "
                             f"the last axis is the {self.n_devices // width} groups")
        total, steps, n_up = np.zeros((*size.shape, self.n_links)), [], 2 * self.n_devices
        for r, unit, issued in rounds:
            load = size[..., None] * unit
            shared = np.where(load > 0, load.sum(axis=-2, keepdims=True), 0.0)  # groups run at once and may share links
            x = _over(shared, self.rate(name))
            domains = [x[..., :n_up]] + ([x[..., n_up:]] if self.nodes > 1 else [])
            busiest = np.stack([d.max(axis=-1) for d in domains])
            steps.append(Step(busiest, issued.reshape(-1, *[1] * size.ndim), repeat=r.repeat, latencies=r.latencies,
                              launch=r.launch))
            total += load * r.repeat
        if not steps:
            return Collective(np.zeros(size.shape), total)
        return Collective(seconds(steps, self.constants(name), self.latency_s), total)

    def _rounds(self, width: int, name: str, halves: tuple[int, ...]) -> list[tuple[Round, np.ndarray, np.ndarray]]:
        """Return the rounds with what each puts on links per byte of a group [G, links], and messages [domains]."""
        if ("rounds", width, name) not in self._known:
            self._known["rounds", width, name] = [(r, *self._unit(r, width)) for r in self.rounds(width, halves)]
        return self._known["rounds", width, name]

    def rounds(self, width: int, halves: tuple[int, ...] = (0, 1)) -> list[Round]:
        """Return the rounds of ``reduction`` in groups of *width* devices. Raises ``ValueError`` for odd groups."""
        per_node = self.devices_per_node
        if width < 1 or self.n_devices % width or max(width, per_node) % min(width, per_node):
            raise ValueError(f"groups of {width} do not fit {self.nodes} nodes of {per_node} devices evenly; "
                             f"take a divisor or a multiple of {per_node}")
        part = registry.make("all_reduce", self.reduction)
        if len(halves) == 1 and not part.halves_alone:  # libraries then go around rings
            part = registry.make("all_reduce", "hierarchical_ring")
        parts = part.rounds(width, min(width, per_node))
        return [r for half in halves for r in parts[half] if len(r.src)]

    def _unit(self, r: Round, width: int) -> tuple[np.ndarray, np.ndarray]:
        group = np.repeat(np.arange(self.n_devices // width), len(r.src))
        src, dst = (np.tile(end, self.n_devices // width) + group * width for end in (r.src, r.dst))
        share = np.tile(r.share, self.n_devices // width)
        usage = used(self, src, dst, registry.make("balancing", self.balancing), self.seed)
        unit = np.zeros((self.n_devices // width, self.n_links))
        entry = usage.tocoo()
        np.add.at(unit, (group[entry.coords[0]], entry.coords[1]), entry.data * share[entry.coords[0]])
        near = self.node_of(src) == self.node_of(dst)
        issued = [np.bincount(src[mask], minlength=1).max() for mask in (near, ~near)[:len(self.latency_s)]]
        return unit, np.array(issued) if r.messages is None else np.full(len(issued), r.messages)


def _over(loads: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Return *loads* over *rate*; nothing takes no time, on dead links too."""
    return np.divide(loads, rate, out=np.zeros(loads.shape), where=loads > 0)


def title(part: Any, reverse: bool = False) -> str:
    """Return the name under which machines give constants for the all-to-all *part*, or its way home."""
    return registry.name_of(part) + ("_combine" if reverse else "")
