"""Experts fetched ahead of use, worked on paper (machine: ``serving_machine``): three layers, one place each.

An expert has 12 bytes; the link to the host moves 0.04 bytes/s: 300 s. From a layer's experts to the next layer's wait
there are 20 (experts) + 88, 96 or 104 (attention of step 0, 1, 2) + 54 (gate) seconds; before the first wait of a step
attention and gate, behind the last one 20 + 16 (head). What begins to come meanwhile slows kernels by 1 s a byte: 12 s.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from serving_machine import scenario
from test_offload_by_hand import host

import moesim
from moesim.config import ConfigError
from moesim.sim.arrivals import Lines
from moesim.sim.caches import Loaded
from moesim.sim.coming import Coming, Wanted
from moesim.sim.cost import StepCost

SLOW = host("bandwidth: 0.04 B/s")
CHOSEN = {"prompt": [[[0], [1], [2]]], "decode": [[[1], [1], [3]], [[1], [2], [2]]], "devices": [[0, 1, 2, 3]]}


def run(folder: Path, cache: str, *overrides: str, ids: tuple[int, ...] = ()) -> pd.DataFrame:
    """Return the steps of one request: a prompt of one token and two decodes; *ids* of the tokens of both requests."""
    made = scenario(folder, [(0, 1, 3)], CHOSEN, SLOW, f"cache={{capacity: 1, {cache}}}", *overrides)
    if ids:
        tokens = [*CHOSEN["prompt"], *CHOSEN["decode"]]
        moesim.RoutingTrace.from_arrays(tokens * 2, 4, 1, request=[0, 0, 0, 1, 1, 1], position=[0, 1, 2] * 2,
                                        phase=[0, 1, 1] * 2, token_id=ids, model="hand").write(folder / "trace.parquet")
    return moesim.simulate(made).steps


def test_without_a_prefetcher_every_miss_takes_its_time(tmp_path: Path) -> None:
    steps = run(tmp_path, "prefetcher: none")
    assert steps["fetch_s"].tolist() == [900, 600, 600] and steps["expert_misses"].tolist() == [3, 2, 2]


def test_a_route_that_is_known_as_the_pass_begins(tmp_path: Path) -> None:
    """Letters are layers. a0 comes from 0 to 300, b1 to 600, c2 to 900; waits end there, 158 + 138 + 138 s.

    Step 1 begins at 936: a1 until 1236 (layer 0 is there at 1098: with the 12 s it loses 150), b1 is there, c3 comes
    from 1236 to 1536, while layer 1 computes (12). Step 2 begins at 1624: a1 is there (b2 begins to come: 12), so is b2
    at 1924 (c2 begins: 12); layer 2 asks at 2162 and has c2 at 2224 (62).
    """
    steps = run(tmp_path, "prefetcher: {name: rpp, recall: 1.0, horizon: 3}")
    assert steps["fetch_s"].tolist() == pytest.approx([158 + 138 + 138, 150 + 12, 12 + 12 + 62])
    assert steps["end_s"].tolist() == pytest.approx([936, 1624, 2260])
    assert steps["late_ahead"].tolist() == [3, 1, 1] and steps["unused_ahead"].tolist() == [0, 0, 0]
    assert steps["prefetched_bytes"].tolist() == [36, 24, 24] and steps["expert_misses"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("chunk", "waits", "end"), [
    ("12 B", 442 + 300 + 122, 3156), ("4 B", 342 + 300 + 122, 3056)])
def test_a_wrong_guess_is_in_the_way(tmp_path: Path, chunk: str, waits: float, end: float) -> None:
    """The second decoded token has the prompt's id, whose tokens used a0, b1 and c2: a0 takes the place of a1.

    Step 1: c3 is asked for as layer 1 asks (1406) and waited for (1588 to 1706). Step 2 begins at 1742 with a0. Layer 0
    asks for a1 at 1912: whole, a0 ends at 2042, a1 at 2342; in chunks of 100 s, two have begun (8 s lost), the second
    ends at 1942, a1 at 2242, and the rest of a0 never comes. Layer 1 misses b2 (300). Then comes c2: 12 s lost, then
    110 to wait; or two of three chunks have begun, 8 s lost and 114 to wait.
    """
    steps = run(tmp_path, f"prefetcher: token_id, prefetch_chunk: {chunk}", ids=(7, 8, 7, 7, 8, 9))
    assert steps["fetch_s"].tolist()[2] == pytest.approx(waits) and steps["end_s"].tolist()[2] == pytest.approx(end)
    assert steps["expert_misses"].tolist() == [0, 0, 2] and steps["expert_hits"].tolist() == [3, 3, 1]
    assert steps["unused_ahead"].tolist() == [0, 0, 1] and steps["late_ahead"].tolist() == [3, 2, 1]
    assert steps["prefetched_bytes"].tolist() == [36, 24, 24] and steps["fetched_bytes"].tolist() == [36, 24, 48]


class Everything:
    """Caches of one holder, in which everything is by the end of a step."""

    shape = 1, 1, 2

    def holds(self, layer: np.ndarray, holder: np.ndarray, slot: np.ndarray) -> np.ndarray:
        return np.ones(len(layer), bool)


def test_what_was_missed_while_on_its_way_does_not_come_twice() -> None:
    """One layer without work, 1 byte/s, 12 bytes in chunks of 3: step 0 asks for slot 1 and does not use it.

    At 3 s it has one chunk. Step 1 misses it (it had left, and is back afterwards): 12 s on demand. At 20 s step 2
    finds it, and nothing is on its way any more.
    """
    lines = Lines(np.array([1]), np.array([1]), np.array([1]), np.array([[0.0, 1.0, 0.0, 12.0]]), 4, 0.0)
    coming = Coming(lines, 1, np.array([0]), Everything(), 1)  # type: ignore[arg-type]
    none, one = np.zeros((4, 0), np.int64), np.array([[0], [0], [0], [1]])

    def waits(now: float, slot: int, missed: float, loaded: np.ndarray) -> tuple[float, int]:
        used = np.arange(2)[None, None] == slot
        share = used * missed
        level = (share > 0).astype(np.int64)
        level[:, :, 1] |= loaded.shape[1]
        wait_s, late = coming.waits(StepCost.empty(1, 1), Wanted(used, share, level, Loaded(*loaded)), now)
        return wait_s.item(), late

    assert waits(0, 0, 0.0, one) == (0, 0)
    assert waits(3, 1, 1.0, none) == (12, 0)
    assert waits(20, 1, 0.0, none) == (0, 0)


@pytest.mark.parametrize(("part", "message"), [
    ("eam", "cache.prefetcher: eam compares whole requests, which only a replay has; use token_id"),
    ("{name: oracle, window: 2}", "cache.prefetcher: window 2 of oracle goes on into the next pass"),
    ("token_id", "cache.prefetcher: token_id: fit has no token id in row 0; capture one with token ids"),
    ("none, prefetch_chunk: 4 B", "prefetch_chunk is of copies that a prefetcher asks for, and there is none; give"),
])
def test_prefetchers_that_need_what_a_run_has_not(tmp_path: Path, part: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        run(tmp_path, f"prefetcher: {part}")
    assert message in str(error.value)
