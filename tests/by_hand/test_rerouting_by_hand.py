"""Choices changed by what is resident, worked on paper: a trace of five tokens, and a machine of one or two devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_machine import REPEATS, scenario

import moesim
from moesim.config import ConfigError
from moesim.memory import CacheError, compare, replay
from moesim.trace import RoutingTrace

PROBS = [0.5, 0.25, 0.125, 0.0625]  # by rank; the best two have 0.75, five tokens 3.75
RANKED = [[0, 1, 2, 3], [2, 3, 1, 0], [0, 2, 1, 3], [3, 1, 2, 0], [1, 0, 3, 2]]
HOST = ("hardware.host=[{name: host, capacity: 1 kB, bandwidth: 100 B/s, "
        "link: {bandwidth: 0.5 B/s, setup: 1 s}}]")  # an expert has 12 bytes: 25 s


def trace(ranked: Any = RANKED, **more: Any) -> RoutingTrace:
    experts = np.array(ranked)[:, None]
    return RoutingTrace.from_arrays(experts, 4, 2, phase=1, probs=np.tile(PROBS, (len(experts), 1, 1)), **more)


def part(keep: int = 1, window: int | None = None) -> dict[str, Any]:
    return {"name": "cache_conditional", "keep": keep, "window": window}


# Room for two, least recently used. In brackets what is used, * for what is missed:
# none          [0*1*] [2*3*] [0*2 ] [3*1*] [1 0*]
# keep 1        [0*1*] [2*1 ] [0*2 ] [3*2 ] [1*3 ]   1 for 3, 2 for 1, 3 for 0: each time rank 2 for rank 1
# keep 0        [0*1*] [1 0 ] [0 1 ] [1 0 ] [1 0 ]   ranks 2 3, 0 2, 1 3, 0 1
# keep 0 of 3   [0*1*] [1 2*] [2 1 ] [1 2 ] [1 0*]   ranks 0 2, 1 2, 1 2, 0 1
@pytest.mark.parametrize(("asked", "hits", "swapped", "given_up"), [
    ("none", 2, 0, 0.0), (part(2), 2, 0, 0.0), (part(1, 2), 2, 0, 0.0),
    (part(1), 4, 3, 3 * 0.125), (part(1, 3), 4, 3, 3 * 0.125),
    (part(0), 8, 2 + 1 + 1, 0.5625 + 0.125 + 0.4375), (part(0, 3), 6, 3, 0.125 + 0.375 + 0.375)], ids=str)
def test_five_tokens(asked: Any, hits: int, swapped: int, given_up: float) -> None:
    found = replay(trace(), "lru", 2, reroute=asked)
    assert (found.hits, found.misses, found.swapped, found.swapped_share) == (hits, 10 - hits, swapped, swapped / 10)
    assert found.given_up == pytest.approx(given_up / 3.75, abs=1e-12)
    assert found.to_dict()["reroute"] == ("none" if asked == "none" else "cache_conditional")


def test_less_is_missed_than_belady_misses_of_what_was_chosen() -> None:
    """Belady of the gates' choices hits 4 of 10: 0 and 2 of the third token, 1 and 0 of the fifth."""
    table = compare(trace(), ["lru"], [2], reroute=part(0)).set_index("policy")
    assert table["hits"].to_dict() == {"lru": 8, "belady": 4, "belady(bypass=False)": 4}
    assert table["reroute"].to_dict() == {"lru": "cache_conditional", "belady": "none", "belady(bypass=False)": "none"}
    assert table["gap"].unique().tolist() == [(2 - 6) / 2]
    assert table[["victim_share", "admission_share"]].isna().all().all()


def test_tokens_of_a_pass_see_the_same() -> None:
    """1 2 0 3 beside 0 1 2 3: nothing is there for either, though the first loads 0, which the second would use."""
    both = trace([[0, 1, 2, 3], [1, 2, 0, 3]], request=[0, 1])
    together, after = (replay(both, "lru", 3, batch=batch, reroute=part()) for batch in (2, 1))
    assert (together.misses, together.swapped, together.union) == (3, 0, 3)
    assert (after.misses, after.swapped, after.union) == (2, 1, 4)


@pytest.mark.parametrize(("events", "options", "fact"), [
    ([{1, 2}], {}, "reroute needs the ranked candidates of tokens; give a routing trace"),
    (trace(), {"contract": "sequential"}, "has no such moment; use the contract 'event'"),
    (trace(), {"prefetcher": "oracle"}, "the prefetcher oracle expects choices that rerouting changes; use none"),
    (trace(), {"policy": "belady"}, "reroute changes what comes: belady looks at what has not happened yet"),
    (trace(), {"policy": "mark0"}, "reroute changes what comes: mark0 looks at"),
    (trace(), {"policy": "eam"}, "reroute changes what comes: eam looks at"),
    (trace(), {"reroute": part(3)}, "keep is 3, but a token uses 2 experts; give 0 to 2"),
    (trace(), {"reroute": part(1, 1)}, "window is 1, but a token uses 2 experts; give 2 at least"),
    (trace(), {"reroute": part(1, 5)}, "window is 5, but the trace ranks 4 candidates of a token (top_k is 2); give 4"),
    (RoutingTrace.from_arrays([[[0, 1]], [[2, 3]]], 4, 2, probs=[[PROBS[:2]], [PROBS[:2]]]), {},
     "the trace ranks no candidates beyond the 2 that each token uses"),
    (RoutingTrace.from_arrays([[[0, 1, 2]], [[2, 3, 1]]], 4, 2), {}, "the trace has no gate probabilities, so nobody"),
], ids=lambda value: str(value) if isinstance(value, dict) else None)
def test_what_cannot_be_rerouted(events: Any, options: dict[str, Any], fact: str) -> None:
    asked = {"policy": "lru", "capacity": 2, "reroute": part()} | options
    with pytest.raises(CacheError) as error:
        replay(events, **asked)
    assert fact in str(error.value)


