"""Scenarios with ``disaggregation``: what is wrong in them, what results say, what else reads them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import moesim
from moesim.explore import measure
from moesim.registry import make, names
from moesim.runs.validating import validate
from moesim.serving.apart import Decoding
from moesim.serving.group import Requests
from moesim.serving.pool import Pool

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "tests/data/tiny.yaml"
TWO_NODES = ("hardware.nodes=2", "hardware.scale_out={efficiency: 0.9, startup: 20 us, ramp: 1 us}",
             "hardware.fabric={name: leaf_spine, leaves: 2, spines: 3, hosts_per_leaf: 2, link: 10 Gbit/s}")
FIVE = ("hardware.devices_per_node=5", "model.attention={kind: gqa, heads: 6, kv_heads: 6, head_dim: 16}")
ONE = "disaggregation={devices: 1}"

WRONG = {
    "more than there are": (("disaggregation={devices: 2}",), "disaggregation.devices: 2 of 2 devices prefill, none is "
                                                               "left; use fewer"),
    "none": (("disaggregation={devices: 0}",), "disaggregation.devices: .*1"),
    "left out": (("disaggregation={scheduler: vllm}",), "disaggregation.devices: missing"),
    "half a node": ((ONE, *TWO_NODES), "disaggregation.devices: 1 are not whole nodes of 2 devices; use a multiple"),
    "unknown key": (("disaggregation={devices: 1, router: round_robin}",), "disaggregation.router: unknown key"),
    "coherent": ((ONE, "parallelism.mode=context_coherent"), "parallelism.mode: does not go with disaggregation"),
    "coherent prompts": (("disaggregation={devices: 1, parallelism: {mode: context_coherent}}",),
                         "disaggregation.parallelism.mode: does not go with disaggregation"),
    "online": ((ONE, "placement.online={every: 3}"), "placement.online: does not go with disaggregation"),
    "online prompts": (("disaggregation={devices: 1, placement: {solver: lpt, online: {every: 3}}}",),
                       "disaggregation.placement.online: does not go with disaggregation"),
    "static answers": ((ONE, "scheduler=static"), "scheduler: static runs a batch to its end"),
    "layers in stages": ((*FIVE, "disaggregation={devices: 2, overlap: layers, parallelism: {pp: 2}}"),
                         "disaggregation.overlap: layers does not go with pipeline stages where prompts run .2."),
    "widths": ((*FIVE, "parallelism.tp=3", "disaggregation={devices: 2, parallelism: {tp: 2}}"),
               "disaggregation.parallelism.tp: prompts run on 2 devices and answers on 3.*must divide the other"),
    "heads": ((*FIVE, "disaggregation={devices: 4, parallelism: {tp: 4}}"),
              "disaggregation.parallelism.tp: 4 does not divide the 6 attention heads"),
    "what is left": ((*FIVE, "parallelism.tp=2", "disaggregation={devices: 2}"),
                     "parallelism.tp: 2 does not divide the 3 devices of a node"),
    "memory": ((*FIVE, ONE, "hardware.device.memory=[{name: hbm, capacity: 240 kB, bandwidth: 1 GB/s}]"),
               "hardware: the devices that prefill: the weights do not fit: each of 1 devices"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_scenarios_say_where_and_why(case: str) -> None:
    overrides, said = WRONG[case]
    with pytest.raises(moesim.ConfigError, match=said):
        moesim.load(TINY, overrides)


def test_errors_of_both_pools_are_said_once() -> None:
    with pytest.raises(moesim.ConfigError) as caught:
        moesim.load(TINY, (ONE, "parallelism.tp=3"))
    assert str(caught.value).count("3 does not divide") == 1


@pytest.mark.parametrize(("kv", "pool", "tokens"), [("{block: 1, blocks: 20}", "prefill", 24),
                                                    ("{block: 1, blocks: 26}", "decode", 27)])
def test_who_has_no_room_in_one_of_the_pools(kv: str, pool: str, tokens: int) -> None:
    """Prompts of 24 tokens and four of answer: KV of 24 where they run, of 27 in the end."""
    overrides = (ONE, f"kv={kv}", "requests.prompt_tokens=24", "requests.count=4")
    with pytest.raises(moesim.ConfigError, match=f"requests: the devices that {pool}: request 0 needs the KV of "
                                                 f"{tokens} tokens"):
        moesim.simulate(moesim.load(TINY, overrides))
    short = (*overrides, "too_long=refuse", "requests.output_tokens={low: 1, high: 4}", "seed=3", "requests.count=12")
    if pool == "decode":  # 24, 25, 26 and 27 tokens
        table = moesim.simulate(moesim.load(TINY, short)).requests
        assert table["refused"].tolist() == (table["output_tokens"] > 3).tolist() and table["refused"].any()
        assert table.loc[table["refused"], ["group", "prefill_group"]].to_numpy().tolist() == [[-1, -1]] * int(
            table["refused"].sum())


def test_a_placement_that_fits_one_pool_alone(tmp_path: Path) -> None:
    """Three devices, one prefills: a placement for the two others, and one of its own for the first."""
    for count in (1, 2):
        device_of = np.arange(4) % count
        moesim.placement.Placement.from_device_of([device_of] * 2, count).save(tmp_path / f"{count}.json")
    three = (ONE, "hardware.devices_per_node=3", f"placement={{path: {tmp_path / '2.json'}}}")
    with pytest.raises(moesim.ConfigError, match="the devices that prefill: the placement is for"):
        moesim.simulate(moesim.load(TINY, three))
    result = moesim.simulate(moesim.load(TINY, (*three, f"disaggregation.placement.path={tmp_path / '1.json'}")))
    assert result.memory["expert_bytes"].tolist() == [2 * result.memory["expert_bytes"][1]] + [
        result.memory["expert_bytes"][1]] * 2


def test_a_measured_run_is_not_compared() -> None:
    scenario = moesim.load(TINY, (ONE,))
    with pytest.raises(moesim.ConfigError, match="disaggregation: a measured run is compared with one engine"):
        validate(None, scenario)  # type: ignore[arg-type]


def test_results_are_saved_and_load_again(tmp_path: Path) -> None:
    result = moesim.simulate(moesim.load(TINY, (ONE, "requests.count=5")))
    folder = result.save(tmp_path / "run")
    again = moesim.simulate(moesim.load(folder / "scenario.yaml"))
    pd.testing.assert_frame_equal(again.requests, result.requests)
    assert measure(result)["bytes_scale_up_out"] == result.links["kv_transfer_bytes"].sum() / 2 > 0
    table = moesim.sweep(moesim.load(TINY, ("requests.count=5",)), {"disaggregation": [None, {"devices": 1}]},
                         ["ttft_p50_s", "goodput_req_per_s", "load_max_over_mean", "cross_top1"],
                         executor=ThreadPoolExecutor(1))
    assert table["ttft_p50_s"].notna().all() and len(table) == 2


def test_prefixes_are_found_where_prompts_run(tmp_path: Path) -> None:
    """Four prompts of the same eight tokens: three find a block of four (never the last); all eight move each time."""
    pd.DataFrame({"arrival_s": np.arange(4) * 1.0, "prompt_tokens": 8, "output_tokens": 3,
                  "prompt_ids": [list(range(8))] * 4, "output_ids": [[1, 2, 3]] * 4}).to_parquet(tmp_path / "r.parquet")
    scenario = moesim.load(TINY, (ONE, f"requests={{kind: replay, path: {tmp_path / 'r.parquet'}}}",
                                  "kv={block: 4, prefix_cache: true}"))
    result = moesim.simulate(scenario)
    assert result.requests["cached_tokens"].tolist() == [0, 4, 4, 4]
    assert result.steps.loc[result.steps["pool"] == "prefill", "prefill_tokens"].tolist() == [8, 4, 4, 4]
    assert result.links["kv_transfer_bytes"].sum() == 2 * 4 * 8 * scenario.model.kv_bytes_per_token


@pytest.mark.parametrize("router", names("request_router"))
def test_routers_see_what_is_on_its_way(router: str) -> None:
    """Two equal groups that decode: the first expects a request, so the next one goes to the second."""
    live = Requests(pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": [4, 4], "output_tokens": 2}))
    groups = [Decoding(live, Pool(8, 4, 2), None, whole=False) for _ in range(2)]
    groups[0].expect(0)
    assert make("request_router", router).choose(1, [group.seen() for group in groups], 1) == 1
    assert groups[0].make_room() == [0] and groups[0].n_waiting == 0
    assert make("request_router", router).choose(1, [group.seen() for group in groups], 1) == 1


def test_urgent_requests_are_given_memory_first() -> None:
    live = Requests(pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": [4, 4, 4], "output_tokens": 2,
                                  "priority": [1, 1, 0]}))
    group = Decoding(live, Pool(4, 4, 3), None, whole=False)
    for request in range(3):
        group.expect(request)
    assert group.make_room() == [2, 0] and group.n_expected == 1  # two blocks each
