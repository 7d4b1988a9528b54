"""The cost of a step against plain Python that follows one token after the other through one layer after the other.

What an operator takes on one device (``Operators``) and what a collective takes (``Network``) is checked elsewhere;
here: which tokens are where, in which phase, on which device, and what is sent between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moesim
from moesim.network import Network
from moesim.placement import solve
from moesim.sim.cost import ALL, GROUP, INDEX, PHASES, SYNC, Batch, StepCost
from moesim.sim.events import EventClock
from moesim.sim.expert_parallel import MODES
from moesim.sim.inputs import Inputs, prepare
from moesim.sim.operators import Operators
from moesim.sim.steps import StepClock

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
TWO_NODES = ("hardware.nodes=2", "hardware.scale_out={efficiency: 0.9, startup: 20 us, ramp: 1 us}",
             "hardware.fabric={name: leaf_spine, leaves: 2, spines: 3, hosts_per_leaf: 2, link: 10 Gbit/s}")
DENSE_LAYERS = ("model.layers=5", "model.moe.layers=1,3", "model.dense_ffn=96")  # dense, experts, dense, experts, dense
WINDOWS = ("model.attention.window=10", "model.attention.window_layers=[1]")
SHARED = ("model.moe.shared_ffn=64",)
COHERENT = "parallelism.mode=context_coherent"
VARIANTS = {
    "plain": (),
    "dense layers, shared experts": (*DENSE_LAYERS, *SHARED, *TWO_NODES),
    "windows": WINDOWS,
    "tensor parallel": ("parallelism.tp=2", *DENSE_LAYERS, *SHARED, *TWO_NODES),
    "one copy per expert": ("parallelism.deduplicate=false", *TWO_NODES),
    "coherent": (COHERENT,),
    "coherent, all": (COHERENT, *DENSE_LAYERS, *SHARED, *WINDOWS, *TWO_NODES),
    "coherent, hidden": (COHERENT, "parallelism.context=hidden", *DENSE_LAYERS, *TWO_NODES),
}
# Per step: requests whose prompts run (whole, or from the first of these tokens to before the second), those that
# decode, and how many tokens each of the latter has produced.
STEPS = [([0, 1, 2], [], []), ([], [0, 1, 2], [1, 1, 1]), ([3, 4], [2, 0], [2, 2]), ([], [4, 0, 3], [1, 3, 1]),
         ([(5, 0, 3), (6, 0, 5)], [1], [2]), ([(5, 3, 4), (6, 5, None)], [], []), ([(5, 4, None)], [6, 1], [1, 3])]
PADDING = [[], [0, 1], [1], [0, 0, 0], [], [0, 1], []]  # the groups of tokens that fill up a captured size
GROUP_OF = [0, 1, 1, 0, 0, 1, 1]

Slow = tuple[dict[tuple[int, str], np.ndarray], dict[str, np.ndarray], float]


class Twin:
    """What both meanings of expert parallelism share, without arrays over tokens."""

    def __init__(self, inputs: Inputs, network: Network):
        self.inputs, self.network, self.model = inputs, network, inputs.scenario.model
        self.tp, self.n_devices = inputs.scenario.parallelism.tp, network.n_devices
        self.ops, self.location = Operators(inputs.scenario), {}

    def tokens(self, batch: Batch) -> Iterator[tuple[int, int, int, int, bool]]:
        """Yield request, group, trace row, context length and whether it is a prompt's, for every token."""
        rows = iter(batch.prefill_rows)
        for request, length, past, group in zip(batch.prefill, batch.prefill_tokens, batch.prefill_past,
                                                batch.prefill_group, strict=True):
            for i in range(length):
                yield request, group, next(rows), past + i + 1, True
        for request, kv, group, row in zip(batch.decode, batch.decode_kv, batch.decode_group, batch.decode_rows,
                                           strict=True):
            yield request, group, row, kv, False
        for group, row in zip(batch.pad_group, batch.pad_rows, strict=True):  # runs as a token, attends to nothing
            yield -1, group, row, 0, True

    def devices(self, row: int, m: int) -> list[int]:
        """Return the devices of the experts of trace *row* in the *m*-th layer with experts, best first."""
        return [int(self.inputs.placement.device_of[m, e]) for e in self.inputs.trace.chosen[row, m]]

    def experts(self, used: list[tuple[int, int]]) -> np.ndarray:
        """Return the seconds of each device's experts from all (device, expert) that tokens use."""
        load = np.zeros((self.n_devices, self.model.n_experts))
        for device, expert in used:
            load[device, expert] += 1
        return np.array([self.ops.experts(row) for row in load]), load.sum(axis=1).max() / load.sum(axis=1).mean()

    def exchange(self, messages: list[tuple[int, int]]) -> tuple[float, np.ndarray]:
        """Return seconds and link bytes of an all-to-all of hidden states (from, to)."""
        traffic = np.zeros((self.n_devices, self.n_devices))
        for source, target in messages:
            traffic[source, target] += self.model.activation_bytes_per_token
        cost = self.network.all_to_all(traffic)
        return float(cost.time_s), cost.loads

    def attention(self, layer: int, prompts: list[tuple[int, int]], kv: list[int], tokens: int) -> float:
        """Return the seconds of the attention block on a device that runs *prompts* and decodes contexts *kv*.

        A prompt, or chunk: its tokens, and those before it.
        """
        window = int(self.model.attention_windows[layer])
        seen = [min(n, window) if window else n for n in kv]
        return float(self.ops.projections(np.array([tokens]))[0]
                     + sum(float(self.ops.prefill_attention(np.array([n]), np.array([past]), window)[0])
                           for n, past in prompts)
                     + self.ops.decode_attention(np.array([len(kv)]), np.array([sum(seen)]))[0])

    def by_device(self, operator: str, counts: list[int]) -> np.ndarray:
        return np.array([getattr(self.ops, operator)(np.array([n]))[0] for n in counts])

    def head(self, samples: list[int], tokens: list[int]) -> np.ndarray:
        return np.array([self.ops.head(np.array([s]), np.array([n]))[0] for s, n in zip(samples, tokens, strict=True)])


