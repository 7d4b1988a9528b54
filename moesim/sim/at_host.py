"""Missed experts that the processor of the host computes where their weights lie: its time, and what layers wait.

The host works beside the devices, so its work is no phase of theirs: only what exceeds theirs is waited for.
"""

from __future__ import annotations

import numpy as np

from moesim.scenario import Scenario
from moesim.sim.copying import below
from moesim.sim.operators import ByCount, Operators
from moesim.sim.selecting import reachable


class AtHost:
    """How long the processor of a host takes for experts whose weights it has: at its roofline, one node's at a time.

    ``efficiency`` and ``power_cap`` of the processor count. The hidden state of every token goes there and back over
    the link, once for each expert that it uses there.
    """

    def __init__(self, scenario: Scenario):
        machine = scenario.hardware
        assert machine.host_processor is not None, "checked with the scenario"
        self._operators = Operators(scenario, machine.host_processor, reachable(machine.host_processor))
        self._node, (tier, _) = machine.devices_per_node, below(machine)
        assert tier.link is not None, "every tier but the first has one"
        self._link, self._token_bytes = tier.link, scenario.model.activation_bytes_per_token
        self._alone = ByCount(lambda tokens: self._operators.experts(tokens[:, None]) + self._way_s(tokens))

    def seconds(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how long *tokens* [M, D, slots] take there and back, and how long the host works: both [M, D].

        The same for all devices of a node.
        """
        nodes = tokens.reshape(len(tokens), -1, self._node * tokens.shape[2])
        by_node = tokens.sum(axis=2).reshape(len(tokens), -1, self._node)
        on_link = by_node.sum(axis=2) if self._link.per == "node" else by_node.max(axis=2)
        work_s = self._operators.experts(nodes)
        there_s = work_s + self._way_s(on_link)
        return np.repeat(there_s, self._node, axis=1), np.repeat(work_s, self._node, axis=1)

    def alone(self, tokens: np.ndarray) -> np.ndarray:
        """Return how long *tokens* of one expert [...] take there and back if nothing else is there."""
        return self._alone(tokens)

    def _way_s(self, tokens: np.ndarray) -> np.ndarray:
        """Return how long the hidden states of *tokens* are on their way to the host and back."""
        ways = [self._link.setup * (tokens > 0) + tokens * self._token_bytes / (rate * self._link.efficiency)
                for rate in (self._link.bandwidth, self._link.back or self._link.bandwidth)]
        return ways[0] + ways[1]


def waits(now_s: np.ndarray, later_s: np.ndarray, own_s: np.ndarray, until_next_s: np.ndarray, copies_s: np.ndarray
          ) -> np.ndarray:
    """Return how long each layer waits before its experts run, for copies and for the host: [M, D].

    A layer of the host: *now_s* is due with the layer, after it *later_s*, due with the next. A layer of the device:
    *copies_s* to wait for, then *own_s* of work beside the host's, and from there to the next layer's wait:
    *until_next_s* in all [M - 1, D], without waits. The host takes all in turn; what it has not done by the time that
    the next layer wants it, that waits for.
    """
    wait_s, behind_s = np.empty_like(copies_s), np.zeros(copies_s.shape[1])
    for layer in range(len(wait_s)):
        due_s = behind_s + now_s[layer]
        wait_s[layer] = np.maximum(copies_s[layer], due_s - own_s[layer])
        if layer < len(until_next_s):
            behind_s = np.maximum(due_s + later_s[layer] - wait_s[layer] - until_next_s[layer], 0.0)
    return wait_s
