"""Experts placed again during a run, on two devices with one layer: every time and every byte worked on paper.

The machine of ``test_two_devices.py``: memory moves 1 byte/s, so an operator takes as many seconds as it moves bytes;
links move 1 byte/s after 5 s. Four experts of 12 bytes (3 matrices of 2 values), experts 0 and 1 on device 0. Two
requests, one per device, each with one prompt token and five output tokens. The first always chooses expert 0, on its
device. The second's prompt chooses expert 2, on its device, but its decoded tokens expert 1, on the other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_two_devices import SCENARIO

import moesim
from moesim.explore import measure
from moesim.placement import Placement
from moesim.sim.replacing import copies

COLUMNS = ["step", "layer", "devices", "server", "phase", "start_s", "end_s"]
BOTH = (0, 1)
# The window: steps 1 and 2, in which experts 0 and 1 have two tokens each. LPT puts 0 and 2 on device 0, 1 and 3 on
# device 1: expert 1 goes from 0 to 1, expert 2 from 1 to 0.
ONLINE = ("placement.online={every: 3, window: 2, solver: lpt}",)

TABLE = [
    # Prompts. Attention 88 (test_two_devices.py). Gate: norm 16, weights 2x4, token 2, logits twice 2*4, chosen 1:
    # 19 values = 38. Nothing is sent; one token on an expert: 12 + 8. Head 16.
    (0, 0, BOTH, "processor", "attention", 0, 88),
    (0, 0, BOTH, "processor", "gate", 88, 142),
    (0, 0, BOTH, "processor", "experts", 142, 162),
    (0, -1, BOTH, "processor", "head", 162, 178),
    # Attention of one query: 80 + 8 per token of context, 2 and then 3. One token from 1 to 0: 5 + 4, and home again.
    # Two experts with a token each: 2 * 20.
    (1, 0, BOTH, "processor", "attention", 178, 274),
    (1, 0, BOTH, "processor", "gate", 274, 328),
    (1, 0, BOTH, "links", "dispatch", 328, 337),
    (1, 0, (0,), "processor", "experts", 337, 377),
    (1, 0, BOTH, "links", "combine", 377, 386),
    (1, -1, BOTH, "processor", "head", 386, 402),
    (2, 0, BOTH, "processor", "attention", 402, 506),
    (2, 0, BOTH, "processor", "gate", 506, 560),
    (2, 0, BOTH, "links", "dispatch", 560, 569),
    (2, 0, (0,), "processor", "experts", 569, 609),
    (2, 0, BOTH, "links", "combine", 609, 618),
    (2, -1, BOTH, "processor", "head", 618, 634),
    # Two experts cross: 5 + 12, in which nothing runs. From here every token has its expert at home.
    (3, 0, BOTH, "processor", "attention", 651, 763),
    (3, 0, BOTH, "processor", "gate", 763, 817),
    (3, 0, BOTH, "processor", "experts", 817, 837),
    (3, -1, BOTH, "processor", "head", 837, 853),
    (4, 0, BOTH, "processor", "attention", 853, 973),
    (4, 0, BOTH, "processor", "gate", 973, 1027),
    (4, 0, BOTH, "processor", "experts", 1027, 1047),
    (4, -1, BOTH, "processor", "head", 1047, 1063),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the trace of four requests, of which the run gets two, and the scenario."""
    table = {"request": np.repeat(np.arange(4), 5), "position": [0, 1, 2, 3, 4] * 4, "phase": [0, 1, 1, 1, 1] * 4,
             "model": "hand"}
    ones = moesim.RoutingTrace.from_arrays(np.ones((20, 1, 1), int), n_experts=4, top_k=1, **table)
    first = ones.evaluation(0.5, seed=0).tokens["request"].iloc[0]
    experts = np.where(table["request"] == first, 0, np.where(np.array(table["phase"]) == 0, 2, 1))
    trace = moesim.RoutingTrace.from_arrays(experts[:, None, None], n_experts=4, top_k=1, **table)
    trace.write(tmp_path / "trace.parquet")
    (tmp_path / "hand.yaml").write_text(SCENARIO.replace("experts: 2,", "experts: 4,"))
    return tmp_path


def run(folder: Path, *overrides: str) -> moesim.Result:
    return moesim.simulate(moesim.load(folder / "hand.yaml", overrides))


def entry(result: moesim.Result) -> dict[str, object]:
    (only,) = result.meta["replacements"]
    return only


