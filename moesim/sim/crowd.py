"""Flows of several collectives on one network: what has moved by now, and when each collective will have its bytes.

Nothing happens between two questions: flows are added at a time, and moved on when others join them. Links are shared
max-min fairly (``moesim.network.fluid``), flows of one collective in proportion to their bytes: tokens are sent in
order, so a device's messages to all others advance together. A collective alone then takes its closed form, however
uneven it is; among each other, collectives count as flows of their mean size. A flow begins when its collective would
have let it (startup, messages, ramp).
"""

from __future__ import annotations

import copy

import numpy as np

from moesim import registry
from moesim.network import Network, fluid
from moesim.network.ends import Ends
from moesim.network.flows import WEIGHTS
from moesim.network.pieces import Pieces, spread
from moesim.network.play import Act, waits_s
from moesim.sim.background import BACKGROUND, Background
from moesim.sim.moving import Moving, Rows
from moesim.sim.traffic import NamedAct


class Crowd:
    """Flows under way on *network*, by owner (a number), and *background* traffic that comes every period."""

    def __init__(self, network: Network, background: Background | None = None):
        self._network, self._background = network, background
        self._paths = Paths(network)
        self._capacity = network.rate()
        self._latency_s = network.links()["latency_s"].to_numpy()
        self._moving = Moving.none()
        self._arrived_s: dict[int, float] = {}  # of each owner, when the last of its bytes so far was there
        self._now = 0.0

    def empty(self) -> Crowd:
        """Return a crowd of nothing at time 0 on the same network, which nobody else uses."""
        other = copy.copy(self)
        other._background, other._moving, other._arrived_s, other._now = None, Moving.none(), {}, 0.0
        return other

    def begin(self, owner: int, what: NamedAct, at_s: float, carried: np.ndarray) -> np.ndarray:
        """Add the flows of *what* at *at_s*, not before what was asked last; *carried* as ``play.waits_s`` has it.

        Return the bytes that they put on links [links]. Rounds that repeat are one long round: the same bytes, waits
        and latencies.
        """
        name, act = what
        at_s = max(at_s, self._now)
        begin_s = at_s + act.copied_s
        self._arrived_s[owner] = begin_s
        if len(act.src) == 0:
            return np.zeros(len(self._capacity))
        if act.launch:
            carried[:] = 0.0
        act, flow, one = self._paths.of(act)
        size = act.size[flow] * one.left  # left: the share of the flow
        loads = one.rows.loads(size, len(self._capacity))
        busy_s = loads / np.maximum(self._network.rate(name), 1e-300)
        start_s = begin_s + waits_s(self._network, act, busy_s, name, carried)[flow]
        latency_s = act.repeat * (one.rows.sums(self._latency_s) + self._again_s(act)[flow])
        self._moving = self._moving.and_also(one._replace(
            rows=self._scaled(one.rows, name), owner=np.full(len(flow), owner), left=act.repeat * size, start_s=start_s,
            latency_s=latency_s, weight=one.weight * _weights(act.size)[flow]))
        return act.repeat * loads

    def _again_s(self, act: Act) -> np.ndarray:
        """Return the latencies that each flow of a pipelined round waits for beside its own."""
        far = self._network.node_of(act.src) != self._network.node_of(act.dst)
        return (act.latencies - 1) * np.array(self._network.latency_s)[far.astype(np.int64)]

    def _scaled(self, rows: Rows, name: str) -> Rows:
        """Return *rows*; a collective that reaches less of a link than others uses it for longer."""
        rate = self._network.rate(name)
        if rate is self._capacity or (rate == self._capacity).all():
            return rows
        return rows._replace(usage=rows.usage * (self._capacity / np.maximum(rate, 1e-300))[rows.link])

    def advance(self, now: float) -> None:
        """Let bytes move until *now*."""
        background = self._background
        while background is not None and background.next_s < now:
            if len(self._moving.left):
                self._move(background.next_s)
            if len(self._moving.left) == 0 and background.ends_in_its_period:
                background.skip_to(now)  # the links are empty at the start of every period until then
            self._moving = self._moving.and_also(background.take())
        self._move(now)

    def _move(self, until: float) -> None:
        if until <= self._now:
            return
        if len(self._moving.left):
            course = self._run(until)
            gone = np.isfinite(course.end_s)
            self._arrived_s = self._arrivals(course.end_s, gone)
            self._moving = self._moving._replace(left=course.left_bytes).only(~gone).since(until)
        self._now = until

    def _run(self, until: float = np.inf) -> fluid.Course:
        return self._moving.run(self._capacity, until)

    def _arrivals(self, end_s: np.ndarray, gone: np.ndarray) -> dict[int, float]:
        """Return when the last of every owner's bytes was there, after the pieces *gone* have left at *end_s*."""
        there_s, owner = (end_s + self._moving.latency_s)[gone], self._moving.owner[gone]
        return {o: float(there_s[owner == o].max(initial=last)) for o, last in self._arrived_s.items()}

    def arrived_s(self, owner: int) -> float:
        """Return when the bytes of *owner*'s act are there; infinite if some have not even been sent."""
        return np.inf if (self._moving.owner == owner).any() else self._arrived_s[owner]

    def ends(self) -> dict[int, float]:
        """Return when the bytes of every owner's act are there, if no flows are added but those of the background."""
        if len(self._moving.left) == 0:
            return dict(self._arrived_s)
        while True:
            course = self._run()
            found = self._arrivals(course.end_s, np.ones(len(course.end_s), bool))
            last = max(found.values(), default=0.0)
            if self._background is None or self._background.next_s >= last:
                return found
            while self._background.next_s < last:
                self._moving = self._moving.and_also(self._background.take())

    def meets_background(self, links: np.ndarray, now: float, until: float) -> bool:
        """Return whether background flows use some of *links* (numbers) at any time from *now* to *until*."""
        background = self._background
        if background is None or not background.uses[links].any():
            return False
        self.advance(now)
        while background.next_s < until:
            self._moving = self._moving.and_also(background.take())
        mine = (self._moving.owner == BACKGROUND) & (self._moving.start_s < until)
        return bool(np.isin(self._moving.rows.only(mine).link, links).any())

    def adopt(self, other: Crowd) -> None:
        """Take over all that is under way in *other*, which has come as far in time."""
        self._moving = self._moving.and_also(other._moving)
        self._arrived_s |= other._arrived_s

    def forget(self, owner: int) -> None:
        """Expect no more of *owner*, whose bytes are all there when the time comes to which nobody has asked yet."""
        del self._arrived_s[owner]


