"""Give the experts of every layer new numbers at random: all statistics stay, only their order in memory goes.

What a checkpoint's numbering does for a linear placement is an accident of training; this takes it away.

>>> import numpy as np
>>> from moesim.trace import RoutingTrace
>>> trace = RoutingTrace.from_arrays(np.array([[[0, 1]], [[0, 2]], [[0, 3]]]), n_experts=4, top_k=2)
>>> relabelled = RelabelExperts().apply(trace, seed=3)
>>> trace.counts().tolist(), relabelled.counts().tolist()
([[3, 1, 1, 1]], [[1, 1, 1, 3]])
"""

from __future__ import annotations

import dataclasses

import numpy as np

from moesim.registry import part
from moesim.trace import RoutingTrace


@part
class RelabelExperts:
    """Permute the expert ids of each layer; tokens, ranks and probabilities stay."""

    def apply(self, trace: RoutingTrace, seed: int) -> RoutingTrace:
        """Return the relabelled trace; its meta says so."""
        rng = np.random.default_rng(seed)
        names = np.zeros((trace.n_layers, trace.n_experts), dtype=np.uint16)
        for row, size in zip(names, trace.sizes, strict=True):
            row[:size] = rng.permutation(size)
        experts = names[np.arange(trace.n_layers)[:, None], trace.experts]
        done = [*trace.meta.get("transforms", []), {"name": "relabel_experts", "seed": seed}]
        return dataclasses.replace(trace, experts=experts, meta=trace.meta | {"transforms": done})
