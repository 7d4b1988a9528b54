"""What solvers know and what they minimise: a profile, a problem and the costs of a placement.

Letters: L MoE layers, E experts, D devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import numpy as np

from moesim.placement.placement import PlacementError
from moesim.trace import RoutingTrace

# Assumed: how much worse a transition between nodes is than one inside a node. H100 SXM: 450 GB/s of NVLink
# against 50 GB/s of one 400 Gbit/s adapter per GPU and direction (NVIDIA DGX H100 data sheet), so 9.
INTER_NODE_WEIGHT = 9.0

Pairs = Literal["top1", "all"]


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """Hold what a solver may know of a trace: sums over its tokens, never the tokens themselves.

    counts            tokens per expert, int64 [L, E]
    n_tokens          tokens that were counted
    count_transitions the function that counts inter-layer transitions, int64 [L-1, E, E], of the first
                      choices (True) or of all pairs of chosen experts (False); called once each, when needed
    """

    counts: np.ndarray
    n_tokens: int
    count_transitions: Callable[[bool], np.ndarray]

    @classmethod
    def of(cls, trace: RoutingTrace) -> Profile:
        """Return the profile of *trace*."""
        return cls(trace.counts(), trace.n_tokens, trace.transitions)

    @property
    def n_layers(self) -> int:
        """Return L."""
        return self.counts.shape[0]

    @property
    def n_experts(self) -> int:
        """Return E."""
        return self.counts.shape[1]

    @cached_property
    def top1(self) -> np.ndarray:
        """Return the transitions between first choices, int64 [L-1, E, E]; each layer sums to the tokens."""
        return self.count_transitions(True)

    @cached_property
    def all_pairs(self) -> np.ndarray:
        """Return the transitions between all chosen experts, int64 [L-1, E, E]; top_k**2 per token and layer."""
        return self.count_transitions(False)

    def transitions(self, pairs: Pairs) -> np.ndarray:
        """Return the transitions of *pairs*, int64 [L-1, E, E]."""
        return self.top1 if pairs == "top1" else self.all_pairs


@dataclasses.dataclass(frozen=True)
class Problem:
    """Say where experts may go: D devices, each with room for ``capacity`` experts of every layer.

    With ``devices_per_node`` devices are numbered node by node, and a transition between devices of a node costs
    1 / ``inter_node_weight`` of one between nodes. Raises ``PlacementError``.
    """

    n_experts: int
    n_devices: int
    devices_per_node: int | None = None
    inter_node_weight: float = INTER_NODE_WEIGHT

    def __post_init__(self) -> None:
        per_node = self.devices_per_node
        if self.n_devices < 1 or self.n_experts < 1:
            raise PlacementError(f"{self.n_experts} experts on {self.n_devices} devices; both must be at least 1")
        if per_node is not None and (per_node < 1 or self.n_devices % per_node):
            raise PlacementError(f"{self.n_devices} devices do not fill nodes of {per_node}; "
                                 "devices_per_node must divide n_devices")
        if not 1 <= self.inter_node_weight < float("inf"):
            raise PlacementError(f"inter_node_weight is {self.inter_node_weight}; between nodes must cost at "
                                 "least as much as inside a node")

    @property
    def capacity(self) -> int:
        """Return the experts of one layer that a device may hold: E/D, rounded up."""
        return -(-self.n_experts // self.n_devices)

    @property
    def n_nodes(self) -> int:
        """Return the nodes; one if nothing is said about them."""
        return self.n_devices // self.devices_per_node if self.devices_per_node else 1

    @property
    def node_of(self) -> np.ndarray:
        """Return the node of each device, int64 [D]."""
        return np.arange(self.n_devices) // (self.n_devices // self.n_nodes)

    @property
    def levels(self) -> list[tuple[np.ndarray, float]]:
        """Return the machine as a tree: per level the group of each device, int64 [D], and the cost of leaving it."""
        devices = np.arange(self.n_devices)
        if self.n_nodes == 1:
            return [(devices, 1.0)]
        inside = 1.0 / self.inter_node_weight
        return [(devices, inside), (self.node_of, 1.0 - inside)]

    @property
    def distance(self) -> np.ndarray:
        """Return the cost of a transition between two devices, float64 [D, D]: 0 to 1, summed over the levels."""
        return sum((weight * (group[:, None] != group) for group, weight in self.levels),
                   np.zeros((self.n_devices, self.n_devices)))


def transition_cost(transitions: np.ndarray, device_of: np.ndarray, distance: np.ndarray) -> float:
    """Return the mean distance of a transition, 0 if there are none (one layer).

    Without nodes this is ``cross_top1`` or ``cross_all`` of ``evaluate`` on the profiled trace. With nodes it is the
    fraction that crosses nodes plus 1 / inter_node_weight times the fraction that crosses devices inside a node.
    """
    total = transitions.sum()
    cost = sum(float((flows * distance[np.ix_(a, b)]).sum())
               for flows, a, b in zip(transitions, device_of, device_of[1:], strict=False))
    return cost / float(total) if total else 0.0


def device_load(counts: np.ndarray, replicas: np.ndarray) -> np.ndarray:
    """Return the tokens per device, float64 [L, D]: an expert's tokens *counts* [L, E] split over *replicas* evenly."""
    share = counts / replicas.sum(axis=2)
    return np.einsum("le,led->ld", share, replicas)


def load_max_over_mean(load: np.ndarray) -> np.ndarray:
    """Return the load imbalance of each layer, float64 [L], of the *load* [L, D] per device."""
    mean = load.mean(axis=1)
    if not (mean > 0).all():
        raise PlacementError(f"layer {int(mean.argmin())} has no routed tokens; load imbalance has no meaning")
    return load.max(axis=1) / mean
