"""Laws that every run obeys, whatever the scenario."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moesim

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
TWO_NODES = ("hardware.nodes=2", "hardware.scale_out={efficiency: 0.9, startup: 20 us, ramp: 1 us}",
             "hardware.fabric={name: leaf_spine, leaves: 2, spines: 3, hosts_per_leaf: 2, link: 10 Gbit/s}")
DENSE_LAYERS = ("model.layers=4", "model.moe.layers=1-2", "model.dense_ffn=96")

VARIANTS = {
    "plain": (),
    "coherent": ("parallelism.mode=context_coherent",),
    "coherent, hidden": ("parallelism.mode=context_coherent", "parallelism.context=hidden", *TWO_NODES),
    "tensor parallel": ("parallelism.tp=2", *TWO_NODES, *DENSE_LAYERS),
    "mixed steps": ("scheduler.prefill=mixed", *DENSE_LAYERS),
    "mixed, coherent": ("scheduler.prefill=mixed", "parallelism.mode=context_coherent", *DENSE_LAYERS, *TWO_NODES),
    "two nodes, ecmp": (*TWO_NODES, "balancing=ecmp", "parallelism.deduplicate=false"),
    "poisson": ("requests={kind: poisson, rate: 2000 /s, count: 9, prompt_tokens: 12, output_tokens: 3}",),
    "shared experts": ("model.moe.shared_ffn=64", *TWO_NODES),
    "roofline": ("kernels=roofline", "request_router=fewest_requests"),
    "node limited": ("all_to_all=node_limited", *TWO_NODES),
    "in rounds": ("all_to_all=pairwise", *TWO_NODES),
    "low latency": ("all_to_all=deepep_ll", "parallelism.deduplicate=false", *TWO_NODES),
    "windows": ("model.attention.window=4", "model.attention.window_layers=[1]"),
}


def tiny(*overrides: str) -> moesim.Scenario:
    """Return the tiny scenario with *overrides*, all spans kept."""
    return moesim.load(TINY, ("span_steps=-1", *overrides))


@cache
def ran(*overrides: str) -> moesim.Result:
    """Return the run of the tiny scenario with *overrides*: several laws look at the same one, none changes it."""
    return moesim.simulate(tiny(*overrides))


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_engines_agree(variant: str) -> None:
    """The law of docs/background/time.md: the same spans to 1e-9."""
    steps, events = (ran(f"detail={d}", *VARIANTS[variant]) for d in ("steps", "events"))
    for table in ("requests", "steps", "spans", "links", "memory"):
        pd.testing.assert_frame_equal(getattr(steps, table), getattr(events, table), rtol=1e-9, obj=table)


@given(seed=st.integers(0, 1000), nodes=st.booleans(), tp=st.sampled_from([1, 2]), batch=st.integers(1, 6),
       mixed=st.booleans())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_engines_agree_on_random_scenarios(seed: int, nodes: bool, tp: int, batch: int, mixed: bool) -> None:
    overrides = (f"seed={seed}", f"trace.synthetic.seed={seed}", f"parallelism.tp={tp}", f"scheduler.max_batch={batch}",
                 f"scheduler.prefill={'mixed' if mixed else 'own'}", *(TWO_NODES if nodes else ()))
    steps, events = (moesim.simulate(tiny(f"detail={d}", *overrides)) for d in ("steps", "events"))
    pd.testing.assert_frame_equal(steps.spans, events.spans, rtol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_lost(variant: str) -> None:
    result = ran("detail=steps", *VARIANTS[variant])
    requests, steps = result.requests, result.steps
    assert requests[["first_token_s", "finish_s"]].notna().all().all()
    assert (requests["finish_s"] >= requests["first_token_s"]).all() and (requests["ttft_s"] > 0).all()
    assert steps["prefill_tokens"].sum() == requests["prompt_tokens"].sum()
    assert steps["decode_tokens"].sum() == (requests["output_tokens"] - 1).sum()
    phases = [c for c in steps if c.endswith("_s") and c not in ("start_s", "end_s")]
    np.testing.assert_allclose(steps[phases].sum(axis=1), steps["end_s"] - steps["start_s"], rtol=1e-9)
    assert (steps["start_s"].to_numpy()[1:] >= steps["end_s"].to_numpy()[:-1]).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_out_are_bytes_in(variant: str) -> None:
    links = ran("detail=steps", *VARIANTS[variant]).links.groupby("class")["bytes"].sum()
    for out, into in (("scale_up_out", "scale_up_in"), ("nic_out", "nic_in"), ("leaf_up", "leaf_down")):
        assert links.get(out, 0) == pytest.approx(links.get(into, 0), rel=1e-12)
    assert links.sum() > 0
    if "leaf_up" in links:  # one leaf per node: what leaves a network port crosses the spine
        assert links["leaf_up"] == pytest.approx(links["nic_out"], rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_server_does_two_things_at_once(variant: str) -> None:
    spans = ran("detail=events", *VARIANTS[variant]).spans
    for _, busy in spans.sort_values(["start_s", "end_s"]).groupby(["device", "server"]):
        assert (busy["start_s"].to_numpy()[1:] >= busy["end_s"].to_numpy()[:-1] - 1e-15).all()


def test_twice_the_memory_bandwidth_halves_compute() -> None:
    """Roofline at unlimited FLOP/s: every operator is bound by bandwidth."""
    fast = ("kernels=roofline", "hardware.device.processor.peak.bf16=1000 PFLOP/s")
    slow, quick = (moesim.simulate(tiny(*fast, f"hardware.device.processor.bandwidth={b}"))
                   for b in ("1 GB/s", "2 GB/s"))
    for phase in ("attention", "gate", "experts", "head"):
        assert quick.steps[f"{phase}_s"].sum() == pytest.approx(slow.steps[f"{phase}_s"].sum() / 2, rel=1e-9)


def test_twice_the_link_bandwidth_halves_the_exchange() -> None:
    free = ("hardware.scale_up.startup=0 s", "hardware.scale_up.ramp=0 s")
    slow, quick = (moesim.simulate(tiny(*free, f"hardware.scale_up.bandwidth={b}")) for b in ("1 GB/s", "2 GB/s"))
    for phase in ("dispatch", "combine"):
        assert quick.steps[f"{phase}_s"].sum() == pytest.approx(slow.steps[f"{phase}_s"].sum() / 2, rel=1e-9)


def test_a_token_crosses_once_per_node_or_once_per_device() -> None:
    """Bytes on ports: fewer with node_limited than with flat and pxn, more with a copy per expert."""
    eight = tuple(f"{where}.{what}" for where in ("model.moe", "trace.synthetic") for what in ("experts=8", "top_k=4"))
    ports = {}
    for name, part, more in (("flat", "flat", ()), ("limited", "node_limited", ()), ("pxn", "pxn", ()),
                             ("per expert", "deepep_ll", ("parallelism.deduplicate=false",))):
        links = moesim.simulate(tiny(f"all_to_all={part}", *more, *eight, *TWO_NODES)).links
        ports[name] = links.groupby("class")["bytes"].sum()["nic_out"]
    assert ports["limited"] < ports["flat"] == ports["pxn"] < ports["per expert"]


@pytest.mark.parametrize("overrides, fact", [
    (("all_to_all=deepep_ll",), "must be false with all_to_all deepep_ll"),
    (("all_to_all=node_limited", "parallelism.mode=context_coherent"), "use 'flat' or mode dispatch_combine"),
    (("all_to_all={name: coordinated, width: 3}",), "groups of 3 do not divide 2 devices"),
    (("all_to_all=flet",), "did you mean 'flat'"),
])
def test_a_way_of_sending_that_does_not_fit(overrides: tuple[str, ...], fact: str) -> None:
    with pytest.raises(moesim.ConfigError, match=fact):
        tiny(*overrides)


def test_more_concurrency_never_lowers_throughput() -> None:
    """Decode is bound by weights here: more requests per step share them."""
    runs = [moesim.simulate(tiny(f"requests.concurrency={c}", "requests.prompt_tokens=8")) for c in (1, 2, 4)]
    rates = [run.summary()["throughput_tok_per_s"] for run in runs]
    assert rates == sorted(rates)


def _digest(result: moesim.Result) -> str:
    tables = (result.requests, result.steps, result.spans, result.links, result.memory)
    return hashlib.sha256("".join(t.to_csv() for t in tables).encode()).hexdigest()


def test_the_same_in_every_process(other_hash_seed: str) -> None:
    """Another process, with another hash seed, computes the same bytes."""
    program = ("import sys; sys.path.insert(0, sys.argv[1]); import moesim; "
               "from test_engine_laws import _digest, tiny; "
               "print(_digest(moesim.simulate(tiny('placement.solver=random'))))")
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    other = subprocess.run(command, capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": other_hash_seed, "PATH": ""}).stdout
    assert other == _digest(moesim.simulate(tiny("placement.solver=random"))) + "\n"


def test_a_resolved_scenario_is_the_scenario(tmp_path: Path) -> None:
    """What a result saves runs again to the same result."""
    first = moesim.simulate(tiny(*TWO_NODES))
    again = moesim.load(first.save(tmp_path / "run") / "scenario.yaml")
    assert again == tiny(*TWO_NODES)
    assert _digest(moesim.simulate(again)) == _digest(first)
