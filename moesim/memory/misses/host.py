"""The host's processor computes what is missed where it lies, while devices have their hits; nothing moves.

KTransformers (SOSP 2025) without deferral. The processor may be one in the host's memory (PIM): it is
``hardware.host_processor`` all the same.

>>> from moesim.memory.missed import Missed
>>> import numpy as np
>>> Host().decide(Missed(np.array([[[2, 1, 0]]]), np.array([[[False, True, False]]]))).host
array([[[0, 1, 0]]])
"""

from __future__ import annotations

from typing import ClassVar

from moesim.memory.missed import Fate, Missed
from moesim.registry import part


@part
class Host:
    """Compute every missed expert at the host."""

    needs: ClassVar[tuple[str, ...]] = ("host",)
    fetches: ClassVar[bool] = False
    whole: ClassVar[bool] = False

    def decide(self, missed: Missed) -> Fate:
        """Return that the host computes everything."""
        return Fate(host=missed.of(missed.missing))
