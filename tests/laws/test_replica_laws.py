"""What holds for every placement with replicas, and for what the solver says of its own."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import registry
from moesim.placement import Placement, Problem, Profile, evaluate, solve, stay_load
from moesim.placement.bounds import lower_bound
from moesim.placement.costs import total
from moesim.placement.objective import load_max_over_mean
from moesim.placement.replicas import Replicas, replicate, single
from moesim.placement.solvers._chain import Chain
from moesim.sim.routing import SlotMap, follow
from moesim.trace import RoutingTrace

QUICK = settings(deadline=None, max_examples=25)
FEW = settings(deadline=None, max_examples=8)


@st.composite
def traces(draw: st.DrawFn, layers: tuple[int, int] = (2, 4), experts: tuple[int, int] = (2, 8)) -> RoutingTrace:
    n_layers, n_experts = draw(st.integers(*layers)), draw(st.integers(*experts))
    top_k = draw(st.integers(1, min(3, n_experts)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    score = rng.gumbel(size=(draw(st.integers(1, 60)), n_layers, n_experts)) + rng.normal(size=(n_layers, n_experts))
    return RoutingTrace.from_arrays(np.argsort(-score, axis=2)[:, :, :top_k], n_experts, top_k)


@st.composite
def replicated(draw: st.DrawFn, trace: RoutingTrace) -> tuple[Placement, int]:
    """Return a placement with replicas and the devices per node."""
    per_node, nodes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    device_of = rng.integers(0, per_node * nodes, (trace.n_layers, trace.n_experts))
    replicas = Placement.from_device_of(device_of, per_node * nodes).replicas
    return Placement(replicas | (rng.random(replicas.shape) < draw(st.sampled_from([0.1, 0.4])))), per_node


@QUICK
@given(st.data())
def test_evaluate_uses_the_replicas_that_the_simulation_uses(data: st.DataObject) -> None:
    """Another program, the simulator's: tokens that stay, which start on the devices in turn."""
    trace = data.draw(traces())
    placement, per_node = data.draw(replicated(trace))
    slots, shape = SlotMap.of(placement), (trace.n_layers, placement.n_devices)
    tokens = np.zeros((*shape, slots.n_slots), np.int32)
    copies, returns = (np.zeros((*shape, shape[1]), np.int32) for _ in range(2))
    where = np.zeros((trace.n_tokens, trace.n_layers + 1), np.int32)
    where[:, 0] = np.arange(trace.n_tokens) % placement.n_devices
    follow(trace.chosen.copy(), where, slots.device, slots.slot, per_node, tokens, copies, returns)
    values = evaluate(placement, trace, per_node)
    assert values["cross_top1"] == pytest.approx((where[:, 1:-1] != where[:, 2:]).mean())
    assert values["cross_node_top1"] == pytest.approx((where[:, 1:-1] // per_node != where[:, 2:] // per_node).mean())
    assert values["fanout"] == pytest.approx(copies.sum() / trace.n_tokens / trace.n_layers)
    assert stay_load(placement, trace, per_node) == pytest.approx(load_max_over_mean(tokens.sum(axis=2)).mean())


@QUICK
@given(st.data())
def test_without_replicas_both_loads_are_the_same(data: st.DataObject) -> None:
    trace = data.draw(traces())
    placement, per_node = data.draw(replicated(trace))
    placement = Placement.from_device_of(placement.device_of, placement.n_devices)
    assert stay_load(placement, trace, per_node) == pytest.approx(evaluate(placement, trace)["load_max_over_mean"])


@QUICK
@given(st.data())
def test_replicas_divide_what_their_experts_have(data: st.DataObject) -> None:
    """Counts, flows and sets of replicas add up to those of experts, wherever the replicas are."""
    trace = data.draw(traces())
    placement, per_node = data.draw(replicated(trace))
    profile, problem = Profile.of(trace), Problem(trace.n_experts, placement.n_devices, per_node)
    mine = Replicas.of(placement.replicas)
    theirs = mine.profile(profile, problem)
    one = np.stack([row[:, None] == np.arange(trace.n_experts) for row in mine.expert]).astype(float)  # [L, C, E]
    np.testing.assert_allclose(np.einsum("lc,lce->le", theirs.counts, one), profile.counts)
    np.testing.assert_allclose(np.einsum("lcd,lce,ldf->lef", theirs.top1, one[:-1], one[1:]), profile.top1, atol=1e-9)
    for layer, (members, tokens) in enumerate(theirs.sets):
        uses = np.bincount(mine.expert[layer][members].ravel(), np.repeat(tokens, members.shape[1]), trace.n_experts)
        np.testing.assert_allclose(uses, profile.counts[layer])


@QUICK
@given(st.data())
def test_replicas_cost_what_objectives_say(data: st.DataObject) -> None:
    """As experts of their own they are worth in the search what the placement with replicas is worth."""
    trace = data.draw(traces(experts=(2, 6)))
    placement, per_node = data.draw(replicated(trace))
    n_devices = placement.n_devices
    distances = np.random.default_rng(0).random((n_devices, n_devices)) * (1 - np.eye(n_devices))
    before = solve(trace, n_devices, "linear")
    profile, problem = Profile.of(trace), Problem(trace.n_experts, n_devices, per_node, 3.0, distances=distances,
                                                  previous=before)
    mine = Replicas.of(placement.replicas)
    apart, theirs = single(placement, profile, problem)
    for spec in ({"name": "transitions"}, {"name": "transitions", "pairs": "all", "weight": 0.5}, {"name": "load"},
                 {"name": "fanout"}, {"name": "fanout", "per": "node"}, {"name": "migration"}, {"name": "link_bytes"},
                 {"name": "link_bytes", "mode": "dispatch_combine"}):
        part = registry.make("objective", spec)
        chain = Chain(part.costs(theirs, mine.problem(problem)), theirs, mine.problem(problem))
        worth = part.weight * part.value(placement, profile, problem)
        assert chain.all_terms(apart.device_of).sum() == pytest.approx(worth), spec


def test_what_a_chain_of_choices_is_worth_is_what_its_tokens_do() -> None:
    """Tokens drawn from a Markov chain: sums over them say what they cross and how they load the replicas."""
    rng, n_experts, n_tokens = np.random.default_rng(1), 6, 40000
    chosen = np.empty((n_tokens, 4, 1), int)
    chosen[:, 0, 0] = rng.choice(n_experts, n_tokens)
    for layer in range(1, 4):
        after = rng.dirichlet(np.full(n_experts, 0.5), n_experts).cumsum(axis=1)
        chosen[:, layer, 0] = (rng.random(n_tokens)[:, None] > after[chosen[:, layer - 1, 0]]).sum(axis=1)
    trace = RoutingTrace.from_arrays(chosen, n_experts, 1)
    replicas = Placement.from_device_of(rng.integers(0, 4, (4, n_experts)), 4).replicas.copy()
    replicas[1:] |= rng.random((3, n_experts, 4)) < 0.3  # none in the first layer: nobody knows where tokens begin
    placement, profile, problem = Placement(replicas), Profile.of(trace), Problem(n_experts, 4, 2, 1.0)
    values = evaluate(placement, trace, 2)  # with inter_node_weight 1 a device is as far as a node
    for spec, expected in (({"name": "transitions"}, values["cross_top1"]),
                           ({"name": "load", "stay": True}, stay_load(placement, trace, 2))):
        assert registry.make("objective", spec).value(placement, profile, problem) == pytest.approx(expected, abs=0.005)


@QUICK
@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(0, 3))
def test_no_other_replicas_make_the_largest_load_smaller(weights: list[int], redundant: int) -> None:
    loads, n = np.array(weights, dtype=float), len(weights)
    every = (more for more in product(range(redundant + 1), repeat=n) if sum(more) == redundant)
    assert replicate(loads, n + redundant)[1].max() == min((loads / (1 + np.array(more))).max() for more in every)


@FEW
@given(st.integers(0, 2**32 - 1), st.sampled_from(["transitions", "load", "stay", "fanout"]))
def test_the_bound_is_below_every_placement_with_as_many_replicas(seed: int, name: str) -> None:
    """Three experts and a redundant one on two devices with room for two, two layers: all of them are tried."""
    rng = np.random.default_rng(seed)
    trace = RoutingTrace.from_arrays(rng.permuted(np.tile(np.arange(3), (30, 2, 1)), axis=2)[:, :, :2], 3, 2)
    profile, problem = Profile.of(trace), Problem(3, 2)
    spec = {"name": "load", "stay": True} if name == "stay" else {"name": name}
    objectives = (registry.make("objective", spec),)
    bound = lower_bound(total(o.costs(profile, problem) for o in objectives), profile, problem, redundant=1)
    hosts = [(True, False), (False, True), (True, True)]
    layers = [np.array(choice) for choice in product(hosts, repeat=3)]
    layers = [layer for layer in layers if layer.sum() <= 4 and layer.sum(axis=0).max() <= 2]
    values = [objectives[0].value(Placement(np.stack(two)), profile, problem) for two in product(layers, repeat=2)]
    assert len(layers) == 12 and bound <= min(values) + 1e-9


@FEW
@given(st.data())
def test_joint_with_replicas_keeps_room_and_tells_the_truth(data: st.DataObject) -> None:
    trace = data.draw(traces())
    per_node = data.draw(st.sampled_from([None, 2]))
    n_devices = (per_node or 1) * data.draw(st.integers(1, 3))
    redundant, objectives = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([(), ("fanout",)]))
    answer = solve(trace, n_devices, redundant=redundant, objectives=objectives, devices_per_node=per_node,
                   perturbations=40, inter_node_weight=4.0)
    assert answer.replicas.any(axis=2).all()
    assert (answer.replicas.sum(axis=(1, 2)) <= trace.n_experts + redundant).all()
    assert answer.counts().max() <= -(-(trace.n_experts + redundant) // n_devices)
    info, problem = answer.info, Problem(trace.n_experts, n_devices, per_node, 4.0)
    assert info["bound"] <= info["objective"] and info["objective"] == pytest.approx(
        sum((1.0, 0.3)[i] * value for i, value in enumerate(info["values"].values())))
    if objectives:
        assert info["values"]["load_max_over_mean"] == pytest.approx(evaluate(answer, trace)["load_max_over_mean"])
    else:
        assert list(info["values"]) == ["cross_top1", "stay_load_max_over_mean"]
    profile = Profile.of(trace)
    for label, value in info["values"].items():
        spec = {"cross_top1": {"name": "transitions"}, "fanout": {"name": "fanout"}}.get(
            label, {"name": "load", "stay": label.startswith("stay")})
        assert registry.make("objective", spec).value(answer, profile, problem) == pytest.approx(value)
