"""What a prefetcher expects of a run that goes on, one pass at a time: it knows the pass and other requests, no more.

Noise of a pass is drawn from the seed and the pass's number; popular wrong guesses are those of the other requests.
Letters: M layers with experts, E experts of each, H holders of experts. The key of expert e of layer l is l * E + e.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.memory.events import Events, Passes
from moesim.memory.job import Forecast, Job
from moesim.memory.terms import mixed
from moesim.registry import name_of
from moesim.trace import RoutingTrace

_NONE = np.zeros(0, np.int64)


class Foresight:
    """The forecasts of *prefetcher* for holders of the experts *held* [H, M, E].

    *trace*: what the rows of passes are of; None if tokens have no routes of their own. *fit*: events of other
    requests, in the same keys. A copy of an expert is expected wherever there is one. Raises ``CacheError`` for a
    prefetcher that needs what only a replay has.
    """

    def __init__(self, prefetcher: Any, held: np.ndarray, trace: RoutingTrace | None, fit: Events | None, seed: int):
        self._part, self._trace, self._fit, self._seed, self._passes = prefetcher, trace, fit, seed, 0
        kept = held.reshape(len(held), -1) > 0
        self._number = np.where(kept, np.cumsum(kept, axis=1) - 1, -1).astype(np.int32)  # key -> that on the holder
        self._layers = held.shape[1]
        self._layer_of = np.repeat(np.arange(held.shape[1]), held.shape[2])
        if self.asks:
            self._forecast(np.zeros(self.n_keys, np.int64), _NONE)

    @property
    def n_keys(self) -> int:
        """Return M x E."""
        return len(self._layer_of)

    @property
    def asks(self) -> bool:
        """Whether anything is expected at all."""
        return name_of(self._part) != "none"

    def of(self, tokens: np.ndarray, rows: np.ndarray) -> list[Forecast]:
        """Return what each holder may expect of the next pass, in its own numbers.

        *tokens* [M * E] that each expert will have; *rows*: of the trace, those of the tokens.
        """
        found, expected = self._forecast(tokens, rows), list[Forecast]()
        self._passes += 1
        for number in self._number:
            keys = number[found.keys]
            starts = np.append(0, np.cumsum(keys >= 0))[found.starts]
            expected.append(Forecast(starts, keys[keys >= 0], found.horizon))
        return expected

    def _forecast(self, tokens: np.ndarray, rows: np.ndarray) -> Forecast:
        """Return what is expected of the pass, whoever holds it."""
        layers = self._layers
        keys = np.flatnonzero(tokens).astype(np.int32)
        passes = Passes(rows, np.array([0, len(rows)]), np.zeros(1, np.uint8)) if self._trace is not None else None
        if passes is None:  # every token guesses for itself
            keys = np.repeat(keys, tokens[keys])
        starts = np.append(0, np.cumsum(np.bincount(self._layer_of[keys], minlength=layers)))
        uses = tokens[keys].astype(np.int32) if passes is not None else np.ones(len(keys), np.int32)
        numbers = np.arange(layers)
        whole = Events(starts, keys, uses, np.zeros(0, np.float32), np.zeros(layers, np.int64), numbers,
                       numbers.astype(np.float64), self._layer_of, np.zeros(1, np.uint8), (), self._trace, passes)
        job = Job(whole, whole, _NONE, _NONE, _NONE, self._fit, mixed(self._seed, self._passes) >> 12, live=True)
        found = self._part.forecast(job)
        return job.expecting(np.zeros(layers + 1, np.int64), keys[:0]) if found is None else found
