"""Costs of a step in which all devices of a group have the group's tokens, and may share every expert.

Attention ends with an all-reduce, so each device of a group can run the experts that it holds, or its columns of them,
on the group's tokens without any dispatch; one more all-reduce sums up (vLLM's tensor parallelism with experts;
expert tensor parallelism of Duplex, MICRO'24). Tokens with experts on another group's devices go there by all-to-all:
each device sends its share of the hidden state, 1 / tp, to its like in the other group, and back. What the receivers
need to make whole tokens of shares, and sums of theirs before they go home, is not charged (as in the released
simulator of Duplex).
"""

from __future__ import annotations

import numpy as np

from moesim.network import Messages
from moesim.placement.placement import Placement
from moesim.sim import routing
from moesim.sim.cost import StepCost
from moesim.sim.expert_parallel import DispatchCombine, _Space


class Replicated(DispatchCombine):
    """Tokens are on all devices of their group; letters as in ``expert_parallel``, H holders of experts in a group."""

    def place(self, placement: Placement) -> None:
        """Let experts be where *placement* has them: on devices, or on sets of devices that share each."""
        parallelism = self.scenario.parallelism
        self._holders = parallelism.tp // parallelism.expert_tp  # of a group
        of_holder = routing.SlotMap.of(placement)
        present = of_holder.device >= 0
        group = np.where(present, of_holder.device // self._holders, -1)
        slot = np.where(present, of_holder.slot + of_holder.device % self._holders * of_holder.n_slots, -1)
        self.slots = routing.SlotMap(group.astype(np.int32), slot.astype(np.int32), of_holder.n_slots * self._holders)
        self._spaces.clear()

    def _space(self, half: int) -> _Space:
        """Return an empty cost and zeros to count in, by group."""
        if half == len(self._spaces):
            n_groups, n_moe = self.n_devices // self.tp, len(self.moe)
            copies, returns = np.zeros((2, n_moe, n_groups, n_groups), np.int32)
            self._spaces.append(_Space(
                StepCost.empty(self.model.layers, self.n_devices),
                np.zeros((n_moe, n_groups, self.slots.n_slots), np.int32), copies, returns, None))
        return self._spaces[half].clear()

    def _experts(self, space: _Space, rows: np.ndarray, home: np.ndarray) -> None:
        """Put gate, experts and the exchanges of the tokens of trace *rows* at *home* into the cost of *space*."""
        cost, tokens, copies = space.cost, space.tokens, space.copies
        group = home // self.tp
        alone = len(tokens[0]) == 1
        cost.routes = routing.Routes(self.chosen(rows), group, self.slots, 1)
        cost.routes.count(True, tokens, None if alone else copies, None)
        here = np.bincount(group, minlength=len(tokens[0]))
        on_device = np.repeat(here, self.tp)
        cost.put("gate", self.moe, self.operators.gate(on_device))
        if not alone:
            self._between_groups(cost, copies)
        if len(self._shared):
            cost.put("shared", self.moe, self.operators.shared(on_device))
        by_holder = tokens.reshape(len(tokens), len(here) * self._holders, -1)
        seconds = self.operators.experts(by_holder)
        cost.put("experts", self.moe, np.repeat(seconds, self.n_devices // seconds.shape[1], axis=1))
        if self.tp > 1:
            self._reduce(cost, "dense_reduce", self.moe, here)
        cost.note_load(by_holder, by_holder.sum(axis=2))

    def _between_groups(self, cost: StepCost, copies: np.ndarray) -> None:
        """Put the way to experts of other groups and home into *cost*: *copies* [M, G, G] of tokens, a share each."""
        alike = np.eye(self.tp, dtype=np.int32)
        messages = Messages(np.stack([np.kron(layer, alike) for layer in copies]), None, self.model.n_experts)
        for phase, reverse in (("dispatch", False), ("combine", True)):
            collective = self.network.exchange(self.scenario.all_to_all, messages, self.token_bytes / self.tp, reverse)
            cost.put(phase, self.moe, collective.time_s[:, None])
            cost.add_bytes(phase, collective.loads)
