"""Laws of experts that are placed again during a run: nobody looks ahead, nothing gets lost, both clocks agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine_laws import DENSE_LAYERS, TWO_NODES, tiny

import moesim
from moesim.placement import Placement, Profile
from moesim.sim import replacing

TABLES = ("requests", "steps", "spans", "links", "memory")
EPLB = "{name: eplb, redundant: 4}"
EVENTS = ("detail=events", "placement.online.blocking=false")
AGAIN = ("placement.online={every: 2}",)

VARIANTS = {
    "plain": ("placement.solver=linear", "placement.online.solver=lpt"),
    "coherent": ("parallelism.mode=context_coherent", *TWO_NODES),
    "tensor parallel": ("parallelism.tp=2", *TWO_NODES, *DENSE_LAYERS),
    "replicas, ecmp": (f"placement.solver={EPLB}", "balancing=ecmp", *TWO_NODES),
    "replicas, coherent": (f"placement.solver={EPLB}", "parallelism.mode=context_coherent", "placement.online.window=1",
                           *TWO_NODES),
    "poisson": ("requests={kind: poisson, rate: 2000 /s, count: 9, prompt_tokens: 12, output_tokens: 3}",
                "placement.online.solve_time=300 us"),
}


class Spy:
    """Stands before the solver and notes what it was asked and what it said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.windows: list[Profile] = []
        self.moves: list[tuple[np.ndarray, np.ndarray]] = []
        self._solve = replacing.placing.solve
        monkeypatch.setattr(replacing.placing, "solve", self)

    def __call__(self, window: Profile, *arguments: Any, **options: Any) -> Placement:
        answer = self._solve(window, *arguments, **options)
        if "previous" in options:  # not the first placement
            self.windows.append(window)
            self.moves.append((options["previous"].replicas, answer.replicas))
        return answer


def moved(result: moesim.Result) -> list[int]:
    return [entry["moved"] for entry in result.meta["replacements"]]


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.startswith("replicas")])
def test_never_due_is_never_asked_for(variant: str) -> None:
    overrides = [o for o in VARIANTS[variant] if ".online." not in o]
    without, never = tiny(*overrides), tiny(*overrides, "placement.online={every: 1000000}")
    one, other = moesim.simulate(without), moesim.simulate(never)
    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(one, table), getattr(other, table), check_exact=True, obj=table)
    assert one.meta["replacements"] == other.meta["replacements"] == []


def test_all_devices_keep_room_for_as_many_experts() -> None:
    """EPLB puts two replicas of an expert on one device here and there: one expert less, until it is placed again."""
    placed = (f"placement.solver={EPLB}", *TWO_NODES)
    once, again = (moesim.simulate(tiny(*placed, *more)).memory for more in ((), ("placement.online={every: 9999}",)))
    assert once["expert_bytes"].nunique() > 1 and once["expert_bytes"].equals(again["expert_bytes"])
    assert again["kv_capacity_bytes"].tolist() == [once["kv_capacity_bytes"].min()] * 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_clocks_agree(variant: str) -> None:
    steps, events = (moesim.simulate(tiny(*AGAIN, *VARIANTS[variant], f"detail={d}")) for d in ("steps", "events"))
    assert sum(moved(steps)) > 0
    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(steps, table), getattr(events, table), rtol=1e-9, obj=table)
    one, other = (pd.DataFrame(result.meta["replacements"]) for result in (steps, events))
    pd.testing.assert_frame_equal(one, other, rtol=1e-9)


def test_both_clocks_agree_where_links_are_watched(tmp_path: Path) -> None:
    """Because of a background that hardly sends anything."""
    (tmp_path / "others.csv").write_text("src,dst,bytes,start_s\n0,1,1,0\n")
    far = f"background={{flows: {tmp_path / 'others.csv'}, period: 1 s}}"
    steps = moesim.simulate(tiny(*AGAIN, *TWO_NODES))
    watched = moesim.simulate(tiny(*AGAIN, *TWO_NODES, far, "detail=events"))
    pd.testing.assert_frame_equal(steps.spans, watched.spans, rtol=1e-9)


