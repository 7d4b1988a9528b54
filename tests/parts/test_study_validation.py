"""Study 05: what it says of its tables, by hand, and which rows of a download it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

MODULES = ("setting", "ablations", "gpt_oss", "figures", "pages")
POINT = {"system": "h200_sxm", "backend": "vllm", "backend_version": "0.18.0", "model_path": "openai/gpt-oss-120b",
         "tp_size": 1, "moe_ep_size": 1, "mode": "agg", "isl": 1024, "osl": 1024, "concurrency": 4,
         "silicon_ttft_ms": 80.0, "silicon_tpot_ms": 6.0}


@pytest.fixture(scope="module")
def study(study_modules: Callable[..., Any], repo: Path) -> Iterator[SimpleNamespace]:
    with study_modules(repo / "studies/05_validation", MODULES) as found:
        yield SimpleNamespace(**found)


def test_a_factor_is_fitted_to_the_other_points(study: SimpleNamespace) -> None:
    """Measured 10, 20, 40; simulated 8, 20, 20: 20, 0 and 50 % off. The others' factors, of 5/4, 1 and 2: for the first
    the root of 1 * 2, for the second that of 5/4 * 2, for the third that of 5/4 * 1.
    """
    rows = pd.DataFrame({"routing": "even", "engine": ["a", "a", "a"], "tpot_ms": [10.0, 20.0, 40.0],
                         "simulated_tpot_ms": [8.0, 20.0, 20.0]})
    found = study.gpt_oss.judged(rows).iloc[0]
    assert found["zero_shot"] == pytest.approx(20)
    off = [abs(2**0.5 * 8 / 10 - 1), abs(2.5**0.5 - 1), abs(1.25**0.5 * 20 / 40 - 1)]
    assert found["one_factor"] == found["by_engine"] == pytest.approx(100 * float(np.median(off)))
    assert found["factor"] == pytest.approx(5 / 4) and found["bias"] == pytest.approx(-20)
    assert found["spearman"] == pytest.approx(0.866, abs=1e-3), "8, 20 and 20: the last two are equal"


def test_points_are_of_the_gpu_the_engine_and_the_model(study: SimpleNamespace, tmp_path: Path) -> None:
    other = [("system", "h100_sxm"), ("backend", "sglang"), ("tp_size", 2), ("model_path", "openai/gpt-oss-20b"),
             ("mode", "disagg"), ("moe_ep_size", 2)]
    rows = [POINT | {"concurrency": 64, "backend_version": None}, POINT, POINT | {"silicon_tpot_ms": 6.0001},
            *(POINT | {name: value, "concurrency": 8} for name, value in other)]
    (tmp_path / "systems").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "systems/silicon_sample.csv", index=False)
    found = study.gpt_oss.published(tmp_path)
    assert found[["concurrency", "engine", "tpot_ms"]].to_numpy().tolist() == [[4, "0.18.0", 6.0],
                                                                              [64, "not recorded", 6.0]]
    with pytest.raises(ValueError, match=r"no silicon_sample.csv; give a clone of ai-dynamo/aiconfigurator"):
        study.gpt_oss.published(tmp_path / "nothing")


def test_the_scenario_of_a_point(study: SimpleNamespace) -> None:
    for routing in study.gpt_oss.ROUTINGS:
        made = study.gpt_oss.scenario(POINT | {"osl": 8192}, routing)
        assert (made.requests.count, made.requests.concurrency, made.scheduler.max_batch) == (8, 4, 4)
        assert made.requests.output_tokens.low == 6553 and made.hardware.n_devices == 1
        assert type(made.kernels).__name__ == "Residual", "what the device names"


def test_replays_are_compared_with_each_other(study: SimpleNamespace) -> None:
    """Replays rank three requests 1 2 3, 1 3 2, 1 2 3: 1 - 6 * 2 / (3 * 8) = 1/2, 1 and 1/2. Errors 1, 3, 5: sd 2.

    The mean of the second and third is 1, 2.5, 2.5: 0.866 with 1 2 3.
    """
    def one(seed: int, run: str, values: list[float]) -> Any:
        errors = pd.DataFrame({"metric": ["ttft"], "statistic": ["mean"], "error_percent": [1.0 + 2 * seed],
                               "spearman": [0.9], "run": run, "left_out": study.ablations.WHOLE, "seed": seed})
        latencies = pd.DataFrame({f"{metric}_simulated_s": values for metric in study.setting.SHOWN})
        return study.ablations.Replay(errors, latencies, 1.0)

    replays = [one(seed, run, values) for run in study.setting.RUNS
               for seed, values in enumerate(([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]))]
    table = study.ablations.table(replays)
    assert table["error_percent"].tolist() == [3, 3] and table["error_sd"].tolist() == pytest.approx([2, 2])
    ceiling = study.ablations.ceiling(replays)
    assert ceiling["spearman"].tolist() == pytest.approx([2 / 3] * 6)
    assert ceiling["ensemble"].tolist() == pytest.approx([(2 * 0.75**0.5 + 0.5) / 3] * 6)


def test_what_is_left_out_makes_a_scenario(study: SimpleNamespace, repo: Path) -> None:
    """Every row of the table is a scenario that loads: names and overrides are those of today's fields."""
    import moesim

    for name in study.setting.RUNS:
        rows = {**study.ablations.ALL, **study.ablations.QWEN} if name == "qwen" else study.ablations.ALL
        for overrides in rows.values():
            profile = "profile={name: llmservingsim, path: somewhere}"
            moesim.load(repo / f"studies/05_validation/{name}.yaml", [profile, *overrides, *study.setting.jittered(3)])


def test_the_readme_says_what_the_tables_say(study: SimpleNamespace, repo: Path) -> None:
    folder = repo / "studies/05_validation"
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("errors", "ablations", "ceiling", "gpt_oss")}
    assert study.pages.words(tables) in (folder / "README.md").read_text(encoding="utf-8")
