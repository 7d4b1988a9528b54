"""What solvers know and what they minimise: a profile, a problem and the costs of a placement.

Letters: L MoE layers, E experts (of the largest layer), D devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import numpy as np

from moesim.placement.placement import CapacityError, Placement, PlacementError
from moesim.trace import RoutingTrace

# Assumed: how much worse a transition between nodes is than one inside a node. H100 SXM: 450 GB/s of NVLink
# against 50 GB/s of one 400 Gbit/s adapter per GPU and direction (NVIDIA DGX H100 data sheet), so 9.
INTER_NODE_WEIGHT = 9.0
# Distinct sets of experts per layer that solvers look at. Chosen: the three real traces have fewer (at most 6,100 in
# 11,000 to 41,000 tokens), and 200,000 tokens of 256 experts would take minutes.
MOST_SETS = 20_000

Pairs = Literal["top1", "all"]
Sets = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """Hold what a solver may know of a trace: sums over its tokens, never the tokens themselves.

    counts            tokens per expert, int64 [L, E]
    n_tokens          tokens that were counted
    count_transitions the function that counts inter-layer transitions, int64 [L-1, E, E], of the first
                      choices (True) or of all pairs of chosen experts (False); called once each, when needed
    count_sets        the function that returns what the tokens of a layer chose together: the distinct sets,
                      int32 [N, K], and the tokens of each, float64 [N]; without it nothing is known of spread
    sizes             experts of each layer, int64 [L]; left out, all have E
    """

    counts: np.ndarray
    n_tokens: int
    count_transitions: Callable[[bool], np.ndarray]
    count_sets: Callable[[int], Sets] | None = None
    sizes: np.ndarray = None  # type: ignore[assignment]  # always an array once constructed

    def __post_init__(self) -> None:
        n_layers, n_experts = self.counts.shape
        sizes = np.full(n_layers, n_experts) if self.sizes is None else np.asarray(self.sizes, dtype=np.int64)
        object.__setattr__(self, "sizes", sizes)

    @classmethod
    def of(cls, trace: RoutingTrace) -> Profile:
        """Return the profile of *trace*."""
        return cls(trace.counts(), trace.n_tokens, trace.transitions, lambda layer: chosen_together(trace, layer),
                   trace.sizes)

    @property
    def n_layers(self) -> int:
        """Return L."""
        return self.counts.shape[0]

    @property
    def n_experts(self) -> int:
        """Return E, the experts of the largest layer."""
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

    @cached_property
    def sets(self) -> list[Sets]:
        """Return what ``count_sets`` gives for every layer. Raises ``PlacementError`` if there is no such function."""
        if self.count_sets is None:
            raise PlacementError("this profile does not know which experts tokens chose together, so nothing can be "
                                 "said of fan-out; make it with Profile.of(trace), or give it count_sets")
        return [self.count_sets(layer) for layer in range(self.n_layers)]


def chosen_together(trace: RoutingTrace, layer: int, most: int = MOST_SETS) -> Sets:
    """Return the distinct sets of experts that tokens of *layer* chose, int32 [N, K], and the tokens of each.

    Beyond *most* sets they are of *most* tokens, drawn evenly from the tokens in the order of their sets.
    """
    members, tokens = np.unique(np.sort(trace.chosen[:, layer], axis=1), axis=0, return_counts=True)
    if len(members) > most:
        drawn = (np.arange(most) + 0.5) * trace.n_tokens / most
        kept, tokens = np.unique(np.searchsorted(tokens.cumsum(), drawn, side="right"), return_counts=True)
        members = members[kept]
    return members.astype(np.int32), tokens.astype(np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Say where experts may go: D devices, each with room for ``capacity`` experts of every layer (see ``rooms``).

    devices_per_node  devices are numbered node by node; a transition between devices of a node costs
                      1 / ``inter_node_weight`` of one between nodes
    capacity          0 stands for equal counts: a layer's experts / D, rounded up. With more, solvers may leave
                      counts uneven
    distances         what a token pays from device (row) to device (column), [D, D], for ``link_bytes``
    previous          the placement to migrate from, for ``migration``
    bound             whether solvers should say how good an answer could be at most: proofs may take seconds

    Raises ``PlacementError``, or ``CapacityError`` if the experts do not fit.
    """

    n_experts: int
    n_devices: int
    devices_per_node: int | None = None
    inter_node_weight: float = INTER_NODE_WEIGHT
    capacity: int = 0
    distances: np.ndarray | None = None
    previous: Placement | None = None
    bound: bool = True

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
        even = -(-self.n_experts // self.n_devices)
        if self.capacity and self.capacity < even:
            raise CapacityError(f"{self.n_devices} devices with room for {self.capacity} experts of a layer do not "
                                f"hold {self.n_experts}; they need room for {even}, or use "
                                f"{-(-self.n_experts // max(self.capacity, 1))} devices")
        if self.distances is not None:
            object.__setattr__(self, "distances", _checked_distances(self.distances, self.n_devices))

    def rooms(self, sizes: np.ndarray) -> np.ndarray:
        """Return how many experts of each layer, which has so many, a device may hold: int64 [L]."""
        even = -(-np.asarray(sizes) // self.n_devices)
        return np.minimum(self.capacity, sizes) if self.capacity else even

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


def _checked_distances(given: np.ndarray, n_devices: int) -> np.ndarray:
    distances = np.array(given, dtype=np.float64)
    if distances.shape != (n_devices, n_devices):
        raise PlacementError(f"distances has shape {list(distances.shape)}; give one number per pair of devices, "
                             f"[{n_devices}, {n_devices}]")
    if not (np.isfinite(distances).all() and (distances >= 0).all() and (distances.diagonal() == 0).all()):
        raise PlacementError("distances must be finite and not negative, and 0 from a device to itself")
    return distances


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
    share = counts / np.maximum(replicas.sum(axis=2), 1)  # smaller layers have fewer experts
    return np.einsum("le,led->ld", share, replicas)


def load_max_over_mean(load: np.ndarray) -> np.ndarray:
    """Return the load imbalance of each layer, float64 [L], of the *load* [L, D] per device."""
    mean = load.mean(axis=1)
    if not (mean > 0).all():
        raise PlacementError(f"layer {int(mean.argmin())} has no routed tokens; load imbalance has no meaning")
    return load.max(axis=1) / mean
