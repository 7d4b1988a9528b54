"""Collectives as the flows that they are: every message of every stage or round on the links, shared max-min fairly.

Where a collective has its links to itself this confirms the closed form of ``Network``; it is what to ask about
balancing that hashes, links that fail, and anything uneven.

>>> from moesim.network import LeafSpine, Messages, Network
>>> network = Network.on(LeafSpine(leaves=2, spines=2, hosts_per_leaf=2, link="10 GB/s"))
>>> acts = exchange(network, "flat", Messages(np.full((4, 4), 1e4)))
>>> played = play(network, acts, "flat")
>>> len(played.flows), round(played.time_s * 1e6, 6), float(network.all_to_all(np.full((4, 4), 1e4)).time_s * 1e6)
(12, 3.0, 3.0)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from moesim import registry
from moesim.network.collective import waiting
from moesim.network.epochs import Journey, Way
from moesim.network.faults import Faults
from moesim.network.fluid_memo import Memo
from moesim.network.network import Network
from moesim.network.pieces import ends_of, spread
from moesim.network.stages import Messages, Stage, staged

COLUMNS = ("act", "repeat", "src", "dst", "bytes", "start_s", "finish_s", "bottleneck")


class Act(NamedTuple):
    """Flows of a collective that start together, [flows]: ``src``, ``dst`` (devices), ``size`` (bytes).

    Done ``repeat`` times, each waiting for ``latencies`` path latencies; ``launch``: it pays startups; ``copied_s``:
    copies in memory before it; ``messages`` that a device waits for (None: as many as the busiest one sends).
    """

    src: np.ndarray
    dst: np.ndarray
    size: np.ndarray
    repeat: int = 1
    latencies: int = 1
    launch: bool = True
    copied_s: float = 0.0
    messages: int | None = None


class Played(NamedTuple):
    """What came of a collective: ``time_s``, ``load_bytes`` [links], and its ``flows``, one row each.

    Columns: act, repeat (times that it is done), src, dst, bytes, and of the first time start_s, finish_s, bottleneck.
    """

    time_s: float
    flows: pd.DataFrame
    load_bytes: np.ndarray


def exchange(network: Network, part: Any, messages: Messages, size: float = 1.0, reverse: bool = False) -> list[Act]:
    """Return the acts of the all-to-all *part* for *messages* (no batch) times *size* bytes; *reverse*: homeward."""
    part = registry.make("all_to_all", part)
    acts = []
    for stages in staged(part, messages, network.devices_per_node, reverse):
        traffic = _off_diagonal(stages, reverse) * size
        src, dst = np.nonzero(traffic)
        copied = sum(float(np.max(stage.copied)) for stage in stages) * 2 * size / network.copy_bandwidth
        counts = [int(np.max(stage.messages)) for stage in stages if stage.messages is not None]
        acts.append(Act(src, dst, traffic[src, dst], launch=any(s.launch for s in stages), copied_s=copied,
                        messages=sum(counts) if counts else None))
    return acts


def _off_diagonal(stages: list[Stage], reverse: bool) -> np.ndarray:
    """Return what *stages* that run together send, float64 [D, D], the diagonal zero."""
    total = np.sum([np.asarray(stage.traffic, np.float64) for stage in stages], axis=0)
    np.fill_diagonal(total, 0.0)
    return total.T if reverse else total


def reduction(network: Network, size: np.ndarray, width: int, halves: tuple[int, ...] = (0, 1)) -> list[Act]:
    """Return the acts of the all-reduce of *network* among groups of *width* devices with vectors of *size* [G] bytes.

    *halves* (0,) is the reduce-scatter, (1,) the all-gather.
    """
    first = np.arange(network.n_devices // width) * width
    acts = []
    for r in network.rounds(width, halves):
        src, dst = ((first[:, None] + end).ravel() for end in (r.src, r.dst))
        acts.append(Act(src, dst, (np.asarray(size)[:, None] * r.share).ravel(), r.repeat, r.latencies, r.launch,
                        messages=r.messages))
    return acts


def play(network: Network, acts: list[Act], name: str, tolerance: float = 0.0, memo: Memo | None = None,
         faults: Faults | None = None) -> Played:
    """Run *acts* one after the other with the constants of the collective *name*.

    Each act waits for the one before it. Flows begin when their domain has started up; bytes move at the rates that the
    collective reaches on each link. *memo* remembers traffic that comes again. *faults* count from the start of the
    collective; an act done several times is worked out once, so these exclude each other (``ValueError``).
    """
    way = Way(registry.make("balancing", network.balancing), network.seed, tolerance, Memo() if memo is None else memo)
    now, tables, loads = 0.0, [], np.zeros(network.n_links)
    carried = np.zeros(len(network.latency_s))
    for i, act in enumerate(acts):
        if faults is not None and act.repeat > 1:
            raise ValueError("rounds that repeat are worked out once, links that fail need them one by one; "
                             "give the flows to run_flows, or choose a collective without repeated rounds")
        if act.launch:
            carried[:] = 0.0
        now += act.copied_s
        shift = now if faults is not None else 0.0  # without faults an act is the same at any time: ask the memo
        table = pd.DataFrame({"src": act.src, "dst": act.dst, "bytes": act.size, "port": 0, "weight": 1.0,
                              "limit_bytes_per_s": np.inf, "start_s": shift})
        pieces = spread(ends_of(network, table), way.part, way.seed)
        busy_s = (act.size[pieces.flow] * pieces.share) @ pieces.usage / np.maximum(network.rate(name), 1e-300)
        table["start_s"] += waits_s(network, act, busy_s, name, carried) / act.repeat
        nothing = Faults(np.zeros(0), np.ones((0, network.n_links)), 0.0)
        ended = Journey(network, table, network.rate(name), way, faults or nothing).run()
        far = (network.node_of(act.src) != network.node_of(act.dst)).astype(np.int64)
        again = (act.latencies - 1) * np.array(network.latency_s)[far]  # one latency is in the flows' own times
        one = float((ended.finish_s + again).max(initial=shift)) - shift
        tables.append(pd.DataFrame({"act": i, "repeat": act.repeat, "src": act.src, "dst": act.dst, "bytes": act.size,
                                    "start_s": table["start_s"] - shift + now, "finish_s": ended.finish_s - shift + now,
                                    "bottleneck": ended.bottleneck}))
        loads += ended.load_bytes * act.repeat
        now += act.repeat * one
    return Played(now, pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS), loads)


def waits_s(network: Network, act: Act, busy_s: np.ndarray, name: str, carried: np.ndarray) -> np.ndarray:
    """Return how long each flow of *act* waits before its bytes move; adds its seconds to *carried* [domains].

    *busy_s* [links]: how long the bytes of one repetition keep each link busy. Startup, messages and ramp as in
    ``collective.seconds``, by the domain of the flow, for all repetitions together.
    """
    far = network.node_of(act.src) != network.node_of(act.dst)
    wait = np.zeros(len(act.src))
    for d, constants in enumerate(network.constants(name)):
        mine = far == bool(d)
        if not mine.any():
            continue
        domain = busy_s[2 * network.n_devices:] if d else busy_s[:2 * network.n_devices]
        x, before = act.repeat * float(domain.max()), float(carried[d])
        carried[d] += x
        issued = int(np.bincount(act.src[mine]).max()) if act.messages is None else act.messages
        wait[mine] = waiting(constants, (before, x), act.repeat, issued, float(act.size[mine].max()))
    return wait
