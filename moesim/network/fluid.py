"""Fluid flows: exact weighted max-min fair rates, and what happens when flows start and end.

Flow f has a rate r_f <= limit_f and uses ``usage`` times r_f of each link of its path; a link gives every flow the
same r_f / weight_f unless the flow is held back elsewhere. Two flows on one link of 3 bytes/s, weights 1 and 2, and
one of 10 bytes alone behind it:

>>> import numpy as np
>>> paths = Paths(np.array([0, 1, 2]), np.array([0, 0]), np.array([1.0, 1.0]))
>>> rates(paths, np.array([3.0]), weight=np.array([1.0, 2.0]))[0].tolist()
[1.0, 2.0]
>>> run(paths, np.array([3.0]), size=np.array([1.0, 10.0]), start_s=np.zeros(2)).end_s.round(9).tolist()
[0.666666667, 3.666666667]
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse


class Paths(NamedTuple):
    """Links of flows as CSR: flow f uses ``usage[e]`` of its rate on ``link[e]``, e in ``first[f] : first[f + 1]``."""

    first: np.ndarray
    link: np.ndarray
    usage: np.ndarray

    @classmethod
    def of(cls, usage: sparse.csr_array) -> Paths:
        """Return the paths that the matrix *usage* [flows, links] describes."""
        return cls(usage.indptr.astype(np.int64), usage.indices.astype(np.int32), usage.data.astype(np.float64))


class Flows(NamedTuple):
    """What is to be sent, [flows]: start (s), bytes, weight (share of a bottleneck), limit (bytes/s, may be inf)."""

    start_s: np.ndarray
    size: np.ndarray
    weight: np.ndarray
    limit: np.ndarray


class Course(NamedTuple):
    """How flows went, [flows]: ``end_s``; ``bottleneck``: the link that limited each at its end (-1: its own limit).

    ``events``: how often flows started or ended; ``solved``: how many rates that took.
    """

    end_s: np.ndarray
    bottleneck: np.ndarray
    events: int
    solved: int


def rates(paths: Paths, capacity: np.ndarray, weight: np.ndarray | None = None,
          limit: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the max-min fair rates (bytes/s) and bottlenecks (link, or -1) of flows that all run.

    *capacity* [links] in bytes/s; *weight* [flows] (default 1) spans at most four orders of magnitude, or sums over
    links lose precision; *limit* [flows] in bytes/s (default none). All positive.
    """
    from moesim.network.fluid_loops import solve  # numba

    zeros = np.zeros(len(paths.first) - 1)
    flows = _flows(zeros, zeros, weight, limit)
    return solve(_weighted(paths, flows.weight), flows, np.asarray(capacity, np.float64))


def run(paths: Paths, capacity: np.ndarray, size: np.ndarray, start_s: np.ndarray, *, weight: np.ndarray | None = None,
        limit: np.ndarray | None = None, tolerance: float = 0.0) -> Course:
    """Return how flows of *size* bytes (positive) that begin at *start_s* go; other arguments as ``rates``.

    Rates are solved again at every start and end. With a *tolerance* > 0, ends that come after the first by at most
    that share of their flow's duration are one event: early ends then hold on to their links a little too long.
    """
    from moesim.network.fluid_events import simulate  # numba

    if len(size) == 0:
        return Course(np.zeros(0), np.zeros(0, np.int32), 0, 0)
    origin = float(np.min(start_s))  # small times are more precise
    flows = _flows(start_s - origin, size, weight, limit)
    order = np.argsort(flows.start_s, kind="stable")
    end_s, bottleneck, events, solved = simulate(_weighted(paths, flows.weight), flows,
                                                 np.asarray(capacity, np.float64), order, float(tolerance))
    return Course(end_s + origin, bottleneck, events, solved)


def _flows(start_s: np.ndarray, size: np.ndarray, weight: np.ndarray | None, limit: np.ndarray | None) -> Flows:
    n = len(start_s)
    return Flows(np.asarray(start_s, np.float64), np.asarray(size, np.float64),
                 np.ones(n) if weight is None else np.asarray(weight, np.float64),
                 np.full(n, np.inf) if limit is None else np.asarray(limit, np.float64))


def _weighted(paths: Paths, weight: np.ndarray) -> Paths:
    """Return *paths* with what each flow takes of its links per unit of level, as the loops want them."""
    first = np.asarray(paths.first, np.int64)
    return Paths(first, np.asarray(paths.link, np.int32), paths.usage * np.repeat(weight, np.diff(first)))
