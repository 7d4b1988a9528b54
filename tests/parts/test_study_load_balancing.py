"""Study 02: its pieces by hand, the bands that it has to show on the 256-GPU fabric, and its README's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.network.play import play
from moesim.page import renewed

MODULES = ("setting", "collectives", "failures", "replay", "pages", "figures", "study")


@pytest.fixture(scope="module")
def parts(repo: Path, study_modules: Any) -> Iterator[dict[str, Any]]:
    with study_modules(repo / "studies" / "02_load_balancing", MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def tables(repo: Path) -> dict[str, pd.DataFrame]:
    folder = repo / "studies" / "02_load_balancing"
    return {name: pd.read_csv(folder / f"{name}.csv") for name in ("collectives", "failures", "replay")}


@pytest.fixture(scope="module")
def spray_s(parts: dict[str, Any]) -> dict[str, float]:
    """Seconds of 64 MB under spraying, by collective: the slowest to solve."""
    solved = parts["setting"].solved
    return {part: solved(part, "spray", 0).time_s(64) for part in parts["setting"].COLLECTIVES.values()}


@pytest.fixture(scope="module")
def ratio(parts: dict[str, Any], spray_s: dict[str, float]) -> Callable[..., float]:
    """Time over that of spraying, of (collective, balancing, seed)."""
    return lambda part, balancing, seed=0: parts["setting"].solved(part, balancing, seed).time_s(64) / spray_s[part]


@pytest.mark.parametrize("part", ["ring", "tree", "halving_doubling", "direct", "flat"])
def test_splitting_equals_spraying(ratio: Callable[..., float], part: str) -> None:
    assert ratio(part, "split") == pytest.approx(1.0, abs=1e-6)


def test_hashing_costs_nothing_in_a_ring_a_tenth_in_direct_and_four_times_in_halving_doubling(
        ratio: Callable[..., float]) -> None:
    assert ratio("ring", "ecmp") == pytest.approx(1.0, abs=1e-9)
    assert 1.08 <= np.mean([ratio("direct", "ecmp", seed) for seed in (0, 1)]) <= 1.14
    assert 4.0 <= np.mean([ratio("halving_doubling", "ecmp", seed) for seed in range(4)]) <= 5.0
    pieces = [ratio("halving_doubling", f"mprdma {n}") for n in (2, 4, 8)]
    assert 4 > pieces[0] > pieces[1] > pieces[2] > 1.5


def test_a_ring_takes_what_paper_and_pencil_say(parts: dict[str, Any]) -> None:
    # 2 x 255 rounds of 64 MB / 256 at 50 GB/s: 5 us, and 2 us of latency between leaves
    assert parts["setting"].solved("ring", "spray", 0).time_s(64) == pytest.approx(510 * 7e-6, rel=1e-9)
    assert parts["setting"].solved("ring", "spray", 0).time_s(128) == pytest.approx(510 * 12e-6, rel=1e-9)


@pytest.mark.parametrize("balancing", ["ecmp", "split"])
def test_other_sizes_follow_from_the_one_that_was_solved(parts: dict[str, Any], balancing: str) -> None:
    setting = parts["setting"]
    pattern = setting.solved("halving_doubling", balancing, 3)
    for size in (1, 256):
        net = setting.network(balancing, 3, "halving_doubling")
        played = play(net, setting.acts_of(net, "halving_doubling", size), "flat")
        assert pattern.time_s(size) == pytest.approx(played.time_s, rel=1e-9)


def test_a_failure_costs_spraying_its_timeout_and_a_tree_by_hashes_nothing_if_it_is_elsewhere(
        parts: dict[str, Any]) -> None:
    row = parts["failures"].rows("tree", "spine", "spray", 0)[0]
    assert row["time_s"] - row["whole_s"] == pytest.approx(1e-3, rel=1e-6)
    (at, *_), (whole, *_) = ([r[c] for r in parts["failures"].rows("tree", "cable", "ecmp", 0)]
                             for c in ("time_s", "whole_s"))
    assert at == pytest.approx(whole, rel=1e-9)


def test_flows_that_keep_their_dead_path_never_end(parts: dict[str, Any]) -> None:
    assert "never ends" in parts["failures"].without_new_paths()


def test_groups_lie_where_their_layout_says(parts: dict[str, Any]) -> None:
    spread, racks = (parts["replay"].devices(layout) for layout in ("spread", "racks"))
    for hosts in (spread, racks):
        assert sorted(hosts.ravel().tolist()) == list(range(256))
    assert np.bincount(spread[3] // 16, minlength=16).tolist() == [2] * 16
    assert sorted(set((racks[3] // 16).tolist())) == [6, 7]


def test_a_dispatch_moves_the_tokens_that_there_are(parts: dict[str, Any]) -> None:
    replay = parts["replay"]
    trace = replay.read_trace(replay.TRACE)
    for routing in replay.ROUTINGS:
        copies = replay.matrices(trace, routing, "decode", 0)
        assert copies.shape == (8, 1 if routing == "equal flows" else 12, 32, 32)
        sent = copies.sum(axis=3)  # a token goes to its two experts; to one device if that has both
        if "replicas" in routing:
            assert (sent <= 256).all() and (sent >= 128).all()
        else:
            assert (sent == 256).all()


def test_replayed_ports_and_times_by_hand(parts: dict[str, Any]) -> None:
    replay = parts["replay"]
    copies = np.zeros((8, 32, 32))
    copies[0, 0, 5], copies[0, 1, 5], copies[1, 4, 4] = 100, 300, 7  # the port of member 5 gets 400 tokens
    copies[1:, 0, 1] = 50
    table = replay.timed(copies, "spread", "spray", 0, 0.0)
    byte_s = replay.TOKEN_BYTES / 50e9
    assert table["nic_s"].tolist() == pytest.approx([400 * byte_s] + [50 * byte_s] * 7)
    assert table["time_s"].tolist() == pytest.approx([400 * byte_s + 2e-6] + [50 * byte_s + 1e-6] * 7)
    assert table["imbalance"].tolist() == pytest.approx([32.0] * 8)


def test_readme_says_what_the_tables_have(parts: dict[str, Any], tables: dict[str, pd.DataFrame], repo: Path) -> None:
    readme = (repo / "studies" / "02_load_balancing" / "README.md").read_text(encoding="utf-8")
    assert renewed(readme, parts["pages"].numbers(tables)) == readme


def test_tables_keep_the_bands(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["collectives"].set_index(["collective", "balancing", "size_mb"])["ratio"]
    assert 1.08 <= table["all-reduce, direct", "ecmp", 64] <= 1.14
    assert 4.0 <= table["all-reduce, halving-doubling", "ecmp", 64] <= 5.0
    assert table[:, "split", 64].max() == pytest.approx(1.0, abs=1e-6)
    assert table["all-reduce, ring"].max() == pytest.approx(1.0, abs=1e-6)
    replay = tables["replay"].query("layout == 'spread' and phase == 'prefill'")
    mean = replay.groupby(["routing", "balancing"])["ratio"].mean()
    hot, balanced = mean["captured, one expert per device", "ecmp"], mean["captured, 32 replicas (EPLB)", "ecmp"]
    assert mean["equal flows", "ecmp"] > balanced + 0.1 > hot + 0.2


def test_a_table_of_another_version_is_refused(parts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
    with pytest.raises(ValueError, match="0 rows have"):
        parts["pages"].at(tables["collectives"], "all-reduce, ring", "reps")
    with pytest.raises(ValueError, match="markers are not there"):
        renewed("a page", "numbers")
