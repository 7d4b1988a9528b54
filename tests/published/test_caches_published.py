"""Published numbers of expert caches: Read-ME's table, ExpertFlow's trend, paging with succinct predictions."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.memory import Events, events_of, replay
from moesim.synthetic import GateParameters, SyntheticTrace
from moesim.trace import RoutingTrace

# Read-ME (arXiv 2410.19123), Table 4: hit ratio in % at capacities 2 to 5
READ_ME = {"random": (34.19, 50.14, 67.52, 82.91), "lru": (33.90, 52.42, 66.95, 83.48),
           "belady": (44.16, 61.82, 77.21, 88.03)}


@pytest.fixture(scope="module")
def uniform() -> Events:
    """Requests for one of six experts, uniform and independent: six is what its random row says (capacity / 6)."""
    return events_of([{e} for e in np.random.default_rng(1).integers(0, 6, 40_000).tolist()])


@pytest.mark.parametrize("policy", ["random", "lru"])
def test_read_me_without_memory(uniform: Events, policy: str) -> None:
    found = [100 * replay(uniform, policy, capacity).hit_ratio for capacity in (2, 3, 4, 5)]
    assert np.abs(np.array(found) - READ_ME[policy]).max() < 2.5


def test_read_me_belady_sees_two_to_four_requests(uniform: Events) -> None:
    def row(**options: object) -> np.ndarray:
        policy = {"name": "belady"} | options
        return np.array([100 * replay(uniform, policy, capacity).hit_ratio for capacity in (2, 3, 4, 5)])

    two, four = (row(bypass=False, window=w) for w in (2, 4))
    assert (two < READ_ME["belady"]).all() and (four > READ_ME["belady"]).all()
    full, free = row(bypass=False), row()
    # An independent simulation of the same requests: 49.9 69.3 82.8 92.7 and 57.4 72.7 84.3 93.2
    assert full == pytest.approx([49.9, 69.3, 82.8, 92.7], abs=0.6)
    assert free == pytest.approx([57.4, 72.7, 84.3, 93.2], abs=0.6)


def test_read_me_batches_by_expert() -> None:
    """5.08 distinct experts per batch when tokens come first in, first out, 3.51 by expert. 71 % of tokens
    repeat the last one's expert; sizes are not published: 12 tokens of 18 that wait."""
    rng = np.random.default_rng(0)
    used = rng.integers(0, 6, (80, 40))
    for t in range(1, 40):
        used[:, t] = np.where(rng.random(80) < 0.71 - 0.29 / 5, used[:, t - 1], used[:, t])
    trace = RoutingTrace.from_arrays(used.reshape(-1, 1, 1), 6, 1, request=np.arange(80).repeat(40), phase=1)
    mean = {aware: np.diff(events_of(trace, {"name": "expert_aware", "size": 12, "waiting": 18,
                                             "by_expert": aware}).starts).mean() for aware in (False, True)}
    assert mean[False] == pytest.approx(5.08, abs=0.3) and mean[True] == pytest.approx(3.51, abs=0.4)


def test_expertflow_falls_less_than_lru() -> None:
    """arXiv 2410.17954, Fig. 10: Switch-32, 16 slots, batch 4 to 16: PLEC 91.9 to 85.9 %, LRU 76.6 to 58.4 %."""
    # Each request has favourites of its own: at batch 4 LRU is where it was published
    gate = GateParameters(sigma_b=0.0, a=0.0, s=0.0, sigma_d=2.0, domains=64)
    trace = SyntheticTrace(parameters=gate, requests=64, prompt_tokens=0, output_tokens=64, layers=12, experts=32,
                           top_k=1).generate()
    predictor = {"name": "rpp", "recall": 0.92}
    lru, plec = ([100 * replay(trace, policy, 16, batch=b, prefetcher=ahead).hit_ratio for b in (4, 16)]
                 for policy, ahead in (("lru", "none"), ("plec", predictor)))
    assert 13 < lru[0] - lru[1] < 23 and plec[0] - plec[1] < 8, (lru, plec)
    assert 15 <= plec[0] - lru[0] < plec[1] - lru[1] <= 36 and plec[1] > 85
