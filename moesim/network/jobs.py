"""What a network is asked to carry: a list of flows, an all-to-all, an all-reduce; each runs as exact flows.

>>> from moesim.network import LeafSpine, Network
>>> network = Network.on(LeafSpine(leaves=2, spines=2, hosts_per_leaf=2, link="10 GB/s"))
>>> job = Reduce("ring", size=4e4)
>>> round(job.run(network, How()).time_s * 1e6, 6), round(job.closed_form_s(network) * 1e6, 6)
(6.0, 6.0)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from moesim import registry
from moesim.network import play
from moesim.network.epochs import Way
from moesim.network.faults import Faults
from moesim.network.flows import all_end, checked_tolerance, moved
from moesim.network.fluid_memo import Memo
from moesim.network.network import HALVES, Network, title
from moesim.network.stages import Messages

RESULT = ("act", "repeat", "finish_s", "bottleneck", "balancing")  # columns that results add


class How(NamedTuple):
    """How flows are run: *tolerance*, *faults* (time_s, where, factor) and *detection_s* as ``run_flows`` has them."""

    tolerance: float = 0.0
    faults: pd.DataFrame | None = None
    detection_s: float = 1e-3


class Job(Protocol):
    """What a network carries."""

    def run(self, network: Network, how: How, memo: Memo | None = None) -> play.Played:
        """Return the flows with their ends. Raises ``ValueError`` if one never ends."""

    def closed_form_s(self, network: Network) -> float:
        """Return the seconds that the closed form of *network* gives, NaN if it has none for this."""

    def rate(self, network: Network) -> np.ndarray:
        """Return the bytes/s [links] that can be reached."""


@dataclass(frozen=True, eq=False)
class FlowList:
    """The flows of *table*, columns as ``run_flows`` reads them, at wire speed between the devices of the network."""

    table: pd.DataFrame

    def run(self, network: Network, how: How, memo: Memo | None = None) -> play.Played:
        """Return the flows with finish_s and bottleneck; the time is from the first start to the last end."""
        if len(self.table) == 0:
            raise ValueError("there are no flows; give at least one")
        taken = [c for c in RESULT if c in self.table]
        if taken:
            raise ValueError(f"flows have a column {taken[0]!r}, which the result will have; rename it or leave it out")
        way = Way(registry.make("balancing", network.balancing), network.seed, how.tolerance, memo)
        flows, load_bytes = moved(network, self.table, way, _faults(network, how))
        return play.Played(float(flows["finish_s"].max() - flows["start_s"].min()), flows, load_bytes)

    def closed_form_s(self, network: Network) -> float:
        """Return NaN: flows are no collective."""
        return np.nan

    def rate(self, network: Network) -> np.ndarray:
        """Return the capacities."""
        return network.links()["capacity_bytes_per_s"].to_numpy()


@dataclass(frozen=True, eq=False)
class Exchange:
    """*messages* times *size* bytes by the all-to-all *part* (or its name); *reverse*: the way home."""

    part: Any
    messages: Messages
    size: float = 1.0
    reverse: bool = False

    def run(self, network: Network, how: How, memo: Memo | None = None) -> play.Played:
        """Return the flows of all stages."""
        part, n = registry.make("all_to_all", self.part), network.n_devices
        if np.shape(self.messages.copies) != (n, n):
            raise ValueError(f"copies have the shape {np.shape(self.messages.copies)}; the network has {n} devices, "
                             f"give [{n}, {n}]")
        acts = play.exchange(network, part, self.messages, self.size, self.reverse)
        return _played(network, acts, title(part, self.reverse), how, memo)

    def closed_form_s(self, network: Network) -> float:
        """Return the time by busiest links."""
        return float(network.exchange(self.part, self.messages, self.size, self.reverse).time_s)

    def rate(self, network: Network) -> np.ndarray:
        """Return what the collective reaches on every link."""
        return network.rate(title(registry.make("all_to_all", self.part), self.reverse))


@dataclass(frozen=True, eq=False)
class Reduce:
    """A sum of vectors of *size* bytes by the all-reduce *part*, in groups of *width* devices (None: all in one).

    ``operation``: all_reduce, reduce_scatter or all_gather (*size*: bytes of the whole vector that each has then).
    """

    part: Any
    size: float
    width: int | None = None
    operation: str = "all_reduce"

    def run(self, network: Network, how: How, memo: Memo | None = None) -> play.Played:
        """Return the flows of all rounds of all groups."""
        network, width, size = self._on(network)
        acts = play.reduction(network, size, width, HALVES[self.operation])
        return _played(network, acts, self.operation, how, memo)

    def closed_form_s(self, network: Network) -> float:
        """Return the time by busiest links."""
        network, width, size = self._on(network)
        return float(network.reduce(size, width, self.operation).time_s.max())

    def rate(self, network: Network) -> np.ndarray:
        """Return what the operation reaches on every link."""
        return network.rate(self.operation)

    def _on(self, network: Network) -> tuple[Network, int, np.ndarray]:
        """Return *network* with the part, the width, and bytes [groups]. Raises ``ValueError``."""
        if self.operation not in HALVES:
            raise ValueError(f"unknown operation {self.operation!r}{registry.suggest(self.operation, HALVES)}")
        width = network.n_devices if self.width is None else self.width
        if width < 1 or network.n_devices % width:
            raise ValueError(f"groups of {width} do not divide {network.n_devices} devices evenly; take a divisor")
        part = registry.make("all_reduce", self.part)
        return replace(network, reduction=part), width, np.full(network.n_devices // width, float(self.size))


def _played(network: Network, acts: list[play.Act], name: str, how: How, memo: Memo | None) -> play.Played:
    checked_tolerance(how.tolerance)
    if not any(len(act.src) for act in acts):
        raise ValueError("nothing travels: no device has bytes for another; give bytes, and two devices or more")
    faults = None if how.faults is None else _faults(network, how)
    with np.errstate(invalid="ignore"):  # what comes after flows that never end
        played = play.play(network, acts, name, how.tolerance, memo, faults)
    all_end(played.flows["finish_s"].to_numpy())
    return played


def _faults(network: Network, how: How) -> Faults:
    return Faults.of(network.links(), how.faults, how.detection_s)
