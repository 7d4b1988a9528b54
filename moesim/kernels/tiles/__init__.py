"""Time of each operator when it runs as tiles on multiprocessors: the formulas behind the ``tile`` kernel model.

All share one picture. A kernel is cut into tiles (or blocks of key/value columns); a tile takes the longer of
its arithmetic and its loads, plus a prologue; tiles spread over the multiprocessors. Meanwhile memory streams
what cannot be avoided. The two overlap: ``overlapped(tiles, memory)``, plus what cannot overlap (launch,
second kernels). Every formula is non-decreasing in the amount of work.
"""

from __future__ import annotations

import numpy as np


def overlapped(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the time of two activities that overlap: the longer one, or 19 % more where they are equal.

    The fourth-power mean; exponents 2.6 to 3.8 fit best when free, the error hardly differs, and square roots are fast.
    """
    a, b = a * a, b * b
    return np.sqrt(np.sqrt(a * a + b * b))
