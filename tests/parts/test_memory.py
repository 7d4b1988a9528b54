"""Expert caches: wrong input is answered with what is wrong and what to do; the command; its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from moesim import registry
from moesim.cli import app
from moesim.memory import CacheError, compare, label, replay
from moesim.trace import RoutingTrace

SETS = [{1, 2}, {0, 1}]


def trace(**more: Any) -> RoutingTrace:
    chosen = np.array([[[0, 1], [2, 3]], [[0, 2], [2, 1]], [[3, 2], [0, 1]], [[0, 1], [2, 3]]])
    return RoutingTrace.from_arrays(chosen, 4, 2, request=[0, 0, 1, 1], phase=1, **more)


@pytest.mark.parametrize(("options", "message"), [
    ({"capacity": 1}, r"capacity is 1, but pass 0 uses 2 at once in layer 0; give at least that, or overflow='stream'"),
    ({"capacity": 0}, "capacity is 0; give a number of experts from 1"),
    ({"capacity": 2.5}, "capacity is 2.5; give a number of experts"),
    ({"capacity": True}, "capacity is True"),
    ({"capacity": "5%"}, "0 of 3 experts; give a share that leaves room for at least one"),
    ({"capacity": "120%"}, "100% at most"),
    ({"capacity": "x%"}, "write a share as '25%'"),
    ({"capacity": "2 GB"}, "a size; give expert_bytes="),
    ({"capacity": "2 furlong", "expert_bytes": 3}, "capacity: .*furlong"),
    ({"capacity": "2 B", "expert_bytes": 3}, "for 1 caches, but one expert takes 3 B"),
    ({"capacity": "4 B", "expert_bytes": 3}, "capacity is 4, but pass 0 uses 6 at once"),
    ({"batch": 2}, "batch is 2, but these events are put together already; give a routing trace, or no batch"),
    ({"expert_bytes": -3}, "expert_bytes is -3; give bytes from 1"),
    ({"expert_bytes": [1, 2]}, r"one per layer \(1\)"),
    ({"contract": "events"}, "contract is 'events'; did you mean 'event'"),
    ({"scope": "globl"}, "scope is 'globl'; did you mean 'global'"),
    ({"overflow": "drop"}, "overflow is 'drop'; known: refuse, stream"),
    ({"prefetch": "oracle"}, "no option 'prefetch'; did you mean 'prefetcher'"),
    ({"policy": "static"}, r"static learns from requests that it does not replay; give fit="),
    ({"policy": "static", "fit": [{7}]}, "fit has other layers or experts"),
    ({"policy": "eam"}, "eam needs to know which request asks; give a routing trace"),
    ({"prefetcher": "eam"}, "eam needs to know which request asks"),
    ({"prefetcher": "token_id"}, "token_id learns from requests"),
    ({"prefetcher": "token_id", "fit": SETS}, "token_id needs the ids of tokens; give a routing trace"),
    ({"policy": "hobbit"}, "the trace has no probabilities; capture one with them, or give the third of weights as 0"),
    ({"contract": "sequential", "prefetcher": {"name": "oracle", "window": 2}}, "loads for one layer ahead only"),
])
def test_wrong_replays(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CacheError, match=message):
        replay(**{"events": SETS, "policy": "lru", "capacity": 2} | options)


@pytest.mark.parametrize(("options", "message"), [
    ({"policy": "lur"}, "unknown cache policy 'lur'; did you mean 'lru'"),
    ({"prefetcher": {"name": "rpp", "recall": -0.1}}, "rpp: recall: .*greater than or equal to 0, got -0.1"),
    ({"prefetcher": {"name": "next_layer_gate", "recall": 1.5}}, "recall: .*less than or equal to 1"),
    ({"prefetcher": {"name": "rpp", "precision": 0.0}}, "precision: .*greater than 0"),
    ({"policy": {"name": "mark0", "missed": 2.0}}, "missed: .*less than or equal to 1"),
    ({"policy": {"name": "belady", "window": -1}}, "window: .*greater than or equal to 0"),
    ({"batch": 0}, "size: .*greater than or equal to 1, got 0"),
    ({"batch": "statik"}, "unknown batching 'statik'; did you mean 'static'")])
def test_wrong_parts(options: dict[str, Any], message: str) -> None:
    with pytest.raises(registry.UnknownPart, match=message):
        replay(**{"events": trace(), "policy": "lru", "capacity": 2} | options)


def test_wrong_events() -> None:
    with pytest.raises(CacheError, match="there is no key in the events"):
        replay([], "lru", 2)
    with pytest.raises(CacheError, match="keys of events must be of one kind that can be sorted"):
        replay([{1, "a"}], "lru", 2)
    with pytest.raises(CacheError, match="scope is 'layer', but the keys do not say their layer"):
        replay(SETS, "lru", 2, scope="layer")
    with pytest.raises(CacheError, match="token_id: fit has no token id in row 0"):
        replay(trace(token_id=3), "lru", 2, prefetcher="token_id", fit=trace())
    with pytest.raises(CacheError, match="jobs is 0"):
        compare(SETS, ["lru"], [2], jobs=0)
    with pytest.raises(CacheError, match=r"capacities are \[\]; give a list of at least one"):
        compare(SETS, ["lru"], [])
    with pytest.raises(CacheError, match="batches are 4; give a list of at least one"):
        compare(SETS, ["lru"], [2], 4)
    with pytest.raises(CacheError, match="events are 'trace.parquet'; give what moesim.read_trace"):
        replay("trace.parquet", "lru", 2)
    with pytest.raises(CacheError, match="capacity is 'nan%'; write a share as '25%'"):
        replay(SETS, "lru", "nan%")


def test_hobbit_keeps_what_mattered() -> None:
    # Expert 0 is half of what its token chose, 1 and 2 are less: with that alone, 0 stays.
    probs = np.array([[[0.5, 0.4]], [[0.5, 0.4]], [[0.5, 0.4]]])
    asked = RoutingTrace.from_arrays(np.array([[[0, 1]], [[0, 2]], [[0, 1]]]), 3, 2, probs=probs, phase=1)
    only_high = {"name": "hobbit", "weights": [0.0, 0.0, 1.0, 0.0], "high": 0.5}
    assert replay(asked, only_high, 2).hits == 2
    assert label(registry.make("cache_policy", only_high)) == "hobbit(weights=(0.0, 0.0, 1.0, 0.0), high=0.5)"


def test_events_are_put_together_once() -> None:
    from moesim.memory import events_of

    whole = events_of(trace(), 2)
    assert replay(whole, "lru", 4).to_dict() == replay(trace(), "lru", 4, batch=2).to_dict()
    with_fit = [replay(asked, "static", 4, fit=trace(), **more)
                for asked, more in ((whole, {}), (trace(), {"batch": 2}))]
    assert with_fit[0].to_dict() == with_fit[1].to_dict() and with_fit[0].misses == 0
    assert replay([{np.int64(1)}, set(), [1, 1]], "lru", 1).to_dict()["hits"] == 1
    assert replay([{(np.int64(0), 1)}, {(1, 1)}], "lru", 1, scope="layer").layer_misses.tolist() == [1, 1]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["cache", *map(str, arguments)])


@pytest.fixture(scope="module")
def shipped(repo: Path) -> Path:
    return repo / "workloads/traces/reference-moe.parquet"


def test_the_command_prints_a_table(shipped: Path, tmp_path: Path) -> None:
    done = call(shipped, "--policy", "[lru, static]", "--capacity", "50%", "--batch", "4", "--expert-bytes", "1 MB",
                "--prefetcher", "next_layer_gate", "--out", tmp_path / "a" / "t.csv")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["lru", "static", "belady", "belady(bypass=False)"]
    assert "loaded_ahead" in lines[0] and "bytes_per_token" in lines[0]
    assert "contract event, scope layer, prefetcher next_layer_gate" in done.stderr
    assert "of the misses of" in done.stderr and "need not be" in done.stderr
    table = pd.read_csv(tmp_path / "a/t.csv")
    assert len(table) == 4 and {"gap", "admission_share", "contract", "oracle"} <= set(table.columns)
    assert table["oracle"].all()  # the prefetcher is one
    assert table["policy_oracle"].tolist() == [False, False, True, True] and set(table["best_causal"]) == {"static"}


@pytest.mark.parametrize(("arguments", "message"), [
    (["--policy", "lur"], "did you mean 'lru'"),
    (["--capacity", "2", "--overflow", "refuse", "--batch", "8"], "--overflow stream"),
    (["--contract", "x"], "contract is 'x'"), (["--phase", "train"], "unknown phase 'train'"),
    (["--profile-fraction", "0", "--policy", "static"], "--profile-fraction above 0"),
    (["--policy", "[lru"], "not a YAML value")])
def test_the_command_says_what_is_wrong(shipped: Path, arguments: list[str], message: str) -> None:
    done = call(shipped, "--batch", "1", "--capacity", "4", *arguments)
    assert done.exit_code == 2 and message in done.stderr, done.stderr
