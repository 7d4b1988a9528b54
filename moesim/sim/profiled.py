"""Seconds of a step's pieces from a measured layer profile: what ``Operators`` answers, without kernels.

The profile is of one model on one device, so the model's widths are not looked at: only how many tokens, sequences and
active experts there are.
"""

from __future__ import annotations

import numpy as np

from moesim.scenario import Scenario
from moesim.sim.cost import Batch
from moesim.sim.operators import ByCount
from moesim.sim.routing import work


class Profiled:
    """The pieces of *scenario*'s model on one device of a tensor-parallel group, from its ``profile``.

    Raises ``ConfigError`` if the profile cannot be read or lacks what the model has.
    """

    def __init__(self, scenario: Scenario):
        model, tp = scenario.model, scenario.parallelism.tp
        try:
            self._profile = profile = scenario.profile.read(tp)
        except ValueError as error:
            raise scenario.error("profile", str(error)) from None
        dense = model.n_moe_layers < model.layers
        facts = [fact for wrong, fact in (
            (model.moe is not None and profile.experts is None, "times of experts"),
            (dense and profile.feed_forward is None, "times of a feed-forward"),
            (bool(model.shared_gemms()), "times of shared experts"),
            (bool(model.attention_windows.any()), "times of attention with windows")) if wrong]
        if facts:
            raise scenario.error("profile", f"{profile.source} has no {', no '.join(facts)}, which model {model.name} "
                                            f"needs; use kernels instead (leave profile out)")
        self._top_k = model.top_k
        self.projections, self._opening = ByCount(self._measured), ByCount(profile.opening)
        self._expert_norm, self._head = ByCount(profile.expert_norm), ByCount(profile.head)
        self._feed_forward = None if profile.feed_forward is None else ByCount(profile.feed_forward)
        self._outside: set[str] = set()
        self.windows, self.window_of_layer = np.zeros(1, np.int64), np.zeros(model.layers, np.int64)

    def _measured(self, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of an attention block without attention itself; note whether they were measured."""
        self._check("tokens", tokens, self._profile.projections.at[-1])
        return self._profile.projections(tokens)

    def dense(self, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of the feed-forward of a layer without experts."""
        assert self._feed_forward is not None, "checked when made"
        return self._feed_forward(tokens)

    def gate(self, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of the norm before experts; the gate itself is part of them."""
        return self._expert_norm(tokens)

    def shared(self, tokens: np.ndarray) -> np.ndarray:
        """Raise: a profile has no shared experts, and a model that has some is refused when this is made."""
        raise AssertionError("a model with shared experts has no profile")

    def head(self, samples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of embedding, last norm, output head and sampler."""
        return self._head(samples) + self._opening(tokens)

    def attention(self, batch: Batch, n_groups: int) -> np.ndarray:
        """Return the seconds of a layer's attention in every group, [1, groups]."""
        seconds, inside = self._profile.attention.of_groups(
            (batch.prefill_tokens, batch.prefill_past, batch.prefill_group), (batch.decode_kv, batch.decode_group),
            n_groups)
        if not inside:
            self._outside.add("attention")
        return seconds[None]

    def experts(self, tokens_per_expert: np.ndarray) -> np.ndarray:
        """Return the seconds of each device's experts, from their true tokens [layers, devices, experts]."""
        table = self._profile.experts
        assert table is not None, "checked when made"
        load, active = work(tokens_per_expert)
        tokens = load / self._top_k
        self._check("experts", tokens, table.tokens[-1])
        return table(tokens, active)

    def extrapolated(self) -> list[str]:
        """Return a warning for each piece that was asked for beyond what was measured."""
        return [f"layer times extrapolated: {what}: beyond the largest that {self._profile.source} measured"
                for what in sorted(self._outside)]

    def _check(self, what: str, asked: np.ndarray, most: float) -> None:
        if asked.max(initial=0) > most:
            self._outside.add(what)
