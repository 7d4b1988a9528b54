"""Node-limited routing against flat: tokens of DeepSeek-V3's shape (synthetic scores), and of a captured trace.

Letters: T tokens, E experts, K = top-k, N nodes of 8 devices, D devices, M nodes that a token may visit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from moesim import config
from moesim.hardware import HardwareSpec
from moesim.network import Messages, Network
from moesim.placement import Placement, evaluate, solve
from moesim.trace import RoutingTrace

MACHINE = Path(__file__).resolve().parent / "h800.yaml"
EXPERTS, TOP_K, LIMIT = 256, 8, 4  # DeepSeek-V3, arXiv 2412.19437, section 4.2
FP8, BF16 = 7168 + 224, 2 * 7168  # bytes of a token: fp8 with a float32 scale per 128 (dispatch), bf16 (combine)
PER_NODE = 8
SCHEMES = {  # what is drawn: (part, copies are counted, routing is limited)
    "per expert": ("deepep_ll", "expert", False), "per device": ("flat", "device", False),
    "per device, PXN": ("pxn", "device", False), "per node": ("node_limited", "device", False),
    "per node, at most 4": ("node_limited", "device", True)}


class Drawn(NamedTuple):
    """What tokens send, counts: by expert and by device, each [D, D], and by node [D, N]."""

    experts: np.ndarray
    devices: np.ndarray
    nodes: np.ndarray

    def messages(self, counted: str) -> Messages:
        """Return them as messages: copies once per *counted*, expert or device."""
        return Messages(self.experts if counted == "expert" else self.devices, self.nodes, EXPERTS)


def choices(tokens: int, groups: int, limit: int, rng: np.random.Generator) -> np.ndarray:
    """Return the experts of *tokens* [T, K], drawn as DeepEP's benchmark draws them: synthetic, all experts alike.

    The *limit* groups with the highest single score are kept, of their experts the K best are chosen. Only the order
    of scores counts, so they may be uniform. float32 draws tie once in many million: no matter here.
    """
    scores = rng.random((tokens, EXPERTS), np.float32)
    if limit < groups:
        best = scores.reshape(tokens, groups, -1).max(axis=-1)
        keep = np.argpartition(best, groups - limit, axis=-1)[:, groups - limit:]
        kept = np.zeros((tokens, groups), bool)
        np.put_along_axis(kept, keep, True, axis=1)
        scores *= np.repeat(kept, EXPERTS // groups, axis=1)
    return np.argpartition(scores, EXPERTS - TOP_K, axis=-1)[:, EXPERTS - TOP_K:]


def visits(experts: np.ndarray, places: int) -> np.ndarray:
    """Return which of *places* (devices or nodes, equal shares of the experts) tokens visit, bool [T, places]."""
    found = np.zeros((len(experts), places), bool)
    np.put_along_axis(found, experts // (EXPERTS // places), True, axis=1)
    return found


def draw(tokens: int, nodes: int, limited: bool, seed: int = 0) -> Drawn:
    """Return what the devices of *nodes* send when each has *tokens*; groups are nodes."""
    devices, rng = nodes * PER_NODE, np.random.default_rng([seed, tokens, nodes])
    rows = []
    for _ in range(devices):
        chosen = choices(tokens, nodes, LIMIT if limited else nodes, rng)
        rows.append((np.bincount(chosen.ravel() // (EXPERTS // devices), minlength=devices),
                     visits(chosen, devices).sum(axis=0), visits(chosen, nodes).sum(axis=0)))
    return Drawn(*(np.array(part, np.int32) for part in zip(*rows, strict=True)))


def network(nodes: int, *overrides: str) -> Network:
    """Return the network of *nodes* of the machine."""
    size = [f"nodes={nodes}", f"fabric.hosts={PER_NODE * nodes}"]
    return Network.of(config.load(HardwareSpec, MACHINE, [*size, *overrides]))


def table(nodes: Sequence[int], tokens: Sequence[int]) -> pd.DataFrame:
    """Return a row per nodes, tokens (of a device) and scheme: time_s, and a device's nic_bytes and nvlink_bytes."""
    rows = []
    for n in nodes:
        net, d = network(n), n * PER_NODE
        for t in tokens:
            drawn = {limited: draw(t, n, limited) for limited in (False, True)}
            for name, (part, counted, limited) in SCHEMES.items():
                found = net.exchange(part, drawn[limited].messages(counted), FP8)
                nic = float(found.loads[2 * d:3 * d].mean()) if n > 1 else 0.0
                rows.append((n, t, name, float(found.time_s), nic, float(found.loads[:d].mean())))
    return pd.DataFrame(rows, columns=["nodes", "tokens", "scheme", "time_s", "nic_bytes", "nvlink_bytes"])


PUBLISHED = {  # (kernel, EP) -> GB/s: DeepEP README, H800 (normal, dispatch and combine), us (low latency, dispatch)
    ("dispatch", 8): 153, ("dispatch", 16): 43, ("dispatch", 32): 58, ("dispatch", 64): 51,
    ("combine", 8): 158, ("combine", 16): 43, ("combine", 32): 57, ("combine", 64): 50,
    ("low latency", 8): 77, ("low latency", 16): 118, ("low latency", 32): 155, ("low latency", 64): 173,
    ("low latency", 128): 192, ("low latency", 256): 194,
    # H100, normal dispatch, GB/s that really cross ports (aiconfigurator tables, 095f58a; best number of SMs)
    ("H100, remote", 16): 44.0, ("H100, remote", 32): 47.15}