def dispatch_combine(self: Twin, batch: Batch) -> Slow:
    """A token has a home, to which it comes back; the devices of a group take turns in being a home."""
    tokens, turns, home = list(self.tokens(batch)), defaultdict(int), []
    for _, group, *_ in tokens:
        home.append(int(group) * self.tp + turns[group] % self.tp)
        turns[group] += 1
    at_home = [home.count(d) for d in range(self.n_devices)]
    group_of = [d // self.tp for d in range(self.n_devices)]
    n_tokens = [sum(t[1] == g for t in tokens) for g in group_of]
    seconds, sent, loads = {}, defaultdict(float), []
    for layer in range(self.model.layers):
        seconds[layer, "attention"] = np.array([self.attention(
            layer, [(n, past) for n, past, group in zip(batch.prefill_tokens, batch.prefill_past, batch.prefill_group,
                                                        strict=True) if group == g],
            [t[3] for t in tokens if t[1] == g and not t[4]], n_tokens[d]) for d, g in enumerate(group_of)])
        reduced = []
        if layer in self.model.moe_layer_indices:
            m, used, messages = self.model.moe_layer_indices.index(layer), [], []
            for here, (_, _, row, _, _) in zip(home, tokens, strict=True):
                there = self.devices(row, m)
                used += zip(there, self.inputs.trace.chosen[row, m].tolist(), strict=True)
                messages += [(here, d) for d in (set(there) if self.inputs.scenario.parallelism.deduplicate else there)]
            seconds[layer, "gate"] = self.by_device("gate", at_home)
            seconds[layer, "dispatch"], out = self.exchange(messages)
            seconds[layer, "combine"], back = self.exchange([(b, a) for a, b in messages])
            sent["dispatch"], sent["combine"] = sent["dispatch"] + out, sent["combine"] + back
            if self.model.moe.shared_ffn:
                seconds[layer, "shared"] = self.by_device("shared", at_home)
            seconds[layer, "experts"], load = self.experts(used)
            loads.append(load)
        else:
            seconds[layer, "dense"] = self.by_device("dense", n_tokens)
            reduced.append("dense_reduce")
        for phase in [*reduced, "attention_reduce"] if self.tp > 1 else []:
            size = np.array(n_tokens[::self.tp]) * self.model.activation_bytes_per_token
            cost = self.network.all_reduce(size, self.tp)
            seconds[layer, phase], sent[phase] = np.repeat(cost.time_s, self.tp), sent[phase] + cost.loads.sum(axis=0)
    producing = [*batch.prefill_group[batch.prefill_sampled], *batch.decode_group]
    samples = [sum(g == group for g in producing) for group in group_of]
    seconds[-1, "head"] = self.head(samples, n_tokens)
    return seconds, sent, float(np.mean(loads))


def context_coherent(self: Twin, batch: Batch) -> Slow:
    """Prompts run on all devices; a decoding token moves to its first expert; its keys and values go to everybody."""
    tokens, devices = list(self.tokens(batch)), range(self.n_devices)
    decoding, prompts = [t for t in tokens if not t[4]], [t for t in tokens if t[4]]
    self.location |= dict(zip(batch.prefill.tolist(), batch.prefill_group.tolist(), strict=True))
    at = {t[0]: self.location[t[0]] for t in decoding}
    seconds, sent, loads, context = {}, defaultdict(float), [], np.zeros(self.n_devices)
    for layer in range(self.model.layers):
        kv = [[t[3] for t in decoding if at[t[0]] == d] for d in devices]
        here = [len(kv[d]) + len(prompts) for d in devices]
        seconds[layer, "attention"] = np.array(
            [self.attention(layer, list(zip(batch.prefill_tokens, batch.prefill_past, strict=True)), kv[d], here[d])
             for d in devices])
        context += [len(kv[d]) * self.model.kv_bytes_per_token_per_layer for d in devices]
        if layer not in self.model.moe_layer_indices:
            seconds[layer, "dense"] = self.by_device("dense", here)
            continue
        m, used, messages, returns = self.model.moe_layer_indices.index(layer), [], [], []
        seconds[layer, "gate"] = self.by_device("gate", here)
        for _, _, row, _, _ in tokens:
            used += zip(self.devices(row, m), self.inputs.trace.chosen[row, m].tolist(), strict=True)
        for request, _, row, _, _ in decoding:
            there = self.devices(row, m)
            messages += [(at[request], d) for d in set(there)]
            returns += [(d, there[0]) for d in set(there) - {there[0]}]
            at[request] = there[0]
        seconds[layer, "dispatch"], out = self.exchange(messages)
        back_s, back = self.exchange(returns)
        summed = self.network.all_reduce(
            np.array([len(prompts) * self.model.activation_bytes_per_token]), self.n_devices)
        seconds[layer, "combine"] = back_s + summed.time_s
        sent["dispatch"], sent["combine"] = sent["dispatch"] + out, sent["combine"] + back + summed.loads[0]
        seconds[layer, "experts"], load = self.experts(used)
        loads.append(load)
        if self.model.moe.shared_ffn:
            after = [sum(d == where for where in at.values()) + len(prompts) for d in devices]
            seconds[layer, "shared"] = self.by_device("shared", after)
    self.location |= at
    last = np.array([sum(d == where for where in at.values()) for d in devices])
    first = batch.prefill_group[batch.prefill_sampled]  # prompts that end here give a token
    seconds[-1, "head"] = self.head(last + [sum(d == g for g in first) for d in devices], last)
    if self.inputs.scenario.parallelism.context == "hidden":
        context = last * self.model.activation_bytes_per_token
    gathered = self.network.all_gather(context)
    seconds[-1, "context"], sent["context"] = gathered.time_s, gathered.loads
    return seconds, sent, float(np.mean(loads))


TWINS = {"dispatch_combine": dispatch_combine, "context_coherent": context_coherent}


def batch_of(inputs: Inputs, prefill: list[int | tuple[int, int, int | None]], decode: list[int], produced: list[int],
             padding: list[int]) -> Batch:
    lengths, group = inputs.requests["prompt_tokens"].to_numpy(), np.array(GROUP_OF)
    parts = [(p, 0, None) if isinstance(p, int) else p for p in prefill]
    ends = [lengths[request] if end is None else end for request, _, end in parts]
    p, past, end, d, n = (np.array(numbers, np.int64) for numbers in (
        [request for request, *_ in parts], [begin for _, begin, _ in parts], ends, decode, produced))
    return Batch(p, end - past, past, end == lengths[p], group[p], inputs.rows.span(p, lengths[p], past, end - past),
                 d, lengths[d] + n, group[d], inputs.rows.decode(d, n - 1),
                 np.array(padding, np.int64), np.arange(len(padding)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("solver", ["lpt", "random"])
def test_a_step_costs_what_its_tokens_do_one_by_one(variant: str, solver: str) -> None:
    inputs = prepare(moesim.load(TINY, (f"placement.solver={solver}", *VARIANTS[variant])))
    network = Network.of(inputs.scenario.hardware, inputs.scenario.balancing, inputs.scenario.seed)
    mode = inputs.scenario.parallelism.mode
    fast, twin = MODES[mode](inputs, network), Twin(inputs, network)
    for numbers, padding in zip(STEPS, PADDING, strict=True):
        batch = batch_of(inputs, *numbers, padding if mode == "dispatch_combine" else [])
        _compare(fast.step(batch), *TWINS[mode](twin, batch))


def _compare(cost: StepCost, seconds: dict[tuple[int, str], np.ndarray], sent: dict[str, np.ndarray],
             load: float) -> None:
    expected, present = np.zeros_like(cost.seconds), np.zeros_like(cost.present)
    for (layer, phase), values in seconds.items():
        expected[layer, INDEX[phase]] = values
        present[layer, INDEX[phase]] = True
    for i, phase in enumerate(PHASES):
        np.testing.assert_allclose(cost.seconds[:, i], expected[:, i], rtol=1e-9, err_msg=phase)
    np.testing.assert_array_equal(cost.present, present)
    assert set(cost.link_bytes) == set(sent)
    for phase, bytes_ in sent.items():
        np.testing.assert_allclose(cost.link_bytes[phase], bytes_, rtol=1e-9, err_msg=phase)
    assert cost.load_max_over_mean == pytest.approx(load)


def test_solvers_see_the_profile_part_and_the_nodes_and_the_run_sees_the_rest() -> None:
    scenario = moesim.load(TINY, ("placement.solver=affinity_sweep", *TWO_NODES))
    inputs, trace = prepare(scenario), scenario.trace.synthetic.generate()
    profile, evaluation = trace.profile(0.5, scenario.seed), trace.evaluation(0.5, scenario.seed)
    wanted, *others = (solve(part, 4, "affinity_sweep", seed=scenario.seed, devices_per_node=nodes).info["objective"]
                       for part, nodes in ((profile, 2), (evaluation, 2), (trace, 2), (profile, None)))
    assert inputs.placement.info["objective"] == wanted and wanted not in others
    assert inputs.trace.requests.tolist() == evaluation.requests.tolist()


def test_the_network_is_balanced_as_the_scenario_says() -> None:
    """Spray loads all links of a leaf alike, ECMP does not."""
    def uplinks(*overrides: str) -> list[float]:
        links = moesim.simulate(moesim.load(TINY, (*TWO_NODES, "trace.synthetic.seed=0", *overrides))).links
        return links.loc[links["class"] == "leaf_up", "bytes"].round(6).tolist()

    assert [len(set(part)) for part in (uplinks()[:3], uplinks()[3:])] == [1, 1]
    assert len(set(uplinks("balancing=ecmp")[:3])) > 1


@given(seed=st.integers(0, 10_000), tp=st.sampled_from([1, 2, 4]), layers=st.integers(1, 3), waits=st.booleans())
@settings(max_examples=30, deadline=None)
def test_both_clocks_agree_with_the_rule_on_any_costs(seed: int, tp: int, layers: int, waits: bool) -> None:
    """A phase begins when its device, its group or all are done with the one before; devices need not be in step."""
    rng = np.random.default_rng(seed)
    clocks = StepClock(4, tp), EventClock(4, tp)
    now = 0.0
    for _ in range(2):
        cost = StepCost.empty(layers, 4)
        ready, expected = np.full(4, now), np.full(cost.seconds.shape, np.nan)
        for layer, phase in np.argwhere(rng.random(cost.present.shape) < 0.6):
            width = {GROUP: tp, ALL: 4}.get(int(SYNC[phase]), 1)
            took = np.repeat(rng.random(4 // width), width)  # a collective takes all its devices as long
            cost.put(PHASES[phase], layer, took)
            expected[layer, phase] = np.repeat(ready.reshape(-1, width).max(axis=1), width)
            ready = expected[layer, phase] + took
        now = ready.max()
        for clock in clocks:
            (start,) = clock.run([cost])
            np.testing.assert_allclose(start[cost.present], expected[cost.present], rtol=1e-12)
            assert clock.now == pytest.approx(now)
        if waits:
            now += 0.5
            for clock in clocks:
                clock.wait_until(now)
                clock.wait_until(now - 0.25)  # time does not run back
                assert clock.now == pytest.approx(now)
