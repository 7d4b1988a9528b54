"""The links of a machine while collectives run: closed form for one that is alone on its links, else fluid flows.

A collective is alone if, in all of the time that its closed form takes, no other collective and no background flow uses
a link of its. When another comes, what it has sent by then is worked out, and both go on as flows that share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np
import simpy

from moesim.network import Network
from moesim.sim.background import Background
from moesim.sim.crowd import Crowd
from moesim.sim.traffic import NamedAct

ROUNDING = 1e-12  # relative: ends this close are one


class Launch(NamedTuple):
    """A collective: ``seconds`` alone, the numbers of its ``links``, and its ``acts`` on demand."""

    seconds: float
    links: np.ndarray
    acts: Callable[[], list[NamedAct]]


@dataclass
class _Running:
    """A collective under way: ``done`` comes with whether it shared. ``acts``: those to come, once it shares."""

    number: int
    launch: Launch
    begun_s: float
    done: simpy.Event
    shares: bool = False
    acts: list[NamedAct] = field(default_factory=list)
    carried: np.ndarray = field(default_factory=lambda: np.zeros(2))


class Links:
    """All links of *network*, and who uses them."""

    def __init__(self, env: simpy.Environment, network: Network, background: Background | None = None):
        self._env = env
        self._crowd = Crowd(network, background)
        self._users = np.zeros(network.n_links, np.int64)  # collectives on every link
        self._running: dict[int, _Running] = {}
        self._numbers = count()
        self._ends: dict[int, float] = {}  # of the acts of those that share
        self._asked = 0  # how often ends were worked out: a wake-up for earlier ones is void

    def start(self, launch: Launch) -> simpy.Event:
        """Return the end of the collective *launch*, which begins now; the event's value: whether it shared links."""
        now, links = self._env.now, launch.links
        new = _Running(next(self._numbers), launch, now, self._env.event())
        if self._users[links].any() or self._crowd.meets_background(links, now, now + launch.seconds):
            self._crowd.advance(now)
            for other in list(self._running.values()):
                if not other.shares and np.isin(other.launch.links, links, assume_unique=True).any():
                    self._let_share(other, now)
            new.shares, new.acts = True, launch.acts()
            self._go_on(new, now)
            self._predict()
        else:
            timeout = self._env.timeout(launch.seconds)
            timeout.callbacks.append(lambda _: None if new.shares else self._finish(new))  # type: ignore[union-attr]
        self._users[links] += 1
        self._running[new.number] = new
        return new.done

    def _let_share(self, other: _Running, now: float) -> None:
        """Turn *other* from a closed form into flows, as far as they have come alone.

        If its flows alone would have come to their end by now, it stays as it is, about to end.
        """
        acts, carried, at = other.launch.acts(), np.zeros(2), other.begun_s
        while acts:
            alone = self._crowd.empty()
            alone.begin(other.number, acts.pop(0), at, carried)
            alone.advance(now)
            at = alone.arrived_s(other.number)
            if at > now:
                self._crowd.adopt(alone)
                other.shares, other.acts, other.carried = True, acts, carried
                return

    def _go_on(self, running: _Running, at: float) -> bool:
        """Begin the next act of *running* at *at*; return whether there is one."""
        if not running.acts:
            return False
        self._crowd.advance(at)
        self._crowd.begin(running.number, running.acts.pop(0), at, running.carried)
        return True

    def _predict(self) -> None:
        """Work out when the acts of those that share will end, and wake up at the first end."""
        self._ends = self._crowd.ends()
        self._asked += 1
        self._sleep()

    def _sleep(self) -> None:
        if not self._ends:
            return
        first, asked = min(self._ends.values()), self._asked
        timeout = self._env.timeout(max(0.0, first - self._env.now))
        timeout.callbacks.append(lambda _: self._wake(first) if asked == self._asked else None)  # type: ignore[union-attr]

    def _wake(self, now: float) -> None:
        """Go on with those whose act ends *now*: with their next act, or finish them."""
        changed = False
        for number in [n for n, end in self._ends.items() if end <= now * (1 + ROUNDING)]:
            running = self._running[number]
            if self._go_on(running, self._ends[number]):
                changed = True
            else:
                self._crowd.forget(number)
                del self._ends[number]
                self._finish(running)
        if changed:
            self._predict()
        else:
            self._sleep()

    def _finish(self, running: _Running) -> None:
        self._users[running.launch.links] -= 1
        del self._running[running.number]
        running.done.succeed(running.shares)
