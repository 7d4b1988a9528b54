"""The synthetic generator: labelled, shaped as asked, as skewed and correlated as the real gates it imitates."""

from __future__ import annotations

import numpy as np
import pytest

from moesim import trace_stats
from moesim.synthetic import PRESETS, GateParameters, SyntheticTrace

STATISTICS = ["load_max_over_mean", "entropy_normalised", "affinity_fraction", "next_top1_hit", "overlap"]
# Means over layers 4-13 of real traces: GPT-OSS-20B decode (167 requests), DeepSeek-V2-Lite (four ESFT domains).
REAL = {"gpt_oss_20b": [2.95, 0.906, 0.337, 0.406, 0.503], "dsv2_lite": [2.87, 0.969, 0.413, 0.358, 0.313]}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_five_statistics_are_within_ten_percent_of_the_real_gates(preset: str) -> None:
    found = [trace_stats.per_layer(SyntheticTrace(preset=preset, requests=40, prompt_tokens=100, output_tokens=150,
                                                  seed=seed).generate()).mean()[STATISTICS] for seed in range(2)]
    assert np.mean(found, axis=0) == pytest.approx(REAL[preset], rel=0.1)


def test_the_statistics_do_not_move_with_the_number_of_requests() -> None:
    few, many = (trace_stats.per_layer(SyntheticTrace(preset="gpt_oss_20b", requests=n, layers=8).generate()).mean()
                 for n in (20, 80))
    assert few[STATISTICS].to_numpy() == pytest.approx(many[STATISTICS].to_numpy(), rel=0.1)


def test_rows_are_requests_with_their_prompts_and_outputs() -> None:
    recipe = SyntheticTrace(preset="dsv2_lite", requests=3, prompt_tokens=(2, 1, 0), output_tokens=(1, 0, 2), layers=2)
    trace = recipe.generate()
    assert trace.tokens["request"].tolist() == [0, 0, 0, 1, 2, 2]
    assert trace.tokens["phase"].tolist() == [0, 0, 1, 0, 1, 1]
    assert trace.tokens["position"].tolist() == [0, 1, 2, 0, 0, 1]
    assert trace.tokens["step"].tolist() == [0, 0, 2, 0, 0, 1]
    assert trace.tokens["domain"].tolist() == ["synthetic_0"] * 3 + ["synthetic_1"] + ["synthetic_2"] * 2
    assert (trace.n_layers, trace.n_experts, trace.top_k, trace.n_ranked) == (2, 64, 6, 6)


def test_the_label_is_there_and_says_how_to_repeat_it() -> None:
    trace = SyntheticTrace(preset="gpt_oss_20b", requests=2, layers=1, seed=5).generate()
    assert trace.meta["synthetic"] is True and trace.meta["model"] == "synthetic (gpt_oss_20b)"
    assert trace.meta["generator"] == {"name": "gumbel_top_k", "seed": 5, "sigma_b": 0.86, "a": 2.2, "s": 1.53,
                                       "sigma_d": 1.4, "domains": 10}


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    one, same, other = (SyntheticTrace(preset="gpt_oss_20b", requests=4, layers=3, seed=seed).generate()
                        for seed in (1, 1, 2))
    assert one.probs is not None and same.probs is not None
    assert (one.experts == same.experts).all() and one.probs.tobytes() == same.probs.tobytes()
    assert (one.experts != other.experts).any()


def test_without_any_parameter_routing_is_uniform() -> None:
    gate = GateParameters(sigma_b=0, a=0, s=0, sigma_d=0)
    recipe = SyntheticTrace(parameters=gate, requests=50, prompt_tokens=400, output_tokens=0, layers=2, experts=8,
                            top_k=2)
    counts = recipe.generate().counts()
    mean = 50 * 400 * 2 / 8
    assert abs(counts - mean).max() < 5 * (mean * 0.75) ** 0.5  # five standard deviations of a binomial


def test_a_gate_without_preferences_chooses_any_experts_in_any_order() -> None:
    gate = GateParameters(sigma_b=0, a=0, s=0, sigma_d=0, domains=1)
    trace = SyntheticTrace(parameters=gate, requests=1, prompt_tokens=6000, output_tokens=0, layers=10, experts=5,
                           top_k=3).generate()
    assert trace.probs is None and trace.meta["generator"]["name"] == "uniform"
    orders, counts = np.unique(trace.experts.reshape(-1, 3), axis=0, return_counts=True)
    assert len(orders) == 5 * 4 * 3 and all(len(set(order)) == 3 for order in orders.tolist())
    assert abs(counts - 1000).max() < 5 * 1000 ** 0.5  # five standard deviations


def test_any_experts_of_the_most_that_there_may_be() -> None:
    gate = GateParameters(sigma_b=0, a=0, s=0, sigma_d=0, domains=1)
    trace = SyntheticTrace(parameters=gate, requests=1, prompt_tokens=2000, layers=1, experts=65536, top_k=2).generate()
    assert trace.experts.min() < 1000 and trace.experts.max() > 64_000
    every = SyntheticTrace(parameters=gate, requests=1, prompt_tokens=9, layers=2, experts=4, top_k=4).generate()
    assert (np.sort(every.experts) == np.arange(4)).all()


@pytest.mark.parametrize("name", ["sigma_b", "sigma_d", "a", "s"])
def test_each_parameter_does_what_it_is_for(name: str) -> None:
    def statistics(value: float) -> dict:
        gate = GateParameters(**({"sigma_b": 0.5, "a": 0.5, "s": 0.5, "sigma_d": 0.5, "domains": 4} | {name: value}))
        trace = SyntheticTrace(parameters=gate, requests=24, layers=4, experts=16, top_k=2).generate()
        table = trace_stats.per_layer(trace)[1:].mean()
        one = trace_stats.load_imbalance(trace.of_domain("synthetic_0")).mean()
        return {"sigma_b": table["load_max_over_mean"], "sigma_d": one, "a": table["affinity_nat"],
                "s": table["overlap"] - table["overlap_independent"]}

    assert statistics(2.0)[name] > 1.2 * statistics(0.0)[name]


@pytest.mark.parametrize(("options", "message"), [
    ({}, "needs either preset or parameters, not both and not neither; presets: gpt_oss_20b, dsv2_lite"),
    ({"preset": "gpt_oss20b"}, "unknown preset 'gpt_oss20b'; did you mean 'gpt_oss_20b'?"),
    ({"parameters": {"sigma_b": 1, "a": 1, "s": 1, "sigma_d": 1}, "layers": 2}, "with its own parameters needs "
     "experts, top_k too"),
    ({"preset": "gpt_oss_20b", "top_k": 33}, "top_k is 33 but there are 32 experts"),
    ({"preset": "gpt_oss_20b", "prompt_tokens": [1, 2]}, "prompt_tokens has 2 entries but there are 32 requests"),
    ({"preset": "gpt_oss_20b", "output_tokens": -1}, "output_tokens of request 0 is -1; a length is 0 or more"),
    ({"preset": "gpt_oss_20b", "prompt_tokens": 0, "output_tokens": 0}, "request 0 has neither prompt nor output "
     "tokens"),
    ({"preset": "gpt_oss_20b", "reqests": 3}, "reqests"),
])
def test_impossible_descriptions_are_refused_at_once(options: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        SyntheticTrace(**options)
    assert message in str(error.value)
