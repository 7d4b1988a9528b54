"""What parts of kind ``miss`` are told of a step: tokens, ranks, gate weights and costs of its experts."""

from __future__ import annotations

import numpy as np

from moesim.memory.missed import Missed, Seconds
from moesim.sim.at_host import AtHost
from moesim.sim.copying import Copies
from moesim.sim.cost import Batch, StepCost
from moesim.sim.inputs import Inputs
from moesim.sim.operators import ByCount, Pricing


class Facts:
    """What a part *needs*. Raises ``ConfigError`` if that is gate weights, and the trace has no probabilities."""

    def __init__(self, inputs: Inputs, needs: tuple[str, ...], link: Copies, host: AtHost | None):
        self._needs, self._link, self._host = needs, link, host
        self._weights = _weights(inputs) if "weights" in needs else None
        self._device: ByCount | None = None

    def missed(self, cost: StepCost, batch: Batch, operators: Pricing, missing: np.ndarray, low: np.ndarray) -> Missed:
        """Return what a part may see of the step of *batch*: *missing* and *low* [M, H, S], and what it needs."""
        tokens, routes = cost.expert_tokens, cost.routes
        assert tokens is not None and routes is not None, "asked only of models with experts"
        found = Missed(tokens, missing, low)
        if {"ranks", "weights"} & set(self._needs):
            ranks, weight = routes.ranks(tokens.shape, None if self._weights is None else self._weights[batch.rows])
            found = Missed(tokens, missing, low, ranks, weight)
        if "seconds" in self._needs:
            assert self._host is not None, "what compares costs compares the host's"
            device = self._device = self._device or ByCount(
                lambda counts: operators.experts(counts[:, None, None]).ravel())
            of = found.of(missing)
            seconds = Seconds(float(self._link.one_s), device(of), self._host.alone(of))
            found = Missed(tokens, missing, low, found.ranks, found.weight, seconds)
        return found


def _weights(inputs: Inputs) -> np.ndarray:
    """Return the share that each choice has of its token's chosen gate weight, float32 [T, M, k]."""
    trace = inputs.trace
    if trace.probs is None:
        raise inputs.scenario.error("cache.miss", (
            "looks at gate weights, and the trace has no probabilities; capture one with them, leave out what is "
            "compared with a weight, or use a part that looks at none (moesim list miss)"))
    chosen = trace.probs[:, :, :trace.top_k].astype(np.float32)
    return chosen / np.maximum(chosen.sum(axis=2, keepdims=True), np.finfo(np.float32).tiny)
