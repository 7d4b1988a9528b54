"""Costs of a step in which some devices run routed experts alone, and the others all else.

Attention and feed-forward apart: MegaScale-Infer (arXiv 2504.02263), Step-3 (arXiv 2507.19427); Duplex (MICRO'24,
figure 5) puts experts on devices with processing in memory. Every token goes over the links to the devices of its
experts and their sum comes home. Shared experts, which every token meets, stay where the token is. A layer is one batch
after the other: MegaScale-Infer's two or more micro-batches, which keep both sides busy, are not modelled.
"""

from __future__ import annotations

import numpy as np

from moesim.placement.placement import Placement
from moesim.sim import routing
from moesim.sim.cost import StepCost
from moesim.sim.expert_parallel import DispatchCombine, _Space


class ExpertDevices(DispatchCombine):
    """Groups are on an island's first devices, experts on its last ones; letters as in ``expert_parallel``."""

    def place(self, placement: Placement) -> None:
        """Let experts be where *placement*, of the last devices alone, has them."""
        self._alone = placement.n_devices
        first = self.scenario.hardware.n_devices - self._alone
        slots = routing.SlotMap.of(placement)
        device = np.where(slots.device >= 0, slots.device + first, slots.device).astype(np.int32)
        self.slots = routing.SlotMap(device, slots.slot, slots.n_slots)
        self._spaces.clear()

    def _on_devices(self, seconds: np.ndarray) -> np.ndarray:
        """Return *seconds* [..., G] of groups as those of all devices [..., D]: none where experts run alone."""
        return self._padded(super()._on_devices(seconds), self._alone)

    def _reduce(self, cost: StepCost, phase: str, layers: np.ndarray, tokens: np.ndarray) -> None:
        """Put the all-reduce of each group's *tokens* [G] into *cost*; the last devices sum up nothing."""
        super()._reduce(cost, phase, layers, self._padded(tokens, self._alone // self.tp))

    def _experts(self, space: _Space, rows: np.ndarray, home: np.ndarray) -> None:
        """Put gate, dispatch, experts and combine into the cost of *space*; loads are compared where experts run."""
        super()._experts(space, rows, home)
        space.cost.note_load(space.tokens, routing.work(space.tokens)[0][:, -self._alone :])

    def _padded(self, values: np.ndarray, more: int) -> np.ndarray:
        """Return *values* with *more* zeros at the end of the last axis."""
        return np.concatenate([values, np.zeros((*values.shape[:-1], more), values.dtype)], axis=-1)