@given(seed=st.integers(0, 1000), every=st.integers(1, 4), window=st.integers(1, 5), nodes=st.booleans(),
       coherent=st.booleans(), beside=st.booleans())
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_weights_are_neither_made_nor_lost(monkeypatch: pytest.MonkeyPatch, seed: int, every: int, window: int,
                                           nodes: bool, coherent: bool, beside: bool) -> None:
    """What comes into a device is what is new on it: by its node's switch if its node had it, else by its port."""
    with monkeypatch.context() as patch:
        spy = Spy(patch)
        mode = "context_coherent" if coherent else "dispatch_combine"
        result = moesim.simulate(tiny(
            f"seed={seed}", f"trace.synthetic.seed={seed}", f"parallelism.mode={mode}", "placement.solver=random",
            f"placement.online={{every: {every}, window: {window}, solver: lpt}}", *(TWO_NODES if nodes else ()),
            *(EVENTS if beside else ())))
    log, per_node = result.meta["replacements"], 2
    if not beside:
        assert [e["step"] for e in log] == list(range(every, len(result.steps), every))
    assert [e["moved"] for e in log] == [int((new & ~old).sum()) for old, new in spy.moves]
    complete = [move for move, entry in zip(spy.moves, log, strict=True) if entry["from_step"] is not None]
    assert len(log) - len(complete) <= int(beside)  # at most what was under way at the end
    n_devices = complete[0][0].shape[2]
    came = np.zeros((2, n_devices))  # experts from the device's node, and from others
    for old, new in complete:
        for layer, expert, device in np.argwhere(new & ~old):
            holders = np.flatnonzero(old[layer, expert]) // per_node
            came[int(device // per_node not in holders), device] += 1
    assert came.sum() > 0
    if len(complete) < len(log):
        return  # some layers of the last one have arrived too
    size = tiny().model.expert_bytes
    links = result.links.groupby("class")["migration_bytes"].apply(list)
    assert links["scale_up_in"] == pytest.approx(came[0] * size)
    assert sum(links["scale_up_out"]) == pytest.approx(sum(links["scale_up_in"]))
    if nodes:
        assert links["nic_in"] == pytest.approx(came[1] * size)
        assert sum(links["nic_out"]) == sum(links["leaf_up"]) == pytest.approx(sum(links["nic_in"]))


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_request_is_served(variant: str, beside: bool) -> None:
    result = moesim.simulate(tiny(*AGAIN, *VARIANTS[variant], *(EVENTS if beside else ())))
    requests, steps = result.requests, result.steps
    assert steps["prefill_tokens"].sum() == requests["prompt_tokens"].sum()
    assert steps["decode_tokens"].sum() == (requests["output_tokens"] - 1).sum()
    phases = [c for c in steps if c.endswith("_s") and c not in ("start_s", "end_s")]
    np.testing.assert_allclose(steps[phases].sum(axis=1), steps["end_s"] - steps["start_s"], rtol=1e-9)
    assert (steps["start_s"].to_numpy()[1:] >= steps["end_s"].to_numpy()[:-1]).all()


def test_everything_on_the_links_at_once(tmp_path: Path) -> None:
    """Halves of a batch, others' traffic and weights share links: bytes stay bytes, and every collective gets later."""
    (tmp_path / "others.csv").write_text("src,dst,bytes,start_s\n0,2,20000,0\n1,3,20000,5e-5\n")
    others = f"background={{flows: {tmp_path / 'others.csv'}, period: 1 ms}}"
    full = moesim.simulate(tiny(*AGAIN, *TWO_NODES, *EVENTS, "overlap=two_batch", others))
    assert full.requests["finish_s"].notna().all()
    links = full.links.groupby("class")["migration_bytes"].sum()
    assert links["nic_out"] == links["nic_in"] > 0 and links["scale_up_out"] == links["scale_up_in"]
    slow = moesim.simulate(tiny(*AGAIN, *TWO_NODES, *EVENTS, "overlap=two_batch", others,
                                "hardware.fabric.link=1 Gbit/s"))
    assert slow.meta["replacements"][0]["took_s"] > full.meta["replacements"][0]["took_s"]


def test_a_layer_changes_over_when_its_weights_have_arrived() -> None:
    """An expert alone needs 12288 B / 0.8 MB/s = 15 ms, several steps: until then all is as without a move."""
    slow = ("hardware.scale_up.bandwidth=1 MB/s", "placement.solver=linear", "requests.output_tokens=12")
    plain = moesim.simulate(tiny(*slow)).steps
    result = moesim.simulate(tiny(*slow, "placement.online={every: 4, window: 2, solver: lpt}", *EVENTS))
    steps, first = result.steps, result.meta["replacements"][0]
    before = steps["start_s"] < first["begun_s"] + 12288 / 0.8e6
    assert before.sum() >= 4 + 2 and first["from_step"] > before.sum()
    loads = steps["load_max_over_mean"], plain["load_max_over_mean"]
    pd.testing.assert_series_equal(*(load[before] for load in loads), check_exact=True)
    assert not np.allclose(*(load[~before] for load in loads))


def test_an_engine_that_stands_still_does_so_between_steps() -> None:
    """Closed loop, so that nobody waits for a request: steps and moves fill the time, nothing else does."""
    result = moesim.simulate(tiny(*AGAIN, *VARIANTS["plain"]))
    steps, log = result.steps, result.meta["replacements"]
    gaps = pd.Series(steps["start_s"].to_numpy()[1:] - steps["end_s"].to_numpy()[:-1], index=steps["step"][1:])
    stalls = pd.Series({entry["from_step"]: entry["took_s"] for entry in log}).reindex(gaps.index, fill_value=0.0)
    np.testing.assert_allclose(gaps, stalls, atol=1e-12)
    assert stalls.max() > 0


@pytest.mark.parametrize("chosen", [[[0, 1], [2, 3]], [[1, 3], [0, 1]]])
@pytest.mark.parametrize("solver", ["lpt", EPLB, "{name: joint, restarts: 2, perturbations: 20, bound_rounds: 0}"])
def test_routing_that_stays_leaves_experts_where_they_are(tmp_path: Path, chosen: list[list[int]], solver: str) -> None:
    """Every token chooses the same experts of a layer: what the first window says, all others say."""
    request = np.repeat(np.arange(12), 24)
    moesim.RoutingTrace.from_arrays(
        np.broadcast_to(chosen, (len(request), 2, 2)), 4, 2, request=request, model="tiny",
        phase=np.tile(np.arange(24) >= 16, 12).astype(int)).write(tmp_path / "same.parquet")
    # As many replicas as the solver has, in another place.
    Placement(np.ones((2, 4, 2), bool)).save(tmp_path / "all.json")
    first = "solver: linear" if solver != EPLB else f"path: {tmp_path / 'all.json'}"
    result = moesim.simulate(tiny(f"trace={{path: {tmp_path / 'same.parquet'}}}",
                                  f"placement={{{first}, online: {{every: 2, solver: {solver}}}}}"))
    assert len(moved(result)) > 2 and not any(moved(result)[1:])


def by_request(tmp_path: Path, late: int) -> moesim.Scenario:
    """Return a scenario that serves its requests one by one; the last half of them choose experts from *late* on."""
    request = np.repeat(np.arange(16), 6)
    table = {"request": request, "phase": np.tile([0, 0, 1, 1, 1, 1], 16), "model": "tiny"}
    rng = np.random.default_rng(0)
    tokens = np.stack([[rng.permutation(4)[:2] for _ in range(2)] for _ in request])
    plain = moesim.RoutingTrace.from_arrays(tokens, 4, 2, **table)
    served = np.unique(plain.evaluation(0.5, 0).tokens["request"])
    tokens[np.isin(request, served[4:])] = (late + np.arange(2)) % 4
    file = tmp_path / f"late{late}.parquet"
    moesim.RoutingTrace.from_arrays(tokens, 4, 2, **table).write(file)
    return tiny(f"trace={{path: {file}, join: paired, profile_fraction: 0.5}}",
                "requests={kind: closed_loop, concurrency: 1, count: 8}",
                "placement={solver: linear, online: {every: 20, window: 15, solver: lpt}}")


def test_the_solver_sees_the_window_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is five steps: after 20, the window is requests 1 to 3. The other four come later."""
    spies, results = [], []
    for late in (0, 2):
        scenario = by_request(tmp_path, late)
        with monkeypatch.context() as patch:
            spies.append(Spy(patch))
            results.append(moesim.simulate(scenario))
    trace = moesim.read_trace(tmp_path / "late0.parquet").evaluation(0.5, 0)
    served = np.unique(trace.tokens["request"])
    wanted = Profile.of(trace.of_requests(served[1:4]))
    for (window,) in (spy.windows for spy in spies):
        assert window.n_tokens == wanted.n_tokens == 3 * 6
        assert np.array_equal(window.counts, wanted.counts) and np.array_equal(window.all_pairs, wanted.all_pairs)
        assert all(np.array_equal(a, b) for ours, theirs in zip(window.sets, wanted.sets, strict=True)
                   for a, b in zip(ours, theirs, strict=True))
    one, other = (result.spans[result.spans["step"] < 20] for result in results)
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert np.array_equal(spies[0].moves[0][1], spies[1].moves[0][1]) and moved(results[0])[0] > 0
    assert not results[0].spans.equals(results[1].spans)  # afterwards it does matter what comes


def test_while_nothing_runs_a_solver_is_not_waited_for(tmp_path: Path) -> None:
    """The second request comes long after the answer: the weights have moved by then, and it does not notice."""
    (tmp_path / "two.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,8,3\n1,8,3\n")
    replay = (f"requests={{kind: replay, path: {tmp_path / 'two.csv'}}}", "placement.solver=linear")
    again = ("placement.online={every: 3, solver: lpt, solve_time: 10 ms}",)
    for detail in ("steps", "events"):
        result = moesim.simulate(tiny(*replay, *again, f"detail={detail}"))
        (first, *_) = result.meta["replacements"]
        assert first["begun_s"] == pytest.approx(first["at_s"] + 0.01) and first["took_s"] > 0
        assert result.steps["start_s"][3] == 1
    beside = moesim.simulate(tiny(*replay, *again, *EVENTS))
    assert beside.steps["start_s"][3] == 1


def test_layers_of_different_sizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes, request = [4, 6], np.repeat(np.arange(12), 24)
    tokens = np.stack([np.stack([rng.permutation(size)[:2] for size in sizes]) for _ in request])
    moesim.RoutingTrace.from_arrays(tokens, 6, 2, request=request, phase=np.tile(np.arange(24) >= 16, 12).astype(int),
                                    model="tiny", experts_per_layer=sizes).write(tmp_path / "t.parquet")
    changes = ("model.moe.experts=[4, 6]", f"trace={{path: {tmp_path / 't.parquet'}}}",
               "placement={solver: linear, online: {every: 2, solver: lpt}}")
    result = moesim.simulate(tiny(*changes))
    assert sum(moved(result)) > 0
    beside = moesim.simulate(tiny(*changes, *EVENTS))
    assert beside.meta["replacements"][0]["moved"] == moved(result)[0]


def test_the_same_again(tmp_path: Path) -> None:
    """What a result saves runs again to the same bytes, entries of re-placements included."""
    for more in ((), EVENTS):
        first = moesim.simulate(tiny(*AGAIN, *VARIANTS["replicas, ecmp"], *more))
        again = moesim.simulate(moesim.load(first.save(tmp_path / f"run{len(more)}") / "scenario.yaml"))
        for table in TABLES:
            assert getattr(first, table).to_csv() == getattr(again, table).to_csv()
        assert first.meta["replacements"] == again.meta["replacements"]
