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

from moesim.network.fluid_memo import Memo


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
    """What is to be sent, [flows]: start (s), bytes, weight (share of a bottleneck), limit (bytes/s, may be inf).

    ``follower``: the flow that begins when this one ends, or -1; empty if none does.
    """

    start_s: np.ndarray
    size: np.ndarray
    weight: np.ndarray
    limit: np.ndarray
    follower: np.ndarray


class Stops(NamedTuple):
    """When a run stops: at ends, those within the share *tolerance* of a flow's duration at once; for good at *until*.

    ``rounding`` (s): ends after *until* by no more than this are ends at it.
    """

    tolerance: float
    until: float
    rounding: float


class Course(NamedTuple):
    """How flows went, [flows]: ``end_s``; ``bottleneck``: the link that limited each at its end (-1: its own limit).

    Flows that had not ended when the run did: ``end_s`` is inf, ``left_bytes`` what is still to be sent (0 for the
    others), ``bottleneck`` the link that limits them then (-1: not begun). ``events``: how often flows started or
    ended; ``solved``: how many rates that took.
    """

    end_s: np.ndarray
    bottleneck: np.ndarray
    left_bytes: np.ndarray
    events: int
    solved: int


def rates(paths: Paths, capacity: np.ndarray, weight: np.ndarray | None = None,
          limit: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the max-min fair rates (bytes/s) and bottlenecks (link, or -1) of flows that all run.

    *capacity* [links] in bytes/s, >= 0: flows across a link of none have rate 0, the others do not notice them.
    *weight* [flows] (default 1) spans at most four orders of magnitude, or sums over links lose precision; *limit*
    [flows] in bytes/s (default none). Weights and limits are positive.
    """
    from moesim.network.fluid_loops import solve  # numba

    zeros = np.zeros(len(paths.first) - 1)
    flows = _flows(zeros, zeros, weight, limit, None)
    return solve(_weighted(paths, weight), flows, np.asarray(capacity, np.float64))


def run(paths: Paths, capacity: np.ndarray, size: np.ndarray, start_s: np.ndarray, *, weight: np.ndarray | None = None,
        limit: np.ndarray | None = None, tolerance: float = 0.0, until: float = np.inf,
        after: np.ndarray | None = None, memo: Memo | None = None) -> Course:
    """Return how flows of *size* bytes (positive) that begin at *start_s* go; other arguments as ``rates``.

    Rates are solved again at every start and end. With a *tolerance* > 0, ends that come after the first by at most
    that share of their flow's duration are one event: early ends then hold on to their links a little too long.
    *until*: stop at that time (s, as *start_s*); what ends at it has ended. *after* [flows]: the flow at whose end each
    begins, if its own start has come by then, or -1; raises ``ValueError`` where these are no chains. Flows across a
    link without capacity never end (inf), nor do flows that wait for one. *memo*: look there before, keep there after;
    not asked for runs that stop.
    """
    if len(size) == 0:
        return Course(np.zeros(0), np.zeros(0, np.int32), np.zeros(0), 0, 0)
    if memo is not None and until == np.inf:
        known = (paths.first, paths.link, paths.usage, capacity, weight, limit, np.float64(tolerance), after)
        return memo.course(known, size, start_s,
                           lambda: run(paths, capacity, size, start_s, weight=weight, limit=limit, tolerance=tolerance,
                                       after=after))
    from moesim.network.fluid_events import simulate  # numba

    origin = float(np.min(start_s))  # small times are more precise
    flows = _flows(start_s - origin, size, weight, limit, after)
    order = np.argsort(flows.start_s, kind="stable")
    rounding = 2 * np.spacing(max(abs(until), abs(origin))) if until < np.inf else 0.0  # of times so far from zero
    stops = Stops(float(tolerance), float(until) - origin, float(rounding))
    course = Course(*simulate(_weighted(paths, weight), flows, _own(capacity), order, stops))
    end_s = course.end_s + origin
    return course._replace(end_s=np.where(end_s < np.inf, np.minimum(end_s, until), np.inf))


def _flows(start_s: np.ndarray, size: np.ndarray, weight: np.ndarray | None, limit: np.ndarray | None,
           after: np.ndarray | None) -> Flows:
    n = len(start_s)
    return Flows(_own(start_s), _own(size), np.ones(n) if weight is None else _own(weight),
                 np.full(n, np.inf) if limit is None else _own(limit),
                 np.empty(0, np.int64) if after is None else _followers(np.asarray(after), n))


def _own(values: np.ndarray) -> np.ndarray:
    """Return *values* as the loops take them, which are compiled once more for what is read-only or has gaps."""
    return np.require(values, np.float64, ["C", "W"])


def _followers(after: np.ndarray, n: int) -> np.ndarray:
    """Return which flow follows each of *n*, -1 for none. Raises ``ValueError`` unless *after* describes chains."""
    if after.shape != (n,) or not np.issubdtype(after.dtype, np.integer):
        raise ValueError(f"after is {after.dtype} {list(after.shape)}; give a whole number for each of {n} flows")
    wrong = np.flatnonzero((after < -1) | (after >= n))
    if len(wrong):
        raise ValueError(f"flow {wrong[0]} comes after flow {after[wrong[0]]}; flows are 0 to {n - 1}, -1 for none")
    later = np.flatnonzero(after >= 0)
    follower = np.full(n, -1, np.int64)
    follower[after[later]] = later
    lost = later[follower[after[later]] != later]
    if len(lost):
        raise ValueError(f"flows {lost[0]} and {follower[after[lost[0]]]} both come after flow {after[lost[0]]}; "
                         f"only one may")
    before, steps = after, 1  # the flow that ends ``steps`` places before each
    while (before >= 0).any():
        if steps > n:
            raise ValueError(f"flow {np.argmax(before >= 0)} comes after itself, by way of others; let one begin first")
        before, steps = np.where(before >= 0, before[before], -1), 2 * steps
    return follower


def _weighted(paths: Paths, weight: np.ndarray | None) -> Paths:
    """Return *paths* as the loops want them: what each flow takes of its links per unit of level, small numbers.

    No usage at all if every flow takes its weight of each of its links: a third of the memory, and half the time.
    """
    first, link, usage = np.asarray(paths.first), np.asarray(paths.link), np.asarray(paths.usage, np.float64)
    used = usage != 0
    if not used.all():
        first, link, usage = np.concatenate([[0], np.cumsum(used)])[first], link[used], usage[used]
    if (usage == 1).all():
        usage = np.empty(0)
    elif weight is not None:
        usage = usage * np.repeat(np.asarray(weight, np.float64), np.diff(first))
    return Paths(first.astype(np.uint32), link.astype(np.uint32), usage)
