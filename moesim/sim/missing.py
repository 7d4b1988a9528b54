"""What parts of kind ``miss`` are told of a step: tokens, ranks, gate weights and costs of its experts.

Parts know arrays alone (``moesim.memory.missed``), no scenario and no machine; what they ask for is worked out here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.memory.missed import Missed, Seconds
from moesim.sim.at_host import AtHost
from moesim.sim.copying import Copies
from moesim.sim.cost import Batch, StepCost
from moesim.sim.inputs import Inputs
from moesim.sim.operators import ByCount, Pricing


class Facts:
    """What a part *needs*. Raises ``ConfigError`` if that is gate weights, and the trace has no probabilities."""

    def __init__(self, inputs: Inputs, needs: tuple[str, ...], link: Copies, host: AtHost | None, operators: Pricing):
        self._needs, self._link, self._host = needs, link, host
        self._weights = _weights(inputs) if "weights" in needs else None
        self._device = ByCount(lambda counts: operators.experts(counts[:, None, None]).ravel())  # one expert alone

    def missed(self, cost: StepCost, batch: Batch, missing: np.ndarray, low: np.ndarray) -> Missed:
        """Return what a part may see of the step of *batch*: *missing* and *low* [M, H, S], and what it needs."""
        tokens, routes = cost.expert_tokens, cost.routes
        assert tokens is not None and routes is not None, "asked only of models with experts"
        found = Missed(tokens, missing, low)
        if {"ranks", "weights"} & set(self._needs):
            ranks, weight = routes.ranks(tokens.shape, None if self._weights is None else self._weights[batch.rows])
            found = replace(found, ranks=ranks, weight=weight)
        if "seconds" in self._needs:
            found = replace(found, seconds=self._seconds(found.of(missing)))
        return found

    def _seconds(self, tokens: np.ndarray) -> Seconds:
        """Return what the *tokens* of each expert would take, [M, H, S]."""
        assert self._host is not None, "what compares costs compares the host's"
        return Seconds(self._link.one_s, self._device(tokens), self._host.alone(tokens))


def _weights(inputs: Inputs) -> np.ndarray:
    """Return the share that each choice has of its token's chosen gate weight, float32 [T, M, k]."""
    trace = inputs.trace
    if trace.probs is None:
        raise inputs.scenario.error("cache.miss", (
            "looks at gate weights, and the trace has no probabilities; capture one with them, leave out what is "
            "compared with a weight, or use a part that looks at none (moesim list miss)"))
    chosen = trace.probs[:, :, :trace.top_k].astype(np.float32)
    return chosen / np.maximum(chosen.sum(axis=2, keepdims=True), np.finfo(np.float32).tiny)
