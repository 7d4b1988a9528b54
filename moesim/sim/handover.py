"""Keys and values on their way from devices that prefill to devices that decode, over the links of the whole machine.

A request whose prompt is computed is given a group that decodes. That group looks between two of its steps whether it
has memory for it (as vLLM's and SGLang's schedulers do); if so, its KV moves in slices between the devices of the two
groups: all at once, or layer by layer while the step that computes the last of it goes on. Transfers share links
max-min fairly with each other, not with the collectives of steps.
"""

from __future__ import annotations

import heapq
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from moesim.network import Network
from moesim.network.play import Act
from moesim.scenario import Scenario
from moesim.serving.apart import Decoding, Prefilling
from moesim.serving.group import Group, Requests
from moesim.sim.crowd import Crowd
from moesim.sim.fleet import Fleet, MakeGroup
from moesim.sim.inputs import Inputs
from moesim.sim.island import Island
from moesim.sim.links import ROUNDING

NAME = "kv_transfer"  # machines may give it constants of its own (docs/reference/models-and-machines.md)
_DONE, _LOOK = 0, 1  # what is due: KV of a prompt is ready; a group that decodes looks for memory


class Handover:
    """What is on its way between *front*, which prefills, and *back*, which decodes, and what is due next.

    *parts*: of equal size, in which the KV of a prompt is ready one after the other in the step that computes the last
    of it. ``start_s``, ``end_s`` [requests]: of its transfer. ``stalled``: islands that can do nothing until one ends.
    """

    def __init__(self, network: Network, front: Fleet, back: Fleet, parts: int):
        self._network, self.front, self.back, self._parts = network, front, back, parts
        self._crowd = Crowd(network)
        self._ends: dict[int, float] = {}  # request -> when its KV is there, if nothing more is sent
        self._agenda: list[tuple[float, int, int]] = []  # when, what, number of a request or an island
        self.stalled: set[Island] = set()
        self.moves = back.live.output > 1
        self.start_s, self.end_s = np.full((2, len(self.moves)), np.nan)
        self._ready_s = np.zeros((len(self.moves), parts))
        self._bytes = np.zeros(network.n_links)

    @classmethod
    def of(cls, scenario: Scenario, front: Fleet, back: Fleet) -> Handover:
        """Return what joins the two pools of *scenario*."""
        assert scenario.disaggregation is not None, "asked only of scenarios with two pools"
        parts = scenario.model.layers if scenario.disaggregation.overlap == "layers" else 1
        return cls(Network.of(scenario.hardware, scenario.balancing, scenario.seed), front, back, parts)

    @property
    def due_s(self) -> float:
        """When something happens next, seconds; infinite if nothing is due."""
        return min(self._end_s, self._agenda[0][0] if self._agenda else np.inf)

    @property
    def _end_s(self) -> float:
        return min(self._ends.values(), default=np.inf)

    def happen(self) -> None:
        """Let what is due next happen. No island that works is behind that time."""
        if self._end_s <= self.due_s:
            return self._arrive(self._end_s)
        at_s, what, number = heapq.heappop(self._agenda)
        if what == _DONE:
            return self._offer(number, at_s)
        if self.back.islands[number].now <= at_s:  # else it has begun another step, and looks again at its end
            self._send(number, at_s)
        return None

    def stepped(self, island: Island, begun_s: float, done: np.ndarray) -> np.ndarray:
        """Take note of a step of *island* since *begun_s* that was the last of *done*; return who is done for good.

        Its layers are taken to be equally long.
        """
        if island in self.front.islands:
            moving = self.moves[done]
            ready_s = island.now - (island.now - begun_s) * np.arange(self._parts)[::-1] / self._parts
            self._ready_s[done] = ready_s
            for request in done[moving].tolist():
                heapq.heappush(self._agenda, (float(ready_s[0]), _DONE, request))
            return done[~moving]
        for group in _decoding(island):
            group.join()
        if any(group.n_expected for group in _decoding(island)):
            heapq.heappush(self._agenda, (island.now, _LOOK, self.back.islands.index(island)))
        return done

    def stall(self, island: Island) -> bool:
        """Let *island*, whose scheduler runs nothing, wait for the end of a transfer; False: it has none to wait for.
        """
        held = any(group.n_kept for group in island.groups if isinstance(group, Prefilling | Decoding))
        if held:
            self.stalled.add(island)
        return held

    def wake(self, island: Island, time_s: float) -> None:
        """Let *island*, if it stalled, try again at *time_s*."""
        if island in self.stalled:
            self.stalled.remove(island)
            island.wait_until(time_s)

    def _offer(self, request: int, at_s: float) -> None:
        """Give *request*, the first of whose KV is ready at *at_s*, a group that decodes."""
        groups = [group.seen() for island in self.back.islands for group in _decoding(island)]
        chosen = self.back.choose(request, groups)
        island = self.back.island_of(chosen)
        self._group(chosen).expect(request)
        self.back.live.first_token_s[request] = self.front.live.first_token_s[request]
        heapq.heappush(self._agenda, (max(at_s, island.now), _LOOK, self.back.islands.index(island)))

    def _group(self, number: int) -> Decoding:
        per_island = self.back.scenario.groups_per_island
        return _decoding(self.back.island_of(number))[number % per_island]

    def _send(self, number: int, at_s: float) -> None:
        """Let the KV of those for whom the groups of island *number* have memory begin to move."""
        begun = [request for group in _decoding(self.back.islands[number]) for request in group.make_room()]
        if not begun:
            return
        self._crowd.advance(at_s)
        for request in begun:
            self.start_s[request] = at_s
            act, ready_s = self._slices(request), np.maximum(self._ready_s[request], at_s)
            for begin_s, parts in zip(*np.unique(ready_s, return_counts=True), strict=True):
                part = act._replace(size=act.size * (parts / self._parts))
                carried = np.zeros(len(self._network.latency_s))
                self._bytes += self._crowd.begin(request, (NAME, part), float(begin_s), carried)
        self._ends = self._crowd.ends()

    def _slices(self, request: int) -> Act:
        """Return what devices send: the layers that a stage here and a stage there have, for all pairs of stages.

        Where groups differ in size, one device of the smaller group serves several of the other.
        """
        (here, front), (there, back) = ((int(f.live.group[request]), f.scenario) for f in (self.front, self.back))
        n, tp = max(front.parallelism.tp, back.parallelism.tp), back.parallelism.tp
        tokens, found = int(self.back.live.prompt[request]), []
        for (i, mine), (j, theirs) in product(enumerate(front.stages), enumerate(back.stages)):
            layers = range(max(mine.start, theirs.start), min(mine.stop, theirs.stop))
            if len(layers):
                src, dst = self.front.devices_of(here, i), self.back.devices_of(there, j)
                size = tokens * back.model.kv_bytes_per_token_on_device(tp, layers) * tp / n
                found.append((np.repeat(src, n // len(src)), np.repeat(dst, n // len(dst)), np.full(n, size)))
        src, dst, sizes = (np.concatenate(column) for column in zip(*found, strict=True))
        return Act(src, dst, sizes)

    def _arrive(self, end_s: float) -> None:
        """Let the KV that is all there at *end_s* be there: its memory in front is free, it may be decoded."""
        for request in sorted(r for r, at_s in self._ends.items() if at_s <= end_s * (1 + ROUNDING)):
            del self._ends[request]
            self._crowd.forget(request)
            self.end_s[request] = end_s
            here, there = int(self.front.live.group[request]), int(self.back.live.group[request])
            sender = self.front.groups[here]
            assert isinstance(sender, Prefilling), "only groups that prefill send"
            sender.sent(request)
            self.wake(self.front.island_of(here), end_s)
            island = self.back.island_of(there)
            self.wake(island, end_s)
            if not island.busy:
                island.wait_until(end_s)
            group = self._group(there)
            group.arrived(request)
            group.join()

    def told(self, requests: pd.DataFrame) -> pd.DataFrame:
        """Return the table *requests*, which says what happened in front, with what happened after."""
        live = self.back.live
        went = live.group >= 0
        return requests.assign(
            group=np.where(went, len(self.front.groups) + live.group, requests["group"]),
            finish_s=np.where(went, live.finish_s, requests["finish_s"]),
            preemptions=requests["preemptions"] + live.preemptions,
            prefill_group=requests["group"], transfer_start_s=self.start_s, transfer_end_s=self.end_s)

    def links(self, makespan_s: float) -> pd.DataFrame:
        """Return the links of the whole machine and the bytes of KV that went over them."""
        links = self._network.links().assign(**{f"{NAME}_bytes": self._bytes, "bytes": self._bytes})
        return links.assign(utilisation=self._bytes / (links["capacity_bytes_per_s"] * makespan_s))


def pool_of(name: str, inputs: Inputs) -> tuple[Requests, MakeGroup]:
    """Return the requests of *inputs* as the pool *name* serves them, and what makes its groups; "" is no pool."""
    table, scheduler = inputs.requests, inputs.scenario.scheduler
    moves = table["output_tokens"].to_numpy() > 1
    if not name:
        return Requests(table), Group
    if name == "prefill":
        return Requests(table.assign(output_tokens=1)), partial(Prefilling, moves=moves)
    live = Requests(table)
    live.stored[~moves] = 0  # they never come
    return live, partial(Decoding, max_batch=getattr(scheduler, "max_batch", None),
                         whole=getattr(scheduler, "reserve", False))


def _decoding(island: Island) -> list[Decoding]:
    return [group for group in island.groups if isinstance(group, Decoding)]
