"""Operators of a device with several processors over one memory: who does what, how long it takes, what it draws.

The scenario's ``selection`` says which experts and whose attention go to the processor beside the device's own; all
else runs on the device's own. How it works: docs/background/pim.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim import registry
from moesim.hardware import Processor
from moesim.pim import Jobs, Times, share
from moesim.registry import name_of
from moesim.scenario import Scenario
from moesim.sim.cost import Batch, StepCost
from moesim.sim.operators import ByCount, Operators, Pricing
from moesim.sim.profiled import Profiled


@dataclass(frozen=True)
class _Unit:
    """A processor that does one thing at a rate of 1 and all else in no time: its seconds count that thing."""

    bandwidth: float = np.inf
    flop_per_s: float = np.inf
    multiprocessors: int = 1

    def peak_flop_per_s(self, dtype: str) -> float:
        return self.flop_per_s


class _Work:
    """FLOP, and bytes of two processors, the device's own and the one beside.

    ``at``: by phase, seconds of the latter, [the phase's layers, devices].
    """

    def __init__(self) -> None:
        self.bytes, self.flop = np.zeros(2), 0.0
        self.at: dict[str, np.ndarray] = {}

    def add(self, flop: np.ndarray, moved: np.ndarray, beside: Any, times: float | np.ndarray) -> None:
        """Add *flop* and *moved* bytes [...], where *beside* there, else here; each of them *times*."""
        there = float((moved * beside * times).sum())
        self.bytes += [float((moved * times).sum()) - there, there]
        self.flop += float((flop * times).sum())


def operators_of(scenario: Scenario) -> Pricing:
    """Return what gives the seconds of *scenario*'s operators."""
    if scenario.profile is not None:
        return Profiled(scenario)
    shared = scenario.hardware.device.processors and scenario.parallelism.mode == "dispatch_combine"
    return Selecting(scenario) if shared else Operators(scenario)


class Selecting(Operators):
    """As ``Operators``; attention and experts are shared by two processors, and work is counted for energy."""

    def __init__(self, scenario: Scenario):
        super().__init__(scenario)
        self._scenario, self._selection = scenario, scenario.selection
        device = scenario.hardware.device
        other = device.beside(scenario.selection.processor)
        assert other is not None, "asked only for devices with several processors"
        self._own, self._other, self._spaces = device.processor, other, device.spaces
        self._beside = Operators(scenario, other, reachable(other))
        roofline = registry.make("kernel_model", "roofline")
        self._flop = Operators(scenario, _Unit(bandwidth=np.inf, flop_per_s=1.0), roofline)
        self._bytes = Operators(scenario, _Unit(bandwidth=1.0, flop_per_s=np.inf), roofline)
        self._alone_own, self._alone_beside, self._one_flop, self._one_bytes = (
            ByCount(_one_expert(experts)) for experts in (
                super().experts, self._beside.experts, self._flop.experts, self._bytes.experts))
        self._layers_with = np.bincount(self.window_of_layer, minlength=len(self.windows))[:, None]
        self._work, self._rests = _Work(), dict[bytes, _Work]()

    def experts(self, tokens_per_expert: np.ndarray) -> np.ndarray:
        """Return the seconds of the experts of one device [...] as processors share them.

        Experts lie in the memory spaces in turn.
        """
        counts = np.asarray(tokens_per_expert)
        flop, moved = self._one_flop(counts), self._one_bytes(counts)
        copies = self._scenario.parallelism.expert_tp
        if name_of(self._selection.experts) == "gpu_only":
            self._work.add(flop, moved, False, copies)
            return super().experts(tokens_per_expert)
        n_spaces = min(self._spaces, counts.shape[-1])
        jobs = Jobs(counts, self._alone_own(counts), self._alone_beside(counts), flop / np.maximum(moved, 1.0),
                    np.arange(counts.shape[-1]) % n_spaces, n_spaces,
                    lambda mask: Operators.experts(self, np.where(mask, counts, 0)))
        beside, times = self._shared(self._selection.experts, jobs)
        self._work.add(flop, moved, beside, copies)
        self._work.at["experts"] = np.repeat(times.beside_s, copies, axis=-1)
        return times.phase_s

    def attention(self, batch: Batch, n_groups: int) -> np.ndarray:
        """Return the seconds of a layer's attention [windows, groups].

        Its jobs are prompts, in the last memory space, and decodes.
        """
        flop, moved = (self._two(of, batch, n_groups) for of in (self._flop, self._bytes))
        times_each = (self._layers_with * self._tp)[..., None]
        if name_of(self._selection.attention) == "gpu_only":
            self._work.add(flop, moved, False, times_each)
            return super().attention(batch, n_groups)
        own = self._two(self, batch, n_groups)
        tokens = np.stack([np.bincount(batch.prefill_group, batch.prefill_tokens, n_groups),
                           np.bincount(batch.decode_group, minlength=n_groups)], axis=-1)
        jobs = Jobs(np.broadcast_to(tokens, own.shape), own, self._two(self._beside, batch, n_groups),
                    flop / np.maximum(moved, 1.0), np.array([self._spaces - 1, 0]), self._spaces,
                    lambda mask: np.where(mask, own, 0.0).sum(axis=-1))
        beside, times = self._shared(self._selection.attention, jobs)
        self._work.add(flop, moved, beside, times_each)
        self._work.at["attention"] = np.repeat(times.beside_s, self._tp, axis=1)[self.window_of_layer]
        return times.phase_s

    def note(self, cost: StepCost, batch: Batch, tokens: np.ndarray) -> None:
        """Note in *cost*, of the step of *batch* with *tokens* of each group [G], what it spent, and where beside."""
        work, self._work = self._work, _Work()
        rest = self._rest(batch, tokens)
        work.bytes, work.flop = work.bytes + rest.bytes, work.flop + rest.flop
        busy_s = sum(float(seconds.sum()) for seconds in work.at.values())
        share_of = {f"{self._other.kind}_share": busy_s / self._scenario.hardware.n_devices}
        cost.spent = share_of | _joules(work, self._own, self._other)
        cost.beside = (self._other.kind, work.at)

    def _rest(self, batch: Batch, tokens: np.ndarray) -> _Work:
        """Return the work of all but attention and routed experts."""
        if self._scenario.parallelism.dispatch == "replicated":
            at_home = np.repeat(tokens, self._tp)  # all of a group on each of its devices
        else:
            at_home = np.bincount(batch.home(self._tp), minlength=self._scenario.hardware.n_devices)
        samples = np.bincount(batch.sampled_group, minlength=len(tokens))
        key = np.concatenate([tokens, at_home, samples]).tobytes()  # the same few come again and again
        if key not in self._rests:
            self._rests[key] = self._counted(tokens, at_home, samples)
        return self._rests[key]

    def _counted(self, tokens: np.ndarray, at_home: np.ndarray, samples: np.ndarray) -> _Work:
        """Return that of *tokens* and *samples* of each group and of those that each device gates, *at_home*."""
        model, work = self._model, _Work()
        for seconds, counts, times in (
                ("projections", tokens, model.layers * self._tp),
                ("dense", tokens, (model.layers - model.n_moe_layers) * self._tp),
                ("shared", at_home, model.n_moe_layers)):
            work.add(getattr(self._flop, seconds)(counts), getattr(self._bytes, seconds)(counts), False, times)
        if model.n_moe_layers:
            flop, moved = self._flop.gate(at_home), self._bytes.gate(at_home)
            work.add(flop, moved, False, model.n_moe_layers if flop.ndim == 1 else 1)
        work.add(self._flop.head(samples, tokens), self._bytes.head(samples, tokens), False, self._tp)
        return work

    def extrapolated(self) -> list[str]:
        """Return the warnings of the device's own processor, and one for the other if it is used."""
        if not self._selection.uses_both:
            return super().extrapolated()
        return [*super().extrapolated(), f"kernel times extrapolated: {self._other.kind}: a roofline, not fitted to "
                                         f"measurements"]

    def _shared(self, part: Any, jobs: Jobs) -> tuple[np.ndarray, Times]:
        """Return which of *jobs* the selection *part* sends beside, and the times that follow."""
        beside = part.beside(jobs) & (jobs.tokens > 0)
        return beside, share(jobs, beside, part.side_by_side)

    def _two(self, of: Operators, batch: Batch, n_groups: int) -> np.ndarray:
        """Return the seconds *of* attention of prompts and of decodes: [windows, groups, 2]."""
        requests = np.bincount(batch.decode_group, minlength=n_groups)
        found = np.zeros((len(self.windows), n_groups, 2))
        for i, window in enumerate(self.windows.tolist()):
            kv = np.minimum(batch.decode_kv, window) if window else batch.decode_kv
            found[i, :, 1] = of.decode_attention(requests, np.bincount(batch.decode_group, kv, n_groups))
            if len(batch.prefill):
                prompts = of.prefill_attention(batch.prefill_tokens, batch.prefill_past, window)
                found[i, :, 0] = np.bincount(batch.prefill_group, prompts, n_groups)
        return found


def _one_expert(experts: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that gives the seconds of one of *experts* by its number of tokens."""
    return lambda tokens: experts(tokens[:, None])


def reachable(processor: Processor) -> Any:
    """Return the kernel model of a processor of which nothing was measured: its rates, within its cap of power."""
    options: dict[str, Any] = {"efficiency": processor.efficiency}
    if processor.power_cap is not None and processor.energy is not None:
        energy = processor.energy
        options |= {"watts": processor.power_cap, "byte_j": energy.access + energy.activation, "flop_j": energy.flop}
    return registry.make("kernel_model", {"name": "reachable"} | options)


def _joules(work: _Work, own: Processor, other: Processor) -> dict[str, float]:
    """Return the joules of *work* by cause: each processor's accesses, opening rows, arithmetic; {} if not known."""
    if own.energy is None or other.energy is None:
        return {}
    costs = own.energy, other.energy
    return {f"{p.kind}_memory_j": moved * cost.access for p, moved, cost in zip((own, other), work.bytes, costs,
                                                                              strict=True)} | {
        "activation_j": float(sum(moved * cost.activation for moved, cost in zip(work.bytes, costs, strict=True))),
        "arithmetic_j": work.flop * own.energy.flop}