@pytest.mark.parametrize("detail", ["steps", "events"])
def test_every_span_around_a_blocking_move(folder: Path, detail: str) -> None:
    result = run(folder, *ONLINE, f"detail={detail}")
    rows = [(*row[:2], device, *row[3:]) for row in TABLE for device in row[2]]
    wanted = pd.DataFrame(rows, columns=[*COLUMNS[:2], "device", *COLUMNS[3:]]).assign(half=0)
    pd.testing.assert_frame_equal(result.spans, wanted, check_dtype=False, rtol=1e-9)
    # All tokens of the window were on device 0: twice the mean. Then two on each.
    assert entry(result) == {
        "step": 3, "at_s": 634, "window_tokens": 4, "window_load_max_over_mean": 2.0,
        "predicted_load_max_over_mean": 1.0, "moved": 2, "bytes": 24.0, "begun_s": 634, "took_s": 17, "from_step": 3}
    assert result.steps["start_s"].tolist() == [0, 178, 402, 651, 853]
    assert result.steps["load_max_over_mean"].tolist() == [1, 2, 2, 1, 1]
    links = result.links.set_index("name")
    assert links["migration_bytes"].tolist() == [12, 12, 12, 12]  # out of and into each device
    assert links["bytes"].sum() == 4 * 12 + 2 * 2 * (4 + 4)  # and the token of steps 1 and 2, there and back
    assert measure(result)["migrated_bytes"] == 24 and measure(result)["replacements"] == 1
    assert any(w.startswith("placement.online: the solver is taken to need 0 s") for w in result.meta["warnings"])
    # Steps 3 and 4 would have taken 58 s instead of 20 for dispatch, experts and combine: 76 s, for the 17.
    assert run(folder, f"detail={detail}").summary()["makespan_s"] == 1063 - 17 + 76


def test_all_steps_in_the_window_lead_elsewhere(folder: Path) -> None:
    """With step 0 expert 2 has a token too, and experts 0 to 2 have 3, 2 and 1: LPT puts 0 and 3 on one device."""
    result = run(folder, "placement.online={every: 3, solver: lpt}")
    assert entry(result)["window_tokens"] == 6
    # 5 tokens on device 0 and 1 on device 1; then 3 and 3. Expert 1 goes to 1, expert 3 to 0.
    assert entry(result)["window_load_max_over_mean"] == pytest.approx(5 / 3)
    assert entry(result)["predicted_load_max_over_mean"] == 1
    assert entry(result)["moved"] == 2


def test_a_token_stays_where_it_is_when_its_expert_leaves(folder: Path) -> None:
    """context_coherent: the second request's token goes to device 0 in step 1, and back to 1 after the expert."""
    result = run(folder, *ONLINE, "parallelism.mode=context_coherent")
    spans = result.spans[result.spans["phase"] == "dispatch"]
    assert spans["step"].tolist() == [1, 1, 3, 3]
    assert ((spans["end_s"] - spans["start_s"]) == 9).all()
    assert result.links.set_index("name")["dispatch_bytes"].tolist() == [4, 4, 4, 4]
    assert entry(result)["took_s"] == 17


def test_a_solver_that_takes_its_time(folder: Path) -> None:
    """100 s from 634: step 3 still runs as step 2, with 8 s more attention, and ends at 874."""
    result = run(folder, *ONLINE, "placement.online.solve_time=100 s")
    assert (entry(result)["at_s"], entry(result)["begun_s"], entry(result)["took_s"]) == (634, 874, 17)
    assert entry(result)["from_step"] == 4
    assert result.steps["start_s"].tolist() == [0, 178, 402, 634, 891]


def test_weights_beside_a_step(folder: Path) -> None:
    """Links of 1/20 byte/s: two experts alone take 5 + 240 s from 938, a token 5 + 80 s.

    Step 3 runs as it would: attention and gate to 1104. The token's bytes move from 1109, when 166 s x 0.05 = 8.3 B of
    expert 2 have gone the same way, from 1 to 0. The other 3.7 B take 148 s at half the rate, to 1257; the last 0.3 B
    of the token have the link alone, 6 s. Experts to 1303, combine (the other way; expert 1 was there at 1183) to 1388,
    head to 1404. Then the layer changes over.
    """
    slow = ("detail=events", "hardware.scale_up.bandwidth=0.05 B/s")
    result = run(folder, *ONLINE, *slow, "placement.online.blocking=false")
    step = result.spans[(result.spans["step"] == 3) & (result.spans["device"] == 0)].set_index("phase")
    assert step.loc["dispatch", ["start_s", "end_s"]].tolist() == pytest.approx([1104, 1263])
    assert step.loc["combine", ["start_s", "end_s"]].tolist() == pytest.approx([1303, 1388])
    assert result.steps["start_s"].tolist() == pytest.approx([0, 178, 554, 938, 1404])
    assert result.steps["end_s"].iloc[-1] == pytest.approx(1404 + 120 + 54 + 20 + 16)
    assert entry(result)["begun_s"] == pytest.approx(938) and entry(result)["took_s"] == pytest.approx(1404 - 938)
    assert entry(result)["from_step"] == 4
    assert result.links["migration_bytes"].tolist() == [12, 12, 12, 12]


