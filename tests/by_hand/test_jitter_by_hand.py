"""Steps that take a random share more or less: each is as long as without, times a number of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from serving_machine import dense

import moesim
from moesim.sections import EngineOptions

FIRST, SECOND, THIRD = 146, 154, 162  # seconds of a prompt's only token and of two decodes (test_islands_by_hand)
TINY = Path(__file__).resolve().parents[1] / "data" / "tiny.yaml"


def factors(jitter: float, seed: int, island: int, n: int) -> np.ndarray:
    """Return *n* lognormal numbers of mean 1 and standard deviation *jitter*, drawn all at once."""
    variance = np.log(1 + jitter**2)
    return np.random.default_rng([seed, island]).lognormal(-variance / 2, np.sqrt(variance), n)


def test_every_step_takes_its_own_share(tmp_path: Path) -> None:
    """Three tokens, one after the other, on each of two devices: 146, 154 and 162 s, times what each island drew."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 3)] * 2, 2, "engine.jitter=0.1", "seed=7",
                                   "request_router=round_robin"))
    for island in (0, 1):
        steps = result.steps[result.steps["island"] == island]
        taken = steps["end_s"] - steps["start_s"]
        assert taken.to_numpy() == pytest.approx(np.array([FIRST, SECOND, THIRD]) * factors(0.1, 7, island, 3))
    ends = result.steps.groupby("island")["end_s"].max()
    assert result.requests["finish_s"].to_numpy() == pytest.approx(ends.to_numpy()) and ends[0] != ends[1]
    spans = result.spans[result.spans["device"] == 0]
    busy = (spans["end_s"] - spans["start_s"]).sum()
    assert busy == pytest.approx(result.steps.loc[result.steps["island"] == 0, "end_s"].max()), "phases, too"


def test_the_mean_stays_and_the_spread_is_what_was_asked_for() -> None:
    draw = EngineOptions(jitter=0.05).factors(3, 0)
    drawn = np.array([next(draw) for _ in range(20_000)])
    assert drawn.mean() == pytest.approx(1, abs=4 * 0.05 / np.sqrt(20_000)) and drawn.min() > 0
    assert drawn.std() == pytest.approx(0.05, rel=0.03)


def test_both_engines_draw_the_same_and_a_seed_repeats() -> None:
    def run(*overrides: str) -> moesim.Result:
        return moesim.simulate(moesim.load(TINY, ("engine.jitter=0.02", *overrides)))

    steps, again, events, other = run(), run(), run("detail=events"), run("seed=1")
    pd.testing.assert_frame_equal(steps.requests, again.requests)
    pd.testing.assert_frame_equal(steps.requests, events.requests, rtol=1e-9)
    assert not np.allclose(steps.steps["end_s"].iloc[0], other.steps["end_s"].iloc[0], rtol=1e-4)
    assert any(note.startswith("engine.jitter: ") and "0.02" in note for note in steps.meta["warnings"])
    assert not any("jitter" in note for note in moesim.simulate(moesim.load(TINY)).meta["warnings"])


@pytest.mark.parametrize("wrong", ["-0.01", "1", "nan"])
def test_a_jitter_that_makes_no_sense_is_refused(wrong: str) -> None:
    with pytest.raises(moesim.ConfigError, match=r"engine\.jitter"):
        moesim.load(TINY, (f"engine.jitter={wrong}",))
