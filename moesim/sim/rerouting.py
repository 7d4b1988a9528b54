"""Tokens of a step that choose by what the devices' caches hold as the step begins (``cache.reroute``).

It is the one thing of caches that comes before a step is priced: where tokens go, and what is sent, follows from it.
"""

from __future__ import annotations

import numpy as np

from moesim.memory import CacheError
from moesim.memory.swapping import GATE, GIVEN_UP, SWAPPED, Swap, Tokens, choose_all, tokens_of
from moesim.sim.caches import Caches, Places
from moesim.sim.inputs import Inputs


class Reroute:
    """What tokens use in place of what their gates chose.

    With a cache for each layer, all layers can be decided as a step begins: nothing changes a layer's cache before its
    own turn. An expert with replicas counts as resident where all of them are, for which one a token gets is not known.
    """

    def __init__(self, swap: Swap, tokens: Tokens, places: Places, caches: Caches):
        self._swap, self._tokens, self._places, self._caches = swap, tokens, places, caches
        self._choices = 0

    @classmethod
    def of(cls, inputs: Inputs, replicas: np.ndarray, caches: Caches) -> Reroute:
        """Return that of *inputs*' scenario, with *replicas* [H, M, E]. Raises ``ConfigError``."""
        scenario, trace = inputs.scenario, inputs.trace
        assert scenario.cache is not None, "asked only of scenarios with a cache"
        try:
            swap = scenario.cache.reroute.swap(trace.top_k)
            tokens = tokens_of(trace, swap)
        except CacheError as error:
            raise scenario.error("cache.reroute", str(error)) from None
        return cls(swap, tokens, Places.of(replicas), caches)

    def chosen(self, rows: np.ndarray) -> np.ndarray:
        """Return the experts that the tokens of trace *rows* use, uint16 [T, M, k]."""
        layers, at = self._tokens.experts.shape[1], self._places
        there = np.ones((layers, len(self._tokens.there)), np.uint8)
        absent = ~self._caches.holds(*at.cells)
        there[at.layer[absent], at.expert[absent]] = 0
        used = np.empty((len(rows), layers, len(self._tokens.ranks)), np.uint16)
        choose_all(self._swap.pick, self._tokens, np.ascontiguousarray(rows, np.int64), there, used)
        self._choices += used.size
        return used

    def tally(self) -> dict[str, float]:
        """Return the columns of ``steps`` for the choices since the last call."""
        tally = self._tokens.tally
        found = {"expert_choices": self._choices, "swapped_choices": int(tally[SWAPPED]),
                 "gate_probability": float(tally[GATE]), "given_up_probability": float(tally[GIVEN_UP])}
        self._choices, tally[:] = 0, 0.0
        return found