def _weights(size: np.ndarray) -> np.ndarray:
    """Return the weights of flows of *size* bytes: one on average, none too small for the solver."""
    weight = size / size.mean()
    return np.maximum(weight, weight.max() / WEIGHTS)


class Paths:
    """Pieces of acts: looked up where a pair's path depends on the pair alone, else dealt with all flows at hand."""

    def __init__(self, network: Network):
        self._network = network
        self._part = registry.make("balancing", network.balancing)
        self._every: tuple[np.ndarray, Moving] | None = None

    def of(self, act: Act) -> tuple[Act, np.ndarray, Moving]:
        """Return *act*, its flows in another order; the flow of every piece; and the pieces, ``left`` their share."""
        network, part, n = self._network, self._part, self._network.n_devices
        if part.deals or part.sees_load or part.sent == "in_turn":
            return act, *self._shares(spread(Ends.of(network, act.src, act.dst, size=act.size), part, network.seed))
        away = ~np.eye(n, dtype=bool)
        if self._every is None:
            self._every = self._shares(spread(Ends.of(network, *np.nonzero(away)), part, network.seed))
        pair = act.src * n + act.dst
        order = np.argsort(pair, kind="stable")
        number = np.full(n * n, -1)
        number[pair[order]] = np.arange(len(pair))
        flow, every = number[away.ravel()][self._every[0]], self._every[1]  # pieces are in the order of pairs
        used = flow >= 0
        act = act._replace(src=act.src[order], dst=act.dst[order], size=act.size[order])
        return act, flow[used], every.only(used)

    def _shares(self, pieces: Pieces) -> tuple[np.ndarray, Moving]:
        """Return the flow of each of *pieces*, and pieces of one byte each that could start at once."""
        zero = np.zeros(len(pieces.flow))
        return pieces.flow, Moving(Rows.of(pieces), pieces.flow, pieces.share, zero, zero, pieces.weight, zero + np.inf,
                                   pieces.after)
