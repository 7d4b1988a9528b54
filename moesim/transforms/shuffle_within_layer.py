"""Permute the tokens' choices independently in every layer: popularity stays, everything between layers goes.

The null model of inter-layer affinity: tokens per expert are unchanged, while what a layer says about the
next, and a token about its neighbour, falls to chance.

>>> import numpy as np
>>> from moesim.trace import RoutingTrace
>>> trace = RoutingTrace.from_arrays(np.arange(400).reshape(200, 1, 2).repeat(2, axis=1) % 8, n_experts=8, top_k=2)
>>> shuffled = ShuffleWithinLayer().apply(trace, seed=0)
>>> bool((shuffled.counts() == trace.counts()).all()), int((shuffled.experts[:, 0] == shuffled.experts[:, 1]).all())
(True, 0)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from moesim.registry import part
from moesim.trace import RoutingTrace


@part
class ShuffleWithinLayer:
    """Keep who asks (tokens, phases, requests), shuffle what they get, layer by layer."""

    def apply(self, trace: RoutingTrace, seed: int) -> RoutingTrace:
        """Return the shuffled trace; its meta says so."""
        rng = np.random.default_rng(seed)
        experts = np.empty_like(trace.experts)
        probs = None if trace.probs is None else np.empty_like(trace.probs)
        for layer in range(trace.n_layers):
            order = rng.permutation(trace.n_tokens)
            experts[:, layer] = trace.experts[order, layer]
            if probs is not None and trace.probs is not None:
                probs[:, layer] = trace.probs[order, layer]
        done = [*trace.meta.get("transforms", []), {"name": "shuffle_within_layer", "seed": seed}]
        return dataclasses.replace(trace, experts=experts, probs=probs, meta=trace.meta | {"transforms": done})
