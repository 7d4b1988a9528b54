"""Pipeline stages: which layers and devices each has, its part of the machine's network, and what goes to the next.

Stage s has the devices from s times its size on. Device i of a stage sends to device i of the next; where tensor
parallelism gives all devices of a group the same hidden states, each sends a share, and the receiving group gathers
them (vLLM, ``isend_tensor_dict`` with an all_gather_group).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.hardware import HardwareSpec
from moesim.network import Network
from moesim.network.shifted import Shifted
from moesim.scenario import Scenario
from moesim.sim.cost import StepCost

_SENT = 2  # tensors of a token: hidden state and residual, which are added up by the next norm (vLLM, SGLang)


class Stage(NamedTuple):
    """The numbers of its ``layers``, of those with experts (``moe``; their ``rows`` among all such), its ``network``.

    ``links``: those of its network among the links of the whole pipeline, of which there are ``n_links``; None: all.
    """

    layers: np.ndarray
    moe: np.ndarray
    rows: slice
    network: Network
    links: np.ndarray | None = None
    n_links: int = 0

    def carried(self, loads: np.ndarray) -> np.ndarray:
        """Return *loads* [..., links of the stage] in all, on every link of the pipeline."""
        if self.links is None:
            return loads
        total = np.zeros(self.n_links)
        total[self.links] = loads.reshape(-1, loads.shape[-1]).sum(axis=0)
        return total


def stages(scenario: Scenario, network: Network) -> list[Stage]:
    """Return the stages of *scenario*, one island; *network* is all of its network."""
    moe = np.array(scenario.model.moe_layer_indices, np.int64)
    if scenario.parallelism.pp == 1:
        return [Stage(np.arange(scenario.model.layers), moe, slice(None), network)]
    machine, size = scenario.of_stage.hardware, scenario.stage_size
    first = Network.of(machine, scenario.balancing, scenario.seed)
    made = []
    for i, layers in enumerate(scenario.stages):
        own = first
        if i and machine.nodes > 1:  # else there is nothing that could differ
            own = Network.of(_from(machine, i * size), scenario.balancing, scenario.seed)
        rows, up = scenario.model.moe_rows(layers), np.arange(i * size, (i + 1) * size)
        fabric = np.arange(2 * network.n_devices, network.n_links) if machine.nodes > 1 else up[:0]
        made.append(Stage(np.array(layers), moe[rows], rows, own, np.concatenate([up, up + network.n_devices, fabric]),
                          network.n_links))
    return made


def _from(machine: HardwareSpec, device: int) -> HardwareSpec:
    return machine.model_copy(update={"fabric": Shifted(machine.fabric, device)})


class Sends:
    """What *stages*, with groups of *tp* devices, send to one another; *network* joins them all."""

    def __init__(self, network: Network, stages: list[Stage], tp: int, token_bytes: float):
        self._network, self._stages, self._tp, self._token_bytes = network, stages, tp, _SENT * token_bytes
        self._size = network.n_devices // len(stages)
        self._known: dict[bytes, tuple[list[float], np.ndarray]] = {}  # the same few sizes come again and again

    def put(self, cost: StepCost, tokens: np.ndarray) -> None:
        """Put the sends of *tokens* of each group into *cost*."""
        key = tokens.tobytes()
        if key not in self._known:
            self._known[key] = self._cost(tokens * self._token_bytes)
        seconds, loads = self._known[key]
        for stage, took in zip(self._stages, seconds, strict=False):  # the last one sends nothing
            cost.put("send", int(stage.layers[-1]), took)
        cost.add_bytes("send", loads)

    def _cost(self, size: np.ndarray) -> tuple[list[float], np.ndarray]:
        """Return the seconds of every send, and bytes on links in all, of *size* bytes of each group."""
        n, found, loads = self._network.n_devices, [], np.zeros(self._network.n_links)
        for i, receiver in enumerate(self._stages[1:]):
            sent = np.zeros(n)
            sent[i * self._size : (i + 1) * self._size] = np.repeat(size / self._tp, self._tp)
            moved = self._network.send(sent, (np.arange(n) + self._size) % n)
            found.append(float(moved.time_s))
            loads += moved.loads
            if self._tp > 1:
                gathered = receiver.network.reduce(size, self._tp, "all_gather")
                found[-1] += float(gathered.time_s.max())
                loads += receiver.carried(gathered.loads)
        return found, loads
