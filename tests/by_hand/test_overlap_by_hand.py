"""Two halves of a batch, and background traffic, on two devices: every span worked on paper.

The machine of ``test_two_devices.py``: memory moves 1 byte/s, so an operator takes as many seconds as it moves bytes; a
prompt token has 88 s of attention, 38 s of gate, 12 + 8 s per token of an expert and 16 s of head. Four requests,
two per device, each with one prompt token, which chooses expert 1 (on device 1), and one decoded token, which chooses
the expert of its own device. A hidden state has 4 bytes; links need 5 s to start up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simpy
from test_two_devices import SCENARIO

import moesim
from moesim.network import Network
from moesim.network.collective import Constants
from moesim.network.play import Act
from moesim.sim.cost import Batch
from moesim.sim.halves import halves
from moesim.sim.links import Launch, Links

COLUMNS = ["step", "half", "layer", "device", "server", "phase", "start_s", "end_s"]
BOTH = (0, 1)

# Links of 1/100 byte/s: a hidden state alone needs 5 + 400 s. step, half, layer, devices, server, phase, start, end
TWO_BATCH = [
    # Each half has a request per device. The processor takes the halves in turn: 126 s each.
    (0, 0, 0, BOTH, "processor", "attention", 0, 88),
    (0, 0, 0, BOTH, "processor", "gate", 88, 126),
    # One token from 0 to 1. Its bytes move from 131; those of half 1 from 252 + 5 = 257, when 126 s x 0.01 = 1.26 B
    # have gone. The rest, 2.74 B, at half the rate: 548 s.
    (0, 0, 0, BOTH, "links", "dispatch", 126, 805),
    # Two tokens on the expert: 12 + 2 x 8 = 28 s.
    (0, 0, 0, (1,), "processor", "experts", 805, 833),
    # Home, from 1 to 0, alone on its way until half 1 comes home at 959 + 5 = 964: 1.26 B have gone since 838.
    (0, 0, 0, BOTH, "links", "combine", 833, 1512),
    (0, 0, -1, BOTH, "processor", "head", 1512, 1528),
    (0, 1, 0, BOTH, "processor", "attention", 126, 214),
    (0, 1, 0, BOTH, "processor", "gate", 214, 252),
    # By 805 as many bytes as half 0 has sent since 257: 2.74. The last 1.26 B alone: 126 s.
    (0, 1, 0, BOTH, "links", "dispatch", 252, 931),
    (0, 1, 0, (1,), "processor", "experts", 931, 959),
    (0, 1, 0, BOTH, "links", "combine", 959, 1638),
    (0, 1, -1, BOTH, "processor", "head", 1638, 1654),
    # Decode: attention 96, gate 38; nothing is sent. What is ready first is served first: half 0's experts wait for
    # half 1's attention and gate, half 1's experts for half 0's, half 0's head for half 1's experts.
    (1, 0, 0, BOTH, "processor", "attention", 1654, 1750),
    (1, 0, 0, BOTH, "processor", "gate", 1750, 1788),
    (1, 0, 0, BOTH, "processor", "experts", 1922, 1942),
    (1, 0, -1, BOTH, "processor", "head", 1962, 1978),
    (1, 1, 0, BOTH, "processor", "attention", 1788, 1884),
    (1, 1, 0, BOTH, "processor", "gate", 1884, 1922),
    (1, 1, 0, BOTH, "processor", "experts", 1942, 1962),
    (1, 1, -1, BOTH, "processor", "head", 1978, 1994),
]


def write(folder: Path, n_requests: int) -> None:
    """Write a trace of twice *n_requests* requests as the docstring has it, and the scenario of half of them."""
    n = 2 * n_requests
    table = {"request": np.repeat(np.arange(n), 2), "position": [0, 1] * n, "phase": [0, 1] * n, "model": "hand"}
    ones = moesim.RoutingTrace.from_arrays(np.ones((2 * n, 1, 1), int), n_experts=2, top_k=1, **table)
    order = ones.evaluation(0.5, seed=0).tokens["request"].iloc[::2].tolist()
    device = {request: i % 2 for i, request in enumerate(order)}  # requests are dealt to devices in turn
    experts = [device.get(request, 1) if phase else 1
               for request, phase in zip(table["request"], table["phase"], strict=True)]
    trace = moesim.RoutingTrace.from_arrays(np.reshape(experts, (2 * n, 1, 1)), n_experts=2, top_k=1, **table)
    trace.write(folder / "trace.parquet")
    (folder / "hand.yaml").write_text(SCENARIO)


def test_every_span_of_two_halves(tmp_path: Path) -> None:
    write(tmp_path, 4)
    result = moesim.simulate(moesim.load(tmp_path / "hand.yaml", (
        "detail=events", "overlap=two_batch", "hardware.scale_up.bandwidth=0.01 B/s", "requests.count=4",
        "requests.concurrency=4", "request_router=fewest_requests")))
    rows = [(*row[:3], device, *row[4:]) for row in TWO_BATCH for device in row[3]]
    pd.testing.assert_frame_equal(result.spans[COLUMNS], pd.DataFrame(rows, columns=COLUMNS), check_dtype=False,
                                  rtol=1e-9)
    assert result.steps["end_s"].tolist() == pytest.approx([1654, 1994])
    assert result.steps["dispatch_s"].tolist() == pytest.approx([2 * 679, 0])
    # A device waits if no half of it computes or communicates. Device 0 has no expert at work from 805 to 833, but half
    # 1's dispatch is under way; from 931 to 959 it is half 0's combine.
    assert result.steps["wait_s"].tolist() == pytest.approx([0, 0])
    assert any(w.startswith("overlap: kernels compute at full speed") for w in result.meta["warnings"])


PORTS = ("hardware.nodes=2", "hardware.devices_per_node=1", "hardware.fabric={name: switch, hosts: 2, link: 8 bit/s}",
         "hardware.scale_out={efficiency: 1.0, startup: 5 s, ramp: 0 s}")


@pytest.mark.parametrize("machine", [(), PORTS])
def test_background_on_the_same_link(tmp_path: Path, machine: tuple[str, ...]) -> None:
    """3 B from 0 to 1, 130 s into every period: 1 B has gone when dispatch, from 126, starts to move its 4 B at 131.

    The other 2 B take 4 s at half the rate, as 2 B of the dispatch; its last 2 B have the link alone: it ends at 137,
    2 s late. Combine, from 165, goes the other way. The same on the links of one node and on ports between two.
    """
    write(tmp_path, 2)
    (tmp_path / "others.csv").write_text("src,dst,bytes,start_s\n0,1,3,130\n")
    result = moesim.simulate(moesim.load(tmp_path / "hand.yaml", (
        "detail=events", "background={flows: others.csv, period: 1000 s}", *machine)))
    first = result.spans[result.spans["device"] == 1].set_index("phase")[["start_s", "end_s"]].head(6)
    assert first.loc["dispatch"].tolist() == pytest.approx([126, 137])
    assert first.loc["experts"].tolist() == pytest.approx([137, 165])
    assert first.loc["combine"].tolist() == pytest.approx([165, 174])
    plain = moesim.simulate(moesim.load(tmp_path / "hand.yaml", ("detail=events", *machine)))
    assert result.summary()["makespan_s"] == pytest.approx(plain.summary()["makespan_s"] + 2)
    assert any(w.startswith("background:") for w in result.meta["warnings"])


def launched(*acts: tuple[float, Act], links: int = 2) -> list[float]:
    """Return the ends of collectives that begin at the given times; alone, each takes 1 + 6 s."""
    network = Network(links, links, Constants(bandwidth=1.0, startup=1.0))
    env = simpy.Environment()
    room, ends = Links(env, network), [0.0] * len(acts)

    def start(i: int, at: float, act: Act) -> simpy.events.ProcessGenerator:
        yield env.timeout(at)
        used = np.unique(np.concatenate([act.src, network.n_devices + act.dst]))
        yield room.start(Launch(7.0, used, lambda: [("flat", act)]))
        ends[i] = env.now

    for i, (at, act) in enumerate(acts):
        env.process(start(i, at, act))
    env.run()
    return ends


def pairs(*flows: tuple[int, int, float]) -> Act:
    src, dst, size = zip(*flows, strict=True)
    return Act(np.array(src), np.array(dst), np.array(size, float))


BOTH_WAYS = pairs((0, 1, 6.0), (1, 0, 6.0))


def test_two_that_start_together_get_half_each() -> None:
    assert launched((0.0, BOTH_WAYS), (0.0, BOTH_WAYS)) == pytest.approx([13.0, 13.0])


def test_one_that_comes_later() -> None:
    """The second moves from 3 + 1: 3 B of the first are left, for 6 s. Then 3 B of the second alone."""
    assert launched((0.0, BOTH_WAYS), (3.0, BOTH_WAYS)) == pytest.approx([10.0, 13.0])


def test_one_that_comes_when_the_first_is_gone_is_alone() -> None:
    assert launched((0.0, BOTH_WAYS), (7.0, BOTH_WAYS)) == [7.0, 14.0]


def test_who_left_is_not_forgotten() -> None:
    """Three in turn. 1 and 2 from 4: 1 leaves at 10. 2 has 3 B left when 3, come at 10, moves at 11: 2 B then, to 15.

    3 has 4 B left then, alone to 19. What 2 has at 11 depends on 1, which had ended before anybody asked.
    """
    assert launched((0.0, BOTH_WAYS), (3.0, BOTH_WAYS), (10.0, BOTH_WAYS)) == pytest.approx([10.0, 15.0, 19.0])


def test_other_links_do_not_matter() -> None:
    """0 -> 1 and 2 -> 3 are alone, to the last digit; a third from 0 to 3 shares with both."""
    near, far = pairs((0, 1, 6.0)), pairs((2, 3, 6.0))
    assert launched((0.0, near), (3.0, far), links=4) == [7.0, 10.0]
    # 0 -> 3 moves from 4.5: by then 0 -> 1 has 2.5 B left, 2 -> 3 has 5.5 B. All three at 1/2: 0 -> 1 to 9.5; 2 -> 3
    # and 0 -> 3 still share the way into 3: 2 -> 3 has 3 B left, to 15.5; 0 -> 3 has 0.5 B left then.
    ends = launched((0.0, near), (3.0, far), (3.5, pairs((0, 3, 6.0))), links=4)
    assert ends == pytest.approx([9.5, 15.5, 16.0])


def test_flows_of_a_collective_advance_together() -> None:
    """6 B to 1 and 2 B to 2 leave 0 as 3 to 1: weights 1.5 and 0.5. 4 B from 3 to 2 have the weight 1.

    The way out of 0 is full at 0.75 and 0.25 B/s; the way into 2 has room for 0.75 B/s from 3: 5 1/3 s, the others 8 s.
    """
    ends = launched((0.0, pairs((0, 1, 6.0), (0, 2, 2.0))), (0.0, pairs((3, 2, 4.0))), links=4)
    assert ends == pytest.approx([9.0, 1 + 16 / 3])


def test_halves_have_as_many_tokens_on_every_device() -> None:
    """Group 0: prompts of 5 and 3, two decodes; group 1: a prompt of 2, three decodes. 8 + 2 + 2 + 3 = 15 tokens.

    The prompt of 3 is a chunk behind 4 tokens, and not the last one.
    """
    # Decodes in turn, group after group: requests 1, 3 | 2, 4, 5 to halves 0, 1 | 0, 1, 0. Prompt 9 (5 tokens) of group
    # 0: 1 to 1 there, 3 to 2 in all: half 1. Prompt 7 to half 0. Prompt 8: group 1 has 2 to 1: half 1.
    first, second = halves(batch([7, 8, 9], [3, 2, 5], [4, 0, 0], [0, 1, 1], [0, 1, 0], [1, 2, 3, 4, 5],
                                 [11, 12, 13, 14, 15], [0, 1, 0, 1, 1], [20, 21, 22, 23, 24]))
    assert (first.prefill.tolist(), first.decode.tolist()) == ([7], [1, 2, 5])
    assert (second.prefill.tolist(), second.decode.tolist()) == ([8, 9], [3, 4])
    assert first.prefill_rows.tolist() == [0, 1, 2] and second.prefill_rows.tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert (first.prefill_past.tolist(), first.prefill_sampled.tolist()) == ([4], [False])
    assert (second.prefill_past.tolist(), second.prefill_sampled.tolist()) == ([0, 0], [True, True])
    assert first.decode_kv.tolist() == [11, 12, 15] and second.decode_rows.tolist() == [22, 23]
    alone = batch([7], [9], [0], [1], [0], [1], [11], [0], [20])
    assert halves(alone) == [alone]  # 9 tokens to 1: not worth it
    single = batch([], [], [], [], [], [1], [11], [0], [20])
    assert halves(single) == [single]


def batch(prefill: list[int], tokens: list[int], past: list[int], sampled: list[int], group: list[int],
          decode: list[int], kv: list[int], decode_group: list[int], rows: list[int]) -> Batch:
    """Return a step without padding; the prompts' tokens have the rows 0, 1, ..."""
    none = np.empty(0, np.int64)
    p, n, before, g, d, kv_, dg, r = (np.array(x, np.int64) for x in (
        prefill, tokens, past, group, decode, kv, decode_group, rows))
    return Batch(p, n, before, np.array(sampled, bool), g, np.arange(n.sum()), d, kv_, dg, r, none, none)


@pytest.mark.parametrize("overrides, table, fact", [
    (("overlap=two_batch", "detail=steps"), None, "overlap: needs detail: events"),
    (("detail=steps",), "0,1,3,130", "background: needs detail: events"),
    ((), "0,2,3,130", "background.flows: others.csv: flow 0: dst is 2; hosts are 0 to 1"),
    ((), "0,1,3,1000", "flow 0: start_s is 1000; give seconds from the start of a period, below background.period"),
    ((), "0,1,3,-1", "flow 0: start_s is -1"),
    ((), "0,1,100,0", "device0->switch0 busy for 1 of every period, so more and more would wait"),
    ((), "", "it holds no flow"),
])
def test_what_cannot_be(tmp_path: Path, overrides: tuple[str, ...], table: str | None, fact: str) -> None:
    write(tmp_path, 2)
    others = ()
    if table is not None:
        (tmp_path / "others.csv").write_text(f"src,dst,bytes,start_s\n{table}\n")
        others = ("background={flows: others.csv, period: 100 s}",)
    with pytest.raises(moesim.ConfigError, match=fact):
        moesim.simulate(moesim.load(tmp_path / "hand.yaml", ("detail=events", *overrides, *others)))
