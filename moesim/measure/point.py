"""One thing to measure (``Point``), what has to run for it (``Work``), and what came out (``Timing``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from moesim.kernels.ops import OPS


@dataclass(frozen=True)
class Point:
    """One shape of one operator, run by one implementation.

    ``shapes`` are named as in ``moesim.kernels.ops``; ``tokens_per_expert`` is a tuple. ``cold``: what the operator
    streams (weights, cached keys and values, copied bytes) is not in a cache when a call begins. ``anchor``: lies at an
    end of the domain, so it is taken first. ``after``: points with a smaller one are taken, and run, before it; time
    may run out. ``guess_s``: seconds of one call before anything was measured; 0 takes the
    roofline of the operator. ``whole_s``: seconds of all that measuring takes, where that is not a number of calls.
    ``group``: points of one group run one after the other, because they share what is slow to build. ``extra``: columns
    of its own, whose names get the prefix ``x_``.
    """

    op: str
    shapes: Mapping[str, Any]
    impl: str
    dtype: str = ""
    cold: bool = True
    routing: str = ""
    anchor: bool = False
    after: int = 0
    guess_s: float = 0.0
    whole_s: float = 0.0
    group: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return a name that is the same in every run, and for no other point: 16 hexadecimal digits."""
        return _name([self.shape_key, self.routing, sorted(self.extra.items())])

    @property
    def shape_key(self) -> str:
        """Return a name of what a kernel model can tell apart: points that agree in it are one row to a fit."""
        own = [] if self.op in OPS else [self.routing, *sorted(self.extra.items())]
        return _name([self.op, sorted(self.shapes.items()), self.impl, self.dtype, self.cold, own])


def _name(told: list[Any]) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


class Timing(NamedTuple):
    """Seconds per call of every replay, and columns that only running gives (prefix ``x_`` still to come)."""

    samples_s: Sequence[float]
    extra: Mapping[str, Any] = {}


@dataclass
class Work:
    """What a point runs: ``calls`` in turn, each on buffers of its own (the ring that keeps caches cold).

    ``capture``: a CUDA graph may record the calls (nothing in them waits for the device). ``own``: measures by itself,
    in place of the calls, because its time is not that of one call (two streams at once, a counter of energy).
    ``check``: columns to add after timing. ``before``: runs before each call on a CPU, untimed.
    """

    calls: Sequence[Callable[[], Any]] = ()
    capture: bool = True
    own: Callable[[], Timing] | None = None
    check: Callable[[], Mapping[str, Any]] | None = None
    before: Callable[[], Any] | None = None


class Unavailable(Exception):
    """This machine cannot run the point, and no other point of its kind: the reason, kept in the row."""
