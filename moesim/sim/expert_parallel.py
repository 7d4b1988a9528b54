"""Costs of a step under the two meanings of expert parallelism (docs/background/expert-parallelism.md).

``DispatchCombine``: what serving engines do. A token has a home; in every layer with experts it is copied
to the devices of its experts and their sum comes home. ``ContextCoherent``: ExFlow (arXiv 2401.08383). The
token moves to the device of its first expert and stays there, one exchange per layer; in return every
device holds the KV of all requests, runs all prompts, and tells the others about each new token.

Letters: L model layers, M of them with experts, D devices, G tensor-parallel groups.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.network import Messages, Network
from moesim.placement.placement import Placement
from moesim.scenario import Scenario
from moesim.sim import routing
from moesim.sim.cost import INDEX, Batch, StepCost, block
from moesim.sim.inputs import Inputs
from moesim.sim.operators import Operators, Pricing
from moesim.sim.selecting import Selecting, operators_of
from moesim.sim.stages import Sends, Stage, stages
from moesim.sim.traffic import of_exchange, of_gather, of_reduction

_Gathered = tuple[np.ndarray | slice, str, float, np.ndarray]  # layers, phase, seconds of each, link bytes of all


class _Space(NamedTuple):
    """What a step, or half of one, is worked out in: its cost, tokens [M, D, S], copies and returns [M, D, D].

    ``visits`` [M, D, nodes]: only for all-to-all parts that need them.
    """

    cost: StepCost
    tokens: np.ndarray
    copies: np.ndarray
    returns: np.ndarray
    visits: np.ndarray | None

    def clear(self) -> _Space:
        """Empty everything; return this space."""
        self.cost.clear()
        for counter in self[1:]:
            if counter is not None:
                counter.fill(0)
        return self


class _Common:
    """What both meanings share: the model's layers, its operators, the network and where experts are.

    *inputs* and *network* are an island's. Everything is of one pipeline stage, all of which are alike, but that each
    has its own layers and links.
    """

    def __init__(self, inputs: Inputs, network: Network):
        self.stages: list[Stage] = stages(inputs.scenario, network)
        self._sends = None if len(self.stages) == 1 else Sends(
            network, self.stages, inputs.scenario.parallelism.tp, inputs.scenario.model.activation_bytes_per_token)
        inputs, network = inputs.of_stage, self.stages[0].network
        self.scenario: Scenario = inputs.scenario
        self.slots = routing.SlotMap.none()
        self._spaces: list[_Space] = []
        self._gathers: dict[bytes, list[_Gathered]] = {}
        self.model, self.network = inputs.scenario.model, network
        self.operators: Pricing = operators_of(inputs.scenario)
        if inputs.routing is not None:
            chosen = np.ascontiguousarray(inputs.trace.chosen)
            self.chosen = lambda rows: chosen.take(rows, axis=0)  # what tokens of trace rows use
            self.place(inputs.placement)
        self.tp, machine = inputs.scenario.parallelism.tp, inputs.scenario.hardware
        self.n_devices, self.per_node = machine.n_devices, machine.devices_per_node
        self.moe = np.array(self.model.moe_layer_indices, np.int64)
        self.dense = np.setdiff1d(np.arange(self.model.layers), self.moe)
        self._moe_rows, self._dense_rows = block(self.moe), block(self.dense)  # of costs
        self._shared, self.token_bytes = self.model.shared_gemms(), self.model.activation_bytes_per_token

    def place(self, placement: Placement) -> None:
        """Let experts be where *placement* has them, from the next step on."""
        self.slots = routing.SlotMap.of(placement)
        self._spaces.clear()  # as large as the slots need

    def _space(self, half: int) -> _Space:
        """Return an empty cost and zeros to count in; the next call for the same *half* of a step reuses them."""
        if half == len(self._spaces):
            shape, nodes = (len(self.moe), self.n_devices), self.scenario.hardware.nodes
            copies, returns = np.zeros((2, *shape, self.n_devices), np.int32)
            needed = getattr(self.scenario.all_to_all, "needs_nodes", False)
            self._spaces.append(_Space(
                StepCost.empty(self.model.layers, self.n_devices), np.zeros((*shape, self.slots.n_slots), np.int32),
                copies, returns, np.zeros((*shape, nodes), np.int32) if needed else None))
        return self._spaces[half].clear()

    def _gather(self, cost: StepCost, at_home: np.ndarray) -> None:
        """Put dispatch by all-gather into *cost*, and combine by reduce-scatter: all devices get all tokens [D].

        Hidden states, weights and numbers of the chosen experts (4 bytes each; assumed) are gathered one after another.
        """
        key = at_home.tobytes()  # the same few sizes come again and again
        if key not in self._gathers:
            self._gathers[key] = [found for stage in self.stages for found in self._gathered(stage, at_home)]
        for layers, phase, time_s, loads in self._gathers[key]:
            cost.put(phase, layers, time_s)
            cost.add_bytes(phase, loads)

    def _gathered(self, stage: Stage, at_home: np.ndarray) -> list[_Gathered]:
        """Return, for the phases of ``_gather``, the layers of *stage*, the seconds of each, and link bytes of all."""
        small = at_home * (4.0 * self.model.top_k)
        gathered = stage.network.all_gather(np.stack([at_home * self.token_bytes, small, small]))
        summed = stage.network.scatter_sums(at_home * self.token_bytes)
        return [(block(stage.moe), phase, sum(of.time_s.tolist()), stage.carried(of.loads.sum(axis=0)) * len(stage.moe))
                for phase, of in (("dispatch", gathered), ("combine", summed))]

    def _exchange(self, cost: StepCost, phase: str, copies: np.ndarray, visits: np.ndarray | None = None,
                  reverse: bool = False) -> None:
        """Put the all-to-all of *copies* [M, D, D] of hidden states into *cost* as *phase* of layers with experts."""
        part = self.scenario.all_to_all
        for stage in self.stages:
            rows, layers, network = stage.rows, stage.moe, stage.network
            if not len(layers):
                continue
            messages = Messages(copies[rows], None if visits is None else visits[rows], self.model.n_experts)
            collective = network.exchange(part, messages, self.token_bytes, reverse)
            cost.put(phase, block(layers), collective.time_s[:, None])
            cost.add_bytes(phase, stage.carried(collective.loads))
            cost.note_traffic(phase, of_exchange(network, part, messages, self.token_bytes, reverse,
                                                 (layers, collective.loads)))

    def _host(self, cost: StepCost, tokens: np.ndarray) -> None:
        """Put what the host adds into *cost*, of a step with *tokens* in each group."""
        added_s = self.scenario.engine.added_s(int(tokens.max()))
        if added_s:
            cost.put("host", -1, added_s)


class DispatchCombine(_Common):
    """Tokens return home after every layer."""

    def step(self, batch: Batch, half: int = 0) -> StepCost:
        """Return the cost of *batch*; the next call for the same *half* of a step reuses it."""
        space = self._space(half)
        cost = space.cost
        tokens = batch.tokens(self.scenario.n_groups)
        self._attention(cost, batch, tokens)
        if len(self.moe):
            self._experts(space, batch.rows, batch.home(self.tp))
        samples = np.bincount(batch.sampled_group, minlength=self.scenario.n_groups)
        cost.put("head", -1, self._on_devices(self.operators.head(samples, tokens)))
        if self._sends is not None:
            self._sends.put(cost, tokens)
        self._host(cost, tokens)
        if isinstance(self.operators, Selecting):
            self.operators.note(cost, batch, tokens)
        return cost

    def _attention(self, cost: StepCost, batch: Batch, tokens: np.ndarray) -> None:
        """Put attention and, in layers without experts, the feed-forward into *cost*; with tp > 1 their all-reduces.

        *tokens*: of each group.
        """
        seconds = self.operators.attention(batch, len(tokens))
        seconds += self.operators.projections(tokens)
        seconds = seconds if len(seconds) == 1 else seconds[self.operators.window_of_layer]
        cost.put("attention", slice(0, -1), self._on_devices(seconds))
        if len(self.dense):
            cost.put("dense", self._dense_rows, self._on_devices(self.operators.dense(tokens)))
        if self.tp > 1:
            self._reduce(cost, "attention_reduce", np.arange(self.model.layers), tokens)
            self._reduce(cost, "dense_reduce", self.dense, tokens)

    def _on_devices(self, seconds: np.ndarray) -> np.ndarray:
        """Return *seconds* [..., G] of groups as those of their devices [..., D]."""
        return seconds if self.tp == 1 else np.repeat(seconds, self.tp, axis=-1)

    def _reduce(self, cost: StepCost, phase: str, layers: np.ndarray, tokens: np.ndarray) -> None:
        """Put the all-reduce of each group's *tokens* [G] into *cost*.

        Layers with experts reduce-scatter before the gate (each device then dispatches its share of the tokens) and
        all-gather after combine: together the bytes of one all-reduce, charged here.
        """
        if len(layers) == 0:
            return
        collective = self.network.all_reduce(tokens * self.token_bytes, self.tp)
        cost.put(phase, layers, np.repeat(collective.time_s, self.tp))
        for stage in self.stages:
            n_here = np.count_nonzero(np.isin(layers, stage.layers))
            cost.add_bytes(phase, stage.carried(collective.loads.sum(axis=0) * n_here))
        cost.note_traffic(phase, of_reduction(self.network, tokens * self.token_bytes, self.tp, collective.loads))

    def _experts(self, space: _Space, rows: np.ndarray, home: np.ndarray) -> None:
        """Put gate, dispatch, experts and combine of the tokens of trace *rows* at *home* into the cost of *space*."""
        cost, tokens, copies, _, visits = space
        gather = self.scenario.parallelism.dispatch == "all_gather"
        cost.routes = routing.Routes(self.chosen(rows), home, self.slots, self.per_node)
        cost.routes.count(self.scenario.parallelism.deduplicate, tokens, None if gather else copies, visits)
        at_home = np.bincount(home, minlength=self.n_devices)
        cost.put("gate", self._moe_rows, self.operators.gate(at_home))
        if gather:
            self._gather(cost, at_home)
        else:
            self._exchange(cost, "dispatch", copies, visits)
            self._exchange(cost, "combine", copies, visits, reverse=True)
        if len(self._shared):
            cost.put("shared", self._moe_rows, self.operators.shared(at_home))
        cost.put("experts", self._moe_rows, self.operators.experts(tokens))
        cost.note_load(tokens, routing.work(tokens)[0])


class ContextCoherent(_Common):
    """Tokens stay where their first expert is; every device holds every request's context."""

    operators: Operators  # scenarios with a profile are refused

    def __init__(self, inputs: Inputs, network: Network):
        super().__init__(inputs, network)
        self._location = np.full(len(inputs.requests), -1, np.int32)  # where each request's next token starts
        self._segment = np.searchsorted(self.moe, np.arange(self.model.layers))  # exchanges before each layer

    def step(self, batch: Batch, half: int = 0) -> StepCost:
        """Return the cost of *batch*; the next call for the same *half* of a step reuses it."""
        cost, tokens, copies, returns, _ = self._space(half)
        self._location[batch.prefill] = batch.prefill_group
        where = np.empty((len(batch.decode), len(self.moe) + 1), np.int32)
        where[:, 0] = self._location[batch.decode]
        routing.follow(self.chosen(batch.decode_rows), where, self.slots.device, self.slots.slot, self.per_node,
                       tokens, copies, returns)
        routing.owned(self.chosen(batch.prefill_rows), self.slots.device, self.slots.slot, tokens)
        self._location[batch.decode] = where[:, -1]
        present = self._count(where, np.ones(len(where)))
        self._local(cost, batch, where, present)
        self._exchange(cost, "dispatch", copies)
        cost.put("experts", self._moe_rows, self.operators.experts(tokens))
        cost.note_load(tokens, routing.work(tokens)[0])
        self._combine(cost, batch, returns)
        self._close(cost, batch, present)
        self._host(cost, batch.tokens(self.scenario.n_groups))
        return cost

    def _prompt_attention(self, batch: Batch) -> np.ndarray:
        """Return the seconds of attention of each prompt, for each window of the model: [windows, P]."""
        operators = self.operators
        return np.stack([operators.prefill_attention(batch.prefill_tokens, batch.prefill_past, int(w))
                         for w in operators.windows])

    def _windowed(self, kv: np.ndarray) -> list[np.ndarray]:
        """Return the context lengths that each of the model's windows sees."""
        return [np.minimum(kv, w) if w else kv for w in self.operators.windows]

    def _count(self, where: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return the sum of *weight* [T] on each device, before each exchange and at the end: [M + 1, D]."""
        n_places = where.shape[1]
        index = where + np.arange(n_places) * self.n_devices
        counts = np.bincount(index.ravel(), np.repeat(weight, n_places), n_places * self.n_devices)
        return counts.reshape(n_places, self.n_devices)

    def _local(self, cost: StepCost, batch: Batch, where: np.ndarray, present: np.ndarray) -> None:
        """Put what each device does with the tokens that are there, and with all prompts, into *cost*."""
        tokens = present + batch.n_prefill_tokens  # every device runs every prompt
        seconds = np.stack([
            prompts.sum() + self.operators.decode_attention(present, self._count(where, kv))
            for prompts, kv in zip(self._prompt_attention(batch), self._windowed(batch.decode_kv), strict=True)])
        seconds += self.operators.projections(tokens)
        cost.put("attention", slice(0, -1), seconds[self.operators.window_of_layer, self._segment])
        if len(self.dense):
            cost.put("dense", self._dense_rows, self.operators.dense(tokens)[self._segment[self.dense]])
        cost.put("gate", self._moe_rows, self.operators.gate(tokens[:-1]))
        if len(self._shared):  # after the exchange: where the token is then
            cost.put("shared", self._moe_rows, self.operators.shared(tokens[1:]))

    def _combine(self, cost: StepCost, batch: Batch, returns: np.ndarray) -> None:
        """Put the return of partial sums and, for prompts, the sum of all devices' experts into *cost*."""
        self._exchange(cost, "combine", returns)
        if batch.n_prefill_tokens:
            size = np.array([batch.n_prefill_tokens * self.token_bytes])
            collective = self.network.all_reduce(size, self.n_devices)
            cost.put("combine", self._moe_rows, cost.seconds[self.moe, INDEX["combine"]] + collective.time_s)
            cost.add_bytes("combine", collective.loads * len(self.moe))
            cost.note_traffic("combine", of_reduction(self.network, size, self.n_devices, collective.loads))

    def _close(self, cost: StepCost, batch: Batch, present: np.ndarray) -> None:
        """Put the output head and the exchange of context into *cost*."""
        samples = present[-1] + np.bincount(batch.prefill_group[batch.prefill_sampled], minlength=self.n_devices)
        cost.put("head", -1, self.operators.head(samples, present[-1]))
        reading = present[self._segment] + batch.n_prefill_tokens > 0
        cost.readers = float(reading.sum() / self.model.layers), float(np.count_nonzero(samples))
        if self.scenario.parallelism.context == "kv":
            sent = present[self._segment].sum(axis=0) * self.model.kv_bytes_per_token_per_layer
        else:
            sent = present[-1] * self.token_bytes
        collective = self.network.all_gather(sent)
        cost.put("context", -1, collective.time_s)
        cost.add_bytes("context", collective.loads)
        cost.note_traffic("context", of_gather(self.network, sent, collective.loads))


MODES: dict[str, type[DispatchCombine] | type[ContextCoherent]] = {
    "dispatch_combine": DispatchCombine, "context_coherent": ContextCoherent}
