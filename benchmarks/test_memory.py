"""Seconds to replay an expert cache at the size of a real decode trace. Counts are asserted, times reported.

24 layers of 32 experts, 4 of them chosen, 20,000 tokens. An access is one expert of one event. Run: `make bench`.
"""

from __future__ import annotations

from typing import Any

import pytest

from moesim.memory import Events, events_of, replay
from moesim.synthetic import SyntheticTrace


@pytest.fixture(scope="module")
def events() -> Events:
    return events_of(SyntheticTrace(preset="gpt_oss_20b", requests=40, prompt_tokens=0, output_tokens=500).generate())


@pytest.mark.parametrize("policy", ["lru", "lfru", "belady", "mark0"])
@pytest.mark.parametrize("capacity", [8, 16])
def test_replay(benchmark: Any, events: Events, policy: str, capacity: int) -> None:
    stats = benchmark(replay, events, policy, capacity)
    assert stats.union == 20_000 * 24 * 4
