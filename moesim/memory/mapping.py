"""Which model answers which category of prompts: the best under a bound of memory, by an integer program.

>>> quality = np.array([[0.9, 0.8, 0.1], [0.2, 0.7, 0.8]])       # two categories, three experts
>>> choose(quality, [0.5, 0.5], sizes=[10, 10, 10], room=30).tolist()
[0, 2]
>>> choose(quality, [0.5, 0.5], sizes=[10, 10, 10], room=10).tolist()   # one expert only: the one good at both
[1, 1]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, hstack, kron

from moesim.memory.terms import CacheError
from moesim.units import pretty


def choose(quality: ArrayLike, demand: ArrayLike, sizes: ArrayLike, room: float,
           active: float | None = None) -> np.ndarray:
    """Return the expert of each category, int64 [C]: the highest sum of *demand* times *quality*.

    *quality* [C, E]: how good the answers of each expert are in each category; *demand* [C]: share of the prompts;
    *sizes* [E]: bytes of each expert; *room*: bytes of all the experts that are used; *active*: bytes of the expert
    that the mean prompt uses, at most (None: no bound). Solved to optimality by HiGHS. Two steps, to a category and
    then to its expert, are how Samba-CoE routes (arXiv 2412.01868). Raises ``CacheError`` if nothing fits.
    """
    q, share, size = (np.asarray(a, dtype=np.float64) for a in (quality, demand, sizes))
    _check(q, share, size, room)
    categories, experts = q.shape
    chosen = categories * experts  # variables: expert e answers category c (row by row), then: expert e is loaded
    one = hstack([kron(csr_array(np.eye(categories)), np.ones((1, experts))), csr_array((categories, experts))])
    loaded = hstack([csr_array(np.eye(chosen)), kron(np.ones((categories, 1)), -csr_array(np.eye(experts)))])
    bytes_ = np.concatenate([np.zeros(chosen), size])
    mean = np.concatenate([np.outer(share / share.sum(), size).ravel(), np.zeros(experts)])
    bounds = np.array([room, np.inf if active is None else active])
    limits = [LinearConstraint(one, 1, 1), LinearConstraint(loaded, -np.inf, 0),
              LinearConstraint(np.stack([bytes_, mean]) / size.max(), -np.inf, bounds / size.max())]
    cost = np.concatenate([-(share[:, None] * q).ravel(), np.zeros(experts)])
    found = milp(cost, constraints=limits, integrality=np.ones(chosen + experts), bounds=Bounds(0, 1))
    if found.x is None:
        bound = "" if active is None else f" and {pretty(active, 'byte', 4)} for the mean prompt"
        raise CacheError(f"no choice of experts keeps to {pretty(room, 'byte', 4)}{bound}: the smallest expert "
                         f"has {pretty(float(size.min()), 'byte', 4)}; give a higher bound")
    return found.x[:chosen].reshape(categories, experts).argmax(axis=1)


def _check(quality: np.ndarray, demand: np.ndarray, sizes: np.ndarray, room: float) -> None:
    if quality.ndim != 2 or not quality.size or demand.shape != quality.shape[:1] or sizes.shape != quality.shape[1:]:
        raise CacheError(f"quality is {quality.shape}, demand {demand.shape} and sizes {sizes.shape}; give "
                         "[categories, experts], [categories] and [experts]")
    if not np.isfinite(quality).all():
        raise CacheError("quality has a number that is not finite; give what was measured, or leave the expert out")
    if not (np.isfinite(demand) & (demand >= 0)).all() or not demand.any():
        raise CacheError(f"demand is {demand.tolist()}; give a share from 0 of each category, of one above 0")
    if not (np.isfinite(sizes) & (sizes > 0)).all() or not room > 0:
        raise CacheError(f"sizes and room must be above 0; they are {sizes.min()} at least, and {room}")
