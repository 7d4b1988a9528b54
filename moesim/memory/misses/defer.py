"""The host computes what is missed; a token's last choices are added one layer later (Expert Deferral).

KTransformers (SOSP 2025): while the device is at the next layer's attention, the host is at the choices that were put
off. The answer changes: one layer's experts see the hidden state without them. Nothing is put off in the last layer.

>>> from moesim.memory.missed import Missed
>>> import numpy as np
>>> ranks = np.array([[[[1, 0], [0, 1]]]] * 2)  # two layers, one token: it ranks expert 0 first
>>> fate = Defer(choices=1).decide(Missed(ranks.sum(axis=3), np.ones((2, 1, 2), bool), ranks=ranks))
>>> fate.host.tolist(), fate.deferred.tolist()
([[[1, 0]], [[1, 1]]], [[[0, 1]], [[0, 0]]])
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.memory.missed import Fate, Missed
from moesim.registry import part


@part
class Defer:
    """Put off those of a token's last *choices* that are missed (top-k or more: all; how many is ours, assumed)."""

    choices: Annotated[int, Field(ge=0)] = 3

    needs: ClassVar[tuple[str, ...]] = ("host", "ranks")
    fetches: ClassVar[bool] = False
    whole: ClassVar[bool] = False

    def decide(self, missed: Missed) -> Fate:
        """Return what the host computes at once, and what later."""
        first = max(missed.ranks.shape[-1] - self.choices, 0)
        deferred = np.where(missed.missing, missed.ranks[..., first:].sum(axis=-1), 0)
        deferred[-1] = 0
        return Fate(host=missed.of(missed.missing) - deferred, deferred=deferred)