FITTED = (("dispatch", 8), ("low latency", 8))
H100_NVLINK = ("scale_up.bandwidth=450 GB/s", "scale_up.efficiency=0.63")  # 285 GB/s: the same table, one node


def published() -> pd.DataFrame:
    """Return kernel, ep, unit, published, model, error: the model against DeepEP's published numbers."""
    rows = []
    for (kernel, ep), value in PUBLISHED.items():
        found = _predicted(kernel, ep // PER_NODE)
        unit = "µs" if kernel == "low latency" else "GB/s"
        rows.append((kernel, ep, unit, value, found, found / value - 1, (kernel, ep) in FITTED))
    return pd.DataFrame(rows, columns=["kernel", "ep", "unit", "published", "model", "error", "fitted"])


def _predicted(kernel: str, nodes: int) -> float:
    """Return what the model says in the unit of the table: logical GB/s (own node or device counted), or us."""
    net = network(nodes, *(H100_NVLINK if kernel.startswith("H100") else ()))
    if kernel == "low latency":
        return 1e6 * float(net.exchange("deepep_ll", draw(128, nodes, False).messages("expert"), FP8).time_s)
    drawn, size = draw(4096, nodes, True), BF16 if kernel == "combine" else FP8
    time_s = float(net.exchange("node_limited", drawn.messages("device"), size, kernel == "combine").time_s)
    sent = drawn.devices if nodes == 1 else drawn.nodes
    if kernel.startswith("H100"):
        sent = sent * (1 - np.kron(np.eye(nodes), np.ones((PER_NODE, 1))))
    return float(sent.sum(axis=1).mean()) * size / time_s / 1e9


# Real routing

PLACEMENTS: dict[str, Any] = {"linear": "linear", "load (lpt)": "lpt", "affinity": "affinity_sweep", "joint": "joint"}


def on_trace(trace: RoutingTrace, machines: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """Return nodes, devices_per_node, placement, visited, sent, load: nodes that a token's experts of a layer are on.

    Solvers see one half of the requests, the numbers are of the other. *sent*: copies over ports, if tokens are at home
    on all nodes alike. *load*: the busiest node over the mean. "uniform": any set of K experts equally likely.
    """
    seen, unseen, rows = trace.profile(), trace.evaluation(), []
    for nodes, per_node in machines:
        rows.append((nodes, per_node, "uniform", expected(nodes, trace.n_experts, trace.top_k), 1.0))
        found = {name: solve(seen, nodes * per_node, s, devices_per_node=per_node) for name, s in PLACEMENTS.items()}
        found["co-activation"] = together(seen, nodes, per_node)
        for name, placement in found.items():
            busy = evaluate(_of_nodes(placement, per_node), unseen)
            rows.append((nodes, per_node, name, busy["fanout"], busy["load_max_over_mean"]))
    result = pd.DataFrame(rows, columns=["nodes", "devices_per_node", "placement", "visited", "load"])
    return result.assign(sent=result["visited"] * (1 - 1 / result["nodes"]))


def expected(nodes: int, n_experts: int = EXPERTS, top_k: int = TOP_K) -> float:
    """Return how many of *nodes* hold an expert of a token whose *top_k* different experts are drawn alike.

    >>> expected(2, n_experts=4, top_k=2)  # 2 of the 6 pairs lie in one node
    1.6666666666666667
    """
    of_node = n_experts // nodes
    empty = np.prod([(n_experts - of_node - i) / (n_experts - i) for i in range(top_k)])
    return float(nodes * (1 - empty))


def _of_nodes(placement: Placement, per_node: int) -> Placement:
    layers, experts, devices = placement.replicas.shape
    replicas = placement.replicas.reshape(layers, experts, devices // per_node, per_node)
    return Placement(np.asarray(replicas.any(axis=3)))


def together(trace: RoutingTrace, nodes: int, per_node: int, starts: int = 8) -> Placement:
    """Return the placement that keeps experts of one token and layer in one node: what could be had at most, about.

    Per layer: swaps of two experts of different nodes while any helps, from *starts* random beginnings. Blind to load
    and to transitions.
    """
    rng, layers = np.random.default_rng(0), []
    for layer in range(trace.n_layers):
        chosen = np.zeros((trace.n_tokens, trace.n_experts), np.float32)
        np.put_along_axis(chosen, trace.chosen[:, layer].astype(np.int64), 1.0, axis=1)
        weight = chosen.T @ chosen
        np.fill_diagonal(weight, 0.0)
        found = [_swapped(weight, rng.permutation(trace.n_experts) % nodes) for _ in range(starts)]
        layers.append(max(found, key=lambda node: float(weight[node[:, None] == node].sum())))
    place = np.argsort(np.argsort(np.array(layers), axis=1, kind="stable"), axis=1, kind="stable")
    return Placement.from_device_of(place // (trace.n_experts // (nodes * per_node)), nodes * per_node)


def _swapped(weight: np.ndarray, node: np.ndarray) -> np.ndarray:
    """Return *node* [E] after the best swap, again and again until none raises the *weight* [E, E] inside nodes."""
    node = node.copy()
    while True:
        inside = weight @ np.eye(node.max() + 1, dtype=weight.dtype)[node]  # of an expert with each node
        own = inside[np.arange(len(node)), node]
        gain = inside[:, node] - own[:, None]
        gain = np.where(node[:, None] != node, gain + gain.T - 2 * weight, 0.0)
        i, j = np.unravel_index(gain.argmax(), gain.shape)
        if gain[i, j] <= 0.5:  # whole tokens
            return node
        node[i], node[j] = node[j], node[i]