def test_what_has_not_arrived_by_the_end_changes_nothing(folder: Path) -> None:
    slow = ("detail=events", "hardware.scale_up.bandwidth=0.01 B/s")
    result = run(folder, "placement.online={every: 4, window: 1, solver: lpt, blocking: false}", *slow)
    assert entry(result)["moved"] == 2 and entry(result)["begun_s"] == entry(result)["at_s"]
    assert entry(result)["took_s"] is None and entry(result)["from_step"] is None
    assert "migration_bytes" not in result.links and result.steps["load_max_over_mean"].tolist() == [1, 2, 2, 2, 2]


def test_little_imbalance_is_left_alone(folder: Path) -> None:
    result = run(folder, "placement.online={every: 3, window: 2, solver: lpt, imbalance: 2.01}")
    assert entry(result)["moved"] == 0 and entry(result)["bytes"] == 0 and entry(result)["took_s"] == 0
    assert entry(result)["predicted_load_max_over_mean"] == entry(result)["window_load_max_over_mean"] == 2
    pd.testing.assert_frame_equal(result.spans, run(folder).spans)
    assert entry(run(folder, "placement.online={every: 3, window: 2, solver: lpt, imbalance: 2}"))["moved"] == 2


def test_who_sends() -> None:
    """Two nodes of two devices; an expert comes from its node if that has it, else from the one that sent least."""
    old, new = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    old[0, 0, [0, 2]] = new[0, 0, 3] = True       # from the device beside it, although 0 is the first
    old[0, 1, [0, 1]] = new[0, 1, [2, 3]] = True  # from the other node: one each
    old[0, 2, [0, 3]] = new[0, 2, [1, 3]] = True  # 3 keeps it; 0 sends another, it is nearer
    old[0, 3, [0, 1]] = new[0, 3, 2] = True       # 0 has sent two by then, 1 one
    old[1, :, 0] = new[1, :, 0] = True            # a layer that stays
    sent = copies(old, new, per_node=2)
    assert sent[0].tolist() == [[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert not sent[1].any()


def test_replicas_that_only_go_away(folder: Path) -> None:
    """Experts 1 and 2 on both devices, then on one: nothing is sent, it takes no time, and tokens have to travel."""
    replicas = np.zeros((1, 4, 2), bool)
    replicas[0, [0, 1, 2], 0] = replicas[0, [1, 2, 3], 1] = True
    Placement(replicas).save(folder / "first.json")
    result = run(folder, "placement={path: first.json, online: {every: 3, window: 2, solver: linear}}")
    assert entry(result)["moved"] == 0 and entry(result)["took_s"] == 0 and entry(result)["from_step"] == 3
    assert not result.links["migration_bytes"].any()
    assert result.steps["load_max_over_mean"].tolist() == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("overrides, fact", [
    (("placement={path: first.json, online: {every: 3}}",), "online needs a solver, a path holds one placement"),
    (("placement.online={every: 0}",), "placement.online.every"),
    (("placement.online={every: 3, window: 0}",), "placement.online.window"),
    (("placement.online={every: 3, blocking: false}",), "placement.online.blocking: needs detail: events"),
    (("placement.online={every: 3, imbalance: 0.9}",), "placement.online.imbalance"),
    (("placement.online={every: 3, solver: lpd}",), "did you mean 'lpt'"),
    # Two redundant experts, three per device.
    (("placement.online={every: 3, solver: {name: eplb, redundant: 2}}",),
     "placement.online: after 3 steps: layer 0: device 1 would hold 3 experts and keeps room for 2, 12 B too little"),
    (("placement.online={every: 3, solver: {name: eplb, redundant: 1}}",),
     "placement.online: after 3 steps: 4 experts and 1 redundant ones do not fill 2 devices evenly"),
])
def test_what_cannot_be(folder: Path, overrides: tuple[str, ...], fact: str) -> None:
    Placement.from_device_of([[0, 0, 1, 1]], 2).save(folder / "first.json")
    with pytest.raises(moesim.ConfigError, match=fact):
        run(folder, *overrides)
