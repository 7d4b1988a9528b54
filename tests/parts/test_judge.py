"""What ``judge`` and ``moesim place`` say of a placement: on what it saw, on what it did not, on domains never seen.

Four experts, two devices, two layers, top-1. In domain a experts 0 and 2 are followed by 0 and 2, 1 and 3 by 1 and 3;
in domain b it is the other way about: 0 and 2 are followed by 1 and 3. Each pair is as frequent as any other, so in
linear order (0 and 1 on one device) half of the tokens cross in both domains. A request of b has twice the tokens of
one of a: what is fitted on both keeps b together and parts all of a.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from moesim.cli import app
from moesim.placement import Placement, PlacementError, evaluate, judge, solve
from moesim.trace import RoutingTrace

QUICK = {"name": "joint", "restarts": 2, "perturbations": 20}
TOGETHER = {"a": ((0, 2), (0, 2), (1, 3), (1, 3)), "b": ((0, 2), (1, 3), (1, 3), (0, 2))}


def labelled(requests: int = 8, domains: tuple[str, ...] = ("a", "b")) -> RoutingTrace:
    """Return requests that are of the *domains* in turn."""
    rows, request, domain = [], [], []
    for number in range(requests):
        name = domains[number % len(domains)]
        first, second, third, fourth = TOGETHER[name]
        pairs = [(i, j) for i in first for j in second] + [(i, j) for i in third for j in fourth]
        rows += pairs * (2 if name == "b" else 1)
        request += [number] * (len(rows) - len(request))
        domain += [name] * (len(rows) - len(domain))
    return RoutingTrace.from_arrays(np.array(rows)[:, :, None], 4, 1, request=request, domain=domain)


def crossing(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return cross_top1 of each row by its two names."""
    return dict(zip(zip(table["judged_on"], table["placement"], strict=True), table["cross_top1"], strict=True))


def test_a_domain_never_seen_is_worse_than_linear_order() -> None:
    trace = labelled()
    answer, table = judge(trace, 2, QUICK)
    found = crossing(table)
    assert list(found)[:4] == [("profile", "fitted"), ("profile", "linear"), ("evaluation", "fitted"),
                               ("evaluation", "linear")]
    assert {key: value for key, value in found.items() if key[0] in "ab"} == {
        ("a", "fitted"): 1, ("a", "fitted without a"): 1, ("a", "linear"): 0.5,
        ("b", "fitted"): 0, ("b", "fitted without b"): 1, ("b", "linear"): 0.5}
    assert np.array_equal(answer.replicas, solve(trace.profile(), 2, QUICK).replicas)


def test_rows_are_of_the_requests_that_they_name() -> None:
    """Requests are kept whole: profile and evaluation share none; a domain's rows are of the evaluation."""
    trace = labelled(requests=12)
    seen, unseen = trace.profile(0.25, 3), trace.evaluation(0.25, 3)
    assert not set(seen.requests) & set(unseen.requests) and len(seen.requests) == 3
    answer, table = judge(trace, 2, "lpt", seed=3, fraction=0.25)
    tokens = table[table["placement"] == "fitted"].set_index("judged_on")["tokens"].to_dict()
    assert tokens == {"profile": seen.n_tokens, "evaluation": unseen.n_tokens,
                      "a": unseen.of_domain("a").n_tokens, "b": unseen.of_domain("b").n_tokens}
    row = table[(table["judged_on"] == "b") & (table["placement"] == "fitted")].iloc[0]
    assert row[["cross_top1", "load_max_over_mean"]].to_dict() == (
        evaluate(answer, unseen.of_domain("b"))[["cross_top1", "load_max_over_mean"]].to_dict())


def test_what_cannot_be_judged_is_left_empty() -> None:
    """One request per domain: each is either seen or judged on, so nothing is known of seen domains."""
    trace = labelled(requests=2)
    (name,) = trace.evaluation().domains()
    (other,) = trace.profile().domains()
    _, table = judge(trace, 2, QUICK)
    assert table[table["judged_on"] == other]["cross_top1"].isna().all()
    found = crossing(table)
    assert np.isnan(found[name, "fitted"]) and found[name, f"fitted without {name}"] == 1


def test_domains_are_judged_on_if_there_are_a_few() -> None:
    def judged(trace: RoutingTrace, domains: bool | None = None) -> set[str]:
        return set(judge(trace, 2, "lpt", domains=domains)[1]["judged_on"]) - {"profile", "evaluation"}

    assert judged(labelled()) == {"a", "b"} and judged(labelled(), domains=False) == set()
    assert judged(labelled(domains=("a",))) == set()
    tokens = np.zeros((36, 1, 1), int)
    many = RoutingTrace.from_arrays(tokens, 4, 1, request=np.arange(36), domain=[f"d{i % 9}" for i in range(36)])
    assert judged(many) == set() and len(judged(many, domains=True)) == 9
    with pytest.raises(PlacementError, match="the trace labels 1 domains; to judge on a domain never seen takes two"):
        judge(labelled(domains=("a",)), 2, domains=True)
    unknown = RoutingTrace.from_arrays(tokens, 4, 1, request=np.arange(36), domain=["x", "unknown"] * 18)
    assert judged(unknown) == set()


def test_options_go_where_they_belong() -> None:
    """The machine is that of all placements, parameters are the solver's; extra solves look for no bound."""
    answer, table = judge(labelled(), 2, QUICK, balance=2.0, capacity=3, devices_per_node=1)
    assert answer.info["solver"]["balance"] == 2.0 and answer.info["capacity"] == 3 and "bound" in answer.info
    assert {"cross_node_top1", "node_fanout"} <= set(table)
    assert "bound" not in judge(labelled(), 2, QUICK, bound=False)[0].info


def test_with_replicas_the_load_of_tokens_that_stay_is_said_too() -> None:
    answer, table = judge(labelled(), 2, QUICK, redundant=2)
    assert "stay_load_max_over_mean" in table and not table["stay_load_max_over_mean"].isna().any()
    linear = table[table["placement"] == "linear"]
    assert (linear["stay_load_max_over_mean"] == linear["load_max_over_mean"]).all()
    assert answer.replicas.sum() > 8 and "stay_load_max_over_mean" not in judge(labelled(), 2, QUICK)[1]


def place(trace: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["place", str(trace), "--devices", "2", *map(str, arguments)])


def test_the_command_prints_the_table(tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.parquet", tmp_path / "p.json"
    labelled().write(trace)
    done = place(trace, "--out", out, "--solver", QUICK)
    assert done.exit_code == 0, done.stderr
    answer, table = judge(labelled(), 2, QUICK)
    assert done.stdout.split() == [*table, *(f"{value:.5g}" if isinstance(value, float) else word for row in
                                             table.to_numpy().tolist() for value in row for word in str(value).split())]
    assert np.array_equal(Placement.load(out).replicas, answer.replicas)
    # The profile has one request of a and three of b: 8 of 56 tokens cross, the devices are even.
    assert done.stderr == ("on the profile cross_top1 + 0.3 x load_max_over_mean is 0.4429; the proved lower bound is "
                           f"0.4429 (gap 0.0%)\nplacement: {out}\n")
    assert "fitted without" not in place(trace, "--no-domains", "--solver", "lpt").stdout
    labelled(domains=("a",)).write(trace)
    wrong = place(trace, "--domains")
    assert (wrong.exit_code, wrong.stdout) == (2, "") and wrong.stderr.startswith("the trace labels 1 domains; to")
