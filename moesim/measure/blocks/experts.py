"""Routed experts with true tokens per expert: sort, gate and up, SiLU, down, weighted sum.

Routing is balanced, uniform or skewed; every point keeps the tokens of each expert:

>>> from moesim.measure.target import Target
>>> points = Experts().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> skewed = next(p for p in points if p.routing == "zipf" and sum(p.shapes["tokens_per_expert"]) == 512)
>>> max(skewed.shapes["tokens_per_expert"]) > 2 * 512 / len(skewed.shapes["tokens_per_expert"])
True
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from moesim.measure import routing, shapes
from moesim.measure.point import Point, Work
from moesim.measure.target import Target
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench

Layer = tuple[int, int, int, int]  # a row of shapes.EXPERTS
IMPLS = {"cuda": ("triton_fused", "grouped_mm"), "cpu": ("expert_loop",)}
# Of the second implementation on a GPU, every so many token counts: it is there to be compared.
THIN = 3


@part
class Experts:
    """Measure ``moe``. ``seed`` draws the routing."""

    seed: int = 0

    def points(self, target: Target) -> list[Point]:
        """Return layers x tokens x routings."""
        found = []
        for layer in shapes.EXPERTS[target.kind]:
            for i, tokens in enumerate(shapes.TOKENS[target.kind]):
                for kind in routing.KINDS:
                    anchor = kind != "uniform" and shapes.at_ends(tokens, shapes.TOKENS[target.kind])
                    found += [self._point(layer, tokens, kind, impl, anchor)
                              for n, impl in enumerate(IMPLS[target.kind])
                              if n == 0 or (i % THIN == 0 and kind != "uniform")]
        return [p for p in found if shapes.fits(target, weights_of(p))]

    def _point(self, layer: Layer, tokens: int, kind: str, impl: str, anchor: bool) -> Point:
        _, hidden, inter, top_k = layer
        shape = {"tokens_per_expert": _counts(layer, tokens, kind, self.seed), "hidden": hidden, "inter": inter}
        return Point("moe", shape, impl, routing=kind, anchor=anchor, extra={"tokens": tokens, "top_k": top_k})

    def work(self, point: Point, bench: Bench) -> Work:
        """Return a layer for every set of weights of the ring."""
        tokens, top_k = point.extra["tokens"], point.extra["top_k"]
        layer = (len(point.shapes["tokens_per_expert"]), point.shapes["hidden"], point.shapes["inter"], top_k)
        return layer_work(point, _ids(layer, tokens, point.routing, self.seed), bench)


def _ids(layer: Layer, tokens: int, kind: str, seed: int) -> np.ndarray:
    """Return the experts of every token of a layer of ``shapes.EXPERTS``."""
    rng = np.random.default_rng([seed, tokens, *layer])
    return routing.choose(kind, tokens, layer[0], layer[3], rng)


@cache
def _counts(layer: Layer, tokens: int, kind: str, seed: int) -> tuple[int, ...]:
    return tuple(routing.counts(_ids(layer, tokens, kind, seed), layer[0]).tolist())


def weights_of(point: Point) -> float:
    """Return the values of all weights of *point*."""
    return float(3 * len(point.shapes["tokens_per_expert"]) * point.shapes["hidden"] * point.shapes["inter"])


def layer_work(point: Point, ids: np.ndarray, bench: Bench) -> Work:
    """Return the calls of an expert layer in which tokens choose *ids* [T, K].

    Calls take turns over the experts of all sets of weights: the experts with tokens of one call are the neighbours of
    those of the call before, so that none is met again before a ring of weights has been streamed.
    """
    import torch

    from moesim.measure import engines

    hidden, inter = point.shapes["hidden"], point.shapes["inter"]
    counts = np.asarray(point.shapes["tokens_per_expert"])
    experts, active = len(counts), np.count_nonzero(counts)
    (x, weights), sets = bench.pool.ring([(experts, 2 * inter, hidden), (experts, hidden, inter)],
                                         bench.target.ring_bytes, shared=[(len(ids), hidden), ids.shape])
    place = np.empty(experts, np.int64)
    place[np.argsort(counts == 0, kind="stable")] = np.arange(experts)  # experts with tokens first
    run, capture = engines.experts(point.impl)
    calls = []
    for i in range(-(-experts // active) * len(sets)):
        chosen = torch.from_numpy((place[ids] + i // len(sets) * active) % experts).to(bench.target.kind)
        up, down = sets[i % len(sets)]
        calls.append(partial(run, x, weights, chosen, up, down))
    return Work(calls, capture=capture)
