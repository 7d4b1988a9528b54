"""Many models on one node: a router picks the expert of each prompt, the last used ones stay in the fast tier.

>>> node = Node(one_link(10.0), room_bytes=20, store_bytes=100)      # 10 bytes/s: an expert of 10 bytes takes 1 s
>>> table = serve([[0], [1], [0], [2], [1]], np.full(3, 10.0), node, run_s=3.0, router_s=0.5)
>>> table["hit"].tolist(), float(table["run_finish_s"].max())
([False, False, True, False, False], 21.5)
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from moesim.hardware import Tier
from moesim.memory.chain import Chain
from moesim.memory.dma import Copy, run
from moesim.memory.terms import CacheError
from moesim.registry import suggest
from moesim.units import pretty

Switch = Literal["one_link", "all_links", "overlapped"]


@dataclasses.dataclass(frozen=True)
class Node:
    """Say where experts lie and how they come near.

    chain        tiers of the node; experts are kept in ``store`` and run from ``fast``
    room_bytes   of ``fast`` for experts (not for the router, KV and activations); None: all of it
    store_bytes  of ``store`` for all experts, also those that are near at the moment; None: all of it
    switch       ``one_link``: a whole expert comes over the link of one device; ``all_links``: an equal part over each;
                 ``overlapped``: the same while another expert runs
    """

    chain: Chain
    room_bytes: float | None = None
    store_bytes: float | None = None
    switch: Switch = "one_link"
    fast: str = "hbm"
    store: str = "host"

    def __post_init__(self) -> None:
        if self.switch not in get_args(Switch):
            raise CacheError(f"switch is {self.switch!r}{suggest(self.switch, get_args(Switch))}")
        for name, tier in (("room_bytes", self.fast), ("store_bytes", self.store)):
            given, whole = getattr(self, name), self.chain.room(tier)
            if given is not None and not 0 < given <= whole:
                raise CacheError(f"{name} is {given!r}; give bytes above 0, up to the {pretty(whole, 'byte', 4)} of "
                                 f"{tier}")

    def copy_s(self, size: float, up: bool = True) -> float:
        """Return the seconds of *size* bytes from ``store`` to ``fast``, or back."""
        n = 1 if self.switch == "one_link" else self.chain.devices
        ends = (self.store, self.fast) if up else (self.fast, self.store)
        copies = [Copy(size / n, self.chain.route(*ends, device)) for device in range(n)]
        return float(run(copies, self.chain.engines(), self.chain.bandwidth()).copies["finish_s"].max())

    def holds(self, size: float) -> tuple[int, int]:
        """Return how many experts of *size* bytes fit near, and how many in all."""
        room, store = self._bytes()
        return int(room // size), int(store // size)

    def _bytes(self) -> tuple[float, float]:
        room, store = self.chain.room(self.fast), self.chain.room(self.store)
        return self.room_bytes or room, self.store_bytes or store


def one_link(bytes_per_s: float) -> Chain:
    """Return the plainest node: one device, large tiers ``hbm`` and ``host``, a link of *bytes_per_s* between them."""
    large = {"capacity": "1000000 TB", "bandwidth": "1000000 TB/s"}
    tiers = [{"name": "hbm", **large}, {"name": "host", **large, "link": {"bandwidth": f"{bytes_per_s} B/s"}}]
    return Chain(tuple(Tier.model_validate(tier) for tier in tiers), devices=1, shared=1)


def serve(batches: Sequence[Sequence[int]], sizes: ArrayLike, node: Node, run_s: ArrayLike,
          router_s: float = 0.0, state: ArrayLike = 0.0) -> pd.DataFrame:
    """Return a row per prompt: batch, expert, hit, when it was copied and ran, bytes copied and written back.

    *batches*: the expert of each prompt; a batch begins when the one before has ended. *sizes* [E]: bytes of the
    experts; *run_s*: seconds that one prompt runs, of all experts or of each [E]; *router_s*: of a batch. The router
    runs first, then prompt by prompt: the expert is copied if it is not near, and runs. If there is no room, the least
    recently used experts go. Their weights are only read, so nothing is written back but *state*, bytes of each that
    change (of all, or of each [E]; part of *sizes*). Raises ``CacheError`` if the experts do not fit.
    """
    size = np.asarray(sizes, dtype=np.float64)
    runs, states = (np.broadcast_to(np.asarray(a, dtype=np.float64), size.shape) for a in (run_s, state))
    _check(batches, size, runs, states, node, router_s)
    return _Serving(size, runs, states, node).table(batches, router_s)


class _Serving:
    def __init__(self, size: np.ndarray, runs: np.ndarray, states: np.ndarray, node: Node):
        self.size, self.runs, self.states, self.node = size, runs, states, node
        self.room, _ = node._bytes()
        self.near: OrderedDict[int, float] = OrderedDict()  # expert -> end of its last run; the last used at the end
        self.link_free = self.node_free = 0.0
        self.seconds: dict[tuple[float, bool], float] = {}

    def table(self, batches: Sequence[Sequence[int]], router_s: float) -> pd.DataFrame:
        rows = []
        for batch, experts in enumerate(batches):
            known = self.node_free = self.node_free + router_s
            rows += [{"batch": batch, "expert": int(e), **self._prompt(int(e), known)} for e in experts]
        return pd.DataFrame(rows)

    def _prompt(self, expert: int, known: float) -> dict[str, float | bool]:
        """Return what one prompt does whose expert is known since *known*."""
        hit = expert in self.near
        start = finish = copied = back = 0.0
        if not hit:
            gone = self._make_room(expert)
            free = max([self.link_free, known, *(self.near.pop(e) for e in gone)])
            start = free if self.node.switch == "overlapped" else max(free, self.node_free)
            back, copied = float(sum(self.states[e] for e in gone)), float(self.size[expert])
            finish = self.link_free = start + self._seconds(back, False) + self._seconds(copied, True)
        begin = max(self.node_free, finish)
        self.node_free = self.near[expert] = begin + self.runs[expert]
        self.near.move_to_end(expert)
        copy = (np.nan, np.nan) if hit else (start, finish)
        return {"hit": hit, "copy_start_s": copy[0], "copy_finish_s": copy[1], "run_start_s": begin,
                "run_finish_s": self.node_free, "copied_bytes": copied, "written_back_bytes": back}

    def _make_room(self, expert: int) -> list[int]:
        """Return the least recently used experts that must go."""
        used, gone = sum(self.size[e] for e in self.near), []
        for other in self.near:
            if used + self.size[expert] <= self.room:
                break
            used -= self.size[other]
            gone.append(other)
        return gone

    def _seconds(self, size: float, up: bool) -> float:
        if size == 0:
            return 0.0
        if (size, up) not in self.seconds:
            self.seconds[size, up] = self.node.copy_s(size, up)
        return self.seconds[size, up]


def _check(batches: Sequence[Sequence[int]], size: np.ndarray, runs: np.ndarray, states: np.ndarray, node: Node,
           router_s: float) -> None:
    if size.ndim != 1 or not size.size or not (np.isfinite(size) & (size > 0)).all():
        raise CacheError("sizes must be one number of bytes above 0 for each expert")
    if not (np.isfinite(runs) & (runs >= 0)).all() or not 0 <= router_s < np.inf or not (
            (states >= 0) & (states <= size)).all():
        raise CacheError("run_s and router_s must be seconds from 0, state bytes from 0 up to the size of the expert")
    asked = sorted({e for batch in batches for e in batch} - set(range(len(size))))
    if asked:
        raise CacheError(f"a prompt asks for expert {asked[0]}, but sizes has {len(size)}; give the size of each")
    room, store = node._bytes()
    if size.max() > room:
        raise CacheError(f"expert {size.argmax()} has {pretty(float(size.max()), 'byte', 4)}, but {node.fast} has room "
                         f"for {pretty(room, 'byte', 4)}; give room_bytes for the largest expert at least")
    if size.sum() > store:
        fit = int((np.cumsum(size) <= store).sum())
        raise CacheError(f"{len(size)} experts have {pretty(float(size.sum()), 'byte', 4)}, but {node.store} has "
                         f"{pretty(store, 'byte', 4)}: the first {fit} fit; use fewer experts or more nodes")
