"""Missed experts that the processor of the host computes where their weights lie."""

from __future__ import annotations

import numpy as np

from moesim import registry
from moesim.scenario import Scenario
from moesim.sim.copying import below
from moesim.sim.operators import Operators


class AtHost:
    """How long the processor of a host takes for experts whose weights it has: at its roofline, one node's at a time.

    The hidden state of every token goes there and back over the link, once for each expert that it uses there.
    """

    def __init__(self, scenario: Scenario):
        machine = scenario.hardware
        self._operators = Operators(scenario, machine.host_processor, registry.make("kernel_model", "roofline"))
        self._node, (tier, _) = machine.devices_per_node, below(machine)
        assert tier.link is not None, "every tier but the first has one"
        self._link, self._token_bytes = tier.link, scenario.model.activation_bytes_per_token

    def seconds(self, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds until *tokens* [M, D, slots] are computed there and back, [M, D]: the same in a node."""
        nodes = tokens.reshape(len(tokens), -1, self._node * tokens.shape[2])
        moved = tokens.sum(axis=2)  # [M, D]
        by_node = moved.reshape(len(moved), -1, self._node)
        on_link = by_node.sum(axis=2) if self._link.per == "node" else by_node.max(axis=2)
        link_s = sum(self._link.setup * (on_link > 0) + on_link * self._token_bytes / (rate * self._link.efficiency)
                     for rate in (self._link.bandwidth, self._link.back or self._link.bandwidth))
        return np.repeat(self._operators.experts(nodes) + link_s, self._node, axis=1)