def made(folder: Path, chosen: dict[str, list], *overrides: str) -> moesim.Scenario:
    """Return the scenario of one request on the hand machine, top-1; of every *chosen* list the rest is candidates."""
    top = {name: [[layer[:1] for layer in token] for token in chosen[name]] for name in ("prompt", "decode")}
    steps = len(chosen["decode"])
    found = scenario(folder, [(0, 1, 1 + steps)], chosen | top, HOST, *overrides)
    ranked = np.array([*chosen["prompt"], *chosen["decode"]] * REPEATS)
    RoutingTrace.from_arrays(
        ranked, sum(map(len, chosen["devices"])), 1, request=np.repeat(np.arange(REPEATS), 1 + steps),
        position=list(range(1 + steps)) * REPEATS, phase=[0, *[1] * steps] * REPEATS, model="hand",
        probs=np.broadcast_to(PROBS[:ranked.shape[2]], ranked.shape)).write(folder / "trace.parquet")
    return found


# Best and second choice of two layers. Room for two of three: layer 0 uses 0* 0 2* 2 0, layer 1 uses 2* 2 2 1* 1.
TWO_LAYERS = {"prompt": [[[0, 1], [2, 0]]], "devices": [[0, 1, 2]],
              "decode": [[[1, 0], [2, 0]], [[2, 1], [0, 2]], [[1, 2], [1, 0]], [[0, 1], [1, 0]]]}


@pytest.mark.parametrize("detail", ["steps", "events"])
def test_steps(tmp_path: Path, detail: str) -> None:
    cache = "cache={capacity: 2, reroute: {name: cache_conditional, keep: 0}}"
    result = moesim.simulate(made(tmp_path, TWO_LAYERS, cache, f"detail={detail}"))
    steps = result.steps
    assert (steps["expert_hits"].tolist(), steps["expert_misses"].tolist()) == ([0, 2, 1, 1, 2], [2, 0, 1, 1, 0])
    assert (steps["swapped_choices"].tolist(), steps["expert_choices"].tolist()) == ([0, 1, 1, 1, 0], [2] * 5)
    assert steps["given_up_probability"].tolist() == [0, 0.25, 0.25, 0.25, 0]
    assert steps["gate_probability"].tolist() == [1] * 5
    assert steps["fetch_s"].tolist() == [50, 0, 25, 25, 0]
    assert moesim.metrics.expert_cache(steps).to_dict() == {
        "hit_ratio": 0.6, "fetched_bytes": 48, "swapped_share": 0.3, "given_up_share": 0.15}
    assert any("30.0% of the tokens' choices are not those of their gates, which gives up 15.0% of" in note
               for note in result.meta["warnings"])


def test_tokens_go_where_the_expert_is(tmp_path: Path) -> None:
    """0 and 1 are on device 0, 2 and 3 on device 1. The decode wants 2, has 0 as well, which is there."""
    chosen = {"prompt": [[[0, 2]]], "decode": [[[2, 0]]], "devices": [[0, 1], [2, 3]]}
    fetched = {}
    for reroute in ("none", "{name: cache_conditional, keep: 0}"):
        result = moesim.simulate(made(tmp_path, chosen, f"cache={{capacity: 1, reroute: {reroute}}}"))
        fetched[reroute] = result.memory["fetched_bytes"].tolist()
        dispatched = result.links["dispatch_bytes"].sum()
        assert (dispatched == 0) == (reroute != "none")  # the request is at home on device 0
    assert list(fetched.values()) == [[12, 12], [12, 0]]


@pytest.mark.parametrize(("cache", "message"), [
    ("scope: global", "reroute decides for all layers of a pass as it begins"),
    ("prefetcher: oracle", "reroute: the prefetcher oracle expects choices that rerouting changes; use none"),
    ("miss: {name: low_precision, threshold: 0.5}", "cache.miss: low_precision looks at the weights of the gates' own"),
    ("reroute: {name: cache_conditional, window: 5}", "cache.reroute: window is 5, but the trace ranks 2 candidates"),
    ("reroute: {name: cache_conditional, keep: 2}", "cache.reroute: cache_conditional: keep is 2, but a token uses 1"),
    ("reroute: cache_condition", "did you mean 'cache_conditional'?")])
def test_what_a_scenario_cannot_ask(tmp_path: Path, cache: str, message: str) -> None:
    given = cache if "reroute" in cache else f"{cache}, reroute: cache_conditional"
    with pytest.raises(ConfigError) as error:
        moesim.simulate(made(tmp_path, TWO_LAYERS, f"cache={{capacity: 2, {given}}}"))
    assert message in str(error.value)
