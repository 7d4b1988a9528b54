"""The activated-expert law: the same tokens on few experts or on many, and each expert on few tokens or on many.

>>> from moesim.measure.target import Target
>>> points = ActivatedExperts().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> sorted({sum(t > 0 for t in p.shapes["tokens_per_expert"]) for p in points})
[1, 2, 4, 8, 16, 32, 64]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.measure import routing, shapes
from moesim.measure.blocks.experts import IMPLS, layer_work, weights_of
from moesim.measure.point import Point, Work
from moesim.measure.target import Target
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench

EACH = {"cuda": (1, 4, 16, 64, 256), "cpu": (1, 4, 16)}  # tokens of each active expert
LAYERS = {"cuda": shapes.EXPERTS["cuda"][:3], "cpu": shapes.EXPERTS["cpu"][3:5]}


@part
class ActivatedExperts:
    """Measure ``moe`` by the number of experts that have tokens. ``seed`` chooses which."""

    seed: int = 0

    def points(self, target: Target) -> list[Point]:
        """Return layers x active experts (powers of two, all) x tokens of each."""
        found = []
        for experts, hidden, inter, _ in LAYERS[target.kind]:
            numbers = sorted({2**i for i in range(experts.bit_length()) if 2**i <= experts} | {experts})
            found += [self._point((experts, hidden, inter), active, each, IMPLS[target.kind][0])
                      for active in numbers for each in EACH[target.kind]]
        return [p for p in found if shapes.fits(target, weights_of(p))]

    def _point(self, layer: tuple[int, int, int], active: int, each: int, impl: str) -> Point:
        counts = np.zeros(layer[0], np.int64)
        counts[np.random.default_rng([self.seed, active, *layer]).permutation(layer[0])[:active]] = each
        shape = {"tokens_per_expert": tuple(counts.tolist()), "hidden": layer[1], "inter": layer[2]}
        return Point("moe", shape, impl, routing="balanced", extra={"tokens": active * each, "top_k": 1})

    def work(self, point: Point, bench: Bench) -> Work:
        """Return the layer with exactly these tokens per expert, each token on one expert."""
        counts = np.asarray(point.shapes["tokens_per_expert"])
        return layer_work(point, routing.exactly(counts, np.random.default_rng(self.seed)), bench)
